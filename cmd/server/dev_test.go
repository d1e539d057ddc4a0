package main

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"accesskeys/internal/auth"
	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
)

// What `server dev` publishes.
const (
	demoCustomer = "Demo"
	demoUsername = "admin@demo.example"
	demoPassword = "demo-password"
	demoDatabase = "accesskeys"
)

// devRun is a running `server dev`, with what it has printed.
type devRun struct {
	*process
	url, username, password, key string
	lines                        []string // addresses to try
}

// startDev starts `server dev` on a folder and waits until it has printed everything.
func startDev(t *testing.T, dir string, env map[string]string) devRun {
	t.Helper()
	settings := map[string]string{"LISTEN_ADDR": "127.0.0.1:0"}
	maps.Copy(settings, env)
	d := devRun{process: spawn(t, settings, "", "dev", "--dir", dir)}
	d.eventually("it has printed everything", func() bool { return strings.Contains(d.stdout.String(), "Ctrl-C stops it.") })
	printed := regexp.MustCompile(`(?s)Base URL: +(\S+)\n.*Username: +(\S+)\n.*Password: +(\S+)\n.*Access key: +(\S+)\n.*curl '(http[^']+)'\n.*curl '(http[^']+)'\n`)
	match := printed.FindStringSubmatch(d.stdout.String())
	if match == nil || strings.Count(d.stdout.String(), "curl 'http") != 2 {
		t.Fatalf("it printed\n%s", d.stdout)
	}
	d.url, d.username, d.password, d.key, d.lines = match[1], match[2], match[3], match[4], match[5:]
	return d
}

// works fails the test unless everything that was printed does.
func (d devRun) works() {
	d.t.Helper()
	me := call(d.t, "GET", d.lines[0], "", "").wants(d.t, 200)
	if me["type"] != "agent" || me["username"] != d.username || me["permission"] != 32.0 {
		d.t.Errorf("the first line shows %v", me)
	}
	if list := call(d.t, "GET", d.lines[1], "", "").wants(d.t, 200)["result"].([]any); len(list) == 0 {
		d.t.Error("the second line lists no key")
	}
	jwt := login(d.t, d.url, d.username, d.password).wants(d.t, 200)["token"].(string)
	call(d.t, "GET", d.url+"/v1.0/accesskeys", jwt, "").wants(d.t, 200)
	if got := d.accepts(d.key); got["type"] != "accesskey" || got["customer_id"] != me["customer_id"] {
		d.t.Errorf("the key is %v", got)
	}
}

func (d devRun) accepts(key string) map[string]any {
	d.t.Helper()
	return call(d.t, "GET", d.url+"/v1.0/me", key, "").wants(d.t, 200)
}

// prints fails the test unless these credentials are printed.
func (d devRun) prints(username, password, key string) {
	d.t.Helper()
	if d.username != username || d.password != password || d.key != key {
		d.t.Errorf("it prints\n%s", d.stdout)
	}
}

// createKey makes a key and returns its token.
func (d devRun) createKey() string {
	d.t.Helper()
	return call(d.t, "POST", d.url+"/v1.0/accesskeys", d.key, `{"name":"kept"}`).wants(d.t, 200)["token"].(string)
}

// refusesPublished fails the test unless the published credentials open nothing at this server.
func refusesPublished(t *testing.T, base string) {
	t.Helper()
	login(t, base, demoUsername, demoPassword).refuses(t, 401, "INVALID_CREDENTIALS")
	call(t, "GET", base+"/v1.0/me", config.DemoAccessKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
}

// devFolder is a folder as `server dev` would find it, but for the second that initdb takes.
func devFolder(t *testing.T) string {
	t.Helper()
	dir := newFolder(t)
	if output, err := exec.Command("cp", "-a", must(devTemplate())(t), filepath.Join(dir, "postgres")).CombinedOutput(); err != nil {
		t.Fatalf("copying: %v: %s", err, output)
	}
	return dir
}

var devTemplate = sync.OnceValues(func() (string, error) {
	root, err := testRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "template")
	postgres, err := privatepg.Start(context.Background(), privatepg.Config{Dir: dir, Ephemeral: true, Getenv: os.Getenv})
	if err != nil {
		return "", err
	}
	return dir, postgres.Close()
})

