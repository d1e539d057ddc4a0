package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// A flood that has taken every connection doesn't keep a new server from starting. It says that it waits, and starts once there is a
// connection.
func TestServerStartsOnceTheDatabaseHasAConnectionToSpare(t *testing.T) {
	t.Parallel()
	postgres, err := privatepg.Start(t.Context(), privatepg.Config{
		Dir: filepath.Join(newFolder(t), "postgres"), Getenv: os.Getenv, Parameters: map[string]string{"max_connections": "10"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := postgres.Close(); err != nil {
			t.Error(err)
		}
	})
	database := secret.New(postgres.URL("postgres"))
	var taken []*pgx.Conn
	t.Cleanup(func() { closeAll(taken) })
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
	p := launch(t, environment(database, nil), "serve")
	const message = `"msg":"the database takes no connection now; trying again"`
	servertest.Eventually(t, "the server says that it waits", func() bool { return strings.Contains(p.stderr.String(), message) })
	if tables := sqlOn(t, taken[0], `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); tables != 0 {
		t.Errorf("there are %d tables already", tables)
	}
	closeAll(taken)
	bootstrapWorks(t, p.base())
	if log := p.stderr.String(); strings.Count(log, message) != 1 || !strings.Contains(log, "53300") || !strings.Contains(log, `"at_most":"30s"`) {
		t.Errorf("its log is\n%s", log)
	}
}

func closeAll(conns []*pgx.Conn) {
	for _, conn := range conns {
		_ = conn.Close(context.Background()) // it may be closed already
	}
}

func sqlOn(t *testing.T, conn *pgx.Conn, query string) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
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
			refuser := newRefuser(t, codes)
			err := launchOn(t, refuser.url).wait()
			last := codes[len(codes)-1]
			if err == nil || !strings.Contains(err.Error(), "SQLSTATE "+last) {
				t.Errorf("it ended with %v, want one of %s", err, last)
			}
			if got := int(refuser.refused.Load()); got != len(codes) {
				t.Errorf("it has tried %d times, want %d", got, len(codes))
			}
		})
	}
}

func launchOn(t *testing.T, database string) *program {
	t.Helper()
	return launch(t, environment(secret.New(database), nil), "serve")
}

// refuser refuses connections as Postgres does, each with the next code, and the last one from then on.
type refuser struct {
	url     string
	refused atomic.Int64
}

func newRefuser(t *testing.T, codes []string) *refuser {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &refuser{url: fmt.Sprintf("postgres://u@%s/d?sslmode=disable", listener.Addr())}
	var refusing sync.WaitGroup
	t.Cleanup(refusing.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	refusing.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test has ended
			}
			backend := pgproto3.NewBackend(conn, conn)
			if _, err := backend.ReceiveStartupMessage(); err == nil {
				code := codes[min(int(r.refused.Add(1)), len(codes))-1]
				backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "refused"})
				_ = backend.Flush() // the client may have gone
			}
			_ = conn.Close()
		}
	})
	return r
}
