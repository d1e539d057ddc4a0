package store_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// Contract, section 1: tm_expire is tm_create plus expire seconds to the microsecond; "At creation tm_update equals tm_create".
func TestExpiryIsExactToTheMicrosecond(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	// A zone with daylight saving, in which a year of seconds is no year of the calendar's.
	abroad := open(t, withSetting(t, w.url, "timezone", "America/New_York"))
	for _, expire := range []int64{1, 59, 86399, 86400, 31535999, 31536000, 15768000, 2147483648, 3153599999, 3153600000} {
		for name, s := range map[string]*store.Store{"UTC": w.store, "New York": abroad} {
			key := must(s.CreateAccessKey(t.Context(), store.Operator(), newKey(w.acme, expire)))(t)
			// Not time.Duration(expire) * time.Second: 100 years are within its range, but only just.
			if got, want := key.TmExpire.UnixMicro()-key.TmCreate.UnixMicro(), expire*1_000_000; got != want {
				t.Errorf("%s: a key for %d s expires after %d us", name, expire, got)
			}
			if !key.TmUpdate.Equal(key.TmCreate) || !key.TmDelete.Equal(store.Never()) {
				t.Errorf("%s: tm_update %v, tm_delete %v, want %v and never", name, key.TmUpdate, key.TmDelete, key.TmCreate)
			}
		}
	}
}

// Contract, section 1: one reading of one clock, the database's. The database's is five years ahead of the process's here.
func TestEveryTimeIsTheDatabasesOwn(t *testing.T) {
	t.Parallel()
	url := pgtest.Empty(t)
	ahead := fixtureOn(t, url)
	// What is found before pg_catalog's now() stands in for it, in the defaults of columns too. New connections see it.
	ahead.exec(`CREATE SCHEMA ahead`)
	ahead.exec(`CREATE FUNCTION ahead.now() RETURNS timestamptz STABLE LANGUAGE sql
		AS $$ SELECT pg_catalog.now() + interval '5 years' $$`)
	url = withSetting(t, url, "search_path", "public, ahead, pg_catalog")
	if _, err := store.Migrator(url, slog.New(slog.DiscardHandler)).Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := fixtureOn(t, url)
	w.populate()

	began := value[time.Time](w, `SELECT now()`)
	if !began.After(time.Now().AddDate(4, 0, 0)) {
		t.Fatalf("the database's clock is not ahead: %v", began) // control
	}
	key, agent := w.createKey(w.acme), w.createAgent(w.acme, "alice")
	w.createAgent(w.acme, "another admin")
	account := w.createAccount(w.acme)
	accountKey := w.createAccountKey(account)
	change := "changed"
	updated := must(w.store.UpdateAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID, store.AccessKeyChange{Name: &change}))(t)
	passworded := must(w.store.SetPassword(t.Context(), store.Operator(), agent, secret.New(passwordHash)))(t)
	byHash := newKey(w.acme, year)
	if _, err := w.store.CreateAccessKey(t.Context(), store.Operator(), byHash); err != nil {
		t.Fatal(err)
	}
	credential := must(keyByHash(t.Context(), w.store, byHash.TokenHash, changelog.Position{}))(t)
	agentCredential := must(agentByID(t.Context(), w.store, agent.ID, changelog.Position{}))(t)
	login := must(w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{}))(t)
	agentChange := must(w.store.UpdateAgent(t.Context(), store.Operator(), agent, store.AgentChange{Name: &change}))(t)
	permitted := must(w.store.SetPermission(t.Context(), store.Operator(), agent, 16))(t)
	accountChange := must(w.store.UpdateServiceAccount(t.Context(), store.Operator(), w.acme.ID, account.ID, store.ServiceAccountChange{}))(t)
	accountCredential := must(pairByID(t.Context(), w.store, accountKey.ID, changelog.Position{}))(t)
	deletedAccountKey := must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), account, accountKey.ID))(t)
	deletedAccount := must(w.store.DeleteServiceAccount(t.Context(), store.Operator(), w.acme.ID, account.ID))(t)
	customerChange := must(w.store.UpdateCustomer(t.Context(), store.Operator(), w.globex.ID, store.CustomerChange{}))(t)
	deletedCustomer := must(w.store.DeleteCustomer(t.Context(), store.Operator(), w.globex.ID))(t)
	deleted := must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID))(t)
	deletedAgent := must(w.store.DeleteAgent(t.Context(), store.Operator(), permitted))(t)
	ended := value[time.Time](w, `SELECT now()`)

	for name, at := range map[string]time.Time{
		"a key's tm_create": key.TmCreate, "a key's tm_expire": key.TmExpire.Add(-year * time.Second),
		"an update's tm_update": updated.TmUpdate, "an agent's tm_create": agent.TmCreate, "an agent's tm_update": agent.TmUpdate,
		"an agent's tm_password": agent.TmPassword, "a new tm_password": passworded.TmPassword,
		"its tm_update": passworded.TmUpdate, "the time of a key's reading": credential.Now,
		"the time of an agent's reading": agentCredential.Now, "the time of a login": login.Now,
		"a key's tm_delete": deleted.TmDelete, "its tm_update ": deleted.TmUpdate,
		"an agent's tm_delete": deletedAgent.TmDelete, "its tm_update  ": deletedAgent.TmUpdate,
		"a changed agent's tm_update": agentChange.TmUpdate, "a permitted agent's tm_update": permitted.TmUpdate,
		"an account's tm_create": account.TmCreate, "a changed account's tm_update": accountChange.TmUpdate,
		"a deleted account's tm_delete": deletedAccount.TmDelete, "a pair's tm_create": accountKey.TmCreate,
		"a deleted pair's tm_delete": deletedAccountKey.TmDelete, "the time of a pair's reading": accountCredential.Now,
		"a changed customer's tm_update": customerChange.TmUpdate, "a deleted customer's tm_delete": deletedCustomer.TmDelete,
	} {
		if at.Before(began) || at.After(ended) {
			t.Errorf("%s is %v, not between %v and %v", name, at, began, ended)
		}
	}
	if at := w.acme.TmCreate; at.After(began) || at.Before(began.Add(-time.Hour)) {
		t.Errorf("a customer's tm_create is %v, not shortly before %v", at, began)
	}
}

