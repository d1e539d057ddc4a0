package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// Contract, section 4: newest first (tm_create descending, id descending), no deleted ones, page by page without loss or repetition "however
// many keys share a tm_create": as keys of a customer's (paging_test.go), so every other list.
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
			page   func(after store.Cursor, limit int) ([]store.Cursor, error)
		}{
			"agents": {"customer_id", w.acme.ID, func(after store.Cursor, limit int) ([]store.Cursor, error) {
				page, err := s.Agents(t.Context(), w.acme.ID, after, limit)
				return cursors(page, func(a store.Agent) store.Cursor { return store.Cursor{TmCreate: a.TmCreate, ID: a.ID} }), err
			}},
			"accesskeys": {"agent_id", agent.ID, func(after store.Cursor, limit int) ([]store.Cursor, error) {
				page, err := s.AccessKeysOfAgent(t.Context(), agent.ID, after, limit)
				return cursors(page, func(k store.AccessKey) store.Cursor { return store.Cursor{TmCreate: k.TmCreate, ID: k.ID} }), err
			}},
			"service_accounts": {"customer_id", w.acme.ID, func(after store.Cursor, limit int) ([]store.Cursor, error) {
				page, err := s.ServiceAccounts(t.Context(), w.acme.ID, after, limit)
				return cursors(page, func(a store.ServiceAccount) store.Cursor { return store.Cursor{TmCreate: a.TmCreate, ID: a.ID} }), err
			}},
			"service_account_keys": {"account_id", account.ID, func(after store.Cursor, limit int) ([]store.Cursor, error) {
				page, err := s.ServiceAccountKeys(t.Context(), account.ID, after, limit)
				return cursors(page, func(k store.ServiceAccountKey) store.Cursor { return store.Cursor{TmCreate: k.TmCreate, ID: k.ID} }), err
			}},
		} {
			want := value[[]uuid.UUID](w, `SELECT array_agg(id ORDER BY tm_create DESC, id DESC) FROM `+table+`
				WHERE `+list.column+` = $1 AND `+notDeleted, list.owner)
			if len(want) != 10 {
				t.Fatalf("%s: the owner has %d", table, len(want)) // control
			}
			for _, limit := range []int{1, 2, 3, 9, 10, 100} {
				var got []uuid.UUID
				for after := store.Start(); len(got) <= len(want); {
					page, err := list.page(after, limit)
					if err != nil || len(page) > limit {
						t.Fatalf("%s: %d for a limit of %d, %v", table, len(page), limit, err)
					}
					if len(page) == 0 {
						break
					}
					for _, c := range page {
						got = append(got, c.ID)
					}
					after = page[len(page)-1]
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s by %d:\n%v, want\n%v", table, limit, got, want)
				}
			}
		}
	}
}

// cursors are where each of a page's stands in its list.
func cursors[T any](page []T, of func(T) store.Cursor) (all []store.Cursor) {
	for _, v := range page {
		all = append(all, of(v))
	}
	return all
}
