package changelog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
)

const (
	// waitPoll is how often the acknowledgements are looked at, at first and after a while.
	waitPoll     = 2 * time.Millisecond
	waitPollSlow = 20 * time.Millisecond
	// witnessTimeout bounds the last look of a revocation that waited for a lease's end.
	witnessTimeout = 2 * time.Second
)

// waiters lets all who wait for acknowledgements share the looking.
type waiters struct {
	turn    chan struct{} // holds one token: who has it looks, for all
	mu      sync.Mutex
	waiting map[*waiter]struct{}
}

type waiter struct {
	Position
	acknowledged chan struct{} // closed once every instance has acknowledged
}

func newWaiters() waiters {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return waiters{turn: turn, waiting: map[*waiter]struct{}{}}
}

// LeaseEnd is how long after a commit the last lease that was begun before it has ended for certain: clocks may run
// at rates that differ by up to 2 %.
func LeaseEnd(lease time.Duration) time.Duration { return lease + lease/50 + 10*time.Millisecond }

// Wait returns once every instance has applied the log up to r, or once every lease has ended that began without it.
// The time is that of this process's monotonic clock, from after the commit: whatever the database's clock does. It returns
// an error, the driver's perhaps, where it can't be told that the commit is on the database that this server's own heartbeats go to.
func (l *Log) Wait(ctx context.Context, r Revision) error {
	after := l.begunBeats.Load() // begun before the commit, or a little later
	waiting, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))
	defer cancel()
	w := &waiter{Position: r.Position, acknowledged: make(chan struct{})}
	l.waiters.mu.Lock()
	l.waiters.waiting[w] = struct{}{}
	l.waiters.mu.Unlock()
	defer func() {
		l.waiters.mu.Lock()
		delete(l.waiters.waiting, w)
		l.waiters.mu.Unlock()
	}()
	select {
	case <-w.acknowledged:
		return nil // by this server too, after the commit, on the database that shows the commit
	case <-waiting.Done():
	case <-l.waiters.turn:
		acknowledged := l.pollForAll(waiting, w)
		l.waiters.turn <- struct{}{}
		if acknowledged {
			return nil
		}
	}
	return l.checkWitness(ctx, r, after)
}

// checkWitness returns nil where the database that the pool reaches holds the commit of r and a heartbeat of this server that
// began after the one with the given number.
//
// SECURITY: an address may lead elsewhere from one connection to the next, to a standby that was promoted for example, while
// the Feeds, and the leases with them, stay with the server that was. Then no lease's end can be waited for: they go on.
func (l *Log) checkWitness(ctx context.Context, r Revision, after int64) error {
	w := l.witness.Load()
	if w == nil { // no Feed: nothing is known of where others have theirs
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	for {
		w = l.witness.Load()
		if w.Seq > after {
			break // it was begun after the commit
		}
		select {
		case <-time.After(waitPollSlow):
		case <-ctx.Done():
			return fmt.Errorf("%w: it was committed, but no heartbeat of this server was since", postgres.ErrUnavailable)
		}
	}
	var holds bool
	err := l.db.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM instances WHERE id = $1 AND seq >= $2)
		   AND EXISTS (SELECT FROM changes WHERE position = $3 AND entry = $4)`,
		w.ID, w.Seq, r.Number, r.Entry).Scan(&holds)
	if err == nil && !holds {
		err = l.Elsewhere()
	}
	return err
}

// pollForAll looks at the acknowledgements until w's are there, which it reports, or ctx ends.
func (l *Log) pollForAll(ctx context.Context, w *waiter) bool {
	for began := time.Now(); ; {
		l.pollAcknowledgements(ctx)
		pause := waitPoll
		if time.Since(began) > 100*time.Millisecond {
			pause = waitPollSlow
		}
		select {
		case <-w.acknowledged:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// pollAcknowledgements ends the waiting of those whose position every instance has acknowledged.
//
// SECURITY: an acknowledgement counts only if the database that shows it holds what is acknowledged, and the position that is
// waited for. One that has been failed over, or a log that was begun anew, may have used the same numbers for other changes. This
// server's own has to be among them: it shows that this is the database that its Feed is on. An error counts for nothing:
// the wait goes on.
func (l *Log) pollAcknowledgements(ctx context.Context) {
	l.waiters.mu.Lock()
	numbers := make([]int64, 0, len(l.waiters.waiting))
	for w := range l.waiters.waiting {
		numbers = append(numbers, w.Number)
	}
	l.waiters.mu.Unlock()
	rows, err := l.db.Query(ctx, `
		SELECT c.position, c.entry
		FROM changes c
		WHERE c.position = ANY ($1)
		  AND ($2::uuid IS NULL OR EXISTS (SELECT FROM instances WHERE id = $2))
		  AND NOT EXISTS (
		      SELECT FROM instances i
		      WHERE i.position < c.position
		         OR NOT EXISTS (SELECT FROM changes a WHERE a.position = i.position AND a.entry = i.entry))`, numbers, postgres.NullableUUID(l.Witness().ID))
	if err != nil {
		return
	}
	acknowledged, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Position])
	if err != nil {
		return
	}
	l.waiters.mu.Lock()
	defer l.waiters.mu.Unlock()
	for w := range l.waiters.waiting {
		if slices.Contains(acknowledged, w.Position) {
			delete(l.waiters.waiting, w)
			close(w.acknowledged)
		}
	}
}
