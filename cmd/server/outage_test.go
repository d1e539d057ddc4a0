package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// Contract, section 5: The database away: 503 `SERVICE_UNAVAILABLE` with `Retry-After` within 5 s, and recovery without a
// restart. Under load, the database is stopped, killed and silenced, in turns; what was acknowledged before holds after. A credential
// alone may be verified from memory for a lease, and no longer.
func TestServiceSurvivesAnOutageOfItsDatabase(t *testing.T) {
	t.Parallel()
	cluster := newPostgres(t, nil)
	ok(t, postgres.CreateDatabase(t.Context(), secret.New(cluster.URL("postgres")), "accesskeys"))
	p := served(t, secret.New(cluster.URL("accesskeys")), map[string]string{"LOG_LEVEL": "info", "CACHE_LEASE": lease.String()})
	base := p.base()

	tr := newTraffic(t, base)
	silenced := []int(nil)
	t.Cleanup(func() { _ = signalAll(silenced, syscall.SIGCONT) }) // or what failed in between would never end
	start := func() error { return cluster.Start(t.Context()) }
	for _, outage := range []struct {
		name     string
		down, up func() error
	}{
		{"stopped", func() error { return cluster.Stop(t.Context()) }, start},
		{"killed", cluster.Kill, start},
		{
			"silent",
			func() (err error) { silenced, err = silence(cluster.Dir()); return err },
			func() error { return signalAll(silenced, syscall.SIGCONT) },
		},
	} {
		tr.everyClient(15, "creates and verifies before the database is "+outage.name, created, verified)
		tr.phase(changing)
		began := time.Now()
		ok(t, outage.down())
		tr.phase(away) // whatever lease there is began before
		refusedBefore, rememberedBefore := tr.count(refused), tr.count(remembered)
		call(t, "GET", base+"/healthz", "", "").wants(t, 200)
		call(t, "GET", base+"/readyz", "", "").refuses(t, 503, "SERVICE_UNAVAILABLE")
		tr.everyClient(2, "is told that the database is "+outage.name, refused)
		tr.everyClient(2, "can't verify once the lease has ended", unverified)
		t.Logf("%s for %v: %d verifications from memory, %d answers of 503", outage.name, time.Since(began).Round(time.Millisecond),
			tr.count(remembered)-rememberedBefore, tr.count(refused)-refusedBefore)
		tr.phase(changing)
		ok(t, outage.up())
		p.base() // is ready again
		tr.everyClient(2, "verifies again", verified)
		tr.phase(there)
	}
	tr.everyClient(2, "creates and verifies at the end", created, verified)
	tr.stop()
	t.Logf("acknowledged: %d keys created, %d of them deleted; %d verifications; %d answers of 503, the slowest after %v",
		tr.count(created), len(tr.deleted), tr.count(verified), tr.count(refused), tr.slowest.Round(time.Millisecond))
	if tr.count(slow) > tr.count(refused)/10 { // a machine that is busy makes some
		t.Errorf("%d of %d answers of 503 took more than 5 s", tr.count(slow), tr.count(refused))
	}
	if len(tr.deleted) == 0 || tr.count(remembered) == 0 {
		t.Errorf("%d keys were deleted, %d verifications were from memory", len(tr.deleted), tr.count(remembered))
	}
	tr.verifyAll(tr.live, 200)
	tr.verifyAll(tr.deleted, 401)
}

