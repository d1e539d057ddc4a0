package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The functions of this file return the driver's errors, which DB.Failed and Translate read.

// CommandTag is the driver's, of what a statement did.
type CommandTag = pgconn.CommandTag

// Query runs a query on a connection of the pool, which rows gives back when it is closed.
func (db *DB) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return db.pool().Query(ctx, sql, args...)
}

// QueryRow runs a query that gives one row on a connection of the pool.
func (db *DB) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return db.pool().QueryRow(ctx, sql, args...)
}

// Exec runs a statement on a connection of the pool.
func (db *DB) Exec(ctx context.Context, sql string, args ...any) (CommandTag, error) {
	return db.pool().Exec(ctx, sql, args...)
}

// QueryOne runs a statement that gives one row, which it makes into a T by its columns' names.
func QueryOne[T any](ctx context.Context, q Querier, sql string, args ...any) (T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
}

// Querier is what a connection, a transaction and the pool have in common.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (CommandTag, error)
}

// UnderReadCommitted runs do in a transaction in which each statement sees what was committed before it, whatever the
// database's default.
func (db *DB) UnderReadCommitted(ctx context.Context, do func(pgx.Tx) error) error {
	return db.WithDurableCommit(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, do)
	})
}

// errUnconfirmed means that a commit did not wait for the standby to the end: somebody cancelled the wait. What was
// written is visible, and a failover may still lose it.
var errUnconfirmed = errors.New("the wait for the standby was cancelled, the outcome is not known")

// unconfirmed is the name under which a connection remembers that it was told so.
const unconfirmed = "accesskeys.unconfirmed"

// WithDurableCommit runs do on a connection of the pool, and returns an error where what it committed may be lost in a failover.
func (db *DB) WithDurableCommit(ctx context.Context, do func(*pgx.Conn) error) error {
	return db.WithConn(ctx, func(conn *pgx.Conn) error { return withDurableCommit(conn, do) })
}

// WithConn runs do on a connection of the pool.
func (db *DB) WithConn(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := db.pool().Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return do(conn.Conn())
}

func withDurableCommit(conn *pgx.Conn, do func(*pgx.Conn) error) error {
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

// QueueOne queues a statement that gives one row, which is made into a T by its columns' names.
func QueueOne[T any](b *pgx.Batch, into *T, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
		return err
	})
}

// InOneBatch runs statements in a transaction of which the server has everything, its COMMIT too, before it begins. Every change
// locks the head of the log: were the server to wait for its client in between, a client that is stopped, or cut off, would
// keep everybody else from changing anything. Each statement sees what was committed before it, whatever the database's
// default; the commit waits for the disk, and for the standby where there is a synchronous one, and says where that was cut short.
func InOneBatch(ctx context.Context, conn *pgx.Conn, queue func(*pgx.Batch)) error {
	var b pgx.Batch
	b.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	b.Queue(`
		SELECT set_config('accesskeys.internal', 'on', true),
		       CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN set_config('synchronous_commit', 'on', true) END,
		       CASE WHEN current_setting('client_min_messages') = 'error' THEN set_config('client_min_messages', 'warning', true) END`)
	queue(&b)
	b.Queue(`COMMIT`)
	err := conn.SendBatch(ctx, &b).Close()
	if err != nil && conn.PgConn().TxStatus() != 'I' && !conn.IsClosed() {
		_, _ = conn.Exec(ctx, `ROLLBACK`) // where that fails, the connection is not used again
	}
	return err
}
