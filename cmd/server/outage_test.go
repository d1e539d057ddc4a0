package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/postgres"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// Contract, section 5: The database away: 503 `SERVICE_UNAVAILABLE` with `Retry-After` within 5 s, and recovery without a
// restart. Under load, the database is stopped, killed and silenced, in turns; what was acknowledged before holds after. A credential alone may be verified from memory for a lease, and no longer.
func TestServiceSurvivesAnOutageOfItsDatabase(t *testing.T) {
	t.Parallel()
	cluster, err := privatepg.Start(t.Context(), privatepg.Config{Dir: filepath.Join(newFolder(t), "postgres"), Getenv: os.Getenv})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := postgres.CreateDatabase(t.Context(), secret.New(cluster.URL("postgres")), "accesskeys"); err != nil {
		t.Fatal(err)
	}
	p := launch(t, environment(secret.New(cluster.URL("accesskeys")), map[string]string{"LOG_LEVEL": "info", "CACHE_LEASE": lease.String()}), "serve")
	base := p.base()

	tr := newTraffic(t, base, testKey)
	silenced := []int(nil)
	t.Cleanup(func() { _ = signalAll(silenced, syscall.SIGCONT) }) // or what failed in between would never end
	for _, outage := range []struct {
		name     string
		down, up func() error
	}{
		{"stopped", func() error { return cluster.Stop(t.Context()) }, func() error { return cluster.Start(t.Context()) }},
		{"killed", cluster.Kill, func() error { return cluster.Start(t.Context()) }},
		{
			"silent",
			func() (err error) { silenced, err = silence(filepath.Join(cluster.Dir(), "data")); return err },
			func() error { return signalAll(silenced, syscall.SIGCONT) },
		},
	} {
		tr.everyClient(15, "creates and verifies before the database is "+outage.name, func(c counts) int { return min(c.created, c.verified) })
		tr.phase(changing)
		began := time.Now()
		if err := outage.down(); err != nil {
			t.Fatal(err)
		}
		tr.phase(away) // whatever lease there is began before
		before := tr.counts()
		call(t, "GET", base+"/healthz", "", "").wants(t, 200)
		call(t, "GET", base+"/readyz", "", "").refuses(t, 503, "SERVICE_UNAVAILABLE")
		tr.everyClient(2, "is told that the database is "+outage.name, func(c counts) int { return c.refused })
		tr.everyClient(2, "can't verify once the lease has ended", func(c counts) int { return c.unverified })
		refused, remembered := tr.counts().refused-before.refused, tr.counts().remembered-before.remembered
		tr.phase(changing)
		gone := time.Since(began)
		if err := outage.up(); err != nil {
			t.Fatal(err)
		}
		returned := time.Now()
		servertest.Eventually(t, "the service is ready again", func() bool { return call(t, "GET", base+"/readyz", "", "").code == 200 })
		recovered := time.Since(returned)
		tr.everyClient(2, "verifies again", func(c counts) int { return c.verified })
		tr.phase(there)
		t.Logf("%s for %v: %d verifications from memory, %d answers of 503; ready %v after its return", outage.name,
			gone.Round(time.Millisecond), remembered, refused, recovered.Round(time.Millisecond))
	}
	tr.everyClient(2, "creates and verifies at the end", func(c counts) int { return min(c.created, c.verified) })
	tr.stop()
	c := tr.counts()
	t.Logf("acknowledged: %d keys created, %d of them deleted; %d verifications; %d answers of 503, the slowest after %v",
		c.created, len(tr.deleted), c.verified, c.refused, c.slowest.Round(time.Millisecond))
	if c.slow > c.refused/10 { // a machine that is busy makes some
		t.Errorf("%d of %d answers of 503 took more than 5 s", c.slow, c.refused)
	}
	if len(tr.deleted) == 0 {
		t.Error("nothing was deleted")
	}
	if c.remembered == 0 {
		t.Error("nothing was verified from memory")
	}
	tr.verifyAll(tr.live, 200)
	tr.verifyAll(tr.deleted, 401)
}

