package store_test

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// targets are what the writes of a test are done to: of one customer, and each to be used once.
type targets struct {
	customer store.Customer
	agent    store.Agent // no admin
	key      store.AccessKey
	account  store.ServiceAccount
	pair     store.ServiceAccountKey
}

func (w *fixture) makeTargets(customer store.Customer) (on targets) {
	w.t.Helper()
	n := newAgent(customer, uuid.NewString())
	n.Permission = 16
	on.customer = customer
	on.agent = must(w.store.CreateAgent(w.t.Context(), operator, n))(w.t)
	on.key = w.createKey(customer)
	on.account = w.createAccount(customer)
	on.pair = w.createAccountKey(on.account)
	return on
}

// write is a method of Store that writes on behalf of a caller.
type write func(ctx context.Context, s *store.Store, c store.Caller, on targets) error

// callersWrites are all methods of Store that write on behalf of a caller.
func callersWrites() map[string]write {
	all := map[string]write{}
	for name := range writesTo(context.Background(), nil, store.Caller{}, targets{}) {
		all[name] = func(ctx context.Context, s *store.Store, c store.Caller, on targets) error {
			return writesTo(ctx, s, c, on)[name]()
		}
	}
	return all
}

func writesTo(ctx context.Context, s *store.Store, c store.Caller, on targets) map[string]func() error {
	name, customer := "written", on.customer.ID
	account := store.NewServiceAccount{CustomerID: customer, Roles: []string{}}
	return map[string]func() error{
		"CreateAccessKey": func() error {
			k := userKey(on.agent)
			k.AgentPermission = on.agent.Permission
			return errorOf(s.CreateAccessKey(ctx, c, k))
		},
		"UpdateAccessKey": func() error {
			return errorOf(s.UpdateAccessKey(ctx, c, customer, on.key.ID, store.AccessKeyChange{Name: &name}))
		},
		"DeleteAccessKey":      func() error { return errorOf(s.DeleteAccessKey(ctx, c, customer, on.key.ID)) },
		"CreateAgent":          func() error { return errorOf(s.CreateAgent(ctx, c, newAgent(on.customer, uuid.NewString()))) },
		"UpdateAgent":          func() error { return errorOf(s.UpdateAgent(ctx, c, on.agent, store.AgentChange{Name: &name})) },
		"SetPermission":        func() error { return errorOf(s.SetPermission(ctx, c, on.agent, 32)) },
		"SetPassword":          func() error { return errorOf(s.SetPassword(ctx, c, on.agent, secret.New(passwordHash+"other"))) },
		"DeleteAgent":          func() error { return errorOf(s.DeleteAgent(ctx, c, on.agent)) },
		"CreateServiceAccount": func() error { return errorOf(s.CreateServiceAccount(ctx, c, account)) },
		"UpdateServiceAccount": func() error {
			return errorOf(s.UpdateServiceAccount(ctx, c, customer, on.account.ID, store.ServiceAccountChange{Name: &name}))
		},
		"DeleteServiceAccount":    func() error { return errorOf(s.DeleteServiceAccount(ctx, c, customer, on.account.ID)) },
		"CreateServiceAccountKey": func() error { return errorOf(s.CreateServiceAccountKey(ctx, c, on.account, "ES256", []byte("public"))) },
		"DeleteServiceAccountKey": func() error { return errorOf(s.DeleteServiceAccountKey(ctx, c, on.account, on.pair.ID)) },
		"CreateCustomer":          func() error { return errorOf(s.CreateCustomer(ctx, c, store.NewCustomer{Name: name})) },
		"UpdateCustomer":          func() error { return errorOf(s.UpdateCustomer(ctx, c, customer, store.CustomerChange{Name: &name})) },
		"DeleteCustomer":          func() error { return errorOf(s.DeleteCustomer(ctx, c, customer)) },
	}
}

// The tests below run every write that there is.
func TestEveryWriteOfACallerIsTested(t *testing.T) {
	t.Parallel()
	var all []string
	of := reflect.TypeFor[*store.Store]()
	for i := range of.NumMethod() {
		method := of.Method(i)
		for n := range method.Type.NumIn() {
			if method.Type.In(n) == reflect.TypeFor[store.Caller]() {
				all = append(all, method.Name)
			}
		}
	}
	slices.Sort(all)
	wantEqual(t, "the tested writes", slices.Sorted(maps.Keys(callersWrites())), all)
}

