package store_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// patience bounds every wait for something that takes no time on an idle machine.
const patience = 20 * time.Second

// endsWithin fails the test unless one of a few runs ends within a bound. A bound that is kept holds whenever the machine lets it; one that
// is missing never does.
func endsWithin(t *testing.T, bound time.Duration, what string, run func()) {
	t.Helper()
	var took []time.Duration
	for range 5 {
		began := time.Now()
		run()
		if took = append(took, time.Since(began)); took[len(took)-1] <= bound {
			return
		}
	}
	t.Errorf("%s took %v, want %v at most", what, took, bound)
}

// passwordHash has the form of one; nothing here verifies it.
const passwordHash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$Y2FuYXJ5LWhhc2g"

// operator is the caller of what a test does itself.
var operator = store.Operator()

// year is a key's usual lifetime in seconds.
const year = 31536000

// fixture is a store on a migrated database of its own with two customers in it: what is done to acme, globex must not feel.
type fixture struct {
	t            *testing.T
	url          secret.Value
	store        *store.Store
	db           *pgxpool.Pool // the test's own way into the database, beside the store
	acme, globex store.Customer
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	w := fixtureOn(t, pgtest.Migrated(t))
	w.populate()
	return w
}

// fixtureOn is a fixture on a given database, without the customers.
func fixtureOn(t *testing.T, url secret.Value) *fixture {
	t.Helper()
	return &fixture{t: t, url: url, store: open(t, url), db: poolOn(t, url)}
}

func (w *fixture) populate() {
	w.t.Helper()
	w.acme = must(w.store.CreateCustomer(w.t.Context(), operator, store.NewCustomer{Name: "Acme"}))(w.t)
	w.globex = must(w.store.CreateCustomer(w.t.Context(), operator, store.NewCustomer{Name: "Globex"}))(w.t)
}

func open(t *testing.T, url secret.Value) *store.Store {
	t.Helper()
	s := must(store.Open(t.Context(), url))(t)
	t.Cleanup(s.Close)
	return s
}

// openTraced is a store whose pool tells of every statement.
func openTraced(t *testing.T, url secret.Value) (*store.Store, *statements) {
	t.Helper()
	tracer := &statements{}
	db := must(postgres.OpenTraced(t.Context(), url, tracer))(t)
	t.Cleanup(db.Close)
	return &store.Store{DB: db, Log: changelog.New(db)}, tracer
}

// migrator is store.Migrator with other steps, and another bound on the wait for the lock.
func migrator(url secret.Value, log *slog.Logger, steps fs.FS, lockWait time.Duration) postgres.Migrator {
	m := store.Migrator(url, log)
	m.Steps, m.LockWait = steps, lockWait
	return m
}

func poolOn(t *testing.T, url secret.Value) *pgxpool.Pool {
	t.Helper()
	cfg := must(pgxpool.ParseConfig(url.Reveal()))(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "test" // told from the store's connections by it
	pool := must(pgxpool.NewWithConfig(t.Context(), cfg))(t)
	t.Cleanup(pool.Close)
	return pool
}

// newKey is a key with a random token.
func newKey(customer store.Customer, expire int64) store.NewAccessKey {
	token := rand.Text() + rand.Text()
	return store.NewAccessKey{
		CustomerID: customer.ID, Name: "name of " + token[:4], Detail: "detail of " + token[:4],
		TokenHash: sha256.Sum256([]byte("vb_" + token)), TokenPrefix: "vb_" + token[:8], Expire: expire,
	}
}

func (w *fixture) createKey(customer store.Customer) store.AccessKey {
	w.t.Helper()
	return must(w.store.CreateAccessKey(w.t.Context(), operator, newKey(customer, year)))(w.t)
}

func newAgent(customer store.Customer, username string) store.NewAgent {
	return store.NewAgent{
		CustomerID: customer.ID, Username: username, PasswordHash: secret.New(passwordHash),
		Name: "name of " + username, Detail: "detail of " + username, Permission: 32,
	}
}

func (w *fixture) createAgent(customer store.Customer, username string) store.Agent {
	w.t.Helper()
	return must(w.store.CreateAgent(w.t.Context(), operator, newAgent(customer, username)))(w.t)
}

// userKey is a key with a random token that is bound to an agent.
func userKey(agent store.Agent) store.NewAccessKey {
	k := newKey(store.Customer{ID: agent.CustomerID}, year)
	k.AgentID = &agent.ID
	return k
}

func (w *fixture) createAccount(customer store.Customer, roles ...string) store.ServiceAccount {
	w.t.Helper()
	return must(w.store.CreateServiceAccount(w.t.Context(), operator, store.NewServiceAccount{
		CustomerID: customer.ID, Name: "an account", Detail: "of " + customer.Name, Roles: append([]string{}, roles...),
	}))(w.t)
}

func (w *fixture) createAccountKey(account store.ServiceAccount) store.ServiceAccountKey {
	w.t.Helper()
	return must(w.store.CreateServiceAccountKey(w.t.Context(), operator, account, "ES256", []byte("public")))(w.t)
}

// keyByHash looks one access key up, as verification does; ErrNotFound where there is none.
func keyByHash(ctx context.Context, s *store.Store, hash store.TokenHash, known changelog.Position) (store.AccessKeyCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{AccessKeys: []store.TokenHash{hash}}, known, store.HeadFirst)
	return foundOne(found.AccessKeys, hash, err)
}

