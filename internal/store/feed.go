package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Feed is a replica's own connection to the log of changes. It is not safe for concurrent use.
type Feed struct {
	store *Store
	conn  *pgx.Conn
}

// OpenFeed connects, and asks to be told of changes. Being told is a hint: behind a pooler in transaction mode, which DATABASE_URL's
// default_query_exec_mode gives away, nothing comes. Where there was a Feed
// before, the database was lost, and the Store's other connections are replaced too.
func (s *Store) OpenFeed(ctx context.Context) (*Feed, error) {
	cfg := s.pool().Config().ConnConfig
	pooled := cfg.DefaultQueryExecMode == pgx.QueryExecModeExec || cfg.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol
	// Works behind every kind of pooler, which may give each transaction another server connection.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	several, before := len(hostsOf(&cfg.Config)) > 1, s.host.Load()
	chosen, err := chooseHost(ctx, &cfg.Config, before)
	if err != nil {
		return nil, translate("connecting to the log of changes", err)
	}
	chosen.use(&cfg.Config)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, translate("connecting to the log of changes", err)
	}
	s.host.Store(&chosen)
	if before != nil || several { // else the pool has nothing but what this is too
		if err := s.renewPool(); err != nil {
			closeConn(conn)
			return nil, err
		}
	}
	f := &Feed{store: s, conn: conn}
	if pooled { // DATABASE_URL has been told so: a LISTEN would stay with a server connection, whoever gets that next
		return f, nil
	}
	if _, err := conn.Exec(ctx, `LISTEN accesskeys_changes`); err != nil {
		f.Close()
		return nil, translate("listening for changes", err)
	}
	return f, nil
}

// Close closes the connection.
func (f *Feed) Close() { closeConn(f.conn) }

// Wait returns when a change is notified or ctx ends, with an error only where the connection is lost.
func (f *Feed) Wait(ctx context.Context) error {
	if _, err := f.conn.WaitForNotification(ctx); err != nil && !pgconn.Timeout(err) && ctx.Err() == nil {
		return translate("waiting for changes", err)
	}
	if f.conn.IsClosed() {
		return fmt.Errorf("waiting for changes: the connection was lost: %w", ErrUnavailable)
	}
	return nil
}

// News is what the log says.
type News struct {
	// Continues is false where the database doesn't hold the position that was asked from: whatever was known may have
	// changed. Changes is empty then.
	Continues bool
	Changes   []Change // in order, without a gap up to Head
	Head      Position
	Now       time.Time // the database's time at the reading
	Seq       int64     // of the reader's newest heartbeat that the database knows of, 0 for none
}

// Since reads what the log holds after a position, for the replica with this id.
func (f *Feed) Since(ctx context.Context, id uuid.UUID, known Position) (News, error) {
	// One statement: behind a pooler, two could be answered by two servers.
	rows, err := f.conn.Query(ctx, `
		SELECT h.position, h.entry, now(), coalesce((SELECT seq FROM replicas WHERE id = $3), 0), k.position IS NOT NULL,
		       c.position, c.entry, c.noun, c.subjects
		FROM change_head h
		LEFT JOIN changes k ON k.position = $1 AND k.entry = $2
		LEFT JOIN changes c ON c.position > k.position
		WHERE h.single = 1 -- for the planner, which else takes it for 1,000 rows, and compiles this for half a second
		ORDER BY c.position`, known.Number, known.Entry, id)
	if err != nil {
		return News{}, translate("reading the log of changes", err)
	}
	var news News
	var number *int64
	var entry *uuid.UUID
	var noun *string
	var subjects [][]byte
	_, err = pgx.ForEachRow(rows, []any{
		&news.Head.Number, &news.Head.Entry, &news.Now, &news.Seq, &news.Continues, &number, &entry, &noun, &subjects,
	}, func() error {
		if number != nil {
			news.Changes = append(news.Changes, Change{
				Position: Position{Number: *number, Entry: *entry}, Noun: Noun(*noun), Subjects: subjects,
			})
		}
		subjects = nil
		return nil
	})
	if err == nil && news.Head == (Position{}) {
		err = pgx.ErrTooManyRows // no head: not a database of ours
	}
	if news.Head.Number-known.Number != int64(len(news.Changes)) {
		news.Continues, news.Changes = false, nil
	}
	return news, translate("reading the log of changes", err)
}

