// Package changelog is how instances learn what was revoked. Every change of a row that verification reads appends an entry to a log in
// the database, in the transaction of the change. Each instance reads the log by a Feed, commits heartbeats that say how far it has got,
// and trusts what it remembers only for a lease after one. Log.Wait returns once no instance trusts what was true before a change.
//
// docs/revocation.md has the protocol, and why it holds.
package changelog

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
)

// Log is the log of changes of one database. It is safe for concurrent use.
type Log struct {
	db      *postgres.DB
	waiters waiters

	witness    atomic.Pointer[Witness] // nil before the first heartbeat
	begunBeats atomic.Int64            // the newest heartbeat that was begun
}

// New makes the Log of db. It does not connect.
func New(db *postgres.DB) *Log { return &Log{db: db, waiters: newWaiters()} }

// Witness is a heartbeat of this instance that was confirmed. The database that holds it, or a later one, is the one that the instance's
// Feed is on.
type Witness struct {
	ID  uuid.UUID // of the instance; the nil UUID where there was no heartbeat yet
	Seq int64
}

// Witness returns the newest one, the zero value where there is none.
func (l *Log) Witness() Witness {
	if w := l.witness.Load(); w != nil {
		return *w
	}
	return Witness{}
}

// Revision is what a transaction has appended to the log.
type Revision struct {
	Position
	lease time.Duration // no instance's is longer
}

// Append queues what comes last in a transaction that changes a logged row, that of a table with an id: into becomes what was appended,
// for Wait.
func (*Log) Append(b *pgx.Batch, changed Noun, id uuid.UUID, into *Revision) {
	b.Queue(`SELECT ensure_logged($1) WHERE EXISTS (
		SELECT FROM `+pgx.Identifier{string(changed)}.Sanitize()+` WHERE id = $2 AND xmin = pg_current_xact_id()::xid)`, string(changed), id)
	// The head is locked by this transaction, since an entry has moved it.
	b.Queue(`SELECT position, entry, lease_ms FROM change_head WHERE single = 1`).QueryRow(func(row pgx.Row) error {
		var ms int64
		err := row.Scan(&into.Number, &into.Entry, &ms)
		into.lease = time.Duration(ms) * time.Millisecond
		return err
	})
}

// Elsewhere is the error of a statement on a database that the instance's Feed is not on. Connections to it are of no use.
func (l *Log) Elsewhere() error {
	l.db.Reset()
	return fmt.Errorf("%w: writes reach another database than the one that this server hears of changes from", postgres.ErrUnavailable)
}

// Head is the log's newest entry as it was read beside other rows.
type Head struct {
	Position
	Seq int64     // of the instance's newest heartbeat that the database knows of, 0 for none
	Now time.Time // the database's time

	held, readOnly bool
}

// QueueHead queues the reading of the head, for the instance with this id. known is a position that the database must hold, of which the
// zero value asks nothing.
func QueueHead(b *pgx.Batch, known Position, id uuid.UUID, into *Head) {
	b.Queue(`
		SELECT position, entry, EXISTS (SELECT FROM changes WHERE position = $1 AND entry = $2),
		       coalesce((SELECT seq FROM instances WHERE id = $3), 0),
		       current_setting('transaction_read_only') = 'on', now()
		FROM change_head
		WHERE single = 1`, known.Number, postgres.UUID(known.Entry), postgres.NullableUUID(id)).QueryRow(func(row pgx.Row) error {
		err := row.Scan(&into.Number, &into.Entry, &into.held, &into.Seq, &into.readOnly, &into.Now)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoHead
		}
		return err
	})
}

var errReadOnly = fmt.Errorf("%w: it is read-only, a standby perhaps", postgres.ErrUnavailable)

// Check returns ErrOtherLog where the database does not hold the position that was known, or does not show the heartbeat that this instance
// follows, of which the zero value asks nothing; and an ErrUnavailable where the database only reads.
//
// SECURITY: a server that was failed over and still answers knows nothing of what was revoked since. A standby, or a primary that was made
// read-only, is not the one that revocations are written to.
func (h Head) Check(known Position, w Witness) error {
	switch {
	case h.readOnly:
		return errReadOnly
	case known != (Position{}) && !h.held, h.Seq < w.Seq:
		return ErrOtherLog
	}
	return nil
}
