package authcache_test

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// Only a heartbeat that began after the request proves that there is no such credential; and there is one for each.
func TestUnknownIsRefusedByAHeartbeatThatBeganAfterTheRequest(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	for range 3 {
		for _, reader := range strangers() {
			before := w.seq(r)
			if _, _, err := reader.cached(within(t), r.Cache); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v", reader.name, err)
			}
			if after := w.seq(r); after <= before {
				t.Errorf("%s: refused by the heartbeat %d of before the request", reader.name, after)
			}
		}
	}
}

// Where no heartbeat can be committed, as on a primary that was failed over, nobody is told that there is no such credential, and no
// proven row is given; what is remembered is accepted while the lease is held.
func TestNothingIsRefusedWithoutAHeartbeat(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.reads(w.acme)
	release := w.lock(`LOCK TABLE instances IN EXCLUSIVE MODE`) // none can be committed, while everything can be read
	var asking sync.WaitGroup
	for _, reader := range strangers() {
		asking.Go(func() { r.unavailable(reader.name+" that is unknown", reader.cached) })
		asking.Go(func() { r.unavailable(reader.name+" that is unknown, proven", reader.proven) })
	}
	for _, reader := range w.acme.readers() {
		asking.Go(func() { r.unavailable(reader.name+", proven", reader.proven) })
	}
	r.wants("without heartbeats", w.acme, everything)
	asking.Wait()
	release()
	for _, reader := range strangers() {
		r.eventually(reader.cached, store.ErrNotFound)
	}
}

// A proof rests on the lease: one that takes longer proves nothing, since the database may have been failed over meanwhile.
func TestProofThatTakesLongerThanALeaseIsNone(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	prove := strangers()[0].proven
	_, _, err := prove(within(t), r.Cache)
	wantError(t, "in time", err, store.ErrNotFound)
	release := w.lock(`LOCK TABLE accesskeys IN ACCESS EXCLUSIVE MODE`)
	var proving sync.WaitGroup
	proving.Go(func() { r.unavailable("too late", prove) })
	servertest.Eventually(t, "the proof waits for the table", func() bool {
		return value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	r.advance(long)
	release()
	proving.Wait()
}

// A credential that is made after the pool's look-up has found nothing is found by the proof, and then remembered.
func TestWhatIsMadeBeforeTheProofIsFound(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for i, made := range []struct {
		sql string
		id  any
	}{
		{`UPDATE accesskeys SET token_sha256 = $1 WHERE id = $2`, w.acme.key.ID},
		{`INSERT INTO agents (id, customer_id, username, password_hash) SELECT $1, customer_id, 'new', '$argon2id$v=19$x' FROM agents WHERE id = $2`, w.acme.agent.ID},
		{`INSERT INTO service_account_keys (id, account_id, algorithm, spki)
			SELECT $1, account_id, algorithm, spki FROM service_account_keys WHERE id = $2`, w.acme.pair.ID},
	} {
		id := uuid.New()
		tn := tenant{hash: newHash(), agent: store.Agent{ID: id}, pair: store.ServiceAccountKey{ID: id}}
		reader := tn.readers()[i]
		r, held := w.held(long, 1)
		var got any
		var err error
		var asking sync.WaitGroup
		asking.Go(func() { got, _, err = reader.cached(within(t), r.Cache) })
		<-held.stopped // it has found nothing
		w.exec(made.sql, []any{tn.hash[:], id, id}[i], made.id)
		held.let()
		asking.Wait()
		if want := must(reader.store(t.Context(), w.store))(t); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", reader.name, got, err, want)
		}
		equal(t, reader.name+": what the proof has found is remembered", reader.peek(r.Cache), true)
		r.stop()
	}
}

// A proven row is the database's as it is after the request, by a heartbeat of after it, whatever is remembered. Without a lease it
// is what the database says.
func TestProvenRowIsTheDatabasesAsItIs(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	r.reads(w.acme)
	for _, table := range loggedTables {
		w.aroundTheLog(`UPDATE ` + table + ` SET tm_delete = '2030-01-01'`)
	}
	for _, reader := range w.acme.readers() {
		want := must(reader.store(t.Context(), w.store))(t)
		if got, _, err := reader.cached(within(t), r.Cache); err != nil || reflect.DeepEqual(got, want) {
			t.Errorf("%s: memory knows what went around the log: %v, %v", reader.name, got, err)
		}
	}
	clock := func() time.Time { return value[time.Time](w, `SELECT clock_timestamp()`) }
	for _, reader := range w.acme.readers() {
		want := must(reader.store(t.Context(), w.store))(t)
		seq, before := w.seq(r), clock()
		got, now, err := reader.proven(within(t), r.Cache)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: proven is %+v, %v, want %+v", reader.name, got, err, want)
		}
		if now.Before(before) {
			t.Errorf("%s: asked at %v, told %v", reader.name, before, now)
		}
		equal(t, reader.name+": proven by a heartbeat", w.seq(r) > seq, true)
		if got, _, err = reader.proven(within(t), off.Cache); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, without a lease: proven is %+v, %v, want %+v", reader.name, got, err, want)
		}
	}
}

