package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// newSignup is a sign-up whose secrets are known by their name.
func newSignup(name, email string) store.NewSignup {
	return store.NewSignup{
		TempTokenHash: sha256.Sum256([]byte("token " + name)), CodeHash: sha256.Sum256([]byte("code " + name)), Email: email, Name: name,
	}
}

// completing is the error of completing a sign-up.
func completing(ctx context.Context, s *store.Store, n store.NewSignup, key store.NewAccessKey) error {
	_, _, err := s.CompleteSignup(ctx, n.TempTokenHash, n.CodeHash, key)
	return err
}

// Where the key can't be made, neither is the customer, and the sign-up can be completed again.
func TestSignupMakesCustomerAndKeyOrNeither(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	n := newSignup("ada", "ada@new.example")
	made := must(w.store.CreateSignup(t.Context(), n))(t)
	fatalIf(t, made.AddressTaken || !made.Stored, "made %+v", made)
	taken := newKey(w.acme, year)
	must(w.store.CreateAccessKey(t.Context(), operator, taken))(t)
	wantError(t, "completing it", completing(t.Context(), w.store, n, taken), store.ErrTokenTaken)
	customers := must(w.store.Customers(t.Context(), nil, store.Start(), 10))(t)
	errorIf(t, len(customers) != 2, "customers %v", customers)
	key := newKey(w.globex, year) // whose CustomerID counts for nothing
	customer, created, err := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, key)
	if err != nil || customer.Name != "ada" || customer.Email != "ada@new.example" || created.CustomerID != customer.ID || created.AgentID != nil {
		t.Fatalf("customer %+v, key %+v, error %v", customer, created, err)
	}
	credential := must(keyByHash(t.Context(), w.store, key.TokenHash, changelog.Position{}))(t)
	if credential.CustomerID != customer.ID || strings.Join(credential.Roles, " ") != "customer_admin" {
		t.Errorf("credential %+v", credential)
	}
	wantError(t, "a second time", completing(t.Context(), w.store, n, newKey(w.acme, year)), store.ErrNoSignup)
}

func TestDroppedSignupDoesNotCount(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for i := range 6 {
		n := newSignup(strings.Repeat("a", i+1), "ada@new.example")
		made := must(w.store.CreateSignup(t.Context(), n))(t)
		fatalIf(t, !made.Stored, "the sign-up after %d dropped ones is not stored", i)
		noError(t, w.store.DropSignup(t.Context(), made.ID))
		wantError(t, "a dropped sign-up", completing(t.Context(), w.store, n, newKey(w.acme, year)), store.ErrNoSignup)
	}
}

// A sign-up that fails for the database's sake is no refusal.
func TestSignupOnADeadDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	n := newSignup("ada", "ada@new.example")
	must(w.store.CreateSignup(t.Context(), n))(t)
	w.store.Close()
	_, err := w.store.CreateSignup(t.Context(), newSignup("bob", "bob@new.example"))
	completing := completing(t.Context(), w.store, n, newKey(w.acme, year))
	dropping := w.store.DropSignup(t.Context(), w.acme.ID)
	for i, err := range []error{err, completing, dropping} {
		errorIf(t, !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNoSignup), "%d: error %v", i, err)
	}
}

// However many sign-ups wait and customers there are, a new sign-up reads little of them: strangers choose how often.
func TestSignupsReadTheirIndexesAndLittleElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`INSERT INTO customers (id, name, email) SELECT gen_random_uuid(), 'c', 'c' || i || '@old.example' FROM generate_series(1, 20000) i`)
	w.exec(`INSERT INTO signups (id, temp_token_hash, code_hash, email, name, known, tm_expire)
		SELECT gen_random_uuid(), sha256(int8send(i)), sha256('x'), 's' || i || '@new.example', 's', false, now() + (i - 200) * interval '1 min'
		FROM generate_series(1, 20000) i`)
	w.exec(`VACUUM ANALYZE`)
	traced, catcher := openTraced(t, w.url)
	n := newSignup("ada", "ada@new.example")
	must(traced.CreateSignup(t.Context(), n))(t)
	noError(t, completing(t.Context(), traced, n, newKey(w.acme, year)))
	w.readIndexes([]indexed{
		{"clearing away", catcher.with(t, "SKIP LOCKED"), "signups_tm_expire", nil},
		{"counting", catcher.with(t, "INSERT INTO signups"), "signups_email", nil},
		{"knowing", catcher.with(t, "INSERT INTO signups"), "customers_live_email", nil},
		{"trying", catcher.with(t, "SET tries"), "signups_temp_token_hash_key", nil},
		{"knowing by now", catcher.with(t, "SELECT EXISTS"), "customers_live_email", nil},
	})
}
