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

// A heartbeat registers an instance that is not in the list, counts up for one that is, and acknowledges; the longest lease follows
// those who register.
func TestHeartbeatRegistersAndAcknowledges(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	first, second := uuid.New(), uuid.New()
	var seq int64
	beat := func(id uuid.UUID, at changelog.Position, lease time.Duration) {
		t.Helper()
		seq++
		if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: id, Seq: seq, Lease: lease, Applied: at}); !held || err != nil {
			t.Errorf("a heartbeat: %v, %v", held, err)
		}
		if news, err := feed.ReadSince(t.Context(), id, at); err != nil || news.Seq != seq {
			t.Errorf("heartbeat %d is known as %d, %v", seq, news.Seq, err)
		}
	}
	state := func(id uuid.UUID) [3]int64 {
		t.Helper()
		var s [3]int64
		err := w.db.QueryRow(t.Context(), `SELECT seq, position, lease_ms FROM instances WHERE id = $1`, id).Scan(&s[0], &s[1], &s[2])
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	longest := func() int64 { return value[int64](w, `SELECT lease_ms FROM change_head`) }
	start := w.head()
	beat(first, start, 2*time.Second)
	registered := state(first)
	if registered[0] != 1 || registered[1] != 0 || registered[2] != 2000 || longest() != 2000 {
		t.Errorf("registered as %v, the longest lease is %d", registered, longest())
	}
	beat(second, start, 5*time.Second)
	beat(first, start, 2*time.Second)
	if longest() != 5000 || state(first)[0] != 3 {
		t.Errorf("after a heartbeat %v, the longest lease is %d", state(first), longest())
	}
	w.exec(`UPDATE accesskeys SET name = 'other' WHERE id = $1`, key.ID)
	beat(first, w.head(), 2*time.Second)
	if state(first)[1] != 1 || state(second)[1] != 0 {
		t.Errorf("acknowledged: %v and %v", state(first), state(second))
	}
	// An instance that had another heartbeat in the meantime is not removed.
	if err := feed.Unregister(t.Context(), first, state(first)[0]-1); err != nil || state(first)[1] != 1 {
		t.Errorf("removed by an old heartbeat: %v", err)
	}
	for _, id := range []uuid.UUID{second, first} {
		if err := feed.Unregister(t.Context(), id, state(id)[0]); err != nil {
			t.Error(err)
		}
	}
	if n := value[int](w, `SELECT count(*) FROM instances`); n != 0 {
		t.Errorf("%d instances are left", n)
	}
	beat(first, w.head(), time.Second)
	if longest() != 1000 { // the one with 5 s has gone
		t.Errorf("the longest lease is %d", longest())
	}
	if err := feed.Leave(t.Context(), first); err != nil || value[int](w, `SELECT count(*) FROM instances`) != 0 {
		t.Errorf("leaving: %v", err)
	}
}

// Registering waits for a change that is under way, and a change for a registration: a change either sees an instance's lease, or
// was committed before the instance read the log for it.
func TestRegistrationAndChangesWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	at := w.head()
	tx := w.begin()
	if _, err := tx.Exec(t.Context(), `UPDATE accesskeys SET name = 'other' WHERE id = $1`, key.ID); err != nil {
		t.Fatal(err)
	}
	registered := make(chan error, 1)
	go func() {
		_, err := feed.Heartbeat(context.Background(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: at})
		registered <- err
	}()
	w.untilWaiting()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-registered; err != nil {
		t.Error(err)
	}
}

// A commit that has to be safe waits for the standby, whatever the database's default; where somebody cancels that wait,
// nothing is said to have been done. (Postgres: "WARNING: canceling wait for synchronous replication due to user request".)
func TestWhatMustNotBeLostWaitsForTheStandby(t *testing.T) {
	t.Parallel()
	postgres, err := privatepg.Start(t.Context(), privatepg.Config{Ephemeral: true, Getenv: os.Getenv}) // its settings are this test's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := postgres.Close(); err != nil {
			t.Error(err)
		}
	})
	url := secret.New(postgres.URL("postgres"))
	log := &servertest.Log{}
	if _, err := store.Migrator(url, log.Logger()).Up(t.Context()); err != nil {
		t.Fatal(err)
	}
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
	key := must(s.CreateAccessKey(t.Context(), store.Operator(), newKey(w.acme, year)))(t) // by the default, which is not to wait
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	t.Cleanup(feed.Close)
	id, at := uuid.New(), w.head()
	waiting := func() (pid int) {
		return value[int](w, `SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
	}
	cancelled := func(what string, do func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- do() }()
		servertest.Eventually(t, what+" waits for the standby", func() bool { return waiting() != 0 })
		pid := waiting()
		w.exec(`SELECT pg_cancel_backend($1)`, pid)
		err := <-done
		wantError(t, what, err, store.ErrUnavailable)
		if err != nil && !strings.Contains(err.Error(), "the wait for the standby was cancelled") {
			t.Errorf("%s: %v", what, err)
		}
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
		cancelled(setting+": a revocation", func() error {
			_, err := s.UpdateAccessKey(context.Background(), store.Operator(), w.acme.ID, key.ID, store.AccessKeyChange{Name: &name})
			return err
		})
		cancelled(setting+": a permission", func() error {
			_, err := s.SetPermission(context.Background(), store.Operator(), agent, 48)
			return err
		})
		cancelled(setting+": registering", func() error {
			held, err := feed.Heartbeat(context.Background(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()})
			if held {
				t.Error("it counts as held")
			}
			return err
		})
		at = w.head()
		cancelled(setting+": a first heartbeat", func() error {
			_, err := feed.Heartbeat(context.Background(), changelog.Beat{ID: id, Seq: 1, Lease: time.Second, Applied: at})
			return err
		})
		cancelled(setting+": a heartbeat", func() error {
			held, err := feed.Heartbeat(context.Background(), changelog.Beat{ID: id, Seq: 2, Lease: time.Second, Applied: at})
			if held {
				t.Error("it counts as held")
			}
			return err
		})
		feed.Close()
	}
	// By a default of "on" whatever is created waits as well.
	cancelled("creating", func() error {
		_, err := open(t, url).CreateAccessKey(context.Background(), store.Operator(), newKey(w.acme, year))
		return err
	})
}
