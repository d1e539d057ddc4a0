package authcache_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// patience bounds every wait for something that takes no time on an idle machine.
const patience = 20 * time.Second

// long is a lease that no test outlives: what ends it is the test's own clock.
const long = authcache.MaxLease

// fixture is a database with a customer in it who has one of everything, and another customer with one of everything.
type fixture struct {
	t            *testing.T
	url          secret.Value
	db           *pgxpool.Pool // the test's own way into the database
	store        *store.Store
	acme, globex tenant
}

// tenant is a customer with a credential of each kind, none of whose fields is empty.
type tenant struct {
	customer store.Customer
	agent    store.Agent
	key      store.AccessKey // bound to the agent
	hash     store.TokenHash // of key
	account  store.ServiceAccount
	pair     store.ServiceAccountKey // of account
	made     store.AccessKey         // by account
	madeHash store.TokenHash
}

// nobody stands for a client whose address is not known.
var nobody netip.Addr

func newFixture(t *testing.T) *fixture {
	t.Helper()
	w := &fixture{t: t, url: pgtest.Migrated(t)}
	w.store = w.open()
	cfg := must(pgxpool.ParseConfig(w.url.Reveal()))(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "test" // told from the store's connections by it
	w.db = must(pgxpool.NewWithConfig(t.Context(), cfg))(t)
	t.Cleanup(w.db.Close)
	w.acme, w.globex = w.newTenant("acme"), w.newTenant("globex")
	return w
}

// open is another store on the same database.
func (w *fixture) open() *store.Store {
	w.t.Helper()
	s := must(store.Open(w.t.Context(), w.url))(w.t)
	w.t.Cleanup(s.Close)
	return s
}

func (w *fixture) newTenant(name string) tenant {
	w.t.Helper()
	ctx, operator := w.t.Context(), store.Operator()
	tn := tenant{hash: newHash(), madeHash: newHash()}
	tn.customer = must(w.store.CreateCustomer(ctx, operator, store.NewCustomer{Name: name, Detail: "detail", Email: name + "@example"}))(w.t)
	tn.agent = must(w.store.CreateAgent(ctx, operator, store.NewAgent{
		CustomerID: tn.customer.ID, Username: name, PasswordHash: secret.New("$argon2id$v=19$x"), Name: "name", Detail: "detail", Permission: 32,
	}))(w.t)
	tn.key = must(w.store.CreateAccessKey(ctx, operator, store.NewAccessKey{
		CustomerID: tn.customer.ID, AgentID: &tn.agent.ID, Name: "name", Detail: "detail",
		TokenHash: tn.hash, TokenPrefix: "vb_12345678", Expire: 3600,
	}))(w.t)
	tn.account = must(w.store.CreateServiceAccount(ctx, operator, store.NewServiceAccount{
		CustomerID: tn.customer.ID, Name: "name", Detail: "detail", Roles: []string{"customer_admin"},
	}))(w.t)
	tn.pair = must(w.store.CreateServiceAccountKey(ctx, operator, tn.account, "ES256", []byte("public")))(w.t)
	account := must(serviceAccountCredential(ctx, w.store, tn.pair.ID))(w.t)
	tn.made = must(w.store.CreateAccessKey(ctx, store.ServiceAccountCaller(account, store.Never()), store.NewAccessKey{
		CustomerID: tn.customer.ID, Name: "name", Detail: "detail", TokenHash: tn.madeHash, TokenPrefix: "vb_12345678", Expire: 3600,
	}))(w.t)
	return tn
}

func newHash() store.TokenHash { return sha256.Sum256([]byte(rand.Text())) }

// newKey is a customer-wide key of acme's.
func (w *fixture) newKey(expire int64) (store.AccessKey, store.TokenHash) {
	w.t.Helper()
	hash := newHash()
	return w.keyFor(hash, expire), hash
}

// keyFor is a customer-wide key of acme's with this hash.
func (w *fixture) keyFor(hash store.TokenHash, expire int64) store.AccessKey {
	w.t.Helper()
	return must(w.store.CreateAccessKey(w.t.Context(), store.Operator(), store.NewAccessKey{
		CustomerID: w.acme.customer.ID, TokenHash: hash, TokenPrefix: "vb_12345678", Expire: expire,
	}))(w.t)
}

// runner is an instance that runs, with a store, a clock and a log of its own.
type runner struct {
	*authcache.Cache
	t     *testing.T
	store *store.Store
	log   *servertest.Log
	ahead atomic.Int64 // of its clock
	stop  func()       // and wait for its end
	held  *heldLookups // nil for none
}

// newCache makes an instance that doesn't run, with a bound on the age of rows where one is given.
func (w *fixture) newCache(lease time.Duration, maxAge ...time.Duration) *runner {
	w.t.Helper()
	r := &runner{t: w.t, store: w.open(), log: &servertest.Log{}, stop: func() {}}
	r.Cache = must(authcache.New(authcache.Config{
		Store: r.store, Log: r.log.Logger(), Lease: lease, MaxAge: append(maxAge, 0)[0], CacheBytes: 16 << 20,
	}))(w.t)
	r.SetClock(func() time.Duration { return authcache.BootTime() + time.Duration(r.ahead.Load()) })
	return r
}

// run makes one that runs until the test ends, and has a lease.
func (w *fixture) run(lease time.Duration) *runner {
	w.t.Helper()
	return w.newCache(lease).started()
}

// started runs the instance until the test ends, and returns it once it is ready.
func (r *runner) started() *runner {
	r.t.Helper()
	r.start()
	if err := r.Ready(within(r.t)); err != nil {
		r.t.Fatal(err)
	}
	return r
}

func (r *runner) start() {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-stopped; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(func() {
		if r.held != nil {
			r.held.let() // of a test that has failed
		}
		r.stop()
	})
}

// onLookups puts something in the place of look-ups of an instance's by the pool. It is called before the instance runs.
func (r *runner) onLookups(on func(l store.Lookup, order store.Order, lookup func() (store.Found, error)) (store.Found, error)) {
	r.WrapLookup(func(lookup authcache.LookupFunc) authcache.LookupFunc {
		return func(ctx context.Context, l store.Lookup, known changelog.Position, order store.Order) (store.Found, error) {
			return on(l, order, func() (store.Found, error) { return lookup(context.WithoutCancel(ctx), l, known, order) })
		}
	})
}

// heldLookups stops look-ups of an instance's by the pool.
type heldLookups struct {
	before  atomic.Bool   // the stop is before the database is read, not after it
	stops   atomic.Int64  // how many more are stopped
	begun   atomic.Int64  // how many look-ups there were
	stopped chan struct{} // gets a value at each stop
	release chan struct{} // lets one go on for each value, and all once it is closed, by let
	let     func()
}

// holdLookups stops the next so many look-ups. It is called before the instance runs.
func (r *runner) holdLookups(stops int64) *heldLookups {
	h := &heldLookups{stopped: make(chan struct{}, authcache.LookupsAtOnce+1), release: make(chan struct{})}
	h.let = sync.OnceFunc(func() { close(h.release) })
	h.stops.Store(stops)
	r.held = h
	r.onLookups(func(_ store.Lookup, _ store.Order, lookup func() (store.Found, error)) (store.Found, error) {
		h.begun.Add(1)
		stop := func() {
			h.stopped <- struct{}{}
			<-h.release
		}
		stops := h.stops.Add(-1) >= 0
		if stops && h.before.Load() {
			stop()
		}
		found, err := lookup()
		if stops && !h.before.Load() {
			stop()
		}
		return found, err
	})
	return h
}

// held runs an instance of which the next so many look-ups are stopped.
func (w *fixture) held(lease time.Duration, stops int64) (*runner, *heldLookups) {
	w.t.Helper()
	r := w.newCache(lease)
	h := r.holdLookups(stops)
	return r.started(), h
}

// fill has look-ups under way on all connections that there are for them, which are stopped; the first is of this key, and the
// others find nothing. What is asked for from then on waits.
func (h *heldLookups) fill(r *runner, hash store.TokenHash) <-chan answer {
	first := r.ask(r.t.Context(), hash)
	<-h.stopped
	for range authcache.LookupsAtOnce - 1 {
		r.ask(r.t.Context(), newHash())
		<-h.stopped
	}
	return first
}

// answer is what an instance has said of an access key.
type answer struct {
	authcache.AccessKeyCredential
	err error
}

// ask asks for an access key on the side.
func (r *runner) ask(ctx context.Context, hash store.TokenHash) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		c, err := r.AccessKeyByHash(ctx, hash, nobody)
		got <- answer{c, err}
	}()
	return got
}

