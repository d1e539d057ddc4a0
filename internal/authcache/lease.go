package authcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// state is a state of an instance's knowledge. It is not changed once it is made.
type state struct {
	version uint64 // counts the states whose position differs
	unsure  bool   // everything was forgotten, and there was no lease since
	past    uint64 // counts the times that everything was forgotten, for a database that was another one or had been put back
	applied changelog.Position
	began   time.Duration // of the lease, in boot time
	ends    time.Duration // of the lease, in boot time; 0 for none
	now     time.Time     // the database's time at read, or later
	read    time.Duration // when the log was read last, in boot time
}

// leaseHeldAt returns the database's time at a reading of the instance's clock, and whether the lease is held then. The time is never behind
// the database's by more than its clock and ours drift apart in a lease.
func (k *state) leaseHeldAt(clock time.Duration) (time.Time, bool) {
	return k.now.Add(clock - k.read), clock < k.ends
}

// requestRenewal asks for a round that begins now, and returns its error.
func (r *Cache) requestRenewal(ctx context.Context) error {
	r.asking.Lock()
	asked := r.requested
	r.wanted = true
	r.asking.Unlock()
	r.interruptPause()
	select {
	case <-asked.done:
		return asked.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for a lease: %w: %w", store.ErrUnavailable, ctx.Err())
	}
}

// interruptPause has the loop look at what is wanted.
func (r *Cache) interruptPause() {
	r.asking.Lock()
	defer r.asking.Unlock()
	if r.interrupt != nil {
		r.interrupt()
	}
}

// runLease keeps a connection to the log, and the lease over it.
func (r *Cache) runLease(ctx context.Context) error {
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
			r.log.Warn("change log connection lost; answering 503 until the lease is renewed", "error", failure.Error())
		}
		failing = true
		pause := retryPause
		if errors.Is(failure, changelog.ErrOutdated) {
			pause = outdatedPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	// Nobody who still asks is left waiting.
	stopped := fmt.Errorf("the server has stopped: %w", store.ErrUnavailable)
	r.complete(r.takeRequested(), stopped)
	r.proofs.fail(r.proofs.take(r.clock()), stopped)
	return nil //nolint:nilerr // the loop ends only because ctx has: what that broke off is no failure
}

// follow connects and goes round until something fails. It calls held after each round that has renewed the lease.
func (r *Cache) follow(ctx context.Context, held func()) (err error) {
	asked := r.takeRequested()
	defer func() {
		r.complete(asked, err)
		r.proofs.fail(r.proofs.take(r.clock()), err)
	}()
	connecting, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	feed, err := r.store.Log.OpenFeed(connecting)
	if err != nil {
		return err
	}
	defer feed.Close()
	defer func() {
		if ctx.Err() != nil {
			r.leave(feed)
		}
	}()
	var others reaper
	sweeps := true
	for {
		again, err := r.renewLease(ctx, feed)
		if err != nil {
			return err
		}
		if sweeps || r.clock()-r.swept > r.lease/4 { // rounds for proofs may keep all others from being due
			if err := r.reap(ctx, feed, &others); err != nil {
				return err
			}
		}
		held()
		r.complete(asked, nil)
		asked = nil
		if again && ctx.Err() == nil {
			asked = r.takeRequested()
			continue
		}
		if asked, sweeps, err = r.idle(ctx, feed); err != nil {
			return err
		}
	}
}

// reap removes instances that have died, and has the pool take no more than its share beside the others.
func (r *Cache) reap(ctx context.Context, feed *changelog.Feed, others *reaper) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	r.swept = r.clock()
	if r.instances, err = others.reap(ctx, feed, *r.id.Load()); err != nil {
		return err
	}
	return r.store.DB.Share(r.instances)
}

// idle returns when the next round is due, with those who asked for it: for its time, because something is in the log, or
// because somebody waits. It reports whether the round is for more than proofs.
func (r *Cache) idle(ctx context.Context, feed *changelog.Feed) (asked *renewal, usual bool, err error) {
	for {
		err := r.pause(ctx, feed)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, false, err
		}
		before := r.state.Load().applied
		news, err := r.readLog(ctx, feed)
		if err != nil {
			return nil, false, err
		}
		if news.Head != before || r.renewalRequested() || r.clock()-r.state.Load().began > r.lease/4 {
			return r.takeRequested(), true, nil
		}
		if wait, waiting := r.proofs.due(r.clock(), r.instances); waiting && wait == 0 {
			return r.takeRequested(), false, nil
		}
	}
}

