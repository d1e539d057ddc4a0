// Package store keeps customers, agents and access keys in Postgres. It holds all SQL, is the only reader of the
// driver's errors, and takes every point in time from the database's clock.
//
// Methods return ErrNotFound where there is no such row, an error of this package's own where a constraint refuses, and
// otherwise an error that is ErrUnavailable: the database could not answer, or its answer is not known.
package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/secret"
	"accesskeys/migrations"
)

// Never is the tm_delete of what has not been deleted (contract, section 1).
func Never() time.Time { return time.Date(9999, time.January, 1, 0, 0, 0, 0, time.UTC) }

// live is the condition for rows that are not deleted. It is a literal, not a parameter, because the partial indexes
// are used only by conditions that repeat theirs.
const live = `tm_delete = '9999-01-01 00:00:00+00'`

// liveByID is live for statements that find a row by its id. No partial index serves it: on a table without statistics the planner
// would take a list's index, and read the whole list.
const liveByID = `tm_delete >= '9999-01-01 00:00:00+00'`

// ofCustomer is the condition that rows found by another column belong to the customer that is the parameter. No index serves it, for
// the same reason.
func ofCustomer(parameter string) string { return `(customer_id = ` + parameter + `) IS TRUE` }

const (
	// connectTimeout bounds one attempt to reach the database where DATABASE_URL has no connect_timeout of its own. It
	// must leave a request time for its 503 (contract, section 5: within 5 s).
	connectTimeout = 3 * time.Second
	// maxConns is the size of the pool where DATABASE_URL has no pool_max_conns. Commits that wait for the disk together cost
	// little more than one: with the library's four connections, half of the writes a disk could take are left undone.
	maxConns = 16
	// feedlessConns is how many connections the pool may have while there is no Feed.
	feedlessConns = 2
	// pingTimeout bounds the check of a connection that was idle, which a silent network would stretch for minutes.
	pingTimeout = time.Second
)

var errFeedless = fmt.Errorf("%w: there is no connection to its log of changes yet", ErrUnavailable)

// errAddress stands for the driver's error about an address. SECURITY: that one quotes the address and blanks only what it
// recognises as the password, which "password = x" and an escaped space are not.
var errAddress = errors.New("the database's address is neither a postgres:// URL nor a keyword/value string, " +
	"or a setting in it is not understood")

// Store is a pool of connections to one database. It is safe for concurrent use.
type Store struct {
	version int // of the newest migration that this program knows
	waiters waiters

	current  atomic.Pointer[pgxpool.Pool] // pool returns it
	renewing sync.Mutex                   // held while current is replaced
	closed   bool                         // under renewing
	retired  sync.WaitGroup               // of pools that renewPool has replaced
	mostConn int32                        // that the pool may have, however many there is room for
	// chosenSize says that DATABASE_URL has the size of the pool: somebody has counted.
	chosenSize bool

	host            atomic.Pointer[host]    // that of the last Feed, nil before the first
	feedless        atomic.Bool             // a ChangeFeed is wanted, and not there
	connectionLimit atomic.Int64            // of the server, 0 where it is not known
	witness         atomic.Pointer[witness] // nil before the first heartbeat
	begunBeats      atomic.Int64            // the newest heartbeat that was begun
	needsBegin      atomic.Bool             // transactions have another isolation unless they say which
	elsewheres      atomic.Int64            // writes that reached another database than the ChangeFeed's
}

// Open makes a Store over the database at url, a postgres:// URL or a keyword/value string with pgx's pool_* settings.
// It does not connect: a database that is away at the start is the business of Ready.
func Open(ctx context.Context, url secret.Value) (*Store, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	version, err := newestMigration(migrations.Files)
	if err != nil {
		return nil, err
	}
	s := &Store{version: version, waiters: newWaiters(), mostConn: cfg.MaxConns, chosenSize: poolSizeChosen(url)}
	cfg.BeforeConnect = s.beforeConnect
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the pool: %w", err)
	}
	s.current.Store(pool)
	return s, nil
}

