package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// Writes of two customers' callers on each other's rows take the customers' locks in one order: the one that waits for the first holds none.
func TestWritesTakeTheLocksOfTwoCustomersInOneOrder(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for customer, end := range map[*store.Customer]byte{&w.acme: 1, &w.globex: 2} { // the lock's key is the last byte
		customer.ID[15] = end
		w.exec(`INSERT INTO customers (id, name) VALUES ($1, 'of one key')`, customer.ID)
	}
	key := map[uuid.UUID]store.AccessKey{w.acme.ID: w.createKey(w.acme), w.globex.ID: w.createKey(w.globex)}
	root := map[uuid.UUID]store.Agent{w.acme.ID: w.createAgent(w.acme, "one"), w.globex.ID: w.createAgent(w.globex, "two")}
	first := w.holdLock(w.acme, false)
	var written []chan error
	for caller, on := range map[uuid.UUID]uuid.UUID{w.acme.ID: w.globex.ID, w.globex.ID: w.acme.ID} {
		written = append(written, started(func() error {
			return errorOf(w.store.DeleteAccessKey(t.Context(), store.AgentCaller(root[caller], time.Time{}), on, key[on].ID))
		}))
	}
	w.untilSoManyWait(2)
	if n := value[int](w, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = 2
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, store.CustomersLock); n != 0 {
		t.Errorf("%d writes have or wait for the second lock, and don't have the first", n)
	}
	noError(t, first.Commit(t.Context()))
	for _, done := range written {
		noError(t, <-done)
	}
}

