package store_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
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
			key := must(s.CreateAccessKey(t.Context(), operator, newKey(w.acme, expire)))(t)
			// Not time.Duration(expire) * time.Second: 100 years are within its range, but only just.
			lifetime := key.TmExpire.UnixMicro() - key.TmCreate.UnixMicro()
			wantEqual(t, fmt.Sprintf("%s: the microseconds of a key for %d s", name, expire), lifetime, expire*1_000_000)
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
	w := fixtureOn(t, withSetting(t, url, "search_path", "public, ahead, pg_catalog"))
	w.up()
	w.populate()
	began := value[time.Time](w, `SELECT now()`)
	fatalIf(t, !began.After(time.Now().AddDate(4, 0, 0)), "the database's clock is not ahead: %v", began) // control
	times := map[string]time.Time{}
	note := func(what string, row any, fields ...string) {
		for _, field := range fields {
			times[what+"'s "+field] = reflect.ValueOf(row).FieldByName(field).Interface().(time.Time)
		}
	}
	ctx, k := t.Context(), newKey(w.acme, year)
	key, agent, account := must(w.store.CreateAccessKey(ctx, operator, k))(t), w.createAgent(w.acme, "alice"), w.createAccount(w.acme)
	pair := w.createAccountKey(account)
	w.createAgent(w.acme, "another admin")
	note("a key", key, "TmCreate")
	times["a key's TmExpire"] = key.TmExpire.Add(-year * time.Second)
	note("an agent", agent, "TmCreate", "TmUpdate", "TmPassword")
	note("an account", account, "TmCreate")
	note("a pair", pair, "TmCreate")
	note("a key's reading", must(keyByHash(ctx, w.store, k.TokenHash, changelog.Position{}))(t), "Now")
	note("an agent's reading", must(agentByID(ctx, w.store, agent.ID, changelog.Position{}))(t), "Now")
	note("a pair's reading", must(pairByID(ctx, w.store, pair.ID, changelog.Position{}))(t), "Now")
	note("a login", must(w.store.AgentByUsername(ctx, "alice", netip.Prefix{}))(t), "Now")
	note("a changed key", must(w.store.UpdateAccessKey(ctx, operator, w.acme.ID, key.ID, store.AccessKeyChange{}))(t), "TmUpdate")
	note("a new password", must(w.store.SetPassword(ctx, operator, agent, secret.New(passwordHash)))(t), "TmPassword", "TmUpdate")
	note("a changed agent", must(w.store.UpdateAgent(ctx, operator, agent, store.AgentChange{}))(t), "TmUpdate")
	permitted := must(w.store.SetPermission(ctx, operator, agent, 16))(t)
	note("a permitted agent", permitted, "TmUpdate")
	note("a changed account", must(w.store.UpdateServiceAccount(ctx, operator, w.acme.ID, account.ID, store.ServiceAccountChange{}))(t), "TmUpdate")
	note("a changed customer", must(w.store.UpdateCustomer(ctx, operator, w.globex.ID, store.CustomerChange{}))(t), "TmUpdate")
	note("a deleted pair", must(w.store.DeleteServiceAccountKey(ctx, operator, account, pair.ID))(t), "TmDelete")
	note("a deleted account", must(w.store.DeleteServiceAccount(ctx, operator, w.acme.ID, account.ID))(t), "TmDelete")
	note("a deleted customer", must(w.store.DeleteCustomer(ctx, operator, w.globex.ID))(t), "TmDelete")
	note("a deleted key", must(w.store.DeleteAccessKey(ctx, operator, w.acme.ID, key.ID))(t), "TmDelete", "TmUpdate")
	note("a deleted agent", must(w.store.DeleteAgent(ctx, operator, permitted))(t), "TmDelete", "TmUpdate")
	ended := value[time.Time](w, `SELECT now()`)
	for name, at := range times {
		errorIf(t, at.Before(began) || at.After(ended), "%s is %v, not between %v and %v", name, at, began, ended)
	}
	if at := w.acme.TmCreate; at.After(began) || at.Before(began.Add(-time.Hour)) {
		t.Errorf("a customer's tm_create is %v, not shortly before %v", at, began)
	}
}

