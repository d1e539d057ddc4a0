package authcache

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// key names what is remembered: what kind of thing, and the SHA-256 of the bytes that were presented, or the id of a row.
type key struct {
	kind kind
	sum  [32]byte
}

// kind is a kind of thing that is remembered. SECURITY: it is part of the key, so that nothing is ever taken for
// something of another kind.
type kind uint8

const (
	kindAccessKey kind = 1 + iota
	kindAgent
	kindCustomer
	kindServiceAccount
	kindServiceAccountKey
)

func idKey(k kind, id uuid.UUID) key {
	out := key{kind: k}
	copy(out.sum[:], id[:])
	return out
}

func (k key) id() (id uuid.UUID) {
	copy(id[:], k.sum[:])
	return id
}

// addTo adds what the key names to a look-up.
func (k key) addTo(l *store.Lookup) {
	switch k.kind {
	case kindAccessKey:
		l.AccessKeys = append(l.AccessKeys, k.sum)
	case kindAgent:
		l.Agents = append(l.Agents, k.id())
	case kindServiceAccountKey:
		l.ServiceAccountKeys = append(l.ServiceAccountKeys, k.id())
	case kindCustomer, kindServiceAccount: // which are read with others, or never
	}
}

// subjectKey is the key of a row that a change names.
func subjectKey(noun changelog.Noun, subject []byte) (key, bool) {
	out := key{}
	size := len(uuid.UUID{})
	switch noun {
	case changelog.NounAccessKeys:
		out.kind, size = kindAccessKey, len(store.TokenHash{})
	case changelog.NounAgents:
		out.kind = kindAgent
	case changelog.NounCustomers:
		out.kind = kindCustomer
	case changelog.NounServiceAccounts:
		out.kind = kindServiceAccount
	case changelog.NounServiceAccountKeys:
		out.kind = kindServiceAccountKey
	default:
		return out, false
	}
	copy(out.sum[:], subject)
	return out, len(subject) == size
}

// checked is when a row was last found to be as the database has it, in nanoseconds of boot time.
type checked struct{ atomic.Int64 }

func (c *checked) at() time.Duration       { return time.Duration(c.Load()) }
func (c *checked) touch(now time.Duration) { c.Store(int64(now)) }

// aging is a row of any kind.
type aging interface {
	at() time.Duration
	touch(now time.Duration)
}

// The rows as they are remembered, accessKeyRow among them: each by itself, so that a change to one is one thing to forget. They
// are not changed, but for what is atomic.
type (
	agentRow struct {
		checked
		store.Agent
	}
	customerRow struct {
		checked
		tmDelete time.Time
	}
	serviceAccountRow struct {
		checked
		store.ServiceAccount
	}
	serviceAccountKeyRow struct {
		checked
		store.ServiceAccountKey
	}
)

// overhead is about what an entry costs beside what it holds: key, pointers, and its place in the cache's lists.
const overhead = 200

// weigh returns about how many bytes an entry takes.
func weigh(_ key, value any) uint32 {
	n := overhead
	switch v := value.(type) {
	case *accessKeyRow:
		n += v.bytes()
	case *agentRow:
		n += 240 + len(v.Username) + len(v.Name) + len(v.Detail)
	case *customerRow:
		n += 48
	case *serviceAccountRow:
		n += 200 + len(v.Name) + len(v.Detail) + rolesBytes(v.Roles)
	case *serviceAccountKeyRow:
		n += 200 + len(v.PublicKey)
	}
	return uint32(n)
}

// rolesBytes is about what a list of roles takes. The names are few, but each row has its own.
func rolesBytes(roles []string) (n int) {
	for _, role := range roles {
		n += 32 + len(role)
	}
	return n
}

// forget removes what a change has made stale. The caller holds applying.
func (r *Cache) forget(change changelog.Change) {
	if change.Subjects == nil {
		r.rows.InvalidateAll()
		return
	}
	for _, subject := range change.Subjects {
		k, ok := subjectKey(change.Noun, subject)
		if !ok { // of a newer program's; whatever it means, nothing remembered survives it
			r.rows.InvalidateAll()
			return
		}
		r.rows.Invalidate(k)
	}
}

