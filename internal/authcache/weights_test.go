package authcache_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// text is a string of its own of so many bytes, as the database driver makes one.
func text(n int) string { return strings.Repeat("x", n) }

// rolesOf are so many roles, each a string of its own.
func rolesOf(n int) []string {
	roles := make([]string, n)
	for i := range roles {
		roles[i] = text(16)
	}
	return roles
}

// What is remembered is weighed by about what it takes: CACHE_SIZE is what an operator has given it.
//
//nolint:paralleltest // it measures the memory of the whole process, in which nothing else may happen meanwhile
func TestWhatIsRememberedWeighsWhatItTakes(t *testing.T) {
	never := store.Never()
	customer := uuid.New()
	accessKey := func(size, roles int, bind func(*store.AccessKeyCredential)) store.Found {
		c := store.AccessKeyCredential{
			AccessKey: store.AccessKey{
				ID: uuid.New(), CustomerID: customer, Name: text(size), Detail: text(size), TokenPrefix: text(11),
				TmExpire: never, TmCreate: never, TmUpdate: never, TmDelete: never,
			},
			Roles: rolesOf(roles), CustomerTmDelete: never,
		}
		if roles == 0 {
			c.Roles = []string{strings.Clone("customer_admin")}
		}
		if bind != nil {
			bind(&c)
		}
		return store.Found{AccessKeys: map[store.TokenHash]store.AccessKeyCredential{newHash(): c}}
	}
	agent := func(size int) store.Agent {
		return store.Agent{
			ID: uuid.New(), CustomerID: customer, Username: text(min(size, 60)), Name: text(size), Detail: text(size), Permission: 32,
			TmPassword: never, TmCreate: never, TmUpdate: never, TmDelete: never,
		}
	}
	account := func(size, roles int) store.ServiceAccount {
		return store.ServiceAccount{
			ID: uuid.New(), CustomerID: customer, Name: text(size), Detail: text(size), Roles: rolesOf(roles),
			TmCreate: never, TmUpdate: never, TmDelete: never,
		}
	}
	same := account(10, 1)
	pair := func(a store.ServiceAccount, size int) store.Found {
		key := store.ServiceAccountKey{
			ID: uuid.New(), AccountID: a.ID, Algorithm: strings.Clone("ES256"), PublicKey: make([]byte, size),
			TmCreate: never, TmUpdate: never, TmDelete: never,
		}
		return store.Found{ServiceAccountKeys: map[uuid.UUID]store.ServiceAccountCredential{
			key.ID: {Key: key, Account: a, CustomerTmDelete: never},
		}}
	}
	const short, lengthy = 10, 500
	for _, kind := range []struct {
		name     string
		remember func(*authcache.Cache)
	}{
		{"customers", func(r *authcache.Cache) { r.FillCustomer(uuid.New()) }},
		{"access keys", func(r *authcache.Cache) { r.Fill(accessKey(short, 0, nil)) }},
		{"access keys with long texts", func(r *authcache.Cache) { r.Fill(accessKey(lengthy, 0, nil)) }},
		{"access keys with one other role", func(r *authcache.Cache) { r.Fill(accessKey(short, 1, nil)) }},
		{"access keys with many roles", func(r *authcache.Cache) { r.Fill(accessKey(short, 40, nil)) }},
		{"access keys with their agents", func(r *authcache.Cache) {
			r.Fill(accessKey(short, 0, func(c *store.AccessKeyCredential) {
				a := agent(short)
				c.AgentID, c.Agent = &a.ID, &a
			}))
		}},
		{"access keys with the account that made them", func(r *authcache.Cache) {
			r.Fill(accessKey(short, 0, func(c *store.AccessKeyCredential) {
				a := account(short, 1)
				c.ServiceAccount = &a
			}))
		}},
		{"agents", func(r *authcache.Cache) {
			a := agent(short)
			r.Fill(store.Found{Agents: map[uuid.UUID]store.AgentCredential{a.ID: {Agent: a, CustomerTmDelete: never}}})
		}},
		{"agents with long texts", func(r *authcache.Cache) {
			a := agent(lengthy)
			r.Fill(store.Found{Agents: map[uuid.UUID]store.AgentCredential{a.ID: {Agent: a, CustomerTmDelete: never}}})
		}},
		{"keys of one service account", func(r *authcache.Cache) { r.Fill(pair(same, 91)) }},
		{"large keys of one service account", func(r *authcache.Cache) { r.Fill(pair(same, 550)) }},
		{"keys and their service accounts", func(r *authcache.Cache) { r.Fill(pair(account(short, 1), 91)) }},
		{"keys and their service accounts with long texts and many roles", func(r *authcache.Cache) { r.Fill(pair(account(lengthy, 40), 91)) }},
	} {
		r := must(authcache.New(authcache.Config{Lease: authcache.MaxLease, CacheBytes: 1 << 30}))(t)
		weighed(t, kind.name, r, func(int) { kind.remember(r) })
	}
}

// weighed holds what is said to be taken by many things that are remembered against what they take.
func weighed(t *testing.T, name string, r *authcache.Cache, remember func(i int)) {
	t.Helper()
	const things = 2000 // of which noise is a small part
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC() // twice: what a finalizer or a pool has kept goes with the second
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	before, already := heap(), r.Stats()
	for i := range things {
		remember(i)
	}
	servertest.Eventually(t, "all are counted", func() bool { return r.Stats().Entries >= already.Entries+things })
	takes := heap() - before
	says := float64(r.Stats().Bytes - already.Bytes)
	t.Logf("%s: %.0f bytes for each are taken, %.0f weighed: %.0f %%", name, takes/things, says/things, 100*says/takes)
	if says < 0.8*takes || says > 2*takes {
		t.Errorf("%s: they weigh %.0f bytes each, and take %.0f", name, says/things, takes/things)
	}
	runtime.KeepAlive(r)
}
