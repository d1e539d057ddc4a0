package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

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
	key := must(s.CreateAccessKey(t.Context(), store.Operator(), wide))(t)
	if made := must(s.CreateAccessKey(t.Context(), store.Operator(), bound))(t); made.AgentID == nil || *made.AgentID != agent.ID || key.AgentID != nil {
		t.Errorf("made %+v and %+v", made, key)
	}
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
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
	if err := s.RecordUses(t.Context(), []store.Use{{AccessKeyID: key.ID, TmLastUsed: now}}); err != nil {
		t.Fatal(err)
	}
	if got := must(s.AccessKey(t.Context(), key.ID))(t); got.TmLastUsed == nil || !got.TmLastUsed.Equal(now.Truncate(time.Microsecond)) {
		t.Errorf("used at %v, want %v", got.TmLastUsed, now)
	}
	if err := s.RecordLogin(t.Context(), agent.ID, network(1)); err != nil {
		t.Fatal(err)
	}
	if got := must(s.AgentByUsername(t.Context(), "alice", network(1)))(t); !got.KnownNetwork {
		t.Error("the network of a login is not known")
	}
	must(s.SetPermission(t.Context(), store.Operator(), agent, 16))(t)
	must(s.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID))(t)
	must(s.DeleteAgent(t.Context(), store.Operator(), agent))(t)
	must(s.DeleteCustomer(t.Context(), store.Operator(), w.acme.ID))(t)
	held := must(feed.Heartbeat(t.Context(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: known}))(t)
	if !held {
		t.Error("no heartbeat")
	}
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
		must(s.DeleteAgent(t.Context(), store.Operator(), w.createAgent(w.acme, "deleted"+mode)))(t)
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if err := feed.Wait(ctx); err != nil {
			t.Fatal(err)
		}
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
