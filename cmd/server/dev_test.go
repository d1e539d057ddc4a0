package main

import (
	"context"
	"net/http"
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
	"accesskeys/internal/servertest"
)

// What `server dev` publishes.
const (
	demoCustomer = "Demo"
	demoUsername = "admin@demo.example"
	demoPassword = "demo-password"
	demoDatabase = "accesskeys"
)

// credentials are what `server dev` prints.
type credentials struct {
	base, username, password, key string
	urls                          []string // in them
}

// startDev starts `server dev` on a folder and waits until it has printed everything.
func startDev(t *testing.T, dir string, env map[string]string) (*process, credentials) {
	t.Helper()
	settings := map[string]string{"LISTEN_ADDR": "127.0.0.1:0"}
	for name, value := range env {
		settings[name] = value
	}
	p := spawn(t, settings, "", "dev", "--dir", dir)
	servertest.Eventually(t, "server dev has printed everything", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("it ended:\n%s", p.stderr)
		default:
		}
		return strings.Contains(p.stdout.String(), "Ctrl-C stops it.")
	})
	out := p.stdout.String()
	field := func(name string) string {
		match := regexp.MustCompile(`(?m)^` + name + `: +(\S+)$`).FindStringSubmatch(out)
		if match == nil {
			t.Fatalf("it printed no %s:\n%s", name, out)
		}
		return match[1]
	}
	c := credentials{base: field("Base URL"), username: field("Username"), password: field("Password"), key: field("Access key")}
	for _, match := range regexp.MustCompile(`(?m)^ *curl '(http[^']+)'$`).FindAllStringSubmatch(out, -1) {
		c.urls = append(c.urls, match[1])
	}
	if len(c.urls) != 2 {
		t.Fatalf("there are %d lines to try:\n%s", len(c.urls), out)
	}
	return p, c
}

// work fails the test unless everything that was printed does.
func (c credentials) work(t *testing.T) {
	t.Helper()
	me := call(t, "GET", c.urls[0], "", "").wants(t, 200)
	if me["type"] != "agent" || me["username"] != c.username || me["permission"] != 32.0 {
		t.Errorf("the first line shows %v", me)
	}
	if list := call(t, "GET", c.urls[1], "", "").wants(t, 200)["result"].([]any); len(list) == 0 {
		t.Error("the second line lists no key")
	}
	jwt := login(t, c.base, c.username, c.password).wants(t, 200)["token"].(string)
	call(t, "GET", c.base+"/v1.0/accesskeys", jwt, "").wants(t, 200)
	if got := call(t, "GET", c.base+"/v1.0/me", c.key, "").wants(t, 200); got["type"] != "accesskey" || got["customer_id"] != me["customer_id"] {
		t.Errorf("the key is %v", got)
	}
}

// createKey makes a key and returns its token.
func (c credentials) createKey(t *testing.T) string {
	t.Helper()
	return call(t, "POST", c.base+"/v1.0/accesskeys", c.key, `{"name":"kept"}`).wants(t, 200)["token"].(string)
}

// nothingLeft waits until no process knows the folder.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	servertest.Eventually(t, "nothing of it runs any more", func() bool {
		left, err := processesOf(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	})
}

// devFolder is a folder as `server dev` would find it, but for the second that initdb takes.
func devFolder(t *testing.T) string {
	t.Helper()
	template, err := devTemplate()
	if err != nil {
		t.Fatal(err)
	}
	dir := newFolder(t)
	if output, err := exec.Command("cp", "-a", template, filepath.Join(dir, "postgres")).CombinedOutput(); err != nil {
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
	kept := ""
	for run, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		p, c := startDev(t, dir, nil)
		if c.username != demoUsername || c.password != demoPassword || c.key != config.DemoAccessKey {
			t.Errorf("run %d prints %+v", run, c)
		}
		c.work(t)
		if run == 0 {
			kept = c.createKey(t)
		} else if got := call(t, "GET", c.base+"/v1.0/me", kept, ""); got.code != 200 {
			t.Errorf("the key of the first run: %d %s", got.code, got.body)
		}
		if left, err := processesOf(dir); err != nil || len(left) < 3 { // the control: server, supervisor, Postgres
			t.Errorf("while it runs there are only %q, %v", left, err)
		}
		p.signal(signal)
		if code := p.code(); code != 0 {
			t.Errorf("after %v: exit code %d", signal, code)
		}
		if left, err := processesOf(dir); err != nil || len(left) > 0 { // at once: it has waited for its Postgres
			t.Errorf("after %v there are still %q, %v", signal, left, err)
		}
	}
}

