//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// oldVersion is a version of the server from before migration 4, and how it is run.
type oldVersion struct {
	commit string
	schema int // the version of its newest migration
	lease  time.Duration
	env    []string
}

var (
	withAgents    = oldVersion{commit: "b55e8ec", schema: 1}
	withAccounts  = oldVersion{commit: "5fa00e0", schema: 2}
	withLease     = oldVersion{commit: "0d473a7", schema: 3, lease: 2 * time.Second} // which is the default
	withZeroLease = oldVersion{commit: "0d473a7", schema: 3, env: []string{"CACHE_LEASE=0"}}
	withLongLease = oldVersion{commit: "0d473a7", schema: 3, lease: 20 * time.Second, env: []string{"CACHE_LEASE=20s"}}
)

func (v oldVersion) String() string { return strings.Join(append([]string{v.commit}, v.env...), " ") }

// oldBinaries are the servers of old versions, each built once.
var oldBinaries struct {
	sync.Mutex
	paths map[string]string
}

// build returns the path of the version's server.
func (v oldVersion) build(t testing.TB) string {
	t.Helper()
	oldBinaries.Lock()
	defer oldBinaries.Unlock()
	if path, is := oldBinaries.paths[v.commit]; is {
		return path
	}
	// The checkout may belong to another account.
	git := func(arguments ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*", "-C", "../.."}, arguments...)...)
	}
	if output, err := git("cat-file", "-e", v.commit+"^{commit}").CombinedOutput(); err != nil {
		t.Fatalf("this test builds the server of commit %s, which this checkout's history lacks (git fetch --unshallow): %v\n%s", v.commit, err, output)
	}
	dir := filepath.Join(filepath.Dir(binary), v.commit)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "source.tar")
	if output, err := git("archive", "--output", archive, v.commit).CombinedOutput(); err != nil {
		t.Fatalf("git archive: %v\n%s", err, output)
	}
	if output, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, output)
	}
	path := filepath.Join(dir, "old-server")
	// With the flags of servertest.Build, so that packages which are the same are compiled once.
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath", "-o", path, "./cmd/server")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the server of commit %s: %v\n%s", v.commit, err, output)
	}
	if oldBinaries.paths == nil {
		oldBinaries.paths = map[string]string{}
	}
	oldBinaries.paths[v.commit] = path
	return path
}

// credential is one that somebody was given.
type credential struct{ name, token string }

// outdated is an old version at work on a database of its own, with data that was made through it.
type outdated struct {
	*server
	oldVersion
	binary   string
	database string
	client   *http.Client
	good     []credential // accepted
	bad      []credential // not accepted any more
	spare    string       // the id of a key that nobody needs
}

