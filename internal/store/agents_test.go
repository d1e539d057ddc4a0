package store_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// Contract, section 2: user names match without regard to case.
func TestAgentIsFoundByUsernameInAnyCase(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "Alice@Example.com"), w.createAgent(w.globex, "bob")
	wanted := newAgent(w.acme, "Alice@Example.com")
	if want := (store.Agent{
		ID: alice.ID, CustomerID: w.acme.ID, Username: wanted.Username, Name: wanted.Name, Detail: wanted.Detail, Permission: 32,
		TmPassword: alice.TmCreate, TmCreate: alice.TmCreate, TmUpdate: alice.TmCreate, TmDelete: store.Never().Local(),
	}); alice != want || want.ID.Version() != 4 {
		t.Errorf("the new agent is\n%+v, want\n%+v", alice, want)
	}
	for username, want := range map[string]store.Agent{
		"Alice@Example.com": alice, "alice@example.com": alice, "ALICE@EXAMPLE.COM": alice, "BOB": bob,
	} {
		got := must(w.store.AgentByUsername(t.Context(), username, netip.Prefix{}))(t)
		if got.Agent != want || got.PasswordHash.Reveal() != passwordHash {
			t.Errorf("%s is %+v, want %+v", username, got.Agent, want)
		}
	}
	for _, username := range []string{"alice", "Alice@Example.com x", "%", "alice@example_com", ""} {
		_, err := w.store.AgentByUsername(t.Context(), username, netip.Prefix{})
		wantError(t, username, err, store.ErrNotFound)
	}
	for _, username := range []string{"Alice@Example.com", "aLICE@eXAMPLE.COM"} {
		for _, customer := range []store.Customer{w.acme, w.globex} {
			_, err := w.store.CreateAgent(t.Context(), store.Operator(), newAgent(customer, username))
			wantError(t, "another "+username, err, store.ErrUsernameTaken)
		}
	}
}

// Contract, section 2: Unknown user, wrong password and deleted user get one answer; "A token stops working at once where its agent is
// deleted": the credential of a deleted agent is still found, its login is not.
func TestDeletedAgentCannotLogInAndIsSeenToBeDeleted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.globex, "bob")
	w.createAgent(w.acme, "another admin")
	before := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t)
	if before.Agent != alice || !before.CustomerTmDelete.Equal(store.Never()) {
		t.Errorf("the live agent's credential is %+v", before)
	}
	gone := must(w.store.DeleteAgent(t.Context(), store.Operator(), alice))(t)
	if !gone.TmDelete.Equal(gone.TmUpdate) || gone.TmDelete.Before(alice.TmCreate) {
		t.Errorf("a deleted agent has tm_delete %v, tm_update %v", gone.TmDelete, gone.TmUpdate)
	}
	after := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t)
	if after.Agent != gone || after.TmDelete.After(after.Now) {
		t.Errorf("the deleted agent's credential is %+v", after)
	}
	_, err := w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{})
	wantError(t, "a deleted agent's login", err, store.ErrNotFound)
	for _, id := range []uuid.UUID{alice.ID, uuid.New()} {
		_, err = w.store.SetPassword(t.Context(), store.Operator(), agentOf(alice.CustomerID, id), secret.New(passwordHash))
		wantError(t, "setting the password of a deleted agent, or of none", err, store.ErrNotFound)
		_, err = w.store.DeleteAgent(t.Context(), store.Operator(), agentOf(alice.CustomerID, id))
		wantError(t, "deleting a deleted agent, or none", err, store.ErrNotFound)
	}
	_, err = agentByID(t.Context(), w.store, uuid.New(), changelog.Position{})
	wantError(t, "no agent's credential", err, store.ErrNotFound)

	// The username is free again, and finds the new agent.
	second := w.createAgent(w.globex, "ALICE")
	if got := must(w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{}))(t); got.Agent != second {
		t.Errorf("alice is %+v, want %+v", got.Agent, second)
	}

	// With its customer goes an agent's login.
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, w.globex.ID)
	_, err = w.store.AgentByUsername(t.Context(), "bob", netip.Prefix{})
	wantError(t, "the login of a deleted customer's agent", err, store.ErrNotFound)
	if got := must(agentByID(t.Context(), w.store, bob.ID, changelog.Position{}))(t); got.Agent != bob || got.CustomerTmDelete.After(got.Now) {
		t.Errorf("the credential of a deleted customer's agent is %+v", got)
	}
}

