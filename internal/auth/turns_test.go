package auth

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// One customer has one piece of work done at a time, others at the same time theirs; who waits is refused after the wait, and nobody is
// remembered afterwards.
func TestEachCustomerHasOneTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const wait = time.Second
		turns := NewCustomerTurns(wait)
		acme, globex := uuid.New(), uuid.New()
		take := func(ctx context.Context, customer uuid.UUID) (release func(), took time.Duration, err error) {
			began := time.Now()
			release, err = turns.Take(ctx, customer)
			return release, time.Since(began), err
		}
		first, _, err := take(t.Context(), acme)
		if err != nil {
			t.Fatal(err)
		}
		other, took, err := take(t.Context(), globex)
		if err != nil || took != 0 {
			t.Fatalf("another customer: %v after %s", err, took)
		}
		other()
		if _, took, err := take(t.Context(), acme); !errors.Is(err, ErrBusy) || took != wait {
			t.Errorf("its second: %v after %s", err, took)
		}
		left, leave := context.WithCancel(t.Context())
		leave()
		if _, took, err := take(left, acme); !errors.Is(err, ErrBusy) || took != 0 {
			t.Errorf("a client that has left: %v after %s", err, took)
		}
		go func() {
			time.Sleep(wait / 2)
			first()
		}()
		second, took, err := take(t.Context(), acme)
		if err != nil || took != wait/2 {
			t.Fatalf("when its first was done: %v after %s", err, took)
		}
		second()
		if len(turns.queues) != 0 {
			t.Errorf("%d customers are remembered", len(turns.queues))
		}
	})
}
