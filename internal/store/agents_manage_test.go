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

// PUT /v1.0/agents/{id}; "a taken username is 409 USERNAME_TAKEN": what is absent keeps its value, and a username may be changed to itself
// in another case, to one that is nobody's, and to one of a deleted agent.
func TestUpdateOfAnAgentChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	agent := w.createAgent(w.acme, "Alice@Example.com")
	w.createAgent(w.acme, "Taken")
	w.createAgent(w.globex, "There")
	gone := w.createAgent(w.globex, "Gone")
	w.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, gone.ID)
	text := func(s string) *string { return &s }
	for _, test := range []struct {
		what   string
		change store.AgentChange
		want   func(*store.Agent)
	}{
		{"nothing", store.AgentChange{}, func(*store.Agent) {}},
		{"the name", store.AgentChange{Name: text("n")}, func(a *store.Agent) { a.Name = "n" }},
		{"the detail", store.AgentChange{Detail: text("d")}, func(a *store.Agent) { a.Detail = "d" }},
		{"both to empty", store.AgentChange{Name: text(""), Detail: text("")}, func(a *store.Agent) { a.Name, a.Detail = "", "" }},
		{"its own username", store.AgentChange{Username: text("Alice@Example.com")}, func(*store.Agent) {}},
		{"its case", store.AgentChange{Username: text("aLICE@eXAMPLE.COM")}, func(a *store.Agent) { a.Username = "aLICE@eXAMPLE.COM" }},
		{"a deleted agent's", store.AgentChange{Username: text("gone")}, func(a *store.Agent) { a.Username = "gone" }},
		{"another username", store.AgentChange{Username: text("alice")}, func(a *store.Agent) { a.Username = "alice" }},
	} {
		got := must(w.store.UpdateAgent(t.Context(), store.Operator(), agent, test.change))(t)
		want := agent
		test.want(&want)
		want.TmUpdate = got.TmUpdate
		if got != want || !got.TmUpdate.After(agent.TmUpdate) {
			t.Errorf("%s: the agent is\n%+v, want\n%+v", test.what, got, want)
		}
		if login := must(w.store.AgentByUsername(t.Context(), got.Username, netip.Prefix{}))(t); login.Agent != got || login.PasswordHash.Reveal() != passwordHash {
			t.Errorf("%s: who logs in as %s is %+v", test.what, got.Username, login.Agent)
		}
		agent = got
	}
	before := w.everything()
	for _, username := range []string{"taken", "TAKEN", "there", "There"} {
		_, err := w.store.UpdateAgent(t.Context(), store.Operator(), agent, store.AgentChange{Username: &username, Name: text("lost")})
		wantError(t, "taking the username "+username, err, store.ErrUsernameTaken)
	}
	if after := w.everything(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
}

// CustomerAdmin manages its customer's agents: a write names the customer whose agent it is.
func TestWritesReachLiveAgentsOfTheirOwnCustomerOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	mine, theirs := w.createAgent(w.acme, "mine"), w.createAgent(w.globex, "theirs")
	w.createAgent(w.globex, "second") // so that it is not for being the last that theirs stays
	gone := w.createAgent(w.acme, "gone")
	gone = must(w.store.DeleteAgent(t.Context(), store.Operator(), gone))(t)
	before := w.everything()
	name := "changed"
	for what, target := range map[string]struct{ customer, id uuid.UUID }{
		"an agent of another customer": {w.acme.ID, theirs.ID},
		"a deleted agent":              {w.acme.ID, gone.ID},
		"no agent":                     {w.acme.ID, uuid.New()},
		"an agent of no customer":      {uuid.New(), mine.ID},
	} {
		_, err := w.store.UpdateAgent(t.Context(), store.Operator(), agentOf(target.customer, target.id), store.AgentChange{Name: &name})
		wantError(t, "updating "+what, err, store.ErrNotFound)
		for _, permission := range []int64{0, 0xFFFF} {
			_, err = w.store.SetPermission(t.Context(), store.Operator(), agentOf(target.customer, target.id), permission)
			wantError(t, "promoting or demoting "+what, err, store.ErrNotFound)
		}
		_, err = w.store.DeleteAgent(t.Context(), store.Operator(), agentOf(target.customer, target.id))
		wantError(t, "deleting "+what, err, store.ErrNotFound)
	}
	if after := w.everything(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
	for _, id := range []uuid.UUID{gone.ID, uuid.New()} {
		_, err := w.store.Agent(t.Context(), id)
		wantError(t, "reading a deleted agent, or none", err, store.ErrNotFound)
	}
	for customer, want := range map[uuid.UUID][]store.Agent{
		w.acme.ID: {mine}, w.globex.ID: {must(w.store.AgentByUsername(t.Context(), "second", netip.Prefix{}))(t).Agent, theirs}, uuid.New(): {},
	} {
		got := must(w.store.Agents(t.Context(), customer, store.Start(), 100))(t)
		if got == nil || !slices.Equal(got, want) {
			t.Errorf("customer %s lists %+v, want %+v", customer, got, want)
		}
	}
	for id, want := range map[uuid.UUID]store.Agent{mine.ID: mine, theirs.ID: theirs} {
		if got := must(w.store.Agent(t.Context(), id))(t); got != want {
			t.Errorf("the agent is %+v, want %+v", got, want)
		}
	}
}

