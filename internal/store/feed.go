package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ChangeFeed is an instance's own connection to the log of changes. It is not safe for concurrent use.
type ChangeFeed struct {
	store *Store
	conn  *pgx.Conn
}

// ErrOutdated means that a newer version of the schema shuts this program out. It is an ErrUnavailable.
var ErrOutdated = fmt.Errorf("%w: its schema needs a newer version of this program", ErrUnavailable)

// OpenFeed connects, and asks to be told of changes. Being told is a hint: behind a pooler in transaction mode, which DATABASE_URL's
// default_query_exec_mode gives away, nothing comes. Where there was a ChangeFeed before, the database was lost, and the Store's other
// connections are replaced too.
//
// A ChangeFeed comes before everything else that this process wants of the database: while there is none, the pool gives its connections
// back and takes no more than a few.
func (s *Store) OpenFeed(ctx context.Context) (*ChangeFeed, error) {
	before := s.host.Load()
	s.feedless.Store(true)
	if before != nil {
		s.pool().Reset()
	}
	cfg := s.pool().Config().ConnConfig
	pooled := isPooled(cfg)
	// Works behind every kind of pooler, which may give each transaction another server connection.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	several := len(hostsOf(&cfg.Config)) > 1
	chosen, err := chooseHost(ctx, &cfg.Config, before)
	if err != nil {
		return nil, translate("connecting to the log of changes", err)
	}
	chosen.use(&cfg.Config)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, translate("connecting to the log of changes", err)
	}
	f := &ChangeFeed{store: s, conn: conn}
	limit := 0
	if !pooled { // else the pooler shares the server's connections out
		if limit, err = f.connectionLimit(ctx); err != nil {
			f.Close()
			return nil, err
		}
	}
	s.connectionLimit.Store(int64(limit))
	s.host.Store(&chosen)
	s.feedless.Store(false)
	if before != nil || several { // else the pool has nothing but what this is too
		if err := s.renewPool(0); err != nil {
			f.Close()
			return nil, err
		}
	}
	if pooled { // DATABASE_URL has been told so: a LISTEN would stay with a server connection, whoever gets that next
		return f, nil
	}
	if _, err := conn.Exec(ctx, `LISTEN accesskeys_changes`); err != nil {
		f.Close()
		return nil, translate("listening for changes", err)
	}
	return f, nil
}

func isPooled(cfg *pgx.ConnConfig) bool {
	return cfg.DefaultQueryExecMode == pgx.QueryExecModeExec || cfg.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol
}

// connectionLimit is how many connections the server, the database and the role leave to programs like this one.
func (f *ChangeFeed) connectionLimit(ctx context.Context) (limit int, err error) {
	err = f.conn.QueryRow(ctx, `
		SELECT min(l)::int
		FROM (
			SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
			       - coalesce(current_setting('reserved_connections', true)::int, 0) AS l
			UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database() AND datconnlimit > 0
			UNION ALL SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND rolconnlimit > 0
		) limits`).Scan(&limit)
	return limit, translate("reading how many connections there may be", err)
}

// Close closes the connection.
func (f *ChangeFeed) Close() { closeConn(f.conn) }

// Wait returns when a change is notified or ctx ends, with an error only where the connection is lost.
func (f *ChangeFeed) Wait(ctx context.Context) error {
	if _, err := f.conn.WaitForNotification(ctx); err != nil && !pgconn.Timeout(err) && ctx.Err() == nil {
		return translate("waiting for changes", err)
	}
	if f.conn.IsClosed() {
		return fmt.Errorf("waiting for changes: the connection was lost: %w", ErrUnavailable)
	}
	return nil
}

