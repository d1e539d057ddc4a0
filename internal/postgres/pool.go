// Package postgres connects to the database: a pool that finds the host which takes writes, transactions whose commits are durable, the
// driver's errors, and the schema's migrations. It knows no table of the service but by its migrations.
//
// What returns an error returns ErrNotFound where there is no such row, a *ConstraintError where the schema refuses a row, and otherwise an
// error that is ErrUnavailable: the database could not answer, or its answer is not known. Exceptions say so.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/secret"
	"accesskeys/migrations"
)

const (
	// connectTimeout bounds one attempt to reach the database where DATABASE_URL has no connect_timeout of its own. It
	// must leave a request time for its 503 (contract, section 5: within 5 s).
	connectTimeout = 3 * time.Second
	// maxConns is the size of the pool where DATABASE_URL has no pool_max_conns. Commits that wait for the disk together cost
	// little more than one: with the library's four connections, half of the writes a disk could take are left undone.
	maxConns = 16
	// unanchoredConns is how many connections the pool may have while there is no anchor.
	unanchoredConns = 2
	// pingTimeout bounds the check of a connection that was idle, which a silent network would stretch for minutes.
	pingTimeout = time.Second
)

var errUnanchored = fmt.Errorf("%w: there is no connection to its log of changes yet", ErrUnavailable)

// errAddress stands for the driver's error about an address. SECURITY: that one quotes the address and blanks only what it
// recognises as the password, which "password = x" and an escaped space are not.
var errAddress = errors.New("the database's address is neither a postgres:// URL nor a keyword/value string, " +
	"or a setting in it is not understood")

// DB is a pool of connections to one database. It is safe for concurrent use.
type DB struct {
	newest int // migration that this program knows

	current  atomic.Pointer[pgxpool.Pool] // pool returns it
	renewing sync.Mutex                   // held while current is replaced
	closed   bool                         // under renewing
	retired  sync.WaitGroup               // of pools that renewPool has replaced
	mostConn int32                        // that the pool may have, however many there is room for
	// chosenSize says that DATABASE_URL has the size of the pool: somebody has counted.
	chosenSize bool

	host            atomic.Pointer[host] // that of the last anchor, nil before the first
	unanchored      atomic.Bool          // there is no anchor, and one is being connected
	connectionLimit atomic.Int64         // of the server, 0 where it is not known
}

// Open makes a DB of the database at url, a postgres:// URL or a keyword/value string with pgx's pool_* settings. It does not connect:
// Ready tells whether the database is there.
func Open(ctx context.Context, url secret.Value) (*DB, error) { return OpenTraced(ctx, url, nil) }

// OpenTraced is Open with a tracer that is told of every statement of the pool.
func OpenTraced(ctx context.Context, url secret.Value, tracer pgx.QueryTracer) (*DB, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.Tracer = tracer
	version, err := newestMigration(migrations.Files)
	if err != nil {
		return nil, err
	}
	db := &DB{newest: version, mostConn: cfg.MaxConns, chosenSize: poolSizeChosen(url)}
	cfg.BeforeConnect = db.beforeConnect
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the pool: %w", err)
	}
	db.current.Store(pool)
	return db, nil
}

// beforeConnect has the pool connect to the host of the anchor. A primary that was failed over and lives says that it takes writes as well;
// the anchor is the connection that finds out, because its commits are confirmed there no more.
//
// While there is no anchor, nothing that a connection could read would count. So there are few, and the anchor finds room.
func (db *DB) beforeConnect(ctx context.Context, cfg *pgx.ConnConfig) error {
	if db.unanchored.Load() && db.pool().Stat().TotalConns() > unanchoredConns {
		return errUnanchored
	}
	chosen := db.host.Load()
	if chosen == nil {
		found, err := chooseHost(ctx, &cfg.Config, nil)
		if err != nil {
			return err
		}
		chosen = &found
	}
	chosen.use(&cfg.Config)
	return nil
}

// CheckURL returns an error where Open would not take the address. The error does not repeat it.
func CheckURL(url secret.Value) error {
	_, err := poolConfig(url)
	return err
}

