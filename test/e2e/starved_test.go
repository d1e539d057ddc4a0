//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/servertest"
)

const (
	floodClients = 48 // for each server: more than a pool that has room would have connections
	goodCallers  = 40 // of each kind
	recoverySoon = 5 * time.Second
	// recoverySlack is for a machine that does other things, too.
	recoverySlack = 25 * time.Second
)

// scarce is a Postgres with few connections, as a role that has no reserved ones reaches it, and a connection of a superuser's. That
// one is there from the beginning: later there may be none for it.
func scarce(t testing.TB, connections string) (service string, admin *pgx.Conn) {
	t.Helper()
	postgres := newPostgres(t, connections)
	admin = servertest.Must(pgx.Connect(t.Context(), postgres.URL("postgres")))(t)
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	for _, statement := range []string{`CREATE ROLE service LOGIN`, `CREATE DATABASE accesskeys OWNER service`} {
		servertest.Must(admin.Exec(t.Context(), statement))(t)
	}
	return strings.Replace(postgres.URL("accesskeys"), "user=postgres", "user=service", 1), admin
}

// from is a client at another loopback address, with connections of its own.
func from(t testing.TB, address string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: floodClients}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// crowd is clients of each of some servers that send one request after the other.
type crowd struct {
	end         context.CancelFunc
	clients     sync.WaitGroup
	well, other atomic.Int64 // answers with the status that is wanted, and others
}

func startCrowd(t testing.TB, servers []*server, status int, send func(context.Context, *server) answer) *crowd {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	f := &crowd{end: end}
	t.Cleanup(f.stop)
	for _, s := range servers {
		for range floodClients {
			f.clients.Go(func() {
				for ctx.Err() == nil {
					if send(ctx, s).status == status {
						f.well.Add(1)
					} else {
						f.other.Add(1)
					}
				}
			})
		}
	}
	return f
}

func (f *crowd) stop() {
	f.end()
	f.clients.Wait()
}

func (f *crowd) answered() int64 { return f.well.Load() + f.other.Load() }

// feeds are the backends that the servers read the log of changes by. Nothing else reads it in that way.
func feeds(t testing.TB, admin *pgx.Conn, wanted int) (pids []int32) {
	t.Helper()
	seen := map[int32]bool{}
	servertest.Eventually(t, "every server reads the log", func() bool {
		rows, err := admin.Query(t.Context(), `
			SELECT pid FROM pg_stat_activity WHERE application_name = 'accesskeys' AND query LIKE '%LEFT JOIN changes k ON%'`)
		servertest.OK(t, err)
		found := servertest.Must(pgx.CollectRows(rows, pgx.RowTo[int32]))(t)
		for _, pid := range found {
			if !seen[pid] {
				seen[pid], pids = true, append(pids, pid)
			}
		}
		return len(pids) >= wanted
	})
	if len(pids) != wanted {
		t.Fatalf("%d backends read the log, of %d servers", len(pids), wanted)
	}
	return pids
}

// served are answers to good callers.
type served struct {
	good, bad int
	slowest   time.Duration
	wrong     []int
}

func (s served) String() string {
	return fmt.Sprintf("%d of %d (slowest %v)", s.good, s.good+s.bad, s.slowest.Round(time.Millisecond))
}

// ask presents keys to servers in turn, each once.
func ask(t testing.TB, c *http.Client, servers []*server, keys []string) (s served) {
	t.Helper()
	for i, key := range keys {
		began := time.Now()
		a := call(t.Context(), c, http.MethodGet, servers[i%len(servers)].url("/v1.0/me"), "", bearer(key)...)
		s.slowest = max(s.slowest, time.Since(began))
		if a.status == http.StatusOK {
			s.good++
		} else {
			s.bad++
			s.wrong = append(s.wrong, a.status)
		}
	}
	return s
}

// Strangers who present unknown keys take neither the connections that servers live by, nor the look-ups of good callers. Two servers with
// the usual settings share few connections; under a flood good callers are served, with keys that are remembered and with others; servers
// whose feeds are ended are back, at the latest 5 s after the flood; and one more server starts meanwhile.
func TestFloodOfUnknownKeysStarvesNobody(t *testing.T) {
	service, admin := scarce(t, "20")
	servers := []*server{newServer(t, service), newServer(t, service)}
	c := from(t, "127.0.1.1")
	remembered, cold := make([]string, goodCallers), make([]string, 3*goodCallers)
	for _, keys := range [][]string{remembered, cold} {
		for i := range keys {
			_, keys[i] = servers[i%len(servers)].newKey(t)
		}
	}
	if s := ask(t, c, servers, remembered); s.bad > 0 {
		t.Fatalf("without a flood: %v %v", s, s.wrong)
	}
	pids := feeds(t, admin, len(servers))

	stranger := from(t, "127.0.0.66")
	f := startCrowd(t, servers, http.StatusUnauthorized, func(ctx context.Context, s *server) answer {
		return call(ctx, stranger, http.MethodGet, s.url("/v1.0/me"), "", bearer("vb_"+rand.Text()[:26]+"floods")...)
	})
	servertest.Eventually(t, "the flood is answered", func() bool { return f.answered() > 2_000 })
	warm, first := ask(t, c, servers, remembered), ask(t, c, servers, cold[:goodCallers])

	w := endFeeds(t, admin, pids, c, servers, remembered[0])

	began := time.Now()
	third := prepared(t, binary, service)
	third.start()
	ready := false
	for !ready && third.Running() && time.Since(began) < patience {
		ready = call(t.Context(), c, http.MethodGet, third.url("/readyz"), "").status == http.StatusOK
		time.Sleep(20 * time.Millisecond)
	}
	startup := time.Since(began).Round(10 * time.Millisecond)
	if !ready {
		t.Errorf("another server is not ready after %v: %s", startup, third.Tail())
	}
	w.settles(20 * time.Second)
	second := ask(t, c, servers, cold[goodCallers:2*goodCallers])
	f.stop()
	w.loadEnded()
	after := ask(t, c, servers, cold[2*goodCallers:])

	t.Logf("the flood: %d refused, %d others; keys that were remembered before the feeds were ended: %v; cold ones after the flood: %v",
		f.well.Load(), f.other.Load(), warm, after)
	for what, s := range map[string]served{"remembered keys": warm, "cold keys": first, "cold keys, feeds anew": second, "cold keys, after the flood": after} {
		if s.bad > goodCallers/10 { // one that a busy machine takes too long for is a 503
			t.Errorf("%s: %v: %v", what, s, s.wrong)
		}
	}
	counted(t, "a flood of unknown keys, max_connections=20", version(t, "postgres", "--version"),
		"cold keys served: %v, then %v; feeds ended: %v; another server ready after %v", first, second, w, startup)
}

