//go:build e2e

package e2e

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/postgres"
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

// oldBinaries are functions that build the servers of old versions, each once.
var oldBinaries sync.Map

// build returns the path of the version's server.
func (v oldVersion) build(t testing.TB) string {
	t.Helper()
	once, _ := oldBinaries.LoadOrStore(v.commit, sync.OnceValues(func() (string, error) { return buildOld(v.commit) }))
	return servertest.Must(once.(func() (string, error))())(t)
}

func buildOld(commit string) (path string, err error) {
	dir := filepath.Join(filepath.Dir(binary), commit)
	archive := filepath.Join(dir, "source.tar")
	path = filepath.Join(dir, "old-server")
	git := []string{"git", "-c", "safe.directory=*", "-C", "../.."} // the checkout may belong to another account
	for _, command := range [][]string{
		slices.Concat(git, []string{"cat-file", "-e", commit + "^{commit}"}), // fails in a shallow clone: git fetch --unshallow
		{"mkdir", dir},
		slices.Concat(git, []string{"archive", "--output", archive, commit}),
		{"tar", "-xf", archive, "-C", dir},
		// With the flags of servertest.Build, so that packages which are the same are compiled once.
		{"env", "CGO_ENABLED=0", "go", "-C", dir, "build", "-buildvcs=false", "-trimpath", "-o", path, "./cmd/server"},
	} {
		if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("the server of commit %s, which has to be in the checkout's history: %q: %w\n%s", commit, command, err, output)
		}
	}
	return path, nil
}

// credential is one that somebody was given.
type credential struct{ name, token string }

// outdated is an old version at work on a database of its own, with data that was made through it.
type outdated struct {
	*server
	oldVersion
	database string
	good     []credential // accepted
	bad      []credential // not accepted any more
	spare    string       // the id of a key that nobody needs
}

func startOutdated(t testing.TB, v oldVersion) *outdated {
	t.Helper()
	cluster := newPostgres(t, "200")
	servertest.OK(t, postgres.CreateDatabase(t.Context(), secret.New(cluster.URL("postgres")), "accesskeys"))
	o := &outdated{oldVersion: v, database: cluster.URL("accesskeys")}
	o.server = prepared(t, v.build(t), o.database, v.env...)
	o.begin()
	o.makeData(t)
	return o
}

// eachOutdated runs a test with each of some old versions.
func eachOutdated(t *testing.T, versions []oldVersion, test func(*testing.T, *outdated)) {
	for _, v := range versions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			test(t, startOutdated(t, v))
		})
	}
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
	var said strings.Builder
	cmd.Stderr = &said
	output, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(output, into)
	}
	if err != nil {
		t.Fatalf("%s %q: %v: %s%s", filepath.Base(path), arguments, err, output, said.String())
	}
}