// Contract, section 4: an absent field keeps its value; tm_update moves. The token and the expiry can't be changed.
func TestUpdateChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	name, detail, empty := "another name", "another detail", ""
	tests := map[string]struct {
		change store.AccessKeyChange
		want   func(*store.AccessKey)
	}{
		"nothing":    {store.AccessKeyChange{}, func(*store.AccessKey) {}},
		"the name":   {store.AccessKeyChange{Name: &name}, func(k *store.AccessKey) { k.Name = name }},
		"the detail": {store.AccessKeyChange{Detail: &detail}, func(k *store.AccessKey) { k.Detail = detail }},
		"both":       {store.AccessKeyChange{Name: &name, Detail: &detail}, func(k *store.AccessKey) { k.Name, k.Detail = name, detail }},
		"to empty":   {store.AccessKeyChange{Name: &empty, Detail: &empty}, func(k *store.AccessKey) { k.Name, k.Detail = "", "" }},
	}
	for what, test := range tests {
		key := w.createKey(w.acme)
		got := must(w.store.UpdateAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID, test.change))(t)
		if !got.TmUpdate.After(key.TmUpdate) {
			t.Errorf("%s: tm_update stays at %v", what, got.TmUpdate)
		}
		want := key
		want.TmUpdate = got.TmUpdate
		test.want(&want)
		if got != want {
			t.Errorf("%s: the key is\n%+v, want\n%+v", what, got, want)
		}
		if stored := must(w.store.AccessKey(t.Context(), key.ID))(t); stored != want {
			t.Errorf("%s: the stored key is\n%+v, want\n%+v", what, stored, want)
		}
	}
}

// Contract, section 4: A key of another customer: 403. Never existed or deleted: 404: a write names the customer whose key it is.
func TestWritesReachLiveKeysOfTheirOwnCustomerOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	mine, theirs := w.createKey(w.acme), w.createKey(w.globex)
	gone := w.createKey(w.acme)
	gone = must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, gone.ID))(t)
	if !gone.TmDelete.Equal(gone.TmUpdate) || !gone.TmDelete.After(gone.TmCreate) {
		t.Errorf("a deleted key has tm_delete %v, tm_update %v, tm_create %v", gone.TmDelete, gone.TmUpdate, gone.TmCreate)
	}
	name := "changed"
	for what, target := range map[string]struct{ customer, id uuid.UUID }{
		"a key of another customer": {w.acme.ID, theirs.ID},
		"a deleted key":             {w.acme.ID, gone.ID},
		"no key":                    {w.acme.ID, uuid.New()},
		"a key of no customer":      {uuid.New(), mine.ID},
	} {
		_, err := w.store.UpdateAccessKey(t.Context(), store.Operator(), target.customer, target.id, store.AccessKeyChange{Name: &name})
		wantError(t, "updating "+what, err, store.ErrNotFound)
		_, err = w.store.DeleteAccessKey(t.Context(), store.Operator(), target.customer, target.id)
		wantError(t, "deleting "+what, err, store.ErrNotFound)
	}
	for _, key := range []store.AccessKey{mine, theirs} {
		if got := must(w.store.AccessKey(t.Context(), key.ID))(t); got != key {
			t.Errorf("the key is\n%+v, want it untouched:\n%+v", got, key)
		}
	}
	for _, id := range []uuid.UUID{gone.ID, uuid.New()} {
		_, err := w.store.AccessKey(t.Context(), id)
		wantError(t, "reading", err, store.ErrNotFound)
	}
	for customer, want := range map[uuid.UUID][]store.AccessKey{
		w.acme.ID: {mine}, w.globex.ID: {theirs}, uuid.New(): {},
	} {
		got := must(w.store.AccessKeys(t.Context(), customer, store.Start(), 100))(t)
		if got == nil || !slices.Equal(got, want) {
			t.Errorf("customer %s lists %#v, want %+v", customer, got, want)
		}
	}
}

