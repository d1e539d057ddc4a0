package store_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// A heartbeat registers an instance, or counts up for one that is in the list, and acknowledges; the longest lease follows.
func TestHeartbeatRegistersAndAcknowledges(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	feed := openFeed(t, w.store)
	first, second := uuid.New(), uuid.New()
	var seq int64
	beat := func(id uuid.UUID, at changelog.Position, lease time.Duration) {
		t.Helper()
		seq++
		heartbeat(t, feed, changelog.Beat{ID: id, Seq: seq, Lease: lease, Applied: at})
		if news, err := feed.ReadSince(t.Context(), id, at); err != nil || news.Seq != seq {
			t.Errorf("heartbeat %d is known as %d, %v", seq, news.Seq, err)
		}
	}
	state := func(id uuid.UUID) []int64 {
		t.Helper()
		return value[[]int64](w, `SELECT ARRAY[seq, position, lease_ms] FROM instances WHERE id = $1`, id)
	}
	longest := func() int64 { return value[int64](w, `SELECT lease_ms FROM change_head`) }
	start := w.head()
	beat(first, start, 2*time.Second)
	wantEqual(t, "the instance registered", state(first), []int64{1, 0, 2000})
	wantEqual(t, "the longest lease", longest(), 2000)
	beat(second, start, 5*time.Second)
	beat(first, start, 2*time.Second)
	errorIf(t, longest() != 5000 || state(first)[0] != 3, "after a heartbeat %v, the longest lease is %d", state(first), longest())
	w.exec(`UPDATE accesskeys SET name = 'other' WHERE id = $1`, key.ID)
	beat(first, w.head(), 2*time.Second)
	errorIf(t, state(first)[1] != 1 || state(second)[1] != 0, "acknowledged: %v and %v", state(first), state(second))
	// An instance that had another heartbeat in the meantime is not removed.
	noError(t, feed.Unregister(t.Context(), first, state(first)[0]-1))
	wantEqual(t, "its position", state(first)[1], 1)
	for _, id := range []uuid.UUID{second, first} {
		noError(t, feed.Unregister(t.Context(), id, state(id)[0]))
	}
	wantEqual(t, "instances left", value[int](w, `SELECT count(*) FROM instances`), 0)
	beat(first, w.head(), time.Second)
	wantEqual(t, "the longest lease, as the one with 5 s has gone", longest(), 1000)
	noError(t, feed.Leave(t.Context(), first))
	wantEqual(t, "instances left", value[int](w, `SELECT count(*) FROM instances`), 0)
}

// Registering waits for a change that is under way, and a change for a registration: a change either sees an instance's lease, or
// was committed before the instance read the log for it.
func TestRegistrationAndChangesWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	feed := openFeed(t, w.store)
	at := w.head()
	tx := w.begin()
	execIn(t, tx, `UPDATE accesskeys SET name = 'other' WHERE id = $1`, key.ID)
	registered := started(func() error {
		return errorOf(feed.Heartbeat(context.Background(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: at}))
	})
	w.untilWaiting()
	noError(t, tx.Commit(t.Context()))
	noError(t, <-registered)
}

