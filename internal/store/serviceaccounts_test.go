package store_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// An account has name, detail and roles: what is absent keeps its value, an empty list of roles is none.
func TestUpdateOfAServiceAccountChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := must(w.store.CreateServiceAccount(t.Context(), operator, store.NewServiceAccount{
		CustomerID: w.acme.ID, Name: "ci", Detail: "of the build", Roles: []string{"agent_viewer", "accesskey_admin"},
	}))(t)
	if want := (store.ServiceAccount{
		ID: account.ID, CustomerID: w.acme.ID, Name: "ci", Detail: "of the build", Roles: []string{"agent_viewer", "accesskey_admin"},
		TmCreate: account.TmCreate, TmUpdate: account.TmCreate, TmDelete: store.Never().Local(),
	}); !reflect.DeepEqual(account, want) || account.ID.Version() != 4 {
		t.Errorf("the new account is\n%+v, want\n%+v", account, want)
	}
	other := w.createAccount(w.globex, "customer_admin")
	checkUpdates(t, account, func(a *store.ServiceAccount) *time.Time { return &a.TmUpdate },
		func(c store.ServiceAccountChange) (store.ServiceAccount, error) {
			return w.store.UpdateServiceAccount(t.Context(), operator, w.acme.ID, account.ID, c)
		},
		func() (store.ServiceAccount, error) { return w.store.ServiceAccount(t.Context(), account.ID) },
		[]update[store.ServiceAccountChange, store.ServiceAccount]{
			{"nothing", store.ServiceAccountChange{}, func(*store.ServiceAccount) {}},
			{"the name", store.ServiceAccountChange{Name: new("n")}, func(a *store.ServiceAccount) { a.Name = "n" }},
			{"the detail", store.ServiceAccountChange{Detail: new("")}, func(a *store.ServiceAccount) { a.Detail = "" }},
			{"the roles", store.ServiceAccountChange{Roles: &[]string{"customer_admin"}}, func(a *store.ServiceAccount) {
				a.Roles = []string{"customer_admin"}
			}},
			{"no role", store.ServiceAccountChange{Roles: &[]string{}}, func(a *store.ServiceAccount) { a.Roles = []string{} }},
		})
	wantEqual(t, "the other customer's account", must(w.store.ServiceAccount(t.Context(), other.ID))(t), other)
}

// Verification of a token sees its key, its account and its customer as they are now, and of each whether it is deleted.
func TestKeyOfAServiceAccountIsFoundWhateverBecameOfIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := w.createAccount(w.acme, "agent_viewer")
	w.createAccountKey(w.createAccount(w.globex, "customer_admin"))
	public := []byte{0, 1, 0xFF}
	key := must(w.store.CreateServiceAccountKey(t.Context(), operator, account, "EdDSA", public))(t)
	if want := (store.ServiceAccountKey{
		ID: key.ID, AccountID: account.ID, Algorithm: "EdDSA", PublicKey: public,
		TmCreate: key.TmCreate, TmUpdate: key.TmCreate, TmDelete: store.Never().Local(),
	}); !reflect.DeepEqual(key, want) || key.ID.Version() != 4 {
		t.Errorf("the new key is\n%+v, want\n%+v", key, want)
	}
	check := func(what string, customerGone bool) {
		t.Helper()
		got := must(pairByID(t.Context(), w.store, key.ID, changelog.Position{}))(t)
		if !reflect.DeepEqual(got.Key, key) || !reflect.DeepEqual(got.Account, account) {
			t.Errorf("%s: the key reads as\n%+v, want\n%+v of\n%+v", what, got, key, account)
		}
		if got.CustomerTmDelete.Equal(store.Never()) == customerGone || got.Now.Before(key.TmCreate) ||
			!got.Key.TmDelete.Equal(store.Never()) && got.Key.TmDelete.After(got.Now) {
			t.Errorf("%s: at %v the customer's tm_delete is %v", what, got.Now, got.CustomerTmDelete)
		}
	}
	check("the live key", false)
	account = must(w.store.UpdateServiceAccount(t.Context(), operator, w.acme.ID, account.ID, store.ServiceAccountChange{Roles: &[]string{}}))(t)
	check("of an account that has lost its roles", false)
	key = must(w.store.DeleteServiceAccountKey(t.Context(), operator, account, key.ID))(t)
	check("the deleted key", false)
	account = must(w.store.DeleteServiceAccount(t.Context(), operator, w.acme.ID, account.ID))(t)
	check("of a deleted account", false)
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, w.acme.ID)
	check("of a deleted customer", true)
	for _, id := range []uuid.UUID{uuid.New(), account.ID, w.acme.ID} {
		wantError(t, "an id that is no key's", errorOf(pairByID(t.Context(), w.store, id, changelog.Position{})), store.ErrNotFound)
	}
}