// Contract, section 3: Expired, deleted ... 401: who verifies a key sees deleted and expired ones, and whether its customer lives.
func TestKeyIsFoundByItsHashWhateverBecameOfIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	live, doomed, short := newKey(w.acme, year), newKey(w.acme, year), newKey(w.globex, 1)
	keys := map[string]store.AccessKey{}
	for name, k := range map[string]store.NewAccessKey{"live": live, "doomed": doomed, "short": short} {
		keys[name] = must(w.store.CreateAccessKey(t.Context(), store.Operator(), k))(t)
		if want := (store.AccessKey{
			ID: keys[name].ID, CustomerID: k.CustomerID, Name: k.Name, Detail: k.Detail, TokenPrefix: k.TokenPrefix,
			TmExpire: keys[name].TmExpire, TmCreate: keys[name].TmCreate, TmUpdate: keys[name].TmCreate, TmDelete: store.Never().Local(),
		}); keys[name] != want || want.ID.Version() != 4 {
			t.Errorf("the new key is\n%+v, want\n%+v", keys[name], want)
		}
	}
	keys["doomed"] = must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, keys["doomed"].ID))(t)
	w.exec(`UPDATE accesskeys SET tm_create = tm_create - interval '1 day', tm_expire = tm_expire - interval '1 day' WHERE id = $1`,
		keys["short"].ID)
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, w.globex.ID)

	read := func(k store.NewAccessKey) store.AccessKeyCredential {
		t.Helper()
		return must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t)
	}
	if got := read(live); got.AccessKey != keys["live"] || !got.CustomerTmDelete.Equal(store.Never()) {
		t.Errorf("the live key reads as %+v", got)
	}
	if got := read(doomed); got.AccessKey != keys["doomed"] || got.TmDelete.After(got.Now) {
		t.Errorf("the deleted key reads as %+v", got)
	}
	if got := read(short); got.ID != keys["short"].ID || !got.TmExpire.Before(got.Now) || got.CustomerTmDelete.After(got.Now) {
		t.Errorf("the expired key of a deleted customer reads as %+v", got)
	}
	other := live.TokenHash
	other[31] ^= 1
	got, err := keyByHash(t.Context(), w.store, other, changelog.Position{})
	wantError(t, "a hash that differs in one bit", err, store.ErrNotFound)
	if got.ID != uuid.Nil {
		t.Errorf("with ErrNotFound comes %+v", got)
	}
}

// Contract, section 4: A second DELETE: 404: of many at once one wins.
func TestOfManyDeletionsAtOnceOneWins(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for range 5 {
		key := w.createKey(w.acme)
		won := 0
		for _, err := range atOnce(8, func(int) error {
			_, err := w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID)
			return err
		}) {
			if err == nil {
				won++
			} else {
				wantError(t, "a deletion that lost", err, store.ErrNotFound)
			}
		}
		if won != 1 {
			t.Errorf("%d deletions of 8 have won", won)
		}
	}
}

// Contract, section 4: Never existed or deleted: 404: a deleted key does not change any more, however close the update comes.
func TestUpdateThatMeetsADeletionComesBeforeOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	name := "changed"
	update := func(key store.AccessKey) error {
		_, err := w.store.UpdateAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID, store.AccessKeyChange{Name: &name})
		return err
	}
	done := make(chan error, 1)

	// The update waits for a deletion that has not committed.
	key := w.createKey(w.acme)
	tx, release := w.lockKey(key.ID)
	if _, err := tx.Exec(t.Context(), `UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, key.ID); err != nil {
		t.Fatal(err)
	}
	go func() { done <- update(key) }()
	w.untilWaiting()
	release()
	wantError(t, "the update after the deletion", <-done, store.ErrNotFound)
	if got := value[string](w, `SELECT name FROM accesskeys WHERE id = $1`, key.ID); got != key.Name {
		t.Errorf("the deleted key is called %q", got)
	}

	// The deletion waits for an update that has not committed, and keeps what it wrote.
	key = w.createKey(w.acme)
	tx, release = w.lockKey(key.ID)
	if _, err := tx.Exec(t.Context(), `UPDATE accesskeys SET name = $2 WHERE id = $1`, key.ID, name); err != nil {
		t.Fatal(err)
	}
	go func() {
		deleted, err := w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID)
		if err == nil && deleted.Name != name {
			err = errors.New("the deletion has lost the update")
		}
		done <- err
	}()
	w.untilWaiting()
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantError(t, "the update of a deleted key", update(key), store.ErrNotFound)
}
