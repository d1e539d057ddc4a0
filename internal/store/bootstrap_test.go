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

// Contract, section 6: all optional and idempotent: on start, make sure that this customer, its admin and this exact key exist, with many
// servers starting at once.
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
	if hashed.Load() != 1 {
		t.Errorf("the password was hashed %d times", hashed.Load())
	}
	for table, want := range map[string]int{"customers": 3, "agents": 1, "accesskeys": 1} {
		if got := value[int](w, `SELECT count(*) FROM `+table); got != want {
			t.Errorf("there are %d %s, want %d", got, table, want)
		}
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
	set := must(w.store.SetPassword(t.Context(), store.Operator(), login.Agent, secret.New("$argon2id$changed")))(t)
	if got := must(w.store.Bootstrap(t.Context(), b))(t); outcomeOf(got) != (outcome{store.Existed, store.Existed, store.Existed}) {
		t.Errorf("once more: %+v", got)
	}
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

// Contract, section 4: From then on the key is refused by every replica: a restart does not undo a deletion.
func TestBootstrapDoesNotBringBackWhatWasDeleted(t *testing.T) {
	t.Parallel()
	existed := outcome{store.Existed, store.Existed, store.Existed}
	for name, test := range map[string]struct {
		change string
		want   outcome
	}{
		"nothing":      {`SELECT 1`, existed},
		"the key":      {`UPDATE accesskeys SET tm_delete = now()`, outcome{store.Existed, store.Existed, store.Deleted}},
		"the agent":    {`UPDATE agents SET tm_delete = now()`, outcome{store.Existed, store.Deleted, store.Existed}},
		"the customer": {`UPDATE customers SET tm_delete = now() WHERE name = 'Initech'`, outcome{customer: store.Deleted}},
		"the key's time": {
			`UPDATE accesskeys SET tm_create = tm_create - interval '2 years', tm_expire = tm_expire - interval '2 years'`,
			outcome{store.Existed, store.Existed, store.Expired},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			var hashed atomic.Int32
			b := bootstrap(&hashed)
			first := must(w.store.Bootstrap(t.Context(), b))(t)
			w.exec(test.change)
			before := w.everything()
			got := must(w.store.Bootstrap(t.Context(), b))(t)
			if outcomeOf(got) != test.want || got.CustomerID != first.CustomerID {
				t.Errorf("found %+v, want %v", got, test.want)
			}
			if after := w.everything(); after != before {
				t.Errorf("the rows were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// Contract, section 6: make sure that this customer, its admin and this exact key exist: what is another customer's is left to it, and
// nothing is done by halves.
func TestBootstrapTakesNothingFromAnotherCustomer(t *testing.T) {
	t.Parallel()
	hashing := errors.New("no memory to hash with")
	for name, test := range map[string]struct {
		prepare func(*fixture, *store.Bootstrap)
		want    error
	}{
		"the username": {func(w *fixture, _ *store.Bootstrap) { w.createAgent(w.globex, "ADMIN@initech") }, store.ErrOtherCustomer},
		"the key":      {func(w *fixture, b *store.Bootstrap) { w.createKeyOf(w.globex, *b.AccessKey) }, store.ErrOtherCustomer},
		"the expired key": {func(w *fixture, b *store.Bootstrap) {
			w.createKeyOf(w.globex, *b.AccessKey)
			w.exec(`UPDATE accesskeys SET tm_create = tm_create - interval '2 years', tm_expire = tm_expire - interval '2 years'`)
		}, store.ErrOtherCustomer},
		"nothing, but hashing fails": {func(_ *fixture, b *store.Bootstrap) {
			b.PasswordHash = func(context.Context) (secret.Value, error) { return secret.Value{}, hashing }
		}, hashing},
		"nothing, but the schema refuses the key": {func(_ *fixture, b *store.Bootstrap) { b.AccessKey.TokenPrefix = "x" }, store.ErrRejected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			var hashed atomic.Int32
			b := bootstrap(&hashed)
			test.prepare(w, &b)
			before := w.everything()
			_, err := w.store.Bootstrap(t.Context(), b)
			wantError(t, "bootstrapping", err, test.want)
			if after := w.everything(); after != before {
				t.Errorf("the rows were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// Contract, section 4: From then on the key is refused: what another customer has deleted hinders no start. Its username is free, its key
// stays its own and deleted.
func TestBootstrapPassesByWhatAnotherCustomerDeleted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	var hashed atomic.Int32
	b := bootstrap(&hashed)
	w.createAgent(w.globex, "admin@initech")
	key := w.createKeyOf(w.globex, *b.AccessKey)
	w.exec(`UPDATE agents SET tm_delete = now()`)
	key = must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.globex.ID, key.ID))(t)
	got := must(w.store.Bootstrap(t.Context(), b))(t)
	if outcomeOf(got) != (outcome{store.Created, store.Created, store.Deleted}) {
		t.Errorf("found %+v", got)
	}
	if after := must(keyByHash(t.Context(), w.store, b.AccessKey.TokenHash, changelog.Position{}))(t); after.AccessKey != key {
		t.Errorf("the deleted key is\n%+v, was\n%+v", after.AccessKey, key)
	}
}

// createKeyOf stores a key as this customer's.
func (w *fixture) createKeyOf(customer store.Customer, k store.NewAccessKey) store.AccessKey {
	w.t.Helper()
	k.CustomerID = customer.ID
	return must(w.store.CreateAccessKey(w.t.Context(), store.Operator(), k))(w.t)
}

// everything is all rows as text.
func (w *fixture) everything() string {
	w.t.Helper()
	return value[string](w, `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT to_jsonb(c)::text AS line FROM customers c UNION ALL
		SELECT to_jsonb(a)::text FROM agents a UNION ALL
		SELECT to_jsonb(k)::text FROM accesskeys k) AS lines`)
}