func startOutdated(t testing.TB, v oldVersion) *outdated {
	t.Helper()
	o := &outdated{oldVersion: v, binary: v.build(t), client: client(t)}
	cluster, err := privatepg.Start(t.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: map[string]string{"max_connections": "200"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	if err := postgres.CreateDatabase(t.Context(), secret.New(cluster.URL("postgres")), "accesskeys"); err != nil {
		t.Fatal(err)
	}
	o.database = cluster.URL("accesskeys")
	o.server = &server{t: t, addr: freeAddr(t)}
	o.server.env = append(append(os.Environ(), "DATABASE_URL="+o.database, "LISTEN_ADDR="+o.addr, "JWT_SECRET="+jwtSecret,
		"RATE_LIMIT_AUTH_RPS=0", "BOOTSTRAP_CUSTOMER=E2E", "BOOTSTRAP_USERNAME="+adminName, "BOOTSTRAP_PASSWORD="+adminPassword,
		"BOOTSTRAP_ACCESSKEY="+adminKey), v.env...)
	o.restart(t)
	o.makeData(t)
	return o
}

// jwtSecret is that of newServer.
var jwtSecret = strings.Repeat("e2e-secret", 4)

// restart starts the old server, and waits until it is ready.
func (o *outdated) restart(t testing.TB) {
	t.Helper()
	cmd := exec.Command(o.binary, "serve")
	cmd.Env = o.server.env
	o.program = start(t, "server of "+o.commit, cmd)
	o.awaitReady()
}

// api calls the old server.
func (o *outdated) api(t testing.TB, method, path, bearer, body string, into any) {
	t.Helper()
	call(t.Context(), o.client, method, o.url(path), body, "Authorization", "Bearer "+bearer).into(t, into)
}

// cli runs a subcommand of the old server's, and decodes what it prints.
func (o *outdated) cli(t testing.TB, stdin string, into any, arguments ...string) {
	t.Helper()
	runServer(t, o.binary, o.database, stdin, into, arguments...)
}

// runServer runs a subcommand of a server's to its end, and decodes what it prints.
func runServer(t testing.TB, path, database, stdin string, into any, arguments ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, arguments...)
	cmd.Env, cmd.Stdin = append(os.Environ(), "DATABASE_URL="+database), strings.NewReader(stdin)
	output, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(output, into)
	}
	if err != nil {
		var said []byte
		if exit, is := errors.AsType[*exec.ExitError](err); is {
			said = exit.Stderr
		}
		t.Fatalf("%s %q: %v: %s%s", filepath.Base(path), arguments, err, output, said)
	}
}

type made struct{ ID, Token string }

func (o *outdated) login(t testing.TB, username, password string) string {
	t.Helper()
	var answer struct{ Token string }
	o.api(t, http.MethodPost, "/auth/login", "", fmt.Sprintf(`{"username":%q,"password":%q}`, username, password), &answer)
	return answer.Token
}

// signed is a token of a service account's, by a key pair that is made for it; keyID is that one's.
func (o *outdated) signed(t testing.TB, account string) (token, keyID string) {
	t.Helper()
	a := call(t.Context(), o.client, http.MethodPost, o.url("/v1.0/service_accounts/"+account+"/keys"), "", bearer(adminKey)...)
	var file struct {
		KeyID string `json:"key_id"`
	}
	a.into(t, &file)
	path := filepath.Join(folder(t), "credentials.json")
	write(t, path, a.body)
	output, err := exec.CommandContext(t.Context(), o.binary, "token", "sign", "--credentials", path).Output()
	token, found := strings.CutPrefix(strings.TrimSpace(string(output)), "Authorization: Bearer ")
	if err != nil || !found {
		t.Fatalf("token sign: %v, %q", err, output)
	}
	return token, file.KeyID
}

