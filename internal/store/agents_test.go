package store_test

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

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
		errorIf(t, got.Agent != want || got.PasswordHash.Reveal() != passwordHash, "%s is %+v, want %+v", username, got.Agent, want)
	}
	for _, username := range []string{"alice", "Alice@Example.com x", "%", "alice@example_com", ""} {
		wantError(t, username, errorOf(w.store.AgentByUsername(t.Context(), username, netip.Prefix{})), store.ErrNotFound)
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
	errorIf(t, before.Agent != alice || !before.CustomerTmDelete.Equal(store.Never()), "the live agent's credential is %+v", before)
	gone := must(w.store.DeleteAgent(t.Context(), operator, alice))(t)
	if !gone.TmDelete.Equal(gone.TmUpdate) || gone.TmDelete.Before(alice.TmCreate) {
		t.Errorf("a deleted agent has tm_delete %v, tm_update %v", gone.TmDelete, gone.TmUpdate)
	}
	after := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t)
	errorIf(t, after.Agent != gone || after.TmDelete.After(after.Now), "the deleted agent's credential is %+v", after)
	wantError(t, "a deleted agent's login", errorOf(w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{})), store.ErrNotFound)
	for _, id := range []uuid.UUID{alice.ID, uuid.New()} {
		_, err := w.store.SetPassword(t.Context(), operator, agentOf(alice.CustomerID, id), secret.New(passwordHash))
		wantError(t, "setting the password of a deleted agent, or of none", err, store.ErrNotFound)
		_, err = w.store.DeleteAgent(t.Context(), operator, agentOf(alice.CustomerID, id))
		wantError(t, "deleting a deleted agent, or none", err, store.ErrNotFound)
	}
	wantError(t, "no agent's credential", errorOf(agentByID(t.Context(), w.store, uuid.New(), changelog.Position{})), store.ErrNotFound)

	// The username is free again, and finds the new agent.
	second := w.createAgent(w.globex, "ALICE")
	wantEqual(t, "alice", must(w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{}))(t).Agent, second)

	// With its customer goes an agent's login.
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, w.globex.ID)
	_, err := w.store.AgentByUsername(t.Context(), "bob", netip.Prefix{})
	wantError(t, "the login of a deleted customer's agent", err, store.ErrNotFound)
	got := must(agentByID(t.Context(), w.store, bob.ID, changelog.Position{}))(t)
	errorIf(t, got.Agent != bob || got.CustomerTmDelete.After(got.Now), "the credential of a deleted customer's agent is %+v", got)
}

// A token stops working at once where the agent's password is changed after iat: renewing a hash is no change, and never undoes one.
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
		noError(t, w.store.RenewPasswordHash(t.Context(), login, secret.New(to)))
	}
	renew(alice, old, renewed)
	renew(alice, old, "$argon2id$again") // of another login at the same time
	wantEqual(t, "the renewed hash", hash(alice.ID), renewed)
	wantEqual(t, "the agent with a renewed hash", must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t).Agent, alice)

	key := must(w.store.CreateAccessKey(t.Context(), operator, userKey(alice)))(t)
	set := must(w.store.SetPassword(t.Context(), operator, alice, secret.New(changed)))(t)
	if !set.TmPassword.After(alice.TmPassword) || !set.TmUpdate.Equal(set.TmPassword) {
		t.Errorf("a new password has tm_password %v and tm_update %v, was %v", set.TmPassword, set.TmUpdate, alice.TmPassword)
	}
	want := alice
	want.TmPassword, want.TmUpdate = set.TmPassword, set.TmUpdate
	wantEqual(t, "the agent with a new password", set, want)
	wantEqual(t, "its key", must(w.store.AccessKey(t.Context(), key.ID))(t), key)
	// A token knows its password by tm_password: it moves on also where the clock went back.
	w.exec(`UPDATE agents SET tm_password = now() + interval '1 hour' WHERE id = $1`, alice.ID)
	ahead := must(agentByID(t.Context(), w.store, alice.ID, changelog.Position{}))(t).TmPassword
	if set = must(w.store.SetPassword(t.Context(), operator, alice, secret.New(changed)))(t); !set.TmPassword.After(ahead) {
		t.Errorf("tm_password was %v, and is %v", ahead, set.TmPassword)
	}
	renew(alice, renewed, "$argon2id$late") // read before the change, written after it
	wantEqual(t, "a late renewal has put back", hash(alice.ID), changed)
	wantEqual(t, "the other agent's hash", hash(bob.ID), old)
	must(w.store.DeleteAgent(t.Context(), operator, alice))(t)
	renew(set, changed, "$argon2id$afterlife")
	wantEqual(t, "a deleted agent's hash", hash(alice.ID), changed)
}