// recovery watches servers whose feeds were ended.
type recovery struct {
	t       testing.TB
	ended   time.Time      // the feeds
	load    time.Duration  // how long the load lasted after that
	back    []atomic.Int64 // since when each has served, and gone on to; 0 for not
	watched sync.WaitGroup
	stop    context.CancelFunc
}

// endFeeds ends the connections by which servers read the log, and watches each with a key. What counts is a server that serves and
// goes on to do so: from memory it may for as long as a lease.
func endFeeds(t testing.TB, admin *pgx.Conn, pids []int32, c *http.Client, servers []*server, key string) *recovery {
	t.Helper()
	servertest.Must(admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid`, pids))(t)
	ctx, stop := context.WithCancel(context.Background())
	r := &recovery{t: t, ended: time.Now(), back: make([]atomic.Int64, len(servers)), stop: stop}
	t.Cleanup(func() { stop(); r.watched.Wait() })
	for i, s := range servers {
		r.watched.Go(func() {
			for good := time.Duration(0); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				a := call(ctx, c, http.MethodGet, s.url("/v1.0/me"), "", bearer(key)...)
				now := time.Since(r.ended)
				switch {
				case a.status != http.StatusOK:
					good = 0
					r.back[i].Store(0)
				case good == 0:
					good = now
					r.back[i].Store(int64(now))
				case now-good > 3*time.Second:
					return
				}
			}
		})
	}
	return r
}

// settles waits until every server is back, but no longer than that, and reports whether they are.
func (r *recovery) settles(atMost time.Duration) bool {
	ended := make(chan struct{})
	go func() { r.watched.Wait(); close(ended) }()
	select {
	case <-ended:
		return true
	case <-time.After(atMost):
		return false
	}
}

// loadEnded fails the test unless every server is back soon after the end of the load, which is now, or was before.
func (r *recovery) loadEnded() {
	r.t.Helper()
	r.load = time.Since(r.ended)
	settled := r.settles(recoverySoon + recoverySlack)
	r.stop()
	for i := range r.back {
		if at := time.Duration(r.back[i].Load()); !settled || at > r.load+recoverySoon+recoverySlack {
			r.t.Errorf("server %d is not back %v after the end of the load, which lasted for %v after its feed was ended (back: %v)",
				i+1, recoverySoon+recoverySlack, r.load, at)
		}
	}
}

func (r *recovery) String() string {
	var words []string
	for i := range r.back {
		words = append(words, time.Duration(r.back[i].Load()).Round(time.Millisecond).String())
	}
	return fmt.Sprintf("back after %s, with the load for %v", strings.Join(words, " and "), r.load.Round(100*time.Millisecond))
}

// Where DATABASE_URL gives the servers larger pools than the database has connections, and all are taken, a server whose feed was
// ended gives back what it holds, and so gets its feed again.
func TestServersWithPoolsTooLargeGetTheirFeedsBack(t *testing.T) {
	service, admin := scarce(t, "20")
	service += "&pool_max_conns=16"
	servers := []*server{newServer(t, service), newServer(t, service)}
	c := from(t, "127.0.1.1")
	_, key := servers[0].newKey(t)
	pids := feeds(t, admin, len(servers))

	f := startCrowd(t, servers, http.StatusOK, func(ctx context.Context, s *server) answer {
		return call(ctx, c, http.MethodPost, s.url("/v1.0/accesskeys"), `{"name":"load"}`, bearer(adminKey)...)
	})
	servertest.Eventually(t, "every connection is taken", func() bool {
		conn, err := pgx.Connect(t.Context(), service[:strings.LastIndexByte(service, '&')])
		if err == nil {
			_ = conn.Close(context.Background())
		}
		return err != nil
	})
	w := endFeeds(t, admin, pids, c, servers, key)
	w.settles(20 * time.Second)
	f.stop()
	w.loadEnded()
	t.Logf("%d keys made, %d requests failed", f.well.Load(), f.other.Load())
	counted(t, "two pools of 16 connections, max_connections=20", version(t, "postgres", "--version"), "feeds ended under load: %v", w)
}