// makeData makes one of each kind of thing that the version knows, and of each a credential that works and one that doesn't any more.
func (o *outdated) makeData(t testing.TB) {
	t.Helper()
	good := func(name, token string) { o.good = append(o.good, credential{name, token}) }
	bad := func(name, token string) { o.bad = append(o.bad, credential{name, token}) }
	newKey := func(body string) (key made) {
		t.Helper()
		o.api(t, http.MethodPost, "/v1.0/accesskeys", adminKey, body, &key)
		return key
	}
	remove := func(path string) {
		t.Helper()
		o.api(t, http.MethodDelete, path, adminKey, "", &struct{}{})
	}
	good("the first key", adminKey)
	good("an admin's login", o.login(t, adminName, adminPassword))
	good("a customer-wide key", newKey(`{"name":"wide","detail":"a detail"}`).Token)
	o.spare = newKey(`{"name":"spare"}`).ID
	deleted := newKey(`{"name":"deleted"}`)
	remove("/v1.0/accesskeys/" + deleted.ID)
	bad("a deleted key", deleted.Token)
	bad("a key that nobody made", "vb_NobodyHasEverMadeThisKeyNobody00")

	var other, key, person made
	o.cli(t, "", &other, "customer", "create", "--name", "Other", "--detail", "of the command line")
	o.cli(t, "", &key, "accesskey", "create", "--customer", other.ID)
	good("another customer's key", key.Token)
	o.cli(t, "a-password\n", &person, "agent", "create", "--customer", other.ID, "--username", "o@e2e.example", "--permission", "agent")
	good("another customer's agent", o.login(t, "o@e2e.example", "a-password"))
	if o.schema < 2 {
		return
	}

	agent := func(username string) (a made) {
		t.Helper()
		o.api(t, http.MethodPost, "/v1.0/agents", adminKey, fmt.Sprintf(`{"username":%q,"password":"a-password","permission":16}`, username), &a)
		return a
	}
	ada, gone, forgetful := agent("ada@e2e.example"), agent("gone@e2e.example"), agent("forgetful@e2e.example")
	good("an agent's login", o.login(t, "ada@e2e.example", "a-password"))
	good("an agent's key", newKey(fmt.Sprintf(`{"name":"Ada's","agent_id":%q}`, ada.ID)).Token)
	bad("a deleted agent's key", newKey(fmt.Sprintf(`{"name":"gone","agent_id":%q}`, gone.ID)).Token)
	bad("a deleted agent's login", o.login(t, "gone@e2e.example", "a-password"))
	remove("/v1.0/agents/" + gone.ID)
	bad("a login from before another password", o.login(t, "forgetful@e2e.example", "a-password"))
	o.api(t, http.MethodPut, "/v1.0/agents/"+forgetful.ID+"/password", adminKey, `{"password":"another-password"}`, &struct{}{})
	good("a login with another password", o.login(t, "forgetful@e2e.example", "another-password"))

	account := func(role string) (a made) {
		t.Helper()
		o.api(t, http.MethodPost, "/v1.0/service_accounts", adminKey, fmt.Sprintf(`{"name":"a","detail":"b","roles":[%q]}`, role), &a)
		return a
	}
	viewer, manager, ended := account("accesskey_viewer"), account("customer_admin"), account("customer_admin")
	token, _ := o.signed(t, viewer.ID)
	good("a service account's token", token)
	token, _ = o.signed(t, manager.ID)
	good("a service account's token, an admin", token)
	o.api(t, http.MethodPost, "/v1.0/accesskeys", token, `{"name":"by an account"}`, &key)
	good("a key that a service account made", key.Token)
	token, keyID := o.signed(t, viewer.ID)
	remove("/v1.0/service_accounts/" + viewer.ID + "/keys/" + keyID)
	bad("a token by a deleted key pair", token)
	token, _ = o.signed(t, ended.ID)
	remove("/v1.0/service_accounts/" + ended.ID)
	bad("a deleted service account's token", token)

	o.cli(t, "a-password\n", &person, "agent", "create", "--customer", other.ID, "--username", "s@e2e.example", "--permission", "superadmin")
	super := o.login(t, "s@e2e.example", "a-password")
	good("a superadmin's login", super)
	var third, fourth made
	o.api(t, http.MethodPost, "/v1.0/customers", super, `{"name":"Third","detail":"of the API"}`, &third)
	o.api(t, http.MethodPost, "/v1.0/customers", super, `{"name":"Fourth"}`, &fourth)
	o.cli(t, "", &key, "accesskey", "create", "--customer", third.ID)
	good("a third customer's key", key.Token)
	o.cli(t, "", &key, "accesskey", "create", "--customer", fourth.ID)
	o.api(t, http.MethodDelete, "/v1.0/customers/"+fourth.ID, super, "", &struct{}{})
	bad("a deleted customer's key", key.Token)
}

// lists are the routes by which an admin sees all there is.
func (o *outdated) lists() []string {
	if o.schema < 2 {
		return []string{"/v1.0/accesskeys", "/v1.0/customers"}
	}
	return []string{"/v1.0/accesskeys", "/v1.0/customers", "/v1.0/agents", "/v1.0/service_accounts"}
}