// waiting returns once so many look-ups wait for a connection.
func (r *runner) waiting(n int) {
	r.t.Helper()
	servertest.Eventually(r.t, "all wait", func() bool { return r.WaitingLookups() == n })
}

// advance turns the instance's clock on.
func (r *runner) advance(by time.Duration) { r.ahead.Add(int64(by)) }

// within is a context for what should take no time.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// reader reads a credential from an instance and from a store, whole but for the moment of the reading.
type reader struct {
	name           string
	peek           func(*authcache.Cache) bool // whether it is remembered
	cached, proven readFunc
	store          func(context.Context, *store.Store) (any, error)
}

type readFunc = func(context.Context, *authcache.Cache) (any, time.Time, error)

// readers are those of all of a tenant's credentials.
func (tn tenant) readers() []reader {
	type c = authcache.Cache
	accessKey := func(name string, hash store.TokenHash) reader {
		return newReader(name, hash, (*c).RemembersAccessKey, (*c).AccessKeyByHash, (*c).ProvenAccessKeyByHash, accessKeyByHash)
	}
	return []reader{
		accessKey("access key", tn.hash),
		newReader("agent", tn.agent.ID, (*c).RemembersAgent, (*c).AgentCredential, (*c).ProvenAgentCredential, agentCredential),
		newReader("service account's key", tn.pair.ID, (*c).RemembersServiceAccountKey, (*c).ServiceAccountCredential,
			(*c).ProvenServiceAccountCredential, serviceAccountCredential),
		accessKey("account's access key", tn.madeHash),
	}
}

