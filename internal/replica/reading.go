package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"accesskeys/internal/rules"
	"accesskeys/internal/store"
)

// reading is how one kind of credential's rows are had.
type reading[T any] struct {
	key key
	// recall puts the rows together from memory.
	recall func(*Replica, key) (T, bool)
	// read reads them, from a database whose log holds a position.
	read func(context.Context, store.Position) (T, store.Moment, error)
	// remember puts them into memory.
	remember func(T)
	// at sets the database's time.
	at func(*T, time.Time)
}

// inMemory returns rows from memory with the database's time, where the replica may go by them: the lease is held, and nothing
// has been applied since before the look-up. SECURITY: both are tested after it. A row that is found while no lease is held
// may have been revoked long ago; that a round then applies the revocation, and renews the lease, doesn't make it good.
func inMemory[T any](r *Replica, k key, recall func(*Replica, key) (T, bool)) (rows T, now time.Time, ok bool) {
	before := r.known.Load()
	if rows, ok = recall(r, k); !ok {
		return rows, now, false
	}
	after := r.known.Load()
	now, held := after.at(r.clock())
	if !held || after.version != before.version {
		return rows, now, false
	}
	r.hits.Add(1)
	return rows, now, true
}

// attempts is how often a request reads the database while changes are being applied, before it keeps them waiting.
const attempts = 3

// do returns the rows as the database has them at some moment after the call. It returns store.ErrNotFound, or
// store.ErrUnavailable where it can't tell.
func (q reading[T]) do(ctx context.Context, r *Replica) (rows T, err error) {
	if r.lease == 0 {
		rows, _, err = q.read(ctx, store.Position{})
		return rows, err
	}
	for attempt := 0; ctx.Err() == nil; {
		if _, held := r.known.Load().at(r.clock()); !held {
			if err := r.renew(ctx); err != nil {
				return rows, err
			}
			continue
		}
		rows, now, ok := inMemory(r, q.key, q.recall)
		if ok {
			q.at(&rows, now)
			return rows, nil
		}
		var good bool
		if attempt++; attempt <= attempts {
			rows, good, err = q.fetch(ctx, r)
		} else {
			rows, good, err = q.fetchAlone(ctx, r)
		}
		switch {
		case errors.Is(err, store.ErrOtherLog):
			if err := r.renew(ctx); err != nil { // which finds out what there is
				return rows, err
			}
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return rows, err
		case good:
			// The time of this caller's answer, not of a reading that it may have joined.
			now, _ := r.known.Load().at(r.clock())
			q.at(&rows, now)
			return rows, err
		}
	}
	return rows, fmt.Errorf("asking the database: %w: %w", store.ErrUnavailable, ctx.Err())
}

// fetched is what a reading of the database gave.
type fetched[T any] struct {
	rows T
	err  error
	// known is what the replica knew when the reading began, and head what the database's log then held.
	known *known
	head  store.Position
}

// good reports whether the reading may be gone by: a lease is held, which proves that the database is the primary, and nothing
// has been applied since that it doesn't know. SECURITY: the lease alone proves nothing. It may have been renewed by another
// server while this one, which had been failed over, was still reading.
func (f fetched[T]) good(r *Replica) bool {
	k := r.known.Load()
	_, held := k.at(r.clock())
	return held && (k.version == f.known.version || k.applied == f.head)
}

// fetch reads the database, once for all who ask for the same thing at the same time. It reports whether what was read is good
// for this caller: also not from before it asked, which a reading that was under way already may be. What is new is not in
// the log, so that only who began a reading may find that there is nothing.
func (q reading[T]) fetch(ctx context.Context, r *Replica) (rows T, good bool, err error) {
	asked, began := r.known.Load().version, false
	// One caller's going away must not fail the others.
	reading := context.WithoutCancel(ctx)
	flight := r.flights.DoChan(string(append(q.key.sum[:], byte(q.key.kind))), func() (any, error) {
		ctx, cancel := context.WithTimeout(reading, roundTimeout)
		defer cancel()
		r.misses.Add(1)
		began = true
		k := r.known.Load()
		rows, moment, err := q.read(ctx, k.applied)
		if err == nil {
			r.fill(k, moment.Head, func() { q.remember(rows) })
		}
		return fetched[T]{rows: rows, err: err, known: k, head: moment.Head}, nil
	})
	select {
	case done := <-flight:
		got, ok := done.Val.(fetched[T])
		if !ok {
			return rows, false, fmt.Errorf("a reading was broken off: %w", store.ErrUnavailable)
		}
		good = got.known.version >= asked && (began || got.err == nil) && got.good(r)
		return got.rows, good, got.err
	case <-ctx.Done():
		return rows, false, fmt.Errorf("waiting for a reading: %w: %w", store.ErrUnavailable, ctx.Err())
	}
}

// fetchAlone reads the database while no changes are applied.
func (q reading[T]) fetchAlone(ctx context.Context, r *Replica) (rows T, good bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	r.misses.Add(1)
	r.applying.RLock()
	defer r.applying.RUnlock()
	got := fetched[T]{known: r.known.Load()}
	rows, _, err = q.read(ctx, got.known.applied)
	return rows, got.good(r), err
}

// fill remembers what was read when the replica knew k and the log's newest position was head, unless changes have been
// applied since: one of them may have made it stale, and will not be applied again.
func (r *Replica) fill(k *known, head store.Position, remember func()) {
	r.applying.RLock()
	defer r.applying.RUnlock()
	now := r.known.Load()
	if now.version == k.version || now.applied == head || !rules.Fill {
		remember()
	}
}
