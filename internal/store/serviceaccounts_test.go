package store_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// An account has name, detail and roles: what is absent keeps its value, an empty list of roles is none.
func TestUpdateOfAServiceAccountChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := must(w.store.CreateServiceAccount(t.Context(), store.Operator(), store.NewServiceAccount{
		CustomerID: w.acme.ID, Name: "ci", Detail: "of the build", Roles: []string{"agent_viewer", "accesskey_admin"},
	}))(t)
	if want := (store.ServiceAccount{
		ID: account.ID, CustomerID: w.acme.ID, Name: "ci", Detail: "of the build", Roles: []string{"agent_viewer", "accesskey_admin"},
		TmCreate: account.TmCreate, TmUpdate: account.TmCreate, TmDelete: store.Never().Local(),
	}); !reflect.DeepEqual(account, want) || account.ID.Version() != 4 {
		t.Errorf("the new account is\n%+v, want\n%+v", account, want)
	}
	other := w.createAccount(w.globex, "customer_admin")
	text := func(s string) *string { return &s }
	roles := func(s ...string) *[]string { s = append([]string{}, s...); return &s }
	for _, test := range []struct {
		what   string
		change store.ServiceAccountChange
		want   func(*store.ServiceAccount)
	}{
		{"nothing", store.ServiceAccountChange{}, func(*store.ServiceAccount) {}},
		{"the name", store.ServiceAccountChange{Name: text("n")}, func(a *store.ServiceAccount) { a.Name = "n" }},
		{"the detail", store.ServiceAccountChange{Detail: text("")}, func(a *store.ServiceAccount) { a.Detail = "" }},
		{"the roles", store.ServiceAccountChange{Roles: roles("customer_admin")}, func(a *store.ServiceAccount) { a.Roles = []string{"customer_admin"} }},
		{"no role", store.ServiceAccountChange{Roles: roles()}, func(a *store.ServiceAccount) { a.Roles = []string{} }},
	} {
		got := must(w.store.UpdateServiceAccount(t.Context(), store.Operator(), w.acme.ID, account.ID, test.change))(t)
		want := account
		test.want(&want)
		want.TmUpdate = got.TmUpdate
		if !reflect.DeepEqual(got, want) || !got.TmUpdate.After(account.TmUpdate) {
			t.Errorf("%s: the account is\n%+v, want\n%+v", test.what, got, want)
		}
		if stored := must(w.store.ServiceAccount(t.Context(), account.ID))(t); !reflect.DeepEqual(stored, want) {
			t.Errorf("%s: the stored account is\n%+v, want\n%+v", test.what, stored, want)
		}
		account = got
	}
	if got := must(w.store.ServiceAccount(t.Context(), other.ID))(t); !reflect.DeepEqual(got, other) {
		t.Errorf("the other customer's account is %+v, was %+v", got, other)
	}
}

// Each with a second customer: a write names the customer whose account, or the account whose key, it is.
func TestWritesReachLiveServiceAccountsAndKeysOfTheirOwnersOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	mine, theirs, gone := w.createAccount(w.acme), w.createAccount(w.globex), w.createAccount(w.acme)
	minesPair, theirsPair, gonesPair := w.createAccountKey(mine), w.createAccountKey(theirs), w.createAccountKey(gone)
	lost := w.createAccountKey(mine)
	lost = must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), mine, lost.ID))(t)
	gone = must(w.store.DeleteServiceAccount(t.Context(), store.Operator(), w.acme.ID, gone.ID))(t)
	if !gone.TmDelete.Equal(gone.TmUpdate) || !gone.TmDelete.After(gone.TmCreate) || !lost.TmDelete.Equal(lost.TmUpdate) {
		t.Errorf("deleted ones are %+v and %+v", gone, lost)
	}
	before := append(w.ownedBy(w.acme), w.ownedBy(w.globex)...)
	name := "changed"
	for what, target := range map[string]struct{ customer, id uuid.UUID }{
		"an account of another customer": {w.acme.ID, theirs.ID},
		"a deleted account":              {w.acme.ID, gone.ID},
		"no account":                     {w.acme.ID, uuid.New()},
		"an account of no customer":      {uuid.New(), mine.ID},
	} {
		_, err := w.store.UpdateServiceAccount(t.Context(), store.Operator(), target.customer, target.id, store.ServiceAccountChange{Name: &name})
		wantError(t, "updating "+what, err, store.ErrNotFound)
		_, err = w.store.DeleteServiceAccount(t.Context(), store.Operator(), target.customer, target.id)
		wantError(t, "deleting "+what, err, store.ErrNotFound)
	}
	for what, target := range map[string]struct{ customer, account, id uuid.UUID }{
		"a key of another account": {w.acme.ID, mine.ID, theirsPair.ID},
		"a deleted key":            {w.acme.ID, mine.ID, lost.ID},
		"no key":                   {w.acme.ID, mine.ID, uuid.New()},
		"a key of no account":      {w.acme.ID, uuid.New(), minesPair.ID},
		"a key of an account of another customer": {w.acme.ID, theirs.ID, theirsPair.ID},
	} {
		_, err := w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), accountOf(target.customer, target.account), target.id)
		wantError(t, "deleting "+what, err, store.ErrNotFound)
	}
	_, err := w.store.CreateServiceAccountKey(t.Context(), store.Operator(), accountOf(w.acme.ID, theirs.ID), "ES256", []byte("public"))
	wantError(t, "a key for an account of another customer", err, store.ErrNotFound)
	for what, id := range map[string]uuid.UUID{"a deleted account": gone.ID, "no account": uuid.New(), "an agent": w.createAgent(w.globex, "g").ID} {
		_, err := w.store.CreateServiceAccountKey(t.Context(), store.Operator(), accountOf(w.acme.ID, id), "ES256", []byte("public"))
		wantError(t, "a key for "+what, err, store.ErrNotFound)
		_, err = w.store.ServiceAccount(t.Context(), id)
		wantError(t, "reading "+what, err, store.ErrNotFound)
	}
	w.exec(`DELETE FROM agents`)
	if after := append(w.ownedBy(w.acme), w.ownedBy(w.globex)...); !slices.Equal(after, before) {
		t.Errorf("the rows were\n%v\nand are\n%v", before, after)
	}

	for customer, want := range map[uuid.UUID][]store.ServiceAccount{w.acme.ID: {mine}, w.globex.ID: {theirs}, uuid.New(): {}} {
		if got := must(w.store.ServiceAccounts(t.Context(), customer, store.Start(), 100))(t); !reflect.DeepEqual(got, want) {
			t.Errorf("customer %s lists %+v, want %+v", customer, got, want)
		}
	}
	second := w.createAccountKey(mine)
	for account, want := range map[uuid.UUID][]store.ServiceAccountKey{
		mine.ID: {second, minesPair}, theirs.ID: {theirsPair}, gone.ID: {gonesPair}, uuid.New(): {},
	} {
		if got := must(w.store.ServiceAccountKeys(t.Context(), account, store.Start(), 100))(t); !reflect.DeepEqual(got, want) {
			t.Errorf("account %s lists %+v, want %+v", account, got, want)
		}
	}
	after := store.Cursor{TmCreate: second.TmCreate, ID: second.ID}
	if got := must(w.store.ServiceAccountKeys(t.Context(), mine.ID, after, 1))(t); !reflect.DeepEqual(got, []store.ServiceAccountKey{minesPair}) {
		t.Errorf("the second page lists %+v, want %+v", got, minesPair)
	}
}

