package replica

import (
	"context"
	"fmt"
	"time"

	"accesskeys/internal/store"
)

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
	return nil //nolint:nilerr // the loop ends only because ctx has: what that broke off is no failure
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
