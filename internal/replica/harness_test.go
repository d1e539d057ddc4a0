package replica_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/replica"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// patience bounds every wait for something that takes no time on an idle machine.
const patience = 20 * time.Second

// long is a lease that no test outlives: what ends it is the test's own clock.
const long = replica.MaxLease

// world is a database with a customer in it who has one of everything, and another customer with one of everything.
type world struct {
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
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, url: pgtest.Migrated(t)}
	w.store = w.open()
	cfg := must(pgxpool.ParseConfig(w.url.Reveal()))(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "test" // told from the store's connections by it
	w.db = must(pgxpool.NewWithConfig(t.Context(), cfg))(t)
	t.Cleanup(w.db.Close)
	w.acme, w.globex = w.newTenant("acme"), w.newTenant("globex")
	return w
}

// open is another store on the same database.
func (w *world) open() *store.Store {
	w.t.Helper()
	s := must(store.Open(w.t.Context(), w.url))(w.t)
	w.t.Cleanup(s.Close)
	return s
}

func (w *world) newTenant(name string) tenant {
	w.t.Helper()
	ctx := w.t.Context()
	tn := tenant{hash: newHash()}
	tn.customer = must(w.store.CreateCustomer(ctx, store.NewCustomer{Name: name, Detail: "detail", Email: name + "@example"}))(w.t)
	tn.agent = must(w.store.CreateAgent(ctx, store.NewAgent{
		CustomerID: tn.customer.ID, Username: name, PasswordHash: secret.New("$argon2id$v=19$x"), Name: "name", Detail: "detail", Permission: 32,
	}))(w.t)
	tn.key = must(w.store.CreateAccessKey(ctx, store.NewAccessKey{
		CustomerID: tn.customer.ID, AgentID: &tn.agent.ID, Name: "name", Detail: "detail",
		TokenHash: tn.hash, TokenPrefix: "vb_12345678", Expire: 3600,
	}))(w.t)
	tn.account = must(w.store.CreateServiceAccount(ctx, store.NewServiceAccount{
		CustomerID: tn.customer.ID, Name: "name", Detail: "detail", Roles: []string{"customer_admin"},
	}))(w.t)
	tn.pair = must(w.store.CreateServiceAccountKey(ctx, tn.account.ID, "ES256", []byte("public")))(w.t)
	return tn
}

func newHash() store.TokenHash { return sha256.Sum256([]byte(rand.Text())) }

// newKey is a customer-wide key of acme's.
func (w *world) newKey(expire int64) (store.AccessKey, store.TokenHash) {
	w.t.Helper()
	hash := newHash()
	return must(w.store.CreateAccessKey(w.t.Context(), store.NewAccessKey{
		CustomerID: w.acme.customer.ID, TokenHash: hash, TokenPrefix: "vb_12345678", Expire: expire,
	}))(w.t), hash
}

// runner is a replica that runs, with a store, a clock and a log of its own.
type runner struct {
	*replica.Replica
	t     *testing.T
	store *store.Store
	log   *logBuffer
	ahead atomic.Int64 // of its clock
	stop  func()       // and wait for its end
}

// newReplica makes a replica that doesn't run.
func (w *world) newReplica(lease time.Duration) *runner {
	w.t.Helper()
	r := &runner{t: w.t, store: w.open(), log: &logBuffer{}, stop: func() {}}
	r.Replica = must(replica.New(replica.Config{
		Store: r.store, Log: slog.New(slog.NewTextHandler(r.log, nil)), Lease: lease, CacheBytes: 16 << 20,
	}))(w.t)
	r.SetClock(func() time.Duration { return replica.BootTime() + time.Duration(r.ahead.Load()) })
	return r
}

