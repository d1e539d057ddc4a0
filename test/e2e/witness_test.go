//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// What the witness sends to each server, besides POSTs. The load is open: a request is sent when its time has come, whatever
// became of those before it, as clients do that don't know of each other.
const (
	deleteEvery = 125 * time.Millisecond
	useEvery    = 25 * time.Millisecond
)

// How often the witness sends a POST to each server: so that a few of a server's connections are in use, and all of them.
const (
	lightly = 50 * time.Millisecond
	heavily = 10 * time.Millisecond
)

// promise is a key that a server has acknowledged. Its instants are on the witness' clock, 0 for never.
type promise struct {
	id, token string
	made      time.Duration // the 200 to the POST had arrived
	asked     time.Duration // a DELETE was about to be sent: from here on the key may be gone
	revoked   time.Duration // the 200 to the DELETE had arrived: from here on it has to be
	broken    bool
}

// acknowledged are the instants at which a server's answers of one kind arrived.
type acknowledged []time.Duration

// witness makes, uses and deletes keys at every server, keeps what it was promised, and judges in the end whether all of
// that was kept. Every instant is from one monotonic clock.
type witness struct {
	t       testing.TB
	servers []*server
	epoch   time.Time
	end     context.CancelFunc
	load    sync.WaitGroup

	mu       sync.Mutex
	promises []*promise
	writes   []acknowledged // POSTs, of each server
	uses     []acknowledged // of keys that were accepted
	seen     findings
	excused  time.Duration // the end of the time in which a new key may be unknown (docs/revocation.md, "What it costs to know")
}

// findings are what a witness has seen.
type findings struct {
	made, revoked   int // keys whose POST, and whose DELETE, was answered with 200
	unknown         int // POSTs and DELETEs whose outcome nobody knows: no answer, or a 503
	uses, usesAfter int // of keys that were good, and that had been revoked before, that were answered with 200 or 401
	lost            int // keys that nobody asked to delete, and that are refused or not listed in the end
	undone          int // revoked keys that are accepted or listed, in the end or before
	refused         int // uses of good keys that were answered with 401 on the way
	excused         int // uses of new keys, and DELETEs of them, that were refused while that was excused
	details         []string
}

// witnessed starts the load on servers of one database, with a POST in each period. It ends with judge, or with the test.
func witnessed(t testing.TB, period time.Duration, servers ...*server) *witness {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	w := &witness{
		t: t, servers: servers, epoch: time.Now(), end: end,
		writes: make([]acknowledged, len(servers)), uses: make([]acknowledged, len(servers)),
	}
	t.Cleanup(w.stop)
	for i := range servers {
		w.every(ctx, period, func() { w.make(i) })
		w.every(ctx, deleteEvery, func() { w.delete(i) })
		w.every(ctx, useEvery, func() { w.use(i) })
	}
	return w
}

// every runs do again and again until ctx ends, without waiting for it. What has begun is finished.
func (w *witness) every(ctx context.Context, period time.Duration, do func()) {
	w.load.Go(func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.load.Go(do)
			case <-ctx.Done():
				return
			}
		}
	})
}

func (w *witness) stop() {
	w.end()
	w.load.Wait()
}

func (w *witness) now() time.Duration { return time.Since(w.epoch) }

// odd keeps an answer that nothing explains. The caller holds the lock.
func (w *witness) odd(format string, args ...any) {
	const most = 10
	if len(w.seen.details) < most {
		w.seen.details = append(w.seen.details, fmt.Sprintf(format, args...))
	}
}

// away reports whether an answer says nothing about the key: there was none, or nobody could tell.
func away(a answer) bool { return a.err != nil || a.status == http.StatusServiceUnavailable }

func (w *witness) make(server int) {
	a := w.servers[server].call(http.MethodPost, "/v1.0/accesskeys", adminKey, `{"name":"witness"}`)
	arrived := w.now()
	var key struct{ ID, Token string }
	err := json.Unmarshal([]byte(a.body), &key)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case away(a):
		w.seen.unknown++
	case a.status == http.StatusOK && err == nil && key.Token != "":
		w.promises = append(w.promises, &promise{id: key.ID, token: key.Token, made: arrived})
		w.writes[server] = append(w.writes[server], arrived)
	default:
		w.odd("server %d answered a POST with %d: %s", server, a.status, a.body)
	}
}

