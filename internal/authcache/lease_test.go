package authcache_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// A lease may be from MinLease to MaxLease, or 0; the age of a row from MinMaxAge to MaxMaxAge, or 0, which stands for DefaultMaxAge.
func TestLeaseAndAgeHaveBounds(t *testing.T) {
	t.Parallel()
	holds := func(cfg authcache.Config, fine bool) {
		t.Helper()
		if _, err := authcache.New(cfg); (err == nil) != fine {
			t.Errorf("a lease of %v and an age of %v: %v", cfg.Lease, cfg.MaxAge, err)
		}
	}
	for bound, fine := range map[time.Duration]bool{
		0: true, authcache.MinLease: true, authcache.MaxLease: true, -1: false, 1: false, authcache.MinLease - 1: false, authcache.MaxLease + 1: false,
	} {
		holds(authcache.Config{Lease: bound}, fine)
	}
	for bound, fine := range map[time.Duration]bool{
		0: true, authcache.MinMaxAge: true, authcache.MaxMaxAge: true, authcache.DefaultMaxAge: true,
		-1: false, 1: false, authcache.MinMaxAge - 1: false, authcache.MaxMaxAge + 1: false,
	} {
		holds(authcache.Config{Lease: long, MaxAge: bound}, fine)
	}
}

// Until it runs, an instance has no lease; it answers nothing, from memory or else.
func TestInstanceThatDoesNotRunAnswersNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantError(t, "being ready", r.Ready(ctx), store.ErrUnavailable)
	for _, reader := range w.acme.readers() {
		if _, _, err := reader.cached(ctx, r.Cache); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", reader.name, err)
		}
	}
	if s := r.Stats(); s.Held || s.Hits+s.Misses != 0 {
		t.Errorf("stats %+v", s)
	}
}

// With the database away, memory answers until the lease ends by the clock that goes on in suspension, and not a moment
// longer; and everything works again once it is back.
func TestMemoryAnswersUntilTheLeaseEnds(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.reads(w.acme)
	back := w.away()
	age := r.Stats().Age
	ask := func(when string, want error) {
		t.Helper()
		for _, reader := range w.acme.readers() {
			hits := r.Stats().Hits
			_, _, err := reader.cached(within(t), r.Cache)
			wantError(t, when+", "+reader.name, err, want)
			equal(t, when+", "+reader.name+": from memory", r.Stats().Hits-hits == 1, want == nil)
		}
	}
	ask("at once", nil)
	r.advance(long - age - 5*time.Second) // five seconds for a busy machine
	ask("just before the lease's end", nil)
	if _, err := r.AgentCredential(within(t), w.globex.agent.ID, nobody); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("what is not remembered: %v", err)
	}
	r.advance(5 * time.Second)
	ask("at the lease's end", store.ErrUnavailable)
	wantError(t, "being ready without a lease", r.Ready(within(t)), store.ErrUnavailable)
	if s := r.Stats(); s.Held || s.Age < long {
		t.Errorf("stats %+v", s)
	}
	back()
	servertest.Eventually(t, "the instance is ready again", func() bool { return r.Ready(within(t)) == nil })
	r.whole(w.acme)
	for _, line := range []string{"change log connection lost", "the lease is held again"} {
		equal(t, line, r.logged(line), 1)
	}
}

// A request that finds the lease over asks for a round and goes on; what was revoked in the meantime is not there any more.
func TestRequestRenewsALeaseThatIsOver(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	for range 3 {
		r.reads(w.acme)
		seq := w.seq(r)
		r.advance(long + time.Second)
		r.wants("after the lease", w.acme, everything) // by a new one
		equal(t, "renewed without a heartbeat", w.seq(r) == seq, false)
	}
}