// remember keeps what was found at a time of the instance's clock.
func (r *Cache) remember(found store.Found, at time.Duration) {
	for hash, c := range found.AccessKeys {
		row := newAccessKeyRow(c)
		row.touch(at)
		r.rows.Set(key{kind: kindAccessKey, sum: hash}, row)
		r.rememberCustomer(c.CustomerID, c.CustomerTmDelete, at)
		if c.Agent != nil {
			r.rememberAgent(*c.Agent, at)
		}
		if c.ServiceAccount != nil {
			r.rememberServiceAccount(*c.ServiceAccount, at)
		}
	}
	for _, c := range found.Agents {
		r.rememberAgent(c.Agent, at)
		r.rememberCustomer(c.CustomerID, c.CustomerTmDelete, at)
	}
	for id, c := range found.ServiceAccountKeys {
		row := &serviceAccountKeyRow{ServiceAccountKey: c.Key}
		row.touch(at)
		r.rows.Set(idKey(kindServiceAccountKey, id), row)
		r.rememberServiceAccount(c.Account, at)
		r.rememberCustomer(c.Account.CustomerID, c.CustomerTmDelete, at)
	}
}

func (r *Cache) rememberAgent(a store.Agent, at time.Duration) {
	row := &agentRow{Agent: a}
	row.touch(at)
	r.rows.Set(idKey(kindAgent, a.ID), row)
}

func (r *Cache) rememberServiceAccount(a store.ServiceAccount, at time.Duration) {
	row := &serviceAccountRow{ServiceAccount: a}
	row.touch(at)
	r.rows.Set(idKey(kindServiceAccount, a.ID), row)
}

func (r *Cache) rememberCustomer(id uuid.UUID, tmDelete time.Time, at time.Duration) {
	row := &customerRow{tmDelete: tmDelete}
	row.touch(at)
	r.rows.Set(idKey(kindCustomer, id), row)
}

// cachedRow returns a row that is remembered.
func cachedRow[T any](r *Cache, k key) (*T, bool) {
	if r.rows == nil {
		return nil, false
	}
	value, ok := r.rows.GetIfPresent(k)
	if !ok {
		return nil, false
	}
	row, ok := value.(*T)
	return row, ok
}

// AccessKeyCredential is a store.AccessKeyCredential that knows when its last use was noted.
type AccessKeyCredential struct {
	store.AccessKeyCredential
	noted *atomic.Int64 // nil where the row is not remembered
}

// NoteUse reports whether the use of the key at c.Now is to be noted: of a remembered key one in so long a time is enough.
func (c AccessKeyCredential) NoteUse(apart time.Duration) bool {
	if c.noted == nil {
		return true
	}
	now, before := c.Now.UnixMicro(), c.noted.Load()
	return now-before >= apart.Microseconds() && c.noted.CompareAndSwap(before, now)
}

// AccessKeyByHash returns the key with this hash, deleted and expired ones too, as the database has it at some moment after the
// call; for a client at an address, of which the zero value stands for one that is not known. It returns store.ErrNotFound and
// store.ErrUnavailable.
func (r *Cache) AccessKeyByHash(ctx context.Context, hash store.TokenHash, from netip.Addr) (AccessKeyCredential, error) {
	k := key{kind: kindAccessKey, sum: hash}
	if c, now, ok := inMemory(r, k, cachedAccessKey); ok {
		c.Now = now
		return c, nil
	}
	return accessKeyQuery(hash).get(ctx, r, from)
}

// ProvenAccessKeyByHash is AccessKeyByHash by a heartbeat that was committed after the call: what a refusal may rest on.
func (r *Cache) ProvenAccessKeyByHash(ctx context.Context, hash store.TokenHash, from netip.Addr) (AccessKeyCredential, error) {
	return accessKeyQuery(hash).proven(ctx, r, from)
}

func accessKeyQuery(hash store.TokenHash) query[AccessKeyCredential] {
	return query[AccessKeyCredential]{
		key:    key{kind: kindAccessKey, sum: hash},
		cached: cachedAccessKey,
		pick: func(found store.Found, k key) (c AccessKeyCredential, ok bool) {
			c.AccessKeyCredential, ok = found.AccessKeys[k.sum]
			return c, ok
		},
		setNow: func(c *AccessKeyCredential, now time.Time) { c.Now = now },
	}
}

