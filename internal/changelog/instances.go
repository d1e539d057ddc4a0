package changelog

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
)

// Registered is an instance in the list.
type Registered struct {
	ID    uuid.UUID
	Seq   int64 // moves with each heartbeat
	Lease time.Duration
}

// Instances returns the list of instances.
func (l *Log) Instances(ctx context.Context) ([]Registered, error) {
	all, err := instances(ctx, l.db)
	return all, l.db.Failed("reading the instances", err)
}

// Instances is Log.Instances over the Feed's own connection.
func (f *Feed) Instances(ctx context.Context) ([]Registered, error) {
	all, err := instances(ctx, f.anchor.Conn())
	return all, postgres.Translate("reading the instances", err)
}

func instances(ctx context.Context, q postgres.Querier) ([]Registered, error) {
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
func (l *Log) Unregister(ctx context.Context, id uuid.UUID, seq int64) error {
	err := l.db.WithDurableCommit(ctx, func(conn *pgx.Conn) error { return unregister(ctx, conn, id, seq) })
	return l.db.Failed("removing an instance", err)
}

// Unregister is Log.Unregister over the Feed's own connection.
func (f *Feed) Unregister(ctx context.Context, id uuid.UUID, seq int64) error {
	err := f.anchor.WithDurableCommit(func(conn *pgx.Conn) error { return unregister(ctx, conn, id, seq) })
	return postgres.Translate("removing an instance", err)
}

func unregister(ctx context.Context, conn *pgx.Conn, id uuid.UUID, seq int64) error {
	return postgres.InOneBatch(ctx, conn, func(batch *pgx.Batch) {
		batch.Queue(`
			DELETE FROM instances
			WHERE id = (SELECT id FROM instances WHERE id = $1 AND seq = $2 FOR UPDATE SKIP LOCKED)`, id, seq)
	})
}

// Leave removes an instance that has given up its lease.
func (f *Feed) Leave(ctx context.Context, id uuid.UUID) error {
	err := f.anchor.WithDurableCommit(func(conn *pgx.Conn) error {
		return postgres.InOneBatch(ctx, conn, func(batch *pgx.Batch) { batch.Queue(`DELETE FROM instances WHERE id = $1`, id) })
	})
	return postgres.Translate("leaving the instances", err)
}

// Inspection is what is looked at from time to time.
type Inspection struct {
	// BrokenTriggers names those that are missing, or don't fire when they should.
	BrokenTriggers []string
	Outdated       bool // as ErrOutdated
	Elsewhere      bool // the pool reaches another database than the Feed
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
func (l *Log) Inspect(ctx context.Context) (i Inspection, err error) {
	w := l.Witness()
	var pid *int64
	var h Holder
	var since *time.Time
	var age *float64
	// Who waits for another has none of the head's lock yet. The query of a session is never read: it may hold a secret.
	err = l.db.QueryRow(ctx, `
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
		l.db.Newest(), postgres.NullableUUID(w.ID), w.Seq).Scan(&i.BrokenTriggers, &i.Outdated, &i.Elsewhere, &pid, &h.Application, &since, &age)
	if pid != nil {
		h.PID = *pid
		if since != nil && age != nil {
			h.Since, h.Age = *since, time.Duration(*age*float64(time.Second))
		}
		i.Holder = &h
	}
	return i, l.db.Failed("inspecting the database", err)
}
