package store_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
	"accesskeys/migrations"
)

func TestMigrationsUpDownUpGiveTheSameSchema(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	w.wantVersion(0)
	newest := w.up()
	wantEqual(t, "MigrateUp gives version", newest, newestStep(t))
	w.wantVersion(newest)
	first := fingerprint(w)
	fatalIf(t, !strings.Contains(first, "column accesskeys.token_sha256"), "the fingerprint does not show the tables:\n%s", first)

	w.downTo(0, migrations.Files)
	w.wantVersion(0)
	for line := range strings.Lines(fingerprint(w)) {
		errorIf(t, line != "\n", "MigrateDown has left %s", line)
	}
	wantEqual(t, "MigrateDown of the empty schema gives version", w.down(), 0)

	for range 2 { // the second time there is nothing to do
		wantEqual(t, "MigrateUp gives version", w.up(), newest)
		wantEqual(t, "up, down, up gives", fingerprint(w), first)
	}
	w.populate()

	// Control: the fingerprint shows what is easily lost.
	for _, change := range []string{
		`ALTER TABLE customers ALTER email DROP DEFAULT`,
		`ALTER TABLE customers ALTER email DROP NOT NULL`,
		`ALTER TABLE customers DROP CONSTRAINT customers_email_check`,
		`DROP INDEX customers_live_newest`,
		`ALTER TABLE customers ALTER tm_create TYPE timestamp`,
		`ALTER TABLE customers DISABLE TRIGGER changed`,
		`CREATE OR REPLACE FUNCTION accesskeys_require(holds boolean, code text) RETURNS void LANGUAGE sql AS ''`,
	} {
		before := fingerprint(w)
		w.exec(change)
		errorIf(t, fingerprint(w) == before, "the fingerprint does not show: %s", change)
	}
}

// Contract, section 6: migrate (safe with many servers starting at once): what fails or is killed leaves nothing half-done.
func TestFailedMigrationLeavesTheDatabaseAsItWas(t *testing.T) {
	t.Parallel()
	const (
		change = `CREATE TABLE extra (id int); ALTER TABLE customers DROP COLUMN email; UPDATE customers SET name = 'changed';`
		sleep  = `SELECT pg_sleep(600);`
	)
	cutConnection := func(w *fixture, _ context.CancelFunc) {
		w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ` + sleeping)
	}
	endContext := func(_ *fixture, cancel context.CancelFunc) { cancel() }
	tests := map[string]struct {
		step      string
		interrupt func(*fixture, context.CancelFunc) // nil where the step fails by itself
		want      error
	}{
		"a statement fails":         {change + `INSERT INTO nowhere VALUES (1);`, nil, store.ErrUnavailable},
		"a statement is misspelled": {change + `CRATE TABLE t ();`, nil, store.ErrUnavailable},
		"its connection is cut":     {change + sleep, cutConnection, store.ErrUnavailable},
		"its context ends":          {change + sleep, endContext, context.Canceled},
	}
	for name, test := range tests {
		for start, database := range map[string]func(testing.TB) secret.Value{
			"on an empty database": pgtest.Empty, "on a migrated one": pgtest.Migrated,
		} {
			t.Run(name+" "+start, func(t *testing.T) {
				t.Parallel()
				w := fixtureOn(t, database(t))
				if strings.Contains(start, "migrated") {
					w.populate()
				}
				before := fingerprint(w)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				failed := started(func() error { return migrateWith(ctx, w, test.step) })
				if test.interrupt != nil {
					servertest.Eventually(t, "the step sleeps", func() bool {
						return value[bool](w, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE `+sleeping+`)`)
					})
					test.interrupt(w, cancel)
				}
				err := <-failed
				wantError(t, "the migration", err, test.want)
				wantEqual(t, "the database", fingerprint(w), before)
				wantError(t, "the next migration", errorOf(quietly(w.url, migrations.Files).Up(t.Context())), nil)
				w.populate()
				// Control: the same step without its failure does change the database.
				before = fingerprint(w)
				wantError(t, "the step without its failure", migrateWith(t.Context(), w, change), nil)
				errorIf(t, fingerprint(w) == before, "the step changes nothing that the fingerprint shows")
			})
		}
	}
}

// The same where it is not the database that fails: the first step has succeeded when the next one can't be read.
func TestMigrationThatCannotBeReadLeavesTheDatabaseAsItWas(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	before := fingerprint(w)
	err := errorOf(quietly(w.url, unreadable{FS: stepsAnd(t, `SELECT 1`), name: moreUp}).Up(t.Context()))
	wantError(t, "the migration", err, fs.ErrPermission)
	wantEqual(t, "the database", fingerprint(w), before)
	w.wantVersion(0)
}

