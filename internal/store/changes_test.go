package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// entry is a change as it is stored.
type entry struct {
	Position int64
	Entry    uuid.UUID
	Noun     string
	Subjects [][]byte
}

// log is the log of changes, in order.
func (w *fixture) log() []entry {
	w.t.Helper()
	rows := must(w.db.Query(w.t.Context(), `SELECT position, entry, noun, subjects FROM changes ORDER BY position`))(w.t)
	return must(pgx.CollectRows(rows, pgx.RowToStructByPos[entry]))(w.t)
}

func (w *fixture) head() (p changelog.Position) {
	w.t.Helper()
	err := w.db.QueryRow(w.t.Context(), `SELECT position, entry FROM change_head`).Scan(&p.Number, &p.Entry)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// standIn is a row of the list of instances of which nobody takes care but the test.
func (w *fixture) standIn(lease time.Duration) uuid.UUID {
	w.t.Helper()
	id := uuid.New()
	w.internal(`INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT $1, 1, $2, position, entry FROM change_head`,
		id, lease.Milliseconds())
	w.internal(`UPDATE change_head SET lease_ms = (SELECT max(lease_ms) FROM instances)`)
	return id
}

// acknowledge is what an instance does that has applied the whole log.
func (w *fixture) acknowledge(id uuid.UUID) {
	w.t.Helper()
	w.internal(`UPDATE instances SET seq = seq + 1, position = h.position, entry = h.entry FROM change_head h WHERE id = $1`, id)
}

// Every change that the store makes to what verification reads is in the log, and nothing else is: neither what adds rows
// nor what fails.
func TestEveryRevocationIsInTheLog(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	admin, agent := w.createAgent(w.acme, "admin"), w.createAgent(w.acme, "agent")
	_ = admin
	k := userKey(agent)
	key := must(w.store.CreateAccessKey(t.Context(), store.Operator(), k))(t)
	account := w.createAccount(w.acme)
	pair := w.createAccountKey(account)
	if head := w.head(); head.Number != 0 {
		t.Errorf("creating has moved the log to %d", head.Number)
	}
	name, ctx := "other", t.Context()
	id := func(id uuid.UUID) string { return string(id[:]) }
	hash := string(k.TokenHash[:])
	for _, test := range []struct {
		name string
		do   func() error
		want map[string]string // noun to subject
	}{
		{"renaming a key", func() error {
			_, err := w.store.UpdateAccessKey(ctx, store.Operator(), w.acme.ID, key.ID, store.AccessKeyChange{Name: &name})
			return err
		}, map[string]string{"accesskeys": hash}},
		{"deleting a key", func() error {
			_, err := w.store.DeleteAccessKey(ctx, store.Operator(), w.acme.ID, key.ID)
			return err
		}, map[string]string{"accesskeys": hash}},
		{"renaming an agent", func() error {
			_, err := w.store.UpdateAgent(ctx, store.Operator(), agent, store.AgentChange{Name: &name})
			return err
		}, map[string]string{"agents": id(agent.ID)}},
		{"a password", func() error {
			_, err := w.store.SetPassword(ctx, store.Operator(), agent, newAgent(w.acme, "u").PasswordHash)
			return err
		}, map[string]string{"agents": id(agent.ID)}},
		{"a permission", func() error {
			_, err := w.store.SetPermission(ctx, store.Operator(), agent, 16)
			return err
		}, map[string]string{"agents": id(agent.ID)}},
		{"an account's roles", func() error {
			_, err := w.store.UpdateServiceAccount(ctx, store.Operator(), w.acme.ID, account.ID, store.ServiceAccountChange{Name: &name})
			return err
		}, map[string]string{"service_accounts": id(account.ID)}},
		{"a pair", func() error {
			_, err := w.store.DeleteServiceAccountKey(ctx, store.Operator(), account, pair.ID)
			return err
		}, map[string]string{"service_account_keys": id(pair.ID)}},
		{"an account", func() error {
			_, err := w.store.DeleteServiceAccount(ctx, store.Operator(), w.acme.ID, account.ID)
			return err
		}, map[string]string{"service_accounts": id(account.ID)}},
		{"renaming a customer", func() error {
			_, err := w.store.UpdateCustomer(ctx, store.Operator(), w.acme.ID, store.CustomerChange{Name: &name})
			return err
		}, map[string]string{"customers": id(w.acme.ID)}},
		{"deleting a key again", func() error {
			_, err := w.store.DeleteAccessKey(ctx, store.Operator(), w.acme.ID, key.ID)
			if !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("a second time: %w", err)
			}
			return nil
		}, nil},
		{"an agent", func() error {
			_, err := w.store.DeleteAgent(ctx, store.Operator(), agent)
			return err
		}, map[string]string{"agents": id(agent.ID)}},
		{"a customer", func() error {
			_, err := w.store.DeleteCustomer(ctx, store.Operator(), w.acme.ID)
			return err
		}, map[string]string{"customers": id(w.acme.ID), "agents": id(admin.ID)}},
	} {
		before := w.head().Number
		if err := test.do(); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got := map[string]string{}
		for _, e := range w.log() {
			if e.Position > before {
				if len(e.Subjects) != 1 {
					t.Fatalf("%s: %d subjects", test.name, len(e.Subjects))
				}
				got[e.Noun] = string(e.Subjects[0])
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: the log has %x, want %x", test.name, got, test.want)
		}
	}
}

// The order of positions is the order of commits, without a gap; what is rolled back leaves no trace.
func TestLogsOrderIsTheOrderOfCommits(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const writers, each = 8, 25
	agents := make([]store.Agent, writers)
	for n := range agents {
		agents[n] = w.createAgent(w.acme, fmt.Sprint("agent ", n))
	}
	// A reader of the log, as an instance is: whatever it sees, nothing may come before that later.
	known := w.head()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		feed, err := w.store.Log.OpenFeed(context.Background())
		if err != nil {
			stopped <- err
			return
		}
		defer feed.Close()
		seen := map[string]int{}
		for last := false; err == nil; {
			var news changelog.Batch
			if news, err = feed.ReadSince(context.Background(), uuid.Nil, known); err != nil {
				break
			}
			for _, change := range news.Changes {
				if change.Position.Number != known.Number+1 {
					err = fmt.Errorf("after %d comes %d", known.Number, change.Position.Number)
				}
				known = change.Position
				seen[string(change.Subjects[0])]++
			}
			if !news.Continues || known != news.Head {
				err = fmt.Errorf("after %+v the head is %+v", known, news.Head)
			}
			if last {
				for _, a := range agents {
					if n := seen[string(a.ID[:])]; n != each {
						err = fmt.Errorf("%d changes of an agent, want %d", n, each)
					}
				}
				break
			}
			select {
			case <-stop:
				last = true
			default:
			}
		}
		stopped <- err
	}()
	errs := atOnce(writers, func(n int) error {
		for i := range 2 * each {
			tx, err := w.db.Begin(t.Context())
			if err != nil {
				return err
			}
			_, err = tx.Exec(t.Context(), `UPDATE agents SET name = $2 WHERE id = $1`, agents[n].ID, fmt.Sprint(i))
			if err == nil && i%2 == 0 {
				err = tx.Commit(t.Context())
			} else {
				err = errors.Join(err, tx.Rollback(t.Context()))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	close(stop)
	for _, err := range append(errs, <-stopped) {
		if err != nil {
			t.Error(err)
		}
	}
	entries := map[uuid.UUID]bool{}
	for i, e := range w.log() {
		if e.Position != int64(i) || entries[e.Entry] {
			t.Fatalf("position %d, entry %v at place %d", e.Position, e.Entry, i)
		}
		entries[e.Entry] = true
	}
	if len(entries) != 1+writers*each || w.head().Number != writers*each {
		t.Errorf("%d changes, the head is at %d", len(entries), w.head().Number)
	}
}

// The log keeps its newest 10,000 changes.
func TestLogIsTrimmed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.internal(`SELECT append_change('agents', ARRAY['\x00'::bytea], '{}') FROM generate_series(1, 10050)`)
	log := w.log()
	if len(log) != 10_000 || log[0].Position != 51 || log[len(log)-1].Position != 10_050 {
		t.Errorf("%d changes from %d to %d", len(log), log[0].Position, log[len(log)-1].Position)
	}
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	for i, continues := range map[int]bool{0: true, len(log) - 1: true} {
		news, err := feed.ReadSince(t.Context(), uuid.Nil, changelog.Position{Number: log[i].Position, Entry: log[i].Entry})
		if err != nil || news.Continues != continues || len(news.Changes) != len(log)-1-i {
			t.Errorf("after %d: %v, %d changes, %v", log[i].Position, news.Continues, len(news.Changes), err)
		}
	}
}

// revoking changes a logged row and says how long that took.
func (w *fixture) revoking(s *store.Store, key store.AccessKey) (time.Duration, error) {
	name, began := uuid.NewString(), time.Now()
	_, err := s.UpdateAccessKey(w.t.Context(), store.Operator(), key.CustomerID, key.ID, store.AccessKeyChange{Name: &name})
	return time.Since(began), err
}

// A revocation returns at once where there are no instances, and where they have all acknowledged it: not before.
func TestRevocationWaitsForEveryInstance(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	const lease = time.Hour // nobody waits for its end
	if _, err := w.revoking(w.store, key); err != nil {
		t.Fatal(err)
	}
	first, second := w.standIn(lease), w.standIn(lease)
	returned := make(chan error, 1)
	before := w.head().Number
	go func() {
		_, err := w.revoking(w.store, key)
		returned <- err
	}()
	servertest.Eventually(t, "the change is committed", func() bool { return w.head().Number == before+1 })
	stillWaits := func(when string) {
		t.Helper()
		select {
		case err := <-returned:
			t.Fatalf("%s: it has returned (%v)", when, err)
		case <-time.After(100 * time.Millisecond): // many looks
		}
	}
	stillWaits("with no acknowledgement")
	w.acknowledge(first)
	stillWaits("with one of two")
	w.acknowledge(second)
	if err := <-returned; err != nil {
		t.Error(err)
	}
	// An instance that has gone is not waited for.
	go func() {
		_, err := w.revoking(w.store, key)
		returned <- err
	}()
	servertest.Eventually(t, "the change is committed", func() bool { return w.head().Number == before+2 })
	w.acknowledge(first)
	stillWaits("with one of two, again")
	w.internal(`DELETE FROM instances WHERE id = $1`, second)
	if err := <-returned; err != nil {
		t.Error(err)
	}
}

// A silent instance is waited for until its lease has ended, as are those whose acknowledgement can't be read.
func TestRevocationWaitsForTheLeasesEnd(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	const lease = 300 * time.Millisecond
	check := func(when string, took time.Duration, err error) {
		t.Helper()
		if err != nil || took < changelog.LeaseEnd(lease) || took > patience {
			t.Errorf("%s: after %v, want %v: %v", when, took, changelog.LeaseEnd(lease), err)
		}
	}
	id := w.standIn(lease)
	took, err := w.revoking(w.store, key)
	check("a dead instance", took, err)
	// Acknowledgements of another log don't count: of a position, but not of this entry.
	returned := make(chan error, 1)
	before, began := w.head().Number, time.Now()
	go func() {
		_, err := w.revoking(w.store, key)
		returned <- err
	}()
	servertest.Eventually(t, "the change is committed", func() bool { return w.head().Number == before+1 })
	w.internal(`UPDATE changes SET entry = gen_random_uuid() WHERE position = $1`, before+1)
	w.acknowledge(id)
	err = <-returned
	check("another log", time.Since(began), err)
	// The connections are lost between the commit and the acknowledgement, and no more can be had.
	began = time.Now()
	go func() {
		_, err := w.revoking(w.store, key)
		returned <- err
	}()
	servertest.Eventually(t, "the change is committed", func() bool { return w.head().Number == before+2 })
	w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
	w.exec(cutTheStore)
	w.acknowledge(id)
	err = <-returned
	check("a lost database", time.Since(began), err)
	w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`)
	// The client may be gone: it is seen through all the same.
	ctx, cancel := context.WithCancel(t.Context())
	name := "other"
	began = time.Now()
	go func() {
		_, err := w.store.UpdateAccessKey(ctx, store.Operator(), key.CustomerID, key.ID, store.AccessKeyChange{Name: &name})
		returned <- err
	}()
	servertest.Eventually(t, "the change is committed", func() bool { return w.head().Number == before+3 })
	cancel()
	err = <-returned
	check("a client that has gone", time.Since(began), err)
}

// Many who wait at once share the looking.
func TestManyRevocationsShareTheLooking(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	catcher := &statements{}
	traced := openTraced(t, w.url, catcher)
	const many = 30
	keys := make([]store.AccessKey, many)
	for i := range keys {
		keys[i] = w.createKey(w.acme)
	}
	id := w.standIn(time.Hour)
	before := w.head().Number
	var all sync.WaitGroup
	for _, key := range keys {
		all.Go(func() {
			if _, err := w.revoking(traced, key); err != nil {
				t.Error(err)
			}
		})
	}
	servertest.Eventually(t, "the changes are committed", func() bool { return w.head().Number == before+many })
	began := time.Now()
	looks := func() int { return catcher.count(`WHERE c.position = ANY ($1)`) }
	from := looks()
	servertest.Eventually(t, "somebody looks", func() bool { return looks() >= from+40 })
	took := time.Since(began)
	w.acknowledge(id)
	all.Wait()
	// One look in 2 ms at most, for all of them together.
	if most := int(took/(2*time.Millisecond)) + 5; 40 > most {
		t.Errorf("40 looks in %v for %d who wait", took, many)
	}
}
