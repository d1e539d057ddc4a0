package authcache_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
)

// A sweeper that stood still in between takes nobody for dead who was swept by another, has come back and lives: an old
// sighting must not match a new registration.
func TestSweeperThatStoodStillRemovesNobodyWhoHasComeBack(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	const lease = authcache.MinLease
	at := changelog.Position{Number: 0, Entry: value[uuid.UUID](w, `SELECT entry FROM change_head`)}
	r := uuid.New()
	beat := func(seq int64) {
		t.Helper()
		if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: r, Seq: seq, Lease: lease, Applied: at}); !held || err != nil {
			t.Fatal(held, err)
		}
	}
	var sweeper authcache.Census
	sweep := func() {
		t.Helper()
		wantError(t, "sweeping", sweeper.Sweep(t.Context(), feed, uuid.New()), nil)
	}
	beat(1)
	sweep()                                                            // sees r, and stands still
	time.Sleep(changelog.LeaseEnd(lease) + 20*time.Millisecond)        // for longer than r's lease
	w.internally(`DELETE FROM instances WHERE id = $1 AND seq = 1`, r) // r stood still, too, and another one has swept it
	beat(2)                                                            // r is back
	sweep()
	equal(t, "an instance with a lease, which revocations wait for, is there", w.listed(r), true)
}

// Changes that don't stop coming neither cost an instance its connection nor keep those waiting who need a lease.
func TestInstanceKeepsUpWithSteadyChanges(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	changed := make(chan int, 1)
	go func() {
		conn := must(w.db.Acquire(ctx))(t)
		defer conn.Release()
		_, _ = conn.Exec(ctx, `SET accesskeys.internal = 'on'`) // the log is not for everybody
		n := 0
		for ; ctx.Err() == nil; n++ {
			_, _ = conn.Exec(ctx, `SELECT append_change('agents', ARRAY[uuid_send(gen_random_uuid())], '{}')`)
		}
		changed <- n
	}()
	began := time.Now()
	for time.Since(began) < 2500*time.Millisecond {
		if err := r.Renew(within(t)); err != nil {
			t.Errorf("after %v of changes: %v", time.Since(began), err)
			break
		}
	}
	stop()
	t.Logf("%d changes in %v", <-changed, time.Since(began))
	equal(t, "logged", r.log.String(), "")
}