// Objects gain agent_id (null for customer-wide); "acts with that agent's permission as it is at the time of each request": what
// verification reads of a key tells whose it is and which agent to read, and the agent reads as it is now.
func TestKeyOfAnAgentReadsItsAgentAsItIsNow(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.createAgent(w.acme, "alice")
	w.createAgent(w.acme, "another admin")
	w.createAgent(w.globex, "glob")
	bound, wide, limited, powerless := userKey(alice), newKey(w.acme, year), newKey(w.acme, year), newKey(w.acme, year)
	limited.Roles, powerless.Roles = []string{"agent_viewer", "accesskey_viewer"}, []string{}
	admin := []string{"customer_admin"}
	read := func(k store.NewAccessKey) store.AccessKeyCredential {
		t.Helper()
		return must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t)
	}
	for name, test := range map[string]struct {
		key   store.NewAccessKey
		roles []string
	}{
		"bound": {bound, admin}, "wide": {wide, admin}, "limited": {limited, limited.Roles}, "powerless": {powerless, []string{}},
	} {
		created := must(w.store.CreateAccessKey(t.Context(), store.Operator(), test.key))(t)
		got := read(test.key)
		if !sameKey(got.AccessKey, created) || !sameID(created.AgentID, test.key.AgentID) || !slices.Equal(got.Roles, test.roles) ||
			!got.CustomerTmDelete.Equal(store.Never()) {
			t.Errorf("the %s key is\n%+v\nand reads as\n%+v", name, created, got)
		}
	}
	for _, permission := range []int64{0, 16, 0xFFFF} {
		must(w.store.SetPermission(t.Context(), store.Operator(), alice, permission))(t)
		if got := must(agentByID(t.Context(), w.store, *read(bound).AgentID, changelog.Position{}))(t); got.Permission != permission {
			t.Errorf("with the permission %d the key's agent reads %d", permission, got.Permission)
		}
	}
	w.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, alice.ID) // by whatever way
	if got := must(agentByID(t.Context(), w.store, *read(bound).AgentID, changelog.Position{}))(t); got.TmDelete.After(got.Now) {
		t.Errorf("a deleted key's agent reads as %+v", got)
	}
}

