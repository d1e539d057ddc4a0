package replica

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

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
	kindToken
)

func idKey(k kind, id uuid.UUID) key {
	out := key{kind: k}
	copy(out.sum[:], id[:])
	return out
}

// subjectKey is the key of a row that a change names.
func subjectKey(noun store.Noun, subject []byte) (key, bool) {
	out := key{}
	size := len(uuid.UUID{})
	switch noun {
	case store.NounAccessKeys:
		out.kind, size = kindAccessKey, len(store.TokenHash{})
	case store.NounAgents:
		out.kind = kindAgent
	case store.NounCustomers:
		out.kind = kindCustomer
	case store.NounServiceAccounts:
		out.kind = kindServiceAccount
	case store.NounServiceAccountKeys:
		out.kind = kindServiceAccountKey
	default:
		return out, false
	}
	copy(out.sum[:], subject)
	return out, len(subject) == size
}

// The rows as they are remembered: each by itself, so that a change to one is one thing to forget. Of a row that was read
// together with another's columns, the other's count for nothing here.
type (
	agentRow             store.AgentCredential
	customerRow          struct{ tmDelete time.Time }
	serviceAccountRow    store.ServiceAccount
	serviceAccountKeyRow store.ServiceAccountCredential
	token                struct {
		value any
		bytes int
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
		n += 350 + len(v.Username) + len(v.Name) + len(v.Detail)
	case *serviceAccountRow:
		n += 250 + len(v.Name) + len(v.Detail) + 40*len(v.Roles)
	case *serviceAccountKeyRow:
		n += 600 + len(v.Key.PublicKey)
	case *token:
		n += v.bytes
	}
	return uint32(n)
}