// Contract, section 5: a list of the customers that the caller may see (its own; ProjectSuperAdmin: all).
func TestCustomersAreListedNewestFirstOwnOrAll(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	initech := must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "Initech", Detail: "d", Email: "e@x"}))(t)
	if want := (store.Customer{
		ID: initech.ID, Name: "Initech", Detail: "d", Email: "e@x", TmCreate: initech.TmCreate, TmUpdate: initech.TmCreate,
		TmDelete: store.Never().Local(),
	}); initech != want {
		t.Errorf("the new customer is\n%+v, want\n%+v", initech, want)
	}
	gone := must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "Gone"}))(t)
	w.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, gone.ID)
	wantError(t, "a deleted customer", errorOf(w.store.Customer(t.Context(), gone.ID)), store.ErrNotFound)
	wantError(t, "no customer", errorOf(w.store.Customer(t.Context(), uuid.New())), store.ErrNotFound)
	wantEqual(t, "the customer", must(w.store.Customer(t.Context(), w.acme.ID))(t), w.acme)

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
		wantEqual(t, name, must(w.store.Customers(t.Context(), test.only, test.after, test.limit))(t), test.want)
	}
}

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
	current := agent
	checkUpdates(t, agent, func(a *store.Agent) *time.Time { return &a.TmUpdate },
		func(c store.AgentChange) (_ store.Agent, err error) {
			current, err = w.store.UpdateAgent(t.Context(), operator, current, c)
			return current, err
		},
		func() (store.Agent, error) {
			login, err := w.store.AgentByUsername(t.Context(), current.Username, netip.Prefix{})
			wantEqual(t, "the password's hash", login.PasswordHash.Reveal(), passwordHash)
			return login.Agent, err
		},
		[]update[store.AgentChange, store.Agent]{
			{"nothing", store.AgentChange{}, func(*store.Agent) {}},
			{"the name", store.AgentChange{Name: new("n")}, func(a *store.Agent) { a.Name = "n" }},
			{"the detail", store.AgentChange{Detail: new("d")}, func(a *store.Agent) { a.Detail = "d" }},
			{"both to empty", store.AgentChange{Name: new(""), Detail: new("")}, func(a *store.Agent) { a.Name, a.Detail = "", "" }},
			{"its own username", store.AgentChange{Username: new("Alice@Example.com")}, func(*store.Agent) {}},
			{"its case", store.AgentChange{Username: new("aLICE@eXAMPLE.COM")}, func(a *store.Agent) { a.Username = "aLICE@eXAMPLE.COM" }},
			{"a deleted agent's", store.AgentChange{Username: new("gone")}, func(a *store.Agent) { a.Username = "gone" }},
			{"another username", store.AgentChange{Username: new("alice")}, func(a *store.Agent) { a.Username = "alice" }},
		})
	before := w.rows()
	for _, username := range []string{"taken", "TAKEN", "there", "There"} {
		_, err := w.store.UpdateAgent(t.Context(), operator, current, store.AgentChange{Username: &username, Name: new("lost")})
		wantError(t, "taking the username "+username, err, store.ErrUsernameTaken)
	}
	wantEqual(t, "the rows", w.rows(), before)
}

