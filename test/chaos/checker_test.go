package chaos

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// checker makes credentials, uses them everywhere, revokes them, and uses them everywhere again.
//
// It compares two instants of one monotonic clock: a violation is a request that was sent after the answer 200 to the
// revocation had arrived, and was accepted.
type checker struct {
	scenario scenario
	fleet    *fleet
	slow     slow
	started  atomic.Int64   // revocations, to number them
	probing  sync.WaitGroup // probes that are still to come

	mu      sync.Mutex
	tally   tally
	revoked []*life
}

// count is something that is counted.
type count int

const (
	acceptedLive count = iota // uses before the revocation that were accepted
	refusedLive               // ... that were refused, though the credential was good
	awayLive                  // ... that had no answer, or a 503
	refused                   // uses sent after the revocation's 200 that were refused
	away                      // ... that had no answer, or a 503
	violations                // ... that were accepted
	heldRefused               // writes whose body was held back until the revocation's 200 that were refused
	written                   // ... that were made all the same
	unknown                   // revocations that had no answer, or a 503
	gone                      // revocations that after an unknown outcome were answered 404
	released                  // writes that were held back, whatever became of them
	probes                    // uses after a revocation at fixed times
	outside                   // uses that were accepted by an instance while it was out of reach of what it needs
	faults                    // that were made
	counts
)

// tally is what was seen.
type tally struct {
	revoked   [kinds]int // confirmed by a 200, and checked
	n         [counts]int
	latencies []time.Duration
	details   []string // of what must not be
}

// add adds another tally, but for its details.
func (t *tally) add(other tally) {
	for k, n := range other.revoked {
		t.revoked[k] += n
	}
	for i, n := range other.n {
		t.n[i] += n
	}
	t.latencies = append(t.latencies, other.latencies...)
}

func (t *tally) total() (n int) {
	for _, count := range t.revoked {
		n += count
	}
	return n
}

// wrong is how much was seen that must not be.
func (t *tally) wrong() int { return t.n[violations] + t.n[written] + t.n[refusedLive] }

// complain keeps the first few accounts of what must not be. The caller holds the lock.
func (c *checker) complain(format string, args ...any) {
	const most = 10
	if len(c.tally.details) < most {
		c.tally.details = append(c.tally.details, fmt.Sprintf(format, args...))
	}
}

// pick is an instance that nothing is done to, if there is one.
func (c *checker) pick() *instance {
	first := rand.IntN(len(c.fleet.instances))
	for i := range c.fleet.instances {
		r := c.fleet.instances[(first+i)%len(c.fleet.instances)]
		if _, calm := r.calm(); calm {
			return r
		}
	}
	return c.fleet.instances[first]
}

// probed are the instants after a revocation at which its credential is used on every instance: at once, when a delayed
// answer may have been overtaken, and when a lease that was good at the revocation has ended.
func (c *checker) probed() []time.Duration {
	return []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond, c.fleet.lease}
}

// work revokes one credential after the other until ctx ends. What has begun by then is finished.
func (c *checker) work(ctx context.Context) {
	for ctx.Err() == nil {
		c.revocation(context.WithoutCancel(ctx), kindOf(int(c.started.Add(1))))
	}
}

// life is the history of one credential, as far as its uses have to know it.
type life struct {
	*victim
	asked     atomic.Int64 // when its revocation was first sent, 0 before
	confirmed atomic.Int64 // when a 200 to it had arrived, 0 before
	by        string       // who confirmed it
}

func (c *checker) revocation(ctx context.Context, k kind) {
	v, err := c.make(ctx, k)
	if err != nil {
		c.mu.Lock()
		if c.scenario.strict {
			c.complain("a credential (%s) could not be made: %v", k, err)
		}
		c.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		return
	}
	l := &life{victim: v}
	// On a cold instance the first use comes while the revocation is under way: its look-up then races with it.
	instances := slices.Clone(c.fleet.instances)
	rand.Shuffle(len(instances), func(i, j int) { instances[i], instances[j] = instances[j], instances[i] })
	cold := 0
	if rand.IntN(100) < 40 {
		cold = 1 + rand.IntN(2)
	}
	var first sync.WaitGroup
	for _, r := range instances[cold:] {
		first.Go(func() { c.use(ctx, l, r) })
	}
	first.Wait()

	using, stop := context.WithCancel(ctx)
	var users sync.WaitGroup
	for i, r := range instances {
		wait := time.Duration(0)
		if i < cold {
			wait = rand.N(c.scenario.coldWindow)
		}
		users.Go(func() { c.keepUsing(using, l, r, wait) })
	}
	time.Sleep(rand.N(20 * time.Millisecond))
	var waiting []*held
	for _, r := range instances[:rand.IntN(len(instances)+1)] {
		if h := c.hold(l, r); h != nil {
			waiting = append(waiting, h)
		}
	}
	if c.revoke(ctx, l) {
		for _, h := range waiting {
			c.probing.Go(func() { c.release(ctx, h) })
		}
		for _, r := range c.fleet.instances {
			for _, after := range c.probed() {
				c.probing.Go(func() {
					time.Sleep(time.Duration(l.confirmed.Load()) + after - c.fleet.now())
					c.use(ctx, l, r)
					c.mu.Lock()
					c.tally.n[probes]++
					c.mu.Unlock()
				})
			}
		}
		c.mu.Lock()
		c.tally.revoked[k]++
		c.revoked = append(c.revoked, l)
		c.mu.Unlock()
	} else {
		for _, h := range waiting {
			h.drop()
		}
	}
	time.Sleep(rand.N(40 * time.Millisecond))
	stop()
	// What a stopped instance was sent, it answers in its own time.
	c.probing.Go(users.Wait)
}