// callerKind is a kind of caller with all that it rests on.
type callerKind struct {
	caller store.Caller
	// revocations are changes to what it rests on, each with one that takes it back.
	revocations map[string]change
}

type change struct {
	id             uuid.UUID
	revoke, revive string
}

const (
	end    = ` SET tm_delete = now() WHERE id = $1`
	begin  = ` SET tm_delete = '9999-01-01 00:00:00+00' WHERE id = $1`
	demote = `UPDATE agents SET permission = 16 WHERE id = $1`
)

func ends(table string, id uuid.UUID) change {
	return change{id, `UPDATE ` + table + end, `UPDATE ` + table + begin}
}

func expires(key store.AccessKey) change {
	return change{
		key.ID, `UPDATE accesskeys SET tm_create = now() - interval '2 years', tm_expire = now() - interval '1 us' WHERE id = $1`,
		`UPDATE accesskeys SET tm_expire = now() + interval '1 year' WHERE id = $1`,
	}
}

func loses(table string, id uuid.UUID) change {
	return change{id, `UPDATE ` + table + ` SET roles = '{}' WHERE id = $1`, `UPDATE ` + table + ` SET roles = '{customer_admin}' WHERE id = $1`}
}

func (w *fixture) credential(k store.NewAccessKey, by store.Caller) store.AccessKeyCredential {
	w.t.Helper()
	must(w.store.CreateAccessKey(w.t.Context(), by, k))(w.t)
	return must(keyByHash(w.t.Context(), w.store, k.TokenHash, changelog.Position{}))(w.t)
}

// callerKinds makes one caller of each kind, admins of acme's. until is when tokens end.
func (w *fixture) callerKinds(until time.Time) map[string]callerKind {
	w.t.Helper()
	customer := ends("customers", w.acme.ID)
	agent := w.createAgent(w.acme, "caller "+uuid.NewString())
	holder := w.createAgent(w.acme, "holder "+uuid.NewString())
	account := w.createAccount(w.acme, "customer_admin")
	pair := must(pairByID(w.t.Context(), w.store, w.createAccountKey(account).ID, changelog.Position{}))(w.t)
	byAccount := store.ServiceAccountCaller(pair, until)
	wide := w.credential(newKey(w.acme, year), operator)
	bound := w.credential(userKey(holder), operator)
	made := w.credential(newKey(w.acme, year), store.ServiceAccountCaller(pair, time.Time{}))
	boundAndMade := userKey(holder)
	boundAndMade.AgentPermission = holder.Permission
	both := w.credential(boundAndMade, store.AccessKeyCaller(made))
	promotion := func(a store.Agent) change {
		return change{a.ID, demote, `UPDATE agents SET permission = 32 WHERE id = $1`}
	}
	password := change{
		agent.ID, `UPDATE agents SET tm_password = tm_password + interval '1 us' WHERE id = $1`,
		`UPDATE agents SET tm_password = tm_password - interval '1 us' WHERE id = $1`,
	}
	return map[string]callerKind{
		"an agent": {store.AgentCaller(agent, until), map[string]change{
			"deleted": ends("agents", agent.ID), "demoted": promotion(agent), "password changed": password, "customer deleted": customer,
		}},
		"a customer-wide key": {store.AccessKeyCaller(wide), map[string]change{
			"deleted": ends("accesskeys", wide.ID), "expired": expires(wide.AccessKey), "roles changed": loses("accesskeys", wide.ID),
			"customer deleted": customer,
		}},
		"a key bound to an agent": {store.AccessKeyCaller(bound), map[string]change{
			"deleted": ends("accesskeys", bound.ID), "expired": expires(bound.AccessKey), "its agent deleted": ends("agents", holder.ID),
			"its agent demoted": promotion(holder), "customer deleted": customer,
		}},
		"a key made by a service account": {store.AccessKeyCaller(made), map[string]change{
			"deleted": ends("accesskeys", made.ID), "roles changed": loses("accesskeys", made.ID), "customer deleted": customer,
			"its account deleted": ends("service_accounts", account.ID), "its account's roles": loses("service_accounts", account.ID),
		}},
		"a bound key of a service account's": {store.AccessKeyCaller(both), map[string]change{
			"deleted": ends("accesskeys", both.ID), "its agent demoted": promotion(holder), "its account deleted": ends("service_accounts", account.ID),
			"its account's roles": loses("service_accounts", account.ID),
		}},
		"a service account": {byAccount, map[string]change{
			"its key pair deleted": ends("service_account_keys", pair.Key.ID), "deleted": ends("service_accounts", account.ID),
			"roles changed": loses("service_accounts", account.ID), "customer deleted": customer,
		}},
	}
}

