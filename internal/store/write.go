package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
)

// ErrChanged means that a write did not happen because its caller, or what the caller wanted to change, is not any more as it was
// when somebody decided that the caller may do this. That has to be decided again.
var ErrChanged = errors.New("the caller or its target has changed")

// Codes of Postgres, after which a write is tried again.
const (
	codeDeadlock      = "40P01"
	codeSerialization = "40001"
)

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
			err = postgres.InOneBatch(ctx, conn, func(b *pgx.Batch) { postgres.QueueOne(b, &row, sql, args...) })
		} else {
			row, err = postgres.QueryOne[T](ctx, conn, sql, args...)
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
		return postgres.InOneBatch(ctx, conn, func(b *pgx.Batch) {
			s.queueAdmission(b, c, t, false)
			first(b)
			postgres.QueueOne(b, &row, sql, args...)
		})
	})
	return row, s.failed(doing, err)
}

// writeAndWait changes a logged row, that of a table with an id, on behalf of a caller, and returns once no instance trusts the rows
// as they were before: until then it waits, for as long as a lease at most. It returns ErrChanged, an error of the
// statements, or the driver's.
func (s *Store) writeAndWait(ctx context.Context, c Caller, t target, changed changelog.Noun, id uuid.UUID, queue func(*pgx.Batch)) error {
	r, err := s.writeLogged(ctx, c, t, changed, id, queue)
	if err != nil {
		return err
	}
	// The client may be gone: what has been committed is seen through.
	return s.Log.Wait(context.WithoutCancel(ctx), r)
}

// writeLogged is writeAndWait without the waiting.
func (s *Store) writeLogged(
	ctx context.Context, c Caller, t target, changed changelog.Noun, id uuid.UUID, queue func(*pgx.Batch),
) (r changelog.Revision, err error) {
	err = s.attempt(ctx, func(conn *pgx.Conn) error {
		return postgres.InOneBatch(ctx, conn, func(b *pgx.Batch) {
			s.queueAdmission(b, c, t, true)
			queue(b)
			s.Log.Append(b, changed, id, &r)
		})
	})
	return r, err
}

// writeOneAndWait is writeAndWait of one row, by a statement that gives it.
func writeOneAndWait[T any](
	ctx context.Context, s *Store, c Caller, t target, changed changelog.Noun, id uuid.UUID, doing, sql string, args ...any,
) (row T, err error) {
	err = s.writeAndWait(ctx, c, t, changed, id, func(b *pgx.Batch) { postgres.QueueOne(b, &row, sql, args...) })
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
	var w changelog.Witness
	if revises {
		w = s.Log.Witness()
	}
	return admitted(sql, args, c, t, revises, w)
}

// insertIn runs an INSERT that nobody with a credential asks for, in a transaction whose owner reads the driver's errors.
func insertIn[T any](ctx context.Context, tx pgx.Tx, on target, insert string, values []any) (T, error) {
	sql, args := admitted(insert, values, Operator(), on, false, changelog.Witness{})
	return postgres.QueryOne[T](ctx, tx, sql, args...)
}

// attempt runs a write on a connection, again where Postgres ended it for a deadlock: somebody who changes rows by hand takes the
// locks in an order of their own.
func (s *Store) attempt(ctx context.Context, do func(*pgx.Conn) error) error {
	for attempt := 1; ; attempt++ {
		err := s.DB.WithDurableCommit(ctx, do)
		switch postgres.SQLState(err) {
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
			return s.Log.Elsewhere()
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