// devDatabase is the address of a running server dev's own database.
func devDatabase(dir string) secret.Value {
	return secret.New("postgres:///" + demoDatabase + "?host=" + filepath.Join(dir, "postgres", "run") + "&port=5432&user=postgres")
}

// Contract, section 6: server dev: the same on a Postgres of its own, with a demo customer ...; prints base URL, user, password, access key,
// curl lines. From nothing; with what was made kept for the next run; and nothing left after either signal.
func TestDevPrintsWhatWorksAndKeepsWhatIsMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "demo") // is not there yet
	kept := config.DemoAccessKey
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		d := startDev(t, dir, nil)
		d.prints(demoUsername, demoPassword, config.DemoAccessKey)
		d.works()
		d.accepts(kept)
		kept = d.createKey()
		if left := must(processesOf(dir))(t); len(left) < 3 { // the control: server, supervisor, Postgres
			t.Errorf("while it runs there are only %q", left)
		}
		d.stop(signal)
		if left := must(processesOf(dir))(t); len(left) > 0 { // at once: it has waited for its Postgres
			t.Errorf("after %v there are still %q", signal, left)
		}
	}
}

// A second `server dev` on the folder takes over from the first, which ends as if it had been asked to; one on another
// folder does not concern it.
func TestSecondDevTakesOver(t *testing.T) {
	t.Parallel()
	dir, elsewhere := devFolder(t), devFolder(t)
	first := startDev(t, dir, nil)
	kept := first.createKey()
	other := startDev(t, elsewhere, nil)
	second := startDev(t, dir, nil)
	if code := first.code(); code != 0 {
		t.Errorf("the first ended with code %d", code)
	}
	second.logs("taking over from another `server dev`")
	second.works()
	second.accepts(kept)
	other.works()
	second.stop(os.Interrupt)
	other.stop(os.Interrupt)
	if left := append(must(processesOf(dir))(t), must(processesOf(elsewhere))(t)...); len(left) > 0 {
		t.Errorf("there are still %q", left)
	}
}

// Whatever was done to the demo's credentials, the next run prints some that work. What was revoked stays revoked.
func TestDevPrintsWhatWorksWhateverWasDoneBefore(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	other := must(must(auth.NewPasswords(1, patience, auth.DefaultHashCost()))(t).Hash(t.Context(), secret.New("another password")))(t)
	d := startDev(t, dir, nil)
	for _, harm := range []struct {
		name, change string
		args         []any
		keyGone      bool
	}{
		{"nothing", `SELECT 1`, nil, false},
		{"the password is changed", `UPDATE agents SET password_hash = $1, tm_password = now()`, []any{other.Reveal()}, false},
		{"the agent is deleted", `UPDATE agents SET tm_delete = now()`, nil, false},
		{"the key is deleted", `UPDATE accesskeys SET tm_delete = now()`, nil, true},
		{"the next key is deleted too", `UPDATE accesskeys SET tm_delete = now()`, nil, true},
		{"all at once, the key expired", `
			WITH k AS (UPDATE accesskeys SET tm_create = now() - interval '2 h', tm_expire = now() - interval '1 h')
			UPDATE agents SET tm_delete = now()`, nil, true},
	} {
		sql(t, devDatabase(dir), harm.change, harm.args...)
		before := d.key
		d.stop(os.Interrupt)
		d = startDev(t, dir, nil)
		d.works()
		if gone := d.key != before; gone != harm.keyGone {
			t.Errorf("%s: the key printed is another: %v", harm.name, gone)
		}
		if harm.keyGone {
			call(t, "GET", d.url+"/v1.0/me", before, "").refuses(t, 401, "INVALID_CREDENTIALS")
		}
	}
}

