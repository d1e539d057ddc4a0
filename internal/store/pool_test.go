package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// busy has so many use the pool at the same time, and says how many connections that takes.
func busy(t *testing.T, s *store.Store, many int) (connections int32, failed int) {
	t.Helper()
	for _, err := range atOnce(many, func(int) error { return errorOf(s.AccessKey(t.Context(), uuid.New())) }) {
		if !errors.Is(err, store.ErrNotFound) {
			wantError(t, "a look-up", err, store.ErrUnavailable)
			failed++
		}
	}
	return s.DB.Stats().Total, failed
}

// withoutFailure has so many use the pool at the same time, none of whom may fail.
func withoutFailure(t *testing.T, s *store.Store, many int) {
	t.Helper()
	_, failed := busy(t, s, many)
	wantEqual(t, "those who have failed", failed, 0)
}

// A Store that wants a Feed and has none gives its connections back, and takes few: what it could read counts for nothing, and the
// server's connections are for those who need them for a Feed. Once there is one it takes what it may.
func TestWithoutAFeedThePoolIsSmall(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	feed.Close()
	withoutFailure(t, s, 64)
	// The database takes nobody more; the Feed is lost.
	w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
	_, err := s.Log.OpenFeed(t.Context())
	fatalIf(t, !errors.Is(err, store.ErrUnavailable), "opening a Feed: %v", err)
	servertest.Eventually(t, "the connections are given back", func() bool { return s.DB.Stats().Total == 0 })
	w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`)
	most := int32(0)
	for range 10 {
		connections, _ := busy(t, s, 64)
		most = max(most, connections)
	}
	errorIf(t, most > 3, "without a Feed the pool has %d connections", most)
	feed = must(s.Log.OpenFeed(t.Context()))(t) // control
	defer feed.Close()
	withoutFailure(t, s, 64)
}

// Where many instances share a server's connections, each takes its part; one whose size was chosen keeps it.
func TestPoolTakesItsShareOfTheServersConnections(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 20', current_database()); END $$`)
	s, chosen := open(t, w.url), open(t, withSetting(t, w.url, "pool_max_conns", "9"))
	err := s.DB.Share(5)
	errorIf(t, err != nil || s.DB.Stats().Max != 16, "before the limit is known: %v, %d", err, s.DB.Stats().Max)
	for _, opened := range []*store.Store{s, chosen} {
		feed := must(opened.Log.OpenFeed(t.Context()))(t)
		defer feed.Close()
	}
	for _, test := range []struct {
		instances int
		want      int32
	}{{1, 9}, {2, 5}, {3, 4}, {9, 2}, {50, 2}, {6, 2}, {3, 4}, {1, 9}} {
		for _, one := range []*store.Store{s, chosen} {
			noError(t, one.DB.Share(test.instances))
		}
		wantEqual(t, fmt.Sprintf("the connections of one of %d", test.instances), s.DB.Stats().Max, test.want)
		wantEqual(t, "the chosen size", chosen.DB.Stats().Max, 9)
		withoutFailure(t, s, 30)
	}
}

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
	wantError(t, "reading", errorOf(s.AccessKey(context.Background(), w.acme.ID)), store.ErrUnavailable)
}

// It works behind pgbouncer in transaction mode, for which a client asks the server for no types: what the driver then can't write by itself
// fails. Every kind of statement with ids among its values is sent so.
func TestStoreWorksWithoutAskingForTypes(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, secret.New(w.url.Reveal()+"&default_query_exec_mode=exec"))
	agent, account := w.createAgent(w.acme, "alice"), w.createAccount(w.acme)
	w.createAgent(w.acme, "another admin")
	pair := w.createAccountKey(account)
	wide, bound := newKey(w.acme, year), userKey(agent)
	key := must(s.CreateAccessKey(t.Context(), operator, wide))(t)
	made := must(s.CreateAccessKey(t.Context(), operator, bound))(t)
	errorIf(t, made.AgentID == nil || *made.AgentID != agent.ID || key.AgentID != nil, "made %+v and %+v", made, key)
	feed := openFeed(t, s)
	known := must(feed.ReadSince(t.Context(), uuid.New(), changelog.Position{}))(t).Head
	for order, name := range map[store.Order]string{store.HeadFirst: "head first", store.HeadLast: "head last"} {
		found := must(s.Lookup(t.Context(), store.Lookup{
			AccessKeys: []store.TokenHash{wide.TokenHash, {}}, Agents: []uuid.UUID{agent.ID}, ServiceAccountKeys: []uuid.UUID{pair.ID},
		}, known, order))(t)
		if found.AccessKeys[wide.TokenHash].ID != key.ID || found.Agents[agent.ID].ID != agent.ID || found.Head != known ||
			found.ServiceAccountKeys[pair.ID].Account.ID != account.ID || len(found.AccessKeys) != 1 {
			t.Errorf("%s: read %+v", name, found)
		}
	}
	now := time.Now()
	noError(t, s.RecordUses(t.Context(), []store.Use{{AccessKeyID: key.ID, TmLastUsed: now}}))
	got := must(s.AccessKey(t.Context(), key.ID))(t)
	errorIf(t, got.TmLastUsed == nil || !got.TmLastUsed.Equal(now.Truncate(time.Microsecond)), "used at %v, want %v", got.TmLastUsed, now)
	noError(t, s.RecordLogin(t.Context(), agent.ID, network(1)))
	wantEqual(t, "the network of a login is known", must(s.AgentByUsername(t.Context(), "alice", network(1)))(t).KnownNetwork, true)
	must(s.SetPermission(t.Context(), operator, agent, 16))(t)
	must(s.DeleteAccessKey(t.Context(), operator, w.acme.ID, key.ID))(t)
	must(s.DeleteAgent(t.Context(), operator, agent))(t)
	must(s.DeleteCustomer(t.Context(), operator, w.acme.ID))(t)
	held := must(feed.Heartbeat(t.Context(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: known}))(t)
	errorIf(t, !held, "no heartbeat")
}

// Behind a pooler in transaction mode a LISTEN would stay with a server connection that others get after us.
func TestFeedBehindAPoolerListensToNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	w.createAgent(w.acme, "the admin who stays")
	listening := func(mode string, within time.Duration) (told bool) {
		t.Helper()
		feed := must(open(t, secret.New(w.url.Reveal()+mode)).Log.OpenFeed(t.Context()))(t)
		defer feed.Close()
		must(s.DeleteAgent(t.Context(), operator, w.createAgent(w.acme, "deleted"+mode)))(t)
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		noError(t, feed.Wait(ctx))
		return ctx.Err() == nil
	}
	const enough = 300 * time.Millisecond
	if listening("&default_query_exec_mode=exec", enough) || listening("&default_query_exec_mode=simple_protocol", enough) {
		t.Error("it listens")
	}
	if !listening("", patience) { // the control
		t.Error("it does not listen, though it could")
	}
}