// A commit that has to be safe waits for the standby, whatever the database's default; where somebody cancels that wait,
// nothing is said to have been done. (Postgres: "WARNING: canceling wait for synchronous replication due to user request".)
func TestWhatMustNotBeLostWaitsForTheStandby(t *testing.T) {
	t.Parallel()
	postgres := must(privatepg.Start(t.Context(), privatepg.Config{Ephemeral: true, Getenv: os.Getenv}))(t) // its settings are this test's
	t.Cleanup(func() { noError(t, postgres.Close()) })
	url := secret.New(postgres.URL("postgres"))
	log := &servertest.Log{}
	must(store.Migrator(url, log.Logger()).Up(t.Context()))(t)
	w := fixtureOn(t, url)
	w.populate()
	agent := w.createAgent(w.acme, "agent")
	for _, sql := range []string{
		`ALTER DATABASE postgres SET synchronous_commit = off`,
		`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`,
	} {
		w.exec(sql)
	}
	servertest.Eventually(t, "the server has a standby to wait for", func() bool { return value[string](w, `SHOW synchronous_standby_names`) == "nobody" })
	w.db.Reset() // what the test does itself waits for nobody
	s, name := open(t, url), "other"
	key := must(s.CreateAccessKey(t.Context(), operator, newKey(w.acme, year)))(t) // by the default, which is not to wait
	openFeed(t, s)
	id, at := uuid.New(), w.head()
	waiting := func() (pid int) {
		return value[int](w, `SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
	}
	cancelled := func(what string, do func() error) {
		t.Helper()
		done := started(func() error { return do() })
		servertest.Eventually(t, what+" waits for the standby", func() bool { return waiting() != 0 })
		pid := waiting()
		w.exec(`SELECT pg_cancel_backend($1)`, pid)
		err := <-done
		wantError(t, what, err, store.ErrUnavailable)
		errorIf(t, err != nil && !strings.Contains(err.Error(), "the wait for the standby was cancelled"), "%s: %v", what, err)
		servertest.Eventually(t, "nobody waits", func() bool { return waiting() == 0 })
	}
	// Another process of Postgres's than the one that shows the setting decides whether commits wait, and may hear of it later.
	servertest.Eventually(t, "commits wait for the standby", func() bool {
		probed := make(chan struct{})
		go func() {
			defer close(probed)
			// It is cancelled if all is as it should be.
			_ = pgx.BeginFunc(context.Background(), w.db, func(tx pgx.Tx) error {
				_, err := tx.Exec(context.Background(), `
					SELECT set_config('synchronous_commit', 'on', true), set_config('statement_timeout', '1s', true),
					       pg_logical_emit_message(true, 'probe', '')`)
				return err
			})
		}()
		for seen := false; ; {
			select {
			case <-probed:
				return seen
			default:
				if pid := waiting(); pid != 0 {
					seen = true
					w.exec(`SELECT pg_cancel_backend($1)`, pid)
				}
			}
		}
	})
	for i, setting := range []string{"off", "local", "on"} {
		w.exec(`ALTER DATABASE postgres SET synchronous_commit = ` + setting)
		// What tells a cancelled wait is a warning, which has to come whatever the default is.
		w.exec(`ALTER DATABASE postgres SET client_min_messages = ` + []string{"error", "notice", "error"}[i])
		s := open(t, url)
		feed := must(s.Log.OpenFeed(t.Context()))(t)
		notHeld := func(b changelog.Beat) error {
			held, err := feed.Heartbeat(context.Background(), b)
			errorIf(t, held, "it counts as held")
			return err
		}
		cancelled(setting+": a revocation", func() error {
			return errorOf(s.UpdateAccessKey(context.Background(), operator, w.acme.ID, key.ID, store.AccessKeyChange{Name: &name}))
		})
		cancelled(setting+": a permission", func() error {
			return errorOf(s.SetPermission(context.Background(), operator, agent, 48))
		})
		cancelled(setting+": registering", func() error {
			return notHeld(changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()})
		})
		at = w.head()
		cancelled(setting+": a first heartbeat", func() error {
			return errorOf(feed.Heartbeat(context.Background(), changelog.Beat{ID: id, Seq: 1, Lease: time.Second, Applied: at}))
		})
		cancelled(setting+": a heartbeat", func() error {
			return notHeld(changelog.Beat{ID: id, Seq: 2, Lease: time.Second, Applied: at})
		})
		feed.Close()
	}
	// By a default of "on" whatever is created waits as well.
	cancelled("creating", func() error {
		return errorOf(open(t, url).CreateAccessKey(context.Background(), operator, newKey(w.acme, year)))
	})
}