// ChangeBatch is what the log says.
type ChangeBatch struct {
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
func (f *ChangeFeed) ReadSince(ctx context.Context, id uuid.UUID, known Position) (ChangeBatch, error) {
	// One statement: behind a pooler, two could be answered by two servers. A bytea in text would depend on bytea_output.
	rows, err := f.conn.Query(ctx, `
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
		return ChangeBatch{}, translate("reading the log of changes", err)
	}
	var news ChangeBatch
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
		return news, translate("reading the log of changes", err)
	case news.Head == (Position{}):
		return news, ErrNoHead
	case oldest > f.store.version:
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
var ErrRowLocked = fmt.Errorf("%w: somebody holds this server's row in instances", ErrUnavailable)

// Heartbeat commits that an instance lives and has applied the log up to a position, and returns true. It returns false where
// the database doesn't hold the position: the log has to be read again. It returns ErrRowLocked and ErrOutdated.
//
// Only a primary can commit, and under synchronous replication only one that its standby still follows: whoever was
// failed over gets no further than ErrUnavailable.
func (f *ChangeFeed) Heartbeat(ctx context.Context, b Beat) (held bool, err error) {
	f.store.begunBeats.Store(b.Seq)
	err = onConn(f.conn, func(conn *pgx.Conn) error {
		err := inOneBatch(ctx, conn, func(batch *pgx.Batch) {
			batch.Queue(`
				UPDATE instances
				SET seq = $4, position = $2, entry = $3, tm_heartbeat = now()
				WHERE id = (SELECT id FROM instances WHERE id = $1 FOR UPDATE SKIP LOCKED)
				  AND EXISTS (SELECT FROM changes WHERE position = $2 AND entry = $3)
				  AND (SELECT oldest_version FROM change_head WHERE single = 1) <= $5`,
				b.ID, b.Applied.Number, b.Applied.Entry, b.Seq, f.store.version).Exec(func(tag pgconn.CommandTag) error {
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
	return held && err == nil, translate("committing a heartbeat", err)
}

// Follows says that the instance has applied what the log held after a heartbeat, read from a server that shows it. From then on every
// other connection has to lead to a database that shows this heartbeat as well.
//
// SECURITY: not before. A heartbeat may be the first word that reaches another server, while the lease is still from the one before.
func (f *ChangeFeed) Follows(b Beat) { f.store.witness.Store(&witness{id: b.ID, seq: b.Seq}) }

// register adds an instance that is new, or was taken for dead. It holds the lock on the head, which every change takes: a
// change that is committed before waits for no longer than the leases of its time, and one after sees this one's.
// The number of the beat goes on where it was: who saw an earlier one, and was slow to remove the row, doesn't remove this.
func (f *ChangeFeed) register(ctx context.Context, conn *pgx.Conn, b Beat) (held bool, err error) {
	var oldest int
	var exists bool
	err = inOneBatch(ctx, conn, func(batch *pgx.Batch) {
		batch.Queue(`SELECT oldest_version FROM change_head WHERE single = 1 FOR UPDATE`).QueryRow(func(row pgx.Row) error {
			return row.Scan(&oldest)
		})
		batch.Queue(`
			INSERT INTO instances (id, seq, lease_ms, position, entry)
			SELECT $1, $5, $2, c.position, c.entry
			FROM changes c, change_head h
			WHERE c.position = $3 AND c.entry = $4 AND h.single = 1 AND h.oldest_version <= $6
			ON CONFLICT (id) DO NOTHING`,
			b.ID, b.Lease.Milliseconds(), b.Applied.Number, b.Applied.Entry, b.Seq, f.store.version).Exec(func(tag pgconn.CommandTag) error {
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
	case oldest > f.store.version:
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
func (f *ChangeFeed) Heal(ctx context.Context, longestLease time.Duration) error {
	err := onConn(f.conn, func(conn *pgx.Conn) error {
		return inOneBatch(ctx, conn, func(batch *pgx.Batch) {
			batch.Queue(`LOCK TABLE change_head IN SHARE ROW EXCLUSIVE MODE`)
			batch.Queue(`
				INSERT INTO change_head (position, entry, lease_ms, oldest_version)
				VALUES (`+newestNumber+`, gen_random_uuid(), $1, $2)
				ON CONFLICT DO NOTHING`, longestLease.Milliseconds(), f.store.version)
			batch.Queue(`
				UPDATE change_head SET position = greatest(position, ` + newestNumber + `)
				WHERE single = 1`)
			batch.Queue(`
				SELECT append_change('', NULL, NULL)
				WHERE NOT EXISTS (SELECT FROM change_head h JOIN changes c ON c.position = h.position AND c.entry = h.entry)`)
		})
	})
	return translate("healing the log of changes", err)
}

// Registered is an instance in the list.
type Registered struct {
	ID    uuid.UUID
	Seq   int64 // moves with each heartbeat
	Lease time.Duration
}

// Instances returns the list of instances.
func (s *Store) Instances(ctx context.Context) ([]Registered, error) {
	all, err := instances(ctx, s.pool())
	return all, s.failed("reading the instances", err)
}

// Instances is Store.Instances over the ChangeFeed's own connection.
func (f *ChangeFeed) Instances(ctx context.Context) ([]Registered, error) {
	all, err := instances(ctx, f.conn)
	return all, translate("reading the instances", err)
}

func instances(ctx context.Context, q querier) ([]Registered, error) {
	rows, err := q.Query(ctx, `SELECT id, seq, lease_ms FROM instances`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Registered, err error) {
		var ms int64
		err = row.Scan(&r.ID, &r.Seq, &ms)
		r.Lease = time.Duration(ms) * time.Millisecond
		return r, err
	})
}

// Unregister removes an instance whose lease has ended, unless it has had a heartbeat since the one with this number, or is about to:
// a row that somebody holds is left alone.
func (s *Store) Unregister(ctx context.Context, id uuid.UUID, seq int64) error {
	err := s.withDurableCommit(ctx, func(conn *pgx.Conn) error { return unregister(ctx, conn, id, seq) })
	return s.failed("removing an instance", err)
}

// Unregister is Store.Unregister over the ChangeFeed's own connection.
func (f *ChangeFeed) Unregister(ctx context.Context, id uuid.UUID, seq int64) error {
	err := onConn(f.conn, func(conn *pgx.Conn) error { return unregister(ctx, conn, id, seq) })
	return translate("removing an instance", err)
}

func unregister(ctx context.Context, conn *pgx.Conn, id uuid.UUID, seq int64) error {
	return inOneBatch(ctx, conn, func(batch *pgx.Batch) {
		batch.Queue(`
			DELETE FROM instances
			WHERE id = (SELECT id FROM instances WHERE id = $1 AND seq = $2 FOR UPDATE SKIP LOCKED)`, id, seq)
	})
}

// Leave removes an instance that has given up its lease.
func (f *ChangeFeed) Leave(ctx context.Context, id uuid.UUID) error {
	err := onConn(f.conn, func(conn *pgx.Conn) error {
		return inOneBatch(ctx, conn, func(batch *pgx.Batch) { batch.Queue(`DELETE FROM instances WHERE id = $1`, id) })
	})
	return translate("leaving the instances", err)
}

// Inspection is what is looked at from time to time.
type Inspection struct {
	// BrokenTriggers names those that are missing, or don't fire when they should.
	BrokenTriggers []string
	Outdated       bool // as ErrOutdated
	Elsewhere      bool // the pool reaches another database than the ChangeFeed
	Holder         *Holder
}

// Holder is a transaction that has kept the head of the log for more than a second. Until it ends nothing can be revoked.
type Holder struct {
	PID         int64 // of its session, 0 for a prepared transaction
	Application string
	Since       time.Time // its begin by the database's clock, zero where the role may not see it
	Age         time.Duration
}

// Inspect looks, by the pool, at what people can have changed.
func (s *Store) Inspect(ctx context.Context) (i Inspection, err error) {
	var w witness
	if witness := s.witness.Load(); witness != nil {
		w = *witness
	}
	var pid *int64
	var h Holder
	var since *time.Time
	var age *float64
	// Who waits for another has none of the head's lock yet. The query of a session is never read: it may hold a secret.
	err = s.pool().QueryRow(ctx, `
		SELECT ARRAY(SELECT broken_triggers() ORDER BY 1), coalesce((SELECT oldest_version FROM change_head WHERE single = 1), 0) > $1,
		       $2::uuid IS NOT NULL AND NOT EXISTS (SELECT FROM instances WHERE id = $2 AND seq >= $3),
		       holder.pid, coalesce(holder.application_name, ''), holder.xact_start, extract(epoch FROM now() - holder.xact_start)::float8
		FROM (SELECT) AS one
		LEFT JOIN LATERAL (
			SELECT coalesce(l.pid, 0)::bigint AS pid, a.application_name, a.xact_start
			FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
			WHERE l.locktype = 'relation' AND l.relation = 'change_head'::regclass AND l.granted
			  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			  AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
			  AND NOT EXISTS (SELECT FROM pg_locks waiting WHERE waiting.pid = l.pid AND NOT waiting.granted)
			  AND coalesce(a.xact_start < now() - interval '1 second', true)
			ORDER BY a.xact_start
			LIMIT 1) AS holder ON true`,
		s.version, nullable(w.id), w.seq).Scan(&i.BrokenTriggers, &i.Outdated, &i.Elsewhere, &pid, &h.Application, &since, &age)
	if pid != nil {
		h.PID = *pid
		if since != nil && age != nil {
			h.Since, h.Age = *since, time.Duration(*age*float64(time.Second))
		}
		i.Holder = &h
	}
	return i, s.failed("inspecting the database", err)
}