// poolConfig reads an address, and adds what every connection of ours has, pooled or not.
func poolConfig(url secret.Value) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errAddress
	}
	cfg.PingTimeout = pingTimeout
	if !poolSizeChosen(url) {
		cfg.MaxConns = maxConns
	}
	conn := cfg.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	if _, named := conn.RuntimeParams["application_name"]; !named {
		conn.RuntimeParams["application_name"] = "accesskeys"
	}
	// Whatever the database or the role has chosen. Some statements get texts back, in which times would depend on it. Poolers know
	// these parameters, and no others.
	for name, value := range map[string]string{"client_encoding": "UTF8", "datestyle": "ISO", "standard_conforming_strings": "on"} {
		conn.RuntimeParams[name] = value
	}
	conn.OnNotice = noteUnconfirmed
	if len(hostsOf(&conn.Config)) > 1 && conn.ValidateConnect == nil { // nobody has said which: one that only reads is of no use here
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	return cfg, nil
}

// poolSizeChosen reports whether an address says how many connections there may be.
func poolSizeChosen(url secret.Value) bool {
	// The pool takes its own settings out of the connection's, so that only without it they can be seen.
	all, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return false
	}
	_, chosen := all.RuntimeParams["pool_max_conns"]
	return chosen
}

// Close closes every connection, after those in use are given back.
func (db *DB) Close() {
	db.renewing.Lock()
	db.closed = true
	db.renewing.Unlock()
	db.pool().Close()
	db.retired.Wait()
}

func (db *DB) pool() *pgxpool.Pool { return db.current.Load() }

// renewPool begins anew without a connection, once the database was lost and found again. A host that is gone leaves more than dead
// connections behind: each that ran into a time-out takes up one of the pool's places for up to 15 s more, while the driver tries
// to tell that host that it is no longer interested. What is under way on the old pool ends there. size is how many connections
// the new one may have, 0 for as many as the old one.
func (db *DB) renewPool(size int32) error {
	db.renewing.Lock()
	defer db.renewing.Unlock()
	if db.closed {
		return fmt.Errorf("%w: it was closed", ErrUnavailable)
	}
	cfg := db.pool().Config()
	if size > 0 {
		cfg.MaxConns = size
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return fmt.Errorf("opening another pool: %w", err)
	}
	db.retired.Go(db.current.Swap(pool).Close)
	return nil
}

// Share makes the pool as large as a fair part of the server's connections, where so many instances share them, one more is to
// start at any time, and each needs one for its anchor.
func (db *DB) Share(instances int) error {
	limit := db.connectionLimit.Load()
	if db.chosenSize || limit == 0 {
		return nil
	}
	size := int32(min(max(limit/int64(instances+1)-1, unanchoredConns), int64(db.mostConn))) //nolint:gosec // at most mostConn
	now := db.pool().Config().MaxConns
	// Each change costs every connection, so that the pool grows only where that is worth it.
	if size < now || size >= 2*now || size == db.mostConn && size > now {
		return db.renewPool(size)
	}
	return nil
}

// Newest is the version of the newest schema that this program knows.
func (db *DB) Newest() int { return db.newest }

// Ready returns nil where the database answers and holds at least this program's schema.
func (db *DB) Ready(ctx context.Context) error {
	version, err := schemaVersion(ctx, db.pool())
	if err != nil {
		return db.Failed("reading the schema's version", err)
	}
	if version < db.newest {
		return fmt.Errorf("the schema is at version %d, this program needs %d: %w", version, db.newest, ErrUnavailable)
	}
	return nil
}

// PoolStats are figures of the pool for the metrics.
type PoolStats struct {
	Max, Total, Idle, Acquired int32
	Acquires, EmptyAcquires    int64
	AcquireTime                time.Duration // in all acquisitions so far
}

// Stats returns the figures as they stand.
func (db *DB) Stats() PoolStats {
	st := db.pool().Stat()
	return PoolStats{
		Max: st.MaxConns(), Total: st.TotalConns(), Idle: st.IdleConns(), Acquired: st.AcquiredConns(),
		Acquires: st.AcquireCount(), EmptyAcquires: st.EmptyAcquireCount(), AcquireTime: st.AcquireDuration(),
	}
}