// Anything else is the same 401 as ever: who verifies a token sees its key, its account and its customer, and of each whether it is deleted,
// as they are now.
func TestKeyOfAServiceAccountIsFoundWhateverBecameOfIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := w.createAccount(w.acme, "agent_viewer")
	w.createAccountKey(w.createAccount(w.globex, "customer_admin"))
	public := []byte{0, 1, 0xFF}
	key := must(w.store.CreateServiceAccountKey(t.Context(), store.Operator(), account, "EdDSA", public))(t)
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
	account = must(w.store.UpdateServiceAccount(t.Context(), store.Operator(), w.acme.ID, account.ID, store.ServiceAccountChange{Roles: &[]string{}}))(t)
	check("of an account that has lost its roles", false)
	key = must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), account, key.ID))(t)
	check("the deleted key", false)
	account = must(w.store.DeleteServiceAccount(t.Context(), store.Operator(), w.acme.ID, account.ID))(t)
	check("of a deleted account", false)
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, w.acme.ID)
	check("of a deleted customer", true)
	for _, id := range []uuid.UUID{uuid.New(), account.ID, w.acme.ID} {
		_, err := pairByID(t.Context(), w.store, id, changelog.Position{})
		wantError(t, "an id that is no key's", err, store.ErrNotFound)
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
	for isolation, s := range map[string]*store.Store{
		"read committed":  open(t, withSetting(t, w.url, "pool_max_conns", "10")),
		"repeatable read": open(t, withSetting(t, withSetting(t, w.url, "pool_max_conns", "10"), "default_transaction_isolation", "repeatable read")),
		"serializable":    open(t, withSetting(t, withSetting(t, w.url, "pool_max_conns", "10"), "default_transaction_isolation", "serializable")),
	} {
		account := w.createAccount(w.acme)
		for range 3 {
			must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), account, w.createAccountKey(account).ID))(t)
		}
		refused := 0
		for _, err := range atOnce(20, func(int) error {
			_, err := s.CreateServiceAccountKey(t.Context(), store.Operator(), account, "ES256", []byte("public"))
			return err
		}) {
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
	must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), full, keys[4].ID))(t)
	w.createAccountKey(full)
	_, err := w.store.CreateServiceAccountKey(t.Context(), store.Operator(), full, "ES256", []byte("public"))
	wantError(t, "the eleventh key", err, store.ErrTooManyKeys)
	w.createAccountKey(w.createAccount(w.acme)) // another account has room

	// A write that adds a key waits for the one that has the account's row, and counts after that.
	must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), full, keys[6].ID))(t)
	first := w.begin()
	if _, err := first.Exec(t.Context(), `SELECT FROM service_accounts WHERE id = $1 FOR UPDATE`, full.ID); err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := w.store.CreateServiceAccountKey(t.Context(), store.Operator(), full, "ES256", []byte("public"))
		second <- err
	}()
	w.untilWaiting()
	if _, err := first.Exec(t.Context(), `INSERT INTO service_account_keys (id, account_id, algorithm, spki) VALUES ($2, $1, 'ES256', 'public')`,
		full.ID, uuid.New()); err != nil {
		t.Fatal(err)
	}
	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, "the eleventh key, which waited for the tenth", <-second, store.ErrTooManyKeys)

	// Control: the count alone, without the wait for the account's row, lets two in where there is room for one.
	must(w.store.DeleteServiceAccountKey(t.Context(), store.Operator(), full, keys[5].ID))(t)
	unguarded := []pgx.Tx{w.begin(), w.begin()}
	for _, tx := range unguarded {
		if _, err := tx.Exec(t.Context(), `INSERT INTO service_account_keys (id, account_id, algorithm, spki)
			SELECT $2, $1, 'ES256', 'public'
			WHERE (SELECT count(*) FROM service_account_keys WHERE account_id = $1 AND `+notDeleted+`) < 10`,
			full.ID, uuid.New()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tx := range unguarded {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := live(full); got != 11 {
		t.Errorf("control: without the wait %d keys are live", got)
	}
}
