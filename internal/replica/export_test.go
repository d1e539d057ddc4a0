package replica

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// LogPoll is how often the log is read where no notification comes.
const LogPoll = logPoll

// UsesMax bounds how many uses are kept.
const UsesMax = usesMax

// BootTime is the clock of a lease.
func BootTime() time.Duration { return bootTime() }

// SetClock gives the replica another clock. To be called before Run.
func (r *Replica) SetClock(clock func() time.Duration) { r.clock = clock }

// ID is what the replica is registered as.
func (r *Replica) ID() uuid.UUID { return r.id }

// Renew asks for a round.
func (r *Replica) Renew(ctx context.Context) error { return r.renew(ctx) }

// Flush writes down what is known of uses.
func (r *Replica) Flush(ctx context.Context) { r.flush(ctx) }

// Uses returns how many keys' uses are kept.
func (r *Replica) Uses() int64 { return r.uses.count.Load() }

// Use notes a use of a key that is not remembered.
func (r *Replica) Use(id uuid.UUID, at time.Time) { r.uses.add(id, at) }

// HeldReading is AccessKeyByHash with a stop between the reading of the database and what is done with it.
type HeldReading struct {
	Before  bool          // the stop is before the reading, not after it
	Asked   atomic.Int64  // how many requests have not found it in memory
	Reads   atomic.Int64  // how often the database was read
	Read    chan struct{} // gets a value at the stop
	Release chan struct{} // closed by the test
}

// NewHeldReading makes one.
func NewHeldReading() *HeldReading {
	return &HeldReading{Read: make(chan struct{}, 1), Release: make(chan struct{})}
}

// AccessKeyByHash is the replica's, where the first reading of the database is held.
func (h *HeldReading) AccessKeyByHash(ctx context.Context, r *Replica, hash store.TokenHash) (AccessKeyCredential, error) {
	q := r.accessKeyReading(hash)
	recall, read := q.recall, q.read
	q.recall = func(r *Replica, k key) (AccessKeyCredential, bool) {
		c, ok := recall(r, k)
		if !ok {
			h.Asked.Add(1)
		}
		return c, ok
	}
	q.read = func(ctx context.Context, known store.Position) (AccessKeyCredential, store.Moment, error) {
		stop := func() {
			h.Read <- struct{}{}
			<-h.Release
		}
		first := h.Reads.Add(1) == 1
		if first && h.Before {
			stop()
		}
		c, moment, err := read(ctx, known)
		if first && !h.Before {
			stop()
		}
		return c, moment, err
	}
	return q.do(ctx, r)
}

// AccessKeyByHashAfter is AccessKeyByHash with something that happens once memory has been looked into for the first time.
func (r *Replica) AccessKeyByHashAfter(ctx context.Context, hash store.TokenHash, happens func()) (AccessKeyCredential, error) {
	q := r.accessKeyReading(hash)
	recall := q.recall
	q.recall = func(r *Replica, k key) (AccessKeyCredential, bool) {
		c, ok := recall(r, k)
		if happens != nil {
			happens()
			happens = nil
		}
		return c, ok
	}
	return q.do(ctx, r)
}

// Census is a replica's watch over the others.
type Census struct{ census }

// Sweep removes those that have died.
func (c *Census) Sweep(ctx context.Context, feed *store.Feed, self uuid.UUID) error {
	return c.sweep(ctx, feed, self)
}
