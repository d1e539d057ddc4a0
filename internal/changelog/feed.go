package changelog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
)

// Feed is an instance's own connection to the log of changes. It is not safe for concurrent use.
type Feed struct {
	log    *Log
	anchor *postgres.Anchor
}

// ErrOutdated means that a newer version of the schema shuts this program out. It is a postgres.ErrUnavailable.
var ErrOutdated = fmt.Errorf("%w: its schema needs a newer version of this program", postgres.ErrUnavailable)

// OpenFeed connects, and asks to be told of changes. Being told is a hint: behind a pooler in transaction mode nothing comes. It is the
// DB's Anchor.
func (l *Log) OpenFeed(ctx context.Context) (*Feed, error) {
	anchor, err := l.db.Anchor(ctx)
	if err != nil {
		return nil, postgres.Translate("connecting to the log of changes", err)
	}
	if !anchor.Pooled {
		if _, err := anchor.Conn().Exec(ctx, `LISTEN accesskeys_changes`); err != nil {
			anchor.Close()
			return nil, postgres.Translate("listening for changes", err)
		}
	}
	return &Feed{log: l, anchor: anchor}, nil
}

// Close closes the connection.
func (f *Feed) Close() { f.anchor.Close() }

// Conn is the Feed's own connection, for what is to be read from the same server.
func (f *Feed) Conn() *pgx.Conn { return f.anchor.Conn() }

// Wait returns when a change is notified or ctx ends, with an error only where the connection is lost.
func (f *Feed) Wait(ctx context.Context) error {
	return postgres.Translate("waiting for changes", f.anchor.WaitForNotification(ctx))
}

// Batch is what the log says.
type Batch struct {
	// Continues is false where the database doesn't hold the position that was asked from: whatever was known may have
	// changed. Changes is empty then.
	Continues bool
	Changes   []Change // in order, without a gap up to Head
	Head      Position
	Now       time.Time // the database's time at the reading
	Seq       int64     // of the reader's newest heartbeat that the database knows of, 0 for none
	// Epoch is what no dump carries and no standby shares: where it changes, the database is another one, or was put back.
	Epoch string
	// WentBack says that the database once held the position that was asked from, and doesn't any more.
	WentBack bool
}

// ReadSince reads what the log holds after a position, for the instance with this id. It returns ErrOutdated where this program must
// not go on.
func (f *Feed) ReadSince(ctx context.Context, id uuid.UUID, known Position) (Batch, error) {
	// One statement: behind a pooler, two could be answered by two servers. A bytea in text would depend on bytea_output.
	rows, err := f.anchor.Conn().Query(ctx, `
		SELECT h.position, h.entry, h.oldest_version,
		       now(), coalesce((SELECT seq FROM instances WHERE id = $3), 0), k.position IS NOT NULL,
		       h.position < $1 OR EXISTS (SELECT FROM changes WHERE position = $1 AND entry <> $2),
		       concat_ws(' ', (SELECT system_identifier FROM pg_control_system()),
		           (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
		           (SELECT string_agg(to_regclass(t)::oid || '/' || pg_relation_filenode(to_regclass(t)), ' ')
		            FROM unnest(ARRAY['change_head', 'changes', 'instances', 'customers', 'agents', 'accesskeys', 'service_accounts',
		                'service_account_keys']) t)),
		       c.position, c.entry, c.noun,
		       CASE WHEN c.subjects IS NOT NULL THEN ARRAY(SELECT encode(s, 'hex') FROM unnest(c.subjects) s) END
		FROM change_head h
		LEFT JOIN changes k ON k.position = $1 AND k.entry = $2
		LEFT JOIN changes c ON c.position > k.position
		WHERE h.single = 1 -- for the planner, which else takes it for 1,000 rows, and compiles this for half a second
		ORDER BY c.position`, known.Number, known.Entry, id)
	if err != nil {
		return Batch{}, postgres.Translate("reading the log of changes", err)
	}
	var news Batch
	var oldest int
	var number *int64
	var entry *uuid.UUID
	var noun *string
	var subjects []string
	_, err = pgx.ForEachRow(rows, []any{
		&news.Head.Number, &news.Head.Entry, &oldest, &news.Now, &news.Seq, &news.Continues, &news.WentBack, &news.Epoch,
		&number, &entry, &noun, &subjects,
	}, func() error {
		if number == nil {
			return nil
		}
		change := Change{Position: Position{Number: *number, Entry: *entry}, Noun: Noun(*noun)}
		if subjects != nil { // which is not the same as none
			change.Subjects = make([][]byte, 0, len(subjects))
		}
		for _, text := range subjects {
			subject, err := hex.DecodeString(text)
			if err != nil {
				return err
			}
			change.Subjects = append(change.Subjects, subject)
		}
		news.Changes = append(news.Changes, change)
		subjects = nil
		return nil
	})
	switch {
	case err != nil:
		return news, postgres.Translate("reading the log of changes", err)
	case news.Head == (Position{}):
		return news, ErrNoHead
	case oldest > f.log.db.Newest():
		return news, ErrOutdated
	}
	if news.Head.Number-known.Number != int64(len(news.Changes)) {
		news.Continues, news.Changes = false, nil
	}
	news.WentBack = news.WentBack && known != (Position{})
	return news, nil
}

// Beat is what an instance says of itself.
type Beat struct {
	ID      uuid.UUID     // of the process
	Seq     int64         // no two beats of a process have the same
	Lease   time.Duration // as configured
	Applied Position
}