// silence stops the processes of a Postgres without ending them: connections stay open, and nothing comes.
func silence(dir string) (stopped []int, err error) {
	for range 2 { // the second time for those that the first process had started meanwhile
		lines, err := processesOf(dir)
		stopped = nil
		for _, line := range lines {
			pid := 0
			if _, err := fmt.Sscan(line, &pid); err != nil {
				return nil, err
			}
			stopped = append(stopped, pid)
		}
		if err != nil {
			return nil, err
		}
		if len(stopped) < 3 {
			return nil, fmt.Errorf("these are not the processes of a Postgres: %q", lines)
		}
		if err := signalAll(stopped, syscall.SIGSTOP); err != nil {
			return stopped, err
		}
	}
	return stopped, nil
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

// event is what clients count.
type event int

const (
	created event = iota
	verified
	refused
	remembered // verified without a database
	unverified // refused without a database and without a lease
	slow       // refused after more than 5 s
	events
)

// traffic is eight clients that create, verify and delete keys all the time, and hold every answer against what it may be.
type traffic struct {
	t      *testing.T
	base   string
	client *http.Client
	stop   func()

	mu      sync.Mutex
	now     state
	since   time.Time // of now
	changes int       // how often now has changed
	seen    [clientCount][events]int
	slowest time.Duration
	live    map[string]string // token to id of the keys whose creation was acknowledged, and whose deletion nobody asked for
	deleted map[string]string // of those whose deletion was acknowledged
}

func newTraffic(t *testing.T, base string) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	transport := &http.Transport{MaxIdleConnsPerHost: clientCount}
	tr := &traffic{
		t: t, base: base, client: &http.Client{Transport: transport}, now: changing, live: map[string]string{}, deleted: map[string]string{},
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

// turn is one round of a client: it creates a key, deletes it now and then, and verifies one of all clients'.
func (tr *traffic) turn(ctx context.Context, n int) {
	if body, succeeded := tr.send(ctx, n, created, "POST", "/v1.0/accesskeys"); succeeded {
		var key struct{ ID, Token string }
		if err := json.Unmarshal([]byte(body), &key); err != nil {
			tr.t.Errorf("%s: %v", body, err)
		}
		kept, is := rand.IntN(4) > 0, tr.live
		if !kept { // nobody but this client knows it: a deletion's outcome may stay open
			_, kept = tr.send(ctx, n, events, "DELETE", "/v1.0/accesskeys/"+key.ID)
			is = tr.deleted
		}
		if kept {
			tr.mu.Lock()
			is[key.Token] = key.ID
			tr.mu.Unlock()
		}
	}
	tr.send(ctx, n, verified, "GET", "/v1.0/me")
}

// send sends a request, judges the answer, counts a success and returns its body.
func (tr *traffic) send(ctx context.Context, n int, success event, method, path string) (string, bool) {
	tr.mu.Lock()
	expected, since, changes := tr.now, tr.since, tr.changes
	tr.mu.Unlock()
	started := time.Now()
	got, err := ask(ctx, tr.client, method, tr.base+path, testKey, "")
	took := time.Since(started)
	if ctx.Err() != nil {
		return "", false
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	seen := &tr.seen[n]
	switch fromMemory := success == verified && started.Sub(since) <= lease; {
	case tr.changes != changes:
		expected = changing
	case expected == away && fromMemory: // until the lease ends
		expected = changing
		if got.code == 200 {
			seen[remembered]++
		}
	case expected == away && success == verified && got.code == 503:
		seen[unverified]++
	}
	if wrong := judge(got, expected); err != nil || wrong != "" {
		tr.t.Errorf("%s %s: %s: %d %v %s, %v", method, path, wrong, got.code, got.header, got.body, err)
	}
	if got.code == 503 {
		seen[refused]++
		if took > 5*time.Second {
			seen[slow]++
		}
		tr.slowest = max(tr.slowest, took)
	}
	succeeded := err == nil && got.code == 200
	if succeeded && success < events {
		seen[success]++
	}
	return got.body, succeeded
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
	success, proper := answer{code: 200}, answer{503, http.Header{"Retry-After": {"2"}}, `{"error":{"reason":"SERVICE_UNAVAILABLE"}}`}
	for _, test := range []struct {
		got      answer
		expected state
		fine     bool
	}{
		{success, there, true}, {success, changing, true}, {success, away, false},
		{proper, there, false}, {proper, changing, true}, {proper, away, true},
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

// everyClient waits until each client has counted so many more of these. From the second on, what was counted began after the call.
func (tr *traffic) everyClient(more int, what string, of ...event) {
	tr.t.Helper()
	tr.mu.Lock()
	before := tr.seen
	tr.mu.Unlock()
	servertest.Eventually(tr.t, "every client "+what, func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		for n, seen := range tr.seen {
			for _, e := range of {
				if seen[e] < before[n][e]+more {
					return false
				}
			}
		}
		return true
	})
}

// count is that of all clients.
func (tr *traffic) count(e event) (sum int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, seen := range tr.seen {
		sum += seen[e]
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
