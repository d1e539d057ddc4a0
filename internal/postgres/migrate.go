package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/secret"
	"accesskeys/migrations"
)

const (
	// MigrationLock is the advisory lock that a program holds while it migrates, so that of many which start at once one
	// does the work and the rest find it done. The number is arbitrary and must never change.
	MigrationLock = 0x61636b6d // "ackm"
	// migrationLockWait bounds the wait for another program's migration.
	migrationLockWait = time.Minute
	// migrationLockPoll is how often a waiting program looks again.
	migrationLockPoll = 100 * time.Millisecond
)

// LossError says that a step was not taken back, because data would be lost with it.
type LossError struct{ Version int }

// Error names the version.
func (e *LossError) Error() string {
	return fmt.Sprintf("taking back version %d of the schema loses data", e.Version)
}

// LosesData reports whether data can be lost where a version is taken back, other than what comes back by itself.
func LosesData(version int) bool { return version < 5 }

// SchemaVersion returns the schema's version, 0 where nothing has been migrated.
func SchemaVersion(ctx context.Context, url secret.Value) (int, error) {
	conn, err := connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer closeConn(conn)
	version, err := schemaVersion(ctx, conn)
	return version, Translate("reading the schema's version", err)
}

// Migrator brings one database's schema to another version. Its methods are safe to call from many programs at once.
//
// All steps run in one transaction: a migration that fails or is killed leaves the schema as it was, never half-done.
type Migrator struct {
	URL secret.Value
	Log *slog.Logger
	// After is run at the end of Up, in its transaction, on a schema of this version. It may be nil.
	After func(ctx context.Context, tx pgx.Tx, version int) error

	Steps    fs.FS         // the program's own where it is nil
	LockWait time.Duration // bounds the wait for another program's migration; a minute where it is 0
}

func (m Migrator) steps() fs.FS {
	if m.Steps == nil {
		return migrations.Files
	}
	return m.Steps
}

// Up brings the schema to the newest version that this program knows and returns it. A newer schema, left by a newer program, is left
// as it is.
func (m Migrator) Up(ctx context.Context) (int, error) {
	newest, err := newestMigration(m.steps())
	if err != nil {
		return 0, err
	}
	return m.run(ctx, func(tx pgx.Tx, current int, to *migrate.Migrate) error {
		if err := refuseEncoding(ctx, tx); err != nil {
			return err
		}
		if current > newest {
			return nil
		}
		if current == 0 {
			if err := refuseForeign(ctx, tx); err != nil {
				return err
			}
		}
		if current < newest {
			m.Log.Info("migrating the database", "from", current, "to", newest)
			if err := to.Up(); err != nil {
				return err
			}
		}
		if m.After == nil {
			return nil
		}
		return m.After(ctx, tx, newest)
	})
}

// Down takes back the newest step, with the data that it holds, and returns the version that is left; 0 is the empty schema.
func (m Migrator) Down(ctx context.Context) (int, error) {
	return m.run(ctx, func(_ pgx.Tx, current int, to *migrate.Migrate) error { return m.takeBack(current, to) })
}

// DownAgreed is Down, but where data would be lost it takes back no other version than the agreed one, and returns a *LossError.
func (m Migrator) DownAgreed(ctx context.Context, agreed int) (int, error) {
	newest, err := newestMigration(m.steps())
	if err != nil {
		return 0, err
	}
	return m.run(ctx, func(tx pgx.Tx, current int, to *migrate.Migrate) error {
		if current == agreed || current > newest || !LosesData(current) { // a newer one fails
			return m.takeBack(current, to)
		}
		holds, err := holdsData(ctx, tx, current)
		if err != nil {
			return Translate("looking for data that would be lost", err)
		}
		if holds {
			return &LossError{Version: current}
		}
		return m.takeBack(current, to)
	})
}

func (m Migrator) takeBack(current int, to *migrate.Migrate) error {
	if current == 0 {
		return nil
	}
	m.Log.Info("taking back the newest migration", "version", current)
	return to.Steps(-1)
}

