package authcache_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// maxAge is a bound on the age of rows that no test outlives: what makes rows old is the test's own clock.
const maxAge = time.Hour

// Rows are due in one part of their life, and too old from the next on.
const (
	due  = (authcache.AgeParts-2)*maxAge/authcache.AgeParts + maxAge/authcache.AgeParts/2
	late = (authcache.AgeParts - 1) * maxAge / authcache.AgeParts
)

// What nothing in the log says is found when rows are read again: each row that was changed is forgotten, counted and named in an error,
// and no other.
func TestRowThatWasChangedAroundTheLogIsForgotten(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, maxAge).started()
	key, agent, pair, made := "access key", "agent", "service account's key", "account's access key"
	for _, change := range []struct {
		sql        string
		id         uuid.UUID
		row        string   // that the error names
		remembered []string // after it
	}{
		{`UPDATE accesskeys SET tm_delete = '2030-01-01' WHERE id = $1`, w.acme.key.ID, "accesskeys", []string{agent, pair, made}},
		{`UPDATE accesskeys SET roles = '{}' WHERE id = $1`, w.acme.key.ID, "accesskeys", []string{agent, pair, made}},
		{`UPDATE accesskeys SET agent_id = NULL WHERE id = $1`, w.acme.key.ID, "accesskeys", []string{agent, pair, made}},
		{`UPDATE accesskeys SET tm_expire = '2031-01-01' WHERE id = $1`, w.acme.made.ID, "accesskeys", []string{key, agent, pair}},
		{`UPDATE accesskeys SET service_account_id = NULL WHERE id = $1`, w.acme.made.ID, "accesskeys", []string{key, agent, pair}},
		{`UPDATE agents SET permission = 16 WHERE id = $1`, w.acme.agent.ID, "agents", []string{key, pair, made}}, // the key is free of it by now
		{`UPDATE agents SET tm_password = '2020-01-01' WHERE id = $1`, w.acme.agent.ID, "agents", []string{key, pair, made}},
		{`UPDATE customers SET tm_delete = '2030-01-01' WHERE id = $1`, w.acme.customer.ID, "customers", nil},
		{`UPDATE service_accounts SET roles = '{}' WHERE id = $1`, w.acme.account.ID, "service_accounts", []string{key, agent, made}},
		{`UPDATE service_account_keys SET spki = 'other' WHERE id = $1`, w.acme.pair.ID, "service_account_keys", []string{key, agent, made}},
		{`DELETE FROM service_account_keys WHERE id = $1`, w.acme.pair.ID, "service_account_keys", []string{key, agent, made}},
		{`DELETE FROM accesskeys WHERE id = $1`, w.acme.made.ID, "accesskeys", []string{key, agent}},
		{`DELETE FROM agents WHERE id = $1`, w.acme.agent.ID, "agents", []string{key}},
	} {
		r.reads(w.acme)
		r.reads(w.globex)
		all := r.reads(w.acme)
		unlogged := r.Stats().Unlogged
		w.aroundTheLog(change.sql, change.id)
		equal(t, change.sql+": rows that are due before their time", r.RefreshDue(t.Context()), 0)
		r.advance(due)
		// Nothing has told it.
		for _, reader := range w.acme.readers() {
			if _, _, err := reader.cached(within(t), r.Cache); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %s: %v", change.sql, reader.name, err)
			}
		}
		equal(t, change.sql+": it is noticed already", r.Stats().Unlogged != unlogged, false)
		if n := r.RefreshDue(t.Context()); n < len(all) {
			t.Errorf("%s: %d rows are due of %d", change.sql, n, len(all))
		}
		r.wants(change.sql, w.acme, strings.Join(change.remembered, ", "))
		r.wants(change.sql, w.globex, everything)
		equal(t, change.sql+": rows that are counted as changed around the log", r.Stats().Unlogged-unlogged, 1)
		lines := strings.Split(strings.TrimSpace(r.log.String()), "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, "level=ERROR") || !strings.Contains(last, change.row+" "+change.id.String()) {
			t.Errorf("%s: logged: %s", change.sql, last)
		}
		equal(t, change.sql+": rows that are due again", r.RefreshDue(t.Context()), 0)
	}
	equal(t, "rows that were forgotten for their age", r.Stats().Aged, 0)
}

