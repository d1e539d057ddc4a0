package authcache_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accesskeys/internal/authcache"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// from is an address of the n-th of many networks.
func from(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1}) }

// Whatever is presented, and from wherever, look-ups use no more connections than there are for them.
func TestLookUpsUseFewConnections(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for _, lease := range []time.Duration{0, long} {
		r := w.newCache(lease)
		var underWay, most, looked atomic.Int64
		r.onLookups(func(l store.Lookup, _ store.Order, lookup func() (store.Found, error)) (store.Found, error) {
			now := underWay.Add(1)
			defer underWay.Add(-1)
			for before := most.Load(); now > before && !most.CompareAndSwap(before, now); before = most.Load() {
			}
			looked.Add(int64(len(l.AccessKeys)))
			return lookup()
		})
		r.started()
		const clients, each = 300, 10
		var all sync.WaitGroup
		for n := range clients {
			all.Go(func() {
				for range each {
					if _, err := r.AccessKeyByHash(within(t), newHash(), from(n)); !errors.Is(err, store.ErrNotFound) {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		if most.Load() > authcache.LookupsAtOnce {
			t.Errorf("%d look-ups were under way at once, want %d at most", most.Load(), authcache.LookupsAtOnce)
		}
		if looked.Load() < clients*each {
			t.Errorf("%d of %d keys were looked up", looked.Load(), clients*each)
		}
		// Beside these there are that of the inspections, and that of the writing of uses.
		if total := r.store.DB.Stats().Total; total > authcache.LookupsAtOnce+2 {
			t.Errorf("the pool has %d connections", total)
		}
		r.stop()
	}
}

// A client is served soon, however many credentials others wait for: networks take turns.
func TestNetworksTakeTurns(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for _, flood := range []struct {
		name           string
		networks, each int
		batches        int // that may go before, or with, the lone client's
	}{
		{"one network", 1, 3000, 1},
		{"a thousand networks", 1000, 3, 1000/authcache.LookupBatch + 1},
	} {
		r := w.newCache(0)
		var batches [][]store.TokenHash
		var mu sync.Mutex
		r.onLookups(func(l store.Lookup, _ store.Order, lookup func() (store.Found, error)) (store.Found, error) {
			mu.Lock()
			batches = append(batches, l.AccessKeys)
			mu.Unlock()
			return lookup()
		})
		held := r.holdLookups(authcache.LookupsAtOnce)
		held.before.Store(true)
		r.started()
		first := newHash() // of the lookups that are held
		held.fill(r, first)
		var all sync.WaitGroup
		for n := range flood.networks {
			for range flood.each {
				all.Go(func() {
					if _, err := r.AccessKeyByHash(within(t), newHash(), from(n)); !errors.Is(err, store.ErrNotFound) {
						t.Errorf("%s: %v", flood.name, err)
					}
				})
			}
		}
		r.waiting(flood.networks * flood.each)
		all.Go(func() { // the last to come
			if _, err := r.AccessKeyByHash(within(t), w.acme.hash, netip.MustParseAddr("2001:db8::1")); err != nil {
				t.Errorf("%s: the lone client: %v", flood.name, err)
			}
		})
		r.waiting(flood.networks*flood.each + 1)
		held.let()
		all.Wait()
		batches = slices.DeleteFunc(batches, func(b []store.TokenHash) bool { return slices.Contains(b, first) })
		at := slices.IndexFunc(batches, func(b []store.TokenHash) bool { return slices.Contains(b, w.acme.hash) })
		// As many as there are connections go at the same time, in any order.
		if at < 0 || at >= flood.batches+authcache.LookupsAtOnce-1 {
			t.Errorf("%s: the lone client was served with batch %d of %d", flood.name, at, len(batches))
		}
		if total := flood.networks * flood.each; len(batches) > 3*(total/authcache.LookupBatch+1) {
			t.Errorf("%s: %d batches for %d", flood.name, len(batches), total)
		}
		r.stop()
	}
}

// tooMany fails the test unless that is the reason why nothing is told.
func tooMany(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "too many") {
		t.Errorf("one more: %v", err)
	}
}

// What waits has a bound, and no network can use all of it up.
func TestLookUpsThatWaitHaveABound(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.newCache(0) // which never runs: nobody is served
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	const networks = authcache.LookupsMax / authcache.LookupsPerNetwork
	for n := range networks {
		for range authcache.LookupsPerNetwork {
			all.Go(func() {
				if _, err := r.AccessKeyByHash(ctx, newHash(), from(n)); !errors.Is(err, store.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		r.waiting((n + 1) * authcache.LookupsPerNetwork)
		_, err := r.AccessKeyByHash(within(t), newHash(), from(n))
		tooMany(t, err)
	}
	_, err := r.AccessKeyByHash(within(t), newHash(), from(networks)) // which has nothing waiting
	tooMany(t, err)
	stop()
	all.Wait()
	// Nobody waits any more: those who have gone make room as soon as somebody is served.
	r.started()
	if _, err := r.AccessKeyByHash(within(t), w.acme.hash, from(0)); err != nil && !errors.Is(err, store.ErrUnavailable) {
		t.Error(err)
	}
	servertest.Eventually(t, "there is room again", func() bool {
		_, err := r.AccessKeyByHash(within(t), w.acme.hash, from(0))
		return err == nil
	})
}

// When an instance ends, nobody is left waiting for it.
func TestThoseWhoWaitAreToldOfTheEnd(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, held := w.held(0, authcache.LookupsAtOnce)
	held.fill(r, newHash())
	const askers = 50
	var waiting [askers]<-chan answer
	for i := range waiting {
		waiting[i] = r.ask(within(t), newHash())
	}
	r.waiting(askers)
	var stopping sync.WaitGroup
	stopping.Go(r.stop)
	held.let()
	for _, got := range waiting { // looked up, or told of the end
		err := (<-got).err
		if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	stopping.Wait()
}

// What is one client's network: a provider gives a household or a machine no less, and little more.
func TestNetworkOfAClient(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.0/24", "192.0.2.255": "192.0.2.0/24", "192.0.3.1": "192.0.3.0/24",
		"::ffff:192.0.2.7": "192.0.2.0/24", "::ffff:192.0.2.7%eth": "192.0.2.0/24", // the same client, by a socket for both kinds
		"2001:db8:1:2::3": "2001:db8:1::/48", "2001:db8:1:ffff::": "2001:db8:1::/48", "2001:db8:2::": "2001:db8:2::/48",
		"fe80::1%eth0": "fe80::/48", "::1": "::/48", "": "invalid Prefix",
	} {
		var a netip.Addr
		if addr != "" {
			a = netip.MustParseAddr(addr)
		}
		if got := authcache.NetworkOf(a); got.String() != want {
			t.Errorf("the network of %q is %v, want %s", addr, got, want)
		}
	}
	if a, b := authcache.NetworkOf(netip.Addr{}), authcache.NetworkOf(netip.Addr{}); a != b {
		t.Error(fmt.Sprint("those whose address is not known are of several networks: ", a, b))
	}
}
