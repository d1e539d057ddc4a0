package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// withDefaultIsolation makes the isolation of all connections to come another one.
func (w *fixture) withDefaultIsolation(isolation string) *store.Store {
	w.t.Helper()
	w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''` + isolation + `''', current_database()); END $$`)
	return open(w.t, w.url)
}

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
	written := make(chan error, 2)
	for caller, on := range map[uuid.UUID]uuid.UUID{w.acme.ID: w.globex.ID, w.globex.ID: w.acme.ID} {
		go func() {
			_, err := w.store.DeleteAccessKey(t.Context(), store.AgentCaller(root[caller], time.Time{}), on, key[on].ID)
			written <- err
		}()
	}
	w.untilSoManyWait(2)
	if n := value[int](w, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = 2
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, store.CustomersLock); n != 0 {
		t.Errorf("%d writes have or wait for the second lock, and don't have the first", n)
	}
	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-written; err != nil {
			t.Error(err)
		}
	}
}

// everyIsolation runs a test with each default that a database may have.
func everyIsolation(t *testing.T, test func(t *testing.T, w *fixture, s *store.Store)) {
	t.Helper()
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(isolation, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			test(t, w, w.withDefaultIsolation(isolation))
		})
	}
}

// A write that waits while its caller is revoked doesn't take effect: what is tested is tested once the wait is over, whatever
// isolation is the default, and the caller. Controls: a revocation that is rolled back, or of somebody else, hinders nothing.
func TestWriteThatWaitsWhileItsCallerIsRevokedTakesNoEffect(t *testing.T) {
	t.Parallel()
	everyIsolation(t, func(t *testing.T, w *fixture, s *store.Store) {
		for what, test := range map[string]struct {
			revoke func(pgx.Tx, store.AccessKey) error // in a transaction of psql's, which has the lock by then
			commit bool
			want   error
		}{
			"revoked": {func(tx pgx.Tx, k store.AccessKey) error {
				_, err := tx.Exec(t.Context(), `UPDATE accesskeys`+end, k.ID)
				return err
			}, true, store.ErrChanged},
			"not revoked in the end": {func(tx pgx.Tx, k store.AccessKey) error {
				_, err := tx.Exec(t.Context(), `UPDATE accesskeys`+end, k.ID)
				return err
			}, false, nil},
			"left alone": {func(tx pgx.Tx, k store.AccessKey) error {
				_, err := tx.Exec(t.Context(), `UPDATE accesskeys SET tm_delete = now() WHERE customer_id = $1 AND id <> $2 AND name = 'beside'`, w.acme.ID, k.ID)
				return err
			}, true, nil},
		} {
			beside := w.createKey(w.acme)
			w.exec(`UPDATE accesskeys SET name = 'beside' WHERE id = $1`, beside.ID)
			credential := w.credential(newKey(w.acme, year), store.Operator())
			caller := store.AccessKeyCaller(credential)
			writes := callersWrites()
			delete(writes, "DeleteCustomer")
			on := map[string]targets{}
			for name := range writes {
				on[name] = w.makeTargets(w.acme)
			}
			before := w.rows()
			tx := must(w.db.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted}))(t)
			defer func() { _ = tx.Rollback(context.Background()) }()
			if err := test.revoke(tx, credential.AccessKey); err != nil {
				t.Fatal(err)
			}
			errs := make(map[string]error, len(writes))
			var under errgroup.Group
			results := make(chan func(), len(writes))
			for name, write := range writes {
				under.Go(func() error {
					err := write(t.Context(), s, caller, on[name])
					results <- func() { errs[name] = err }
					return nil
				})
			}
			w.untilSoManyWait(len(writes))
			end := tx.Rollback
			if test.commit {
				end = tx.Commit
			}
			if err := end(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = under.Wait()
			for range len(writes) {
				(<-results)()
			}
			for name, err := range errs {
				if !errors.Is(err, test.want) {
					t.Errorf("%s: %s: %v, want %v", what, name, err, test.want)
				}
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
		credential := w.credential(newKey(w.acme, year), store.Operator())
		caller, on := store.AccessKeyCaller(credential), w.makeTargets(w.acme)
		head := must(w.db.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted}))(t)
		defer func() { _ = head.Rollback(context.Background()) }()
		if _, err := head.Exec(t.Context(), `SELECT FROM change_head FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		revoked := make(chan error, 1)
		go func() {
			_, err := s.DeleteAccessKey(context.Background(), store.Operator(), w.acme.ID, credential.ID)
			revoked <- err
		}()
		w.untilWaiting()
		written := make(chan error, 2)
		for _, name := range []string{"CreateAccessKey", "SetPermission"} {
			go func() { written <- callersWrites()[name](context.Background(), s, caller, on) }()
		}
		w.untilSoManyWait(3)
		if err := head.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-revoked; err != nil {
			t.Errorf("the revocation: %v", err)
		}
		for range 2 {
			wantError(t, "a write that waited for it", <-written, store.ErrChanged)
		}
		if n := value[int](w, `SELECT count(*) FROM accesskeys WHERE agent_id = $1`, on.agent.ID); n != 0 {
			t.Errorf("%d keys were made", n)
		}
	})
}

// underWay starts a write of a caller's that has passed all tests and waits for a row of the test's. It ends with release.
func (w *fixture) underWay(s *store.Store, caller store.Caller, name string) (done chan error, release func()) {
	w.t.Helper()
	on := w.makeTargets(w.acme)
	tx := must(w.db.BeginTx(w.t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted}))(w.t)
	w.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	sql, arg := `SELECT FROM accesskeys WHERE id = $1 FOR UPDATE`, any(on.key.ID)
	write := callersWrites()["UpdateAccessKey"]
	if name == "CreateAgent" { // an insert waits for one of the same name
		username := uuid.NewString()
		sql, arg = `INSERT INTO agents (id, customer_id, username, password_hash) SELECT gen_random_uuid(), id, $1, '$2a$' FROM customers LIMIT 1`, username
		write = func(ctx context.Context, s *store.Store, c store.Caller, on targets) error {
			_, err := s.CreateAgent(ctx, c, newAgent(on.customer, username))
			return err
		}
	}
	if _, err := tx.Exec(w.t.Context(), sql, arg); err != nil {
		w.t.Fatal(err)
	}
	done = make(chan error, 1)
	go func() { done <- write(context.Background(), s, caller, on) }()
	w.untilWaiting()
	return done, func() {
		w.t.Helper()
		if err := tx.Rollback(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
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
			for _, sql := range []string{`SET default_transaction_isolation = 'read committed'`, `UPDATE accesskeys SET tm_delete = now() WHERE id = '` + k.ID.String() + `'`} {
				if _, err = conn.Exec(context.Background(), sql); err != nil {
					return err
				}
			}
			return nil
		}
		revocations := map[string]func(store.AccessKey) error{
			"the store's": func(k store.AccessKey) error {
				_, err := s.DeleteAccessKey(context.Background(), store.Operator(), w.acme.ID, k.ID)
				return err
			},
			"psql's": psql,
		}
		for _, write := range []string{"CreateAgent", "UpdateAccessKey"} {
			for name, revoke := range revocations {
				credential := w.credential(newKey(w.acme, year), store.Operator())
				written, release := w.underWay(s, store.AccessKeyCaller(credential), write)
				revoked := make(chan error, 1)
				go func() { revoked <- revoke(credential.AccessKey) }()
				servertest.Eventually(t, name+" revocation waits", func() bool { return waiting() == 2 })
				if !value[bool](w, `SELECT `+notDeleted+` FROM accesskeys WHERE id = $1`, credential.ID) {
					t.Errorf("%s revocation is there before %s has ended", name, write)
				}
				release()
				if err := <-written; err != nil {
					t.Errorf("%s that was under way before %s revocation: %v", write, name, err)
				}
				if err := <-revoked; err != nil {
					t.Errorf("%s revocation: %v", name, err)
				}
			}
		}
		// Control.
		credential := w.credential(newKey(w.acme, year), store.Operator())
		written, release := w.underWay(s, store.AccessKeyCaller(credential), "CreateAgent")
		w.exec(`CREATE OR REPLACE FUNCTION ` + lockingFunction(w) + ` RETURNS void LANGUAGE sql AS ''`)
		if err := psql(credential.AccessKey); err != nil {
			t.Fatal(err)
		}
		release()
		if err := <-written; err != nil {
			t.Errorf("control: without the triggers' lock the write after the revocation gives %v: the above shows nothing", err)
		}
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
	for _, sql := range []string{`SET LOCAL deadlock_timeout = '1h'`, `SELECT FROM accesskeys FOR UPDATE`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		deleted, err := s.DeleteAccessKey(context.Background(), store.Operator(), w.acme.ID, key.ID)
		if err == nil && deleted.Name != "by hand" {
			err = fmt.Errorf("deleted %+v", deleted)
		}
		done <- err
	}()
	w.untilWaiting()
	if _, err := tx.Exec(t.Context(), `UPDATE accesskeys SET name = 'by hand'`); err != nil { // waits for the lock that the store has
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the deletion: %v", err)
	}
	w.untilDeadlocks(1) // control: there was one
}

// untilDeadlocks returns when Postgres has counted so many in this database.
func (w *fixture) untilDeadlocks(n int) {
	w.t.Helper()
	servertest.Eventually(w.t, fmt.Sprintf("there were %d deadlocks", n), func() bool { return w.deadlocks() >= n })
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
		if err := write(t.Context(), w.store, store.Operator(), w.makeTargets(w.globex)); err != nil {
			t.Errorf("%s of another customer's: %v", name, err)
		}
	}
	if err := callersWrites()["CreateAgent"](t.Context(), w.store, store.Operator(), acmes); err != nil {
		t.Errorf("an insert beside another: %v", err)
	}
	// Control: what revokes waits.
	done := make(chan error, 1)
	go func() {
		done <- callersWrites()["DeleteAccessKey"](context.Background(), w.store, store.Operator(), acmes)
	}()
	w.untilWaiting()
	if err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
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
						if _, err := s.CreateAccessKey(t.Context(), store.Operator(), newKey(customer, year)); err != nil && !errors.Is(err, store.ErrNoCustomer) {
							return err
						}
						if i > 3 {
							name := uuid.NewString()
							if _, err := s.UpdateCustomer(t.Context(), store.Operator(), w.globex.ID, store.CustomerChange{Name: &name}); err != nil {
								return err
							}
						}
					}
				})
			}
			servertest.Eventually(t, "there are writes", func() bool { return value[int](w, `SELECT count(*) FROM accesskeys WHERE name <> ''`) > 20 })
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := s.DeleteCustomer(ctx, store.Operator(), w.acme.ID)
			close(stop)
			if err := errors.Join(err, writers.Wait()); err != nil {
				t.Error(err)
			}
			s.Close() // what it has counted is reported then
			if n := w.deadlocks(); n != 0 {
				t.Errorf("there were %d deadlocks", n)
			}
		})
	}
}