// everyIsolation runs a test with each default that a database may have.
func everyIsolation(t *testing.T, test func(t *testing.T, w *fixture, s *store.Store)) {
	t.Helper()
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(isolation, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''` + isolation + `''', current_database()); END $$`)
			test(t, w, open(t, w.url))
		})
	}
}

// A write that waits while its caller is revoked doesn't take effect: what is tested is tested once the wait is over, whatever
// isolation is the default, and the caller. Controls: a revocation that is rolled back, or of somebody else, hinders nothing.
func TestWriteThatWaitsWhileItsCallerIsRevokedTakesNoEffect(t *testing.T) {
	t.Parallel()
	everyIsolation(t, func(t *testing.T, w *fixture, s *store.Store) {
		for what, test := range map[string]struct {
			revoke string // in a transaction of psql's, which has the lock by then
			commit bool
			want   error
		}{
			"revoked":                {`UPDATE accesskeys` + end, true, store.ErrChanged},
			"not revoked in the end": {`UPDATE accesskeys` + end, false, nil},
			"left alone": {`UPDATE accesskeys SET tm_delete = now() WHERE name = 'beside'
				AND customer_id = (SELECT customer_id FROM accesskeys WHERE id = $1)`, true, nil},
		} {
			beside := w.createKey(w.acme)
			w.exec(`UPDATE accesskeys SET name = 'beside' WHERE id = $1`, beside.ID)
			credential := w.credential(newKey(w.acme, year), operator)
			caller := store.AccessKeyCaller(credential)
			writes := callersWrites()
			delete(writes, "DeleteCustomer")
			on := map[string]targets{}
			for name := range writes {
				on[name] = w.makeTargets(w.acme)
			}
			before := w.rows()
			tx := w.begin()
			execIn(t, tx, test.revoke, credential.ID)
			outcomes := map[string]chan error{}
			for name, write := range writes {
				outcomes[name] = started(func() error { return write(t.Context(), s, caller, on[name]) })
			}
			w.untilSoManyWait(len(writes))
			end := tx.Rollback
			if test.commit {
				end = tx.Commit
			}
			noError(t, end(t.Context()))
			for name, outcome := range outcomes {
				wantError(t, what+": "+name, <-outcome, test.want)
			}
			if n := w.written(before); test.want != nil && n != 2 { // the key itself, and the head
				t.Errorf("%s: %d rows are other ones", what, n)
			}
		}
	})
}

// written counts the rows that are not as they were.
func (w *fixture) written(before string) int {
	w.t.Helper()
	return value[int](w, `SELECT count(*) FROM regexp_split_to_table($1, E'\n') line WHERE line <> ALL (regexp_split_to_array($2, E'\n'))`,
		w.rows(), before)
}

// The same where the revocation is one of the store's, which holds the customer's lock while it waits for the log's head.
func TestWriteThatWaitsForARevocationOfTheStoresTakesNoEffect(t *testing.T) {
	t.Parallel()
	everyIsolation(t, func(t *testing.T, w *fixture, s *store.Store) {
		credential := w.credential(newKey(w.acme, year), operator)
		caller, on := store.AccessKeyCaller(credential), w.makeTargets(w.acme)
		head := w.begin()
		execIn(t, head, `SELECT FROM change_head FOR UPDATE`)
		revoked := started(func() error {
			return errorOf(s.DeleteAccessKey(context.Background(), operator, w.acme.ID, credential.ID))
		})
		w.untilWaiting()
		made := started(writesTo(context.Background(), s, caller, on)["CreateAccessKey"])
		promoted := started(writesTo(context.Background(), s, caller, on)["SetPermission"])
		w.untilSoManyWait(3)
		noError(t, head.Commit(t.Context()))
		wantError(t, "the revocation", <-revoked, nil)
		wantError(t, "a key that waited for it", <-made, store.ErrChanged)
		wantError(t, "a permission that waited for it", <-promoted, store.ErrChanged)
		wantEqual(t, "keys made", value[int](w, `SELECT count(*) FROM accesskeys WHERE agent_id = $1`, on.agent.ID), 0)
	})
}

// underWay starts a write of a caller's that has passed all tests and waits for a row of the test's. It ends with release.
func (w *fixture) underWay(s *store.Store, caller store.Caller, name string) (done chan error, release func()) {
	w.t.Helper()
	on := w.makeTargets(w.acme)
	tx := w.begin()
	sql, arg := `SELECT FROM accesskeys WHERE id = $1 FOR UPDATE`, any(on.key.ID)
	write := callersWrites()["UpdateAccessKey"]
	if name == "CreateAgent" { // an insert waits for one of the same name
		username := uuid.NewString()
		sql, arg = `INSERT INTO agents (id, customer_id, username, password_hash) SELECT gen_random_uuid(), id, $1, '$2a$' FROM customers LIMIT 1`, username
		write = func(ctx context.Context, s *store.Store, c store.Caller, on targets) error {
			return errorOf(s.CreateAgent(ctx, c, newAgent(on.customer, username)))
		}
	}
	execIn(w.t, tx, sql, arg)
	done = make(chan error, 1)
	go func() { done <- write(context.Background(), s, caller, on) }()
	w.untilWaiting()
	return done, func() {
		w.t.Helper()
		noError(w.t, tx.Rollback(w.t.Context()))
	}
}

// A revocation waits for the writes of the caller's that are under way, whether the store revokes or somebody with psql. Control: where
// the triggers take no lock psql's doesn't wait, and the write takes effect after it.
func TestRevocationWaitsForWritesUnderWay(t *testing.T) {
	t.Parallel()
	everyIsolation(t, func(t *testing.T, w *fixture, s *store.Store) {
		waiting := func() int {
			return value[int](w, `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'`)
		}
		psql := func(k store.AccessKey) error {
			conn, err := w.db.Acquire(t.Context())
			if err != nil {
				return err
			}
			defer conn.Release()
			if _, err = conn.Exec(context.Background(), `SET default_transaction_isolation = 'read committed'`); err != nil {
				return err
			}
			return errorOf(conn.Exec(context.Background(), `UPDATE accesskeys`+end, k.ID))
		}
		revocations := map[string]func(store.AccessKey) error{
			"the store's": func(k store.AccessKey) error {
				return errorOf(s.DeleteAccessKey(context.Background(), operator, w.acme.ID, k.ID))
			},
			"psql's": psql,
		}
		for _, write := range []string{"CreateAgent", "UpdateAccessKey"} {
			for name, revoke := range revocations {
				credential := w.credential(newKey(w.acme, year), operator)
				written, release := w.underWay(s, store.AccessKeyCaller(credential), write)
				revoked := started(func() error { return revoke(credential.AccessKey) })
				servertest.Eventually(t, name+" revocation waits", func() bool { return waiting() == 2 })
				w.wantTrue(name+" revocation is not there yet", `SELECT `+notDeleted+` FROM accesskeys WHERE id = $1`, credential.ID)
				release()
				wantError(t, write+" that was under way before "+name+" revocation", <-written, nil)
				wantError(t, name+" revocation", <-revoked, nil)
			}
		}
		// Control.
		credential := w.credential(newKey(w.acme, year), operator)
		written, release := w.underWay(s, store.AccessKeyCaller(credential), "CreateAgent")
		w.exec(`CREATE OR REPLACE FUNCTION ` + lockingFunction(w) + ` RETURNS void LANGUAGE sql AS ''`)
		noError(t, psql(credential.AccessKey))
		release()
		wantError(t, "control: without the triggers' lock the write after the revocation", <-written, nil)
	})
}

// lockingFunction is the one by which the triggers take the customers' locks, with its parameters.
func lockingFunction(w *fixture) string {
	w.t.Helper()
	return value[string](w, `SELECT proname || '(' || pg_get_function_arguments(oid) || ')' FROM pg_proc
		WHERE pronamespace = 'public'::regnamespace AND proname LIKE '%lock_customers'`)
}

// A change by hand takes rows and locks in another order than the store, and Postgres ends one of the two. The store tries again.
func TestDeadlockWithAChangeByHandIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	// The store's side of it is to notice: late enough for the test to close the circle.
	s := open(t, withSetting(t, w.url, "deadlock_timeout", "3s"))
	key := w.createKey(w.acme)
	tx := w.begin()
	execIn(t, tx, `SET LOCAL deadlock_timeout = '1h'`)
	execIn(t, tx, `SELECT FROM accesskeys FOR UPDATE`)
	done := started(func() error {
		deleted, err := s.DeleteAccessKey(context.Background(), operator, w.acme.ID, key.ID)
		if err == nil && deleted.Name != "by hand" {
			err = fmt.Errorf("deleted %+v", deleted)
		}
		return err
	})
	w.untilWaiting()
	must(tx.Exec(t.Context(), `UPDATE accesskeys SET name = 'by hand'`))(t) // waits for the lock that the store has
	noError(t, tx.Commit(t.Context()))
	wantError(t, "the deletion", <-done, nil)
	servertest.Eventually(w.t, "there was a deadlock", func() bool { return w.deadlocks() >= 1 }) // control
}

func (w *fixture) deadlocks() int {
	w.t.Helper()
	return value[int](w, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
}

// Writes of one customer don't wait for another's, and those that insert not for each other.
func TestWritesWaitForTheirOwnCustomersRevocationsOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	acmes := w.makeTargets(w.acme)
	w.createAgent(w.globex, "the admin who stays")
	held := w.holdLock(w.acme, true)
	for name, write := range callersWrites() {
		if name == "DeleteCustomer" {
			continue
		}
		wantError(t, name+" of another customer's", write(t.Context(), w.store, operator, w.makeTargets(w.globex)), nil)
	}
	wantError(t, "an insert beside another", callersWrites()["CreateAgent"](t.Context(), w.store, operator, acmes), nil)
	// Control: what revokes waits.
	done := started(writesTo(context.Background(), w.store, operator, acmes)["DeleteAccessKey"])
	w.untilWaiting()
	noError(t, held.Commit(t.Context()))
	noError(t, <-done)
}

// A customer that has a lot is deleted beside writes of its own, and of others', without a deadlock: those cost a second each, and
// the writes, or the deletion, their outcome.
func TestDeletionOfALargeCustomerAmidWritesMeetsNoDeadlock(t *testing.T) {
	t.Parallel()
	for what, prepare := range map[string]string{
		"as it is":                `SELECT 1`,
		"under replica":           `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica', current_database()); END $$`,
		"without its triggers":    `ALTER TABLE accesskeys DISABLE TRIGGER ALL; ALTER TABLE customers DISABLE TRIGGER ALL; ALTER TABLE agents DISABLE TRIGGER ALL`,
		"with more than a change": `SELECT 2`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			if what == "with more than a change" {
				w.exec(`INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire)
					SELECT gen_random_uuid(), $1, sha256(int8send(i)), 'vb_12345678', now() + interval '1 day' FROM generate_series(1, 1500) i`, w.acme.ID)
			}
			w.exec(prepare)
			s := open(t, w.url)
			stop := make(chan struct{})
			var writers errgroup.Group
			for i := range 6 {
				customer := []store.Customer{w.acme, w.globex}[i%2]
				writers.Go(func() error {
					for {
						select {
						case <-stop:
							return nil
						default:
						}
						if _, err := s.CreateAccessKey(t.Context(), operator, newKey(customer, year)); err != nil && !errors.Is(err, store.ErrNoCustomer) {
							return err
						}
						if i > 3 {
							name := uuid.NewString()
							if _, err := s.UpdateCustomer(t.Context(), operator, w.globex.ID, store.CustomerChange{Name: &name}); err != nil {
								return err
							}
						}
					}
				})
			}
			servertest.Eventually(t, "there are writes", func() bool { return value[int](w, `SELECT count(*) FROM accesskeys WHERE name <> ''`) > 20 })
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := s.DeleteCustomer(ctx, operator, w.acme.ID)
			close(stop)
			noError(t, errors.Join(err, writers.Wait()))
			s.Close() // what it has counted is reported then
			wantEqual(t, "deadlocks", w.deadlocks(), 0)
		})
	}
}
