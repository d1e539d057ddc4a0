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

const (
	// connectTimeout bounds one attempt to reach the database where DATABASE_URL has no connect_timeout of its own. It
	// must leave a request time for its 503 (contract, section 5: within 5 s).
	connectTimeout = 3 * time.Second
	// maxConns is the size of the pool where DATABASE_URL has no pool_max_conns. Commits that wait for the disk together cost
	// little more than one: with the library's four connections, half of the writes a disk could take are left undone.
	maxConns = 16
	// pingTimeout bounds the check of a connection that was idle, which a silent network would stretch for minutes.
	pingTimeout = time.Second
)

// errAddress stands for the driver's error about an address. SECURITY: that one quotes the address and blanks only what it
// recognises as the password, which "password = x" and an escaped space are not.
var errAddress = errors.New("the database's address is neither a postgres:// URL nor a keyword/value string, " +
	"or a setting in it is not understood")

// Store is a pool of connections to one database. It is safe for concurrent use.
type Store struct {
	current atomic.Pointer[pgxpool.Pool] // pool returns it
	retired sync.WaitGroup               // of pools that renewPool has replaced
	host    atomic.Pointer[host]         // that of the last Feed, nil before the first
	settler settler
}

// Open makes a Store over the database at url, a postgres:// URL or a keyword/value string with pgx's pool_* settings.
// It does not connect: a database that is away at the start is the business of Ready.
func Open(ctx context.Context, url secret.Value) (*Store, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	s := &Store{settler: newSettler()}
	cfg.BeforeConnect = s.beforeConnect
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the pool: %w", err)
	}
	s.current.Store(pool)
	return s, nil
}

// beforeConnect has the pool connect to the host of the Feed. A primary that was failed over and lives says that it takes writes as
// well; the Feed is the one to find out, because its commits are confirmed there no more.
func (s *Store) beforeConnect(ctx context.Context, cfg *pgx.ConnConfig) error {
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
	// The pool takes its own settings out of the connection's, so that only without it they can be seen.
	if all, err := pgx.ParseConfig(url.Reveal()); err == nil {
		if _, chosen := all.RuntimeParams["pool_max_conns"]; !chosen {
			cfg.MaxConns = maxConns
		}
	}
	conn := cfg.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	if _, named := conn.RuntimeParams["application_name"]; !named {
		conn.RuntimeParams["application_name"] = "accesskeys"
	}
	conn.OnNotice = noteUnconfirmed
	if len(hostsOf(&conn.Config)) > 1 && conn.ValidateConnect == nil { // nobody has said which: one that only reads is of no use here
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	return cfg, nil
}

// Close closes every connection, after those in use are given back.
func (s *Store) Close() {
	s.pool().Close()
	s.retired.Wait()
}

func (s *Store) pool() *pgxpool.Pool { return s.current.Load() }

// renewPool begins anew without a connection, once the database was lost and found again. A host that is gone leaves more than dead
// connections behind: each that ran into a time-out takes up one of the pool's places for up to 15 s more, while the driver tries
// to tell that host that it is no longer interested. What is under way on the old pool ends there.
func (s *Store) renewPool() error {
	pool, err := pgxpool.NewWithConfig(context.Background(), s.pool().Config())
	if err != nil {
		return fmt.Errorf("opening another pool: %w", err)
	}
	s.retired.Go(s.current.Swap(pool).Close)
	return nil
}

// Ready returns nil where the database answers and holds at least this program's schema.
func (s *Store) Ready(ctx context.Context) error {
	version, err := schemaVersion(ctx, s.pool())
	if err != nil {
		return s.failed("reading the schema's version", err)
	}
	newest, err := newestMigration(migrations.Files)
	if err != nil {
		return err
	}
	if version < newest {
		return fmt.Errorf("the schema is at version %d, this program needs %d: %w", version, newest, ErrUnavailable)
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

// one runs a statement that gives one row, made into a T by its columns' names.
func one[T any](ctx context.Context, s *Store, doing, sql string, args ...any) (row T, err error) {
	err = s.confirmed(ctx, func(conn *pgx.Conn) error {
		row, err = oneIn[T](ctx, conn, sql, args...)
		return err
	})
	return row, s.failed(doing, err)
}

// many runs a query and makes each row into a T by its columns' names. It never returns a nil slice without an error.
func many[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	rows, err := s.pool().Query(ctx, sql, args...)
	if err != nil {
		return nil, s.failed(doing, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	return all, s.failed(doing, err)
}

// oneIn is one on a connection or in a transaction, whose owner reads the driver's errors.
func oneIn[T any](ctx context.Context, q querier, sql string, args ...any) (T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
}

// quick is an id in the driver's own type, for statements that are run all the time: an id of ours it would write out as text
// and read again. It knows the type in every mode, also where poolers let it ask the server for none.
func quick(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// querier is what a connection, a transaction and the pool have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// underReadCommitted runs do in a transaction in which each statement sees what was committed before it, whatever the
// database's default.
func (s *Store) underReadCommitted(ctx context.Context, do func(pgx.Tx) error) error {
	return s.confirmed(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, do)
	})
}

// errUnconfirmed means that a commit did not wait for the standby to the end: somebody cancelled the wait. What was
// written is visible, and a failover may still lose it.
var errUnconfirmed = errors.New("the wait for the standby was cancelled, the outcome is not known")

// unconfirmed is the name under which a connection remembers that it was told so.
const unconfirmed = "accesskeys.unconfirmed"

// confirmed runs do on a connection of the pool, and returns errUnconfirmed where what it committed is not safe.
func (s *Store) confirmed(ctx context.Context, do func(*pgx.Conn) error) error {
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

// noteUnconfirmed listens to the server's notices. Postgres answers a COMMIT whose wait was cancelled with success, and this
// warning before it; the code is that of any warning, of which the statements here cause no other.
func noteUnconfirmed(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Code == codeWarning && notice.SeverityUnlocalized == "WARNING" {
		conn.CustomData()[unconfirmed] = true
	}
}