func cachedAccessKey(r *Cache, k key) (c AccessKeyCredential, oldest time.Duration, ok bool) {
	row, ok := cachedRow[accessKeyRow](r, k)
	if !ok {
		return c, 0, false
	}
	customer, ok := cachedRow[customerRow](r, idKey(kindCustomer, row.customerID))
	if !ok {
		return c, 0, false
	}
	oldest = min(row.at(), customer.at())
	c = row.credential()
	c.CustomerTmDelete = customer.tmDelete
	if row.bound {
		agent, ok := cachedRow[agentRow](r, idKey(kindAgent, row.agentID))
		if !ok {
			return c, 0, false
		}
		c.Agent, oldest = &agent.Agent, min(oldest, agent.at())
	}
	if row.serviceAccountID != uuid.Nil {
		account, ok := cachedRow[serviceAccountRow](r, idKey(kindServiceAccount, row.serviceAccountID))
		if !ok {
			return c, 0, false
		}
		c.ServiceAccount, oldest = &account.ServiceAccount, min(oldest, account.at())
	}
	return c, oldest, true
}

// AgentCredential returns the agent with this id, a deleted one too. It is otherwise as AccessKeyByHash.
func (r *Cache) AgentCredential(ctx context.Context, id uuid.UUID, from netip.Addr) (store.AgentCredential, error) {
	k := idKey(kindAgent, id)
	if c, now, ok := inMemory(r, k, cachedAgent); ok {
		c.Now = now
		return c, nil
	}
	return agentQuery(id).get(ctx, r, from)
}

// ProvenAgentCredential is AgentCredential by a heartbeat that was committed after the call.
func (r *Cache) ProvenAgentCredential(ctx context.Context, id uuid.UUID, from netip.Addr) (store.AgentCredential, error) {
	return agentQuery(id).proven(ctx, r, from)
}

func agentQuery(id uuid.UUID) query[store.AgentCredential] {
	return query[store.AgentCredential]{
		key:    idKey(kindAgent, id),
		cached: cachedAgent,
		pick: func(found store.Found, k key) (store.AgentCredential, bool) {
			c, ok := found.Agents[k.id()]
			return c, ok
		},
		setNow: func(c *store.AgentCredential, now time.Time) { c.Now = now },
	}
}

func cachedAgent(r *Cache, k key) (c store.AgentCredential, oldest time.Duration, ok bool) {
	row, ok := cachedRow[agentRow](r, k)
	if !ok {
		return c, 0, false
	}
	customer, ok := cachedRow[customerRow](r, idKey(kindCustomer, row.CustomerID))
	if !ok {
		return c, 0, false
	}
	c.Agent, c.CustomerTmDelete = row.Agent, customer.tmDelete
	return c, min(row.at(), customer.at()), true
}

// ServiceAccountCredential returns the key of a service account with this id and the account, deleted ones too. It is otherwise
// as AccessKeyByHash.
func (r *Cache) ServiceAccountCredential(ctx context.Context, keyID uuid.UUID, from netip.Addr) (store.ServiceAccountCredential, error) {
	k := idKey(kindServiceAccountKey, keyID)
	if c, now, ok := inMemory(r, k, cachedServiceAccountKey); ok {
		c.Now = now
		return c, nil
	}
	return serviceAccountQuery(keyID).get(ctx, r, from)
}

// ProvenServiceAccountCredential is ServiceAccountCredential by a heartbeat that was committed after the call.
func (r *Cache) ProvenServiceAccountCredential(
	ctx context.Context, keyID uuid.UUID, from netip.Addr,
) (store.ServiceAccountCredential, error) {
	return serviceAccountQuery(keyID).proven(ctx, r, from)
}

func serviceAccountQuery(keyID uuid.UUID) query[store.ServiceAccountCredential] {
	return query[store.ServiceAccountCredential]{
		key:    idKey(kindServiceAccountKey, keyID),
		cached: cachedServiceAccountKey,
		pick: func(found store.Found, k key) (store.ServiceAccountCredential, bool) {
			c, ok := found.ServiceAccountKeys[k.id()]
			return c, ok
		},
		setNow: func(c *store.ServiceAccountCredential, now time.Time) { c.Now = now },
	}
}

func cachedServiceAccountKey(r *Cache, k key) (c store.ServiceAccountCredential, oldest time.Duration, ok bool) {
	row, ok := cachedRow[serviceAccountKeyRow](r, k)
	if !ok {
		return c, 0, false
	}
	account, ok := cachedRow[serviceAccountRow](r, idKey(kindServiceAccount, row.AccountID))
	if !ok {
		return c, 0, false
	}
	customer, ok := cachedRow[customerRow](r, idKey(kindCustomer, account.CustomerID))
	if !ok {
		return c, 0, false
	}
	c.Key, c.Account, c.CustomerTmDelete = row.ServiceAccountKey, account.ServiceAccount, customer.tmDelete
	return c, min(row.at(), account.at(), customer.at()), true
}