// strangers are the readers of credentials that do not exist.
func strangers() []reader {
	return tenant{
		hash: newHash(), madeHash: newHash(),
		agent: store.Agent{ID: uuid.New()}, pair: store.ServiceAccountKey{ID: uuid.New()},
	}.readers()
}

// newReader reads the credential of one kind that has this key.
func newReader[K, C, S any](
	name string, k K, remembers func(*authcache.Cache, K) bool,
	cached, proven func(*authcache.Cache, context.Context, K, netip.Addr) (C, error), stored func(context.Context, *store.Store, K) (S, error),
) reader {
	read := func(from func(*authcache.Cache, context.Context, K, netip.Addr) (C, error)) readFunc {
		return func(ctx context.Context, r *authcache.Cache) (any, time.Time, error) {
			c, err := from(r, ctx, k, nobody)
			rows, now := timeless(c)
			return rows, now, err
		}
	}
	return reader{
		name, func(r *authcache.Cache) bool { return remembers(r, k) }, read(cached), read(proven),
		func(ctx context.Context, s *store.Store) (any, error) {
			c, err := stored(ctx, s, k)
			rows, _ := timeless(c)
			return rows, err
		},
	}
}

// timeless takes the moment of its reading out of a credential, and is the rows that the store has of it.
func timeless(credential any) (rows any, now time.Time) {
	if c, is := credential.(authcache.AccessKeyCredential); is {
		credential = c.AccessKeyCredential
	}
	v := reflect.New(reflect.TypeOf(credential)).Elem()
	v.Set(reflect.ValueOf(credential))
	now = v.FieldByName("Now").Interface().(time.Time)
	v.FieldByName("Now").SetZero()
	return v.Interface(), now
}

// These read one credential from a store, as any database has it that the store reaches.

func accessKeyByHash(ctx context.Context, s *store.Store, hash store.TokenHash) (store.AccessKeyCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{AccessKeys: []store.TokenHash{hash}}, changelog.Position{}, store.HeadFirst)
	return only(found.AccessKeys, hash, err)
}

func agentCredential(ctx context.Context, s *store.Store, id uuid.UUID) (store.AgentCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{Agents: []uuid.UUID{id}}, changelog.Position{}, store.HeadFirst)
	return only(found.Agents, id, err)
}