// delete asks to delete one of the newest keys: those are what a failover loses.
func (w *witness) delete(server int) {
	const newest = 50
	w.mu.Lock()
	var chosen *promise
	for _, p := range w.promises[max(0, len(w.promises)-newest):] {
		if p.asked == 0 && rand.IntN(newest/4) == 0 {
			chosen = p
			break
		}
	}
	if chosen == nil {
		w.mu.Unlock()
		return
	}
	chosen.asked = w.now()
	w.mu.Unlock()
	a := w.servers[server].call(http.MethodDelete, "/v1.0/accesskeys/"+chosen.id, adminKey, "")
	arrived := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case away(a):
		w.seen.unknown++
	case a.status == http.StatusOK:
		chosen.revoked = arrived
	case a.status == http.StatusNotFound && chosen.asked < w.excused:
		w.seen.excused++
	default:
		w.odd("server %d answered a DELETE at %s, of a key made at %s, with %d: %s", server, chosen.asked, chosen.made, a.status, a.body)
	}
}

// use presents a key, of the newest again and again, and judges the answer by what was known when it was sent.
func (w *witness) use(server int) {
	w.mu.Lock()
	if len(w.promises) == 0 {
		w.mu.Unlock()
		return
	}
	among := w.promises
	if rand.IntN(2) == 0 {
		among = among[max(0, len(among)-200):]
	}
	p := among[rand.IntN(len(among))]
	gone := p.revoked != 0
	sent := w.now()
	w.mu.Unlock()
	a := w.servers[server].call(http.MethodGet, "/v1.0/me", p.token, "")
	arrived := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	good := p.asked == 0 // to this moment nobody asked, so not when it was sent either
	switch {
	case away(a):
	case gone && a.status == http.StatusOK:
		p.broken = true
		w.odd("server %d accepted a key that had been revoked at %s, before the request was sent", server, p.revoked)
	case gone && a.status == http.StatusUnauthorized:
		w.seen.usesAfter++
	case good && a.status == http.StatusOK:
		w.seen.uses++
		w.uses[server] = append(w.uses[server], arrived)
	case good && a.status == http.StatusUnauthorized && sent < w.excused:
		w.seen.excused++
	case good && a.status == http.StatusUnauthorized:
		w.seen.refused++
	case a.status != http.StatusOK && a.status != http.StatusUnauthorized:
		w.odd("server %d answered a use with %d: %s", server, a.status, a.body)
	}
}

// excuse says that a primary was failed over and lives: for a lease's length servers may still be with it, and not know
// what is new.
func (w *witness) excuse() {
	const lease = 2 * time.Second // the default
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused = w.now() + lease
}

// after is the first instant after another one, 0 where there is none yet.
func (all acknowledged) after(at time.Duration) time.Duration {
	if i := slices.IndexFunc(all, func(a time.Duration) bool { return a > at }); i >= 0 {
		return all[i]
	}
	return 0
}

// before is the last instant up to another one.
func (all acknowledged) before(at time.Duration) (last time.Duration) {
	for _, a := range all {
		if a <= at {
			last = a
		}
	}
	return last
}

// gaps are the times without an instant between two, each with its end, of which only the last may be the end itself; longest is the
// longest of them.
func (all acknowledged) gaps(from, to time.Duration, each func(gap, end time.Duration)) (longest time.Duration) {
	last := from
	for _, at := range append(slices.Clone(all), to) {
		if at > from && at <= to {
			each(at-last, at)
			longest, last = max(longest, at-last), at
		}
	}
	return longest
}

// outage is what the loss of a primary meant, for each server.
type outage struct {
	back  durations // from when the new primary took writes until POSTs were acknowledged, and went on to be
	write durations // the longest time without a POST that was acknowledged
	read  durations // the longest time without a key that was accepted
}

// and is this outage and another one.
func (o outage) and(other outage) outage {
	return outage{slices.Concat(o.back, other.back), slices.Concat(o.write, other.write), slices.Concat(o.read, other.read)}
}