// The key of an agent is its customer's: no store call makes one that is of two.
func TestKeyAndItsAgentAreOfOneCustomer(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.createAgent(w.acme, "alice")
	for name, customer := range map[string]uuid.UUID{"another customer's key": w.globex.ID, "no customer's": uuid.New()} {
		k := userKey(alice)
		k.CustomerID = customer
		if _, err := w.store.CreateAccessKey(t.Context(), store.Operator(), k); err == nil {
			t.Errorf("%s is bound to acme's agent", name)
		}
	}
	nobodys := newKey(w.acme, year)
	id := uuid.New()
	nobodys.AgentID = &id
	_, err := w.store.CreateAccessKey(t.Context(), store.Operator(), nobodys)
	wantError(t, "a key of no agent", err, store.ErrNoAgent)
	own := must(w.store.CreateAccessKey(t.Context(), store.Operator(), userKey(alice)))(t) // control
	for what, change := range map[string]string{
		"the key to another customer":   `UPDATE accesskeys SET customer_id = $1 WHERE id = $2`,
		"the agent to another customer": `UPDATE agents SET customer_id = $1 WHERE id = (SELECT agent_id FROM accesskeys WHERE id = $2)`,
	} {
		if _, err := w.db.Exec(t.Context(), change, w.globex.ID, own.ID); err == nil {
			t.Errorf("one can move %s", what)
		}
	}
}

// A deleted agent's tokens and user keys stop at once: its keys go with it, and no others.
func TestKeysOfAnAgentAreDeletedWithIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.acme, "bob")
	glob := w.createAgent(w.globex, "glob")
	w.createKey(w.acme)
	create := func(a store.Agent) store.AccessKey {
		t.Helper()
		return must(w.store.CreateAccessKey(t.Context(), store.Operator(), userKey(a)))(t)
	}
	first, second, early := create(alice), create(alice), create(alice)
	early = must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, early.ID))(t)
	bobs, globs := create(bob), create(glob)
	others := `SELECT string_agg(to_jsonb(k)::text, E'\n' ORDER BY id) FROM accesskeys k WHERE agent_id IS DISTINCT FROM $1`
	before := value[string](w, others, alice.ID)

	gone := must(w.store.DeleteAgent(t.Context(), store.Operator(), alice))(t)
	for _, id := range []uuid.UUID{first.ID, second.ID} {
		if !value[bool](w, `SELECT tm_delete = $2 AND tm_update = $2 FROM accesskeys WHERE id = $1`, id, gone.TmDelete) {
			t.Error("a key of the agent's does not end with it")
		}
	}
	if !value[bool](w, `SELECT tm_delete = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete) {
		t.Error("a key that was deleted before has another tm_delete")
	}
	if after := value[string](w, others, alice.ID); after != before {
		t.Errorf("the other keys were\n%s\nand are\n%s", before, after)
	}
	for agent, want := range map[uuid.UUID][]store.AccessKey{alice.ID: {}, bob.ID: {bobs}, glob.ID: {globs}, uuid.New(): {}} {
		got := must(w.store.AccessKeysOfAgent(t.Context(), agent, store.Start(), 100))(t)
		if got == nil || !slices.EqualFunc(got, want, sameKey) {
			t.Errorf("agent %s lists %+v, want %+v", agent, got, want)
		}
	}

	// Where the deletion is refused, the keys stay.
	_, err := w.store.DeleteAgent(t.Context(), store.Operator(), bob)
	wantError(t, "deleting the last admin", err, store.ErrLastAdmin)
	if got := must(w.store.AccessKey(t.Context(), bobs.ID))(t); !sameKey(got, bobs) {
		t.Errorf("the last admin's key is %+v", got)
	}
}

// A changed password ends the tokens issued before it, and touches nothing else of the agent's.
func TestChangedPasswordLeavesTheAgentsKeysAlone(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.createAgent(w.acme, "alice")
	key := must(w.store.CreateAccessKey(t.Context(), store.Operator(), userKey(alice)))(t)
	set := must(w.store.SetPassword(t.Context(), store.Operator(), alice, secret.New("$argon2id$changed")))(t)
	if !set.TmPassword.After(alice.TmPassword) {
		t.Error("tm_password has not moved")
	}
	if got := must(w.store.AccessKey(t.Context(), key.ID))(t); !sameKey(got, key) {
		t.Errorf("the key is %+v, was %+v", got, key)
	}
}

func sameID(a, b *uuid.UUID) bool { return a == b || a != nil && b != nil && *a == *b }

// sameKey compares keys: their agents' ids are pointers.
func sameKey(a, b store.AccessKey) bool {
	same := sameID(a.AgentID, b.AgentID)
	a.AgentID, b.AgentID = nil, nil
	return same && a == b
}
