package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// createdBefore is the cursor that the rows created before t come after.
func createdBefore(t time.Time) store.Cursor { return store.Cursor{TmCreate: t} }

// Contract, section 4: Paging to the end gives every key that existed throughout exactly once, whatever is created or deleted meanwhile and
// however many keys share a tm_create; "newest first (tm_create descending, id descending), no deleted ones".
func TestPagingGivesEveryKeyThatStayedExactlyOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	afterLast := func(k store.AccessKey) store.Cursor { return store.Cursor{TmCreate: k.TmCreate, ID: k.ID} }
	// The order is the statement's own: it must hold also where no index happens to give it.
	sorting := open(t, withSetting(t, withSetting(t, w.url, "enable_indexscan", "off"), "enable_indexonlyscan", "off"))
	for seed := range uint64(12) {
		if faults := w.pageThrough([]*store.Store{w.store, sorting}[seed%2], seed, afterLast); len(faults) > 0 {
			t.Errorf("seed %d: %v", seed, faults)
		}
	}
	// Control: a cursor of the time alone, as VoIPBIN has it, loses keys that share a tm_create, and is found out.
	byTime := func(k store.AccessKey) store.Cursor { return createdBefore(k.TmCreate) }
	found := 0
	for seed := range uint64(4) {
		found += len(w.pageThrough(w.store, seed, byTime))
	}
	if found == 0 {
		t.Error("paging by time alone passes the same check")
	}
}

// pageThrough reads a list of acme's from page to page while keys come and go, all drawn from the seed, and says what
// was wrong with it.
func (w *fixture) pageThrough(s *store.Store, seed uint64, next func(store.AccessKey) store.Cursor) (faults []string) {
	w.t.Helper()
	w.exec(`DELETE FROM accesskeys`)
	random := rand.New(rand.NewPCG(seed, 4))
	begin := time.Date(2026, 4, 28, 1, 41, 40, 503790000, time.UTC)
	// Few points in time for many keys, some a microsecond apart.
	moment := func() time.Time {
		return begin.Add(time.Duration(random.IntN(4))*time.Hour + time.Duration(random.IntN(2))*time.Microsecond)
	}
	create := func(customer store.Customer, at time.Time) uuid.UUID {
		k := newKey(customer, year)
		id := uuid.New()
		w.exec(`INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_create, tm_update, tm_expire)
			VALUES ($1, $2, $3, $4, $5, $5, $5::timestamptz + interval '1 year')`, id, customer.ID, k.TokenHash[:], k.TokenPrefix, at)
		return id
	}
	remove := func(id uuid.UUID) {
		if _, err := w.store.DeleteAccessKey(context.Background(), store.Operator(), w.acme.ID, id); err != nil {
			w.t.Fatal(err)
		}
	}
	stayed := map[uuid.UUID]bool{}
	var removable []uuid.UUID
	for i := range 40 + random.IntN(30) {
		create(w.globex, moment())
		if id := create(w.acme, moment()); i%4 == 0 {
			removable = append(removable, id)
		} else {
			stayed[id] = true
		}
	}
	remove(create(w.acme, moment()))

	seen := map[uuid.UUID]int{}
	removed := map[uuid.UUID]bool{}
	var last *store.AccessKey
	after := store.Start()
	for pages := 0; ; pages++ {
		limit := 1 + random.IntN(9)
		keys, err := s.AccessKeys(w.t.Context(), w.acme.ID, after, limit)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(keys) == 0 {
			break
		}
		if len(keys) > limit || pages > 1000 {
			w.t.Fatalf("a page of %d keys for a limit of %d, after %d pages", len(keys), limit, pages)
		}
		for _, key := range keys {
			if seen[key.ID]++; key.CustomerID != w.acme.ID || removed[key.ID] {
				faults = append(faults, fmt.Sprintf("key %s is deleted or another customer's", key.ID))
			}
			if last != nil && !comesAfter(key, *last) {
				faults = append(faults, fmt.Sprintf("%v %s comes after %v %s", key.TmCreate, key.ID, last.TmCreate, last.ID))
			}
			last = &key
		}
		after = next(*last)
		for range random.IntN(3) { // anywhere in the list, and at its front
			removable = append(removable, create(w.acme, moment()))
			removable = append(removable, w.createKey(w.acme).ID)
		}
		for range min(random.IntN(4), len(removable)) {
			i := random.IntN(len(removable))
			remove(removable[i])
			removed[removable[i]] = true
			removable = slices.Delete(removable, i, i+1)
		}
		if random.IntN(3) == 0 { // the very key that the cursor names goes
			if i := slices.Index(removable, last.ID); i >= 0 {
				remove(last.ID)
				removed[last.ID] = true
				removable = slices.Delete(removable, i, i+1)
			}
		}
	}
	for id := range stayed {
		if seen[id] != 1 {
			faults = append(faults, fmt.Sprintf("a key that stayed was given %d times", seen[id]))
		}
	}
	for id, times := range seen {
		if times > 1 {
			faults = append(faults, fmt.Sprintf("key %s was given %d times", id, times))
		}
	}
	return faults
}

// comesAfter is the order of the list, in Go's terms: Postgres compares uuids byte by byte too.
func comesAfter(k, last store.AccessKey) bool {
	if !k.TmCreate.Equal(last.TmCreate) {
		return k.TmCreate.Before(last.TmCreate)
	}
	return slices.Compare(k.ID[:], last.ID[:]) < 0
}

// Contract, section 4: a bare timestamp ... means created before.
func TestCursorBeforeATimeLeavesOutItsOwnMicrosecond(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.createKey(w.globex)
	older, at := w.createKey(w.acme), w.createKey(w.acme)
	for name, test := range map[string]struct {
		after store.Cursor
		want  []store.AccessKey
	}{
		"at it":                 {createdBefore(at.TmCreate), []store.AccessKey{older}},
		"a microsecond after":   {createdBefore(at.TmCreate.Add(time.Microsecond)), []store.AccessKey{at, older}},
		"at the first key":      {createdBefore(older.TmCreate), []store.AccessKey{}},
		"the end of all times":  {store.Start(), []store.AccessKey{at, older}},
		"the beginning of them": {createdBefore(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), []store.AccessKey{}},
	} {
		got := must(w.store.AccessKeys(t.Context(), w.acme.ID, test.after, 10))(t)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
