package authcache_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// troubled returns once an instance is not ready, for a reason whose text has this in it.
func (r *runner) troubled(text string) {
	r.t.Helper()
	servertest.Eventually(r.t, fmt.Sprintf("it is not ready: %q", text), func() bool {
		var trouble *authcache.TroubleError
		return errors.As(r.Ready(within(r.t)), &trouble) && strings.Contains(trouble.Error(), text) && r.Stats().Trouble
	})
}

// untroubled returns once it is ready.
func (r *runner) untroubled() {
	r.t.Helper()
	servertest.Eventually(r.t, "it is ready again", func() bool { return r.Ready(within(r.t)) == nil && !r.Stats().Trouble })
}

// An instance that a newer schema shuts out says so, gets no lease any more, and answers nothing once the one that it has is over; one
// without a lease answers nothing at once.
func TestInstanceThatIsOutdatedStops(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	r.reads(w.acme)
	oldest := value[int](w, `SELECT oldest_version FROM change_head`)
	w.internally(`UPDATE change_head SET oldest_version = 1 + (SELECT version FROM accesskeys_migrations)`)
	for _, r := range []*runner{r, off} {
		r.troubled("needs a newer version of this program")
	}
	r.wants("while its lease is held", w.acme, everything)
	r.advance(long)
	for _, r := range []*runner{r, off} {
		for _, reader := range append(w.acme.readers(), strangers()...) {
			for _, read := range []readFunc{reader.cached, reader.proven} {
				if _, _, err := read(within(t), r.Cache); !errors.Is(err, changelog.ErrOutdated) || !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%s: %v", reader.name, err)
				}
			}
		}
	}
	equal(t, "it has a lease", r.Stats().Held, false)
	equal(t, "times that its loss is logged", r.logged("change log connection lost"), 1)
	w.internally(`UPDATE change_head SET oldest_version = $1`, oldest)
	for _, r := range []*runner{r, off} {
		r.untroubled()
		r.eventually(w.acme.readers()[0].cached, nil)
		r.reads(w.acme)
		for _, line := range []string{"something is wrong with the database", "nothing is wrong with the database any more"} {
			equal(t, line, r.logged(line), 1)
		}
	}
}

// Triggers that are missing, or don't fire when they should, make an instance not ready and are named, until they are as they were made.
// It goes on answering: its own changes are logged all the same. Which ones these are is tested in package store.
func TestTriggersThatDoNotFireAreNamed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	const names = "guarded on instances, guarded_emptying on instances"
	w.exec(`ALTER TABLE instances DISABLE TRIGGER USER`)
	for _, r := range []*runner{r, off} {
		r.troubled("missing or disabled, so that changes by hand may be noticed late: " + names + ".")
		r.reads(w.acme)
	}
	w.exec(`ALTER TABLE instances ENABLE ALWAYS TRIGGER guarded, ENABLE ALWAYS TRIGGER guarded_emptying`)
	for _, r := range []*runner{r, off} {
		r.untroubled()
		equal(t, "times logged", r.logged(names), 1)
	}
	// Firing always is as good.
	w.exec(`ALTER TABLE agents ENABLE ALWAYS TRIGGER changed`)
	w.exec(`ALTER TABLE agents DISABLE TRIGGER removed`)
	r.troubled(": removed on agents.")
}

// An address that leads to another database from one connection to the next is said, and keeps an instance from nothing that it can
// still prove by its Feed; nothing is refused or revoked.
func TestPoolThatReachesAnotherDatabaseIsSaid(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	// Another database under the same address: another schema, which new connections come to.
	w.exec(`CREATE SCHEMA elsewhere`)
	other := must(url.Parse(w.url.Reveal()))(t)
	other.RawQuery += "&search_path=elsewhere"
	must(store.Migrator(secret.New(other.String()), slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	r := w.run(long)
	r.reads(w.acme)
	var feed int
	servertest.Eventually(t, "the connection of the Feed is known", func() bool {
		return w.db.QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'accesskeys' AND query LIKE '%LEFT JOIN changes k%'`).Scan(&feed) == nil
	})
	w.set(`SET search_path = elsewhere`)
	w.cut(feed)
	r.troubled("lead to another one than the one that this server hears of changes from")
	for _, reader := range w.acme.readers() { // remembered
		if _, _, err := reader.cached(within(t), r.Cache); err != nil {
			t.Errorf("%s: %v", reader.name, err)
		}
	}
	for _, reader := range w.globex.readers() { // not remembered
		r.eventually(reader.cached, nil) // by the Feed
	}
	for _, reader := range strangers() { // which may be known elsewhere
		r.unavailable(reader.name+" that is unknown", reader.cached)
	}
	_, err := r.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.customer.ID, w.acme.key.ID)
	wantError(t, "a revocation", err, store.ErrUnavailable)
	w.set(`RESET search_path`)
	w.cut(feed)
	r.untroubled()
	r.reads(w.globex)
	equal(t, "lost connections logged", r.logged("change log connection lost"), 0)
}

// A database that only reads is not the one that revocations are written to: nothing that it says counts.
func TestNothingIsAnsweredByADatabaseThatOnlyReads(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	r.reads(w.acme)
	w.set(`SET default_transaction_read_only = on`)
	w.cut()
	for range 3 {
		for _, reader := range append(w.acme.readers(), strangers()...) {
			r.unavailable(reader.name+", proven", reader.proven)
			off.unavailable(reader.name+", proven without a lease", reader.proven)
			off.unavailable(reader.name+" without a lease", reader.cached)
		}
	}
	r.advance(long)
	for _, reader := range append(w.acme.readers(), strangers()...) {
		r.unavailable(reader.name+", after the lease", reader.cached)
	}
	w.set(`RESET default_transaction_read_only`)
	w.cut()
	for _, r := range []*runner{r, off} {
		r.eventually(w.acme.readers()[0].cached, nil)
	}
}
