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

// GET|PUT|DELETE /v1.0/customers/{id}: what is absent keeps its value.
func TestUpdateOfACustomerChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	text := func(s string) *string { return &s }
	customer := w.acme
	for _, test := range []struct {
		what   string
		change store.CustomerChange
		want   func(*store.Customer)
	}{
		{"nothing", store.CustomerChange{}, func(*store.Customer) {}},
		{"the name", store.CustomerChange{Name: text("n")}, func(c *store.Customer) { c.Name = "n" }},
		{"the detail", store.CustomerChange{Detail: text("d")}, func(c *store.Customer) { c.Detail = "d" }},
		{"the address", store.CustomerChange{Email: text("e@x")}, func(c *store.Customer) { c.Email = "e@x" }},
		{"all", store.CustomerChange{Name: text("Globex"), Detail: text(""), Email: text("")}, func(c *store.Customer) {
			c.Name, c.Detail, c.Email = "Globex", "", ""
		}},
	} {
		got := must(w.store.UpdateCustomer(t.Context(), store.Operator(), w.acme.ID, test.change))(t)
		want := customer
		test.want(&want)
		want.TmUpdate = got.TmUpdate
		if got != want || !got.TmUpdate.After(customer.TmUpdate) {
			t.Errorf("%s: the customer is\n%+v, want\n%+v", test.what, got, want)
		}
		customer = got
	}
	if got := must(w.store.Customer(t.Context(), w.globex.ID))(t); got != w.globex {
		t.Errorf("the other customer is %+v, was %+v", got, w.globex)
	}
}

// Deleting a customer ends every credential of it at once: all that it has goes in the one statement, with one tm_delete; its usernames are
// free, and nothing of another customer's is touched.
func TestDeletedCustomerTakesAllThatItHasWithIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	type possessions struct {
		agent      store.Agent
		wide, user store.NewAccessKey
		pair       store.ServiceAccountKey
	}
	furnish := func(customer store.Customer, username string) (p possessions) {
		p.agent = w.createAgent(customer, username)
		p.wide, p.user = newKey(customer, year), userKey(p.agent)
		must(w.store.CreateAccessKey(t.Context(), store.Operator(), p.wide))(t)
		must(w.store.CreateAccessKey(t.Context(), store.Operator(), p.user))(t)
		account := w.createAccount(customer, "customer_admin")
		p.pair = w.createAccountKey(account)
		w.createAccountKey(account)
		return p
	}
	acmes, globs := furnish(w.acme, "Alice"), furnish(w.globex, "glob")
	early := must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, w.createKey(w.acme).ID))(t)
	globexBefore := w.ownedBy(w.globex)
	if want := 1 + 1 + 2 + 1 + 2; len(globexBefore) != want {
		t.Fatalf("the other customer has %d rows, want %d", len(globexBefore), want)
	}

	gone := must(w.store.DeleteCustomer(t.Context(), store.Operator(), w.acme.ID))(t)
	want := w.acme
	want.TmDelete, want.TmUpdate = gone.TmDelete, gone.TmDelete
	if gone != want || gone.TmDelete.Before(gone.TmCreate) {
		t.Errorf("the deleted customer is\n%+v, want\n%+v", gone, want)
	}
	for _, table := range []string{"agents", "accesskeys", "service_accounts"} {
		if got := value[int](w, `SELECT count(*) FROM `+table+` WHERE customer_id = $1 AND id <> $2
			AND (tm_delete <> $3 OR tm_update <> $3)`, w.acme.ID, early.ID, gone.TmDelete); got != 0 {
			t.Errorf("%d %s of the customer's have another tm_delete or tm_update than it", got, table)
		}
	}
	if got := value[int](w, `SELECT count(*) FROM service_account_keys k JOIN service_accounts a ON a.id = account_id
		WHERE customer_id = $1 AND k.tm_delete = $2 AND k.tm_update = $2`, w.acme.ID, gone.TmDelete); got != 2 {
		t.Errorf("%d pairs of two go with the customer", got)
	}
	if !value[bool](w, `SELECT tm_delete = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete) {
		t.Error("a key that was deleted before has another tm_delete")
	}
	if after := w.ownedBy(w.globex); !slices.Equal(after, globexBefore) {
		t.Errorf("the other customer's rows were\n%v\nand are\n%v", globexBefore, after)
	}

	// What verification reads says so in each case.
	for _, k := range []store.NewAccessKey{acmes.wide, acmes.user} {
		if got := must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t); got.TmDelete.After(got.Now) || got.CustomerTmDelete.After(got.Now) {
			t.Errorf("the customer's key reads as %+v", got)
		}
	}
	if got := must(agentByID(t.Context(), w.store, acmes.agent.ID, changelog.Position{}))(t); got.TmDelete.After(got.Now) || got.CustomerTmDelete.After(got.Now) {
		t.Errorf("the customer's agent reads as %+v", got)
	}
	if got := must(pairByID(t.Context(), w.store, acmes.pair.ID, changelog.Position{}))(t); got.Key.TmDelete.After(got.Now) ||
		got.Account.TmDelete.After(got.Now) || got.CustomerTmDelete.After(got.Now) {
		t.Errorf("the customer's pair reads as %+v", got)
	}
	if got := must(keyByHash(t.Context(), w.store, globs.user.TokenHash, changelog.Position{}))(t); !got.TmDelete.Equal(store.Never()) ||
		!got.CustomerTmDelete.Equal(store.Never()) {
		t.Errorf("the other customer's key reads as %+v", got) // control
	}

	// The username is free, here and there.
	if second := w.createAgent(w.globex, "ALICE"); must(w.store.AgentByUsername(t.Context(), "alice", netip.Prefix{}))(t).Agent != second {
		t.Error("the username of a deleted customer's agent is not free")
	}
	name := "n"
	for _, id := range []uuid.UUID{w.acme.ID, uuid.New()} {
		_, err := w.store.DeleteCustomer(t.Context(), store.Operator(), id)
		wantError(t, "deleting a deleted customer, or none", err, store.ErrNotFound)
		_, err = w.store.UpdateCustomer(t.Context(), store.Operator(), id, store.CustomerChange{Name: &name})
		wantError(t, "updating a deleted customer, or none", err, store.ErrNotFound)
	}
}

// The same "in one": where the deletion fails nothing is deleted.
func TestCustomerIsDeletedWhollyOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.createAgent(w.acme, "alice")
	w.createKey(w.acme)
	w.createAccountKey(w.createAccount(w.acme))
	w.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$`)
	for _, table := range []string{"customers", "agents", "accesskeys", "service_accounts", "service_account_keys"} {
		w.exec(`CREATE TRIGGER refusal BEFORE UPDATE ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION refuse()`)
		before := w.ownedBy(w.acme)
		_, err := w.store.DeleteCustomer(t.Context(), store.Operator(), w.acme.ID)
		wantError(t, "deleting a customer whose "+table+" can't be", err, store.ErrUnavailable)
		if after := w.ownedBy(w.acme); !slices.Equal(after, before) {
			t.Errorf("%s: the rows were\n%v\nand are\n%v", table, before, after)
		}
		w.exec(`DROP TRIGGER refusal ON ` + table)
	}
	if _, err := w.store.DeleteCustomer(t.Context(), store.Operator(), w.acme.ID); err != nil { // control
		t.Error(err)
	}
}

