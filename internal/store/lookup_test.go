package store_test

import (
	"context"
	"reflect"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// What is read together is what is read one by one, of every kind, with all that it rests on; what is not there is not found.
func TestLookupFindsEveryKindWithWhatItRestsOn(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, account := w.createAgent(w.acme, "alice"), w.createAccount(w.acme, "customer_admin")
	pair := w.createAccountKey(account)
	byAccount := must(pairByID(t.Context(), w.store, pair.ID, changelog.Position{}))(t)
	wide, bound, made := newKey(w.acme, year), userKey(alice), userKey(alice)
	made.AgentPermission = alice.Permission
	for _, k := range []store.NewAccessKey{wide, bound} {
		must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
	}
	must(w.store.CreateAccessKey(t.Context(), store.ServiceAccountCaller(byAccount, byAccount.Now.AddDate(1, 0, 0)), made))(t)
	s := open(t, w.url)
	feed := openFeed(t, s)
	known, unknown := w.head(), uuid.New()
	l := store.Lookup{
		AccessKeys: []store.TokenHash{wide.TokenHash, bound.TokenHash, made.TokenHash, {1}, wide.TokenHash},
		Agents:     []uuid.UUID{alice.ID, unknown}, ServiceAccountKeys: []uuid.UUID{pair.ID, unknown},
	}
	for name, read := range map[string]func() (store.Found, error){
		"head first":  func() (store.Found, error) { return s.Lookup(t.Context(), l, known, store.HeadFirst) },
		"head last":   func() (store.Found, error) { return s.Lookup(t.Context(), l, known, store.HeadLast) },
		"by the feed": func() (store.Found, error) { return store.LookupByFeed(t.Context(), feed, l, known, uuid.New()) },
	} {
		found := must(read())(t)
		if len(found.AccessKeys) != 3 || len(found.Agents) != 1 || len(found.ServiceAccountKeys) != 1 || found.Head != known || found.Seq != 0 {
			t.Fatalf("%s: %+v", name, found)
		}
		if got := found.AccessKeys[wide.TokenHash]; got.Agent != nil || got.ServiceAccount != nil || !got.Now.Equal(found.Now) || got.Name != wide.Name {
			t.Errorf("%s: the customer's key reads as %+v", name, got)
		}
		wantEqual(t, name+": the agent of its key", found.AccessKeys[bound.TokenHash].Agent, &alice)
		wantEqual(t, name+": no account of it", found.AccessKeys[bound.TokenHash].ServiceAccount, nil)
		wantEqual(t, name+": the agent of the account's key", found.AccessKeys[made.TokenHash].Agent, &alice)
		wantEqual(t, name+": its account", found.AccessKeys[made.TokenHash].ServiceAccount, &account)
		if got := found.Agents[alice.ID]; got.Agent != alice || !got.CustomerTmDelete.Equal(store.Never()) || !got.Now.Equal(found.Now) {
			t.Errorf("%s: the agent reads as %+v", name, got)
		}
		if got := found.ServiceAccountKeys[pair.ID]; !reflect.DeepEqual(got.Key, pair) || !reflect.DeepEqual(got.Account, account) || !got.Now.Equal(found.Now) {
			t.Errorf("%s: the pair reads as %+v", name, got)
		}
	}
	errorIf(t, !(store.Lookup{}).Empty() || l.Empty(), "what names nothing, or something, says otherwise")
	// What a key rests on is found deleted like the key itself.
	w.exec(`UPDATE agents`+end, alice.ID)
	w.exec(`UPDATE service_accounts`+end, account.ID)
	got := must(keyByHash(t.Context(), s, made.TokenHash, known))(t)
	if got.Agent.TmDelete.After(got.Now) || got.ServiceAccount.TmDelete.After(got.Now) || got.Agent.TmDelete.Equal(store.Never()) {
		t.Errorf("after its agent and account it reads as %+v of %+v and %+v", got, got.Agent, got.ServiceAccount)
	}
}

// Of a change that is committed between the two readings, the one that reads the head first may show rows that are newer than its head,
// the other rows that are older: never the other way round.
func TestLookupsOrderSaysWhichIsNewer(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	key := must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
	for order, name := range map[store.Order]string{store.HeadFirst: "head first", store.HeadLast: "head last"} {
		// On a connection that knows the statements: else it would wait for the table before it begins. A read waits for the table
		// that a transaction holds which changes a row.
		s, l := open(t, withSetting(t, w.url, "pool_max_conns", "1")), store.Lookup{AccessKeys: []store.TokenHash{k.TokenHash}}
		must(s.Lookup(t.Context(), l, changelog.Position{}, order))(t)
		tx := w.begin()
		table := map[store.Order]string{store.HeadFirst: "accesskeys", store.HeadLast: "instances"}[order]
		execIn(t, tx, `SET LOCAL accesskeys.internal = 'on'`)
		execIn(t, tx, `LOCK TABLE `+table)
		before, found := w.head(), store.Found{}
		read := started(func() (err error) {
			found, err = s.Lookup(context.Background(), l, changelog.Position{}, order)
			return err
		})
		w.untilWaiting()
		execIn(t, tx, `UPDATE accesskeys SET name = $2 WHERE id = $1`, key.ID, name)
		noError(t, tx.Commit(t.Context()))
		noError(t, <-read)
		newRow, newHead := found.AccessKeys[k.TokenHash].Name == name, found.Head != before
		if order == store.HeadFirst && (!newRow || newHead) || order == store.HeadLast && (newRow || !newHead) {
			t.Errorf("%s: the row is new: %v, the head: %v", name, newRow, newHead)
		}
	}
}

// A look-up on a database that only reads, one with another log, or one without a head, is no answer. Control: elsewhere it is.
func TestLookupOnADatabaseThatIsNotTheOneIsUnavailable(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
	known := w.head()
	check := func(what string, known changelog.Position, want error) {
		t.Helper()
		s := open(t, w.url)
		feed := must(s.Log.OpenFeed(t.Context()))(t)
		defer feed.Close()
		l := store.Lookup{AccessKeys: []store.TokenHash{k.TokenHash}}
		for _, order := range []store.Order{store.HeadFirst, store.HeadLast} {
			found, err := s.Lookup(t.Context(), l, known, order)
			wantError(t, what, err, want)
			errorIf(t, (len(found.AccessKeys) == 1) != (want == nil), "%s: with %v comes %+v", what, err, found)
		}
		wantError(t, what+", by the feed", errorOf(store.LookupByFeed(t.Context(), feed, l, known, uuid.New())), want)
	}
	check("control", known, nil)
	check("nothing known", changelog.Position{}, nil)
	check("another entry", changelog.Position{Number: known.Number, Entry: uuid.New()}, changelog.ErrOtherLog)
	check("a number that was not reached", changelog.Position{Number: known.Number + 1, Entry: known.Entry}, changelog.ErrOtherLog)
	setReadOnly(w, "on")
	check("read-only", known, store.ErrUnavailable)
	setReadOnly(w, "off")
	check("control", known, nil)
	w.db.Reset() // its connections have kept what was set
	w.internal(`DELETE FROM change_head`)
	check("no head", known, changelog.ErrNoHead)
	check("no head, unavailable", known, store.ErrUnavailable)
}