// writes are requests that change something, with a status of 200 each.
func (o *outdated) writes() []struct{ method, path, body string } {
	type write = struct{ method, path, body string }
	all := []write{
		{http.MethodPost, "/v1.0/accesskeys", `{"name":"written"}`},
		{http.MethodPut, "/v1.0/accesskeys/" + o.spare, `{"name":"written"}`},
		{http.MethodPost, "/auth/login", fmt.Sprintf(`{"username":%q,"password":%q}`, adminName, adminPassword)},
	}
	if o.schema < 2 {
		return all
	}
	return append(all,
		write{http.MethodPost, "/v1.0/agents", `{"username":"USERNAME","password":"a-password","permission":16}`},
		write{http.MethodPost, "/v1.0/service_accounts", `{"name":"written","roles":[]}`})
}

// unique makes usernames that nobody has had.
var unique = struct {
	sync.Mutex
	count int
}{}

func fresh(body string) string {
	unique.Lock()
	defer unique.Unlock()
	unique.count++
	return strings.ReplaceAll(body, "USERNAME", fmt.Sprintf("u%d@e2e.example", unique.count))
}

// probe sends a request of each kind to a server, and returns the status of each.
func (o *outdated) probe(t testing.TB, at *server) map[string]int {
	t.Helper()
	statuses := map[string]int{}
	send := func(what, method, path, body, token string) {
		a := call(t.Context(), o.client, method, at.url(path), fresh(body), bearer(token)...)
		if a.err != nil {
			t.Fatalf("%s: %v", what, a.err)
		}
		statuses[what] = a.status
	}
	for _, c := range o.good {
		send("good: "+c.name, http.MethodGet, "/v1.0/me", "", c.token)
	}
	for _, c := range o.bad {
		send("bad: "+c.name, http.MethodGet, "/v1.0/me", "", c.token)
	}
	for _, path := range o.lists() {
		send("good: GET "+path, http.MethodGet, path, "", adminKey)
	}
	for _, w := range o.writes() {
		send("good: "+w.method+" "+w.path, w.method, w.path, w.body, adminKey)
	}
	return statuses
}

// serves fails the test unless a client with a good credential is served, and nobody else.
func serves(t testing.TB, when string, statuses map[string]int) {
	t.Helper()
	for what, status := range statuses {
		want := http.StatusOK
		if strings.HasPrefix(what, "bad: ") {
			want = http.StatusUnauthorized
		}
		if status != want {
			t.Errorf("%s, %s: %d, want %d", when, what, status, want)
		}
	}
}

// fenced reports whether nobody is told anything.
func fenced(statuses map[string]int) bool {
	for _, status := range statuses {
		if status != http.StatusServiceUnavailable {
			return false
		}
	}
	return true
}

// seen is what those with credentials see of themselves, and an admin of everything.
func (o *outdated) seen(t testing.TB, at *server) map[string]any {
	t.Helper()
	seen := map[string]any{}
	look := func(what, path, token string) {
		var body any
		call(t.Context(), o.client, http.MethodGet, at.url(path), "", bearer(token)...).into(t, &body)
		seen[what] = body
	}
	for _, c := range o.good {
		look("/v1.0/me of "+c.name, "/v1.0/me", c.token)
	}
	for _, path := range o.lists() {
		look(path, path+"?page_size=100", adminKey)
	}
	return seen
}

// holds fails the test where something of the old answer is not in the new one, or is otherwise there. New fields may come.
func holds(t testing.TB, where string, before, now any) {
	t.Helper()
	switch before := before.(type) {
	case map[string]any:
		fields, _ := now.(map[string]any)
		for name, value := range before {
			if name != "tm_last_used" {
				holds(t, where+"."+name, value, fields[name])
			}
		}
	case []any:
		elements, _ := now.([]any)
		if len(elements) != len(before) {
			t.Errorf("%s: %d elements, want %d", where, len(elements), len(before))
			return
		}
		for i := range before {
			holds(t, fmt.Sprintf("%s[%d]", where, i), before[i], elements[i])
		}
	default:
		if before != now {
			t.Errorf("%s is %v, and was %v", where, now, before)
		}
	}
}