// Beat is what a replica says of itself.
type Beat struct {
	ID      uuid.UUID     // of the process
	Seq     int64         // no two beats of a process have the same
	Lease   time.Duration // as configured
	Applied Position
}

// Heartbeat commits that a replica lives and has applied the log up to a position, and returns true. It returns false where
// the database doesn't hold the position: the log has to be read again.
//
// Only a primary can commit, and under synchronous replication only one that its standby still follows: whoever was
// failed over gets no further than ErrUnavailable.
func (f *Feed) Heartbeat(ctx context.Context, b Beat) (held bool, err error) {
	err = onConn(f.conn, func(conn *pgx.Conn) error {
		err := atOnce(ctx, conn, func(batch *pgx.Batch) {
			batch.Queue(`
				UPDATE replicas
				SET seq = $4, position = $2, tm_heartbeat = now()
				WHERE id = $1 AND EXISTS (SELECT FROM changes WHERE position = $2 AND entry = $3)`,
				b.ID, b.Applied.Number, b.Applied.Entry, b.Seq).Exec(func(tag pgconn.CommandTag) error {
				held = tag.RowsAffected() == 1
				return nil
			})
		})
		if err != nil || held {
			return err
		}
		held, err = register(ctx, conn, b)
		return err
	})
	return held && err == nil, translate("committing a heartbeat", err)
}

// register adds a replica that is new, or was taken for dead. It holds the lock on the head, which every change takes: a
// change that is committed before waits for no longer than the leases of its time, and one after sees this one's.
// The number of the beat goes on where it was: who saw an earlier one, and was slow to remove the row, doesn't remove this.
func register(ctx context.Context, conn *pgx.Conn, b Beat) (held bool, err error) {
	err = atOnce(ctx, conn, func(batch *pgx.Batch) {
		batch.Queue(`SELECT FROM change_head WHERE single = 1 FOR UPDATE`)
		batch.Queue(`
			INSERT INTO replicas (id, seq, lease_ms, position)
			SELECT $1, $5, $2, position FROM changes WHERE position = $3 AND entry = $4
			ON CONFLICT (id) DO NOTHING`,
			b.ID, b.Lease.Milliseconds(), b.Applied.Number, b.Applied.Entry, b.Seq).Exec(func(tag pgconn.CommandTag) error {
			held = tag.RowsAffected() == 1
			return nil
		})
		batch.Queue(`UPDATE change_head SET lease_ms = coalesce((SELECT max(lease_ms) FROM replicas), 0) WHERE single = 1`)
	})
	return held, err
}

// Registered is a replica in the list.
type Registered struct {
	ID    uuid.UUID
	Seq   int64 // moves with each heartbeat
	Lease time.Duration
}

// Replicas returns the list of replicas.
func (f *Feed) Replicas(ctx context.Context) ([]Registered, error) {
	rows, err := f.conn.Query(ctx, `SELECT id, seq, lease_ms * interval '1 millisecond' FROM replicas`)
	if err != nil {
		return nil, translate("reading the replicas", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Registered])
	return all, translate("reading the replicas", err)
}

// Unregister removes a replica whose lease has ended, unless it has had a heartbeat since the one with this number.
func (f *Feed) Unregister(ctx context.Context, id uuid.UUID, seq int64) error {
	_, err := f.conn.Exec(ctx, `DELETE FROM replicas WHERE id = $1 AND seq = $2`, id, seq)
	return translate("removing a replica", err)
}

// Leave removes a replica that has given up its lease.
func (f *Feed) Leave(ctx context.Context, id uuid.UUID) error {
	_, err := f.conn.Exec(ctx, `DELETE FROM replicas WHERE id = $1`, id)
	return translate("leaving the replicas", err)
}