// forget removes what a change has made stale. The caller holds applying.
func (r *Replica) forget(change store.Change) {
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

// recall returns a row that is remembered.
func recall[T any](r *Replica, k key) (*T, bool) {
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

// AccessKeyCredential is a store.AccessKeyCredential that can be told to Used.
type AccessKeyCredential struct {
	store.AccessKeyCredential
	noted *atomic.Int64 // nil where the row is not remembered
}

// AccessKeyByHash is store.AccessKeyByHash, from memory where that is as good.
func (r *Replica) AccessKeyByHash(ctx context.Context, hash store.TokenHash) (AccessKeyCredential, error) {
	k := key{kind: kindAccessKey, sum: hash}
	if c, now, ok := inMemory(r, k, recallAccessKey); ok {
		c.Now = now
		return c, nil
	}
	return r.accessKeyReading(hash).do(ctx, r)
}

func (r *Replica) accessKeyReading(hash store.TokenHash) reading[AccessKeyCredential] {
	k := key{kind: kindAccessKey, sum: hash}
	return reading[AccessKeyCredential]{
		key:    k,
		recall: recallAccessKey,
		read: func(ctx context.Context, known store.Position) (c AccessKeyCredential, m store.Moment, err error) {
			c.AccessKeyCredential, err = r.store.AccessKeyByHash(ctx, hash, known)
			return c, c.Moment, err
		},
		remember: func(c AccessKeyCredential) {
			r.rows.Set(k, newAccessKeyRow(c.AccessKeyCredential))
			r.rememberCustomer(c.CustomerID, c.CustomerTmDelete)
		},
		at: func(c *AccessKeyCredential, now time.Time) { c.Now = now },
	}
}

func recallAccessKey(r *Replica, k key) (c AccessKeyCredential, ok bool) {
	row, ok := recall[accessKeyRow](r, k)
	if !ok {
		return c, false
	}
	customer, ok := recall[customerRow](r, idKey(kindCustomer, row.customerID))
	if !ok {
		return c, false
	}
	c = row.credential()
	c.CustomerTmDelete = customer.tmDelete
	return c, true
}

// AgentCredential is store.AgentCredential, from memory where that is as good.
func (r *Replica) AgentCredential(ctx context.Context, id uuid.UUID) (store.AgentCredential, error) {
	k := idKey(kindAgent, id)
	if c, now, ok := inMemory(r, k, recallAgent); ok {
		c.Now = now
		return c, nil
	}
	return reading[store.AgentCredential]{
		key:    k,
		recall: recallAgent,
		read: func(ctx context.Context, known store.Position) (store.AgentCredential, store.Moment, error) {
			c, err := r.store.AgentCredential(ctx, id, known)
			return c, c.Moment, err
		},
		remember: func(c store.AgentCredential) {
			r.rows.Set(k, (*agentRow)(&c))
			r.rememberCustomer(c.CustomerID, c.CustomerTmDelete)
		},
		at: func(c *store.AgentCredential, now time.Time) { c.Now = now },
	}.do(ctx, r)
}

func recallAgent(r *Replica, k key) (c store.AgentCredential, ok bool) {
	row, ok := recall[agentRow](r, k)
	if !ok {
		return c, false
	}
	customer, ok := recall[customerRow](r, idKey(kindCustomer, row.CustomerID))
	if !ok {
		return c, false
	}
	c = store.AgentCredential(*row)
	c.CustomerTmDelete = customer.tmDelete
	return c, true
}

// ServiceAccountCredential is store.ServiceAccountCredential, from memory where that is as good.
func (r *Replica) ServiceAccountCredential(ctx context.Context, keyID uuid.UUID) (store.ServiceAccountCredential, error) {
	k := idKey(kindServiceAccountKey, keyID)
	if c, now, ok := inMemory(r, k, recallServiceAccountKey); ok {
		c.Now = now
		return c, nil
	}
	return reading[store.ServiceAccountCredential]{
		key:    k,
		recall: recallServiceAccountKey,
		read: func(ctx context.Context, known store.Position) (store.ServiceAccountCredential, store.Moment, error) {
			c, err := r.store.ServiceAccountCredential(ctx, keyID, known)
			return c, c.Moment, err
		},
		remember: func(c store.ServiceAccountCredential) {
			account := serviceAccountRow(c.Account)
			r.rows.Set(k, (*serviceAccountKeyRow)(&c))
			r.rows.Set(idKey(kindServiceAccount, c.Account.ID), &account)
			r.rememberCustomer(c.Account.CustomerID, c.CustomerTmDelete)
		},
		at: func(c *store.ServiceAccountCredential, now time.Time) { c.Now = now },
	}.do(ctx, r)
}

func recallServiceAccountKey(r *Replica, k key) (c store.ServiceAccountCredential, ok bool) {
	row, ok := recall[serviceAccountKeyRow](r, k)
	if !ok {
		return c, false
	}
	account, ok := recall[serviceAccountRow](r, idKey(kindServiceAccount, row.Account.ID))
	if !ok {
		return c, false
	}
	customer, ok := recall[customerRow](r, idKey(kindCustomer, account.CustomerID))
	if !ok {
		return c, false
	}
	c = store.ServiceAccountCredential(*row)
	c.Account = store.ServiceAccount(*account)
	c.CustomerTmDelete = customer.tmDelete
	return c, true
}

func (r *Replica) rememberCustomer(id uuid.UUID, tmDelete time.Time) {
	r.rows.Set(idKey(kindCustomer, id), &customerRow{tmDelete})
}

// Recall returns what Remember was given for these bytes' SHA-256.
func (r *Replica) Recall(sum [32]byte) (any, bool) {
	t, ok := recall[token](r, key{kind: kindToken, sum: sum})
	if !ok {
		return nil, false
	}
	return t.value, true
}

// Remember keeps a value of about so many bytes. It must follow from the bytes alone, whatever the database holds: nothing
// makes it be forgotten but want of room.
func (r *Replica) Remember(sum [32]byte, value any, bytes int) {
	if r.lease > 0 {
		r.rows.Set(key{kind: kindToken, sum: sum}, &token{value: value, bytes: bytes})
	}
}