// At most 10 live keys an account, so that rotation needs no gap: also where twenty are added at once, under whatever isolation the database
// has by default. Deleted ones and other accounts' do not count.
func TestAccountHasAtMostTenLiveKeys(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	full := w.createAccount(w.acme)
	live := func(account store.ServiceAccount) int {
		return value[int](w, `SELECT count(*) FROM service_account_keys WHERE account_id = $1 AND `+notDeleted, account.ID)
	}
	add := func(s *store.Store, account store.ServiceAccount) error {
		return errorOf(s.CreateServiceAccountKey(t.Context(), operator, account, "ES256", []byte("public")))
	}
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		s := open(t, withSetting(t, withSetting(t, w.url, "pool_max_conns", "10"), "default_transaction_isolation", isolation))
		account := w.createAccount(w.acme)
		for range 3 {
			must(w.store.DeleteServiceAccountKey(t.Context(), operator, account, w.createAccountKey(account).ID))(t)
		}
		refused := 0
		for _, err := range atOnce(20, func(int) error { return add(s, account) }) {
			if errors.Is(err, store.ErrTooManyKeys) {
				refused++
			} else if err != nil {
				t.Errorf("%s: %v", isolation, err)
			}
		}
		if got := live(account); got != store.MaxServiceAccountKeys || refused != 20-store.MaxServiceAccountKeys {
			t.Errorf("%s: %d keys are live, and %d of 20 were refused", isolation, got, refused)
		}
		full = account
	}

	// Rotation: with one gone there is room for one, and no more.
	keys := must(w.store.ServiceAccountKeys(t.Context(), full.ID, store.Start(), 100))(t)
	must(w.store.DeleteServiceAccountKey(t.Context(), operator, full, keys[4].ID))(t)
	w.createAccountKey(full)
	wantError(t, "the eleventh key", add(w.store, full), store.ErrTooManyKeys)
	w.createAccountKey(w.createAccount(w.acme)) // another account has room

	// A write that adds a key waits for the one that has the account's row, and counts after that.
	must(w.store.DeleteServiceAccountKey(t.Context(), operator, full, keys[6].ID))(t)
	first := w.begin()
	execIn(t, first, `SELECT FROM service_accounts WHERE id = $1 FOR UPDATE`, full.ID)
	second := started(func() error { return add(w.store, full) })
	w.untilWaiting()
	execIn(t, first, `INSERT INTO service_account_keys (id, account_id, algorithm, spki) VALUES ($2, $1, 'ES256', 'public')`,
		full.ID, uuid.New())
	noError(t, first.Commit(t.Context()))
	wantError(t, "the eleventh key, which waited for the tenth", <-second, store.ErrTooManyKeys)

	// Control: the count alone, without the wait for the account's row, lets two in where there is room for one.
	must(w.store.DeleteServiceAccountKey(t.Context(), operator, full, keys[5].ID))(t)
	unguarded := []pgx.Tx{w.begin(), w.begin()}
	for _, tx := range unguarded {
		execIn(t, tx, `INSERT INTO service_account_keys (id, account_id, algorithm, spki)
			SELECT $2, $1, 'ES256', 'public'
			WHERE (SELECT count(*) FROM service_account_keys WHERE account_id = $1 AND `+notDeleted+`) < 10`,
			full.ID, uuid.New())
	}
	for _, tx := range unguarded {
		noError(t, tx.Commit(t.Context()))
	}
	wantEqual(t, "control: live keys without the wait", live(full), 11)
}
