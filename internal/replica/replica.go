// Package replica is what one process of the service remembers of the database: the rows that verification reads, under a
// lease that says for how long it may go by them. docs/revocation.md has the protocol and its proof.
package replica

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"accesskeys/internal/rules"
	"accesskeys/internal/store"
)

// The bounds of Config.Lease. A revocation may have to wait for as long as a lease, with a client waiting for its answer.
const (
	MinLease = 100 * time.Millisecond
	MaxLease = 20 * time.Second
)

const (
	// logPoll is how often the log is read where no notification comes.
	logPoll = 100 * time.Millisecond
	// roundTimeout bounds a round: a database that takes longer is one that is away.
	roundTimeout = 2 * time.Second
	// retryPause is the least time between two attempts to reach a database that is away.
	retryPause = 50 * time.Millisecond
	// leaveTimeout bounds the good-bye.
	leaveTimeout = time.Second
)

// Config is what a Replica is made of.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// Lease is how long the replica may answer from memory after its last word from the primary; from MinLease to MaxLease,
	// or 0: then it remembers nothing and asks the database each time.
	Lease time.Duration
	// CacheBytes bounds the memory for rows.
	CacheBytes uint64
}

// Replica answers what the database would, from memory where it may. It is safe for concurrent use. Until Run is called it has
// no lease.
type Replica struct {
	store *store.Store
	log   *slog.Logger
	lease time.Duration
	id    uuid.UUID
	beats int64                // heartbeats tried; of runLease alone
	clock func() time.Duration // bootTime
	uses  uses

	rows    *otter.Cache[key, any]
	flights singleflight.Group

	// known is what the replica knows of the log, and until when it may go by it. It is replaced, under applying.
	known atomic.Pointer[known]
	// applying is held for writing while changes are applied, and for reading while a row that was read is remembered.
	applying sync.RWMutex

	asking    sync.Mutex
	asked     *renewal           // for the next round, which has not begun
	wanted    bool               // somebody waits for it
	interrupt context.CancelFunc // ends the pause between rounds; nil where there is none

	hits, misses, evictions atomic.Int64
}

// known is a state of a replica's knowledge. It is not changed once it is made.
type known struct {
	version uint64 // counts the states whose position differs
	applied store.Position
	began   time.Duration // of the lease, in boot time
	ends    time.Duration // of the lease, in boot time; 0 for none
	now     time.Time     // the database's time at read, or later
	read    time.Duration // when the log was read last, in boot time
}

// renewal is a round that somebody waits for.
type renewal struct {
	done chan struct{}
	err  error // to be read once done is closed
}

func newRenewal() *renewal { return &renewal{done: make(chan struct{})} }

// New makes a Replica. It returns an error where the configuration is out of bounds.
func New(cfg Config) (*Replica, error) {
	if cfg.Lease != 0 && (cfg.Lease < MinLease || cfg.Lease > MaxLease) {
		return nil, fmt.Errorf("a lease is 0, or from %s to %s", MinLease, MaxLease)
	}
	r := &Replica{
		store: cfg.Store, log: cfg.Log, lease: cfg.Lease, id: uuid.New(), clock: bootTime,
		uses: newUses(), asked: newRenewal(),
	}
	r.known.Store(&known{})
	if r.lease > 0 {
		rows, err := otter.New(&otter.Options[key, any]{
			MaximumWeight: max(cfg.CacheBytes, 1<<20),
			Weigher:       weigh,
			OnDeletion: func(e otter.DeletionEvent[key, any]) {
				if e.WasEvicted() {
					r.evictions.Add(1)
				}
			},
		})
		if err != nil {
			return nil, fmt.Errorf("making the cache: %w", err)
		}
		r.rows = rows
	}
	return r, nil
}

// Run keeps the lease and writes down when keys were used, until ctx ends. A database that is away is no reason to return.
func (r *Replica) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.runUses(ctx) })
	if r.lease > 0 {
		group.Go(func() error { return r.runLease(ctx) })
		defer r.rows.StopAllGoroutines()
	}
	return group.Wait()
}

// Ready returns nil where the replica may answer: it has a lease, or needs none.
func (r *Replica) Ready(ctx context.Context) error {
	if r.lease == 0 {
		return nil
	}
	if _, held := r.known.Load().at(r.clock()); held {
		return nil
	}
	return r.renew(ctx)
}

// at returns the database's time at a reading of the replica's clock, and whether the lease is held then. The time is never behind
// the database's by more than its clock and ours drift apart in a lease.
func (k *known) at(clock time.Duration) (time.Time, bool) {
	return k.now.Add(clock - k.read), clock < k.ends || !rules.Lease
}