// A row that is changed in the ordinary way while rows are read again is no error, and rows that are as they were stay.
func TestOrdinaryChangesAreNotTakenForOthers(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, maxAge).started()
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	var changes atomic.Int64
	for _, sql := range []string{
		`UPDATE accesskeys SET name = md5(random()::text) WHERE customer_id = $1`,
		`UPDATE agents SET name = md5(random()::text) WHERE customer_id = $1`,
		`UPDATE service_accounts SET name = md5(random()::text) WHERE customer_id = $1`,
		`UPDATE customers SET tm_delete = tm_delete - interval '1 second' WHERE id = $1`,
		`UPDATE service_account_keys SET spki = gen_random_uuid()::text::bytea WHERE account_id IN (SELECT id FROM service_accounts WHERE customer_id = $1)`,
	} {
		others.Go(func() {
			for ctx.Err() == nil {
				if _, err := w.db.Exec(ctx, sql, w.acme.customer.ID); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				changes.Add(1)
			}
		})
	}
	for range 2 {
		for _, reader := range w.acme.readers() {
			others.Go(func() {
				for ctx.Err() == nil {
					// A look-up may take longer than a lease, by a clock like this one.
					if _, _, err := reader.cached(ctx, r.Cache); err != nil && !errors.Is(err, store.ErrUnavailable) {
						t.Error(err)
					}
				}
			})
		}
	}
	r.reads(w.globex)
	var rows int
	began := time.Now()
	for n := 0; n < 200 && time.Since(began) < patience || rows == 0; n++ {
		r.advance(due)
		servertest.Eventually(t, "all that is due has been read again", func() bool { // which a busy machine may keep from being in time
			again := r.RefreshDue(t.Context())
			rows += again
			return again == 0
		})
		if r.Stats().Unlogged != 0 {
			break
		}
	}
	r.wants("after it", w.globex, everything)
	stop()
	others.Wait()
	t.Logf("%d rows were read again during %d changes", rows, changes.Load())
	if s := r.Stats(); s.Unlogged != 0 || strings.Contains(r.log.String(), "without an entry") {
		t.Errorf("%d rows are counted as changed around the log: %s", s.Unlogged, r.log)
	}
}

// What can't be read again is forgotten before it is too old.
func TestRowsThatCanNotBeReadAgainAreForgotten(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, maxAge)
	r.onLookups(func(_ store.Lookup, order store.Order, lookup func() (store.Found, error)) (store.Found, error) {
		if order == store.HeadLast {
			return store.Found{}, store.ErrUnavailable
		}
		return lookup()
	})
	r.started()
	r.reads(w.acme)
	r.advance(due)
	equal(t, "rows that are due", r.RefreshDue(t.Context()), 4)
	r.wants("while there is time", w.acme, everything)
	r.advance(late - due)
	equal(t, "rows that are due, and too old", r.RefreshDue(t.Context()), 0)
	if s := r.Stats(); s.Aged != 4 || s.Entries != 0 || s.Unlogged != 0 {
		t.Errorf("stats %+v", s)
	}
	r.wants("when it is too late", w.acme, "")
	r.wants("then", w.acme, everything)
}

// No row is used that is older than it may be, though nobody has come to forget it: the age is tested with each use.
func TestNoRowIsUsedThatIsTooOld(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, maxAge).started()
	for i, reader := range w.acme.readers() {
		if _, _, err := reader.cached(within(t), r.Cache); err != nil {
			t.Fatal(err)
		}
		w.aroundTheLog(`UPDATE customers SET tm_delete = '2030-01-01'::timestamptz + make_interval(days => $1)`, i)
		for _, age := range []struct {
			name    string
			by      time.Duration
			changed bool
		}{
			{"just before its age", maxAge - time.Minute, false}, // a minute for a busy machine
			{"at its age", time.Minute, true},
		} {
			r.advance(age.by)
			r.renew(1)
			hits := r.Stats().Hits
			got, _, err := reader.cached(within(t), r.Cache)
			want := must(reader.store(t.Context(), w.store))(t)
			if err != nil || reflect.DeepEqual(got, want) != age.changed {
				t.Errorf("%s, %s: it has the row as it is: want %v; %v", reader.name, age.name, age.changed, err)
			}
			equal(t, reader.name+", "+age.name+": from memory", r.Stats().Hits > hits, !age.changed)
		}
		equal(t, reader.name+": what was read anew is remembered", reader.peek(r.Cache), true)
	}
}