func serviceAccountCredential(ctx context.Context, s *store.Store, keyID uuid.UUID) (store.ServiceAccountCredential, error) {
	found, err := s.Lookup(ctx, store.Lookup{ServiceAccountKeys: []uuid.UUID{keyID}}, changelog.Position{}, store.HeadFirst)
	return only(found.ServiceAccountKeys, keyID, err)
}

func only[K comparable, V any](found map[K]V, k K, err error) (V, error) {
	c, ok := found[k]
	if err == nil && !ok {
		err = store.ErrNotFound
	}
	return c, err
}

// reads reads all of a tenant's credentials, holds them against the store's own readings, and returns which of them were
// remembered before: those, and no others, have to come from memory.
func (r *runner) reads(tn tenant) (remembered []string) {
	r.t.Helper()
	readers := tn.readers()
	for _, reader := range readers { // all of them before any is read, which makes others be remembered
		if reader.peek(r.Cache) {
			remembered = append(remembered, reader.name)
		}
	}
	for _, reader := range readers {
		want, wantErr := reader.store(r.t.Context(), r.store)
		hits := r.Stats().Hits
		got, _, err := reader.cached(within(r.t), r.Cache)
		if !reflect.DeepEqual(got, want) || (err == nil) != (wantErr == nil) {
			r.t.Errorf("%s: the instance has\n%+v, %v, the store\n%+v, %v", reader.name, got, err, want, wantErr)
		}
		if r.Stats().Hits == hits && slices.Contains(remembered, reader.name) {
			r.t.Errorf("%s: remembered, and yet not from memory", reader.name)
		}
	}
	return remembered
}

// unavailable fails the test unless a reading has told that the database is.
func (r *runner) unavailable(what string, read readFunc) {
	r.t.Helper()
	if _, _, err := read(within(r.t), r.Cache); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotFound) {
		r.t.Errorf("%s: %v, want that the store is unavailable", what, err)
	}
}

// eventually returns once a reading ends with this error.
func (r *runner) eventually(read readFunc, want error) {
	r.t.Helper()
	servertest.Eventually(r.t, fmt.Sprint("it answers: ", want), func() bool {
		_, _, err := read(within(r.t), r.Cache)
		return errors.Is(err, want)
	})
}

// refused fails the test unless an instance tells that there is no such access key.
func (r *runner) refused(when string, hash store.TokenHash) {
	r.t.Helper()
	if _, err := r.AccessKeyByHash(within(r.t), hash, nobody); !errors.Is(err, store.ErrNotFound) {
		r.t.Errorf("%s: %v, want that there is no such key", when, err)
	}
}