// The lease is tested after the look-up: what was found in memory before the lease ended may be what was revoked since. Here the
// process stands still in between, and the revocation waits for no more than the lease.
func TestLeaseIsTestedAfterTheLookUp(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.reads(w.acme)
	hits := r.Stats().Hits
	c, err := r.AccessKeyByHashAfter(within(t), w.acme.hash, func() { r.advance(long) })
	if err != nil || r.Stats().Hits != hits+1 {
		t.Errorf("by a lease that was renewed: %v, %d answers from memory", err, r.Stats().Hits-hits)
	}
	if err := r.Ready(within(t)); err != nil {
		t.Fatal(err)
	}
	back := w.away() // nothing renews the lease now
	_, err = r.AccessKeyByHashAfter(within(t), w.acme.hash, func() { r.advance(long) })
	if !errors.Is(err, store.ErrUnavailable) || r.Stats().Hits != hits+1 {
		t.Errorf("without a lease: %v, %d answers from memory", err, r.Stats().Hits-hits)
	}
	w.exec(`UPDATE accesskeys SET tm_delete = '2030-01-01' WHERE id = $1`, w.acme.key.ID)
	back()
	servertest.Eventually(t, "there is a lease again", func() bool {
		c, err = r.AccessKeyByHash(within(t), w.acme.hash, nobody)
		return err == nil
	})
	equal(t, "by the next lease it is there", c.TmDelete.Equal(store.Never()), false)
}

// A lease counts from a server that knows of the heartbeat: behind a pooler, another one could answer than the one that took it,
// and not know of a revocation either.
func TestNoLeaseFromAServerThatDoesNotKnowOfTheHeartbeat(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	w.exec(`CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.seq := OLD.seq; RETURN NEW; END'`)
	w.exec(`CREATE TRIGGER forget BEFORE UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION forget()`)
	r.advance(long)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	wantError(t, "being ready", r.Ready(ctx), store.ErrUnavailable)
	w.exec(`DROP TRIGGER forget ON instances`)
	servertest.Eventually(t, "there is a lease", func() bool { return r.Ready(within(t)) == nil })
}

// An instance is in the list while it runs, under its id and lease, and out of it once it has stopped; it answers nothing
// from then on.
func TestInstanceRegistersAndLeaves(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	listed := func() int { return value[int](w, `SELECT count(*) FROM instances`) }
	lease := func() int { return value[int](w, `SELECT lease_ms FROM change_head`) }
	first, second := w.run(time.Second), w.run(5*time.Second)
	equal(t, "instances, and the longest lease", [2]int{listed(), lease()}, [2]int{2, 5000})
	first.reads(w.acme)
	first.stop()
	equal(t, "after one has left, in the list", value[string](w, `SELECT string_agg(id::text, ',') FROM instances`), second.ID().String())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := first.AccessKeyByHash(ctx, w.acme.hash, nobody); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("after its end an instance says %v", err)
	}
	equal(t, "after its end it has a lease", first.Stats().Held, false)
	second.stop()
	third := w.run(time.Second)
	equal(t, "instances, and the longest lease, when that has gone", [2]int{listed(), lease()}, [2]int{1, 1000})
	// Without a cache there is nothing to wait for.
	off := w.run(0)
	equal(t, "instances beside one without a cache", listed(), 1)
	off.wants("without a cache", w.acme, "")
	// Who was taken for dead registers again.
	w.internally(`DELETE FROM instances`)
	servertest.Eventually(t, "the instance is in the list again", func() bool { return listed() == 1 })
	equal(t, "in the list", value[uuid.UUID](w, `SELECT id FROM instances`), third.ID())
}

// What has died goes out of the list once no lease of its can be left, by instances with a lease and by those without; who lives stays.
func TestTheDeadAreSweptByTheLiving(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const lease = time.Second
	for _, sweepers := range []time.Duration{0, authcache.MinLease} {
		began, dead := time.Now(), w.deadInstance(lease)
		sweeper := w.run(sweepers)
		w.swept(dead)
		if took := time.Since(began); took < changelog.LeaseEnd(lease) {
			t.Errorf("it was removed after %v, before its lease could have ended", took)
		}
		r := w.run(lease)
		for began := time.Now(); time.Since(began) < 2*changelog.LeaseEnd(lease); {
			r.renew(1)
			if !w.listed(r.ID()) {
				t.Fatal("a live instance was removed")
			}
		}
		r.stop()
		sweeper.stop()
	}
}