// overtaken has acme's rows, which are due, read again, and something happen before they are read, or when they are and not judged yet. It
// returns what it has come to.
func (w *fixture) overtaken(before bool, happens func(r *runner)) (r *runner, rows int) {
	w.t.Helper()
	r = w.newCache(long, maxAge)
	once := sync.OnceFunc(func() { happens(r) })
	r.onLookups(func(_ store.Lookup, order store.Order, lookup func() (store.Found, error)) (store.Found, error) {
		if order == store.HeadLast && before {
			once()
		}
		found, err := lookup()
		if order == store.HeadLast {
			once()
		}
		return found, err
	})
	r.started()
	r.reads(w.acme)
	r.advance(due)
	r.renew(1)
	return r, r.RefreshDue(w.t.Context())
}

// Rows that are read again are only forgotten, or kept: a row that the log has removed meanwhile stays away.
func TestReadingAgainRemembersNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, rows := w.overtaken(false, func(r *runner) {
		w.exec(`UPDATE accesskeys SET tm_delete = now() WHERE customer_id = $1`, w.acme.customer.ID)
		w.applied(r)
	})
	r.wants("after it", w.acme, "agent, service account's key")
	equal(t, "rows that were due, and that are counted as changed around the log", [2]int64{int64(rows), r.Stats().Unlogged}, [2]int64{4, 0})
}

// Rows that were read anew while older ones are read again are left alone: they may be newer than that reading.
func TestRowsThatAreReadAnewMeanwhileAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for i, before := range []bool{true, false} {
		r, _ := w.overtaken(before, func(r *runner) {
			for _, table := range loggedTables {
				w.exec(`UPDATE `+table+` SET tm_delete = '2030-01-01'::timestamptz + make_interval(days => $1)`, i)
			}
			w.applied(r)
			r.reads(w.acme)
		})
		r.wants("after it", w.acme, everything)
		equal(t, "rows that are counted as changed around the log", r.Stats().Unlogged, 0)
	}
}

// Rows are judged only once the log has been applied that they may be newer by.
func TestRowsAreJudgedOnceTheLogIsApplied(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, maxAge)
	var ahead atomic.Bool
	ahead.Store(true)
	r.onLookups(func(_ store.Lookup, order store.Order, lookup func() (store.Found, error)) (store.Found, error) {
		found, err := lookup()
		if order == store.HeadLast && ahead.Load() {
			found.Head.Number++ // somebody has changed something since, and it is not applied yet
		}
		return found, err
	})
	r.started()
	r.reads(w.acme)
	w.aroundTheLog(`UPDATE customers SET tm_delete = '2030-01-01'`)
	r.advance(due)
	r.RefreshDue(t.Context())
	equal(t, "rows that are counted as changed around the log", r.Stats().Unlogged, 0)
	ahead.Store(false)
	equal(t, "rows that are due, none of which was taken for checked", r.RefreshDue(t.Context()), 4)
	equal(t, "rows that are counted as changed around the log", r.Stats().Unlogged, 1)
	r.wants("after it", w.acme, "")
}

// All of that happens by itself: a change around the log holds nowhere for longer than the age.
func TestChangeAroundTheLogHoldsWithinTheAge(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(long, authcache.MinMaxAge).started()
	for _, sql := range []string{
		`UPDATE accesskeys SET tm_delete = '2030-01-01'`, `UPDATE agents SET permission = 0`, `UPDATE customers SET tm_delete = '2030-01-01'`,
	} {
		r.reads(w.acme)
		w.aroundTheLog(sql)
		began := time.Now()
		for _, reader := range w.acme.readers() {
			want := must(reader.store(t.Context(), w.store))(t)
			for {
				asked := time.Since(began)
				got, _, err := reader.cached(within(t), r.Cache)
				if err != nil {
					t.Fatalf("%s: %v", reader.name, err)
				}
				if reflect.DeepEqual(got, want) {
					break
				}
				if asked > authcache.MinMaxAge {
					t.Fatalf("%s, %s: %v after the change it still has %v", sql, reader.name, asked, got)
				}
			}
		}
	}
}