// ErrRowLocked means that somebody holds the instance's row: a session of its own perhaps, that hangs. It needs another id.
var ErrRowLocked = fmt.Errorf("%w: somebody holds this server's row in instances", postgres.ErrUnavailable)

// Heartbeat commits that an instance lives and has applied the log up to a position, and returns true. It returns false where
// the database doesn't hold the position: the log has to be read again. It returns ErrRowLocked and ErrOutdated.
//
// Only a primary can commit, and under synchronous replication only one that its standby still follows: one that was
// failed over gets no further than postgres.ErrUnavailable.
func (f *Feed) Heartbeat(ctx context.Context, b Beat) (held bool, err error) {
	f.log.begunBeats.Store(b.Seq)
	err = f.anchor.WithDurableCommit(func(conn *pgx.Conn) error {
		err := postgres.InOneBatch(ctx, conn, func(batch *pgx.Batch) {
			batch.Queue(`
				UPDATE instances
				SET seq = $4, position = $2, entry = $3, tm_heartbeat = now()
				WHERE id = (SELECT id FROM instances WHERE id = $1 FOR UPDATE SKIP LOCKED)
				  AND EXISTS (SELECT FROM changes WHERE position = $2 AND entry = $3)
				  AND (SELECT oldest_version FROM change_head WHERE single = 1) <= $5`,
				b.ID, b.Applied.Number, b.Applied.Entry, b.Seq, f.log.db.Newest()).Exec(func(tag postgres.CommandTag) error {
				held = tag.RowsAffected() == 1
				return nil
			})
		})
		if err != nil || held {
			return err
		}
		held, err = f.register(ctx, conn, b)
		return err
	})
	return held && err == nil, postgres.Translate("committing a heartbeat", err)
}

// Follows says that the instance has applied what the log held after a heartbeat, read from a server that shows it. From then on every
// other connection has to lead to a database that shows this heartbeat as well.
//
// SECURITY: not before. A heartbeat may be the first word that reaches another server, while the lease is still from the one before.
func (f *Feed) Follows(b Beat) { f.log.witness.Store(&Witness{ID: b.ID, Seq: b.Seq}) }

// register adds an instance that is new, or was taken for dead. It holds the lock on the head, which every change takes: a
// change that is committed before waits for no longer than the leases of its time, and one after sees this one's.
// The number of the beat goes on where it was: who saw an earlier one, and was slow to remove the row, doesn't remove this.
func (f *Feed) register(ctx context.Context, conn *pgx.Conn, b Beat) (held bool, err error) {
	var oldest int
	var exists bool
	err = postgres.InOneBatch(ctx, conn, func(batch *pgx.Batch) {
		batch.Queue(`SELECT oldest_version FROM change_head WHERE single = 1 FOR UPDATE`).QueryRow(func(row pgx.Row) error {
			return row.Scan(&oldest)
		})
		batch.Queue(`
			INSERT INTO instances (id, seq, lease_ms, position, entry)
			SELECT $1, $5, $2, c.position, c.entry
			FROM changes c, change_head h
			WHERE c.position = $3 AND c.entry = $4 AND h.single = 1 AND h.oldest_version <= $6
			ON CONFLICT (id) DO NOTHING`,
			b.ID, b.Lease.Milliseconds(), b.Applied.Number, b.Applied.Entry, b.Seq, f.log.db.Newest()).Exec(func(tag postgres.CommandTag) error {
			held = tag.RowsAffected() == 1
			return nil
		})
		batch.Queue(`
			SELECT EXISTS (SELECT FROM instances WHERE id = $1) AND EXISTS (SELECT FROM changes WHERE position = $2 AND entry = $3)`,
			b.ID, b.Applied.Number, b.Applied.Entry).QueryRow(func(row pgx.Row) error {
			return row.Scan(&exists)
		})
		batch.Queue(`UPDATE change_head SET lease_ms = coalesce((SELECT max(lease_ms) FROM instances), 0) WHERE single = 1`)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, ErrNoHead
	case err != nil:
		return false, err
	case held:
		return true, nil
	case oldest > f.log.db.Newest():
		return false, ErrOutdated
	case exists:
		return false, ErrRowLocked
	default:
		return false, nil
	}
}

// newestNumber is the highest that the database knows of, 0 for none.
const newestNumber = `coalesce(greatest((SELECT max(position) FROM changes), (SELECT max(position) FROM instances)), 0)`

// Heal makes a log whole that lacks its head, or whose newest entry is missing: somebody has emptied one of its tables. What
// was in it nobody can know any more, so that everybody forgets everything.
//
// The numbers go on behind every one that is known to have been in use.
func (f *Feed) Heal(ctx context.Context, longestLease time.Duration) error {
	err := f.anchor.WithDurableCommit(func(conn *pgx.Conn) error {
		return postgres.InOneBatch(ctx, conn, func(batch *pgx.Batch) {
			batch.Queue(`LOCK TABLE change_head IN SHARE ROW EXCLUSIVE MODE`)
			batch.Queue(`
				INSERT INTO change_head (position, entry, lease_ms, oldest_version)
				VALUES (`+newestNumber+`, gen_random_uuid(), $1, $2)
				ON CONFLICT DO NOTHING`, longestLease.Milliseconds(), f.log.db.Newest())
			batch.Queue(`
				UPDATE change_head SET position = greatest(position, ` + newestNumber + `)
				WHERE single = 1`)
			batch.Queue(`
				SELECT append_change('', NULL, NULL)
				WHERE NOT EXISTS (SELECT FROM change_head h JOIN changes c ON c.position = h.position AND c.entry = h.entry)`)
		})
	})
	return postgres.Translate("healing the log of changes", err)
}
