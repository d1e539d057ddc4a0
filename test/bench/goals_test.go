//go:build bench

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// fixture is a server with a million keys in its database and in its cache.
type fixture struct {
	database secret.Value
	ours     *server
	keys     requests // GET /v1.0/me by each of the keys
}

// usesWritten is how long it takes until the server has written down when each of the keys was used.
const usesWritten = 30 * time.Second

func newFixture(b *testing.B) *fixture {
	b.Helper()
	w := &fixture{database: newDatabase(b)}
	w.ours = startServer(b, w.database, "CACHE_SIZE=2048")
	w.keys = gets("/v1.0/me", seedKeys(b, w.database, number(b, "BENCH_KEYS", 1_000_000)))
	warm(b, w.ours.addr, w.keys)
	time.Sleep(usesWritten)
	settle(b, connect(b, w.database))
	return w
}

// BenchmarkGoals measures what docs/performance.md promises, in requests of keys, and tokens, that are in the cache.
func BenchmarkGoals(b *testing.B) {
	w := newFixture(b)
	b.Run("memory", w.memory)
	b.Run("me/accesskey", w.meByAccessKey)
	for _, c := range []struct {
		name          string
		callers, each int // tokens of each
	}{{"one", 1, 1}, {"many", 8, 1000}} {
		b.Run("me/HS256/"+c.name, func(b *testing.B) {
			w.meByToken(b, "HS256, "+c.name, 0.80, sessionTokens(b, w.database, c.callers, c.each))
		})
		b.Run("me/RS256/"+c.name, func(b *testing.B) {
			w.meByToken(b, "RS256, "+c.name, 0.60, signedTokens(b, w.ours.addr, auth.RS256, c.callers, c.each))
		})
	}
	b.Run("latency", w.latencyAtHalfLoad)
	b.Run("logins", w.latencyBesideLogins)
	for _, clients := range []int{8, 32} {
		b.Run(fmt.Sprintf("create/%d", clients), func(b *testing.B) { w.create(b, clients) })
	}
}

// memory shows what the keys take in the server.
func (w *fixture) memory(b *testing.B) {
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(w.ours.resident(b), "MiB")
	b.ReportMetric(w.ours.figure(b, "accesskeys_cache_entries"), "entries")
	b.ReportMetric(w.ours.figure(b, "accesskeys_cache_evictions_total"), "evictions")
}

// meByAccessKey: what the check costs beside the router and beside net/http, and what the cache saves.
func (w *fixture) meByAccessKey(b *testing.B) {
	uncached := startServer(b, w.database, "CACHE_LEASE=0")
	router := startUnchecked(b, w.database, keyToken(0))
	bare := startBare(b, w.ours.process, w.keys[0])
	sameShape(b, w.keys, w.ours.process, uncached.process, router, bare)
	sides := []*side{
		newSide(b, "ours", w.ours.process, 8), newSide(b, "router", router, 8),
		newSide(b, "bare", bare, 8), newSide(b, "uncached", uncached.process, 8),
	}
	misses := w.ours.figure(b, "accesskeys_cache_misses_total")
	takeTurns(b, w.keys, sides...)
	ours := sides[0]
	b.ReportMetric(w.ours.figure(b, "accesskeys_cache_misses_total")-misses, "misses") // a warm cache has none
	atLeast("me by access key: throughput, of the router's without the check", 0.90, ours.rate()/sides[1].rate())
	atLeast("me by access key: throughput, of a bare handler's", 0.80, ours.rate()/sides[2].rate())
	atLeast("me by access key: throughput, of the same without the cache", 2.5, ours.rate()/sides[3].rate())
}

// meByToken: the same for a JWT, the same one each time or another of many.
func (w *fixture) meByToken(b *testing.B, name string, least float64, tokens []string) {
	all := gets("/v1.0/me", tokens)
	warm(b, w.ours.addr, all)
	router := startUnchecked(b, w.database, tokens[0])
	sameShape(b, all, w.ours.process, router)
	ours := newSide(b, "ours", w.ours.process, 8)
	beside := newSide(b, "router", router, 8)
	takeTurns(b, all, ours, beside)
	atLeast("me by "+name+": throughput, of the router's without the check", least, ours.rate()/beside.rate())
}

const (
	// latencyTurn is how long a server's turn is where latencies are measured: a garbage collection among a million keys
	// falls into most turns.
	latencyTurn = 4 * time.Second
	// latencyTurns is how many turns each has. The median of their p99s stands for all: a neighbour that wakes up spoils a
	// turn and not the figure.
	latencyTurns = 7
)

