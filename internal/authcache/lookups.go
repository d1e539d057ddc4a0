package authcache

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

const (
	// lookupsAtOnce is how many connections of the pool are used to look credentials up: whatever strangers present, the rest is
	// for others. What is asked for while these are in use waits, and then goes together.
	lookupsAtOnce = 2
	// lookupBatch is how many credentials go together at most.
	lookupBatch = 256
	// lookupsMax bounds how many wait, lookupsPerNetwork how many of one network.
	lookupsMax        = 16_384
	lookupsPerNetwork = 4_096
)

// lookups are the credentials that requests wait for, by the networks that they come from. The networks take turns: a flood from one
// of them delays its own.
type lookups struct {
	mu      *sync.Mutex
	waiting map[netip.Prefix][]*lookupRequest
	turns   []netip.Prefix // of those that have something waiting
	count   int
	ready   chan struct{} // has room for one
}

// lookupRequest waits for one credential.
type lookupRequest struct {
	key  key
	gone atomic.Bool       // nobody waits any more
	done chan lookupResult // has room for one
}

// lookupResult is what came of a look-up.
type lookupResult struct {
	found store.Found
	err   error
	// known is what the instance knew when the look-up began.
	known *state
	// proven says that it was made under a heartbeat that was begun after it was asked for, with the lease held and nothing
	// applied since: whatever it says, or doesn't, was so.
	proven bool
}

func newLookups() lookups {
	return lookups{mu: new(sync.Mutex), waiting: map[netip.Prefix][]*lookupRequest{}, ready: make(chan struct{}, 1)}
}

// networkOf is the network that is taken for one client: what a provider gives to one household or machine, and a little more.
func networkOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // the address is not known
	}
	return prefix
}

// ask returns what a look-up gives that begins after the call. It returns store.ErrUnavailable where too many wait.
func (l *lookups) ask(ctx context.Context, k key, from netip.Addr) lookupResult {
	request := &lookupRequest{key: k, done: make(chan lookupResult, 1)}
	network := networkOf(from)
	l.mu.Lock()
	queue := l.waiting[network]
	if l.count >= lookupsMax || len(queue) >= lookupsPerNetwork {
		l.mu.Unlock()
		return lookupResult{err: fmt.Errorf("too many credentials wait to be looked up: %w", store.ErrUnavailable)}
	}
	if len(queue) == 0 {
		l.turns = append(l.turns, network)
	}
	l.waiting[network] = append(queue, request)
	l.count++
	l.mu.Unlock()
	l.wake()
	select {
	case got := <-request.done:
		return got
	case <-ctx.Done():
		request.gone.Store(true)
		return lookupResult{err: fmt.Errorf("looking a credential up: %w: %w", store.ErrUnavailable, ctx.Err())}
	}
}

func (l *lookups) wake() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// take returns up to most of those that wait, one of each network in turn.
func (l *lookups) take(most int) (taken []*lookupRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(taken) < most && len(l.turns) > 0 {
		network := l.turns[0]
		queue := l.waiting[network]
		request := queue[0]
		l.turns = l.turns[1:]
		if len(queue) > 1 {
			l.waiting[network] = queue[1:]
			l.turns = append(l.turns, network)
		} else {
			delete(l.waiting, network)
		}
		l.count--
		if !request.gone.Load() {
			taken = append(taken, request)
		}
	}
	if len(l.turns) > 0 {
		l.wake() // there is work for another one
	}
	return taken
}

// lookupOf names what requests ask for.
func lookupOf(requests []*lookupRequest) (l store.Lookup) {
	seen := make(map[key]struct{}, len(requests))
	for _, request := range requests {
		if _, is := seen[request.key]; !is {
			seen[request.key] = struct{}{}
			request.key.addTo(&l)
		}
	}
	return l
}

// runLookups looks up what is waited for until ctx ends.
func (r *Cache) runLookups(ctx context.Context) error {
	for {
		select {
		case <-r.lookups.ready:
		case <-ctx.Done():
			for _, request := range r.lookups.take(lookupsMax) {
				request.done <- lookupResult{err: fmt.Errorf("the server has stopped: %w", store.ErrUnavailable)}
			}
			return nil
		}
		requests := r.lookups.take(lookupBatch)
		if len(requests) == 0 {
			continue
		}
		got := r.lookUp(ctx, lookupOf(requests))
		for _, request := range requests {
			request.done <- got
		}
	}
}

// lookUp reads credentials by the pool, and remembers what it may.
func (r *Cache) lookUp(ctx context.Context, l store.Lookup) (got lookupResult) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	got.known = r.state.Load()
	at := r.clock()
	got.found, got.err = r.lookup(ctx, l, got.known.applied, store.HeadFirst)
	if got.err == nil && r.lease > 0 {
		r.storeIfCurrent(got.known, got.found, at)
	}
	return got
}

// usable reports whether what was found may be trusted: a lease is held, which proves that the database is the primary, and nothing
// has been applied since that it doesn't know. SECURITY: the lease alone proves nothing. It may have been renewed by another
// server while this one, which had been failed over, was still answering.
func (got lookupResult) usable(r *Cache) bool {
	if got.proven {
		return true
	}
	k := r.state.Load()
	_, held := k.leaseHeldAt(r.clock())
	return held && k.covers(got.known, got.found.Head)
}

// covers reports whether nothing has been applied to k that a look-up doesn't know of, which began when the instance knew before, and
// found a head. A head of before the database was put back says nothing, though it may be the head again.
func (k *state) covers(before *state, head changelog.Position) bool {
	return k.version == before.version || k.past == before.past && k.applied == head
}

// storeIfCurrent remembers what was found at a time of the instance's clock, when it knew k, unless changes have been applied since: one of them
// may have made it stale, and will not be applied again.
func (r *Cache) storeIfCurrent(k *state, found store.Found, at time.Duration) {
	r.applying.RLock()
	defer r.applying.RUnlock()
	if r.state.Load().covers(k, found.Head) {
		r.remember(found, at)
	}
}
