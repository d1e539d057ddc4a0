package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ErrChanged means that a write did not happen because its caller, or what the caller wanted to change, is not any more as it was
// when somebody decided that the caller may do this. That has to be decided again.
var ErrChanged = errors.New("the caller or its target has changed")

// witness is a heartbeat of this server that was confirmed. The database that holds it, or a later one, is the one that the
// server's Feed is on.
type witness struct {
	id  uuid.UUID
	seq int64
}

const (
	// writeAttempts is how often a write is tried that ran into a deadlock.
	writeAttempts = 8
	// deadlockPause is how long it waits then, once more for each attempt.
	deadlockPause = 2 * time.Millisecond
)

// insertOne makes a row on behalf of a caller, by one statement that has mayWrite as its condition and is its own transaction. What it
// makes is not logged: nobody remembers it yet. It returns ErrNotFound where it makes no row, which it doesn't for a customer that
// is none or deleted, and ErrChanged.
func insertOne[T any](ctx context.Context, s *Store, c Caller, t target, doing, sql string, args ...any) (row T, err error) {
	sql, args = s.admitted(sql, args, c, t, false)
	err = s.attempt(ctx, func(conn *pgx.Conn) error {
		var err error
		if s.needsBegin.Load() {
			err = inOneBatch(ctx, conn, func(b *pgx.Batch) { queueOne(b, &row, sql, args...) })
		} else {
			row, err = queryRowIn[T](ctx, conn, sql, args...)
		}
		return err
	})
	return row, s.failed(doing, err)
}

// insertAfter is insertOne for statements that come after one which waits for further locks.
func insertAfter[T any](
	ctx context.Context, s *Store, c Caller, t target, doing string, first func(*pgx.Batch), sql string, args ...any,
) (row T, err error) {
	err = s.attempt(ctx, func(conn *pgx.Conn) error {
		return inOneBatch(ctx, conn, func(b *pgx.Batch) {
			s.queueAdmission(b, c, t, false)
			first(b)
			queueOne(b, &row, sql, args...)
		})
	})
	return row, s.failed(doing, err)
}

// revision is what a transaction that changes logged rows has appended to the log.
type revision struct {
	Position
	lease time.Duration // no instance's is longer
	after int64         // this server's newest heartbeat that was begun before the commit
}

// writeAndWait changes a logged row, that of a table with an id, on behalf of a caller, and returns once no instance trusts the rows
// as they were before: until then it waits, for as long as a lease at most. It returns ErrChanged, an error of the
// statements, or the driver's.
func (s *Store) writeAndWait(ctx context.Context, c Caller, t target, changed Noun, id uuid.UUID, queue func(*pgx.Batch)) error {
	r, err := s.writeLogged(ctx, c, t, changed, id, queue)
	if err != nil {
		return err
	}
	// The client may be gone: what has been committed is seen through.
	return s.waitForInstances(context.WithoutCancel(ctx), r)
}

// writeLogged is writeAndWait without the waiting.
func (s *Store) writeLogged(ctx context.Context, c Caller, t target, changed Noun, id uuid.UUID, queue func(*pgx.Batch)) (r revision, err error) {
	err = s.attempt(ctx, func(conn *pgx.Conn) error {
		return inOneBatch(ctx, conn, func(b *pgx.Batch) {
			s.queueAdmission(b, c, t, true)
			queue(b)
			b.Queue(`SELECT ensure_logged($1) WHERE EXISTS (
				SELECT FROM `+pgx.Identifier{string(changed)}.Sanitize()+` WHERE id = $2 AND xmin = pg_current_xact_id()::xid)`, string(changed), id)
			// The head is locked by this transaction, since an entry has moved it.
			b.Queue(`SELECT position, entry, lease_ms FROM change_head WHERE single = 1`).QueryRow(func(row pgx.Row) error {
				var ms int64
				err := row.Scan(&r.Number, &r.Entry, &ms)
				r.lease = time.Duration(ms) * time.Millisecond
				return err
			})
		})
	})
	r.after = s.begunBeats.Load()
	return r, err
}

// writeOneAndWait is writeAndWait of one row, by a statement that gives it.
func writeOneAndWait[T any](
	ctx context.Context, s *Store, c Caller, t target, changed Noun, id uuid.UUID, doing, sql string, args ...any,
) (row T, err error) {
	err = s.writeAndWait(ctx, c, t, changed, id, func(b *pgx.Batch) { queueOne(b, &row, sql, args...) })
	return row, s.failed(doing, err)
}

// queueAdmission queues what comes before a write of several statements: a statement of its own, so that theirs see what was done under
// the locks before.
func (s *Store) queueAdmission(b *pgx.Batch, c Caller, t target, revises bool) {
	sql, args := s.admitted(`SELECT `+mayWrite, nil, c, t, revises)
	b.Queue(sql, args...)
}

// admitted is admitted with what this server knows of itself.
func (s *Store) admitted(sql string, args []any, c Caller, t target, revises bool) (string, []any) {
	// What is inserted needs nobody's acknowledgement: on whichever database it is, that is where it will be looked for.
	var w *witness
	if revises {
		w = s.witness.Load()
	}
	return admitted(sql, args, c, t, revises, w)
}

// insertIn runs an INSERT that nobody with a credential asks for, in a transaction whose owner reads the driver's errors.
func insertIn[T any](ctx context.Context, tx pgx.Tx, on target, insert string, values []any) (T, error) {
	sql, args := admitted(insert, values, Operator(), on, false, nil)
	return queryRowIn[T](ctx, tx, sql, args...)
}

// queueOne queues a statement that gives one row.
func queueOne[T any](b *pgx.Batch, into *T, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
		return err
	})
}

// attempt runs a write on a connection, again where Postgres ended it for a deadlock: somebody who changes rows by hand takes the
// locks in an order of their own.
func (s *Store) attempt(ctx context.Context, do func(*pgx.Conn) error) error {
	for attempt := 1; ; attempt++ {
		err := s.withDurableCommit(ctx, do)
		switch sqlState(err) {
		case codeDeadlock, codeSerialization:
			if attempt == writeAttempts {
				return err
			}
		case codeIsolation:
			s.needsBegin.Store(true) // somebody has chosen another isolation for all transactions
			if attempt > 2 {
				return err
			}
		case codeChanged:
			return ErrChanged
		case codeElsewhere:
			return s.elsewhere()
		default:
			return err
		}
		select {
		case <-time.After(time.Duration(attempt) * deadlockPause):
		case <-ctx.Done():
			return err
		}
	}
}

// elsewhere is the error of a write on a database that the server's Feed is not on. Connections to it are of no use.
func (s *Store) elsewhere() error {
	s.pool().Reset()
	s.elsewheres.Add(1)
	return fmt.Errorf("%w: writes reach another database than the one that this server hears of changes from", ErrUnavailable)
}

// inOneBatch runs statements in a transaction of which the server has everything, its COMMIT too, before it begins. Every change
// locks the head of the log: were the server to wait for its client in between, a client that is stopped, or cut off, would
// keep everybody else from changing anything. Each statement sees what was committed before it, whatever the database's
// default; the commit waits for the disk, and for the standby where there is a synchronous one, and says where that was cut short.
func inOneBatch(ctx context.Context, conn *pgx.Conn, queue func(*pgx.Batch)) error {
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
