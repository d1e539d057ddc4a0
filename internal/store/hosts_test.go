package store_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
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
	var hosts, ports []string
	for _, addr := range before {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		hosts, ports = append(hosts, host), append(ports, port)
	}
	query := url.Values{"host": {strings.Join(append(hosts, cfg.Host), ",")}, "user": {cfg.User}, "sslmode": {"disable"}, "connect_timeout": {"60"},
		"port": {strings.Join(append(ports, strconv.Itoa(int(cfg.Port))), ",")}}
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
	if err := s.DB.Ready(ctx); err != nil {
		t.Errorf("the pool: %v", err)
	}
	feed, err := s.Log.OpenFeed(ctx)
	if err != nil {
		t.Fatalf("the feed: %v", err)
	}
	feed.Close()
	if _, err := postgres.SchemaVersion(ctx, address); err != nil {
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
		bound := patience
		if !test.taken { // which takes all of it
			bound = 2 * time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		s, err := store.Open(ctx, test.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Ready(ctx); (err == nil) != test.taken {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		cancel()
	}
}

// way is another address of a database, which counts its connections.
type way struct {
	addr  string
	url   secret.Value
	to    atomic.Pointer[pgconn.Config]
	taken atomic.Int64
}

func newWay(t *testing.T, database secret.Value) *way {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	w := &way{addr: listener.Addr().String()}
	w.lead(t, database)
	cfg := w.to.Load()
	w.url = secret.New("postgres://" + cfg.User + ":" + cfg.Password + "@" + w.addr + "/" + cfg.Database + "?sslmode=disable")
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			w.taken.Add(1)
			go w.relay(client)
		}
	}()
	return w
}

// lead has new connections go to a database, perhaps another one than before.
func (w *way) lead(t *testing.T, database secret.Value) {
	t.Helper()
	cfg, err := pgconn.ParseConfig(database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	w.to.Store(cfg)
}

// relay passes a connection on, to the database that it leads to whatever the client asks for.
func (w *way) relay(client net.Conn) {
	defer client.Close()
	cfg := w.to.Load()
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	server, err := net.Dial(network, address)
	if err != nil {
		return
	}
	defer server.Close()
	first, err := pgproto3.NewBackend(client, client).ReceiveStartupMessage()
	if err != nil {
		return
	}
	if startup, is := first.(*pgproto3.StartupMessage); is {
		startup.Parameters["database"] = cfg.Database
	}
	message, err := first.Encode(nil)
	if err != nil {
		return
	}
	if _, err := server.Write(message); err != nil {
		return
	}
	go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
	_, _ = io.Copy(client, server)
}

// A primary that was failed over and lives says that it takes writes, as the new one does. Which of them it is the Feed finds out: the
// pool uses no other than the Feed, and a Feed that was lost is opened elsewhere, if it can be.
func TestOfTwoHostsThatTakeWritesThePoolUsesTheFeeds(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	one, two := newWay(t, database), newWay(t, database)
	cfg, err := pgconn.ParseConfig(database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), secret.New("postgres://"+cfg.User+":"+cfg.Password+"@"+one.addr+","+two.addr+"/"+cfg.Database+"?sslmode=disable"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var used []*way
	for range 4 {
		feed := must(s.Log.OpenFeed(t.Context()))(t)
		a, b := one.taken.Load(), two.taken.Load()
		var group errgroup.Group
		for range 8 { // at the same time, so that each takes a connection
			group.Go(func() error {
				_, err := s.AccessKey(t.Context(), uuid.New())
				if errors.Is(err, store.ErrNotFound) {
					return nil
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		a, b = one.taken.Load()-a, two.taken.Load()-b
		feed.Close()
		switch {
		case a > 0 && b == 0:
			used = append(used, one)
		case b > 0 && a == 0:
			used = append(used, two)
		default:
			t.Fatalf("the pool has taken %d connections to one host and %d to the other", a, b)
		}
	}
	for i := range used[1:] {
		if used[i] == used[i+1] {
			t.Errorf("the Feed was lost %d times, and then opened where it was lost", i+1)
		}
	}
}

// Connections to a host that was lost hold their places in the pool for long. A Feed that finds the database again begins anew.
func TestConnectionsFromBeforeALossAreNotUsedAfterIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, err := store.Open(ctx, pgtest.Migrated(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.DB.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int32{1, 0} { // the first Feed has no loss behind it
		feed, err := s.Log.OpenFeed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		feed.Close()
		if got := s.DB.Stats().Total; got != want {
			t.Errorf("after Feed %d the pool has %d connections, want %d", i+1, got, want)
		}
	}
	if err := s.DB.Ready(ctx); err != nil {
		t.Error(err)
	}
}