// A database whose log is another one than what was known, as that of a server which was failed over: nothing is
// remembered any more, and the instance goes on by the other log.
func TestAnotherLogEmptiesMemory(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	w.exec(`UPDATE agents SET name = 'once' WHERE id = $1`, w.acme.agent.ID)
	for _, other := range []struct{ name, sql string }{
		{"another entry at the same position", `
			WITH e AS (SELECT gen_random_uuid() AS entry),
			     c AS (UPDATE changes SET entry = e.entry FROM e WHERE position = (SELECT position FROM change_head))
			UPDATE change_head SET entry = e.entry FROM e`},
		{"a log that is shorter", `
			WITH gone AS (DELETE FROM changes WHERE position > 0)
			UPDATE change_head h SET position = 0, entry = c.entry FROM changes c WHERE c.position = 0`},
	} {
		w.exec(`UPDATE agents SET name = 'once' WHERE id = $1`, w.acme.agent.ID)
		w.applied(r)
		r.whole(w.acme)
		w.internally(other.sql)
		// A reading finds out, where the instance has not yet, and gives what the database has.
		r.refused(other.name, newHash())
		r.wants(other.name, w.acme, "")
		r.wants("then", w.acme, everything)
		w.applied(r)
	}
}

// Nothing is remembered of a reading from another log, and no lease comes from it: what an abandoned primary says does not
// count.
func TestAbandonedPrimarySaysNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`UPDATE agents SET name = 'once' WHERE id = $1`, w.acme.agent.ID)
	known := changelog.Position{Number: value[int64](w, `SELECT position FROM change_head`), Entry: value[uuid.UUID](w, `SELECT entry FROM change_head`)}
	registered := uuid.New()
	first := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer first.Close()
	if held, err := first.Heartbeat(t.Context(), changelog.Beat{ID: registered, Seq: 1, Lease: time.Second, Applied: known}); !held || err != nil {
		t.Fatal(held, err)
	}
	lookups := []store.Lookup{
		{AccessKeys: []store.TokenHash{w.acme.hash}}, {Agents: []uuid.UUID{w.acme.agent.ID}}, {ServiceAccountKeys: []uuid.UUID{w.acme.pair.ID}}, {},
	}
	for _, p := range []changelog.Position{
		{Number: known.Number, Entry: uuid.New()}, {Number: known.Number + 1, Entry: known.Entry}, {Number: known.Number - 1, Entry: known.Entry},
		{Number: -1, Entry: known.Entry}, {Number: 0, Entry: uuid.New()},
	} {
		feed := must(w.store.Log.OpenFeed(t.Context()))(t)
		for _, id := range []uuid.UUID{uuid.New(), registered} {
			if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: id, Seq: 2, Lease: time.Second, Applied: p}); held || err != nil {
				t.Errorf("%+v: a heartbeat gives %v, %v", p, held, err)
			}
		}
		if news, err := feed.ReadSince(t.Context(), uuid.Nil, p); news.Continues || news.Changes != nil || news.Head != known || err != nil {
			t.Errorf("%+v: the log says %+v, %v", p, news, err)
		}
		feed.Close()
		for _, l := range lookups {
			if _, err := w.store.Lookup(t.Context(), l, p, store.HeadFirst); !errors.Is(err, changelog.ErrOtherLog) || !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%+v, %+v: %v", p, l, err)
			}
		}
	}
	equal(t, "the heartbeats that count", value[string](w, `SELECT string_agg(seq || ' at ' || position, ', ') FROM instances`), "1 at 1")
	// Control: the position that it does hold.
	for _, l := range lookups {
		if found, err := w.store.Lookup(t.Context(), l, known, store.HeadFirst); err != nil || found.Head != known {
			t.Errorf("%+v: %+v, %v", l, found.Head, err)
		}
	}
}
