package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/rules"
)

const (
	// settlePoll is how often the acknowledgements are looked at, at first and after a while.
	settlePoll     = 2 * time.Millisecond
	settlePollSlow = 20 * time.Millisecond
)

// settler lets all who wait for acknowledgements share the looking.
type settler struct {
	turn    chan struct{} // holds one token: who has it looks, for all
	mu      sync.Mutex
	waiting map[*waiter]struct{}
}

type waiter struct {
	Position
	settled chan struct{} // closed once every replica has acknowledged
}

func newSettler() settler {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return settler{turn: turn, waiting: map[*waiter]struct{}{}}
}

// LeaseEnd is how long after a commit the last lease that was begun before it has ended for certain: clocks may run
// at rates that differ by up to 2 %.
func LeaseEnd(lease time.Duration) time.Duration { return lease + lease/50 + 10*time.Millisecond }

// settle returns once every replica has applied the log up to r, or once every lease has ended that began without it. The
// time is that of this process's monotonic clock, from after the commit: whatever the database's clock does.
func (s *Store) settle(ctx context.Context, r revision) {
	if !rules.Wait {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))
	defer cancel()
	w := &waiter{Position: r.Position, settled: make(chan struct{})}
	s.settler.mu.Lock()
	s.settler.waiting[w] = struct{}{}
	s.settler.mu.Unlock()
	defer func() {
		s.settler.mu.Lock()
		delete(s.settler.waiting, w)
		s.settler.mu.Unlock()
	}()
	select {
	case <-w.settled:
	case <-ctx.Done():
	case <-s.settler.turn:
		defer func() { s.settler.turn <- struct{}{} }()
		s.lookForAll(ctx, w)
	}
}

// lookForAll looks at the acknowledgements until w's are there or ctx ends.
func (s *Store) lookForAll(ctx context.Context, w *waiter) {
	for began := time.Now(); ; {
		s.look(ctx)
		pause := settlePoll
		if time.Since(began) > 100*time.Millisecond {
			pause = settlePollSlow
		}
		select {
		case <-w.settled:
			return
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// look ends the waiting of those whose position every replica has acknowledged.
//
// SECURITY: an acknowledgement counts only for positions that the database which shows it holds. One that has been failed over
// may show acknowledgements of other changes under the same numbers. An error counts for nothing: the wait goes on.
func (s *Store) look(ctx context.Context) {
	s.settler.mu.Lock()
	numbers := make([]int64, 0, len(s.settler.waiting))
	for w := range s.settler.waiting {
		numbers = append(numbers, w.Number)
	}
	s.settler.mu.Unlock()
	rows, err := s.pool().Query(ctx, `
		SELECT position, entry
		FROM changes
		WHERE position = ANY ($1) AND position <= coalesce((SELECT min(position) FROM replicas), 9223372036854775807)`, numbers)
	if err != nil {
		return
	}
	acknowledged, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Position])
	if err != nil {
		return
	}
	s.settler.mu.Lock()
	defer s.settler.mu.Unlock()
	for w := range s.settler.waiting {
		if slices.Contains(acknowledged, w.Position) {
			delete(s.settler.waiting, w)
			close(w.settled)
		}
	}
}
