package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
)

// Contract, section 6: migrate (safe with many instances starting at once), bootstrap, serve. Each thing is made once.
func TestManyServersStartAtOnceOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	programs := make([]*program, 8)
	for i := range programs {
		programs[i] = served(t, database, nil)
	}
	did := map[string]int{}
	for _, p := range programs {
		bootstrapWorks(t, p.base())
		for _, event := range regexp.MustCompile(`"migrating the database"|"bootstrap: created","setting":"\w+"`).FindAllString(p.stderr.String(), -1) {
			did[event]++
		}
	}
	if got := slices.Collect(maps.Values(did)); !slices.Equal(got, []int{1, 1, 1, 1}) {
		t.Errorf("they have done %v", did)
	}
	hasRows(t, database, oneOfEach)
	if version := versionOf(t, database); version != newest {
		t.Errorf("the schema is at version %s", version)
	}
	for _, p := range programs {
		ok(t, p.end())
	}
}

// noTables fails the test if there is a table already.
func noTables(t *testing.T, database secret.Value) {
	t.Helper()
	if tables := tablesOf(t, database); tables != "" {
		t.Errorf("there are tables: %s", tables)
	}
}

func tablesOf(t *testing.T, database secret.Value) string {
	t.Helper()
	return sql(t, database, `SELECT coalesce(string_agg(tablename, ' ' ORDER BY tablename), '') FROM pg_tables WHERE schemaname = 'public'`)
}

// While another server migrates, this one waits, says so and serves nothing; a signal ends the waiting.
func TestServerWaitsForAnothersMigrationAndSaysSo(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	other := must(pgx.Connect(t.Context(), database.Reveal()))(t)
	defer func() { _ = other.Close(context.Background()) }()
	migration := must(other.Begin(t.Context()))(t)
	must(migration.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, postgres.MigrationLock))(t)

	const message = "waiting for another server to migrate the database"
	p, impatient := served(t, database, nil), served(t, database, nil)
	p.logs(message)
	impatient.logs(message)
	started := time.Now()
	_ = impatient.end() // with an error, which says what it waited for
	if took := time.Since(started); took > patience {
		t.Errorf("a waiting server took %v to end", took)
	}
	noTables(t, database)
	select {
	case <-p.ended:
		t.Fatal(p.err)
	default:
	}
	if strings.Contains(p.stderr.String(), `"msg":"listening"`) {
		t.Error("it listens before the schema is there")
	}
	ok(t, migration.Rollback(t.Context()))
	bootstrapWorks(t, p.base())
	if said := strings.Count(p.stderr.String(), message); said != 1 {
		t.Errorf("it says %d times that it waits", said)
	}
}

// Under asynchronous replication a failover can undo a revocation, "say so in the log at start-up". The test's Postgres has no standby at
// all, of which the same is true.
func TestLogSaysWhatAFailoverCanUndo(t *testing.T) {
	t.Parallel()
	p := served(t, pgtest.Migrated(t), nil)
	p.base() // it listens, and has said before what there is to say
	ok(t, p.end())
	if log := p.stderr.String(); strings.Count(log, "a revocation too") != 1 || !strings.Contains(log, "no synchronous standby") {
		t.Errorf("the log is\n%s", log)
	}
}

// A flood that has taken every connection doesn't keep a new server from starting. It says that it waits, and starts once there is a
// connection.
func TestServerStartsOnceTheDatabaseHasAConnectionToSpare(t *testing.T) {
	t.Parallel()
	database := secret.New(newPostgres(t, map[string]string{"max_connections": "10"}).URL("postgres"))
	var taken []*pgx.Conn
	free := func() {
		for _, conn := range taken {
			_ = conn.Close(context.Background()) // it may be closed already
		}
	}
	t.Cleanup(free)
	for {
		conn, err := pgx.Connect(t.Context(), database.Reveal())
		if err != nil {
			break // which is what all of them being taken looks like
		}
		taken = append(taken, conn)
	}
	if len(taken) < 5 {
		t.Fatalf("%d connections are all", len(taken))
	}
	p := served(t, database, nil)
	const message = `"msg":"the database takes no connection now; trying again"`
	p.logs(message)
	tables := 0
	if err := taken[0].QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("there are %d tables already, %v", tables, err)
	}
	free()
	bootstrapWorks(t, p.base())
	if log := p.stderr.String(); strings.Count(log, message) != 1 || !strings.Contains(log, "53300") || !strings.Contains(log, `"at_most":"30s"`) {
		t.Errorf("its log is\n%s", log)
	}
}

// What passes by itself is waited for: a database that starts, or has no connection to spare. What doesn't ends the start at once.
func TestServerTriesAgainOnlyWhereTheDatabaseTakesNoConnectionNow(t *testing.T) {
	t.Parallel()
	const invalidPassword = "28P01"
	for name, codes := range map[string][]string{
		"starting":      {"57P03", "57P03", "57P03", invalidPassword},
		"full":          {"53300", "53300", invalidPassword},
		"both":          {"57P03", "53300", invalidPassword},
		"no connection": {invalidPassword},
		"shutting down": {"57P01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database, refused := newRefuser(t, codes)
			err := served(t, database, nil).wait()
			last := codes[len(codes)-1]
			if err == nil || !strings.Contains(err.Error(), "SQLSTATE "+last) {
				t.Errorf("it ended with %v, want one of %s", err, last)
			}
			if got := int(refused.Load()); got != len(codes) {
				t.Errorf("it has tried %d times, want %d", got, len(codes))
			}
		})
	}
}

// newRefuser refuses connections as Postgres does, each with the next code and the last one from then on, and counts them.
func newRefuser(t *testing.T, codes []string) (database secret.Value, refused *atomic.Int64) {
	t.Helper()
	refused = &atomic.Int64{}
	var refusing sync.WaitGroup
	t.Cleanup(refusing.Wait)
	refuser := listener(t)
	refusing.Go(func() {
		for {
			conn, err := refuser.Accept()
			if err != nil {
				return // the test has ended
			}
			backend := pgproto3.NewBackend(conn, conn)
			if _, err := backend.ReceiveStartupMessage(); err == nil {
				code := codes[min(int(refused.Add(1)), len(codes))-1]
				backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "refused"})
				_ = backend.Flush() // the client may have gone
			}
			_ = conn.Close()
		}
	})
	return secret.New(fmt.Sprintf("postgres://u@%s/d?sslmode=disable", refuser.Addr())), refused
}