// silence stops the server's processes without ending them: connections stay open, and nothing comes.
func silence(data string) ([]int, error) {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(content), "\n")
	postmaster, err := strconv.Atoi(line)
	if err != nil {
		return nil, err
	}
	if err := syscall.Kill(postmaster, syscall.SIGSTOP); err != nil { // first, so that it has no more children
		return nil, err
	}
	stopped := []int{postmaster}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // what follows is the state and the parent
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == line {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))) // Glob has seen to it
			stopped = append(stopped, pid)
		}
	}
	if err == nil && len(stopped) < 2 {
		err = fmt.Errorf("the server %d has no children", postmaster)
	}
	if err == nil {
		err = signalAll(stopped[1:], syscall.SIGSTOP)
	}
	return stopped, err
}

func signalAll(pids []int, signal syscall.Signal) error {
	for _, pid := range pids {
		if err := syscall.Kill(pid, signal); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// state is what a client may expect of the database.
type state int

const (
	there    state = iota // every answer is a success
	changing              // success or 503
	away                  // 503 only
)

const clientCount = 8

// lease is the server's, and so the longest that it may go by memory without a database.
const lease = 2 * time.Second

// counts are what clients have seen.
type counts struct {
	created, verified, refused int
	remembered                 int // verified without a database
	unverified                 int // refused without a database and without a lease
	slow                       int // refused after more than 5 s
	slowest                    time.Duration
}

// traffic is eight clients that create, verify and delete keys all the time, and hold every answer against what it may be.
type traffic struct {
	t      *testing.T
	base   string
	admin  string
	client *http.Client
	stop   func()

	mu      sync.Mutex
	now     state
	since   time.Time // of now
	changes int       // how often now has changed
	seen    [clientCount]counts
	live    map[string]string // token to id of the keys whose creation was acknowledged, and whose deletion nobody asked for
	deleted map[string]string // of those whose deletion was acknowledged
}

func newTraffic(t *testing.T, base, admin string) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	transport := &http.Transport{MaxIdleConnsPerHost: clientCount}
	tr := &traffic{
		t: t, base: base, admin: admin, client: &http.Client{Transport: transport},
		now: changing, live: map[string]string{}, deleted: map[string]string{},
	}
	var clients sync.WaitGroup
	for n := range clientCount {
		clients.Go(func() {
			pace := time.NewTicker(20 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				tr.turn(ctx, n)
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		})
	}
	tr.stop = sync.OnceFunc(func() {
		cancel()
		clients.Wait()
		transport.CloseIdleConnections()
	})
	t.Cleanup(tr.stop)
	tr.phase(there)
	return tr
}

// turn is one round of a client: it creates a key, verifies one of all clients', and now and then deletes its own.
func (tr *traffic) turn(ctx context.Context, n int) {
	var key struct{ ID, Token string }
	if body, ok := tr.send(ctx, n, "POST", "/v1.0/accesskeys", tr.admin); ok && tr.decoded(body, &key) {
		tr.mu.Lock()
		tr.seen[n].created++
		tr.live[key.Token] = key.ID
		tr.mu.Unlock()
		if rand.IntN(4) == 0 {
			tr.mu.Lock()
			delete(tr.live, key.Token) // from here on nobody but this client knows it: a deletion's outcome may stay open
			tr.mu.Unlock()
			if _, ok := tr.send(ctx, n, "DELETE", "/v1.0/accesskeys/"+key.ID, tr.admin); ok {
				tr.mu.Lock()
				tr.deleted[key.Token] = key.ID
				tr.mu.Unlock()
			}
		}
	}
	if _, ok := tr.send(ctx, n, "GET", "/v1.0/me", tr.admin); ok {
		tr.mu.Lock()
		tr.seen[n].verified++
		tr.mu.Unlock()
	}
}

func (tr *traffic) decoded(body string, to any) bool {
	err := json.Unmarshal([]byte(body), to)
	if err != nil {
		tr.t.Errorf("%s: %v", body, err)
	}
	return err == nil
}

// send sends a request, judges the answer and returns the body of a success.
func (tr *traffic) send(ctx context.Context, n int, method, path, bearer string) (string, bool) {
	tr.mu.Lock()
	before, since, changes := tr.now, tr.since, tr.changes
	tr.mu.Unlock()
	started := time.Now()
	got, err := ask(ctx, tr.client, method, tr.base+path, bearer, "")
	took := time.Since(started)
	if ctx.Err() != nil {
		return "", false
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	expected := before
	if tr.changes != changes {
		expected = changing
	}
	verifies := method == "GET" && path == "/v1.0/me"
	switch {
	case expected != away || !verifies || err != nil:
	case started.Sub(since) > lease:
		if got.code == 503 {
			tr.seen[n].unverified++
		}
	default:
		expected = changing // until the lease ends
		if got.code == 200 {
			tr.seen[n].remembered++
		}
	}
	switch {
	case err != nil:
		tr.t.Errorf("%s %s: %v", method, path, err)
	default:
		if wrong := judge(got, expected); wrong != "" {
			tr.t.Errorf("%s %s: %s: %d %v %s", method, path, wrong, got.code, got.header, got.body)
		}
	}
	if got.code == 503 {
		tr.seen[n].refused++
		if took > 5*time.Second {
			tr.seen[n].slow++
		}
		tr.seen[n].slowest = max(tr.seen[n].slowest, took)
	}
	return got.body, err == nil && got.code == 200
}

// judge says what is wrong with an answer, "" where nothing is.
func judge(got answer, expected state) string {
	switch {
	case got.code == 200 && expected != away, got.code == 503 && expected != there:
	case got.code == 200:
		return "a success without a database"
	default:
		return "neither a success nor a 503 of the database's"
	}
	retry, err := strconv.Atoi(got.header.Get("Retry-After"))
	if got.code == 503 && (got.reason() != "SERVICE_UNAVAILABLE" || err != nil || retry < 1) {
		return "not the contract's 503"
	}
	return ""
}

// The traffic's own judgement refuses what it is there to refuse.
func TestTrafficJudgesAnswers(t *testing.T) {
	t.Parallel()
	proper := answer{503, http.Header{"Retry-After": {"2"}}, `{"error":{"reason":"SERVICE_UNAVAILABLE"}}`}
	for _, test := range []struct {
		got      answer
		expected state
		fine     bool
	}{
		{answer{code: 200}, there, true},
		{answer{code: 200}, changing, true},
		{answer{code: 200}, away, false},
		{proper, there, false},
		{proper, changing, true},
		{proper, away, true},
		{answer{503, nil, proper.body}, away, false},
		{answer{503, proper.header, "{}"}, away, false},
		{answer{401, proper.header, proper.body}, away, false},
		{answer{401, proper.header, proper.body}, changing, false},
		{answer{500, proper.header, proper.body}, away, false},
	} {
		if wrong := judge(test.got, test.expected); (wrong == "") != test.fine {
			t.Errorf("%+v in state %d: %q", test.got, test.expected, wrong)
		}
	}
}

// phase tells the clients what to expect from now on.
func (tr *traffic) phase(s state) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.now, tr.since, tr.changes = s, time.Now(), tr.changes+1
}

// everyClient waits until a count of every client has grown by so much. From the second on, what was counted began after
// the call.
func (tr *traffic) everyClient(grown int, what string, count func(counts) int) {
	tr.t.Helper()
	tr.mu.Lock()
	before := tr.seen
	tr.mu.Unlock()
	servertest.Eventually(tr.t, "every client "+what, func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		for n, c := range tr.seen {
			if count(c) < count(before[n])+grown {
				return false
			}
		}
		return true
	})
}

// counts are those of all clients.
func (tr *traffic) counts() counts {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var sum counts
	for _, c := range tr.seen {
		sum.created += c.created
		sum.verified += c.verified
		sum.refused += c.refused
		sum.remembered += c.remembered
		sum.unverified += c.unverified
		sum.slow += c.slow
		sum.slowest = max(sum.slowest, c.slowest)
	}
	return sum
}

// verifyAll presents each of these keys and expects this status of them all.
func (tr *traffic) verifyAll(tokens map[string]string, want int) {
	tr.t.Helper()
	var clients sync.WaitGroup
	for part := range slices.Chunk(slices.Collect(maps.Keys(tokens)), len(tokens)/clientCount+1) {
		clients.Go(func() {
			for _, token := range part {
				got, err := ask(context.Background(), http.DefaultClient, "GET", tr.base+"/v1.0/me", token, "")
				if err != nil || got.code != want {
					tr.t.Errorf("key %s: %d, want %d: %s %v", tokens[token], got.code, want, got.body, err)
				}
			}
		})
	}
	clients.Wait()
}