// rows are all rows of all that is verified by, and the log's head.
func (w *fixture) rows() string {
	w.t.Helper()
	return value[string](w, `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT to_jsonb(c)::text AS line FROM customers c UNION ALL
		SELECT to_jsonb(a)::text FROM agents a UNION ALL
		SELECT to_jsonb(k)::text FROM accesskeys k UNION ALL
		SELECT to_jsonb(s)::text FROM service_accounts s UNION ALL
		SELECT to_jsonb(p)::text FROM service_account_keys p UNION ALL
		SELECT to_jsonb(h)::text FROM change_head h) AS lines`)
}

// No write of a caller takes effect once the caller was revoked, by whatever way: neither on its own customer's rows, nor on
// another's. While all that it rests on holds, each takes effect.
func TestWriteOfARevokedCallerChangesNothing(t *testing.T) {
	t.Parallel()
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(isolation, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			s := open(t, withSetting(t, w.url, "default_transaction_isolation", isolation)) // an operator may have set it
			kinds := w.callerKinds(value[time.Time](w, `SELECT now() + interval '1 hour'`))
			if isolation != "read committed" { // what differs then is the same for all
				maps.DeleteFunc(kinds, func(kind string, _ callerKind) bool {
					return kind != "an agent" && kind != "a bound key of a service account's"
				})
			}
			writes, own, others := callersWrites(), map[string]targets{}, map[string]targets{}
			for kind := range kinds {
				own[kind] = w.makeTargets(w.acme)
				others[kind] = w.makeTargets(must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "other"}))(t))
			}
			for kind, of := range kinds {
				for what, c := range of.revocations {
					w.exec(c.revoke, c.id)
					before := w.rows()
					for name, write := range writes {
						for whose, on := range map[string]targets{"its customer's": own[kind], "another customer's": others[kind]} {
							err := write(t.Context(), s, of.caller, on)
							// Where the customer has ended there is nothing to write to either, and both are true.
							wantError(t, fmt.Sprintf("%s, %s: %s on %s", kind, what, name, whose), err, store.ErrChanged)
						}
					}
					wantEqual(t, kind+", "+what, w.rows(), before)
					w.exec(c.revive, c.id)
				}
			}
			// Control: the same writes of the same callers, who are all back.
			for kind, of := range kinds {
				for name, write := range writes {
					for whose, customer := range map[string]store.Customer{"its customer's": w.acme, "another customer's": w.globex} {
						// An account makes keys of its own customer's only: they end with it.
						if name == "DeleteCustomer" || name == "CreateAccessKey" && customer == w.globex && strings.Contains(kind, "account") {
							continue
						}
						before := w.rows()
						on := w.makeTargets(customer)
						made := w.rows()
						wantError(t, "control: "+kind+": "+name+" on "+whose, write(t.Context(), s, of.caller, on), nil)
						after := w.rows()
						errorIf(t, made == before || after == made, "control: %s: %s on %s has changed nothing", kind, name, whose)
					}
				}
				wantError(t, "control: "+kind+": DeleteCustomer", writes["DeleteCustomer"](t.Context(), s, of.caller, others[kind]), nil)
			}
			err := writes["DeleteCustomer"](t.Context(), s, kinds["an agent"].caller, own["an agent"])
			wantError(t, "control: an agent's own customer", err, nil)
		})
	}
}

// A token that ends while its request is under way writes no more.
func TestWriteOfAnExpiredTokenChangesNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	ended := w.callerKinds(value[time.Time](w, `SELECT now()`))
	on, before := w.makeTargets(w.acme), w.rows()
	for _, kind := range []string{"an agent", "a service account"} {
		for name, write := range callersWrites() {
			wantError(t, kind+": "+name, write(t.Context(), w.store, ended[kind].caller, on), store.ErrChanged)
		}
	}
	wantEqual(t, "the rows", w.rows(), before)
}