// unreadable is a file system with one file that can't be read.
type unreadable struct {
	fs.FS
	name string
}

func (u unreadable) Open(name string) (fs.File, error) {
	if name == u.name {
		return nil, fs.ErrPermission
	}
	return u.FS.Open(name)
}

func TestManyServersMigrateAtOnce(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	var log servertest.Log
	newest := newestStep(t)
	strict := withSetting(t, w.url, "default_transaction_isolation", "serializable") // an operator may have set it
	for _, err := range atOnce(8, func(i int) error {
		version, err := store.Migrator([]secret.Value{w.url, strict}[i%2], log.Logger()).Up(t.Context())
		if err == nil && version != newest {
			return errors.New("another version")
		}
		return err
	}) {
		if err != nil {
			t.Errorf("one of eight: %v", err)
		}
	}
	wantEqual(t, "those of eight who have migrated", strings.Count(log.String(), `msg="migrating the database"`), 1)
	wantEqual(t, "the schema of eight at once", fingerprint(w), fingerprint(fixtureOn(t, pgtest.Migrated(t))))
}

// Expand, then contract: the program before the newest migration runs on beside the one after it.
func TestNewerSchemaIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`UPDATE accesskeys_migrations SET version = version + 7`)
	w.exec(`ALTER TABLE customers ADD COLUMN later text`)
	before := fingerprint(w)
	var log servertest.Log
	wantEqual(t, "MigrateUp gives version", must(store.Migrator(w.url, log.Logger()).Up(t.Context()))(t), newestStep(t)+7)
	errorIf(t, log.String() != "", "MigrateUp has something to say: %s", log.String())
	wantError(t, "Ready on a newer schema", w.store.DB.Ready(t.Context()), nil)
	w.createKey(w.acme)
	err := errorOf(store.Migrator(w.url, log.Logger()).Down(t.Context()))
	errorIf(t, err == nil, "MigrateDown takes back a step that it does not know")
	wantEqual(t, "the database", fingerprint(w), before)
}

// Waits on its advisory lock without a bound. Bound it; give each replica a clear message.
func TestWaitForAnotherMigrationIsBoundedAndLogged(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	other := w.begin()
	execIn(t, other, `SELECT pg_advisory_xact_lock($1)`, postgres.MigrationLock)
	const message = `msg="waiting for another server to migrate the database"`
	before := fingerprint(w)
	for name, bound := range map[string]time.Duration{"its own bound": 250 * time.Millisecond, "the caller's end": time.Hour} {
		var log servertest.Log
		ctx, cancel := context.WithCancel(t.Context())
		ended := started(func() error { return errorOf(migrator(w.url, log.Logger(), migrations.Files, bound).Up(ctx)) })
		if bound == time.Hour {
			servertest.Eventually(t, "it waits", func() bool { return strings.Contains(log.String(), message) })
			cancel()
		}
		select {
		case err := <-ended:
			wantError(t, name, err, store.ErrUnavailable)
		case <-time.After(patience):
			t.Fatalf("%s: the wait does not end", name)
		}
		cancel()
		wantEqual(t, name+": lines about the wait", strings.Count(log.String(), message), 1)
	}
	wantEqual(t, "without the lock the database became", fingerprint(w), before)

	// Who waits goes on as soon as the lock is free.
	var log servertest.Log
	done := started(func() error { return errorOf(store.Migrator(w.url, log.Logger()).Up(t.Context())) })
	servertest.Eventually(t, "the migration waits", func() bool { return strings.Contains(log.String(), message) })
	noError(t, other.Rollback(t.Context()))
	wantError(t, "after the wait", <-done, nil)
	w.populate()
}

// Contract, section 6: server dev: the same on a Postgres of its own: its database is made at the first start only.
func TestCreateDatabaseIsIdempotentAndQuotesTheName(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	name := value[string](w, `SELECT current_database()`) + ` "x"`
	t.Cleanup(func() {
		ctx := context.Background()
		db := must(pgxpool.New(ctx, w.url.Reveal()))(t)
		defer db.Close()
		must(db.Exec(ctx, `DROP DATABASE "`+strings.ReplaceAll(name, `"`, `""`)+`"`))(t)
	})
	for range 2 {
		noError(t, postgres.CreateDatabase(t.Context(), w.url, name))
	}
	wantEqual(t, "databases of that name", value[int](w, `SELECT count(*) FROM pg_database WHERE datname = $1`, name), 1)
}

