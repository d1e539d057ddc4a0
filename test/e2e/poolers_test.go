//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/servertest"
)

// pooler is a pgbouncer that can be started again at its address.
type pooler struct {
	*program
	t    testing.TB
	addr string
	dir  string
}

// newPooler starts examples/instances/pgbouncer.ini in front of a Postgres.
func newPooler(t testing.TB, database, mode string) *pooler {
	t.Helper()
	address, err := pgx.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	p := &pooler{t: t, addr: freeAddr(t), dir: folder(t)}
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.dir, "userlist.txt"), fmt.Sprintf("%q %q\n", address.User, poolerPassword))
	write(t, filepath.Join(p.dir, "pgbouncer.ini"), example(t, "instances/pgbouncer.ini",
		"host=/var/run/postgresql dbname=accesskeys",
		fmt.Sprintf("host=%s port=%d dbname=%s", address.Host, address.Port, address.Database),
		"listen_addr = 127.0.0.1", "listen_addr = "+host, "listen_port = 6432", "listen_port = "+port,
		"/etc/pgbouncer/userlist.txt", filepath.Join(p.dir, "userlist.txt"), "pool_mode = transaction", "pool_mode = "+mode))
	p.begin()
	return p
}

const poolerPassword = "pooled"

func (p *pooler) begin() {
	p.t.Helper()
	cmd := exec.Command("pgbouncer", filepath.Join(p.dir, "pgbouncer.ini"))
	p.program = start(p.t, "pgbouncer", unprivileged(p.t, cmd, p.dir))
	p.awaitListening(p.t, p.addr)
}

// url is the address of the database behind the pooler.
func (p *pooler) url(parameters string) string {
	user := url.UserPassword("postgres", poolerPassword)
	return (&url.URL{Scheme: "postgres", User: user, Host: p.addr, Path: "accesskeys", RawQuery: parameters}).String()
}

// shares reports whether clients that stay connected get one connection of Postgres in turns, which no session mode does.
func (p *pooler) shares() bool {
	p.t.Helper()
	backend := func(conn *pgx.Conn) (pid int) {
		p.t.Helper()
		if err := conn.QueryRow(p.t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			p.t.Fatal(err)
		}
		return pid
	}
	seen := map[int]bool{}
	for range 10 {
		conn, err := pgx.Connect(p.t.Context(), p.url("default_query_exec_mode=exec"))
		if err != nil {
			p.t.Fatal(err)
		}
		defer conn.Close(p.t.Context())
		seen[backend(conn)] = true
	}
	return len(seen) < 10
}

// onAll sends a request with a key to every server at the same time, and returns the answers' statuses.
func onAll(t testing.TB, c *http.Client, servers []*server, token string) []int {
	statuses := make([]int, len(servers))
	var asking sync.WaitGroup
	for i, s := range servers {
		asking.Go(func() {
			statuses[i] = call(t.Context(), c, http.MethodGet, s.url("/v1.0/me"), "", "Authorization", "Bearer "+token).status
		})
	}
	asking.Wait()
	return statuses
}

func allAre(statuses []int, status int) bool {
	return !slices.ContainsFunc(statuses, func(s int) bool { return s != status })
}

// Behind pgbouncer, in session and in transaction mode, a new key works everywhere at once, and one that was deleted nowhere; while the
// pooler or the Postgres behind it is unavailable the answer is a 503, and afterwards the servers go on by themselves.
func TestKeysBehindPgbouncer(t *testing.T) {
	t.Parallel()
	for mode, parameters := range map[string]string{"session": "", "transaction": "default_query_exec_mode=exec"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const keys = 100
			postgres, err := privatepg.Start(t.Context(), privatepg.Config{Getenv: os.Getenv})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = postgres.Close() })
			p := newPooler(t, postgres.URL("postgres"), mode)
			if got := p.shares(); got != (mode == "transaction") {
				t.Fatalf("clients share a connection: %t", got)
			}
			var servers []*server
			for range 3 { // the first migrates
				servers = append(servers, newServer(t, p.url(parameters)))
			}
			c := client(t)
			var took []time.Duration
			var afterPooler, afterPostgres time.Duration
			for i := range keys {
				switch i {
				case keys / 3:
					afterPooler = databaseOutage(t, c, servers, func() error {
						_ = p.stop() // its exit code after a SIGTERM is 1
						return nil
					}, p.begin)
				case 2 * keys / 3:
					afterPostgres = databaseOutage(t, c, servers, func() error { return postgres.Stop(t.Context()) }, func() {
						if err := postgres.Start(t.Context()); err != nil {
							t.Fatal(err)
						}
					})
				}
				id, token := newKey(t, c, servers[i%3].url(""))
				if got := onAll(t, c, servers, token); !allAre(got, http.StatusOK) {
					t.Fatalf("a new key: %v", got)
				}
				began := time.Now()
				deleteKey(t, c, servers[(i+1)%3].url(""), id)
				took = append(took, time.Since(began))
				if got := onAll(t, c, servers, token); !allAre(got, http.StatusUnauthorized) {
					t.Fatalf("a deleted key: %v", got)
				}
			}
			slices.Sort(took)
			if afterPooler > 5*time.Second || afterPostgres > 5*time.Second { // server_login_retry
				t.Errorf("all went on %v after the pooler and %v after Postgres", afterPooler, afterPostgres)
			}
			counted(t, "keys made, used and deleted on three instances over a pooler, which is restarted, and its Postgres too",
				version(t, "pgbouncer", "--version")+", "+mode+" mode",
				"%d keys, each accepted 3 times, then refused 3 times; DELETE took %v in the median, %v at most; "+
					"all went on %v after the pooler, %v after Postgres", keys, took[keys/2].Round(time.Millisecond),
				took[keys-1].Round(time.Millisecond), afterPooler.Round(time.Millisecond), afterPostgres.Round(time.Millisecond))
		})
	}
}

// databaseOutage takes the database away until every server has said that it can't go on without, gives it back, and returns after
// which time all did.
func databaseOutage(t testing.TB, c *http.Client, servers []*server, stop func() error, begin func()) time.Duration {
	t.Helper()
	id, token := newKey(t, c, servers[0].url(""))
	if got := onAll(t, c, servers, token); !allAre(got, http.StatusOK) {
		t.Fatalf("before the outage: %v", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		for method, path := range map[string]string{http.MethodPost: "", http.MethodDelete: "/" + id} {
			began := time.Now()
			a := call(t.Context(), c, method, s.url("/v1.0/accesskeys"+path), "{}", "Authorization", "Bearer "+adminKey)
			took := time.Since(began)
			if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || took > 5*time.Second {
				t.Errorf("%s without the database, after %v: %+v", method, took, a)
			}
		}
	}
	only := func(status int) func() bool {
		return func() bool {
			got := onAll(t, c, servers, token)
			for _, s := range got {
				if s != http.StatusOK && s != http.StatusServiceUnavailable {
					t.Fatalf("around the outage, a good key: %v", got)
				}
			}
			return allAre(got, status)
		}
	}
	servertest.Eventually(t, "no server checks credentials without the database", only(http.StatusServiceUnavailable))
	begin()
	began := time.Now()
	servertest.Eventually(t, "every server checks credentials again", only(http.StatusOK))
	took := time.Since(began)
	for _, s := range servers {
		s.awaitReady()
	}
	deleteKey(t, c, servers[0].url(""), id)
	if got := onAll(t, c, servers, token); !allAre(got, http.StatusUnauthorized) {
		t.Fatalf("a key that was deleted after the outage: %v", got)
	}
	return took
}
