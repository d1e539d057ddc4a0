// Package lastused gathers when access keys were last used, and writes it down now and then.
package lastused

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// Apart is how long after one use of a key the next is worth noting. With the time between two writes, and the time that a write takes, it
// keeps what is written within a minute of the truth.
const Apart = 25 * time.Second

const (
	// flushEvery is how often uses are written down.
	flushEvery = 20 * time.Second
	// batch is how many keys' uses a statement writes down at most. As many are not kept waiting: many short statements get in the way of
	// others less than a long one.
	batch = 2_000
	// most bounds how many are kept while the database is unavailable or slow.
	most = 500_000
	// flushTimeout bounds the writing, which the end of the program waits for.
	flushTimeout = 10 * time.Second

	shards = 32
)

// Buffer keeps uses until they are written. A request never waits for a write, and fails for none. It is safe for concurrent use.
type Buffer struct {
	write  func(context.Context, []store.Use) error
	log    *slog.Logger
	every  time.Duration // flushEvery
	shards [shards]shard
	count  atomic.Int64
	full   chan struct{} // has room for one
}

type shard struct {
	sync.Mutex
	last map[uuid.UUID]time.Time
}

// New makes a Buffer that writes by the store's RecordUses.
func New(s *store.Store, log *slog.Logger) *Buffer {
	b := &Buffer{write: s.RecordUses, log: log, every: flushEvery, full: make(chan struct{}, 1)}
	for i := range b.shards {
		b.shards[i].last = map[uuid.UUID]time.Time{}
	}
	return b
}

// Note notes that a key was used. Where too many are kept already it does nothing: keys that go on being used are noted again.
func (b *Buffer) Note(id uuid.UUID, at time.Time) {
	if b.count.Load() >= most {
		return
	}
	s := &b.shards[id[15]%shards]
	s.Lock()
	before, known := s.last[id]
	if !known || at.After(before) {
		s.last[id] = at
	}
	s.Unlock()
	if !known && b.count.Add(1)%batch == 0 {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
}

// take empties the buffer.
func (b *Buffer) take() []store.Use {
	var all []store.Use
	for i := range b.shards {
		s := &b.shards[i]
		s.Lock()
		last := s.last
		s.last = make(map[uuid.UUID]time.Time, len(last))
		s.Unlock()
		b.count.Add(-int64(len(last)))
		for id, at := range last {
			all = append(all, store.Use{AccessKeyID: id, TmLastUsed: at})
		}
	}
	return all
}

// Run writes uses down until ctx ends, and then what is left. Its error is always nil: what can't be written is kept, and tried again.
func (b *Buffer) Run(ctx context.Context) error {
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.full:
		case <-ctx.Done():
			b.Flush(context.WithoutCancel(ctx))
			return nil
		}
		b.Flush(ctx)
	}
}

// Flush writes down what is known now.
func (b *Buffer) Flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	var failed error
	for uses := range slices.Chunk(b.take(), batch) {
		if failed == nil {
			failed = b.write(ctx, uses)
		}
		if failed != nil {
			for _, use := range uses {
				b.Note(use.AccessKeyID, use.TmLastUsed)
			}
		}
	}
	if failed != nil {
		b.log.Warn("flushing last-used times failed, will retry", "error", failed.Error())
	}
}