// Contract, section 6: on 127.0.0.1:8080 where LISTEN_ADDR is unset: for addresses that others can reach, the published credentials are no
// secret, so others take their place.
func TestDevOnAnOpenAddressDoesNotUseThePublishedCredentials(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	// A run on a loopback address comes first, and leaves the published ones in the database.
	last := startDev(t, dir, nil)
	last.prints(demoUsername, demoPassword, config.DemoAccessKey)
	last.works()
	for range 2 { // each with others
		last.stop(os.Interrupt)
		d := startDev(t, dir, map[string]string{"LISTEN_ADDR": "0.0.0.0:0"})
		if !strings.HasPrefix(d.url, "http://127.0.0.1:") {
			t.Errorf("the base URL %s can't be pasted", d.url)
		}
		if d.password == last.password || len(d.password) < 16 || d.key == last.key {
			t.Errorf("it prints\n%s\nafter\n%s", d.stdout, last.stdout)
		}
		d.works()
		refusesPublished(t, d.url)
		last = d
	}
}

// libpq's variables are about other databases: a Postgres of dev's own is reached whatever they say.
func TestDevsOwnPostgresIgnoresLibpqsVariables(t *testing.T) {
	t.Parallel()
	d := startDev(t, filepath.Join(newFolder(t), "demo"), map[string]string{
		"PGSERVICE": "none", "PGSERVICEFILE": "/no/such/file", "PGTZ": "Mars/Olympus", "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
		"PGHOST": "127.0.0.1", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "x", "PGDATABASE": "none", "PGSSLMODE": "verify-full",
		"PGSSLROOTCERT": "/no/such/file", "PGTARGETSESSIONATTRS": "standby", "PGPASSFILE": "/no/such/file", "PGCONNECT_TIMEOUT": "none",
		"PGAPPNAME": "x", "PGDATA": "/no/such/folder", "PGREQUIREAUTH": "scram-sha-256", "PGMINPROTOCOLVERSION": "none",
	})
	d.works()
	d.stop(os.Interrupt)
}

// The published credentials open a Postgres that dev has started itself, and no other database, where its other servers would accept them.
// What an earlier run has left of them there is taken away, and told.
func TestDevPlantsNoPublishedCredentialInAnothersDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	env := map[string]string{"DATABASE_URL": database.Reveal()}
	planted := map[string]string{
		"BOOTSTRAP_CUSTOMER": demoCustomer, "BOOTSTRAP_USERNAME": demoUsername, "BOOTSTRAP_PASSWORD": demoPassword, "BOOTSTRAP_ACCESSKEY": config.DemoAccessKey,
	}
	served(t, database, planted).base()
	d := startDev(t, filepath.Join(newFolder(t), "demo"), env)
	if d.username != demoUsername || d.password == demoPassword || d.key == config.DemoAccessKey {
		t.Errorf("it prints\n%s", d.stdout)
	}
	d.works()
	refusesPublished(t, served(t, database, nil).base())
	d.logs("the published demo key opened this database; it is deleted now")
	d.logs("the published demo password opened this database; it is changed now")
}

// Contract, section 6: `DATABASE_URL` (required but for `dev`): where it is set, dev uses it and starts no Postgres of its own; BOOTSTRAP
// settings take the place of the demo's.
func TestDevUsesTheDatabaseThatIsGiven(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "demo")
	database := pgtest.Empty(t)
	d := startDev(t, dir, map[string]string{
		"DATABASE_URL": database.Reveal(), "BOOTSTRAP_CUSTOMER": "acme", "BOOTSTRAP_USERNAME": testUsername,
		"BOOTSTRAP_PASSWORD": "of-acme", "BOOTSTRAP_ACCESSKEY": testKey,
	})
	d.prints(testUsername, "of-acme", testKey)
	d.works()
	if left := must(processesOf(dir))(t); len(left) != 1 { // itself: the folder is among its arguments
		t.Errorf("there are %q", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "postgres")); !os.IsNotExist(err) {
		t.Errorf("there is a folder for Postgres: %v", err)
	}
	hasRows(t, database, oneOfEach)
	d.stop(os.Interrupt)
}