// Ends every credential of it at once: also what is being made, or changed, at that very moment.
func TestCustomerDeletedAmidWritesLeavesNoCredentialThatVerifies(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for range 5 {
		customer := must(w.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "Doomed"}))(t)
		agent, account := w.createAgent(customer, uuid.NewString()), w.createAccount(customer)
		w.createAgent(customer, uuid.NewString())
		keys := make([]store.NewAccessKey, 12)
		won := 0
		for i, err := range atOnce(len(keys), func(i int) (err error) {
			switch i % 6 {
			case 0, 1:
				_, err = w.store.DeleteCustomer(t.Context(), store.Operator(), customer.ID)
			case 2:
				_, err = w.store.CreateServiceAccountKey(t.Context(), store.Operator(), account, "ES256", []byte("public"))
			case 3:
				_, err = w.store.SetPermission(t.Context(), store.Operator(), agent, 16)
			case 4:
				keys[i] = userKey(agent)
				_, err = w.store.CreateAccessKey(t.Context(), store.Operator(), keys[i])
			default:
				_, err = w.store.SetPassword(t.Context(), store.Operator(), agent, secret.New(passwordHash))
			}
			return err
		}) {
			if i%6 < 2 && err == nil {
				won++
			} else if i%6 == 4 && err != nil {
				wantError(t, "a key beside the deletion", err, store.ErrNoCustomer)
				keys[i] = store.NewAccessKey{}
			} else if err != nil {
				wantError(t, "a write beside the deletion", err, store.ErrNotFound)
			}
		}
		if won != 1 {
			t.Errorf("%d deletions of four have won", won)
		}
		for _, k := range keys {
			if k.CustomerID == uuid.Nil {
				continue
			}
			if got := must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t); got.CustomerTmDelete.After(got.Now) {
				t.Errorf("a key of a deleted customer's reads as %+v", got)
			}
		}
		if _, err := w.store.AgentByUsername(t.Context(), agent.Username, netip.Prefix{}); err == nil {
			t.Error("a deleted customer's agent logs in")
		}
	}
}

// ownedBy is all that a customer has, itself included, a line of text each.
func (w *fixture) ownedBy(customer store.Customer) []string {
	w.t.Helper()
	return value[[]string](w, `SELECT array_agg(line ORDER BY line) FROM (
		SELECT to_jsonb(c)::text AS line FROM customers c WHERE id = $1 UNION ALL
		SELECT to_jsonb(a)::text FROM agents a WHERE customer_id = $1 UNION ALL
		SELECT to_jsonb(k)::text FROM accesskeys k WHERE customer_id = $1 UNION ALL
		SELECT to_jsonb(s)::text FROM service_accounts s WHERE customer_id = $1 UNION ALL
		SELECT to_jsonb(p)::text FROM service_account_keys p JOIN service_accounts s ON s.id = account_id WHERE customer_id = $1
	) AS lines`, customer.ID)
}