// contents is all that is in the tables that a write of somebody's can reach.
func contents(t testing.TB, database string) (all string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, table := range []string{"customers", "agents", "accesskeys", "signups", "service_accounts", "service_account_keys"} {
		var rows string
		err := conn.QueryRow(t.Context(), `SELECT coalesce(string_agg(r::text, E'\n' ORDER BY r::text), '') FROM `+table+` r`).Scan(&rows)
		if err != nil {
			t.Fatal(err)
		}
		all += table + "\n" + rows + "\n"
	}
	return all
}

// stopBetweenTransactions stops the server while it is in no transaction, which the migration would wait for.
func (o *outdated) stopBetweenTransactions(t testing.TB) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), o.database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	servertest.Eventually(t, "the server is stopped outside of a transaction", func() bool {
		if err := o.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // what it has sent is done by then
		var inside bool
		err := conn.QueryRow(t.Context(), `
			SELECT EXISTS (SELECT FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle')`).Scan(&inside)
		if err != nil {
			t.Fatal(err)
		}
		if inside {
			_ = o.cmd.Process.Signal(syscall.SIGCONT)
		}
		return !inside
	})
}

// migrate brings the database to the newest schema, by the new server's program, and returns when that was done.
func (o *outdated) migrate(t testing.TB) time.Time {
	t.Helper()
	var version int
	runServer(t, binary, o.database, "", &version, "migrate", "up")
	if version < 4 {
		t.Fatalf("migrate up has led to version %d", version)
	}
	return time.Now()
}

// newer starts a server of now on the database.
func (o *outdated) newer(t testing.TB) *server { return newServer(t, o.database) }

// withoutFence gives the old versions back what migration 4 took from them.
const withoutFence = `DO $$
BEGIN
	ALTER TABLE accesskeys RENAME COLUMN token_sha256 TO token_hash;
	ALTER TABLE customers RENAME COLUMN description TO detail;
	ALTER TABLE agents RENAME COLUMN description TO detail;
	ALTER TABLE accesskeys RENAME COLUMN description TO detail;
	ALTER TABLE service_accounts RENAME COLUMN description TO detail;
	ALTER TABLE service_account_keys RENAME COLUMN spki TO public_key;
	CREATE TABLE replicas (id uuid PRIMARY KEY, seq bigint NOT NULL, lease_ms bigint NOT NULL, position bigint NOT NULL,
		tm_heartbeat timestamptz NOT NULL DEFAULT now());
	DROP TRIGGER changed ON accesskeys; -- which names the new columns
	DROP TRIGGER guarded ON change_head;
END
$$`

