package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
)

// turns bounds how much slow work, the hashing of passwords and the making of key pairs, is done at once. A flood of it
// waits, and then is refused, but never eats the memory or all the cores.
type turns struct {
	slots   chan struct{}
	maxWait time.Duration
}

// newTurns makes a turns with atOnce slots; who finds none free waits for up to maxWait.
func newTurns(atOnce int, maxWait time.Duration) (*turns, error) {
	if atOnce < 1 {
		return nil, errors.New("at least one piece of work must be done at once")
	}
	return &turns{slots: make(chan struct{}, atOnce), maxWait: maxWait}, nil
}

// take waits for a slot and returns what gives it back. It returns ErrBusy where none comes free in time.
func (t *turns) take(ctx context.Context) (release func(), err error) {
	timer := time.NewTimer(t.maxWait)
	defer timer.Stop()
	select {
	case t.slots <- struct{}{}:
		return func() { <-t.slots }, nil
	case <-timer.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ErrBusy
	}
}

// CustomerTurns lets each customer have one piece of slow work done at a time, of whatever kind. What a customer asks for beyond that waits
// for its own work, so that the turns of all are left to others. It remembers customers only while they work or wait.
type CustomerTurns struct {
	maxWait time.Duration
	mu      sync.Mutex
	queues  map[uuid.UUID]*customerQueue
}

type customerQueue struct {
	turns *turns
	users int // that work or wait, under CustomerTurns.mu
}

// NewCustomerTurns makes a CustomerTurns; further work of a customer waits up to maxWait.
func NewCustomerTurns(maxWait time.Duration) *CustomerTurns {
	return &CustomerTurns{maxWait: maxWait, queues: map[uuid.UUID]*customerQueue{}}
}

// Take waits for the customer's turn and returns what gives it back. It returns ErrBusy where it does not come in time.
func (c *CustomerTurns) Take(ctx context.Context, customer uuid.UUID) (release func(), err error) {
	c.mu.Lock()
	queue := c.queues[customer]
	if queue == nil {
		one := turns{slots: make(chan struct{}, 1), maxWait: c.maxWait}
		queue = &customerQueue{turns: &one}
		c.queues[customer] = queue
	}
	queue.users++
	c.mu.Unlock()
	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if queue.users--; queue.users == 0 {
			delete(c.queues, customer)
		}
	}
	giveBack, err := queue.turns.take(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	return func() {
		giveBack()
		leave()
	}, nil
}