// sleeping is the condition for the connection whose step sleeps.
const sleeping = `datname = current_database() AND state = 'active' AND query LIKE '%pg_sleep(600)%'
	AND application_name = 'accesskeys'`

// moreUp is the file of a step that is newer than all there are.
const moreUp = "999999_more.up.sql"

// migrateWith migrates with one more step than there are.
func migrateWith(ctx context.Context, w *fixture, step string) error {
	return errorOf(quietly(w.url, stepsAnd(w.t, step)).Up(ctx))
}

// quietly is a migrator whose log nobody reads.
func quietly(url secret.Value, steps fs.FS) postgres.Migrator {
	return migrator(url, slog.New(slog.DiscardHandler), steps, patience)
}

// up migrates to the newest schema, down takes back one step; both give the version after it.
func (w *fixture) up() int { return w.migrate(migrations.Files) }

func (w *fixture) down() int {
	w.t.Helper()
	return must(quietly(w.url, migrations.Files).Down(w.t.Context()))(w.t)
}

func (w *fixture) migrate(steps fs.FS) int {
	w.t.Helper()
	return must(quietly(w.url, steps).Up(w.t.Context()))(w.t)
}

func (w *fixture) wantVersion(want int) {
	w.t.Helper()
	got := must(postgres.SchemaVersion(w.t.Context(), w.url))(w.t)
	fatalIf(w.t, got != want, "the schema is at version %d, want %d", got, want)
}

// stepsAnd are all steps and one more.
func stepsAnd(t *testing.T, step string) fs.FS {
	t.Helper()
	steps := copied(t)
	steps[moreUp] = &fstest.MapFile{Data: []byte(step)}
	return steps
}

// copied are all steps, to be changed.
func copied(t *testing.T) fstest.MapFS {
	t.Helper()
	steps := fstest.MapFS{}
	for _, name := range must(fs.Glob(migrations.Files, "*.sql"))(t) {
		steps[name] = &fstest.MapFile{Data: must(migrations.Files.ReadFile(name))(t)}
	}
	return steps
}

// newestStep counts the steps, which are numbered without gaps.
func newestStep(t *testing.T) int {
	t.Helper()
	return len(must(fs.Glob(migrations.Files, "*.up.sql"))(t))
}

// fingerprint tells all that the migrations can make: relations, columns, defaults, constraints, indexes, functions and triggers,
// with the rows of the small tables, one line each. The table of migrations has its newest name, whatever it is.
func fingerprint(w *fixture) string {
	w.t.Helper()
	shown := value[string](w, `
		WITH ours AS (SELECT oid, relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace)
		SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (
			SELECT format('relation %s %s', relname, relkind) AS line FROM ours
			UNION ALL
			SELECT format('column %s.%s %s %s not null %s default %s collation %s', relname, attname, attnum,
			              format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), attcollation::regcollation)
			FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
			          LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
			WHERE relkind = 'r'
			UNION ALL
			SELECT format('constraint %s.%s %s', relname, conname, pg_get_constraintdef(pg_constraint.oid))
			FROM ours JOIN pg_constraint ON conrelid = ours.oid
			UNION ALL
			SELECT format('index %s.%s', relname, pg_get_indexdef(indexrelid)) FROM ours JOIN pg_index ON indrelid = ours.oid
			UNION ALL
			SELECT format('function %s %s', p.oid::regprocedure, md5(prosrc)) FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
			UNION ALL
			SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(t.oid)) FROM pg_trigger t JOIN ours ON ours.oid = tgrelid
			WHERE NOT tgisinternal
		) AS lines`) + "\n"
	for _, table := range []string{"schema_migrations", "accesskeys_migrations", "customers"} {
		if value[bool](w, `SELECT to_regclass($1) IS NOT NULL`, table) {
			shown += value[string](w, `SELECT coalesce(string_agg('row `+table+` ' || to_jsonb(t)::text, E'\n' ORDER BY to_jsonb(t)::text), '')
				FROM `+table+` t`) + "\n"
		}
	}
	lines := strings.Split(strings.ReplaceAll(shown, "schema_migrations", "accesskeys_migrations"), "\n")
	slices.Sort(lines)
	return strings.TrimLeft(strings.Join(lines, "\n"), "\n") + "\n"
}
