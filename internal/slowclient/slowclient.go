// Package slowclient bounds the memory of requests whose clients are slow: those that don't read their answers, or don't send their
// bodies. Its memory is a Budget, of which each request has a Share. While the budget suffices, a client may make no progress for
// seconds. When another request waits for its share, clients without progress are cut off. Memory is given to who has least of it, and
// taken from who has most: a customer or an address that attacks is in nobody else's way.
package slowclient

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// patience is how long a client may make no progress.
	patience = 10 * time.Second
	// contendedPatience is how long it may while another request waits for memory.
	contendedPatience = 200 * time.Millisecond

	// Clients are looked at so often while one of them is to act, and while a request waits.
	interval          = time.Second
	contendedInterval = 25 * time.Millisecond

	// maxWaiting is how many requests wait for memory at most, since they take some too.
	maxWaiting = 1000
)

// ErrCrowded means that too many requests wait for memory.
var ErrCrowded = errors.New("too many requests wait for memory that slow clients hold")

// Budget is memory that requests share, in bytes. It is safe for concurrent use.
type Budget struct {
	mu      sync.Mutex
	free    int64
	of      map[any]int64      // what each owner holds
	waiting []*waiter          // the newest last
	slow    map[*Share]*client // whose clients are to act
	timer   *time.Timer        // nil: nothing is waited for
	cut     int64
}

type waiter struct {
	share *Share
	bytes int64
	done  chan error // of room for one
}

type client struct {
	since time.Time // its last progress
	cut   bool
}

// NewBudget makes a Budget of so many bytes.
func NewBudget(size int64) *Budget {
	return &Budget{free: size, of: map[any]int64{}, slow: map[*Share]*client{}}
}

// CutOff is how many clients have been cut off.
func (b *Budget) CutOff() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cut
}

// Waiting is how many requests wait.
func (b *Budget) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}

// Share is one request's part of a Budget. It is used by one goroutine, between Begin and End.
type Share struct {
	budget *Budget
	owner  any // guarded by budget.mu, as is the next
	held   int64

	mu sync.Mutex          // a client is not cut off after End
	w  http.ResponseWriter // nil after End
}

// Begin starts a share of a request that is answered by w. It holds nothing yet.
func (s *Share) Begin(b *Budget, w http.ResponseWriter) { s.budget, s.w = b, w }

// Take adds bytes to the share, and waits for them where the budget is exhausted. Owner is whose the share is, any value that can
// be compared. Of the waiting requests those are served first whose owners hold least, of one owner's the newest. Those whose owners hold most
// are refused first, of one owner's the oldest. It reports whether it has waited, and returns ErrCrowded, and the context's error.
func (s *Share) Take(ctx context.Context, owner any, bytes int64) (waited bool, err error) {
	b := s.budget
	b.mu.Lock()
	held := s.held
	b.add(s, -held)
	s.owner = owner
	b.add(s, held)
	if bytes <= b.free {
		b.add(s, bytes)
		b.mu.Unlock()
		return false, nil
	}
	w := &waiter{s, bytes, make(chan error, 1)}
	if b.waiting = append(b.waiting, w); len(b.waiting) == 1 && b.timer != nil {
		b.timer.Stop() // it is for a longer time
		b.timer = nil
	}
	b.watch()
	if len(b.waiting) > maxWaiting {
		i := b.last()
		b.waiting[i].done <- ErrCrowded
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	b.mu.Unlock()
	select {
	case err := <-w.done:
		return true, err
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, w); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
		b.serve() // it may have been in the way of others
		return true, ctx.Err()
	}
	return true, <-w.done
}

// Keep gives back what the share has above so many bytes.
func (s *Share) Keep(bytes int64) {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if s.held > bytes {
		s.budget.add(s, bytes-s.held)
		s.budget.serve()
	}
}

// Wait calls do, which waits for the client: it reads from it or writes to it. When do returns, the client has made progress.
func (s *Share) Wait(do func() (int, error)) (int, error) {
	b := s.budget
	b.mu.Lock()
	b.slow[s] = &client{since: time.Now()}
	b.watch()
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.slow, s)
		b.mu.Unlock()
	}()
	return do()
}

// End gives all back.
func (s *Share) End() {
	s.mu.Lock()
	s.w = nil
	s.mu.Unlock()
	s.Keep(0)
}

// cutOff ends what the share's client is waited for.
func (s *Share) cutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return
	}
	past, controller := time.Unix(1, 0), http.NewResponseController(s.w)
	// A writer without deadlines doesn't wait for a client.
	_ = controller.SetReadDeadline(past)
	_ = controller.SetWriteDeadline(past)
}

// add changes what a share holds. Its caller holds mu.
func (b *Budget) add(s *Share, bytes int64) {
	b.free -= bytes
	s.held += bytes
	if b.of[s.owner] += bytes; b.of[s.owner] == 0 {
		delete(b.of, s.owner)
	}
}

// serve gives waiters what they wait for. Its caller holds mu.
func (b *Budget) serve() {
	for len(b.waiting) > 0 {
		i := b.next()
		next := b.waiting[i]
		if next.bytes > b.free {
			return
		}
		b.waiting = slices.Delete(b.waiting, i, i+1)
		b.add(next.share, next.bytes)
		next.done <- nil
	}
}

// next is the waiter that is served first: the newest of an owner who holds least. There must be one. Its caller holds mu.
func (b *Budget) next() int {
	next := len(b.waiting) - 1
	for i := next - 1; i >= 0; i-- {
		if b.of[b.waiting[i].share.owner] < b.of[b.waiting[next].share.owner] {
			next = i
		}
	}
	return next
}

// last is the waiter that is refused first: the oldest of an owner who holds most. There must be one. Its caller holds mu.
func (b *Budget) last() (last int) {
	for i, w := range b.waiting {
		if b.of[w.share.owner] > b.of[b.waiting[last].share.owner] {
			last = i
		}
	}
	return last
}

// watch has sweep called once more. Its caller holds mu.
func (b *Budget) watch() {
	if b.timer != nil {
		return
	}
	next := interval
	if len(b.waiting) > 0 {
		next = contendedInterval
	}
	b.timer = time.AfterFunc(next, b.sweep)
}

// sweep cuts off clients that have made no progress for too long.
func (b *Budget) sweep() {
	b.mu.Lock()
	b.timer = nil
	now, needed, owner := time.Now(), int64(0), any(nil)
	if len(b.waiting) > 0 {
		next := b.waiting[b.next()]
		needed, owner = next.bytes-b.free, next.share.owner
	}
	var stalled, cut []*Share
	for share, c := range b.slow {
		if c.cut {
			needed -= share.held // it is about to be given back
		} else if now.Sub(c.since) >= contendedPatience {
			stalled = append(stalled, share)
		}
	}
	slices.SortFunc(stalled, func(x, y *Share) int {
		return cmp.Or(cmp.Compare(b.of[y.owner], b.of[x.owner]), b.slow[x].since.Compare(b.slow[y].since))
	})
	for _, share := range stalled {
		c := b.slow[share]
		pays := share.owner == owner || b.of[share.owner] > b.of[owner]
		if now.Sub(c.since) >= patience || needed > 0 && share.held > 0 && pays {
			c.cut = true
			needed -= share.held
			cut = append(cut, share)
		}
	}
	b.cut += int64(len(cut))
	if len(b.slow) > 0 || len(b.waiting) > 0 {
		b.watch()
	}
	b.mu.Unlock()
	for _, share := range cut {
		share.cutOff()
	}
}
