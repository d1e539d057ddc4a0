package authcache

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

const (
	// usesFlush is how often uses are written down, and usesApart how long after one use of a key the next is noted. Together,
	// and with the time that a write takes, they keep what is written within a minute of the truth.
	usesFlush = 20 * time.Second
	usesApart = 25 * time.Second
	// usesBatch is how many keys' uses a statement writes down at most. As many are not kept waiting: many short statements
	// get in the way of others less than a long one.
	usesBatch = 2_000
	// usesMax bounds how many are kept while the database is away or slow.
	usesMax = 500_000
	// usesTimeout bounds the writing, which the end of the program waits for.
	usesTimeout = 10 * time.Second

	usesShards = 32
)

// uses gathers when keys were last used. A request never waits for a write, and fails for none.
type uses struct {
	shards *[usesShards]usesShard
	count  *atomic.Int64
	full   chan struct{} // has room for one
}

type usesShard struct {
	sync.Mutex
	last map[uuid.UUID]time.Time
}

func newUses() uses {
	u := uses{shards: new([usesShards]usesShard), count: new(atomic.Int64), full: make(chan struct{}, 1)}
	for i := range u.shards {
		u.shards[i].last = map[uuid.UUID]time.Time{}
	}
	return u
}

// Used notes that a key has just been accepted.
func (r *Cache) Used(c AccessKeyCredential) {
	if c.noted == nil {
		r.uses.add(c.ID, c.Now)
		return
	}
	now, before := c.Now.UnixMicro(), c.noted.Load()
	if now-before < usesApart.Microseconds() || !c.noted.CompareAndSwap(before, now) {
		return
	}
	r.uses.add(c.ID, c.Now)
}

func (u uses) add(id uuid.UUID, at time.Time) {
	if u.count.Load() >= usesMax {
		return // keys that go on being used are noted again
	}
	shard := &u.shards[id[15]%usesShards]
	shard.Lock()
	before, known := shard.last[id]
	if !known || at.After(before) {
		shard.last[id] = at
	}
	shard.Unlock()
	if !known && u.count.Add(1)%usesBatch == 0 {
		select {
		case u.full <- struct{}{}:
		default:
		}
	}
}

// take empties it.
func (u uses) take() []store.Use {
	var all []store.Use
	for i := range u.shards {
		shard := &u.shards[i]
		shard.Lock()
		last := shard.last
		shard.last = make(map[uuid.UUID]time.Time, len(last))
		shard.Unlock()
		u.count.Add(-int64(len(last)))
		for id, at := range last {
			all = append(all, store.Use{AccessKeyID: id, TmLastUsed: at})
		}
	}
	return all
}

// runUses writes uses down until ctx ends, and then what is left.
func (r *Cache) runUses(ctx context.Context) error {
	tick := time.NewTicker(r.flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.uses.full:
		case <-ctx.Done():
			r.flush(context.WithoutCancel(ctx))
			return nil
		}
		r.flush(ctx)
	}
}

func (r *Cache) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, usesTimeout)
	defer cancel()
	var failed error
	for batch := range slices.Chunk(r.uses.take(), usesBatch) {
		if failed == nil {
			failed = r.store.RecordUses(ctx, batch)
		}
		if failed != nil {
			for _, use := range batch {
				r.uses.add(use.AccessKeyID, use.TmLastUsed)
			}
		}
	}
	if failed != nil {
		r.log.Warn("flushing last-used times failed, will retry", "error", failed.Error())
	}
}
