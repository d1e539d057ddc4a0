package authcache_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// forgotten returns once nothing of a tenant's is remembered.
func (r *runner) forgotten(tn tenant) {
	r.t.Helper()
	servertest.Eventually(r.t, "all is forgotten", func() bool {
		return !slices.ContainsFunc(tn.readers(), func(reader reader) bool { return reader.peek(r.Cache) })
	})
}

// Where any of the tables is another one, the database was put back: everything is forgotten, also where the log is as it was; and the
// lease is from the database that was. The clock stands still here, so that nothing else ends it, and no round is due.
func TestTablesThatAreReplacedEndTheLeaseAndAreForgotten(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long)
	now := authcache.BootTime()
	r.SetClock(func() time.Duration { return now })
	r.started()
	log := func() string { return value[string](w, `SELECT position || ' ' || entry FROM change_head`) }
	for _, table := range append([]string{"change_head", "changes", "instances"}, loggedTables...) {
		r.whole(w.acme)
		before := log()
		w.restore(table, `true`)
		r.forgotten(w.acme)
		servertest.Eventually(t, "the lease has ended", func() bool { return !r.Stats().Held })
		equal(t, table+": the log", log(), before)
	}
	r.whole(w.acme) // from the database that is there now
	equal(t, "losses of touch, or of commits, logged", r.logged("lost"), 0)
}

// A look-up that was under way when the database was put back is neither remembered nor anybody's answer, though the log's head is still
// the one that it has found.
func TestAReadingFromBeforeARestoreIsNotRemembered(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, held := w.held(long, 0)
	r.whole(w.globex)
	held.stops.Store(1)
	read := r.ask(within(t), w.acme.hash)
	<-held.stopped // it has the row
	w.restore("accesskeys", `id <> $1`, w.acme.key.ID)
	r.forgotten(w.globex)
	if err := r.Ready(within(t)); err != nil {
		var trouble *authcache.TroubleError // the triggers are not in this dump
		if !errors.As(err, &trouble) {
			t.Error(err)
		}
	}
	held.let()
	wantError(t, "a key that the database doesn't have", (<-read).err, store.ErrNotFound)
	r.reads(w.acme)
	r.wants("after it", w.acme, "agent, service account's key, account's access key")
}

// A database that has lost what it had confirmed is an error that is said and counted, once for each time.
func TestLostCommitsAreSaidOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	const line = "has lost commits that it had confirmed"
	var want int64
	check := func(what string) {
		t.Helper()
		r.renew(3)
		equal(t, what+": times counted and logged", [2]int64{r.Stats().Lost, int64(r.logged(line))}, [2]int64{want, want})
	}
	// These lose nothing.
	w.exec(`UPDATE agents SET name = 'other'`)
	check("a change")
	w.internally(`DELETE FROM instances`)
	check("an instance that was taken for dead")
	w.cut()
	servertest.Eventually(t, "there is a lease again", func() bool { return r.Renew(within(t)) == nil })
	check("a connection that was lost")

	for i, loss := range []struct{ name, sql string }{
		{"a heartbeat", `UPDATE instances SET seq = 1 WHERE seq > 1`},
		{"the newest entry", `
			WITH gone AS (DELETE FROM changes WHERE position = (SELECT position FROM change_head))
			UPDATE change_head h SET position = c.position, entry = c.entry
			FROM changes c WHERE c.position = h.position - 1`},
		{"the newest entry, for another", `
			WITH e AS (SELECT gen_random_uuid() AS entry),
			     c AS (UPDATE changes SET entry = e.entry FROM e WHERE position = (SELECT position FROM change_head))
			UPDATE change_head SET entry = e.entry FROM e`},
	} {
		w.exec(`UPDATE agents SET name = name || '.'`)
		w.exec(`UPDATE agents SET name = name || '.'`)
		w.applied(r)
		r.renew(3)
		want++
		w.internally(loss.sql)
		servertest.Eventually(t, loss.name+" is missed", func() bool {
			overtaken := i == 0 && w.seq(r) > 1 // by a heartbeat: either it was seen before that, or not at all
			if r.Stats().Lost == want {
				return true
			}
			if overtaken {
				w.internally(loss.sql)
			}
			return false
		})
		check(loss.name)
	}
}