// latencyAtHalfLoad: what the slowest in a hundred wait, at half of what the router without the check can do.
func (w *fixture) latencyAtHalfLoad(b *testing.B) {
	router := startUnchecked(b, w.database, keyToken(0))
	full := newSide(b, "router", router, 8)
	for range 8 {
		full.turn(b, w.keys)
	}
	rate := full.rate() / 2
	sides := []*openLoop{
		newOpenLoop(b, "ours", w.ours.process),
		newOpenLoop(b, "router", router),
		newOpenLoop(b, "bare", startBare(b, w.ours.process, w.keys[0])), // how much of it is the client and the machine
	}
	for _, s := range sides {
		s.pause()
	}
	for b.Loop() {
		for turn := range latencyTurns {
			oneAfterAnother(turn, sides, func(s *openLoop) { s.turn(b, w.keys, rate) })
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "req/s")
	for _, s := range sides {
		s.resume()
		b.ReportMetric(median(s.p50s), s.name+"-p50-us")
		b.ReportMetric(median(s.p99s), s.name+"-p99-us")
	}
	atMost("me by access key: p99 at half load, of the router's", 1.5, median(sides[0].p99s)/median(sides[1].p99s))
}

// latencyBesideLogins: what fifty logins at once do to the p99 of everybody else.
func (w *fixture) latencyBesideLogins(b *testing.B) {
	const rate, logins = 2000, 50
	without, with := newOpenLoop(b, "without", w.ours.process), newOpenLoop(b, "with", w.ours.process)
	answered := 0
	for b.Loop() {
		for range latencyTurns {
			without.turn(b, w.keys, rate)
			stop := w.logIn(b, logins)
			with.turn(b, w.keys, rate)
			answered += stop()
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "req/s")
	b.ReportMetric(float64(answered), "logins") // that got a token; the others were told to come back later
	b.ReportMetric(median(without.p99s), "without-p99-us")
	b.ReportMetric(median(with.p99s), "with-p99-us")
	atMost("me by access key: p99 beside 50 logins at once, of the p99 without", 2, median(with.p99s)/median(without.p99s))
}

// logIn keeps logins under way, until stop is called, which returns how many got a token.
func (w *fixture) logIn(b *testing.B, atOnce int) (stop func() int) {
	b.Helper()
	request := loginRequest()
	var done atomic.Bool
	var answered atomic.Int64
	var group sync.WaitGroup
	for range atOnce {
		c := dial(b, w.ours.addr)
		group.Go(func() {
			defer c.close()
			for !done.Load() {
				status, err := c.exchange(request)
				switch {
				case err != nil || status != 200 && status != 503:
					b.Errorf("a login: status %d, %v", status, err)
					return
				case status == 200:
					answered.Add(1)
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond) // all of them are in the queue
	return func() int {
		done.Store(true)
		group.Wait()
		return int(answered.Load())
	}
}

// create: what a new key costs beside the insert itself, by Postgres's own benchmark with as many clients.
func (w *fixture) create(b *testing.B, clients int) {
	ours := newSide(b, "ours", w.ours.process, clients)
	insert := newInserts(b, w.database, clients)
	request := requests{create(accessKey)}
	var inserts []float64 // a second
	for b.Loop() {
		for range int(insert.turn / turnTime) {
			ours.turn(b, request)
		}
		w.ours.pause()
		inserts = append(inserts, insert.run(b))
		w.ours.resume()
	}
	rate := 0.0
	for _, r := range inserts {
		rate += r / float64(len(inserts))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.rate(), "ours/s")
	b.ReportMetric(rate, "pgbench/s")
	atLeast(fmt.Sprintf("create, %d clients: of what pgbench inserts", clients), 0.70, ours.rate()/rate)
}

// inserts is pgbench with the statement of a POST /v1.0/accesskeys.
type inserts struct {
	command []string
	turn    time.Duration
}

func newInserts(b *testing.B, database secret.Value, clients int) inserts {
	b.Helper()
	pgbench := servertest.PostgresProgram(b, "pgbench")
	// insertAccessKey of internal/store, with values of the database's own making.
	customerID := ownKey(b, openStore(b, database)).CustomerID
	script := filepath.Join(b.TempDir(), "insert.sql")
	servertest.OK(b, os.WriteFile(script, []byte(`INSERT INTO accesskeys
		(id, customer_id, agent_id, roles, name, description, token_sha256, token_prefix, tm_expire,
			created_by_type, created_by_id, service_account_id)
		SELECT gen_random_uuid(), c.id, NULL, coalesce(NULL::text[], '{customer_admin}'), 'bench', '',
			sha256(gen_random_uuid()::text::bytea), 'vb_BenchBen', now() + make_interval(secs => 3600), NULL, NULL, NULL
		FROM customers c
		WHERE c.id = '`+customerID.String()+`' AND c.tm_delete >= '9999-01-01 00:00:00+00'
		RETURNING tm_create, tm_expire;
		`), 0o600))
	const seconds = 2 // pgbench takes whole ones
	return inserts{turn: seconds * time.Second, command: []string{
		pgbench, "-n", "-M", "prepared", "-f", script, "-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(seconds),
		database.Reveal(),
	}}
}

// run returns how many rows a second were inserted.
func (i inserts) run(b *testing.B) float64 {
	b.Helper()
	output, err := exec.Command(i.command[0], i.command[1:]...).CombinedOutput()
	if err != nil {
		b.Fatalf("pgbench: %v: %s", err, output)
	}
	_, rest, _ := strings.Cut(string(output), "\ntps = ")
	number, _, _ := strings.Cut(rest, " ")
	return servertest.Must(strconv.ParseFloat(number, 64))(b)
}