// An agent is changed, and a key bound to it, only as the caller was found to be allowed to: one that was promoted since may have
// more power than the caller. What it does to itself it may do with whatever power it has.
func TestAgentThatWasPromotedSinceIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	writes := callersWrites()
	caller := w.callerKinds(time.Time{})["a customer-wide key"].caller
	for _, name := range []string{"CreateAccessKey", "UpdateAgent", "SetPermission", "SetPassword", "DeleteAgent"} {
		for what, sql := range map[string]string{
			"promoted": `UPDATE agents SET permission = 96 WHERE id = $1`, "deleted": `UPDATE agents` + end,
		} {
			on := w.makeTargets(w.acme)
			w.exec(sql, on.agent.ID)
			before := w.rows()
			wantError(t, name+" on an agent that was "+what, writes[name](t.Context(), w.store, caller, on), store.ErrChanged)
			wantEqual(t, name+" on an agent that was "+what, w.rows(), before)
		}
		on := w.makeTargets(w.acme)
		wantError(t, "control: "+name, writes[name](t.Context(), w.store, caller, on), nil)
		self := w.makeTargets(w.acme)
		wantError(t, name+", to itself", writes[name](t.Context(), w.store, store.AgentCaller(self.agent, time.Time{}), self), nil)
	}
}

// A key shows who made it. One that a service account made, itself or by a key of its, is the account's too, and ends with it.
func TestKeyShowsWhoMadeItAndEndsWithTheAccountThatDid(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	kinds := w.callerKinds(time.Time{})
	creator := func(k store.AccessKey) string {
		if k.CreatedByType == nil || k.CreatedByID == nil {
			return "nobody"
		}
		return *k.CreatedByType + " " + k.CreatedByID.String()
	}
	made := func(by store.Caller) store.AccessKeyCredential { return w.credential(newKey(w.acme, year), by) }
	account := w.createAccount(w.acme, "customer_admin")
	pair := must(pairByID(t.Context(), w.store, w.createAccountKey(account).ID, changelog.Position{}))(t)
	agent := w.createAgent(w.acme, "alice")
	first := made(store.ServiceAccountCaller(pair, time.Time{}))
	second := made(store.AccessKeyCaller(first))
	third := made(store.AccessKeyCaller(second))
	plain := made(store.AgentCaller(agent, time.Time{}))
	other := made(kinds["a key made by a service account"].caller)
	for name, test := range map[string]struct {
		key     store.AccessKeyCredential
		by      string
		account *store.ServiceAccount
	}{
		"an account's":    {first, "service_account " + account.ID.String(), &account},
		"that key's":      {second, "accesskey " + first.ID.String(), &account},
		"the one after's": {third, "accesskey " + second.ID.String(), &account},
		"an agent's":      {plain, "agent " + agent.ID.String(), nil},
		"nobody's":        {made(operator), "nobody", nil},
	} {
		wantEqual(t, name+" was made by", creator(must(w.store.AccessKey(t.Context(), test.key.ID))(t)), test.by)
		wantEqual(t, name+": the account", test.key.ServiceAccount, test.account)
	}
	before := value[[]uuid.UUID](w, `SELECT array_agg(id ORDER BY id) FROM accesskeys WHERE `+notDeleted+` AND id <> ALL ($1)`,
		[]uuid.UUID{first.ID, second.ID, third.ID})
	gone := must(w.store.DeleteServiceAccount(t.Context(), operator, w.acme.ID, account.ID))(t)
	after := value[[]uuid.UUID](w, `SELECT array_agg(id ORDER BY id) FROM accesskeys WHERE `+notDeleted)
	if !slices.Equal(after, before) || !slices.Contains(after, other.ID) {
		t.Errorf("with the account the keys %v are left, want %v", after, before)
	}
	ended := value[int](w, `SELECT count(*) FROM accesskeys WHERE tm_delete = $1 AND tm_update = $1`, gone.TmDelete)
	wantEqual(t, "keys that end with the account", ended, 3)
}
