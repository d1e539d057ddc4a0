package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
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
	Now                time.Time          // the database's time
	Head               changelog.Position // the newest of the log; see Order
	Seq                int64              // of this instance's newest heartbeat that the database knows of, 0 for none
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
// returns changelog.ErrOtherLog, and never a row, where the database's log doesn't hold the position known, of which the zero value asks
// nothing, or doesn't show the heartbeat that this server follows; and ErrUnavailable where the database only reads.
func (s *Store) Lookup(ctx context.Context, l Lookup, known changelog.Position, order Order) (found Found, err error) {
	var w changelog.Witness
	if known != (changelog.Position{}) {
		w = s.Log.Witness()
	}
	err = s.DB.WithConn(ctx, func(conn *pgx.Conn) error {
		found, err = lookup(ctx, conn, l, known, w, order)
		return err
	})
	return found, s.failed("looking credentials up", err)
}

// LookupByFeed is Lookup over the Feed's own connection, for the instance with this id. The log's head is read first.
func LookupByFeed(ctx context.Context, f *changelog.Feed, l Lookup, known changelog.Position, id uuid.UUID) (Found, error) {
	found, err := lookup(ctx, f.Conn(), l, known, changelog.Witness{ID: id}, HeadFirst)
	return found, postgres.Translate("looking credentials up", err)
}

func lookup(
	ctx context.Context, conn *pgx.Conn, l Lookup, known changelog.Position, w changelog.Witness, order Order,
) (f Found, err error) {
	var head changelog.Head
	var batch pgx.Batch
	if order == HeadFirst {
		changelog.QueueHead(&batch, known, w.ID, &head)
	}
	l.queue(&batch, &f)
	if order == HeadLast {
		changelog.QueueHead(&batch, known, w.ID, &head)
	}
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return Found{}, err
	}
	if err := head.Check(known, w); err != nil {
		return Found{}, err
	}
	f.Now, f.Head, f.Seq = head.Now, head.Position, head.Seq
	f.stamp()
	return f, nil
}

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
		}, agentsByID, postgres.UUIDs(l.Agents))
	}
	if len(l.ServiceAccountKeys) > 0 {
		f.ServiceAccountKeys = make(map[uuid.UUID]ServiceAccountCredential, len(l.ServiceAccountKeys))
		queueEach(b, func(row pgx.CollectableRow) error {
			c, err := scanServiceAccountKey(row)
			f.ServiceAccountKeys[c.Key.ID] = c
			return err
		}, serviceAccountKeysByID, postgres.UUIDs(l.ServiceAccountKeys))
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