// Whatever strangers present, those who wait share rounds, which are made no more often than the database bears; and when nobody waits,
// there are none.
func TestRoundsForProofsAreSharedAndFew(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	for _, flood := range []struct{ strangers, refusals, shared int64 }{
		{3, 90, 1}, // who come back at once
		{200, 2000, 10},
	} {
		var asked atomic.Int64
		var strangers sync.WaitGroup
		began, before := time.Now(), w.seq(r)
		for range flood.strangers {
			strangers.Go(func() {
				for asked.Add(1) <= flood.refusals {
					if _, err := r.AccessKeyByHash(within(t), newHash(), nobody); !errors.Is(err, store.ErrNotFound) {
						t.Error(err)
						return
					}
				}
			})
		}
		strangers.Wait()
		took, rounds := time.Since(began), w.seq(r)-before
		t.Logf("%d strangers: %d refusals by %d heartbeats in %v", flood.strangers, flood.refusals, rounds, took)
		if most := int64(took/authcache.ProofPause + took/(long/4) + 3); rounds > most {
			t.Errorf("%d strangers: %d heartbeats in %v, want %d at most", flood.strangers, rounds, took, most)
		}
		if flood.refusals < flood.shared*rounds {
			t.Errorf("%d strangers: %d refusals by %d heartbeats are not shared", flood.strangers, flood.refusals, rounds)
		}
	}
	// Nobody waits: what is made now is the lease's.
	servertest.Eventually(t, "nobody waits", func() bool { return r.WaitingProofs() == 0 && r.WaitingLookups() == 0 })
	servertest.Eventually(t, "the last round has ended", func() bool { return r.Renew(within(t)) == nil })
	began, before := time.Now(), w.seq(r)
	time.Sleep(20 * authcache.ProofPause) // to see that nothing happens
	if rounds, most := w.seq(r)-before, int64(time.Since(began)/(long/4)+1); rounds > most {
		t.Errorf("%d heartbeats while nobody waits, want %d at most", rounds, most)
	}
	equal(t, "logged", r.log.String(), "")
}

// flood has so many strangers present unknown keys until it is stopped.
func (r *runner) flood(strangers int) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var all sync.WaitGroup
	for range strangers {
		all.Go(func() {
			for ctx.Err() == nil {
				_, _ = r.AccessKeyByHash(ctx, newHash(), nobody)
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// Those who wait for a proof hold no connection of the pool.
func TestThoseWhoWaitForAProofHoldNoConnection(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long)
	var underWay, looked atomic.Int64
	r.onLookups(func(l store.Lookup, _ store.Order, lookup func() (store.Found, error)) (store.Found, error) {
		underWay.Add(1)
		defer underWay.Add(-1)
		defer looked.Add(int64(len(l.AccessKeys)))
		return lookup()
	})
	r.started()
	// Heartbeats that take long, though not so long that the database is given up and the pool replaced.
	w.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END'`)
	w.exec(`CREATE TRIGGER slow BEFORE UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION slow()`)
	const strangers = 300
	stop := r.flood(strangers)
	servertest.Eventually(t, "all wait, and no connection of the pool is in use", func() bool {
		return looked.Load() >= strangers && r.WaitingLookups() == 0 && underWay.Load() == 0 && r.store.DB.Stats().Acquired == 0
	})
	stop()
}

// Rounds for proofs renew the lease, and so keep the others from being due; the dead are removed all the same.
func TestTheDeadAreSweptDuringAFlood(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(2 * time.Second)
	stop := r.flood(20)
	before := w.seq(r)
	servertest.Eventually(t, "there are rounds for proofs", func() bool { return w.seq(r) > before+3 })
	w.swept(w.deadInstance(authcache.MinLease))
	stop()
}

// What waits has a bound.
func TestRefusalsThatWaitHaveABound(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long) // which never runs: nobody is served
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range authcache.LookupsMax {
		all.Go(func() {
			if _, err := r.ProvenAccessKeyByHash(ctx, newHash(), nobody); !errors.Is(err, store.ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	servertest.Eventually(t, "all wait", func() bool { return r.WaitingProofs() == authcache.LookupsMax })
	_, err := r.ProvenAccessKeyByHash(within(t), newHash(), nobody)
	tooMany(t, err)
	stop()
	all.Wait()
}
