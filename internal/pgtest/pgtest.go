// Package pgtest gives each test a database of its own on a real Postgres: the one at TEST_DATABASE_URL, else one that
// is started for the test binary and ends with it, whatever way it ends.
package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/migrations"
)

// templateLock is the advisory lock under which the template is made; test binaries run side by side.
const templateLock = 0x61636b74 // "ackt"

const startTimeout = 2 * time.Minute

// server returns the address of the Postgres that all tests of this binary share. It has no counterpart that stops it:
// privatepg ends the server, and removes its folder, when the process is gone.
var server = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("TEST_DATABASE_URL"); given != "" {
		return given, nil
	}
	for _, variable := range os.Environ() { // libpq's are about other databases
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	postgres, err := privatepg.Start(ctx, privatepg.Config{Ephemeral: true, Getenv: getenv})
	if err != nil {
		return "", err
	}
	return postgres.URL("postgres"), nil
})

// getenv is os.Getenv with a file system in memory for TMPDIR, where there is one with room: a database is made there in a tenth of the
// time that 300 files on a disk take.
func getenv(name string) string {
	const memory, room = "/dev/shm", 2 << 30 // containers have 64 MiB there unless told
	value := os.Getenv(name)
	var free syscall.Statfs_t
	if name == "TMPDIR" && value == "" && syscall.Statfs(memory, &free) == nil && free.Bavail > room/uint64(free.Bsize) {
		return memory
	}
	return value
}

// template returns the name of a database with the newest schema, made once for each state of the migrations.
var template = sync.OnceValues(func() (string, error) {
	name, err := templateName()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	err = asAdmin(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, templateLock); err != nil {
			return err
		}
		var exists bool
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists)
		if err != nil || exists {
			return err
		}
		// Made under another name first: what was interrupted is never taken for a template.
		making := name + "_making"
		if _, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS `+quoted(making)+` WITH (FORCE)`); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `CREATE DATABASE `+quoted(making)); err != nil {
			return err
		}
		if _, err := store.Migrator(address(making), slog.New(slog.DiscardHandler)).Up(ctx); err != nil {
			return err
		}
		_, err = conn.Exec(ctx, `ALTER DATABASE `+quoted(making)+` RENAME TO `+quoted(name))
		return err
	})
	return name, err
})

// Migrated returns the address of a fresh database with the newest schema, dropped when the test ends.
func Migrated(t testing.TB) secret.Value {
	t.Helper()
	name, err := template()
	if err != nil {
		t.Fatalf("making the template: %v", err)
	}
	return create(t, `TEMPLATE `+quoted(name))
}

// Empty returns the address of a fresh database without a schema, dropped when the test ends.
func Empty(t testing.TB) secret.Value {
	t.Helper()
	return create(t, "")
}

// Store opens a store on a fresh database with the newest schema, closed when the test ends.
func Store(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), Migrated(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func create(t testing.TB, options string) secret.Value {
	t.Helper()
	if _, err := server(); err != nil {
		t.Fatalf("tests need a Postgres: %v", err)
	}
	name := "test_" + strings.ToLower(rand.Text())
	run := func(sql string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		err := asAdmin(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, sql)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	run(`CREATE DATABASE ` + quoted(name) + ` ` + options)
	t.Cleanup(func() { run(`DROP DATABASE ` + quoted(name) + ` WITH (FORCE)`) })
	return address(name)
}

// address is that of another database on the same server.
func address(database string) secret.Value {
	base, err := server()
	if err != nil {
		return secret.Value{}
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme == "" {
		return secret.New(base + " dbname=" + database) // keyword/value: the last one counts
	}
	u.Path = "/" + database
	return secret.New(u.String())
}

func asAdmin(ctx context.Context, do func(*pgx.Conn) error) error {
	base, err := server()
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, base)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return do(conn)
}

// templateName names the template by what the migrations say, so that a change of theirs makes a new one.
func templateName() (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(migrations.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := migrations.Files.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(content), content)
		return err
	})
	return "accesskeys_template_" + hex.EncodeToString(sum.Sum(nil))[:16], err
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }
