package store_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// Contract, section 4: newest first (tm_create descending, id descending), no deleted ones, page by page without loss or repetition "however
// many keys share a tm_create": as keys of a customer's (below), so every other list.
func TestEveryListIsNewestFirstAndWholeWhateverThePageSize(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	agent, other := w.createAgent(w.acme, "holder"), w.createAgent(w.acme, "other holder")
	account, otherAccount := w.createAccount(w.acme), w.createAccount(w.acme)
	w.exec(`UPDATE agents SET tm_delete = now() WHERE customer_id = $1`, w.acme.ID) // out of the lists below
	w.exec(`UPDATE service_accounts SET tm_delete = now() WHERE customer_id = $1`, w.acme.ID)
	// Twelve of the owner's with four points in time, every fifth deleted, and as many of another owner's among them.
	const numbers = `FROM generate_series(1, 24) i`
	const at, gone = `timestamptz '2026-04-28 01:41:40.503790+00' + (i / 2 % 4) * interval '1 us'`,
		`CASE WHEN i % 5 = 0 THEN now() ELSE '9999-01-01 00:00:00+00' END`
	owner := func(mine, theirs uuid.UUID) string {
		return fmt.Sprintf(`CASE i %% 2 WHEN 0 THEN '%s'::uuid ELSE '%s' END`, mine, theirs)
	}
	w.exec(`INSERT INTO agents (id, customer_id, username, password_hash, tm_create, tm_delete)
		SELECT gen_random_uuid(), ` + owner(w.acme.ID, w.globex.ID) + `, 'u' || i, '$2a$', ` + at + `, ` + gone + ` ` + numbers)
	w.exec(`INSERT INTO service_accounts (id, customer_id, tm_create, tm_delete)
		SELECT gen_random_uuid(), ` + owner(w.acme.ID, w.globex.ID) + `, ` + at + `, ` + gone + ` ` + numbers)
	w.exec(`INSERT INTO service_account_keys (id, account_id, algorithm, spki, tm_create, tm_delete)
		SELECT gen_random_uuid(), ` + owner(account.ID, otherAccount.ID) + `, 'ES256', 'public', ` + at + `, ` + gone + ` ` + numbers)
	w.exec(`INSERT INTO accesskeys (id, customer_id, agent_id, token_sha256, token_prefix, tm_create, tm_expire, tm_delete)
		SELECT gen_random_uuid(), $1, `+owner(agent.ID, other.ID)+`, sha256(int8send(i)), 'vb_12345678', `+at+`, '2100-01-01', `+gone+` `+numbers,
		w.acme.ID)
	w.createKey(w.acme) // bound to nobody

	// The order is the statement's own: it must hold also where no index happens to give it.
	sorting := open(t, withSetting(t, withSetting(t, w.url, "enable_indexscan", "off"), "enable_indexonlyscan", "off"))
	for _, s := range []*store.Store{w.store, sorting} {
		for table, list := range map[string]struct {
			column string
			owner  uuid.UUID
			page   func(owner uuid.UUID, after store.Cursor, limit int) ([]store.Cursor, error)
		}{
			"agents": {"customer_id", w.acme.ID, func(owner uuid.UUID, after store.Cursor, limit int) ([]store.Cursor, error) {
				return cursors(s.Agents(t.Context(), owner, after, limit))
			}},
			"accesskeys": {"agent_id", agent.ID, func(owner uuid.UUID, after store.Cursor, limit int) ([]store.Cursor, error) {
				return cursors(s.AccessKeysOfAgent(t.Context(), owner, after, limit))
			}},
			"service_accounts": {"customer_id", w.acme.ID, func(owner uuid.UUID, after store.Cursor, limit int) ([]store.Cursor, error) {
				return cursors(s.ServiceAccounts(t.Context(), owner, after, limit))
			}},
			"service_account_keys": {"account_id", account.ID, func(owner uuid.UUID, after store.Cursor, limit int) ([]store.Cursor, error) {
				return cursors(s.ServiceAccountKeys(t.Context(), owner, after, limit))
			}},
		} {
			want := value[[]uuid.UUID](w, `SELECT array_agg(id ORDER BY tm_create DESC, id DESC) FROM `+table+`
				WHERE `+list.column+` = $1 AND `+notDeleted, list.owner)
			if len(want) != 10 {
				t.Fatalf("%s: the owner has %d", table, len(want)) // control
			}
			wantEqual(t, table+" of nobody", must(list.page(uuid.New(), store.Start(), 100))(t), []store.Cursor{})
			for _, limit := range []int{1, 2, 3, 9, 10, 100} {
				var got []uuid.UUID
				for after := store.Start(); len(got) <= len(want); {
					page, err := list.page(list.owner, after, limit)
					fatalIf(t, err != nil || len(page) > limit, "%s: %d for a limit of %d, %v", table, len(page), limit, err)
					if len(page) == 0 {
						break
					}
					for _, c := range page {
						got = append(got, c.ID)
					}
					after = page[len(page)-1]
				}
				wantEqual(t, fmt.Sprintf("%s by %d", table, limit), got, want)
			}
		}
	}
}

