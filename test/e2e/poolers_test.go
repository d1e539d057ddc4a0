//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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
	address := servertest.Must(pgx.ParseConfig(database))(t)
	p := &pooler{t: t, addr: freeAddr(t), dir: folder(t)}
	host, port, _ := net.SplitHostPort(p.addr)
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
	p.program = servertest.Start(p.t, "pgbouncer", unprivileged(p.t, cmd, p.dir))
	awaitListening(p.t, p.program, p.addr)
}

// url is the address of the database behind the pooler.
func (p *pooler) url(parameters string) string {
	user := url.UserPassword("postgres", poolerPassword)
	return (&url.URL{Scheme: "postgres", User: user, Host: p.addr, Path: "accesskeys", RawQuery: parameters}).String()
}

// shares reports whether clients that stay connected get one connection of Postgres in turns, which no session mode does.
func (p *pooler) shares() bool {
	p.t.Helper()
	seen := map[int]bool{}
	for range 10 {
		conn := servertest.Must(pgx.Connect(p.t.Context(), p.url("default_query_exec_mode=exec")))(p.t)
		defer conn.Close(p.t.Context())
		var pid int
		servertest.OK(p.t, conn.QueryRow(p.t.Context(), "SELECT pg_backend_pid()").Scan(&pid))
		seen[pid] = true
	}
	return len(seen) < 10
}

// onAll sends a request with a key to every server at the same time, and returns the answers' statuses.
func onAll(servers []*server, token string) []int {
	statuses := make([]int, len(servers))
	var asking sync.WaitGroup
	for i, s := range servers {
		asking.Go(func() { statuses[i] = s.me(token) })
	}
	asking.Wait()
	return statuses
}

// everywhere fails the test unless each server answers a request with the key with this status.
func everywhere(t testing.TB, what string, servers []*server, token string, status int) {
	t.Helper()
	if got := onAll(servers, token); !allAre(got, status) {
		t.Fatalf("%s: %v", what, got)
	}
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
			postgres := newPostgres(t, "100")
			p := newPooler(t, postgres.URL("postgres"), mode)
			if got := p.shares(); got != (mode == "transaction") {
				t.Fatalf("clients share a connection: %t", got)
			}
			servers := newServers(t, p.url(parameters))
			var took []time.Duration
			var afterPooler, afterPostgres time.Duration
			for i := range keys {
				switch i {
				case keys / 3:
					// Its exit code after a SIGTERM is 1.
					afterPooler = databaseOutage(t, servers, func() { _ = p.Stop() }, p.begin)
				case 2 * keys / 3:
					afterPostgres = databaseOutage(t, servers, func() { servertest.OK(t, postgres.Stop(t.Context())) },
						func() { servertest.OK(t, postgres.Start(t.Context())) })
				}
				id, token := servers[i%3].newKey(t)
				everywhere(t, "a new key", servers, token, http.StatusOK)
				began := time.Now()
				servers[(i+1)%3].deleteKey(t, id)
				took = append(took, time.Since(began))
				everywhere(t, "a deleted key", servers, token, http.StatusUnauthorized)
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
func databaseOutage(t testing.TB, servers []*server, stop, begin func()) time.Duration {
	t.Helper()
	id, token := servers[0].newKey(t)
	everywhere(t, "before the outage", servers, token, http.StatusOK)
	stop()
	for _, s := range servers {
		for method, path := range map[string]string{http.MethodPost: "", http.MethodDelete: "/" + id} {
			began := time.Now()
			a := s.call(method, "/v1.0/accesskeys"+path, adminKey, "{}")
			took := time.Since(began)
			if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || took > 5*time.Second {
				t.Errorf("%s without the database, after %v: %+v", method, took, a)
			}
		}
	}
	only := func(status int) func() bool {
		return func() bool {
			got := onAll(servers, token)
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
	servers[0].deleteKey(t, id)
	everywhere(t, "a key that was deleted after the outage", servers, token, http.StatusUnauthorized)
	return took
}
