package authcache

import (
	"context"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// The bounds that tests look at.
const (
	AgeParts, ProofPause                                      = ageParts, proofPause
	LookupsAtOnce, LookupBatch, LookupsMax, LookupsPerNetwork = lookupsAtOnce, lookupBatch, lookupsMax, lookupsPerNetwork
)

// BootTime is the clock of a lease.
func BootTime() time.Duration { return bootTime() }

// NetworkOf is the network that is taken for one client.
func NetworkOf(addr netip.Addr) netip.Prefix { return networkOf(addr) }

// SetClock gives the instance another clock. To be called before Run.
func (r *Cache) SetClock(clock func() time.Duration) { r.clock = clock }

// LookupFunc is a look-up by the pool.
type LookupFunc = func(context.Context, store.Lookup, changelog.Position, store.Order) (store.Found, error)

// WrapLookup puts something between the instance and its look-ups by the pool. To be called before Run.
func (r *Cache) WrapLookup(wrap func(LookupFunc) LookupFunc) { r.lookup = wrap(r.lookup) }

// ID is what the instance is registered as.
func (r *Cache) ID() uuid.UUID { return *r.id.Load() }

// Renew asks for a round.
func (r *Cache) Renew(ctx context.Context) error { return r.requestRenewal(ctx) }

// WaitingLookups returns how many credentials wait to be looked up, those that nobody waits for any more among them.
func (r *Cache) WaitingLookups() int {
	r.lookups.mu.Lock()
	defer r.lookups.mu.Unlock()
	return r.lookups.count
}

// WaitingProofs returns how many refusals wait to be proven.
func (r *Cache) WaitingProofs() int {
	r.proofs.mu.Lock()
	defer r.proofs.mu.Unlock()
	return len(r.proofs.waiting)
}

// RefreshDue reads again, by the instance's clock, what is due now, and forgets what it is too late for. It returns how many rows
// were due.
func (r *Cache) RefreshDue(ctx context.Context) int {
	due := r.agedRows()
	if len(due) > 0 {
		r.refresh(ctx, due)
	}
	return len(due)
}

// Fill remembers what was found, as of now.
func (r *Cache) Fill(found store.Found) { r.remember(found, r.clock()) }

// FillCustomer remembers a customer.
func (r *Cache) FillCustomer(id uuid.UUID) { r.rememberCustomer(id, store.Never(), r.clock()) }

// AccessKeyByHashAfter is AccessKeyByHash with something that happens once memory has been looked into for the first time.
func (r *Cache) AccessKeyByHashAfter(ctx context.Context, hash store.TokenHash, happens func()) (AccessKeyCredential, error) {
	q := accessKeyQuery(hash)
	recall := q.cached
	q.cached = func(r *Cache, k key) (AccessKeyCredential, time.Duration, bool) {
		c, oldest, ok := recall(r, k)
		if happens != nil {
			happens()
			happens = nil
		}
		return c, oldest, ok
	}
	return q.get(ctx, r, netip.Addr{})
}

// RemembersAccessKey reports whether all is remembered that a key's credential rests on. It looks only.
func (r *Cache) RemembersAccessKey(hash store.TokenHash) bool {
	_, _, ok := cachedAccessKey(r, key{kind: kindAccessKey, sum: hash})
	return ok
}

// RemembersAgent is RemembersAccessKey of an agent.
func (r *Cache) RemembersAgent(id uuid.UUID) bool {
	_, _, ok := cachedAgent(r, idKey(kindAgent, id))
	return ok
}

// RemembersServiceAccountKey is RemembersAccessKey of a service account's key.
func (r *Cache) RemembersServiceAccountKey(id uuid.UUID) bool {
	_, _, ok := cachedServiceAccountKey(r, idKey(kindServiceAccountKey, id))
	return ok
}

// Census is an instance's watch over the others.
type Census struct{ reaper }

// Sweep removes those that have died.
func (c *Census) Sweep(ctx context.Context, feed *changelog.Feed, self uuid.UUID) error {
	_, err := c.reap(ctx, feed, self)
	return err
}
