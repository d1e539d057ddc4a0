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

// renew asks for a round that begins now, and returns its error.
func (r *Replica) renew(ctx context.Context) error {
	r.asking.Lock()
	asked := r.asked
	r.wanted = true
	if r.interrupt != nil {
		r.interrupt()
	}
	r.asking.Unlock()
	select {
	case <-asked.done:
		return asked.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for a lease: %w: %w", store.ErrUnavailable, ctx.Err())
	}
}

// runLease keeps a connection to the log, and the lease over it.
func (r *Replica) runLease(ctx context.Context) error {
	var failing bool
	held := func() {
		if failing {
			r.log.Info("the lease is held again")
		}
		failing = false
	}
	for {
		failure := r.follow(ctx, held)
		if ctx.Err() != nil {
			break // which is what it was stopped by
		}
		if !failing {
			r.log.Warn("lost touch with the log of changes; without a lease no credential is accepted", "error", failure.Error())
		}
		failing = true
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
	// Nobody who still asks is left waiting.
	r.answer(r.takeAsked(), fmt.Errorf("the replica has stopped: %w", store.ErrUnavailable))
	return nil //nolint:nilerr // being stopped is no failure
}

// follow connects and goes round until something fails. It calls held after each round that has renewed the lease.
func (r *Replica) follow(ctx context.Context, held func()) (err error) {
	asked := r.takeAsked()
	defer func() { r.answer(asked, err) }()
	connecting, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	feed, err := r.store.OpenFeed(connecting)
	if err != nil {
		return err
	}
	defer feed.Close()
	defer func() {
		if ctx.Err() != nil {
			r.leave(feed)
		}
	}()
	var others census
	for {
		again, err := r.round(ctx, feed, &others)
		if err != nil {
			return err
		}
		held()
		r.answer(asked, nil)
		asked = nil
		if again && ctx.Err() == nil {
			asked = r.takeAsked()
			continue
		}
		if asked, err = r.idle(ctx, feed); err != nil {
			return err
		}
	}
}

// idle returns when the next round is due, with those who asked for it: for its time, because something is in the log, or
// because somebody waits.
func (r *Replica) idle(ctx context.Context, feed *store.Feed) (*renewal, error) {
	for {
		err := r.pause(ctx, feed)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		before := r.known.Load().applied
		news, err := r.read(ctx, feed)
		if err != nil {
			return nil, err
		}
		if news.Head != before || r.isWanted() || r.clock()-r.known.Load().began > r.lease/4 {
			return r.takeAsked(), nil
		}
	}
}

// pause returns on a notification, when somebody asks for a round, or when it is time to look.
func (r *Replica) pause(ctx context.Context, feed *store.Feed) error {
	ctx, cancel := context.WithTimeout(ctx, min(logPoll, r.lease/4))
	defer cancel()
	r.asking.Lock()
	r.interrupt = cancel
	if r.wanted {
		cancel()
	}
	r.asking.Unlock()
	err := feed.Wait(ctx)
	r.asking.Lock()
	r.interrupt = nil
	r.asking.Unlock()
	return err
}

func (r *Replica) isWanted() bool {
	r.asking.Lock()
	defer r.asking.Unlock()
	return r.wanted
}

// takeAsked returns those who wait for the round that now begins; who comes from here on waits for the next.
func (r *Replica) takeAsked() *renewal {
	r.asking.Lock()
	defer r.asking.Unlock()
	asked := r.asked
	r.asked, r.wanted = newRenewal(), false
	return asked
}

func (*Replica) answer(asked *renewal, err error) {
	if asked != nil {
		asked.err = err
		close(asked.done)
	}
}

// round applies the log, commits a heartbeat that acknowledges it, applies what has come since, and so has a lease that began
// before the heartbeat was sent. The order of these steps is what the proof rests on. It reports whether something has
// come since, which another round would acknowledge.
func (r *Replica) round(ctx context.Context, feed *store.Feed, others *census) (again bool, err error) {
	// A round that has begun is ended: what is broken off costs the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	if _, err := r.read(ctx, feed); err != nil {
		return false, err
	}
	for {
		began := r.clock()
		r.beats++
		held, err := feed.Heartbeat(ctx, store.Beat{ID: r.id, Seq: r.beats, Lease: r.lease, Applied: r.known.Load().applied})
		if err != nil {
			return false, err
		}
		before := r.known.Load().applied
		news, err := r.read(ctx, feed)
		if err != nil {
			return false, err
		}
		// The server that was read has to know of the heartbeat: behind a pooler it could be another than the one that took it.
		if held && news.Continues && news.Seq == r.beats {
			r.extend(began)
			return news.Head != before, others.sweep(ctx, feed, r.id)
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}

// extend lets the lease run from began.
func (r *Replica) extend(began time.Duration) {
	r.applying.Lock()
	defer r.applying.Unlock()
	k := *r.known.Load()
	k.began, k.ends = began, began+r.lease
	r.known.Store(&k)
}

// read reads what the log holds, and applies it.
func (r *Replica) read(ctx context.Context, feed *store.Feed) (store.News, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	at := r.clock()
	news, err := feed.Since(ctx, r.id, r.known.Load().applied)
	if err != nil {
		return news, err
	}
	r.applying.Lock()
	defer r.applying.Unlock()
	k := *r.known.Load()
	k.now, k.read = news.Now, at
	if !news.Continues {
		// Another log than the one we knew, or too much has happened since. What gave us the lease is another database, perhaps:
		// readings of this one are not under it.
		r.rows.InvalidateAll()
		k.ends = 0
	}
	for _, change := range news.Changes {
		r.forget(change)
	}
	if k.applied != news.Head {
		k.version++
		k.applied = news.Head
	}
	r.known.Store(&k)
	return news, nil
}

// leave ends the lease and takes the replica out of the list of those that revocations wait for.
func (r *Replica) leave(feed *store.Feed) {
	r.extend(-r.lease) // ends at 0
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := feed.Leave(ctx, r.id); err != nil {
		r.log.Warn("leaving the list of replicas failed; revocations wait for this one's lease once", "error", err.Error())
	}
}

// census watches the other replicas, to take those out of the list that have died.
type census struct {
	seen map[uuid.UUID]sighting
}

// sighting is a heartbeat, and when this process saw it first.
type sighting struct {
	seq  int64
	from time.Time
}

// sweep removes replicas without a heartbeat for longer than any lease lasts, by this process's own monotonic clock.
func (c *census) sweep(ctx context.Context, feed *store.Feed, self uuid.UUID) error {
	registered, err := feed.Replicas(ctx)
	if err != nil {
		return err
	}
	seen := make(map[uuid.UUID]sighting, len(registered))
	for _, other := range registered {
		before, known := c.seen[other.ID]
		switch {
		case other.ID == self:
		case !known || before.seq != other.Seq:
			seen[other.ID] = sighting{seq: other.Seq, from: time.Now()}
		case time.Since(before.from) > store.LeaseEnd(other.Lease):
			if err := feed.Unregister(ctx, other.ID, other.Seq); err != nil {
				return err
			}
		default:
			seen[other.ID] = before
		}
	}
	c.seen = seen
	return nil
}