// makeData makes one of each kind of thing that the version knows, and of each a credential that works and one that doesn't any more.
func (o *outdated) makeData(t testing.TB) {
	t.Helper()
	good := func(name, token string) { o.good = append(o.good, credential{name, token}) }
	bad := func(name, token string) { o.bad = append(o.bad, credential{name, token}) }
	newKey := func(body string) made {
		t.Helper()
		return o.make(t, "/v1.0/accesskeys", body)
	}
	good("the first key", adminKey)
	good("an admin's login", o.login(t, adminName, adminPassword))
	good("a customer-wide key", newKey(`{"name":"wide","detail":"a detail"}`).Token)
	o.spare = newKey(`{"name":"spare"}`).ID
	id, token := o.newKey(t)
	o.deleteKey(t, id)
	bad("a deleted key", token)
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

	agent := func(name string) string {
		t.Helper()
		return o.make(t, "/v1.0/agents", fmt.Sprintf(`{"username":"%s@e2e.example","password":"a-password","permission":16}`, name)).ID
	}
	ada, gone, forgetful := agent("ada"), agent("gone"), agent("forgetful")
	good("an agent's login", o.login(t, "ada@e2e.example", "a-password"))
	good("an agent's key", newKey(fmt.Sprintf(`{"name":"Ada's","agent_id":%q}`, ada)).Token)
	bad("a deleted agent's key", newKey(fmt.Sprintf(`{"name":"gone","agent_id":%q}`, gone)).Token)
	bad("a deleted agent's login", o.login(t, "gone@e2e.example", "a-password"))
	o.delete(t, "/v1.0/agents/"+gone)
	bad("a login from before another password", o.login(t, "forgetful@e2e.example", "a-password"))
	o.api(t, http.MethodPut, "/v1.0/agents/"+forgetful+"/password", adminKey, `{"password":"another-password"}`, &struct{}{})
	good("a login with another password", o.login(t, "forgetful@e2e.example", "another-password"))

	account := func(role string) (id, token, keyID string) {
		t.Helper()
		id = o.make(t, "/v1.0/service_accounts", fmt.Sprintf(`{"name":"a","detail":"b","roles":[%q]}`, role)).ID
		token, keyID = o.signed(t, id)
		return id, token, keyID
	}
	viewer, token, _ := account("accesskey_viewer")
	good("a service account's token", token)
	_, token, _ = account("customer_admin")
	good("a service account's token, an admin", token)
	o.api(t, http.MethodPost, "/v1.0/accesskeys", token, `{"name":"by an account"}`, &key)
	good("a key that a service account made", key.Token)
	token, keyID := o.signed(t, viewer)
	o.delete(t, "/v1.0/service_accounts/"+viewer+"/keys/"+keyID)
	bad("a token by a deleted key pair", token)
	ended, token, _ := account("customer_admin")
	o.delete(t, "/v1.0/service_accounts/"+ended)
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
	all := []string{"/v1.0/accesskeys", "/v1.0/customers", "/v1.0/agents", "/v1.0/service_accounts"}
	if o.schema < 2 {
		return all[:2]
	}
	return all
}

type writing struct{ method, path, body string }

// writes are requests that change something, with a status of 200 each.
func (o *outdated) writes() []writing {
	all := []writing{
		{http.MethodPost, "/v1.0/accesskeys", `{"name":"written"}`},
		{http.MethodPut, "/v1.0/accesskeys/" + o.spare, `{"name":"written"}`},
		{http.MethodPost, "/auth/login", fmt.Sprintf(`{"username":%q,"password":%q}`, adminName, adminPassword)},
		{http.MethodPost, "/v1.0/agents", newAgent()},
		{http.MethodPost, "/v1.0/service_accounts", `{"name":"written","roles":[]}`},
	}
	if o.schema < 2 {
		return all[:3]
	}
	return all
}

// newAgent is a body with a username that nobody has had.
func newAgent() string {
	return fmt.Sprintf(`{"username":"%s@e2e.example","password":"a-password","permission":16}`, rand.Text())
}

