package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// Contract, section 6: migrate (safe with many instances starting at once), bootstrap, serve.
func TestManyServersStartAtOnceOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	programs := make([]*program, 8)
	for i := range programs {
		programs[i] = launch(t, environment(database, nil), "serve")
	}
	migrated := 0
	for _, p := range programs {
		bootstrapWorks(t, p.base())
		migrated += strings.Count(p.stderr.String(), `"migrating the database"`)
	}
	if migrated != 1 {
		t.Errorf("%d servers have migrated", migrated)
	}
	if got := census(t, database); got != oneOfEach {
		t.Error(got)
	}
	if got, want := schemaOf(t, database), schemaOf(t, pgtest.Migrated(t)); got != want || !strings.Contains(want, "agents_live_username") {
		t.Errorf("schema\n%s\nwant\n%s", got, want)
	}
	if versions := sql(t, database, `SELECT string_agg(version || ' ' || dirty, ',') FROM accesskeys_migrations`); versions != newest+" false" {
		t.Errorf("accesskeys_migrations: %s", versions)
	}
	for _, p := range programs {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	}
}

// schemaOf describes columns, indexes and constraints.
func schemaOf(t *testing.T, database secret.Value) string {
	t.Helper()
	return sql(t, database, `
		SELECT string_agg(line, E'\n' ORDER BY line) FROM (
			SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
			FROM information_schema.columns WHERE table_schema = 'public'
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
			UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
			FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		) AS l (line)`)
}

// A newer program has migrated already, and this one is still being replaced: it leaves the schema as it is and serves.
func TestServerStartsOnANewerSchema(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	sql(t, database, `UPDATE accesskeys_migrations SET version = 999`)
	p := launch(t, environment(database, nil), "serve")
	bootstrapWorks(t, p.base())
	if err := p.end(); err != nil {
		t.Error(err)
	}
	if version := sql(t, database, `SELECT version FROM accesskeys_migrations`); version != "999" {
		t.Errorf("the schema's version is now %s", version)
	}
}

// A migration that fails leaves no trace, so that the next attempt starts from where it did.
func TestFailedMigrationLeavesNoTrace(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	sql(t, database, `CREATE TABLE accesskeys (in_the_way int)`) // the step makes two other tables first
	const tables = `SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'`
	for _, args := range []string{"migrate up", "serve"} {
		_, _, err := cli(t, environment(database, nil), "", strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), "migrating the database, which is left as it was") {
			t.Errorf("%s: %v", args, err)
		}
		if got := sql(t, database, tables); got != "accesskeys" {
			t.Errorf("tables after %s: %s", args, got)
		}
	}
	sql(t, database, `DROP TABLE accesskeys`)
	bootstrapWorks(t, launch(t, environment(database, nil), "serve").base())
}

// While another server migrates, this one waits, says so and serves nothing; a signal ends the waiting.
func TestServerWaitsForAnothersMigrationAndSaysSo(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	ctx := t.Context()
	other, err := pgx.Connect(ctx, database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close(context.Background()) }()
	migration, err := other.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migration.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, 0x61636b6d); err != nil {
		t.Fatal(err)
	}

	p, impatient := launch(t, environment(database, nil), "serve"), launch(t, environment(database, nil), "serve")
	for _, waiting := range []*program{p, impatient} {
		servertest.Eventually(t, "the server says that it waits", func() bool {
			return strings.Contains(waiting.stderr.String(), "waiting for another server to migrate the database")
		})
	}
	started := time.Now()
	_ = impatient.end() // with an error, which says what it waited for
	if took := time.Since(started); took > patience {
		t.Errorf("a waiting server took %v to end", took)
	}
	if tables := sql(t, database, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); tables != "0" {
		t.Errorf("there are %s tables already", tables)
	}
	select {
	case <-p.ended:
		t.Fatal(p.err)
	default:
	}
	if strings.Contains(p.stderr.String(), `"msg":"listening"`) {
		t.Error("it listens before the schema is there")
	}
	if err := migration.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	bootstrapWorks(t, p.base())
	if said := strings.Count(p.stderr.String(), "waiting for another server"); said != 1 {
		t.Errorf("it says %d times that it waits", said)
	}
}

// An address in use is told before anything is changed.
func TestAddressInUseIsToldBeforeTheDatabaseIsTouched(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	err = launch(t, environment(database, map[string]string{"LISTEN_ADDR": taken.Addr().String()}), "serve").wait()
	if err == nil || !strings.HasPrefix(err.Error(), "LISTEN_ADDR: ") {
		t.Errorf("%v", err)
	}
	if tables := sql(t, database, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); tables != "0" {
		t.Errorf("%s tables were made", tables)
	}
}

// Under asynchronous replication a failover can undo a revocation, "say so in the log at start-up". The test's Postgres has no standby at
// all, of which the same is true.
func TestLogSaysWhatAFailoverCanUndo(t *testing.T) {
	t.Parallel()
	p := launch(t, environment(pgtest.Migrated(t), nil), "serve")
	p.base() // it listens, and has said before what there is to say
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	if log := p.stderr.String(); strings.Count(log, "a revocation too") != 1 || !strings.Contains(log, "no synchronous standby") {
		t.Errorf("the log is\n%s", log)
	}
}