// beforeConnect has the pool connect to the host of the ChangeFeed. A primary that was failed over and lives says that it takes writes as
// well; the ChangeFeed is the one to find out, because its commits are confirmed there no more.
//
// Without a ChangeFeed nothing that a connection could read would count. So there are few, and a ChangeFeed that needs one finds room.
func (s *Store) beforeConnect(ctx context.Context, cfg *pgx.ConnConfig) error {
	if s.feedless.Load() && s.pool().Stat().TotalConns() > feedlessConns {
		return errFeedless
	}
	chosen := s.host.Load()
	if chosen == nil {
		found, err := chooseHost(ctx, &cfg.Config, nil)
		if err != nil {
			return err
		}
		chosen = &found
	}
	chosen.use(&cfg.Config)
	return nil
}

// CheckURL returns an error where Open would not take the address. The error does not repeat it.
func CheckURL(url secret.Value) error {
	_, err := poolConfig(url)
	return err
}

// poolConfig reads an address, and adds what every connection of ours has, pooled or not.
func poolConfig(url secret.Value) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errAddress
	}
	cfg.PingTimeout = pingTimeout
	if !poolSizeChosen(url) {
		cfg.MaxConns = maxConns
	}
	conn := cfg.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	if _, named := conn.RuntimeParams["application_name"]; !named {
		conn.RuntimeParams["application_name"] = "accesskeys"
	}
	// Whatever the database or the role has chosen. Some statements get texts back, in which times would depend on it. Poolers know
	// these parameters, and no others.
	for name, value := range map[string]string{"client_encoding": "UTF8", "datestyle": "ISO", "standard_conforming_strings": "on"} {
		conn.RuntimeParams[name] = value
	}
	conn.OnNotice = noteUnconfirmed
	if len(hostsOf(&conn.Config)) > 1 && conn.ValidateConnect == nil { // nobody has said which: one that only reads is of no use here
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	return cfg, nil
}

// poolSizeChosen reports whether an address says how many connections there may be.
func poolSizeChosen(url secret.Value) bool {
	// The pool takes its own settings out of the connection's, so that only without it they can be seen.
	all, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return false
	}
	_, chosen := all.RuntimeParams["pool_max_conns"]
	return chosen
}

// Close closes every connection, after those in use are given back.
func (s *Store) Close() {
	s.renewing.Lock()
	s.closed = true
	s.renewing.Unlock()
	s.pool().Close()
	s.retired.Wait()
}

func (s *Store) pool() *pgxpool.Pool { return s.current.Load() }

// renewPool begins anew without a connection, once the database was lost and found again. A host that is gone leaves more than dead
// connections behind: each that ran into a time-out takes up one of the pool's places for up to 15 s more, while the driver tries
// to tell that host that it is no longer interested. What is under way on the old pool ends there. size is how many connections
// the new one may have, 0 for as many as the old one.
func (s *Store) renewPool(size int32) error {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	if s.closed {
		return fmt.Errorf("%w: it was closed", ErrUnavailable)
	}
	cfg := s.pool().Config()
	if size > 0 {
		cfg.MaxConns = size
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return fmt.Errorf("opening another pool: %w", err)
	}
	s.retired.Go(s.current.Swap(pool).Close)
	return nil
}

// Share makes the pool as large as a fair part of the server's connections, where so many instances share them, one more is to
// start at any time, and each needs one for its Feed.
func (s *Store) Share(instances int) error {
	limit := s.connectionLimit.Load()
	if s.chosenSize || limit == 0 {
		return nil
	}
	size := int32(min(max(limit/int64(instances+1)-1, feedlessConns), int64(s.mostConn))) //nolint:gosec // at most mostConn
	now := s.pool().Config().MaxConns
	// Each change costs every connection, so that the pool grows only where that is worth it.
	if size < now || size >= 2*now || size == s.mostConn && size > now {
		return s.renewPool(size)
	}
	return nil
}