// cursors are where each of a page's stands in its list.
func cursors[T any](page []T, err error) ([]store.Cursor, error) {
	if page == nil {
		return nil, err
	}
	all := []store.Cursor{}
	for _, v := range page {
		row := reflect.ValueOf(v)
		all = append(all, store.Cursor{
			TmCreate: row.FieldByName("TmCreate").Interface().(time.Time), ID: row.FieldByName("ID").Interface().(uuid.UUID),
		})
	}
	return all, err
}

// createdBefore is the cursor that the rows created before t come after.
func createdBefore(t time.Time) store.Cursor { return store.Cursor{TmCreate: t} }

// Paging to the end gives every key that existed throughout exactly once, whatever is created or deleted meanwhile and however many keys
// share a tm_create.
func TestPagingGivesEveryKeyThatStayedExactlyOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	afterLast := func(k store.AccessKey) store.Cursor { return store.Cursor{TmCreate: k.TmCreate, ID: k.ID} }
	// The order is the statement's own: it must hold also where no index happens to give it.
	sorting := open(t, withSetting(t, withSetting(t, w.url, "enable_indexscan", "off"), "enable_indexonlyscan", "off"))
	for seed := range uint64(12) {
		faults := w.pageThrough([]*store.Store{w.store, sorting}[seed%2], seed, afterLast)
		errorIf(t, len(faults) > 0, "seed %d: %v", seed, faults)
	}
	// Control: a cursor of the time alone, as VoIPBIN has it, loses keys that share a tm_create, and is found out.
	byTime := func(k store.AccessKey) store.Cursor { return createdBefore(k.TmCreate) }
	found := 0
	for seed := range uint64(4) {
		found += len(w.pageThrough(w.store, seed, byTime))
	}
	errorIf(t, found == 0, "paging by time alone passes the same check")
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
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	stayed, removed, seen := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}, map[uuid.UUID]int{}
	var removable []uuid.UUID
	remove := func(i int) {
		must(w.store.DeleteAccessKey(w.t.Context(), operator, w.acme.ID, removable[i]))(w.t)
		removed[removable[i]] = true
		removable = slices.Delete(removable, i, i+1)
	}
	for i := range 40 + random.IntN(30) {
		create(w.globex, moment())
		if id := create(w.acme, moment()); i%4 == 0 {
			removable = append(removable, id)
		} else {
			stayed[id] = true
		}
	}
	removable = append(removable, create(w.acme, moment()))
	remove(len(removable) - 1)

	var last *store.AccessKey
	after := store.Start()
	for pages := 0; ; pages++ {
		limit := 1 + random.IntN(9)
		keys := must(s.AccessKeys(w.t.Context(), w.acme.ID, after, limit))(w.t)
		if len(keys) == 0 {
			break
		}
		fatalIf(w.t, len(keys) > limit || pages > 1000, "a page of %d keys for a limit of %d, after %d pages", len(keys), limit, pages)
		for _, key := range keys {
			if seen[key.ID]++; key.CustomerID != w.acme.ID || removed[key.ID] {
				fault("key %s is deleted or another customer's", key.ID)
			}
			if last != nil && !comesAfter(key, *last) {
				fault("%v %s comes after %v %s", key.TmCreate, key.ID, last.TmCreate, last.ID)
			}
			last = &key
		}
		after = next(*last)
		for range random.IntN(3) { // anywhere in the list, and at its front
			removable = append(removable, create(w.acme, moment()), w.createKey(w.acme).ID)
		}
		for range min(random.IntN(4), len(removable)) {
			remove(random.IntN(len(removable)))
		}
		if random.IntN(3) == 0 { // the very key that the cursor names goes
			if i := slices.Index(removable, last.ID); i >= 0 {
				remove(i)
			}
		}
	}
	for id := range stayed {
		if seen[id] != 1 {
			fault("a key that stayed was given %d times", seen[id])
		}
	}
	for id, times := range seen {
		if times > 1 {
			fault("key %s was given %d times", id, times)
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
		wantEqual(t, name, got, test.want)
	}
}
