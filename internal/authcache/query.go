package authcache

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// query is how one kind of credential is had.
type query[T any] struct {
	key key
	// cached puts the rows together from memory, and says when the oldest of them was checked.
	cached func(*Cache, key) (T, time.Duration, bool)
	// pick takes it out of what was found.
	pick func(store.Found, key) (T, bool)
	// setNow sets the database's time.
	setNow func(*T, time.Time)
}

// inMemory returns rows from memory with the database's time, where the instance may trust them: the lease is held, nothing
// has been applied since before the look-up, and none of them is older than it may become. SECURITY: all of this is tested after it. A
// row that is found while no lease is held may have been revoked long ago; that a round then applies the revocation, and renews
// the lease, doesn't make it valid. Nor does it wait for the refresh, which reads old rows again and forgets them, and may be held up.
func inMemory[T any](r *Cache, k key, recall func(*Cache, key) (T, time.Duration, bool)) (rows T, now time.Time, ok bool) {
	before := r.state.Load()
	rows, oldest, ok := recall(r, k)
	if !ok {
		return rows, now, false
	}
	after, clock := r.state.Load(), r.clock()
	now, held := after.leaseHeldAt(clock)
	if !held || after.version != before.version || clock-oldest >= r.maxAge {
		return rows, now, false
	}
	r.hits.Add(1)
	return rows, now, true
}

// attempts is how often a request has the pool look while changes are being applied, before it waits for a look-up that none disturbs.
const attempts = 3

// get returns the rows as the database has them at some moment after the call, for a client at an address. It returns
// store.ErrNotFound, which is proven, or store.ErrUnavailable where it can't tell.
func (q query[T]) get(ctx context.Context, r *Cache, from netip.Addr) (rows T, err error) {
	if r.lease == 0 {
		return q.uncached(ctx, r, from)
	}
	for attempt := 0; ctx.Err() == nil; {
		if _, held := r.state.Load().leaseHeldAt(r.clock()); !held {
			if err := r.requestRenewal(ctx); err != nil {
				return rows, err
			}
			continue
		}
		rows, now, ok := inMemory(r, q.key, q.cached)
		if ok {
			q.setNow(&rows, now)
			return rows, nil
		}
		r.misses.Add(1)
		got := r.lookups.ask(ctx, q.key, from)
		if errors.Is(got.err, changelog.ErrOtherLog) {
			if err := r.requestRenewal(ctx); err != nil { // which finds out what there is
				return rows, err
			}
			if attempt++; attempt >= attempts { // the pool reaches another database than the lease is from
				return q.agreed(ctx, r, from)
			}
			continue
		}
		if got.err != nil {
			return rows, got.err
		}
		rows, found := q.pick(got.found, q.key)
		if found && got.usable(r) {
			now, _ := r.state.Load().leaseHeldAt(r.clock())
			q.setNow(&rows, now)
			return rows, nil
		}
		if !found {
			return q.proven(ctx, r, from)
		}
		if attempt++; attempt >= attempts {
			return q.agreed(ctx, r, from)
		}
	}
	return rows, fmt.Errorf("looking a credential up: %w: %w", store.ErrUnavailable, ctx.Err())
}

// proven returns the rows as the primary has them at some moment after the call, by a heartbeat that was committed since. It returns
// store.ErrNotFound and store.ErrUnavailable. Without a lease there is no such proof, and it is as do.
func (q query[T]) proven(ctx context.Context, r *Cache, from netip.Addr) (rows T, err error) {
	if r.lease == 0 {
		return q.uncached(ctx, r, from)
	}
	got := r.prove(ctx, q.key)
	if got.err != nil {
		return rows, got.err
	}
	rows, found := q.pick(got.found, q.key)
	if !found {
		return rows, store.ErrNotFound
	}
	q.setNow(&rows, got.found.Now)
	return rows, nil
}

// agreed is proven where the pool has found the rows, or reaches another database than the lease is from. That they are not found is no
// answer then: which of the two is right nobody here can tell.
func (q query[T]) agreed(ctx context.Context, r *Cache, from netip.Addr) (rows T, err error) {
	rows, err = q.proven(ctx, r, from)
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("%w: its connections lead to databases that disagree", store.ErrUnavailable)
	}
	return rows, err
}

// uncached asks the database, which no lease says anything about.
func (q query[T]) uncached(ctx context.Context, r *Cache, from netip.Addr) (rows T, err error) {
	if trouble := r.trouble.Load(); trouble != nil && trouble.outdated {
		return rows, changelog.ErrOutdated
	}
	got := r.lookups.ask(ctx, q.key, from)
	if got.err != nil {
		return rows, got.err
	}
	rows, found := q.pick(got.found, q.key)
	if !found {
		return rows, store.ErrNotFound
	}
	return rows, nil
}
