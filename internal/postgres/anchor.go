package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Anchor is a connection of its own to the host that takes writes. The pool connects to no other host. It is not safe for concurrent use.
type Anchor struct {
	conn *pgx.Conn
	// Pooled says that there is a pooler in transaction mode in between, as DATABASE_URL's default_query_exec_mode says: a LISTEN would
	// stay with a server connection that others get next.
	Pooled bool
}

// Anchor connects. Where there was an Anchor before, the database was lost, and the pool's connections are replaced too.
//
// It comes before everything else that this process wants of the database: while there is none, the pool gives its connections back and
// takes no more than a few.
func (db *DB) Anchor(ctx context.Context) (*Anchor, error) {
	before := db.host.Load()
	db.unanchored.Store(true)
	if before != nil {
		db.Reset()
	}
	cfg := db.pool().Config().ConnConfig
	pooled := isPooled(cfg)
	// Works behind every kind of pooler, which may give each transaction another server connection.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	several := len(hostsOf(&cfg.Config)) > 1
	chosen, err := chooseHost(ctx, &cfg.Config, before)
	if err != nil {
		return nil, err
	}
	chosen.use(&cfg.Config)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a := &Anchor{conn: conn, Pooled: pooled}
	limit := 0
	if !pooled { // else the pooler shares the server's connections out
		if limit, err = a.connectionLimit(ctx); err != nil {
			a.Close()
			return nil, err
		}
	}
	db.connectionLimit.Store(int64(limit))
	db.host.Store(&chosen)
	db.unanchored.Store(false)
	if before != nil || several { // else the pool has nothing but what this is too
		if err := db.renewPool(0); err != nil {
			a.Close()
			return nil, err
		}
	}
	return a, nil
}

func isPooled(cfg *pgx.ConnConfig) bool {
	return cfg.DefaultQueryExecMode == pgx.QueryExecModeExec || cfg.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol
}

// connectionLimit is how many connections the server, the database and the role leave to programs like this one.
func (a *Anchor) connectionLimit(ctx context.Context) (limit int, err error) {
	err = a.conn.QueryRow(ctx, `
		SELECT min(l)::int
		FROM (
			SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
			       - coalesce(current_setting('reserved_connections', true)::int, 0) AS l
			UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database() AND datconnlimit > 0
			UNION ALL SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND rolconnlimit > 0
		) limits`).Scan(&limit)
	return limit, err
}

// Close closes the connection.
func (a *Anchor) Close() { closeConn(a.conn) }

// Conn is the connection itself.
func (a *Anchor) Conn() *pgx.Conn { return a.conn }

// WithDurableCommit runs do on the connection, and returns an error where what it committed may be lost in a failover.
func (a *Anchor) WithDurableCommit(do func(*pgx.Conn) error) error {
	return withDurableCommit(a.conn, do)
}

// WaitForNotification returns when something is notified or ctx ends, with an error only where the connection is lost.
func (a *Anchor) WaitForNotification(ctx context.Context) error {
	if _, err := a.conn.WaitForNotification(ctx); err != nil && !pgconn.Timeout(err) && ctx.Err() == nil {
		return err
	}
	if a.conn.IsClosed() {
		return fmt.Errorf("the connection was lost: %w", ErrUnavailable)
	}
	return nil
}