// agentByID looks one agent up, as verification does; ErrNotFound where there is none.
func agentByID(ctx context.Context, s *store.Store, id uuid.UUID, known changelog.Position) (store.AgentCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{Agents: []uuid.UUID{id}}, known, store.HeadFirst)
	return foundOne(found.Agents, id, err)
}

// pairByID looks one service account's key up, as verification does; ErrNotFound where there is none.
func pairByID(ctx context.Context, s *store.Store, id uuid.UUID, known changelog.Position) (store.ServiceAccountCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{ServiceAccountKeys: []uuid.UUID{id}}, known, store.HeadFirst)
	return foundOne(found.ServiceAccountKeys, id, err)
}

func foundOne[K comparable, V any](all map[K]V, key K, err error) (V, error) {
	one, found := all[key]
	if err == nil && !found {
		err = store.ErrNotFound
	}
	return one, err
}

// agentOf names an agent of a customer's, whether there is such a one or not.
func agentOf(customer, id uuid.UUID) store.Agent { return store.Agent{ID: id, CustomerID: customer} }

// accountOf names a service account of a customer's, whether there is such a one or not.
func accountOf(customer, id uuid.UUID) store.ServiceAccount {
	return store.ServiceAccount{ID: id, CustomerID: customer}
}

// holdLock begins a transaction that holds a customer's lock: shared, as a write that inserts does, or exclusively, as one that
// revokes.
func (w *fixture) holdLock(customer store.Customer, shared bool) pgx.Tx {
	w.t.Helper()
	sql := `SELECT pg_advisory_xact_lock($1::int, $2::int)`
	if shared {
		sql = `SELECT pg_advisory_xact_lock_shared($1::int, $2::int)`
	}
	tx := w.begin()
	execIn(w.t, tx, sql, store.CustomersLock, store.CustomerLockKey(customer.ID))
	return tx
}

// internal runs SQL that changes the log or the list of instances, as the store does.
func (w *fixture) internal(sql string, args ...any) {
	w.t.Helper()
	tx := w.begin()
	execIn(w.t, tx, `SET LOCAL accesskeys.internal = 'on'`)
	execIn(w.t, tx, sql, args...)
	noError(w.t, tx.Commit(w.t.Context()))
}

