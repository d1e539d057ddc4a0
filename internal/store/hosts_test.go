package store_test

import (
	"context"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// silent is the address of a host that takes connections and says nothing, as one whose processes are stopped.
func silent(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// withHosts is the database's address with other hosts before its own. Each may take a minute to answer.
func withHosts(t *testing.T, database secret.Value, before ...string) secret.Value {
	t.Helper()
	cfg, err := pgconn.ParseConfig(database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	_, own := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	hosts, ports := "", ""
	for _, addr := range before {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		hosts, ports = hosts+host+",", ports+port+","
	}
	port := "5432"
	if _, p, err := net.SplitHostPort(own); err == nil {
		port = p
	} else if i := strings.LastIndex(own, ".s.PGSQL."); i >= 0 {
		port = own[i+len(".s.PGSQL."):]
	}
	query := url.Values{"host": {hosts + cfg.Host}, "port": {ports + port}, "user": {cfg.User}, "sslmode": {"disable"}, "connect_timeout": {"60"}}
	if cfg.Password != "" {
		query.Set("password", cfg.Password)
	}
	return secret.New("postgres:///" + cfg.Database + "?" + strings.ReplaceAll(query.Encode(), "+", "%20"))
}

// A host that says nothing, and one that refuses, must not keep the one that takes writes from being found.
func TestHostsThatDoNotAnswerAreGoneByAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // one after the other, it would take a minute
	defer cancel()
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = refusing.Close()
	address := withHosts(t, pgtest.Migrated(t), silent(t), refusing.Addr().String())
	s, err := store.Open(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Ready(ctx); err != nil {
		t.Errorf("the pool: %v", err)
	}
	feed, err := s.OpenFeed(ctx)
	if err != nil {
		t.Fatalf("the feed: %v", err)
	}
	feed.Close()
	if _, err := store.SchemaVersion(ctx, address); err != nil {
		t.Errorf("a connection of its own: %v", err)
	}
}

// Of several hosts, one that only reads is not taken, though nobody asked for target_session_attrs.
func TestOfSeveralHostsOneThatOnlyReadsIsNotTaken(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	readOnly := func(address secret.Value) secret.Value {
		return secret.New(address.Reveal() + "&default_transaction_read_only=on") // as a standby says of itself
	}
	for name, test := range map[string]struct {
		address secret.Value
		taken   bool
	}{
		"several hosts, none of which takes writes": {readOnly(withHosts(t, database, silent(t))), false},
		"several hosts": {withHosts(t, database, silent(t)), true},
		"one host":      {readOnly(withHosts(t, database)), true}, // nobody else could be meant
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		s, err := store.Open(ctx, test.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ready(ctx); (err == nil) != test.taken {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		cancel()
	}
}

// Connections to a host that was lost hold their places in the pool for long. Whoever finds the database again begins anew.
func TestConnectionsFromBeforeALossAreNotUsedAfterIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, err := store.Open(ctx, pgtest.Migrated(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int32{1, 0} { // the first Feed has no loss behind it
		feed, err := s.OpenFeed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		feed.Close()
		if got := s.PoolStats().Total; got != want {
			t.Errorf("after Feed %d the pool has %d connections, want %d", i+1, got, want)
		}
	}
	if err := s.Ready(ctx); err != nil {
		t.Error(err)
	}
}