// Contract, section 2: A token stops working at once ... where the agent's password is changed after iat: renewing a hash is no change, and
// never undoes one.
func TestRenewingAHashKeepsTokensAndNeverUndoesAChange(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const old, renewed, changed = passwordHash, "$argon2id$renewed", "$argon2id$changed"
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.globex, "bob")
	w.createAgent(w.acme, "another admin")
	hash := func(id uuid.UUID) string {
		return value[string](w, `SELECT password_hash FROM agents WHERE id = $1`, id)
	}
	renew := func(read store.Agent, from, to string) {
		t.Helper()
		login := store.AgentLogin{Agent: read, PasswordHash: secret.New(from)}
		if err := w.store.RenewPasswordHash(t.Context(), login, secret.New(to)); err != nil {
			t.Fatal(err)
		}
	}
	renew(alice, old, renewed)
	renew(alice, old, "$argon2id$again") // of another login at the same time
	if got := hash(alice.ID); got != renewed {
		t.Errorf("the renewed hash is %s", got)
	}
	if got := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t); got.Agent != alice {
		t.Errorf("renewing a hash has changed more: %+v, was %+v", got.Agent, alice)
	}

	set := must(w.store.SetPassword(t.Context(), store.Operator(), alice, secret.New(changed)))(t)
	if !set.TmPassword.After(alice.TmPassword) || !set.TmUpdate.Equal(set.TmPassword) {
		t.Errorf("a new password has tm_password %v and tm_update %v, was %v", set.TmPassword, set.TmUpdate, alice.TmPassword)
	}
	want := alice
	want.TmPassword, want.TmUpdate = set.TmPassword, set.TmUpdate
	if set != want {
		t.Errorf("a new password has changed more: %+v, was %+v", set, alice)
	}
	// A token knows its password by tm_password: it moves on also where the clock went back.
	w.exec(`UPDATE agents SET tm_password = now() + interval '1 hour' WHERE id = $1`, alice.ID)
	ahead := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t).TmPassword
	if set = must(w.store.SetPassword(t.Context(), store.Operator(), alice, secret.New(changed)))(t); !set.TmPassword.After(ahead) {
		t.Errorf("tm_password was %v, and is %v", ahead, set.TmPassword)
	}
	renew(alice, renewed, "$argon2id$late") // read before the change, written after it
	if got := hash(alice.ID); got != changed {
		t.Errorf("a late renewal has put back %s", got)
	}
	if got := hash(bob.ID); got != old {
		t.Errorf("the other agent's hash is %s", got)
	}
	if _, err := w.store.DeleteAgent(t.Context(), store.Operator(), alice); err != nil {
		t.Fatal(err)
	}
	renew(set, changed, "$argon2id$afterlife")
	if got := hash(alice.ID); got != changed {
		t.Errorf("a deleted agent's hash is %s", got)
	}
}

// Contract, section 5: a list of the customers that the caller may see (its own; ProjectSuperAdmin: all).
func TestCustomersAreListedNewestFirstOwnOrAll(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	initech := must(w.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "Initech", Detail: "d", Email: "e@x"}))(t)
	if want := (store.Customer{
		ID: initech.ID, Name: "Initech", Detail: "d", Email: "e@x", TmCreate: initech.TmCreate, TmUpdate: initech.TmCreate,
		TmDelete: store.Never().Local(),
	}); initech != want {
		t.Errorf("the new customer is\n%+v, want\n%+v", initech, want)
	}
	gone := must(w.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "Gone"}))(t)
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, gone.ID)
	_, err := w.store.Customer(t.Context(), gone.ID)
	wantError(t, "a deleted customer", err, store.ErrNotFound)
	_, err = w.store.Customer(t.Context(), uuid.New())
	wantError(t, "no customer", err, store.ErrNotFound)
	if got := must(w.store.Customer(t.Context(), w.acme.ID))(t); got != w.acme {
		t.Errorf("the customer is %+v, want %+v", got, w.acme)
	}

	after := func(c store.Customer) store.Cursor { return store.Cursor{TmCreate: c.TmCreate, ID: c.ID} }
	nobody := uuid.New()
	for name, test := range map[string]struct {
		only  *uuid.UUID
		after store.Cursor
		limit int
		want  []store.Customer
	}{
		"all":                    {nil, store.Start(), 100, []store.Customer{initech, w.globex, w.acme}},
		"the first two":          {nil, store.Start(), 2, []store.Customer{initech, w.globex}},
		"after the first":        {nil, after(initech), 2, []store.Customer{w.globex, w.acme}},
		"after the last":         {nil, after(w.acme), 2, []store.Customer{}},
		"before a point in time": {nil, createdBefore(w.globex.TmCreate), 100, []store.Customer{w.acme}},
		"its own":                {&w.acme.ID, store.Start(), 100, []store.Customer{w.acme}},
		"a deleted one's own":    {&gone.ID, store.Start(), 100, []store.Customer{}},
		"nobody's":               {&nobody, store.Start(), 100, []store.Customer{}},
	} {
		if got := must(w.store.Customers(t.Context(), test.only, test.after, test.limit))(t); got == nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
