package auth

import (
	"context"
	"errors"
	"time"
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