// An upgrade fences servers of older versions. From the migration on, within a lease, they answer nobody, and stay so; they don't start
// again; and the new server has all that they had. Without what fences them they would go on, in the end.
func TestOlderServersAreFencedByTheUpgrade(t *testing.T) {
	t.Parallel()
	for _, v := range []oldVersion{withAgents, withAccounts, withLease, withZeroLease} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			o := startOutdated(t, v)
			kinds := o.probe(t, o.server)
			serves(t, "before the migration", kinds)
			before := o.seen(t, o.server)

			migrated := o.migrate(t)
			newer := o.newer(t)
			var silent time.Duration
			servertest.Eventually(t, "the old server answers nobody", func() bool {
				sent := time.Since(migrated)
				statuses := o.probe(t, o.server)
				if sent > v.lease && !fenced(statuses) {
					t.Fatalf("%v after the migration the old server answers %v", sent, statuses)
				}
				for what, status := range statuses {
					if strings.HasPrefix(what, "good: ") && status == http.StatusUnauthorized {
						t.Fatalf("%v after the migration, %s: %d", sent, what, status)
					}
				}
				silent = sent
				return fenced(statuses)
			})
			probes := 0
			for began := time.Now(); time.Since(began) < 2*withLease.lease; probes++ {
				if statuses := o.probe(t, o.server); !fenced(statuses) {
					t.Fatalf("the old server answers again: %v", statuses)
				}
			}
			a := call(t.Context(), o.client, http.MethodGet, o.url("/readyz"), "")
			if a.status != http.StatusServiceUnavailable {
				t.Errorf("the old server's /readyz: %d %s", a.status, a.body)
			}

			// The old server's own writes are the only ones so far: what it made is there, and nothing else.
			now := o.seen(t, newer)
			for what := range before {
				holds(t, what, before[what], now[what])
			}
			serves(t, "at the new server", o.probe(t, newer))

			kept := contents(t, o.database)
			another := exec.Command(o.binary, "serve")
			another.Env = append(o.server.env, "LISTEN_ADDR="+freeAddr(t))
			p := start(t, "another server of "+v.commit, another)
			servertest.Eventually(t, "an old server that is started ends", func() bool { return !p.running() })
			if p.err == nil || !strings.Contains(p.tail(), "migrating the database, which is left as it was") {
				t.Errorf("an old server that is started ends with %v: %s", p.err, p.tail())
			}
			if contents(t, o.database) != kept {
				t.Error("an old server that was started has changed the database")
			}
			serves(t, "after an old server was started", o.probe(t, newer))

			if err := newer.stop(); err != nil {
				t.Fatal(err)
			}
			execute(t, o.database, withoutFence)
			servertest.Eventually(t, "the old server answers without the fence", func() bool {
				for what, status := range o.probe(t, o.server) {
					if strings.HasPrefix(what, "good: ") && status != http.StatusOK {
						return false
					}
				}
				return true
			})
			counted(t, "an older server beside the newest schema", v.String(),
				"%d requests of %d kinds: 503 from %v after the migration on; without the renames it goes on",
				probes*len(kinds), len(kinds), silent.Round(time.Millisecond))
		})
	}
}

// held is a request whose body the server waits for: it knows the caller already.
type held struct {
	what, body string
	conn       net.Conn
	in         *bufio.Reader
}

// hold sends the headers of a request, and returns once the server asks for the body.
func hold(t testing.TB, s *server, method, path, body, token string) *held {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	h := &held{what: method + " " + path, body: body, conn: conn, in: bufio.NewReader(conn)}
	_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		method, path, s.addr, token, len(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
		if line, err := h.in.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%s: the server says %q (%v) instead of asking for the body", h.what, line, err)
		}
	}
	return h
}

// finish sends the body, and returns the answer's status.
func (h *held) finish(t testing.TB) int {
	t.Helper()
	if _, err := io.WriteString(h.conn, h.body); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(h.in, nil)
	if err != nil {
		t.Fatalf("%s: %v", h.what, err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

// holdWrites holds a request of each kind that has a body.
func (o *outdated) holdWrites(t testing.TB) (all []*held) {
	t.Helper()
	for _, w := range o.writes() {
		all = append(all, hold(t, o.server, w.method, w.path, fresh(w.body), adminKey))
	}
	if o.schema < 2 {
		return all
	}
	var account, agent made
	o.api(t, http.MethodPost, "/v1.0/service_accounts", adminKey, `{"name":"held"}`, &account)
	o.api(t, http.MethodPost, "/v1.0/agents", adminKey, fresh(`{"username":"USERNAME","password":"a-password","permission":16}`), &agent)
	for _, w := range []struct{ method, path, body string }{
		{http.MethodPost, "/v1.0/accesskeys", fmt.Sprintf(`{"name":"held","agent_id":%q}`, agent.ID)},
		{http.MethodPut, "/v1.0/agents/" + agent.ID, `{"name":"held"}`},
		{http.MethodPut, "/v1.0/agents/" + agent.ID + "/permission", `{"permission":32}`},
		{http.MethodPut, "/v1.0/agents/" + agent.ID + "/password", `{"password":"held-password"}`},
		{http.MethodPut, "/v1.0/service_accounts/" + account.ID, `{"name":"held","roles":["customer_admin"]}`},
		{http.MethodPost, "/v1.0/service_accounts/" + account.ID + "/keys", `{"algorithm":"ES256"}`},
	} {
		all = append(all, hold(t, o.server, w.method, w.path, w.body, adminKey))
	}
	return all
}

// No write of a caller takes effect once that caller's revocation has been answered, however it is delayed. An older server knows no such
// rule; so what it was about to write when the database was migrated comes to nothing.
func TestHeldRequestOfAnOlderServerWritesNothing(t *testing.T) {
	t.Parallel()
	for _, v := range []oldVersion{withAgents, withAccounts, withLease, withZeroLease} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			o := startOutdated(t, v)
			for _, h := range o.holdWrites(t) {
				if status := h.finish(t); status != http.StatusOK {
					t.Errorf("without a migration, %s: %d", h.what, status)
				}
			}
			all := o.holdWrites(t)
			o.migrate(t)
			before := contents(t, o.database)
			for _, h := range all {
				if status := h.finish(t); status != http.StatusServiceUnavailable {
					t.Errorf("%s: %d", h.what, status)
				}
			}
			if after := contents(t, o.database); after != before {
				t.Errorf("the old server has written; the database was\n%s\nand is\n%s", before, after)
			}
			counted(t, "requests held across an upgrade", v.String(), "%d requests, 0 written", len(all))
		})
	}
}

