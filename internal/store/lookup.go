package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Lookup names what verification reads: access keys by the hashes of their tokens, agents and service accounts' keys by id.
type Lookup struct {
	AccessKeys         []TokenHash
	Agents             []uuid.UUID
	ServiceAccountKeys []uuid.UUID
}

// Empty reports whether it names nothing.
func (l Lookup) Empty() bool { return len(l.AccessKeys)+len(l.Agents)+len(l.ServiceAccountKeys) == 0 }

// Found is what a Lookup found: what is not in it, the database does not have. Deleted rows are found like others.
type Found struct {
	Now                time.Time // the database's time
	Head               Position  // the newest of the log; see Order
	Seq                int64     // of this instance's newest heartbeat that the database knows of, 0 for none
	AccessKeys         map[TokenHash]AccessKeyCredential
	Agents             map[uuid.UUID]AgentCredential
	ServiceAccountKeys map[uuid.UUID]ServiceAccountCredential
}

// Order says whether the log's head is read before the rows, which then are at least as new, or after them, so that they are not
// newer.
type Order bool

// The orders.
const (
	HeadFirst Order = false
	HeadLast  Order = true
)

// Lookup reads credentials in one round trip. They are not limited to one customer: they are read to find out whose they are. It
// returns ErrOtherLog where the database's log doesn't hold the position known, of which the zero value asks nothing, or doesn't show
// the heartbeat that this server follows; and ErrUnavailable where the database only reads.
//
// SECURITY: a server that was failed over and still answers, but knows nothing of what was revoked since, gives ErrOtherLog here,
// and never a row. A standby, or a primary that was made read-only, is not the one that revocations are written to.
func (s *Store) Lookup(ctx context.Context, l Lookup, known Position, order Order) (Found, error) {
	var w witness
	if witness := s.witness.Load(); witness != nil && known != (Position{}) {
		w = *witness
	}
	conn, err := s.pool().Acquire(ctx)
	if err != nil {
		return Found{}, s.failed("looking credentials up", err)
	}
	defer conn.Release()
	found, err := lookup(ctx, conn.Conn(), l, known, w.id, order)
	if err == nil && found.Seq < w.seq {
		err = ErrOtherLog
	}
	return found, s.failed("looking credentials up", err)
}

// Lookup is Store.Lookup over the ChangeFeed's own connection, for the instance with this id. The log's head is read first.
func (f *ChangeFeed) Lookup(ctx context.Context, l Lookup, known Position, id uuid.UUID) (Found, error) {
	found, err := lookup(ctx, f.conn, l, known, id, HeadFirst)
	return found, translate("looking credentials up", err)
}

func lookup(ctx context.Context, conn *pgx.Conn, l Lookup, known Position, self uuid.UUID, order Order) (f Found, err error) {
	var held, readOnly bool
	var batch pgx.Batch
	head := func() {
		batch.Queue(`
			SELECT position, entry, EXISTS (SELECT FROM changes WHERE position = $1 AND entry = $2),
			       coalesce((SELECT seq FROM instances WHERE id = $3), 0),
			       current_setting('transaction_read_only') = 'on', now()
			FROM change_head
			WHERE single = 1`, known.Number, pgUUID(known.Entry), nullable(self)).QueryRow(func(row pgx.Row) error {
			return row.Scan(&f.Head.Number, &f.Head.Entry, &held, &f.Seq, &readOnly, &f.Now)
		})
	}
	if order == HeadFirst {
		head()
	}
	l.queue(&batch, &f)
	if order == HeadLast {
		head()
	}
	err = conn.SendBatch(ctx, &batch).Close()
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Found{}, ErrNoHead
	case err != nil:
		return Found{}, err
	case readOnly:
		return Found{}, errReadOnly
	case known != (Position{}) && !held:
		return Found{}, ErrOtherLog
	}
	f.stamp()
	return f, nil
}

var (
	errReadOnly = fmt.Errorf("%w: it is read-only, a standby perhaps", ErrUnavailable)
	// ErrNoHead means that somebody has emptied the log of changes. It is an ErrUnavailable.
	ErrNoHead = fmt.Errorf("%w: its log of changes has no head", ErrUnavailable)
)

// queue queues a query for each kind that is named.
func (l Lookup) queue(b *pgx.Batch, f *Found) {
	if len(l.AccessKeys) > 0 {
		f.AccessKeys = make(map[TokenHash]AccessKeyCredential, len(l.AccessKeys))
		hashes := make([][]byte, len(l.AccessKeys))
		for i := range l.AccessKeys {
			hashes[i] = l.AccessKeys[i][:]
		}
		queueEach(b, func(row pgx.CollectableRow) error {
			hash, c, err := scanAccessKey(row)
			f.AccessKeys[hash] = c
			return err
		}, accessKeysByHash, hashes)
	}
	if len(l.Agents) > 0 {
		f.Agents = make(map[uuid.UUID]AgentCredential, len(l.Agents))
		queueEach(b, func(row pgx.CollectableRow) error {
			c, err := scanAgent(row)
			f.Agents[c.ID] = c
			return err
		}, agentsByID, pgUUIDs(l.Agents))
	}
	if len(l.ServiceAccountKeys) > 0 {
		f.ServiceAccountKeys = make(map[uuid.UUID]ServiceAccountCredential, len(l.ServiceAccountKeys))
		queueEach(b, func(row pgx.CollectableRow) error {
			c, err := scanServiceAccountKey(row)
			f.ServiceAccountKeys[c.Key.ID] = c
			return err
		}, serviceAccountKeysByID, pgUUIDs(l.ServiceAccountKeys))
	}
}

func queueEach(b *pgx.Batch, scan func(pgx.CollectableRow) error, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// stamp gives each credential the time at which it was read.
func (f *Found) stamp() {
	for k, c := range f.AccessKeys {
		c.Now = f.Now
		f.AccessKeys[k] = c
	}
	for k, c := range f.Agents {
		c.Now = f.Now
		f.Agents[k] = c
	}
	for k, c := range f.ServiceAccountKeys {
		c.Now = f.Now
		f.ServiceAccountKeys[k] = c
	}
}