// A server that is killed leaves no Postgres behind, and the next run starts with the same data, at once or later.
func TestKilledDevLeavesNothingAndStartsAgain(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	p, c := startDev(t, dir, nil)
	kept := c.createKey(t)
	p.signal(os.Kill)
	p.code()
	nothingLeft(t, dir) // without a next run that would clean up

	p, _ = startDev(t, dir, nil)
	p.signal(os.Kill)
	p, c = startDev(t, dir, nil) // while the killed one's Postgres is still there
	c.work(t)
	call(t, "GET", c.base+"/v1.0/me", kept, "").wants(t, 200)
	p.signal(os.Interrupt)
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	nothingLeft(t, dir)
}

// A second `server dev` on the folder takes over from the first, which ends as if it had been asked to; one on another
// folder does not concern it.
func TestSecondDevTakesOver(t *testing.T) {
	t.Parallel()
	dir, elsewhere := devFolder(t), devFolder(t)
	first, c := startDev(t, dir, nil)
	kept := c.createKey(t)
	other, unconcerned := startDev(t, elsewhere, nil)
	second, c := startDev(t, dir, nil)
	if code := first.code(); code != 0 {
		t.Errorf("the first ended with code %d", code)
	}
	if !strings.Contains(second.stderr.String(), "taking over from another `server dev`") {
		t.Errorf("the second does not say so:\n%s", second.stderr)
	}
	c.work(t)
	call(t, "GET", c.base+"/v1.0/me", kept, "").wants(t, 200)
	unconcerned.work(t)
	for _, p := range []*process{second, other} {
		p.signal(os.Interrupt)
		if code := p.code(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	nothingLeft(t, dir)
	nothingLeft(t, elsewhere)
}

// Whatever was done to the demo's credentials, the next run prints some that work. What was revoked stays revoked.
func TestDevPrintsWhatWorksWhateverWasDoneBefore(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	passwords, err := auth.NewPasswords(1, patience, auth.DefaultHashCost())
	if err != nil {
		t.Fatal(err)
	}
	other, err := passwords.Hash(t.Context(), secret.New("another password"))
	if err != nil {
		t.Fatal(err)
	}
	p, c := startDev(t, dir, nil)
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
		before := c
		p.signal(os.Interrupt)
		p.code()

		p, c = startDev(t, dir, nil)
		c.work(t)
		if gone := c.key != before.key; gone != harm.keyGone {
			t.Errorf("%s: the key printed is another: %v", harm.name, gone)
		}
		if harm.keyGone {
			call(t, "GET", c.base+"/v1.0/me", before.key, "").refuses(t, http.StatusUnauthorized, "INVALID_CREDENTIALS")
		}
	}
	p.signal(os.Interrupt)
	p.code()
}

// Contract, section 6: on 127.0.0.1:8080 where LISTEN_ADDR is unset: for addresses that others can reach, the published credentials are no
// secret, so others take their place.
func TestDevOnAnOpenAddressDoesNotUseThePublishedCredentials(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	// A run on a loopback address comes first, and leaves the published ones in the database.
	local, published := startDev(t, dir, nil)
	if published.password != demoPassword || published.key != config.DemoAccessKey {
		t.Errorf("on a loopback address it prints %+v", published)
	}
	published.work(t)
	local.signal(os.Interrupt)
	local.code()
	p, c := startDev(t, dir, map[string]string{"LISTEN_ADDR": "0.0.0.0:0"})
	if !strings.HasPrefix(c.base, "http://127.0.0.1:") {
		t.Errorf("the base URL %s can't be pasted", c.base)
	}
	if c.password == demoPassword || len(c.password) < 16 || c.key == config.DemoAccessKey {
		t.Errorf("it prints %+v", c)
	}
	c.work(t)
	login(t, c.base, demoUsername, demoPassword).refuses(t, 401, "INVALID_CREDENTIALS")
	call(t, "GET", c.base+"/v1.0/me", config.DemoAccessKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
	p.signal(os.Interrupt)
	p.code()
	q, next := startDev(t, dir, map[string]string{"LISTEN_ADDR": "0.0.0.0:0"})
	if next.password == c.password || next.key == c.key {
		t.Errorf("the next run prints the same: %+v", next)
	}
	next.work(t)
	q.signal(os.Interrupt)
	q.code()
}

// libpq's variables are about other databases: a Postgres of dev's own is reached whatever they say.
func TestDevsOwnPostgresIgnoresLibpqsVariables(t *testing.T) {
	t.Parallel()
	p, c := startDev(t, filepath.Join(newFolder(t), "demo"), map[string]string{
		"PGSERVICE": "none", "PGSERVICEFILE": "/no/such/file", "PGTZ": "Mars/Olympus", "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
		"PGHOST": "127.0.0.1", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "x", "PGDATABASE": "none", "PGSSLMODE": "verify-full",
		"PGSSLROOTCERT": "/no/such/file", "PGTARGETSESSIONATTRS": "standby", "PGPASSFILE": "/no/such/file", "PGCONNECT_TIMEOUT": "none",
		"PGAPPNAME": "x", "PGDATA": "/no/such/folder", "PGREQUIREAUTH": "scram-sha-256", "PGMINPROTOCOLVERSION": "none",
	})
	c.work(t)
	p.signal(os.Interrupt)
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
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
	launch(t, environment(database, planted), "serve").base()
	p, c := startDev(t, filepath.Join(newFolder(t), "demo"), env)
	if c.username != demoUsername || c.password == demoPassword || c.key == config.DemoAccessKey {
		t.Errorf("it prints %+v", c)
	}
	c.work(t)
	other := launch(t, environment(database, nil), "serve").base()
	call(t, "GET", other+"/v1.0/me", config.DemoAccessKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
	call(t, "POST", other+"/auth/login", "", `{"username":"`+demoUsername+`","password":"`+demoPassword+`"}`).refuses(t, 401, "INVALID_CREDENTIALS")
	for _, told := range []string{"the published demo key opened this database; it is deleted now", "the published demo password opened this database; it is changed now"} {
		if !strings.Contains(p.stderr.String(), told) {
			t.Errorf("the log lacks %q:\n%s", told, p.stderr)
		}
	}
	p.signal(os.Interrupt)
	p.code()
}

// Contract, section 6: `DATABASE_URL` (required but for `dev`): where it is set, dev uses it and starts no Postgres of its own; BOOTSTRAP
// settings take the place of the demo's.
func TestDevUsesTheDatabaseThatIsGiven(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "demo")
	database := pgtest.Empty(t)
	p, c := startDev(t, dir, map[string]string{
		"DATABASE_URL": database.Reveal(), "BOOTSTRAP_CUSTOMER": "acme", "BOOTSTRAP_USERNAME": testUsername,
		"BOOTSTRAP_PASSWORD": "of-acme", "BOOTSTRAP_ACCESSKEY": testKey,
	})
	if c.username != testUsername || c.password != "of-acme" || c.key != testKey {
		t.Errorf("it prints %+v", c)
	}
	c.work(t)
	if left, err := processesOf(dir); err != nil || len(left) != 1 { // itself: the folder is among its arguments
		t.Errorf("there are %q, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "postgres")); !os.IsNotExist(err) {
		t.Errorf("there is a folder for Postgres: %v", err)
	}
	if got := census(t, database); got != oneOfEach {
		t.Error(got)
	}
	p.signal(os.Interrupt)
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
