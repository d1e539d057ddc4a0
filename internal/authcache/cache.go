// Package authcache is what one instance of the service remembers of the database: the rows that verification reads, under a
// lease that says for how long it may trust them. docs/revocation.md has the protocol and its proof.
package authcache

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

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// The bounds of Config.Lease. A revocation may have to wait for as long as a lease, with a client waiting for its answer.
const (
	MinLease = 100 * time.Millisecond
	MaxLease = 20 * time.Second
)

// The bounds of Config.MaxAge, and what it usually is.
const (
	MinMaxAge     = time.Second
	MaxMaxAge     = 24 * time.Hour
	DefaultMaxAge = 10 * time.Minute
)

const (
	// logPoll is how often the log is read where no notification comes.
	logPoll = 100 * time.Millisecond
	// roundTimeout bounds a round, and any other reading: a database that takes longer is unavailable.
	roundTimeout = 2 * time.Second
	// retryPause is the least time between two attempts to reach a database that is unavailable.
	retryPause = 50 * time.Millisecond
	// outdatedPause is that time where only a newer program can do better.
	outdatedPause = time.Second
	// leaveTimeout bounds the good-bye.
	leaveTimeout = time.Second
)

// Config is what a Cache is made of.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// Lease is how long the instance may answer from memory after its last word from the primary; from MinLease to MaxLease,
	// or 0: then it remembers nothing and asks the database each time.
	Lease time.Duration
	// MaxAge is how old a row in memory may become, whatever the log says, before it is read again: from MinMaxAge to MaxMaxAge;
	// 0 stands for DefaultMaxAge.
	MaxAge time.Duration
	// CacheBytes bounds the memory for rows.
	CacheBytes uint64
}

// Cache answers what the database would, from memory where it may. It is safe for concurrent use. Until Run is called it has
// no lease.
type Cache struct {
	store  *store.Store
	log    *slog.Logger
	lease  time.Duration
	maxAge time.Duration
	clock  func() time.Duration                                                                      // bootTime
	lookup func(context.Context, store.Lookup, changelog.Position, store.Order) (store.Found, error) // the Store's

	rows    *otter.Cache[key, any]
	lookups lookups
	proofs  proofs

	// Of runLease alone.
	beats     int64 // heartbeats tried
	confirmed int64 // the newest that was committed
	epoch     string
	instances int           // in the list, as far as is known
	swept     time.Duration // when that was looked at last, in boot time

	id atomic.Pointer[uuid.UUID] // what the instance is registered as

	// state is what the instance knows of the log, and until when it may trust it. It is replaced, under applying.
	state atomic.Pointer[state]
	// applying is held for writing while changes are applied, and for reading while a row that was read is remembered.
	applying sync.RWMutex

	asking    sync.Mutex
	requested *renewal           // for the next round, which has not begun
	wanted    bool               // somebody waits for it
	interrupt context.CancelFunc // ends the pause between rounds; nil where there is none

	trouble atomic.Pointer[TroubleError]
	holder  atomic.Pointer[changelog.Holder]

	hits, misses, evictions   atomic.Int64
	unlogged, aged, lostCount atomic.Int64
}

// renewal is a round that somebody waits for.
type renewal struct {
	done chan struct{}
	err  error // to be read once done is closed
}

func newRenewal() *renewal { return &renewal{done: make(chan struct{})} }

// New makes a Cache. It returns an error where the configuration is out of bounds.
func New(cfg Config) (*Cache, error) {
	if cfg.Lease != 0 && (cfg.Lease < MinLease || cfg.Lease > MaxLease) {
		return nil, fmt.Errorf("a lease is 0, or from %s to %s", MinLease, MaxLease)
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	if cfg.MaxAge < MinMaxAge || cfg.MaxAge > MaxMaxAge {
		return nil, fmt.Errorf("the age of a row is from %s to %s", MinMaxAge, MaxMaxAge)
	}
	r := &Cache{
		store: cfg.Store, log: cfg.Log, lease: cfg.Lease, maxAge: cfg.MaxAge, clock: bootTime, lookup: cfg.Store.Lookup,
		requested: newRenewal(), lookups: newLookups(),
	}
	r.newID()
	r.state.Store(&state{})
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

func (r *Cache) newID() {
	id := uuid.New()
	r.id.Store(&id)
}

// Run keeps the lease and reads what is asked for, until ctx ends. A database that is
// unavailable is no reason to return.
func (r *Cache) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.runInspections(ctx) })
	for range lookupsAtOnce {
		group.Go(func() error { return r.runLookups(ctx) })
	}
	if r.lease > 0 {
		group.Go(func() error { return r.runLease(ctx) })
		group.Go(func() error { return r.runRefresh(ctx) })
		defer r.rows.StopAllGoroutines()
	}
	return group.Wait()
}

// Ready returns nil where the instance may answer: it has a lease, or needs none, and nothing is wrong with the database that
// somebody should know of. It returns a *TroubleError, or store.ErrUnavailable.
func (r *Cache) Ready(ctx context.Context) error {
	if trouble := r.trouble.Load(); trouble != nil {
		return trouble
	}
	if r.lease == 0 { // a database that only reads is not the one that revocations are written to
		_, err := r.store.Lookup(ctx, store.Lookup{}, changelog.Position{}, store.HeadFirst)
		return err
	}
	if _, held := r.state.Load().leaseHeldAt(r.clock()); held {
		return nil
	}
	return r.requestRenewal(ctx)
}

// Refresh returns once everything that was committed before the call has been applied, so that what is verified from then on is no
// older.
func (r *Cache) Refresh(ctx context.Context) error {
	if r.lease == 0 {
		return nil
	}
	return r.requestRenewal(ctx)
}
