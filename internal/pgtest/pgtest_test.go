package pgtest

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// A database per test from a template: what one test does, no other sees, and nothing is left.
//
//nolint:tparallel // what follows the subtest looks at what it has left
func TestEachDatabaseIsItsOwnAndGoesWithItsTest(t *testing.T) {
	t.Parallel()
	var names []string
	outer := t
	t.Run("its life", func(t *testing.T) {
		first, second, empty := Migrated(t), Migrated(t), Empty(t)
		for _, url := range []secret.Value{first, second, empty} {
			names = append(names, query[string](t, url, `SELECT current_database()`))
		}
		slices.Sort(names)
		if len(slices.Compact(slices.Clone(names))) != 3 {
			t.Errorf("the databases are %v, want three", names)
		}
		query[any](t, first, `INSERT INTO customers (id, name) VALUES (gen_random_uuid(), 'n') RETURNING NULL`)
		for name, test := range map[string]struct {
			url  secret.Value
			sql  string
			want int
		}{
			"customers of the first":      {first, `SELECT count(*) FROM customers`, 1},
			"customers of the second":     {second, `SELECT count(*) FROM customers`, 0},
			"tables of the empty one":     {empty, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`, 0},
			"databases during their life": {empty, databases(names), 3},
		} {
			if got := query[int](t, test.url, test.sql); got != test.want {
				t.Errorf("%s: %d, want %d", name, got, test.want)
			}
		}
		if err := Store(t).DB.Ready(t.Context()); err != nil {
			t.Errorf("a store on a migrated database: %v", err)
		}
		// A connection that a test has forgotten keeps no database alive.
		forgotten, err := pgx.Connect(t.Context(), first.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		outer.Cleanup(func() { _ = forgotten.Close(context.Background()) }) // after the database has gone
	})
	if got := query[int](t, Empty(t), databases(names)); got != 0 {
		t.Errorf("%d of %v are still there", got, names)
	}
}

// Template named by the migrations' hash, built once under an advisory lock, also where test binaries share a server.
func TestTemplateIsMadeOnceForAllBinaries(t *testing.T) {
	t.Parallel()
	const countedChild = "PGTEST_TEMPLATE_OF"
	url := Empty(t)
	name, err := templateName()
	if err != nil {
		t.Fatal(err)
	}
	// Its oid is another as soon as it is made again.
	oids := `SELECT coalesce(string_agg(oid || ' ' || datname, ', ' ORDER BY oid), '') FROM pg_database WHERE datname LIKE '` + name + `%'`
	if want := os.Getenv(countedChild); want != "" {
		Migrated(t)
		if got := query[string](t, url, oids); got != want {
			t.Errorf("the templates are %s, were %s", got, want)
		}
		return
	}
	Migrated(t)
	before := query[string](t, url, oids)
	if !strings.HasSuffix(before, " "+name) || strings.Contains(before, ",") {
		t.Fatalf("the templates are %q, want one, %s", before, name)
	}
	base, err := server()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var others sync.WaitGroup
	for range 3 {
		others.Go(func() {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestTemplateIsMadeOnceForAllBinaries$")
			cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+base, countedChild+"="+before)
			if output, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("another binary: %v\n%s", err, output)
			}
		})
	}
	others.Wait()
	if after := query[string](t, url, oids); after != before {
		t.Errorf("the templates are %s, were %s", after, before)
	}
}

// What is migrated by hand and what comes from the template are of one version.
func TestTemplateHasTheNewestSchema(t *testing.T) {
	t.Parallel()
	url := Empty(t)
	newest, err := store.Migrator(url, slog.New(slog.DiscardHandler)).Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := postgres.SchemaVersion(t.Context(), Migrated(t)); err != nil || got != newest {
		t.Errorf("the template is at version %d (%v), want %d", got, err, newest)
	}
}

// TEST_DATABASE_URL may be written either way.
func TestAddressNamesTheDatabaseInEitherForm(t *testing.T) {
	t.Parallel()
	cfg, err := pgx.ParseConfig(address("other").Reveal())
	if err != nil || cfg.Database != "other" {
		t.Fatalf("the address is of %q (%v)", cfg.Database, err)
	}
	base, err := server()
	if err != nil {
		t.Fatal(err)
	}
	given, err := pgx.ParseConfig(base)
	if err != nil || given.Host != cfg.Host || given.Port != cfg.Port || given.User != cfg.User {
		t.Errorf("the address is of %s:%d (%v), want %s:%d", cfg.Host, cfg.Port, err, given.Host, given.Port)
	}
}

// databases counts those of these names.
func databases(names []string) string {
	return `SELECT count(*) FROM pg_database WHERE datname IN ('` + strings.Join(names, `', '`) + `')`
}

func query[T any](t *testing.T, url secret.Value, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}