// Who holds an instance's row keeps it from nothing: it goes on under another id, with its lease and all that it remembers, and
// the old id goes out of the list with the others that have died.
func TestInstanceWhoseRowIsHeldGoesOnUnderAnotherID(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(authcache.MinLease)
	before := r.ID()
	release := w.lock(`SELECT FROM instances WHERE id = $1 FOR UPDATE`, before)
	servertest.Eventually(t, "it has another id", func() bool { return r.ID() != before })
	r.renew(3)
	w.exec(`UPDATE agents SET name = 'other' WHERE id = $1`, w.acme.agent.ID)
	w.applied(r) // under the new id
	r.reads(w.acme)
	if r.logged("change log connection lost")+r.logged("mended") != 0 || r.logged("it goes on under another id") != 1 {
		t.Errorf("logged: %s", r.log)
	}
	equal(t, "losses", r.Stats().Lost, 0)
	release()
	servertest.Eventually(t, "the old id is removed", func() bool {
		return value[int](w, `SELECT count(*) FROM instances`) == 1 && w.seq(r) > 0
	})
}

// Who holds the row of another instance that has died costs nobody the lease.
func TestHeldRowOfADeadInstanceCostsNobodyTheLease(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	dead := w.deadInstance(authcache.MinLease)
	release := w.lock(`SELECT FROM instances WHERE id = $1 FOR UPDATE`, dead)
	r, off := w.run(authcache.MinLease), w.run(0)
	r.reads(w.acme)
	for began := time.Now(); time.Since(began) < 10*changelog.LeaseEnd(authcache.MinLease); { // which is swept again and again
		r.renew(1)
		off.wants("without a cache", w.acme, "")
	}
	equal(t, "logged", r.log.String(), "")
	equal(t, "a row that is held is there", w.listed(dead), true)
	release()
	w.swept(dead)
}

// Tables of the log that somebody has emptied are mended by the instances themselves, and everything is forgotten: what was
// in them nobody can know.
func TestEmptiedLogIsMended(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	instances := []*runner{w.run(time.Second), w.run(long)}
	for _, sql := range []string{
		`TRUNCATE changes`, `TRUNCATE change_head`, `TRUNCATE changes, change_head`, `TRUNCATE changes, change_head, instances`,
		`DELETE FROM changes WHERE position = (SELECT position FROM change_head)`, `DELETE FROM change_head`,
	} {
		w.exec(`UPDATE agents SET name = 'once' WHERE id = $1`, w.acme.agent.ID)
		for _, r := range instances {
			w.applied(r)
			r.whole(w.acme)
		}
		w.internally(sql)
		for _, r := range instances {
			r.forgotten(w.acme)
			servertest.Eventually(t, "it has a lease again", func() bool { return r.Renew(within(t)) == nil })
			r.whole(w.acme)
		}
		// And what is changed is known everywhere once that has returned.
		name := uuid.NewString()
		must(instances[0].store.UpdateAccessKey(
			t.Context(), store.Operator(), w.acme.customer.ID, w.acme.key.ID, store.AccessKeyChange{Name: &name},
		))(t)
		for _, r := range instances {
			if c, err := r.AccessKeyByHash(within(t), w.acme.hash, nobody); err != nil || c.Name != name {
				t.Errorf("%s: after a change: %q, %v", sql, c.Name, err)
			}
		}
	}
	for line, want := range map[string]bool{
		"lacks its newest entry; it is mended": true, "has lost its head; it is mended": true,
		"under another id": false, // as where a row is held
	} {
		if got := instances[0].logged(line) + instances[1].logged(line); (got > 0) != want {
			t.Errorf("%q is logged %d times: %s%s", line, got, instances[0].log, instances[1].log)
		}
	}
}
