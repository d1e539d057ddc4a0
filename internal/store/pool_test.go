package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// busy has so many use the pool at the same time, and says how many connections that takes.
func busy(t *testing.T, s *store.Store, many int) (connections int32, failed int) {
	t.Helper()
	var group errgroup.Group
	errs := make(chan error, many)
	for range many {
		group.Go(func() error {
			_, err := s.AccessKey(t.Context(), uuid.New())
			if errors.Is(err, store.ErrNotFound) {
				err = nil
			}
			errs <- err
			return nil
		})
	}
	_ = group.Wait()
	for range many {
		if err := <-errs; err != nil {
			wantError(t, "a look-up", err, store.ErrUnavailable)
			failed++
		}
	}
	return s.DB.Stats().Total, failed
}

// A Store that wants a Feed and has none gives its connections back, and takes few: what it could read counts for nothing, and the
// server's connections are for those who need them for a Feed. Once there is one it takes what it may.
func TestWithoutAFeedThePoolIsSmall(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	feed.Close()
	if _, failed := busy(t, s, 64); failed != 0 {
		t.Errorf("with a Feed %d have failed", failed)
	}
	// The database takes nobody more; the Feed is lost.
	w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
	if _, err := s.Log.OpenFeed(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("opening a Feed: %v", err)
	}
	servertest.Eventually(t, "the connections are given back", func() bool { return s.DB.Stats().Total == 0 })
	w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`)
	most := int32(0)
	for range 10 {
		connections, _ := busy(t, s, 64)
		most = max(most, connections)
	}
	if most > 3 {
		t.Errorf("without a Feed the pool has %d connections", most)
	}
	feed = must(s.Log.OpenFeed(t.Context()))(t) // control
	defer feed.Close()
	if _, failed := busy(t, s, 64); failed != 0 {
		t.Errorf("with a Feed again %d have failed", failed)
	}
}

// Where many instances share a server's connections, each takes its part; one whose size was chosen keeps it.
func TestPoolTakesItsShareOfTheServersConnections(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 20', current_database()); END $$`)
	s, chosen := open(t, w.url), open(t, withSetting(t, w.url, "pool_max_conns", "9"))
	if err := s.DB.Share(5); err != nil || s.DB.Stats().Max != 16 {
		t.Errorf("before the limit is known: %v, %d", err, s.DB.Stats().Max)
	}
	for _, opened := range []*store.Store{s, chosen} {
		feed := must(opened.Log.OpenFeed(t.Context()))(t)
		defer feed.Close()
	}
	for _, test := range []struct {
		instances int
		want      int32
	}{{1, 9}, {2, 5}, {3, 4}, {9, 2}, {50, 2}, {6, 2}, {3, 4}, {1, 9}} {
		for _, one := range []*store.Store{s, chosen} {
			if err := one.DB.Share(test.instances); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.DB.Stats().Max; got != test.want {
			t.Errorf("one of %d may have %d connections, want %d", test.instances, got, test.want)
		}
		if got := chosen.DB.Stats().Max; got != 9 {
			t.Errorf("the chosen size is %d", got)
		}
		if _, failed := busy(t, s, 30); failed != 0 {
			t.Errorf("of 30 %d have failed", failed)
		}
	}
}

// What is closed stays closed.
func TestClosedPoolIsNotOpenedAgain(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := must(store.Open(t.Context(), pgtest.Migrated(t)))(t)
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	feed.Close()
	s.Close()
	if again, err := s.Log.OpenFeed(t.Context()); err == nil {
		again.Close()
		t.Error("a Feed opens on a closed Store")
	} else {
		wantError(t, "a Feed", err, store.ErrUnavailable)
	}
	wantError(t, "sharing", errors.Join(s.DB.Share(90)), store.ErrUnavailable)
	_, err := s.AccessKey(context.Background(), w.acme.ID)
	wantError(t, "reading", err, store.ErrUnavailable)
}