// probe sends a request of each kind to a server, and returns the status of each.
func (o *outdated) probe(t testing.TB, at *server) map[string]int {
	t.Helper()
	statuses := map[string]int{}
	send := func(what, method, path, body, token string) {
		a := at.call(method, path, token, body)
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
	return allAre(slices.Collect(maps.Values(statuses)), http.StatusServiceUnavailable)
}

// seen is what those with credentials see of themselves, and an admin of everything.
func (o *outdated) seen(t testing.TB, at *server) map[string]any {
	t.Helper()
	seen := map[string]any{}
	look := func(what, path, token string) {
		var body any
		at.api(t, http.MethodGet, path, token, "", &body)
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
	for _, table := range []string{"customers", "agents", "accesskeys", "signups", "service_accounts", "service_account_keys"} {
		all += table + "\n" + value(t, database, `SELECT coalesce(string_agg(r::text, E'\n' ORDER BY r::text), '') FROM `+table+` r`) + "\n"
	}
	return all
}

// stopBetweenTransactions stops the server while it is in no transaction, which the migration would wait for.
func (o *outdated) stopBetweenTransactions(t testing.TB) {
	t.Helper()
	servertest.Eventually(t, "the server is stopped outside of a transaction", func() bool {
		servertest.OK(t, o.Cmd.Process.Signal(syscall.SIGSTOP))
		time.Sleep(50 * time.Millisecond) // what it has sent is done by then
		inside := value(t, o.database, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'`) != "0"
		if inside {
			_ = o.Cmd.Process.Signal(syscall.SIGCONT)
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
	eachOutdated(t, []oldVersion{withAgents, withAccounts, withLease, withZeroLease}, func(t *testing.T, o *outdated) {
		kinds := o.probe(t, o.server)
		serves(t, "before the migration", kinds)
		before := o.seen(t, o.server)

		migrated := o.migrate(t)
		newer := newServer(t, o.database)
		var silent time.Duration
		servertest.Eventually(t, "the old server answers nobody", func() bool {
			sent := time.Since(migrated)
			statuses := o.probe(t, o.server)
			if sent > o.lease && !fenced(statuses) {
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
		if a := o.call(http.MethodGet, "/readyz", "", ""); a.status != http.StatusServiceUnavailable {
			t.Errorf("the old server's /readyz: %d %s", a.status, a.body)
		}

		// The old server's own writes are the only ones so far: what it made is there, and nothing else.
		now := o.seen(t, newer)
		for what := range before {
			holds(t, what, before[what], now[what])
		}
		serves(t, "at the new server", o.probe(t, newer))

		kept := contents(t, o.database)
		another := prepared(t, o.binary, o.database, o.oldVersion.env...)
		another.start()
		servertest.Eventually(t, "an old server that is started ends", func() bool { return !another.Running() })
		if another.Err == nil || !strings.Contains(another.Tail(), "migrating the database, which is left as it was") {
			t.Errorf("an old server that is started ends with %v: %s", another.Err, another.Tail())
		}
		if contents(t, o.database) != kept {
			t.Error("an old server that was started has changed the database")
		}
		serves(t, "after an old server was started", o.probe(t, newer))

		servertest.OK(t, newer.Stop())
		value(t, o.database, withoutFence)
		servertest.Eventually(t, "the old server answers without the fence", func() bool {
			for what, status := range o.probe(t, o.server) {
				if strings.HasPrefix(what, "good: ") && status != http.StatusOK {
					return false
				}
			}
			return true
		})
		counted(t, "an older server beside the newest schema", o.String(),
			"%d requests of %d kinds: 503 from %v after the migration on; without the renames it goes on",
			probes*len(kinds), len(kinds), silent.Round(time.Millisecond))
	})
}

// held is a request whose body the server waits for: it knows the caller already.
type held struct {
	writing
	conn net.Conn
	in   *bufio.Reader
}

// hold sends the headers of a request, and returns once the server asks for the body.
func hold(t testing.TB, s *server, w writing) *held {
	t.Helper()
	conn := servertest.Must(net.Dial("tcp", s.addr))(t)
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	h := &held{w, conn, bufio.NewReader(conn)}
	servertest.Must(fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		w.method, w.path, s.addr, adminKey, len(w.body)))(t)
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
		if line, err := h.in.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%s %s: the server says %q (%v) instead of asking for the body", w.method, w.path, line, err)
		}
	}
	return h
}

// finish sends the body, and returns the answer's status.
func (h *held) finish(t testing.TB) int {
	t.Helper()
	a, _ := exchange(h.conn, h.in, h.body)
	servertest.OK(t, a.err)
	return a.status
}

// holdWrites holds a request of each kind that has a body.
func (o *outdated) holdWrites(t testing.TB) (all []*held) {
	t.Helper()
	writes := o.writes()
	if o.schema >= 2 {
		agentID := o.make(t, "/v1.0/agents", newAgent()).ID
		agent, account := "/v1.0/agents/"+agentID, "/v1.0/service_accounts/"+o.make(t, "/v1.0/service_accounts", `{"name":"held"}`).ID
		writes = append(writes,
			writing{http.MethodPost, "/v1.0/accesskeys", fmt.Sprintf(`{"name":"held","agent_id":%q}`, agentID)},
			writing{http.MethodPut, agent, `{"name":"held"}`},
			writing{http.MethodPut, agent + "/permission", `{"permission":32}`},
			writing{http.MethodPut, agent + "/password", `{"password":"held-password"}`},
			writing{http.MethodPut, account, `{"name":"held","roles":["customer_admin"]}`},
			writing{http.MethodPost, account + "/keys", `{"algorithm":"ES256"}`})
	}
	for _, w := range writes {
		all = append(all, hold(t, o.server, w))
	}
	return all
}

// No write of a caller takes effect once that caller's revocation has been answered, however it is delayed. An older server knows no such
// rule; so what it was about to write when the database was migrated comes to nothing.
func TestHeldRequestOfAnOlderServerWritesNothing(t *testing.T) {
	t.Parallel()
	eachOutdated(t, []oldVersion{withAgents, withAccounts, withLease, withZeroLease}, func(t *testing.T, o *outdated) {
		for _, h := range o.holdWrites(t) {
			if status := h.finish(t); status != http.StatusOK {
				t.Errorf("without a migration, %s %s: %d", h.method, h.path, status)
			}
		}
		all := o.holdWrites(t)
		o.migrate(t)
		before := contents(t, o.database)
		for _, h := range all {
			if status := h.finish(t); status != http.StatusServiceUnavailable {
				t.Errorf("%s %s: %d", h.method, h.path, status)
			}
		}
		if after := contents(t, o.database); after != before {
			t.Errorf("the old server has written; the database was\n%s\nand is\n%s", before, after)
		}
		counted(t, "requests held across an upgrade", o.String(), "%d requests, 0 written", len(all))
	})
}

// The same of what a server does between two statements: a new key pair takes long to be made.
func TestKeyPairOfAnOlderServerIsNotWrittenAfterTheUpgrade(t *testing.T) {
	t.Parallel()
	eachOutdated(t, []oldVersion{withAccounts, withLease, withZeroLease}, func(t *testing.T, o *outdated) {
		// One pair is made at a time: while one is answered, another is being made.
		var stopping atomic.Bool
		var answered atomic.Int64
		var asking sync.WaitGroup
		for range 8 {
			account := o.make(t, "/v1.0/service_accounts", `{"name":"slow"}`).ID
			asking.Go(func() {
				for !stopping.Load() {
					if o.call(http.MethodPost, "/v1.0/service_accounts/"+account+"/keys", adminKey, "").status == http.StatusOK {
						answered.Add(1)
					}
				}
			})
		}
		defer asking.Wait()
		defer stopping.Store(true)
		servertest.Eventually(t, "a key pair is made", func() bool { return answered.Load() > 0 })
		stopping.Store(true)
		o.stopBetweenTransactions(t)
		defer func() { _ = o.Cmd.Process.Signal(syscall.SIGCONT) }()
		o.migrate(t)
		before := contents(t, o.database)
		servertest.OK(t, o.Cmd.Process.Signal(syscall.SIGCONT))
		asking.Wait()
		if after := contents(t, o.database); after != before {
			t.Errorf("the old server has written a key pair; the database was\n%s\nand is\n%s", before, after)
		}
	})
}

// Once a revocation has been answered, no server accepts the credential; an older one that has a lease from before the migration is waited
// for as any other.
func TestLeaseOfAnOlderServerIsWaitedFor(t *testing.T) {
	t.Parallel()
	o := startOutdated(t, withLongLease)
	id, token := o.newKey(t)
	if status := o.me(token); status != http.StatusOK {
		t.Fatalf("the key is not accepted: %d", status)
	}
	migrated := o.migrate(t)
	newer := newServer(t, o.database)
	if status := o.me(token); status != http.StatusOK {
		t.Fatalf("the old server's lease has ended %v after the migration: %d", time.Since(migrated), status)
	}
	began := time.Now()
	deleted := make(chan answer, 1)
	go func() { deleted <- newer.call(http.MethodDelete, "/v1.0/accesskeys/"+id, adminKey, "") }()
	for before := 0; ; {
		select {
		case a := <-deleted:
			if a.status != http.StatusOK {
				t.Fatalf("DELETE: %+v", a)
			}
			if status := o.me(token); status != http.StatusServiceUnavailable {
				t.Errorf("the key's deletion was answered after %v, and the old server says %d to it", time.Since(began), status)
			}
			counted(t, "a lease of before an upgrade", o.String(), "the first DELETE is answered %v after the migration; the old server "+
				"accepted the key %d times before that, and not after", time.Since(migrated).Round(100*time.Millisecond), before)
			return
		case <-time.After(10 * time.Millisecond):
			if o.me(token) == http.StatusOK {
				before++
			}
		}
	}
}

// There is a way back. With every new server stopped, `migrate down` makes the database one for the old version again, with the data; only
// what the old version can't keep within its bounds is deleted: keys that service accounts made.
func TestWayBackFromTheUpgradeKeepsTheData(t *testing.T) {
	t.Parallel()
	eachOutdated(t, []oldVersion{withLease, withZeroLease}, func(t *testing.T, o *outdated) {
		o.migrate(t)
		newer := newServer(t, o.database)
		serves(t, "at the new server", o.probe(t, newer))
		for _, c := range o.good {
			a := newer.call(http.MethodPost, "/v1.0/accesskeys", c.token, `{"name":"of the new server"}`)
			if a.status != http.StatusOK {
				continue // who may not
			}
			var key made
			a.into(t, &key)
			list := &o.good
			if strings.HasPrefix(c.name, "a service account's") {
				list = &o.bad
			}
			*list = append(*list, credential{"a key by " + c.name, key.Token})
		}
		id, token := newer.newKey(t)
		newer.deleteKey(t, id)
		o.bad = append(o.bad, credential{"a key that the new server deleted", token})
		before := o.seen(t, newer)
		servertest.OK(t, newer.Stop())

		// Steps that lose nothing are taken back without a question. The first that does is refused.
		var output []byte
		var err error
		for i := 0; i < 10 && err == nil; i++ {
			down := exec.CommandContext(t.Context(), binary, "migrate", "down")
			down.Env = append(os.Environ(), "DATABASE_URL="+o.database)
			output, err = down.CombinedOutput()
		}
		if err == nil || !strings.Contains(string(output), "--yes") {
			t.Errorf("migrate down: %v, %s", err, output)
		}
		var version int
		runServer(t, binary, o.database, "", &version, "migrate", "down", "--yes")
		if version != o.schema {
			t.Fatalf("migrate down has led to version %d", version)
		}

		// The one that was there all the time goes on, another one starts.
		o.awaitReady()
		for _, c := range o.good {
			servertest.Eventually(t, "the old server knows "+c.name, func() bool { return o.me(c.token) == http.StatusOK })
		}
		serves(t, "at the old server", o.probe(t, o.server))
		servertest.OK(t, o.Stop())
		o.begin()
		now := o.seen(t, o.server)
		for what, is := range now {
			if strings.HasPrefix(what, "/v1.0/me of ") {
				holds(t, what, is, before[what])
			}
		}
		serves(t, "at the old server, started again", o.probe(t, o.server))
		counted(t, "the way back from the newest schema", o.String(), "%d credentials work as before, %d don't, as before",
			len(o.good), len(o.bad))
	})
}