// useAllAgain uses all that was revoked once more on each instance, when all faults are over. A database that was promoted meanwhile may
// have missed what was answered before.
func (c *checker) useAllAgain(ctx context.Context) {
	var using errgroup.Group
	using.SetLimit(16)
	for _, l := range c.revoked {
		for _, r := range c.fleet.instances {
			using.Go(func() error {
				c.use(ctx, l, r)
				return nil
			})
		}
	}
	_ = using.Wait()
}

// keepUsing uses a credential on an instance until ctx ends, beginning after a while.
func (c *checker) keepUsing(ctx context.Context, l *life, r *instance, wait time.Duration) {
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		c.use(context.WithoutCancel(ctx), l, r)
		wait = rand.N(2 * c.scenario.pace)
	}
}

// revoke sends the revocation to one instance after the other until its outcome is known. It reports whether that is a 200.
func (c *checker) revoke(ctx context.Context, l *life) bool {
	by := l.victim.by
	if l.kind == keyDeleted && rand.IntN(10) == 0 {
		by = l.bearer // a key may delete itself
	}
	unsure := false
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		r := c.fleet.instances[rand.IntN(len(c.fleet.instances))]
		before, calm := r.calm()
		l.asked.CompareAndSwap(0, int64(c.fleet.now()))
		a := r.call(ctx, l.method, l.target, by, l.body)
		after, _ := r.calm()
		calm = calm && before == after
		by = l.victim.by
		c.mu.Lock()
		switch {
		case a.status == http.StatusOK:
			l.by = fmt.Sprintf("instance %s (%s)", r.name, a.id)
			l.confirmed.Store(int64(a.arrived))
			if calm && l.kind != passwordChanged { // which mostly waits for its turn to hash
				c.tally.latencies = append(c.tally.latencies, a.arrived-a.sent)
				took := a.arrived - a.sent
				if took > c.fleet.lease+cmp.Or(c.scenario.grace, usualGrace) && !c.scenario.untimed && c.scenario.shortcoming == "" {
					c.complain("a revocation (%s) took %s, from %.3f on, though nothing was done to the %s that it was sent to",
						l.kind, took, a.sent.Seconds(), l.by)
				}
			}
			c.mu.Unlock()
			return true
		case a.status == http.StatusNotFound && unsure:
			c.tally.n[gone]++
			c.mu.Unlock()
			return false
		case a.status == 0, a.status == http.StatusServiceUnavailable,
			c.scenario.mayMissRows && a.status == http.StatusNotFound:
			unsure = true
			c.tally.n[unknown]++
			if calm && c.scenario.strict {
				c.complain("instance %s answered a revocation (%s) with %d %s %v, though nothing was done to it", r.name, l.kind, a.status, a.body, a.err)
			}
		default:
			c.complain("instance %s answered a revocation (%s) with %d: %s", r.name, l.kind, a.status, a.body)
		}
		c.mu.Unlock()
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.complain("a revocation (%s) had no outcome in two minutes", l.kind)
	return false
}

// use uses a credential on an instance and judges the answer.
func (c *checker) use(ctx context.Context, l *life, r *instance) {
	out := r.out.Load()
	before, calm := r.calm()
	a := r.call(ctx, http.MethodGet, l.path, l.bearer, "")
	after, _ := r.calm()
	calm = calm && before == after
	// If it was confirmed since, then after the request was sent.
	confirmed, asked := time.Duration(l.confirmed.Load()), time.Duration(l.asked.Load())
	revoked := confirmed != 0 && a.sent > confirmed
	live := asked == 0 || a.arrived < asked
	accepted, no, nothing := a.status == http.StatusOK, a.status == l.refused, a.status == 0 || a.status == http.StatusServiceUnavailable

	c.mu.Lock()
	defer c.mu.Unlock()
	if accepted && out%2 == 1 && out == r.out.Load() {
		r.acceptedOut.Add(1)
	}
	switch {
	case revoked && accepted:
		c.tally.n[violations]++
		c.complain("VIOLATION (%s): %s confirmed %s %s at %.6f; instance %s accepted %s, sent %.6f, answered %.6f",
			l.kind, l.by, l.method, l.target, confirmed.Seconds(), r.name, a.id, a.sent.Seconds(), a.arrived.Seconds())
	case revoked && (no || c.scenario.mayMissRows && (a.status == http.StatusUnauthorized || a.status == http.StatusNotFound)):
		c.tally.n[refused]++
	case revoked && nothing:
		c.tally.n[away]++
	case live && accepted:
		c.tally.n[acceptedLive]++
	case live && no:
		c.tally.n[refusedLive]++
		c.complain("instance %s refused a good credential (%s): %d %s, sent %.6f", r.name, l.kind, a.status, a.body, a.sent.Seconds())
	case live && nothing:
		c.tally.n[awayLive]++
		if calm && c.scenario.strict {
			c.complain("instance %s did not serve a good credential (%s), though nothing was done to it: %d %s %v", r.name, l.kind, a.status, a.body, a.err)
		}
	case accepted || no || nothing: // while the revocation was under way, either will do
	default:
		c.complain("instance %s answered a use (%s) with %d: %s", r.name, l.kind, a.status, a.body)
	}
}