// holdsData reports whether there is anything in a schema of this version: whatever there is belongs to a customer, or is to become one.
// Until the end of the transaction nothing is added. Its error is the driver's.
func holdsData(ctx context.Context, tx pgx.Tx, version int) (holds bool, err error) {
	for _, table := range []struct {
		since int
		name  string
	}{{1, "customers"}, {2, "signups"}} {
		if version < table.since || holds {
			break
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE `+table.name+` IN SHARE MODE`); err != nil {
			return false, err
		}
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+table.name+`)`).Scan(&holds); err != nil {
			return false, err
		}
	}
	return holds, nil
}

// run does it all in one transaction that holds the lock.
func (m Migrator) run(ctx context.Context, migrateFrom func(tx pgx.Tx, current int, to *migrate.Migrate) error) (int, error) {
	conn, err := connect(ctx, m.URL)
	if err != nil {
		return 0, err
	}
	defer closeConn(conn)

	// Of whatever default: who has waited for the lock must see what the one before it did.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return 0, Translate("beginning the migration", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit this does nothing
	if err := m.lock(ctx, tx); err != nil {
		return 0, err
	}
	current, err := schemaVersion(ctx, tx)
	if err != nil {
		return 0, Translate("reading the schema's version", err)
	}
	table, err := findMigrationsTable(ctx, tx)
	if err != nil {
		return 0, Translate("finding the schema's version", err)
	}
	files, err := iofs.New(m.steps(), ".")
	if err != nil {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	driver := &migrationDriver{ctx: ctx, tx: tx, version: current, table: table}
	to, err := migrate.NewWithInstance("embedded", files, "postgres", driver)
	if err != nil {
		return 0, fmt.Errorf("preparing the migration: %w", err)
	}
	if err := migrateFrom(tx, current, to); err != nil && !errors.Is(err, migrate.ErrNoChange) {
		return 0, fmt.Errorf("migrating the database, which is left as it was: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, Translate("committing the migration", err)
	}
	return driver.version, nil
}

// lock takes the lock until the end of the transaction. It asks again and again instead of waiting inside
// Postgres, so that the wait has an end and the log says what is waited for.
func (m Migrator) lock(ctx context.Context, tx pgx.Tx) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(m.LockWait, migrationLockWait))
	defer cancel()
	for waiting := false; ; waiting = true {
		var locked bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, MigrationLock).Scan(&locked); err != nil {
			return Translate("locking the migrations", err)
		}
		if locked {
			return nil
		}
		if !waiting {
			m.Log.Info("waiting for another server to migrate the database")
		}
		select {
		case <-time.After(migrationLockPoll):
		case <-ctx.Done():
			return fmt.Errorf("waiting for another server to migrate the database: %w: %w", ErrUnavailable, ctx.Err())
		}
	}
}

// migrationsTable is where the schema's version stands. Before migration 4 it was golang-migrate's usual one, which others use too:
// it is ours only beside our tables.
const (
	migrationsTable       = "accesskeys_migrations"
	legacyMigrationsTable = "schema_migrations"
)

// Tables are those that the migrations make, in the first schema of the search path.
var Tables = []string{
	"accesskey_uses", "accesskeys", "agents", "change_head", "changes", "customers", "instances", "login_networks", "replicas",
	"service_account_keys", "service_accounts", "signups",
}

// ErrForeign means that the database is somebody else's: it has relations of our names that are not ours.
var ErrForeign = errors.New("the database has tables of other programs by the names that this one needs")

// refuseForeign returns ErrForeign where a database without migrations of ours has a table, a view or the like of one of our names.
func refuseForeign(ctx context.Context, tx pgx.Tx) error {
	var found *string
	err := tx.QueryRow(ctx, `
		SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
		WHERE relnamespace = current_schema()::regnamespace AND relname = ANY ($1)`, Tables).Scan(&found)
	switch {
	case err != nil:
		return Translate("looking for tables of other programs", err)
	case found != nil:
		return fmt.Errorf("%w: %s; give it a database, or by search_path a schema, of its own", ErrForeign, *found)
	}
	return nil
}

// ErrEncoding means that the database holds no UTF-8.
var ErrEncoding = errors.New("the database's encoding must be UTF8 (CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0)")

func refuseEncoding(ctx context.Context, q Querier) error {
	var encoding string
	err := q.QueryRow(ctx, `SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()`).Scan(&encoding)
	switch {
	case err != nil:
		return Translate("reading the database's encoding", err)
	case encoding != "UTF8":
		return fmt.Errorf("%w: it is %s", ErrEncoding, encoding)
	}
	return nil
}

// findMigrationsTable returns the table that holds the schema's version, "" where there is none. Its error is the driver's.
func findMigrationsTable(ctx context.Context, q Querier) (table string, err error) {
	var current, legacy bool
	err = q.QueryRow(ctx, `
		SELECT to_regclass($1) IS NOT NULL,
		       to_regclass($2) IS NOT NULL AND to_regclass('customers') IS NOT NULL AND to_regclass('agents') IS NOT NULL
		           AND EXISTS (
		               SELECT FROM pg_attribute WHERE attrelid = to_regclass('accesskeys') AND attname = 'token_prefix' AND NOT attisdropped)`, migrationsTable, legacyMigrationsTable).Scan(&current, &legacy)
	switch {
	case err != nil:
		return "", err
	case current:
		return migrationsTable, nil
	case legacy:
		return legacyMigrationsTable, nil
	default:
		return "", nil
	}
}

// schemaVersion returns the schema's version, 0 where nothing has been migrated. Its error is the driver's.
func schemaVersion(ctx context.Context, q Querier) (version int, err error) {
	table, err := findMigrationsTable(ctx, q)
	if err != nil || table == "" {
		return 0, err
	}
	err = q.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+table).Scan(&version)
	return version, err
}

// newestMigration is the highest version among the steps.
func newestMigration(steps fs.FS) (int, error) {
	files, err := iofs.New(steps, ".")
	if err != nil {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	defer func() { _ = files.Close() }()
	version, err := files.First()
	for err == nil {
		var next uint
		if next, err = files.Next(version); err == nil {
			version = next
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	return int(version), nil
}

// CreateDatabase makes a database on the server at url, where it does not exist yet.
func CreateDatabase(ctx context.Context, url secret.Value, name string) error {
	conn, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	var exists bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize())
	}
	return Translate("creating the database", err)
}

func connect(ctx context.Context, url secret.Value) (*pgx.Conn, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	conn, err := connectConfig(ctx, cfg.ConnConfig)
	return conn, Translate("connecting to the database", err)
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// migrationDriver lets golang-migrate work inside a transaction that its caller has begun and locked. The drivers that
// come with the library commit a "dirty" mark before each step, so that one which is killed halfway needs a person to
// repair it; here there is nothing halfway.
type migrationDriver struct {
	ctx     context.Context //nolint:containedctx // database.Driver's methods take none; the value lives for one call
	tx      pgx.Tx
	version int
	table   string // that held the version last, "" where there was none
}

var _ database.Driver = (*migrationDriver)(nil)

// Run implements database.Driver: it executes the statements of one step.
func (d *migrationDriver) Run(step io.Reader) error {
	sql, err := io.ReadAll(step)
	if err != nil {
		return fmt.Errorf("reading a migration: %w", err)
	}
	if _, err := d.tx.Exec(d.ctx, string(sql), pgx.QueryExecModeSimpleProtocol); err != nil {
		return Translate("running a migration", err)
	}
	return nil
}

// SetVersion implements database.Driver. A version of -1 is the empty schema.
func (d *migrationDriver) SetVersion(version int, dirty bool) error {
	if dirty {
		return nil // the transaction makes the mark pointless
	}
	d.version = max(version, 0)
	// Migration 4 renames the table, one way or the other. Where there was none, there may be one of somebody else's.
	var current bool
	if err := d.tx.QueryRow(d.ctx, `SELECT to_regclass($1) IS NOT NULL`, migrationsTable).Scan(&current); err != nil {
		return Translate("finding the schema's version", err)
	}
	table := migrationsTable
	if !current && d.table != "" {
		table = legacyMigrationsTable
	}
	d.table = table
	if version <= 0 { // nothing is left of ours
		d.table = ""
		_, err := d.tx.Exec(d.ctx, `DROP TABLE IF EXISTS `+table)
		return Translate("removing the schema's version", err)
	}
	_, err := d.tx.Exec(d.ctx, `
		CREATE TABLE IF NOT EXISTS `+table+` (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
		DELETE FROM `+table, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		_, err = d.tx.Exec(d.ctx, `INSERT INTO `+table+` (version, dirty) VALUES ($1, false)`, version)
	}
	return Translate("recording the schema's version", err)
}

// Version implements database.Driver.
func (d *migrationDriver) Version() (int, bool, error) {
	if d.version == 0 {
		return database.NilVersion, false, nil
	}
	return d.version, false, nil
}

// Lock implements database.Driver; Migrator.lock has done it.
func (*migrationDriver) Lock() error { return nil }

// Unlock implements database.Driver; the end of the transaction does it.
func (*migrationDriver) Unlock() error { return nil }

// Close implements database.Driver; the transaction is its caller's.
func (*migrationDriver) Close() error { return nil }

// Open implements database.Driver, whose registry of URLs is not used here.
func (*migrationDriver) Open(string) (database.Driver, error) {
	return nil, errors.New("a migrationDriver is not opened by its URL")
}

// Drop implements database.Driver. Nothing here drops a whole database.
func (*migrationDriver) Drop() error { return errors.New("dropping the whole schema is refused") }