// run makes one that runs until the test ends, and has a lease.
func (w *world) run(lease time.Duration) *runner {
	w.t.Helper()
	r := w.newReplica(lease)
	r.start()
	if err := r.Ready(within(w.t)); err != nil {
		w.t.Fatal(err)
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
	r.t.Cleanup(r.stop)
}

// advance turns the replica's clock on.
func (r *runner) advance(by time.Duration) { r.ahead.Add(int64(by)) }

// within is a context for what should take no time.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// reader reads a credential from a replica and from a store, whole but for the moment of the reading.
type reader struct {
	name    string
	replica func(context.Context, *replica.Replica) (any, time.Time, error)
	store   func(context.Context, *store.Store) (any, error)
}

// readers are those of all of a tenant's credentials.
func (tn tenant) readers() []reader {
	return []reader{
		{
			"access key",
			func(ctx context.Context, r *replica.Replica) (any, time.Time, error) {
				c, err := r.AccessKeyByHash(ctx, tn.hash)
				now := c.Now
				c.Moment = store.Moment{}
				return c.AccessKeyCredential, now, err
			},
			func(ctx context.Context, s *store.Store) (any, error) {
				c, err := s.AccessKeyByHash(ctx, tn.hash, store.Position{})
				c.Moment = store.Moment{}
				return c, err
			},
		},
		{
			"agent",
			func(ctx context.Context, r *replica.Replica) (any, time.Time, error) {
				c, err := r.AgentCredential(ctx, tn.agent.ID)
				now := c.Now
				c.Moment = store.Moment{}
				return c, now, err
			},
			func(ctx context.Context, s *store.Store) (any, error) {
				c, err := s.AgentCredential(ctx, tn.agent.ID, store.Position{})
				c.Moment = store.Moment{}
				return c, err
			},
		},
		{
			"service account's key",
			func(ctx context.Context, r *replica.Replica) (any, time.Time, error) {
				c, err := r.ServiceAccountCredential(ctx, tn.pair.ID)
				now := c.Now
				c.Moment = store.Moment{}
				return c, now, err
			},
			func(ctx context.Context, s *store.Store) (any, error) {
				c, err := s.ServiceAccountCredential(ctx, tn.pair.ID, store.Position{})
				c.Moment = store.Moment{}
				return c, err
			},
		},
	}
}

// reads reads all of a tenant's credentials, holds them against the store's own readings, and returns which of them came
// from memory.
func (r *runner) reads(tn tenant) (remembered []string) {
	r.t.Helper()
	for _, reader := range tn.readers() {
		want, wantErr := reader.store(r.t.Context(), r.store)
		hits := r.Stats().Hits
		got, _, err := reader.replica(within(r.t), r.Replica)
		if !reflect.DeepEqual(got, want) || (err == nil) != (wantErr == nil) {
			r.t.Errorf("%s: the replica has\n%+v, %v, the store\n%+v, %v", reader.name, got, err, want, wantErr)
		}
		if r.Stats().Hits > hits {
			remembered = append(remembered, reader.name)
		}
	}
	return remembered
}

// everything is what reads returns where all is remembered.
const everything = "access key, agent, service account's key"

// wants fails the test unless just these of a tenant's credentials are remembered.
func (r *runner) wants(when string, tn tenant, remembered string) {
	r.t.Helper()
	if got := strings.Join(r.reads(tn), ", "); got != remembered {
		r.t.Errorf("%s: of %s, %q was remembered, want %q", when, tn.customer.Name, got, remembered)
	}
}

// exec runs SQL of the test's own, as somebody with psql would.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// value reads one value by SQL of the test's own.
func value[T any](w *world, sql string, args ...any) (v T) {
	w.t.Helper()
	if err := w.db.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// applied returns once a replica has applied the log up to its newest change, and said so.
func (w *world) applied(r *runner) {
	w.t.Helper()
	until(w.t, "the replica applies the log", func() bool {
		return value[bool](w, `SELECT EXISTS (SELECT FROM replicas r, change_head h WHERE r.id = $1 AND r.position = h.position)`, r.ID())
	})
}

// away makes the database one that can't be reached, until back is called.
func (w *world) away() (back func()) {
	w.t.Helper()
	w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
	back = func() { w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`) }
	until(w.t, "the database is away", func() bool {
		return value[int](w, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'accesskeys'`) == 0
	})
	return back
}

func until(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !reached(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about that %s", what)
		}
	}
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

// logBuffer keeps what was logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