// Objects gain agent_id (null for customer-wide); "acts with that agent's permission as it is at the time of each request": what
// verification reads of a key tells its customer and which agent to read, and the agent reads as it is now.
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
		created := must(w.store.CreateAccessKey(t.Context(), operator, test.key))(t)
		got := read(test.key)
		if !reflect.DeepEqual(got.AccessKey, created) || !reflect.DeepEqual(created.AgentID, test.key.AgentID) || !slices.Equal(got.Roles, test.roles) ||
			!got.CustomerTmDelete.Equal(store.Never()) {
			t.Errorf("the %s key is\n%+v\nand reads as\n%+v", name, created, got)
		}
	}
	for _, permission := range []int64{0, 16, 0xFFFF} {
		must(w.store.SetPermission(t.Context(), operator, alice, permission))(t)
		got := must(agentByID(t.Context(), w.store, *read(bound).AgentID, changelog.Position{}))(t)
		wantEqual(t, "the permission of the key's agent", got.Permission, permission)
	}
	w.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, alice.ID) // by whatever way
	if got := must(agentByID(t.Context(), w.store, *read(bound).AgentID, changelog.Position{}))(t); got.TmDelete.After(got.Now) {
		t.Errorf("a deleted key's agent reads as %+v", got)
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
		return must(w.store.CreateAccessKey(t.Context(), operator, userKey(a)))(t)
	}
	first, second, early := create(alice), create(alice), create(alice)
	early = must(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, early.ID))(t)
	bobs, globs := create(bob), create(glob)
	others := `SELECT string_agg(to_jsonb(k)::text, E'\n' ORDER BY id) FROM accesskeys k WHERE agent_id IS DISTINCT FROM $1`
	before := value[string](w, others, alice.ID)

	gone := must(w.store.DeleteAgent(t.Context(), operator, alice))(t)
	for _, id := range []uuid.UUID{first.ID, second.ID} {
		w.wantTrue("a key of the agent's ends with it", `SELECT tm_delete = $2 AND tm_update = $2 FROM accesskeys WHERE id = $1`, id, gone.TmDelete)
	}
	w.wantTrue("a key deleted before keeps its tm_delete", `SELECT tm_delete = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete)
	wantEqual(t, "the other keys", value[string](w, others, alice.ID), before)
	for agent, want := range map[uuid.UUID][]store.AccessKey{alice.ID: {}, bob.ID: {bobs}, glob.ID: {globs}, uuid.New(): {}} {
		got := must(w.store.AccessKeysOfAgent(t.Context(), agent, store.Start(), 100))(t)
		wantEqual(t, "the keys of an agent", got, want)
	}

	// Where the deletion is refused, the keys stay.
	wantError(t, "deleting the last admin", errorOf(w.store.DeleteAgent(t.Context(), operator, bob)), store.ErrLastAdmin)
	wantEqual(t, "the last admin's key", must(w.store.AccessKey(t.Context(), bobs.ID))(t), bobs)
}

// admins counts a customer's live admins.
func (w *fixture) admins(customer store.Customer) int {
	w.t.Helper()
	return value[int](w, `SELECT count(*) FROM agents WHERE customer_id = $1 AND permission & 32 <> 0 AND `+notDeleted, customer.ID)
}

// The last admin of a customer can't be deleted or demoted (409 LAST_ADMIN): another customer's admins do not count, nor do deleted ones,
// nor those who have every bit but that one.
func TestLastAdminCannotBeDeletedOrDemoted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.createAgent(w.acme, "alice")
	w.createAgent(w.globex, "glob")
	gone := w.createAgent(w.acme, "gone")
	w.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, gone.ID)
	almost := newAgent(w.acme, "almost")
	almost.Permission = int64(auth.PermissionAll &^ auth.PermissionCustomerAdmin)
	other := must(w.store.CreateAgent(t.Context(), operator, almost))(t)

	before := w.rows()
	for _, permission := range []int64{0, 1, 16, 64, almost.Permission} {
		_, err := w.store.SetPermission(t.Context(), operator, alice, permission)
		wantError(t, "demoting the last admin", err, store.ErrLastAdmin)
	}
	wantError(t, "deleting the last admin", errorOf(w.store.DeleteAgent(t.Context(), operator, alice)), store.ErrLastAdmin)
	wantEqual(t, "the rows", w.rows(), before)

	// The last admin may get other bits beside that one, and others may lose and get what they like.
	for _, change := range []struct {
		agent      store.Agent
		permission int64
	}{{alice, 32 | 16}, {other, 0}, {alice, 0xFFFF}, {other, 32 | 64}, {alice, 0}} {
		got := must(w.store.SetPermission(t.Context(), operator, change.agent, change.permission))(t)
		want := change.agent
		want.Permission, want.TmUpdate = change.permission, got.TmUpdate
		errorIf(t, got != want || !got.TmUpdate.After(change.agent.TmUpdate), "the agent is\n%+v, want\n%+v", got, want)
		wantEqual(t, "the stored agent", must(w.store.Agent(t.Context(), got.ID))(t), want)
	}
	wantError(t, "deleting who is the last admin by now", errorOf(w.store.DeleteAgent(t.Context(), operator, other)), store.ErrLastAdmin)
	wantError(t, "deleting who is no admin any more", errorOf(w.store.DeleteAgent(t.Context(), operator, alice)), nil)
}

// The same where many are removed at once, by demotion and by deletion, whatever isolation the database has by default.
func TestOfManyAdminsRemovedAtOnceOneIsLeft(t *testing.T) {
	t.Parallel()
	const many, rounds = 8, 12
	w := newFixture(t)
	strict := open(t, withSetting(t, w.url, "default_transaction_isolation", "serializable")) // an operator may have set it
	w.createAgent(w.globex, "beside")
	for round := range rounds {
		customer := must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "Contested"}))(t)
		var agents []store.Agent
		for range many {
			agents = append(agents, w.createAgent(customer, uuid.NewString()))
		}
		refused := 0
		for _, err := range atOnce(many, func(i int) (err error) {
			s := []*store.Store{w.store, strict}[i/2%2]
			if (i+round)%2 == 0 {
				_, err = s.SetPermission(t.Context(), operator, agents[i], 16)
			} else {
				_, err = s.DeleteAgent(t.Context(), operator, agents[i])
			}
			return err
		}) {
			if errors.Is(err, store.ErrLastAdmin) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		left := w.admins(customer)
		fatalIf(t, left != 1 || refused != 1, "round %d: %d admins are left of %d, and %d changes were refused", round, left, many, refused)
	}
	errorIf(t, w.admins(w.globex) != 1, "the other customer's admin is gone")
}

// Two admins remove one another. Both changes wait for the customer's lock, so the second sees what the first has done.
// Control: the very same steps without that wait, the check and then the change, leave nobody.
func TestChangesThatEndAnAdminWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.acme, "bob")
	other := w.createAgent(w.globex, "glob")
	w.createAgent(w.globex, "glob2")
	held := w.holdLock(w.acme, false)
	demoted := started(func() error { return errorOf(w.store.SetPermission(t.Context(), operator, alice, 0)) })
	deleted := started(func() error { return errorOf(w.store.DeleteAgent(t.Context(), operator, bob)) })
	w.untilSoManyWait(2)
	must(w.store.DeleteAgent(t.Context(), operator, other))(t) // which waits for nobody
	noError(t, held.Commit(t.Context()))
	outcomes := []error{<-demoted, <-deleted}
	if refused := slices.IndexFunc(outcomes, func(err error) bool { return errors.Is(err, store.ErrLastAdmin) }); refused < 0 ||
		outcomes[1-refused] != nil || w.admins(w.acme) != 1 {
		t.Errorf("%d admins are left after %v", w.admins(w.acme), outcomes)
	}

	// Control.
	first, second := w.createAgent(w.acme, "first"), w.createAgent(w.acme, "second")
	w.exec(`UPDATE agents SET permission = 0 WHERE customer_id = $1 AND id NOT IN ($2, $3)`, w.acme.ID, first.ID, second.ID)
	unguarded := map[uuid.UUID]pgx.Tx{first.ID: w.begin(), second.ID: w.begin()}
	for id, tx := range unguarded {
		var last bool
		if err := tx.QueryRow(t.Context(), `SELECT bool_or(id = $2) AND count(*) = 1 FROM agents
			WHERE customer_id = $1 AND permission & 32 <> 0 AND `+notDeleted, w.acme.ID, id).Scan(&last); err != nil || last {
			t.Fatalf("one of two is the last: %v, %v", last, err)
		}
	}
	for id, tx := range unguarded {
		execIn(t, tx, `UPDATE agents SET permission = 0 WHERE id = $1`, id)
		noError(t, tx.Commit(t.Context()))
	}
	wantEqual(t, "control: admins left without the wait", w.admins(w.acme), 0)
}