// exec runs SQL of the test's own.
func (w *fixture) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// value reads one value by SQL of the test's own.
func value[T any](w *fixture, sql string, args ...any) (v T) {
	w.t.Helper()
	if err := w.db.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// wantTrue fails the test where a condition in SQL does not hold.
func (w *fixture) wantTrue(what, sql string, args ...any) {
	w.t.Helper()
	if !value[bool](w, sql, args...) {
		w.t.Error("not so: " + what)
	}
}

// begin begins a transaction of the test's own. It is rolled back at the end if nothing has ended it by then: otherwise
// a test that fails halfway would wait for its connection for ever.
func (w *fixture) begin() pgx.Tx {
	w.t.Helper()
	tx := must(w.db.BeginTx(w.t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted}))(w.t) // whatever the default is
	w.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// lockKey holds a key's row until release, so that a write of it waits.
func (w *fixture) lockKey(id uuid.UUID) (tx pgx.Tx, release func()) {
	w.t.Helper()
	tx = w.begin()
	execIn(w.t, tx, `SELECT FROM accesskeys WHERE id = $1 FOR UPDATE`, id)
	return tx, func() {
		w.t.Helper()
		noError(w.t, tx.Commit(w.t.Context()))
	}
}

// untilWaiting returns when one of the store's connections waits for a lock.
func (w *fixture) untilWaiting() {
	w.t.Helper()
	w.untilSoManyWait(1)
}

// untilSoManyWait returns when n of the store's connections wait for locks.
func (w *fixture) untilSoManyWait(n int) {
	w.t.Helper()
	servertest.Eventually(w.t, "the store waits for a lock", func() bool {
		return value[int](w, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'accesskeys' AND wait_event_type = 'Lock'`) == n
	})
}

// must takes a pair of results and fails the test on an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// errorOf takes the error alone of a pair of results.
func errorOf[T any](_ T, err error) error { return err }

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// errorIf fails the test where something is wrong; fatalIf ends it, too.
func errorIf(t *testing.T, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Errorf(format, args...)
	}
}

func fatalIf(t *testing.T, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Fatalf(format, args...)
	}
}

// wantError also takes nil for what is wanted.
func wantError(t *testing.T, doing string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", doing, err, want)
	}
}

func wantEqual[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
	}
}

// started runs do beside the test, and returns where its error will be.
func started(do func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// execIn runs SQL in a transaction of the test's own.
func execIn(t *testing.T, tx pgx.Tx, sql string, args ...any) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// openFeed is a Feed that is closed at the test's end, if nothing has closed it by then.
func openFeed(t *testing.T, s *store.Store) *changelog.Feed {
	t.Helper()
	feed := must(s.Log.OpenFeed(t.Context()))(t)
	t.Cleanup(feed.Close)
	return feed
}

// heartbeat is one that has to be taken.
func heartbeat(t *testing.T, feed *changelog.Feed, b changelog.Beat) {
	t.Helper()
	if held, err := feed.Heartbeat(t.Context(), b); !held || err != nil {
		t.Fatalf("a heartbeat: %v, %v", held, err)
	}
}

// atOnce runs do n times side by side and returns their errors.
func atOnce(n int, do func(i int) error) []error {
	errs := make([]error, n)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-start
			errs[i] = do(i)
		})
	}
	close(start)
	all.Wait()
	return errs
}

// withSetting is an address whose connections have this setting.
func withSetting(t *testing.T, address secret.Value, name, value string) secret.Value {
	t.Helper()
	u, err := url.Parse(address.Reveal())
	if err != nil || u.Scheme == "" {
		return secret.New(address.Reveal() + ` ` + name + `='` + value + `'`)
	}
	query := u.Query()
	query.Set(name, value)
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20") // pgx reads + as itself
	return secret.New(u.String())
}

// update is a change, and what it does to a row.
type update[C, T any] struct {
	what   string
	change C
	want   func(*T)
}

// checkUpdates makes changes to a row, one after the other: what is given changes and nothing else, and tm_update moves.
func checkUpdates[C, T any](t *testing.T, row T, tmUpdate func(*T) *time.Time, write func(C) (T, error), read func() (T, error), all []update[C, T]) {
	t.Helper()
	for _, u := range all {
		got, want := must(write(u.change))(t), row
		if !tmUpdate(&got).After(*tmUpdate(&row)) {
			t.Errorf("%s: tm_update stays at %v", u.what, *tmUpdate(&got))
		}
		u.want(&want)
		*tmUpdate(&want) = *tmUpdate(&got)
		wantEqual(t, u.what+": the row", got, want)
		wantEqual(t, u.what+": the stored row", must(read())(t), want)
		row = got
	}
}