// pause returns on a notification, when somebody asks for a round, or when it is time to look.
func (r *Cache) pause(ctx context.Context, feed *changelog.Feed) error {
	r.asking.Lock()
	pause := min(logPoll, r.lease/4)
	wait, waiting := r.proofs.due(r.clock(), r.instances)
	if waiting {
		pause = min(pause, wait)
	}
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
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

func (r *Cache) renewalRequested() bool {
	r.asking.Lock()
	defer r.asking.Unlock()
	return r.wanted
}

// takeRequested returns those who wait for the round that now begins; who comes from here on waits for the next.
func (r *Cache) takeRequested() *renewal {
	r.asking.Lock()
	defer r.asking.Unlock()
	asked := r.requested
	r.requested, r.wanted = newRenewal(), false
	return asked
}

func (*Cache) complete(asked *renewal, err error) {
	if asked != nil {
		asked.err = err
		close(asked.done)
	}
}

// healAfter is how many heartbeats in a row the log must refuse before it is taken for damaged.
const healAfter = 3

// renewLease applies the log, commits a heartbeat that acknowledges it, applies what has come since, and so has a lease that began
// before the heartbeat was sent. The order of these steps is what the proof rests on. It reports whether something has
// come since, which another renewLease would acknowledge.
func (r *Cache) renewLease(ctx context.Context, feed *changelog.Feed) (again bool, err error) {
	// A round that has begun is ended: what is broken off costs the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	if _, err := r.readLog(ctx, feed); err != nil {
		return false, err
	}
	for refused := 0; ; {
		proofs := r.proofs.take(r.clock())
		again, came, err := r.heartbeat(ctx, feed, proofs)
		if err != nil || came == beatLeased {
			return again, err
		}
		if came == beatRefused {
			refused++
			if refused == healAfter {
				r.log.Error("the log of changes lacks its newest entry; it is mended, and everything that is remembered is forgotten")
				if err := feed.Heal(ctx, MaxLease); err != nil {
					return false, err
				}
			}
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}

// beatOutcome is what came of a heartbeat.
type beatOutcome int

const (
	beatLeased  beatOutcome = 1 + iota // there is a lease from it
	beatRefused                        // the log doesn't hold what was applied, though it has just been read
	beatUnclear                        // it counts for nothing, and says nothing of the log
)

// heartbeat is a round's heartbeat, and what follows it.
func (r *Cache) heartbeat(ctx context.Context, feed *changelog.Feed, proofs []*lookupRequest) (again bool, came beatOutcome, err error) {
	defer func() {
		if came != beatLeased {
			r.proofs.fail(proofs, cmp.Or(err, fmt.Errorf("no heartbeat could be committed: %w", store.ErrUnavailable)))
		}
	}()
	began := r.clock()
	r.beats++
	beat := changelog.Beat{ID: *r.id.Load(), Seq: r.beats, Lease: r.lease, Applied: r.state.Load().applied}
	held, err := feed.Heartbeat(ctx, beat)
	if errors.Is(err, changelog.ErrRowLocked) {
		r.log.Warn("somebody holds this server's row in instances; it goes on under another id", "id", r.id.Load().String())
		r.newID()
		return false, beatUnclear, nil
	}
	if err != nil {
		return false, beatUnclear, err
	}
	if held {
		r.confirmed = r.beats
	}
	before := r.state.Load().applied
	news, err := r.readLog(ctx, feed)
	switch {
	case err != nil:
		return false, beatUnclear, err
	case !held:
		return false, beatRefused, nil
	case !news.Continues, news.Seq != r.beats:
		// The server that was read has to know of the heartbeat: behind a pooler it could be another than the one that took it.
		return false, beatUnclear, nil
	}
	r.extend(began)
	feed.Follows(beat)
	return news.Head != before, beatLeased, r.answerProofs(ctx, feed, proofs)
}

// extend lets the lease run from began. The first one after everything was forgotten forgets everything again: until then the
// pool may have found, on the database of before, what was remembered since.
func (r *Cache) extend(began time.Duration) {
	r.applying.Lock()
	defer r.applying.Unlock()
	k := *r.state.Load()
	if k.unsure {
		r.forgetEverything(&k)
		k.unsure = false
	}
	k.began, k.ends = began, began+r.lease
	r.state.Store(&k)
}

// forgetEverything empties memory, and makes readings that are under way count for nothing. The caller holds applying.
func (r *Cache) forgetEverything(k *state) {
	r.rows.InvalidateAll()
	k.version++
	k.past++
}

// readLog reads what the log holds, and applies it.
func (r *Cache) readLog(ctx context.Context, feed *changelog.Feed) (changelog.Batch, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	at := r.clock()
	news, err := feed.ReadSince(ctx, *r.id.Load(), r.state.Load().applied)
	if errors.Is(err, changelog.ErrNoHead) {
		r.log.Error("the log of changes has lost its head; it is mended, and everything that is remembered is forgotten")
		err = errors.Join(err, feed.Heal(ctx, MaxLease))
	}
	if err != nil {
		return news, err
	}
	r.noteLost(news)
	another := r.epoch != "" && news.Epoch != r.epoch
	r.epoch = news.Epoch
	r.applying.Lock()
	defer r.applying.Unlock()
	k := *r.state.Load()
	k.now, k.read = news.Now, at
	if !news.Continues || another {
		// Another database than the one we knew, or one that was put back, or too much has happened since. What gave us the lease
		// is another one, perhaps: what this one says is not under it.
		r.forgetEverything(&k)
		k.ends, k.unsure = 0, true
	}
	for _, change := range news.Changes {
		r.forget(change)
	}
	if k.applied != news.Head {
		k.version++
		k.applied = news.Head
	}
	r.state.Store(&k)
	return news, nil
}

// noteLost tells the operator that it has lost what it had confirmed.
func (r *Cache) noteLost(news changelog.Batch) {
	if news.Seq >= r.confirmed && !news.WentBack || news.Seq == 0 && !news.WentBack {
		return
	}
	r.lostCount.Add(1)
	r.confirmed = news.Seq
	r.log.Error("the database has lost commits that it had confirmed, by a failover or because it was put back: " +
		"revocations may have been undone, and new credentials lost")
}

// leave ends the lease and takes the instance out of the list of those that revocations wait for.
func (r *Cache) leave(feed *changelog.Feed) {
	r.extend(-r.lease) // ends at 0
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := feed.Leave(ctx, *r.id.Load()); err != nil {
		r.log.Warn("leaving the list of instances failed; revocations wait for this one's lease once", "error", err.Error())
	}
}