// Contract, section 4: an absent field keeps its value; tm_update moves. The token and the expiry can't be changed.
func TestUpdateChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	checkUpdates(t, key, func(k *store.AccessKey) *time.Time { return &k.TmUpdate },
		func(c store.AccessKeyChange) (store.AccessKey, error) {
			return w.store.UpdateAccessKey(t.Context(), operator, w.acme.ID, key.ID, c)
		},
		func() (store.AccessKey, error) { return w.store.AccessKey(t.Context(), key.ID) },
		[]update[store.AccessKeyChange, store.AccessKey]{
			{"nothing", store.AccessKeyChange{}, func(*store.AccessKey) {}},
			{"the name", store.AccessKeyChange{Name: new("n")}, func(k *store.AccessKey) { k.Name = "n" }},
			{"the detail", store.AccessKeyChange{Detail: new("d")}, func(k *store.AccessKey) { k.Detail = "d" }},
			{"both", store.AccessKeyChange{Name: new("m"), Detail: new("e")}, func(k *store.AccessKey) { k.Name, k.Detail = "m", "e" }},
			{"to empty", store.AccessKeyChange{Name: new(""), Detail: new("")}, func(k *store.AccessKey) { k.Name, k.Detail = "", "" }},
		})
}

// Contract, section 3: Expired, deleted ... 401: who verifies a key sees deleted and expired ones, and whether its customer lives.
func TestKeyIsFoundByItsHashWhateverBecameOfIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	live, doomed, short := newKey(w.acme, year), newKey(w.acme, year), newKey(w.globex, 1)
	keys := map[string]store.AccessKey{}
	for name, k := range map[string]store.NewAccessKey{"live": live, "doomed": doomed, "short": short} {
		keys[name] = must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
		if want := (store.AccessKey{
			ID: keys[name].ID, CustomerID: k.CustomerID, Name: k.Name, Detail: k.Detail, TokenPrefix: k.TokenPrefix,
			TmExpire: keys[name].TmExpire, TmCreate: keys[name].TmCreate, TmUpdate: keys[name].TmCreate, TmDelete: store.Never().Local(),
		}); keys[name] != want || want.ID.Version() != 4 {
			t.Errorf("the new key is\n%+v, want\n%+v", keys[name], want)
		}
	}
	keys["doomed"] = must(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, keys["doomed"].ID))(t)
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
	errorIf(t, got.ID != uuid.Nil, "with ErrNotFound comes %+v", got)
}

func TestOfManyDeletionsAtOnceOneWins(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for range 5 {
		key := w.createKey(w.acme)
		won := 0
		for _, err := range atOnce(8, func(int) error {
			return errorOf(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, key.ID))
		}) {
			if err == nil {
				won++
			} else {
				wantError(t, "a deletion that lost", err, store.ErrNotFound)
			}
		}
		errorIf(t, won != 1, "%d deletions of 8 have won", won)
	}
}

// Contract, section 4: Never existed or deleted: 404: a deleted key does not change any more, however close the update comes.
func TestUpdateThatMeetsADeletionComesBeforeOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	name := "changed"
	update := func(key store.AccessKey) error {
		return errorOf(w.store.UpdateAccessKey(t.Context(), operator, w.acme.ID, key.ID, store.AccessKeyChange{Name: &name}))
	}
	// The update waits for a deletion that has not committed.
	key := w.createKey(w.acme)
	tx, release := w.lockKey(key.ID)
	execIn(t, tx, `UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, key.ID)
	done := started(func() error { return update(key) })
	w.untilWaiting()
	release()
	wantError(t, "the update after the deletion", <-done, store.ErrNotFound)
	wantEqual(t, "the deleted key is called", value[string](w, `SELECT name FROM accesskeys WHERE id = $1`, key.ID), key.Name)

	// The deletion waits for an update that has not committed, and keeps what it wrote.
	key = w.createKey(w.acme)
	tx, release = w.lockKey(key.ID)
	execIn(t, tx, `UPDATE accesskeys SET name = $2 WHERE id = $1`, key.ID, name)
	done = started(func() error {
		deleted, err := w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, key.ID)
		if err == nil && deleted.Name != name {
			err = errors.New("the deletion has lost the update")
		}
		return err
	})
	w.untilWaiting()
	release()
	noError(t, <-done)
	wantError(t, "the update of a deleted key", update(key), store.ErrNotFound)
}
