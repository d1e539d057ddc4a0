package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/rules"
)

// Position is a place in the log of changes. The number says how far, the entry which log: a server that was failed over
// may go on to use the same numbers for other changes.
type Position struct {
	Number int64
	Entry  uuid.UUID
}

// Noun is a table whose changes are logged.
type Noun string

// The nouns.
const (
	NounAccessKeys         Noun = "accesskeys" // its subjects are token hashes, all others' are ids
	NounAgents             Noun = "agents"
	NounCustomers          Noun = "customers"
	NounServiceAccounts    Noun = "service_accounts"
	NounServiceAccountKeys Noun = "service_account_keys"
)

// Change is an entry of the log.
type Change struct {
	Position Position
	Noun     Noun
	Subjects [][]byte // nil: more than can be named
}

// ErrOtherLog means that the database doesn't hold a position which was read from it before: it is not the same one any
// more, or so much has changed since that the position is no longer kept. It is an ErrUnavailable.
var ErrOtherLog = fmt.Errorf("%w: its log of changes is another one", ErrUnavailable)

// Moment says when something was read.
type Moment struct {
	Now  time.Time // the database's time
	Head Position  // what was read is not older; zero where no position was asked about
}

// readKnown runs one query after asking, in the same round trip, whether the database holds the position known and what the
// newest one is. The query's rows are at least as new as the head that is returned.
//
// SECURITY: a server that was failed over and still answers, but knows nothing of what was revoked since, gives
// ErrOtherLog here, and never a row. The zero Position asks nothing.
func (s *Store) readKnown(ctx context.Context, known Position, scan func(pgx.Row) error, sql string, args ...any) (head Position, err error) {
	if known == (Position{}) {
		return head, scan(s.pool().QueryRow(ctx, sql, args...))
	}
	var batch pgx.Batch
	batch.Queue(`
		SELECT position, entry, EXISTS (SELECT FROM changes WHERE position = $1 AND entry = $2)
		FROM change_head
		WHERE single = 1`, known.Number, quick(known.Entry))
	batch.Queue(sql, args...)
	results := s.pool().SendBatch(ctx, &batch)
	defer func() { err = errors.Join(err, results.Close()) }()
	var held bool
	if err := results.QueryRow().Scan(&head.Number, &head.Entry, &held); err != nil {
		return head, err
	}
	if !held {
		return head, ErrOtherLog
	}
	return head, scan(results.QueryRow())
}

// revision is what a transaction that changes logged rows has appended to the log.
type revision struct {
	Position
	lease time.Duration // no replica's is longer
}

// revise runs statements that change logged rows in a transaction, and returns once no replica goes by the rows as they were
// before: until then it waits, for as long as a lease at most. Its error is a statement's, or the driver's.
func (s *Store) revise(ctx context.Context, queue func(*pgx.Batch)) error {
	var r revision
	err := s.confirmed(ctx, func(conn *pgx.Conn) error {
		return atOnce(ctx, conn, func(b *pgx.Batch) {
			if !rules.Log {
				b.Queue(`SET LOCAL session_replication_role = replica`) // no triggers
			}
			queue(b)
			// The head is locked by this transaction, since a trigger has moved it.
			b.Queue(`SELECT position, entry, lease_ms FROM change_head WHERE single = 1`).QueryRow(func(row pgx.Row) error {
				var ms int64
				err := row.Scan(&r.Number, &r.Entry, &ms)
				r.lease = time.Duration(ms) * time.Millisecond
				return err
			})
		})
	})
	if err != nil {
		return err
	}
	// Whoever asked may be gone: what has been committed is seen through.
	s.settle(context.WithoutCancel(ctx), r)
	return nil
}

// reviseOne is one, for a statement that changes a logged row.
func reviseOne[T any](ctx context.Context, s *Store, doing, sql string, args ...any) (row T, err error) {
	err = s.revise(ctx, func(b *pgx.Batch) { queueOne(b, &row, sql, args...) })
	return row, s.failed(doing, err)
}

// queueOne queues a statement that gives one row.
func queueOne[T any](b *pgx.Batch, into *T, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
		return err
	})
}

// atOnce runs statements in a transaction of which the server has everything, its COMMIT too, before it begins. Every change
// locks the head of the log: were the server to wait for its client in between, a client that is stopped, or cut off, would
// keep everybody else from changing anything. Each statement sees what was committed before it, whatever the database's
// default, and the commit waits for the disk, and for the standby where there is a synchronous one.
func atOnce(ctx context.Context, conn *pgx.Conn, queue func(*pgx.Batch)) error {
	var b pgx.Batch
	b.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	b.Queue(`
		SELECT set_config('synchronous_commit', 'on', true)
		WHERE current_setting('synchronous_commit') IN ('off', 'local')`)
	queue(&b)
	b.Queue(`COMMIT`)
	err := conn.SendBatch(ctx, &b).Close()
	if err != nil && conn.PgConn().TxStatus() != 'I' && !conn.IsClosed() {
		_, _ = conn.Exec(ctx, `ROLLBACK`) // where that fails, the connection is not used again
	}
	return err
}
