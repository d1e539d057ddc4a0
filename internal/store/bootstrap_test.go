package store_test

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// bootstrap is one of everything; hashed counts how often the password was hashed.
func bootstrap(hashed *atomic.Int32) store.Bootstrap {
	key := newKey(store.Customer{}, year)
	return store.Bootstrap{
		Customer: "Initech", Username: "Admin@Initech", Permission: 32, AccessKey: &key,
		PasswordHash: func(context.Context) (secret.Value, error) {
			hashed.Add(1)
			return secret.New(passwordHash), nil
		},
	}
}

// outcome is a Bootstrapped without the ids.
type outcome struct{ customer, agent, key store.Presence }

func outcomeOf(b store.Bootstrapped) outcome { return outcome{b.Customer, b.Agent, b.AccessKey} }

// Contract, section 6: on start, make sure that this customer, its admin and this exact key exist, with many servers starting at once.
func TestBootstrapCreatesEachThingOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	var hashed atomic.Int32
	b := bootstrap(&hashed)
	results := make([]store.Bootstrapped, 8)
	strict := open(t, withSetting(t, w.url, "default_transaction_isolation", "serializable")) // an operator may have set it
	for _, err := range atOnce(8, func(i int) (err error) {
		results[i], err = []*store.Store{w.store, strict}[i%2].Bootstrap(t.Context(), b)
		return err
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	times := map[outcome]int{}
	for _, r := range results {
		times[outcomeOf(r)]++
		if r.CustomerID != results[0].CustomerID || r.AgentID != results[0].AgentID || r.CustomerID == uuid.Nil || r.AgentID == uuid.Nil {
			t.Errorf("the ids differ: %+v and %+v", r, results[0])
		}
	}
	if times[outcome{store.Created, store.Created, store.Created}] != 1 ||
		times[outcome{store.Existed, store.Existed, store.Existed}] != 7 {
		t.Errorf("eight at once found %v, want one to create and seven to find", times)
	}
	errorIf(t, hashed.Load() != 1, "the password was hashed %d times", hashed.Load())
	for table, want := range map[string]int{"customers": 3, "agents": 1, "accesskeys": 1} {
		wantEqual(t, table, value[int](w, `SELECT count(*) FROM `+table), want)
	}
	login := must(w.store.AgentByUsername(t.Context(), "admin@initech", netip.Prefix{}))(t)
	key := must(keyByHash(t.Context(), w.store, b.AccessKey.TokenHash, changelog.Position{}))(t)
	if id := results[0].CustomerID; login.CustomerID != id || key.CustomerID != id || login.ID != results[0].AgentID ||
		login.Permission != 32 || login.PasswordHash.Reveal() != passwordHash || key.Name != b.AccessKey.Name ||
		key.Detail != b.AccessKey.Detail || key.TokenPrefix != b.AccessKey.TokenPrefix ||
		key.TmExpire.UnixMicro()-key.TmCreate.UnixMicro() != year*1e6 {
		t.Errorf("bootstrapped %+v with\n%+v and\n%+v", results[0], login, key)
	}

	// What somebody changed since stays changed.
	set := must(w.store.SetPassword(t.Context(), operator, login.Agent, secret.New("$argon2id$changed")))(t)
	wantEqual(t, "once more", outcomeOf(must(w.store.Bootstrap(t.Context(), b))(t)), outcome{store.Existed, store.Existed, store.Existed})
	after := must(w.store.AgentByUsername(t.Context(), "admin@initech", netip.Prefix{}))(t)
	if after.PasswordHash.Reveal() != "$argon2id$changed" || after.Agent != set {
		t.Errorf("a bootstrap has changed the admin to %+v", after.Agent)
	}

	// Only what is asked for.
	only := must(w.store.Bootstrap(t.Context(), store.Bootstrap{Customer: "Hooli"}))(t)
	if outcomeOf(only) != (outcome{store.Created, store.NotAsked, store.NotAsked}) || only.AgentID != uuid.Nil {
		t.Errorf("a customer alone: %+v", only)
	}
}

// Contract, section 4: From then on the key is refused by every replica: a restart does not undo a deletion. Section 6: make sure that this
// customer, its admin and this exact key exist: what is another customer's is left to it, and nothing is done by halves.
func TestBootstrapNeitherRevivesNorTakesWhatIsThere(t *testing.T) {
	t.Parallel()
	const expire = `UPDATE accesskeys SET tm_create = tm_create - interval '2 years', tm_expire = tm_expire - interval '2 years'`
	after := func(sql string) func(*fixture, *store.Bootstrap) {
		return func(w *fixture, b *store.Bootstrap) {
			must(w.store.Bootstrap(w.t.Context(), *b))(w.t)
			w.exec(sql)
		}
	}
	hashing, existed := errors.New("no memory to hash with"), outcome{store.Existed, store.Existed, store.Existed}
	for name, test := range map[string]struct {
		prepare func(*fixture, *store.Bootstrap)
		want    outcome
		err     error
	}{
		"nothing deleted":      {after(`SELECT 1`), existed, nil},
		"the key deleted":      {after(`UPDATE accesskeys SET tm_delete = now()`), outcome{store.Existed, store.Existed, store.Deleted}, nil},
		"the agent deleted":    {after(`UPDATE agents SET tm_delete = now()`), outcome{store.Existed, store.Deleted, store.Existed}, nil},
		"the customer deleted": {after(`UPDATE customers SET tm_delete = now() WHERE name = 'Initech'`), outcome{customer: store.Deleted}, nil},
		"the key expired":      {after(expire), outcome{store.Existed, store.Existed, store.Expired}, nil},
		"another's username": {func(w *fixture, _ *store.Bootstrap) {
			w.createAgent(w.globex, "ADMIN@initech")
		}, outcome{}, store.ErrOtherCustomer},
		"another's key": {func(w *fixture, b *store.Bootstrap) {
			w.createKeyOf(w.globex, *b.AccessKey)
		}, outcome{}, store.ErrOtherCustomer},
		"another's expired key": {func(w *fixture, b *store.Bootstrap) {
			w.createKeyOf(w.globex, *b.AccessKey)
			w.exec(expire)
		}, outcome{}, store.ErrOtherCustomer},
		"hashing fails": {func(_ *fixture, b *store.Bootstrap) {
			b.PasswordHash = func(context.Context) (secret.Value, error) { return secret.Value{}, hashing }
		}, outcome{}, hashing},
		"the schema refuses the key": {func(_ *fixture, b *store.Bootstrap) { b.AccessKey.TokenPrefix = "x" }, outcome{}, store.ErrRejected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, b := newFixture(t), bootstrap(&atomic.Int32{})
			test.prepare(w, &b)
			before := w.rows()
			got, err := w.store.Bootstrap(t.Context(), b)
			wantError(t, "bootstrapping", err, test.err)
			wantEqual(t, "the rows", w.rows(), before)
			if err == nil {
				wantEqual(t, "what was found", outcomeOf(got), test.want)
				wantEqual(t, "its id", got.CustomerID, value[uuid.UUID](w, `SELECT id FROM customers WHERE name = 'Initech'`))
			}
		})
	}
}

// Contract, section 4: From then on the key is refused: what another customer has deleted hinders no start. Its username is free, its key
// stays its own and deleted.
func TestBootstrapPassesByWhatAnotherCustomerDeleted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	b := bootstrap(&atomic.Int32{})
	w.createAgent(w.globex, "admin@initech")
	key := w.createKeyOf(w.globex, *b.AccessKey)
	w.exec(`UPDATE agents SET tm_delete = now()`)
	key = must(w.store.DeleteAccessKey(t.Context(), operator, w.globex.ID, key.ID))(t)
	got := must(w.store.Bootstrap(t.Context(), b))(t)
	errorIf(t, outcomeOf(got) != (outcome{store.Created, store.Created, store.Deleted}), "found %+v", got)
	wantEqual(t, "the deleted key", must(keyByHash(t.Context(), w.store, b.AccessKey.TokenHash, changelog.Position{}))(t).AccessKey, key)
}

// createKeyOf stores a key as this customer's.
func (w *fixture) createKeyOf(customer store.Customer, k store.NewAccessKey) store.AccessKey {
	w.t.Helper()
	k.CustomerID = customer.ID
	return must(w.store.CreateAccessKey(w.t.Context(), operator, k))(w.t)
}