// renew has it make so many rounds.
func (r *runner) renew(rounds int) {
	r.t.Helper()
	for range rounds {
		if err := r.Renew(within(r.t)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// logged is how often a line was logged.
func (r *runner) logged(line string) int { return strings.Count(r.log.String(), line) }

// everything is what reads returns where all is remembered.
const everything = "access key, agent, service account's key, account's access key"

// wants fails the test unless just these of a tenant's credentials are remembered.
func (r *runner) wants(when string, tn tenant, remembered string) {
	r.t.Helper()
	if got := strings.Join(r.reads(tn), ", "); got != remembered {
		r.t.Errorf("%s: of %s, %q was remembered, want %q", when, tn.customer.Name, got, remembered)
	}
}

// whole has it remember all of a tenant's credentials.
func (r *runner) whole(tn tenant) {
	r.t.Helper()
	r.reads(tn)
	r.wants("at first", tn, everything)
}

// exec runs SQL of the test's own, as somebody with psql would.
func (w *fixture) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// between is exec in one transaction with what is run before it and after.
func (w *fixture) between(before, after, sql string, args ...any) {
	w.t.Helper()
	err := pgx.BeginFunc(w.t.Context(), w.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(w.t.Context(), before)
		if err == nil {
			_, err = tx.Exec(w.t.Context(), sql, args...)
		}
		if err == nil {
			_, err = tx.Exec(w.t.Context(), after)
		}
		return err
	})
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// internally is exec as the service itself does it: the tables by which instances agree can be changed by nobody else.
func (w *fixture) internally(sql string, args ...any) {
	w.t.Helper()
	w.between(`SET LOCAL accesskeys.internal = 'on'`, ``, sql, args...)
}

// aroundTheLog is exec with no trigger that fires.
func (w *fixture) aroundTheLog(sql string, args ...any) {
	w.t.Helper()
	var before, after strings.Builder
	for _, table := range loggedTables {
		before.WriteString(`ALTER TABLE ` + table + ` DISABLE TRIGGER USER;`)
		after.WriteString(`ALTER TABLE ` + table + ` ENABLE TRIGGER changed, ENABLE TRIGGER removed,
			ENABLE REPLICA TRIGGER applied, ENABLE ALWAYS TRIGGER emptied;`)
	}
	w.between(before.String(), after.String(), sql, args...)
}

// restore replaces a table by a copy of those of its rows that a condition names, in one transaction, as pg_restore --clean -1 does by
// a dump from when there were no others. Nothing of it is in the log.
func (w *fixture) restore(table, where string, args ...any) {
	w.t.Helper()
	w.between(`ALTER TABLE `+table+` RENAME TO restored; CREATE TABLE `+table+` (LIKE restored INCLUDING ALL)`, `DROP TABLE restored CASCADE`,
		`INSERT INTO `+table+` SELECT * FROM restored WHERE `+where, args...)
}

// lock runs SQL in a transaction that holds its locks until release is called.
func (w *fixture) lock(sql string, args ...any) (release func()) {
	w.t.Helper()
	tx := must(w.db.Begin(w.t.Context()))(w.t)
	if _, err := tx.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	release = sync.OnceFunc(func() {
		if err := tx.Rollback(context.Background()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(release)
	return release
}

// cut ends all sessions of the instances, but for those of some processes.
func (w *fixture) cut(but ...int) {
	w.t.Helper()
	w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'accesskeys' AND pid <> ALL (COALESCE($1::int[], '{}'))`, but)
}

// set changes a setting of the database, for sessions from now on.
func (w *fixture) set(setting string) {
	w.t.Helper()
	w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I ` + setting + `', current_database()); END $$`)
}

// deadInstance puts one into the list that has just been alive, and will not be any more.
func (w *fixture) deadInstance(lease time.Duration) uuid.UUID {
	w.t.Helper()
	id := uuid.New()
	w.internally(`INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT $1, 1, $2, position, entry FROM change_head`,
		id, lease.Milliseconds())
	return id
}

// listed reports whether the list of instances has this one.
func (w *fixture) listed(id uuid.UUID) bool {
	w.t.Helper()
	return value[bool](w, `SELECT EXISTS (SELECT FROM instances WHERE id = $1)`, id)
}

// swept returns once a dead instance is not in the list any more.
func (w *fixture) swept(id uuid.UUID) {
	w.t.Helper()
	servertest.Eventually(w.t, "the dead one is removed", func() bool { return !w.listed(id) })
}

// seq is the number of the newest heartbeat of an instance that the database has.
func (w *fixture) seq(r *runner) int64 {
	w.t.Helper()
	return value[int64](w, `SELECT seq FROM instances WHERE id = $1`, r.ID())
}

// loggedTables are those whose changes are in the log.
var loggedTables = []string{"customers", "agents", "accesskeys", "service_accounts", "service_account_keys"}

// value reads one value by SQL of the test's own.
func value[T any](w *fixture, sql string, args ...any) (v T) {
	w.t.Helper()
	if err := w.db.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// applied returns once an instance has applied the log up to its newest change, and said so.
func (w *fixture) applied(r *runner) {
	w.t.Helper()
	servertest.Eventually(w.t, "the instance applies the log", func() bool {
		return value[bool](w, `SELECT EXISTS (SELECT FROM instances i, change_head h WHERE i.id = $1 AND (i.position, i.entry) = (h.position, h.entry))`, r.ID())
	})
}

// away makes the database one that can't be reached, until back is called.
func (w *fixture) away() (back func()) {
	w.t.Helper()
	w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
	back = func() { w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`) }
	servertest.Eventually(w.t, "the database is unavailable", func() bool {
		return value[int](w, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'accesskeys'`) == 0
	})
	return back
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

// equal fails the test unless both are the same.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// wantError fails the test unless the error is this one; nil stands for none.
func wantError(t *testing.T, doing string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", doing, err, want)
	}
}