// The same of what a server does between two statements: a new key pair takes long to be made.
func TestKeyPairOfAnOlderServerIsNotWrittenAfterTheUpgrade(t *testing.T) {
	t.Parallel()
	for _, v := range []oldVersion{withAccounts, withLease, withZeroLease} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			o := startOutdated(t, v)
			var accounts []made
			for range 8 {
				var account made
				o.api(t, http.MethodPost, "/v1.0/service_accounts", adminKey, `{"name":"slow"}`, &account)
				accounts = append(accounts, account)
			}
			// One pair is made at a time: while one is answered, another is being made.
			var stopping atomic.Bool
			var asking sync.WaitGroup
			first := make(chan struct{}, 1)
			for _, account := range accounts {
				asking.Go(func() {
					for !stopping.Load() {
						a := call(context.WithoutCancel(t.Context()), o.client, http.MethodPost,
							o.url("/v1.0/service_accounts/"+account.ID+"/keys"), "", bearer(adminKey)...)
						if a.status == http.StatusOK {
							select {
							case first <- struct{}{}:
							default:
							}
						}
					}
				})
			}
			defer asking.Wait()
			defer stopping.Store(true)
			select {
			case <-first:
			case <-time.After(patience):
				t.Fatal("no key pair could be made at all")
			}
			stopping.Store(true)
			o.stopBetweenTransactions(t)
			defer func() { _ = o.cmd.Process.Signal(syscall.SIGCONT) }()
			o.migrate(t)
			before := contents(t, o.database)
			if err := o.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			asking.Wait()
			if after := contents(t, o.database); after != before {
				t.Errorf("the old server has written a key pair; the database was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// Once a revocation has been answered, no server accepts the credential; an older one that has a lease from before the migration is waited
// for as any other.
func TestLeaseOfAnOlderServerIsWaitedFor(t *testing.T) {
	t.Parallel()
	o := startOutdated(t, withLongLease)
	var key made
	o.api(t, http.MethodPost, "/v1.0/accesskeys", adminKey, `{"name":"to be revoked"}`, &key)
	use := func() int {
		a := call(t.Context(), o.client, http.MethodGet, o.url("/v1.0/me"), "", bearer(key.Token)...)
		return a.status
	}
	if status := use(); status != http.StatusOK {
		t.Fatalf("the key is not accepted: %d", status)
	}
	migrated := o.migrate(t)
	newer := o.newer(t)
	if status := use(); status != http.StatusOK {
		t.Fatalf("the old server's lease has ended %v after the migration: %d", time.Since(migrated), status)
	}
	began := time.Now()
	deleted := make(chan answer, 1)
	go func() {
		deleted <- call(context.WithoutCancel(t.Context()), o.client, http.MethodDelete, newer.url("/v1.0/accesskeys/"+key.ID), "", bearer(adminKey)...)
	}()
	before := 0
	for {
		select {
		case a := <-deleted:
			if a.status != http.StatusOK {
				t.Fatalf("DELETE: %+v", a)
			}
			if status := use(); status != http.StatusServiceUnavailable {
				t.Errorf("the key's deletion was answered after %v, and the old server says %d to it", time.Since(began), status)
			}
			counted(t, "a lease of before an upgrade", o.String(), "the first DELETE is answered %v after the migration; the old server "+
				"accepted the key %d times before that, and not after", time.Since(migrated).Round(100*time.Millisecond), before)
			return
		case <-time.After(10 * time.Millisecond):
			if use() == http.StatusOK {
				before++
			}
		}
	}
}

// There is a way back. With every new server stopped, `migrate down` makes the database one for the old version again, with the data; only
// what the old version can't keep within its bounds is deleted: keys that service accounts made.
func TestWayBackFromTheUpgradeKeepsTheData(t *testing.T) {
	t.Parallel()
	for _, v := range []oldVersion{withLease, withZeroLease} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			o := startOutdated(t, v)
			o.migrate(t)
			newer := o.newer(t)
			serves(t, "at the new server", o.probe(t, newer))
			for _, c := range o.good {
				var key made
				a := call(t.Context(), o.client, http.MethodPost, newer.url("/v1.0/accesskeys"), `{"name":"of the new server"}`, bearer(c.token)...)
				if a.status != http.StatusOK {
					continue // who may not
				}
				a.into(t, &key)
				if list := &o.good; strings.HasPrefix(c.name, "a service account's") {
					list = &o.bad
					*list = append(*list, credential{"a key by " + c.name, key.Token})
				} else {
					*list = append(*list, credential{"a key by " + c.name, key.Token})
				}
			}
			id, token := newKey(t, o.client, newer.url(""))
			deleteKey(t, o.client, newer.url(""), id)
			o.bad = append(o.bad, credential{"a key that the new server deleted", token})
			before := o.seen(t, newer)
			if err := newer.stop(); err != nil {
				t.Fatal(err)
			}

			// Steps that lose nothing are taken back without a question. The first that does is refused.
			output, err := []byte(nil), error(nil)
			for range 10 {
				down := exec.CommandContext(t.Context(), binary, "migrate", "down")
				down.Env = append(os.Environ(), "DATABASE_URL="+o.database)
				if output, err = down.CombinedOutput(); err != nil {
					break
				}
			}
			if err == nil || !strings.Contains(string(output), "--yes") {
				t.Errorf("migrate down: %v, %s", err, output)
			}
			var version int
			runServer(t, binary, o.database, "", &version, "migrate", "down", "--yes")
			if version != v.schema {
				t.Fatalf("migrate down has led to version %d", version)
			}

			// The one that was there all the time goes on, another one starts.
			servertest.Eventually(t, "the old server answers again", func() bool {
				a := call(t.Context(), o.client, http.MethodGet, o.url("/readyz"), "")
				return a.status == http.StatusOK
			})
			for _, c := range o.good {
				servertest.Eventually(t, "the old server knows "+c.name, func() bool {
					a := call(t.Context(), o.client, http.MethodGet, o.url("/v1.0/me"), "", bearer(c.token)...)
					return a.status == http.StatusOK
				})
			}
			serves(t, "at the old server", o.probe(t, o.server))
			if err := o.stop(); err != nil {
				t.Fatal(err)
			}
			o.restart(t)
			now := o.seen(t, o.server)
			for what, is := range now {
				if strings.HasPrefix(what, "/v1.0/me of ") {
					holds(t, what, is, before[what])
				}
			}
			serves(t, "at the old server, started again", o.probe(t, o.server))
			counted(t, "the way back from the newest schema", v.String(), "%d credentials work as before, %d don't, as before", len(o.good), len(o.bad))
		})
	}
}