// recovered waits until every server has acknowledged a write since the primary was lost, and has accepted a key after
// that; and for as long as it is to be watched. accepting is when the new primary took writes.
func (w *witness) recovered(lost, accepting, watched time.Duration) (o outage) {
	w.t.Helper()
	since := max(lost, accepting-30*time.Millisecond) // a client may be acknowledged before the probe, which is one of many
	servertest.Eventually(w.t, "every server has acknowledged a write to the new primary", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range w.servers {
			if wrote := w.writes[i].after(since); wrote == 0 || w.uses[i].after(wrote) == 0 {
				return false
			}
		}
		return w.now() > accepting+watched
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.now()
	for i := range w.servers {
		back := w.writes[i].after(since)
		o.write = append(o.write, w.writes[i].gaps(w.writes[i].before(lost), end, func(gap, end time.Duration) {
			if gap > time.Second { // it was back for some clients only, those whose connections were new
				back = max(back, end)
			}
		}))
		o.back = append(o.back, max(0, back-accepting))
		o.read = append(o.read, w.uses[i].gaps(w.uses[i].before(lost), end, func(_, _ time.Duration) {}))
	}
	return o
}

// judge ends the load and looks at every key at every server and in the list.
func (w *witness) judge() findings {
	w.t.Helper()
	w.stop()
	listed := w.servers[0].keys(w.t)
	type use struct {
		*promise
		server int
	}
	todo := make(chan use)
	var using sync.WaitGroup
	for range 16 {
		using.Go(func() {
			for u := range todo {
				a := w.settled(u.server, u.token)
				w.mu.Lock()
				switch {
				case u.revoked != 0 && (a.status != http.StatusUnauthorized || listed[u.id]),
					u.asked == 0 && (a.status != http.StatusOK || !listed[u.id]):
					u.broken = true
				}
				w.mu.Unlock()
			}
		})
	}
	for _, p := range w.promises {
		if p.asked == 0 || p.revoked != 0 {
			for i := range w.servers {
				todo <- use{p, i}
			}
		}
	}
	close(todo)
	using.Wait()
	return w.tally()
}

// settled presents a key until a server can tell what it is.
func (w *witness) settled(server int, token string) (a answer) {
	deadline := time.Now().Add(patience)
	for {
		a = w.servers[server].call(http.MethodGet, "/v1.0/me", token, "")
		if !away(a) || time.Now().After(deadline) {
			return a
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kept fails the test unless everything was kept, and something was promised at all.
func (f findings) kept(t testing.TB) {
	t.Helper()
	if f.lost > 0 || f.undone > 0 || f.refused > 0 || len(f.details) > 0 {
		t.Errorf("keys lost: %d, revocations undone: %d, good keys refused: %d, answers that nothing explains:\n%s",
			f.lost, f.undone, f.refused, strings.Join(f.details, "\n"))
	}
	if f.made < 100 || f.revoked < 20 || f.uses < 100 || f.usesAfter < 20 {
		t.Errorf("that is too little to go by: %+v", f)
	}
}

// takesWrites waits until a Postgres is a primary and has committed a write, and returns when.
func (w *witness) takesWrites(url string) time.Duration {
	w.t.Helper()
	servertest.Eventually(w.t, "the new primary takes writes", func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		standby, err := query(ctx, url, `SELECT pg_is_in_recovery()`)
		if err != nil || standby != false {
			return false
		}
		_, err = query(ctx, url, `INSERT INTO scratch DEFAULT VALUES`)
		return err == nil
	})
	return w.now()
}

// durations are figures of which a report wants the middle and the worst.
type durations []time.Duration

func (d durations) String() string {
	if len(d) == 0 {
		return "none"
	}
	sorted := slices.Sorted(slices.Values(d))
	return fmt.Sprintf("%.1f s (worst %.1f)", sorted[len(sorted)/2].Seconds(), sorted[len(sorted)-1].Seconds())
}

func (d durations) worst() time.Duration { return slices.Max(d) }

// goal is how soon after the new primary takes writes every server has to.
const goal = 5 * time.Second

// soon fails the test where writes were away for too long.
func (o outage) soon(t testing.TB) {
	t.Helper()
	if o.back.worst() > goal {
		t.Errorf("a server took writes %v after the new primary did, that is more than %s", o.back, goal)
	}
}

func (o outage) String() string {
	return fmt.Sprintf("writes back after %v, away for clients %v, reads %v", o.back, o.write, o.read)
}

func (f findings) String() string {
	return fmt.Sprintf("%d keys, %d lost, %d revoked, %d undone", f.made, f.lost, f.revoked, f.undone)
}

// count is what was promised so far.
func (w *witness) count() (f findings) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tally()
}

// tally counts the promises. The caller holds the lock.
func (w *witness) tally() findings {
	f := w.seen
	for _, p := range w.promises {
		f.made++
		if p.revoked != 0 {
			f.revoked++
		}
		switch {
		case !p.broken:
		case p.revoked != 0:
			f.undone++
		default:
			f.lost++
		}
	}
	return f
}

// settle lets the load run until there is something to lose.
func (w *witness) settle() {
	w.t.Helper()
	before := w.count()
	servertest.Eventually(w.t, "keys were made, used and revoked", func() bool {
		now := w.count()
		return now.made > before.made+100 && now.revoked > before.revoked+30 && now.uses > before.uses+100
	})
}
