package store_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

func TestUpdateOfACustomerChangesWhatIsGivenAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	checkUpdates(t, w.acme, func(c *store.Customer) *time.Time { return &c.TmUpdate },
		func(c store.CustomerChange) (store.Customer, error) {
			return w.store.UpdateCustomer(t.Context(), operator, w.acme.ID, c)
		},
		func() (store.Customer, error) { return w.store.Customer(t.Context(), w.acme.ID) },
		[]update[store.CustomerChange, store.Customer]{
			{"nothing", store.CustomerChange{}, func(*store.Customer) {}},
			{"the name", store.CustomerChange{Name: new("n")}, func(c *store.Customer) { c.Name = "n" }},
			{"the detail", store.CustomerChange{Detail: new("d")}, func(c *store.Customer) { c.Detail = "d" }},
			{"the address", store.CustomerChange{Email: new("e@x")}, func(c *store.Customer) { c.Email = "e@x" }},
			{"all", store.CustomerChange{Name: new("Globex"), Detail: new(""), Email: new("")}, func(c *store.Customer) {
				c.Name, c.Detail, c.Email = "Globex", "", ""
			}},
		})
	wantEqual(t, "the other customer", must(w.store.Customer(t.Context(), w.globex.ID))(t), w.globex)
}

// Deleting a customer ends every credential of it at once: all that it has goes in the one statement, with one tm_delete; its usernames are
// free, and nothing of another customer's is touched.
func TestDeletedCustomerTakesAllThatItHasWithIt(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	wide, theirs := newKey(w.acme, year), newKey(w.globex, year)
	for _, k := range []store.NewAccessKey{wide, theirs} {
		must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
	}
	acmes := w.makeTargets(w.acme)
	w.makeTargets(w.globex)
	user, free := userKey(acmes.agent), acmes.agent.Username
	must(w.store.CreateAccessKey(t.Context(), operator, user))(t)
	w.createAccountKey(acmes.account)
	early := must(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, w.createKey(w.acme).ID))(t)
	globexBefore := w.ownedBy(w.globex)
	wantEqual(t, "rows of the other customer", len(globexBefore), 1+1+2+1+1)

	gone := must(w.store.DeleteCustomer(t.Context(), operator, w.acme.ID))(t)
	want := w.acme
	want.TmDelete, want.TmUpdate = gone.TmDelete, gone.TmDelete
	errorIf(t, gone != want || gone.TmDelete.Before(gone.TmCreate), "the deleted customer is\n%+v, want\n%+v", gone, want)
	for _, table := range []string{"agents", "accesskeys", "service_accounts"} {
		w.wantTrue(table+" of the customer's have its tm_delete and tm_update", `SELECT bool_and(tm_delete = $3 AND tm_update = $3) FROM `+table+`
			WHERE customer_id = $1 AND id <> $2`, w.acme.ID, early.ID, gone.TmDelete)
	}
	w.wantTrue("two pairs go with the customer", `SELECT count(*) = 2 FROM service_account_keys k JOIN service_accounts a ON a.id = account_id
		WHERE customer_id = $1 AND k.tm_delete = $2 AND k.tm_update = $2`, w.acme.ID, gone.TmDelete)
	w.wantTrue("a key deleted before keeps its tm_delete", `SELECT tm_delete = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete)
	wantEqual(t, "the other customer's rows", w.ownedBy(w.globex), globexBefore)

	// What verification reads says so in each case.
	for _, k := range []store.NewAccessKey{wide, user} {
		key := must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t)
		errorIf(t, key.TmDelete.After(key.Now) || key.CustomerTmDelete.After(key.Now), "the customer's key reads as %+v", key)
	}
	agent := must(agentByID(t.Context(), w.store, acmes.agent.ID, changelog.Position{}))(t)
	errorIf(t, agent.TmDelete.After(agent.Now) || agent.CustomerTmDelete.After(agent.Now), "the customer's agent reads as %+v", agent)
	pair := must(pairByID(t.Context(), w.store, acmes.pair.ID, changelog.Position{}))(t)
	errorIf(t, pair.Key.TmDelete.After(pair.Now) || pair.Account.TmDelete.After(pair.Now) || pair.CustomerTmDelete.After(pair.Now),
		"the customer's pair reads as %+v", pair)
	control := must(keyByHash(t.Context(), w.store, theirs.TokenHash, changelog.Position{}))(t)
	errorIf(t, !control.TmDelete.Equal(store.Never()) || !control.CustomerTmDelete.Equal(store.Never()), "the other customer's key reads as %+v", control)

	// The username is free, here and there.
	second := w.createAgent(w.globex, strings.ToUpper(free))
	wantEqual(t, "the agent of the username", must(w.store.AgentByUsername(t.Context(), free, netip.Prefix{}))(t).Agent, second)
	for _, id := range []uuid.UUID{w.acme.ID, uuid.New()} {
		wantError(t, "deleting a deleted customer, or none", errorOf(w.store.DeleteCustomer(t.Context(), operator, id)), store.ErrNotFound)
		_, err := w.store.UpdateCustomer(t.Context(), operator, id, store.CustomerChange{Name: new("n")})
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
		before := w.rows()
		_, err := w.store.DeleteCustomer(t.Context(), operator, w.acme.ID)
		wantError(t, "deleting a customer whose "+table+" can't be", err, store.ErrUnavailable)
		wantEqual(t, table+": the rows", w.rows(), before)
		w.exec(`DROP TRIGGER refusal ON ` + table)
	}
	must(w.store.DeleteCustomer(t.Context(), operator, w.acme.ID))(t) // control
}

// Ends every credential of it at once: also what is being made, or changed, at that very moment.
func TestCustomerDeletedAmidWritesLeavesNoCredentialThatVerifies(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for range 5 {
		customer := must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "Doomed"}))(t)
		agent, account := w.createAgent(customer, uuid.NewString()), w.createAccount(customer)
		w.createAgent(customer, uuid.NewString())
		keys := make([]store.NewAccessKey, 12)
		won := 0
		for i, err := range atOnce(len(keys), func(i int) (err error) {
			switch i % 6 {
			case 0, 1:
				_, err = w.store.DeleteCustomer(t.Context(), operator, customer.ID)
			case 2:
				_, err = w.store.CreateServiceAccountKey(t.Context(), operator, account, "ES256", []byte("public"))
			case 3:
				_, err = w.store.SetPermission(t.Context(), operator, agent, 16)
			case 4:
				keys[i] = userKey(agent)
				_, err = w.store.CreateAccessKey(t.Context(), operator, keys[i])
			default:
				_, err = w.store.SetPassword(t.Context(), operator, agent, secret.New(passwordHash))
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
		errorIf(t, won != 1, "%d deletions of four have won", won)
		for _, k := range keys {
			if k.CustomerID == uuid.Nil {
				continue
			}
			got := must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t)
			errorIf(t, got.CustomerTmDelete.After(got.Now), "a key of a deleted customer's reads as %+v", got)
		}
		login := errorOf(w.store.AgentByUsername(t.Context(), agent.Username, netip.Prefix{}))
		wantError(t, "the login of a deleted customer's agent", login, store.ErrNotFound)
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
