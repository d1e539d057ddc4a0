package store_test

import (
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

// Customer and key come together or not at all: where the key can't be made, neither is the customer, and the sign-up can be completed
// again.
func TestSignupMakesCustomerAndKeyOrNeither(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	n := newSignup("ada", "ada@new.example")
	made := must(w.store.CreateSignup(t.Context(), n))(t)
	if made.AddressTaken || !made.Stored {
		t.Fatalf("made %+v", made)
	}
	taken := newKey(w.acme, year)
	must(w.store.CreateAccessKey(t.Context(), store.Operator(), taken))(t)
	if _, _, err := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, taken); !errors.Is(err, store.ErrTokenTaken) {
		t.Fatalf("error %v", err)
	}
	customers := must(w.store.Customers(t.Context(), nil, store.Start(), 10))(t)
	if len(customers) != 2 {
		t.Errorf("customers %v", customers)
	}
	key := newKey(w.globex, year) // whose CustomerID counts for nothing
	customer, created, err := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, key)
	if err != nil || customer.Name != "ada" || customer.Email != "ada@new.example" || created.CustomerID != customer.ID || created.AgentID != nil {
		t.Fatalf("customer %+v, key %+v, error %v", customer, created, err)
	}
	credential := must(keyByHash(t.Context(), w.store, key.TokenHash, changelog.Position{}))(t)
	if credential.CustomerID != customer.ID || strings.Join(credential.Roles, " ") != "customer_admin" {
		t.Errorf("credential %+v", credential)
	}
	if _, _, err := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, newKey(w.acme, year)); !errors.Is(err, store.ErrNoSignup) {
		t.Errorf("a second time: error %v", err)
	}
}

// A sign-up that is taken back is gone, and does not count any more.
func TestDroppedSignupDoesNotCount(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for i := range 6 {
		n := newSignup(strings.Repeat("a", i+1), "ada@new.example")
		made := must(w.store.CreateSignup(t.Context(), n))(t)
		if !made.Stored {
			t.Fatalf("the sign-up after %d dropped ones is not stored", i)
		}
		if err := w.store.DropSignup(t.Context(), made.ID); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, newKey(w.acme, year)); !errors.Is(err, store.ErrNoSignup) {
			t.Errorf("a dropped sign-up: error %v", err)
		}
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
	_, _, completing := w.store.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, newKey(w.acme, year))
	dropping := w.store.DropSignup(t.Context(), w.acme.ID)
	for i, err := range []error{err, completing, dropping} {
		if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNoSignup) {
			t.Errorf("%d: error %v", i, err)
		}
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
	catcher := &statements{}
	traced := openTraced(t, w.url, catcher)
	defer traced.Close()
	n := newSignup("ada", "ada@new.example")
	must(traced.CreateSignup(t.Context(), n))(t)
	if _, _, err := traced.CompleteSignup(t.Context(), n.TempTokenHash, n.CodeHash, newKey(w.acme, year)); err != nil {
		t.Fatal(err)
	}
	sent := func(part string) statement {
		t.Helper()
		for _, s := range catcher.all {
			if strings.Contains(s.sql, part) {
				return s
			}
		}
		t.Fatalf("no statement with %s among %v", part, catcher.all)
		return statement{}
	}
	for _, test := range []struct{ name, part, index string }{
		{"clearing away", "SKIP LOCKED", "signups_tm_expire"},
		{"counting", "INSERT INTO signups", "signups_email"},
		{"knowing", "INSERT INTO signups", "customers_live_email"},
		{"trying", "SET tries", "signups_temp_token_hash_key"},
		{"knowing by now", "SELECT EXISTS", "customers_live_email"},
	} {
		drop := "DROP INDEX " + test.index
		if strings.HasSuffix(test.index, "_key") {
			drop = "ALTER TABLE signups DROP CONSTRAINT " + test.index
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			plan := w.explain(mode, sent(test.part), "")
			for _, problem := range plan.problems(test.index) {
				t.Errorf("%s, %s: %s in\n%s", test.name, mode, problem, plan.text)
			}
			if plan := w.explain(mode, sent(test.part), drop); len(plan.problems(test.index)) == 0 { // the control
				t.Errorf("%s, %s: without the index the plan still passes", test.name, mode)
			}
		}
	}
}