// Ready returns nil where the database answers and holds at least this program's schema.
func (s *Store) Ready(ctx context.Context) error {
	version, err := schemaVersion(ctx, s.pool())
	if err != nil {
		return s.failed("reading the schema's version", err)
	}
	if version < s.version {
		return fmt.Errorf("the schema is at version %d, this program needs %d: %w", version, s.version, ErrUnavailable)
	}
	return nil
}

// PoolStats are figures of the pool for the metrics.
type PoolStats struct {
	Max, Total, Idle, Acquired int32
	Acquires, EmptyAcquires    int64
	AcquireTime                time.Duration
}

// PoolStats returns the figures as they stand.
func (s *Store) PoolStats() PoolStats {
	st := s.pool().Stat()
	return PoolStats{
		Max: st.MaxConns(), Total: st.TotalConns(), Idle: st.IdleConns(), Acquired: st.AcquiredConns(),
		Acquires: st.AcquireCount(), EmptyAcquires: st.EmptyAcquireCount(), AcquireTime: st.AcquireDuration(),
	}
}

// queryRow runs a statement that gives queryRow row, made into a T by its columns' names.
func queryRow[T any](ctx context.Context, s *Store, doing, sql string, args ...any) (row T, err error) {
	err = s.withDurableCommit(ctx, func(conn *pgx.Conn) error {
		row, err = queryRowIn[T](ctx, conn, sql, args...)
		return err
	})
	return row, s.failed(doing, err)
}

// queryRows runs a query and makes each row into a T by its columns' names. It never returns a nil slice without an error.
func queryRows[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	rows, err := s.pool().Query(ctx, sql, args...)
	if err != nil {
		return nil, s.failed(doing, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	return all, s.failed(doing, err)
}

// queryRowIn is one on a connection or in a transaction, whose owner reads the driver's errors.
func queryRowIn[T any](ctx context.Context, q querier, sql string, args ...any) (T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
}

// pgUUIDs is pgUUID for each of them.
func pgUUIDs(ids []uuid.UUID) []pgtype.UUID {
	all := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		all[i] = pgUUID(id)
	}
	return all
}

// pgUUID is an id in the driver's own type, for statements that are run all the time: an id of ours it would write out as text
// and read again. It knows the type in every mode, also where poolers let it ask the server for none.
func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// querier is what a connection, a transaction and the pool have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// underReadCommitted runs do in a transaction in which each statement sees what was committed before it, whatever the
// database's default.
func (s *Store) underReadCommitted(ctx context.Context, do func(pgx.Tx) error) error {
	return s.withDurableCommit(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, do)
	})
}

// errUnconfirmed means that a commit did not wait for the standby to the end: somebody cancelled the wait. What was
// written is visible, and a failover may still lose it.
var errUnconfirmed = errors.New("the wait for the standby was cancelled, the outcome is not known")

// unconfirmed is the name under which a connection remembers that it was told so.
const unconfirmed = "accesskeys.unconfirmed"

// withDurableCommit runs do on a connection of the pool, and returns errUnconfirmed where what it committed is not safe.
func (s *Store) withDurableCommit(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := s.pool().Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return onConn(conn.Conn(), do)
}

func onConn(conn *pgx.Conn, do func(*pgx.Conn) error) error {
	told := conn.PgConn().CustomData()
	delete(told, unconfirmed)
	if err := do(conn); err != nil {
		return err
	}
	if _, bad := told[unconfirmed]; bad {
		return errUnconfirmed
	}
	return nil
}

// noteUnconfirmed listens to the server's notices. Postgres answers a COMMIT whose wait was cancelled with success, and a warning
// before it. Only where that comes from tells it from the other warnings, of a trigger's or about transaction ids for example.
func noteUnconfirmed(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[unconfirmed] = true
	}
}
