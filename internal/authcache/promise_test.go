package authcache_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// The promise: once a revocation has returned, no instance trusts the row as it was; and what is new is known everywhere at
// once. Each key here is changed over and over by one goroutine, through one instance's store or another's, while others keep
// reading it everywhere.
func TestOnceARevocationReturnsNoInstanceTrustsTheOldRow(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	instances := []*runner{w.run(time.Second), w.run(time.Second), w.run(long)}
	const keys, rounds = 3, 10
	reading, stop := context.WithCancel(t.Context())
	var readers, writers sync.WaitGroup
	for n := range keys {
		key, hash := w.newKey(3600)
		for _, r := range instances {
			readers.Go(func() {
				pace := time.NewTicker(time.Millisecond)
				defer pace.Stop()
				for ; reading.Err() == nil; <-pace.C {
					if _, err := r.AccessKeyByHash(reading, hash, nobody); err != nil && reading.Err() == nil {
						t.Errorf("key %d: %v", n, err)
						return
					}
				}
			})
		}
		writers.Go(func() {
			for round := range rounds {
				name := fmt.Sprint(round)
				s := instances[(n+round)%len(instances)].store
				if _, err := s.UpdateAccessKey(t.Context(), store.Operator(), key.CustomerID, key.ID, store.AccessKeyChange{Name: &name}); err != nil {
					t.Error(err)
					return
				}
				for i, r := range instances {
					if c, err := r.AccessKeyByHash(t.Context(), hash, nobody); err != nil || c.Name != name {
						t.Errorf("key %d, after round %d: instance %d has %q, %v", n, round, i, c.Name, err)
					}
				}
			}
		})
	}
	writers.Wait()
	stop()
	readers.Wait()
	for i, r := range instances {
		if s := r.Stats(); s.Hits == 0 {
			t.Errorf("instance %d has answered nothing from memory: %+v", i, s)
		}
	}
}

// A key that didn't exist when it was presented works everywhere as soon as it does.
func TestNewKeyWorksOnEveryInstanceAtOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for _, r := range []*runner{w.run(long), w.run(0)} {
		for range 10 {
			hash := newHash()
			r.refused("before", hash)
			w.keyFor(hash, 3600)
			must(r.AccessKeyByHash(t.Context(), hash, nobody))(t)
		}
	}
}

// Being told of a change is a hint: where nothing comes, as behind a pooler, the log is read all the same.
func TestChangesAreAppliedWithoutBeingToldOfThem(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`CREATE OR REPLACE FUNCTION append_change(noun text, subjects bytea[], customers uuid[]) RETURNS void LANGUAGE sql AS $$
		WITH head AS (UPDATE change_head SET position = position + 1, entry = gen_random_uuid() WHERE single = 1 RETURNING position, entry)
		INSERT INTO changes SELECT position, entry, noun, subjects FROM head $$`)
	r := w.run(long)
	for range 3 {
		r.reads(w.acme)
		w.exec(`UPDATE agents SET name = name || '.' WHERE id = $1`, w.acme.agent.ID)
		w.applied(r)
		r.wants("after it", w.acme, "service account's key, account's access key")
	}
}

// A connection that the server ends costs neither the lease nor what is remembered.
func TestInstanceKeepsItsMemoryOverALostConnection(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.reads(w.acme)
	for range 3 {
		w.cut()
		w.exec(`UPDATE agents SET name = name || '.' WHERE id = $1`, w.globex.agent.ID)
		w.applied(r)
		servertest.Eventually(t, "the store reads again", func() bool {
			_, err := agentCredential(t.Context(), r.store, w.acme.agent.ID)
			return err == nil
		})
		r.wants("after it", w.acme, everything)
	}
}

// Memory has its bound, whatever is presented.
func TestMemoryHasABound(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const most = 1 << 20
	r := must(authcache.New(authcache.Config{Store: w.store, Lease: long, CacheBytes: most}))(t)
	for range 10_000 {
		r.Fill(store.Found{Agents: map[uuid.UUID]store.AgentCredential{{}: {Agent: store.Agent{ID: uuid.New(), Detail: strings.Repeat("x", 1000)}}}})
	}
	servertest.Eventually(t, "what is too much is dropped", func() bool {
		s := r.Stats()
		return s.Bytes <= most && s.Entries <= most/800 && s.Evicted >= 8000
	})
}
