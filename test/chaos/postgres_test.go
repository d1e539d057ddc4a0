package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/servertest"
)

// cluster is what instances stand on: a Postgres, or a primary with its standby.
type cluster struct {
	direct  []string            // addresses past every proxy, the primary's first
	servers []*privatepg.Server // ours, in the same order; none where the Postgres is the tests' shared one
	repl    *proxy              // between standby and primary
	moves   bool                // instances have one address, which may be moved
}

// shared is a database on the Postgres that all tests use. It can't be stopped.
func shared(t testing.TB) *cluster {
	t.Helper()
	return &cluster{direct: []string{pgtest.Migrated(t).Reveal()}}
}

// own is a Postgres of the scenario's own, as durable as in production.
func own(t testing.TB) *cluster {
	t.Helper()
	server := startPostgres(t, nil)
	return &cluster{direct: []string{server.URL("postgres")}, servers: []*privatepg.Server{server}}
}

// withStandby is a primary whose commits wait for a standby that follows it through a proxy.
func withStandby(t testing.TB) *cluster {
	t.Helper()
	g := replicated(t)
	g.set(t, "synchronous_standby_names", "standby")
	servertest.Eventually(t, "the standby was synchronous", func() bool {
		return g.text(t, 0, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == "1"
	})
	return g
}

// withAsyncStandby is a primary with a standby that its commits don't wait for, behind one address.
func withAsyncStandby(t testing.TB) *cluster {
	t.Helper()
	g := replicated(t)
	g.moves = true
	return g
}

// replicated is a primary with a standby that follows it through a proxy.
func replicated(t testing.TB) *cluster {
	t.Helper()
	primary := startPostgres(t, nil)
	network, address := endpoint(t, primary.URL("postgres"))
	repl := newProxy(t, network, address)
	host, port, _ := strings.Cut(repl.addr(), ":")
	standby := startPostgres(t, map[string]string{
		"primary_conninfo": "host=" + host + " port=" + port + " user=postgres application_name=standby",
	})
	// The standby's data are the primary's, taken while it was down: pg_basebackup is not on every machine that can run this.
	ctx := t.Context()
	servertest.OK(t, primary.Stop(ctx), standby.Stop(ctx), copyData(primary.Dir(), standby.Dir()), primary.Start(ctx), standby.Start(ctx))
	g := &cluster{
		direct:  []string{primary.URL("postgres"), standby.URL("postgres")},
		servers: []*privatepg.Server{primary, standby}, repl: repl,
	}
	servertest.Eventually(t, "the standby followed", func() bool {
		return g.text(t, 0, `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`) == "1"
	})
	return g
}

func startPostgres(t testing.TB, parameters map[string]string) *privatepg.Server {
	t.Helper()
	all := map[string]string{"max_connections": "200", "wal_keep_size": "1GB"}
	maps.Copy(all, parameters)
	server := servertest.Must(privatepg.Start(t.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: all}))(t)
	t.Cleanup(func() { _ = server.Close() })
	return server
}

// copyData makes a standby's data folder out of a stopped primary's.
func copyData(from, to string) error {
	from, to = filepath.Join(from, "data"), filepath.Join(to, "data")
	var owner syscall.Stat_t
	if err := errors.Join(syscall.Stat(to, &owner), os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, "standby.signal"), nil, 0o600); err != nil {
		return err
	}
	err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid)))
	})
	return errors.Join(err, os.Chmod(to, 0o700))
}

// endpoint is where a proxy finds the server of an address.
func endpoint(t testing.TB, address string) (network, addr string) {
	t.Helper()
	cfg := servertest.Must(pgconn.ParseConfig(address))(t)
	return pgconn.NetworkAddress(cfg.Host, cfg.Port)
}

// through is the DATABASE_URL of an instance that reaches the cluster by these proxies, in their order.
func (g *cluster) through(t testing.TB, proxies []*proxy, options string) string {
	t.Helper()
	cfg := servertest.Must(pgconn.ParseConfig(g.direct[0]))(t)
	var hosts []string
	for _, p := range proxies {
		hosts = append(hosts, p.addr())
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Host: strings.Join(hosts, ","), Path: "/" + cfg.Database}
	query := url.Values{}
	if cfg.TLSConfig == nil {
		query.Set("sslmode", "disable")
	}
	if len(proxies) > 1 {
		query.Set("target_session_attrs", "read-write")
	}
	if options != "" {
		query.Set("options", options)
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20") // pgx reads + as itself
	return u.String()
}

// exec runs a statement past the proxies.
func (g *cluster) exec(t testing.TB, server int, sql string, args ...any) {
	t.Helper()
	if _, err := g.query(t.Context(), server, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// set changes a setting of the primary's.
func (g *cluster) set(t testing.TB, name, value string) {
	t.Helper()
	g.exec(t, 0, `ALTER SYSTEM SET `+name+` = '`+value+`'`)
	g.exec(t, 0, `SELECT pg_reload_conf()`)
}

// text is the one value of a query, run past the proxies.
func (g *cluster) text(t testing.TB, server int, sql string, args ...any) string {
	t.Helper()
	rows, err := g.query(t.Context(), server, sql, args...)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%s: %d rows, %v", sql, len(rows), err)
	}
	return rows[0]
}

// query gives the first column of each row as text.
func (g *cluster) query(ctx context.Context, server int, sql string, args ...any) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, g.direct[server])
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		if err != nil || len(values) == 0 {
			return "", err
		}
		return fmt.Sprint(values[0]), nil
	})
}

// crash kills the first process of Postgres. Its children find that out by themselves, and Postgres recovers.
func (g *cluster) crash(ctx context.Context) error {
	file, err := os.ReadFile(filepath.Join(g.servers[0].Dir(), "data", "postmaster.pid"))
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(file), &pid); err != nil || pid < 2 {
		return fmt.Errorf("postmaster.pid is %q", file)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for syscall.Kill(pid, 0) == nil && ctx.Err() == nil { // its supervisor has yet to hear of it
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (g *cluster) startAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := g.servers[0].Start(ctx)
		if err == nil { // starting what only seems to run does nothing, so it is asked
			_, err = g.query(ctx, 0, `SELECT 1`)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// promote makes a primary of the standby, and reports whether it is one.
func (g *cluster) promote(t testing.TB) bool {
	rows, err := g.query(t.Context(), 1, `SELECT pg_promote(true, 60)`)
	if err != nil || !slices.Equal(rows, []string{"true"}) {
		t.Errorf("pg_promote answered %v, %v", rows, err)
		return false
	}
	return true
}

// silenceNotify replaces every function in the database that notifies by one that doesn't.
func (g *cluster) silenceNotify(t testing.TB) {
	t.Helper()
	definitions := servertest.Must(g.query(t.Context(), 0, `
		SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE n.nspname = 'public' AND p.prokind = 'f' AND p.prosrc ILIKE '%pg_notify(%'`))(t)
	if len(definitions) == 0 {
		t.Fatal("no function in the database notifies: there is nothing to lose")
	}
	for _, definition := range definitions {
		g.exec(t, 0, strings.ReplaceAll(definition, "pg_notify(", "concat("))
	}
}

// terminate ends the instances' sessions that meet the condition, and tells how many there were.
func (g *cluster) terminate(ctx context.Context, condition string) (int, error) {
	ended, err := g.query(ctx, 0, `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND `+condition)
	return len(ended), err
}
