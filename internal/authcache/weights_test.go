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
	newAgent := func(size int) store.Agent {
		return store.Agent{
			ID: uuid.New(), CustomerID: customer, Username: text(min(size, 60)), Name: text(size), Detail: text(size), Permission: 32,
			TmPassword: never, TmCreate: never, TmUpdate: never, TmDelete: never,
		}
	}
	agent := func(size int) store.Found {
		a := newAgent(size)
		return store.Found{Agents: map[uuid.UUID]store.AgentCredential{a.ID: {Agent: a, CustomerTmDelete: never}}}
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
	for name, found := range map[string]func() store.Found{
		"access keys":                     func() store.Found { return accessKey(short, 0, nil) },
		"access keys with long texts":     func() store.Found { return accessKey(lengthy, 0, nil) },
		"access keys with one other role": func() store.Found { return accessKey(short, 1, nil) },
		"access keys with many roles":     func() store.Found { return accessKey(short, 40, nil) },
		"access keys with their agents": func() store.Found {
			a := newAgent(short)
			return accessKey(short, 0, func(c *store.AccessKeyCredential) { c.AgentID, c.Agent = &a.ID, &a })
		},
		"access keys with the account that made them": func() store.Found {
			a := account(short, 1)
			return accessKey(short, 0, func(c *store.AccessKeyCredential) { c.ServiceAccount = &a })
		},
		"agents":                            func() store.Found { return agent(short) },
		"agents with long texts":            func() store.Found { return agent(lengthy) },
		"keys of one service account":       func() store.Found { return pair(same, 91) },
		"large keys of one service account": func() store.Found { return pair(same, 550) },
		"keys and their service accounts":   func() store.Found { return pair(account(short, 1), 91) },
		"keys and their service accounts with long texts and many roles": func() store.Found { return pair(account(lengthy, 40), 91) },
	} {
		weighed(t, name, func(r *authcache.Cache) { r.Fill(found()) })
	}
	weighed(t, "customers", func(r *authcache.Cache) { r.FillCustomer(uuid.New()) })
}

// weighed holds what is said to be taken by many things that are remembered against what they take.
func weighed(t *testing.T, name string, remember func(r *authcache.Cache)) {
	t.Helper()
	r := must(authcache.New(authcache.Config{Lease: authcache.MaxLease, CacheBytes: 1 << 30}))(t)
	const things = 2000 // of which noise is a small part
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC() // twice: what a finalizer or a pool has kept goes with the second
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	before, already := heap(), r.Stats()
	for range things {
		remember(r)
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
