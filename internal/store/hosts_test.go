package store_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// silent is the address of a host that takes connections and says nothing, as one whose processes are stopped.
func silent(t *testing.T) string {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t) // the kernel takes connections that nobody accepts
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// withHosts is the database's address with other hosts before its own. Each may take a minute to answer.
func withHosts(t *testing.T, database secret.Value, before ...string) secret.Value {
	t.Helper()
	cfg := must(pgconn.ParseConfig(database.Reveal()))(t)
	var hosts, ports []string
	for _, addr := range before {
		host, port, err := net.SplitHostPort(addr)
		noError(t, err)
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
	refusing := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	_ = refusing.Close()
	address := withHosts(t, pgtest.Migrated(t), silent(t), refusing.Addr().String())
	s := must(store.Open(ctx, address))(t)
	t.Cleanup(s.Close)
	wantError(t, "the pool", s.DB.Ready(ctx), nil)
	must(s.Log.OpenFeed(ctx))(t).Close()
	wantError(t, "a connection of its own", errorOf(postgres.SchemaVersion(ctx, address)), nil)
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
		s := must(store.Open(ctx, test.address))(t)
		wantEqual(t, name+" is taken", s.DB.Ready(ctx) == nil, test.taken)
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
	w := &way{}
	w.lead(t, database)
	w.addr = listen(t, func(client net.Conn) {
		w.taken.Add(1)
		w.relay(client)
	})
	cfg := w.to.Load()
	w.url = secret.New("postgres://" + cfg.User + ":" + cfg.Password + "@" + w.addr + "/" + cfg.Database + "?sslmode=disable")
	return w
}

// listen is the address of a server that does this with each connection.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				serve(client)
			}()
		}
	}()
	return listener.Addr().String()
}

// passOn connects a client to a database, to which it first says something.
func passOn(client net.Conn, cfg *pgconn.Config, first []byte) {
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	server, err := net.Dial(network, address)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(first); err != nil {
		return
	}
	go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
	_, _ = io.Copy(client, server)
}

// lead has new connections go to a database, perhaps another one than before.
func (w *way) lead(t *testing.T, database secret.Value) {
	t.Helper()
	w.to.Store(must(pgconn.ParseConfig(database.Reveal()))(t))
}

// relay passes a connection on, to the database that it leads to whatever the client asks for.
func (w *way) relay(client net.Conn) {
	cfg := w.to.Load()
	first, err := pgproto3.NewBackend(client, client).ReceiveStartupMessage()
	if err != nil {
		return
	}
	if startup, is := first.(*pgproto3.StartupMessage); is {
		startup.Parameters["database"] = cfg.Database
	}
	if message, err := first.Encode(nil); err == nil {
		passOn(client, cfg, message)
	}
}

// A primary that was failed over and lives says that it takes writes, as the new one does. Which of them it is the Feed finds out: the
// pool uses no other than the Feed, and a Feed that was lost is opened elsewhere, if it can be.
func TestOfTwoHostsThatTakeWritesThePoolUsesTheFeeds(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	one, two := newWay(t, database), newWay(t, database)
	cfg := must(pgconn.ParseConfig(database.Reveal()))(t)
	s := open(t, secret.New("postgres://"+cfg.User+":"+cfg.Password+"@"+one.addr+","+two.addr+"/"+cfg.Database+"?sslmode=disable"))
	var used []*way
	for range 4 {
		feed := must(s.Log.OpenFeed(t.Context()))(t)
		a, b := one.taken.Load(), two.taken.Load()
		withoutFailure(t, s, 8) // at the same time, so that each takes a connection
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
		errorIf(t, used[i] == used[i+1], "the Feed was lost %d times, and then opened where it was lost", i+1)
	}
}

// Connections to a host that was lost hold their places in the pool for long. A Feed that finds the database again begins anew.
func TestConnectionsFromBeforeALossAreNotUsedAfterIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, pgtest.Migrated(t))
	noError(t, s.DB.Ready(ctx))
	for i, want := range []int32{1, 0} { // the first Feed has no loss behind it
		must(s.Log.OpenFeed(ctx))(t).Close()
		wantEqual(t, fmt.Sprintf("the pool's connections after Feed %d", i+1), s.DB.Stats().Total, want)
	}
	noError(t, s.DB.Ready(ctx))
}

// newCertificate writes a certificate that signs itself, and its key.
func newCertificate(t *testing.T) (certificate tls.Certificate, certFile, keyFile string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	noError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	der := must(x509.CreateCertificate(rand.Reader, template, template, public, private))(t)
	key := must(x509.MarshalPKCS8PrivateKey(private))(t)
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		noError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	}
	return must(tls.LoadX509KeyPair(certFile, keyFile))(t), certFile, keyFile
}

// certifiedWay is an address of a database that takes connections by TLS only, and only with this client's certificate.
func certifiedWay(t *testing.T, database secret.Value, server, client tls.Certificate) string {
	t.Helper()
	cfg := must(pgconn.ParseConfig(database.Reveal()))(t)
	clients := x509.NewCertPool()
	clients.AddCert(client.Leaf)
	ofServer := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	return listen(t, func(conn net.Conn) {
		var request [8]byte // a length, and the code for TLS
		if _, err := io.ReadFull(conn, request[:]); err != nil || binary.BigEndian.Uint32(request[4:]) != 80877103 {
			return
		}
		if _, err := io.WriteString(conn, "S"); err != nil {
			return
		}
		if encrypted := tls.Server(conn, ofServer); encrypted.Handshake() == nil {
			passOn(encrypted, cfg, nil)
		}
	})
}

// Every connection shows the certificate of sslcert: the pool's before there is a Feed, the Feed's, the pool's that follow the Feed to its
// host, those that ask which of several hosts takes writes, and those of commands. The driver keeps what it reads a certificate from beside
// one copy of a configuration, not in its tls.Config.
func TestEveryConnectionHasTheClientCertificate(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	server, _, _ := newCertificate(t)
	client, certFile, keyFile := newCertificate(t)
	cfg := must(pgconn.ParseConfig(database.Reveal()))(t)
	for name, hosts := range map[string]int{"one host": 1, "two hosts": 2} {
		var ways []string
		for range hosts {
			ways = append(ways, certifiedWay(t, database, server, client))
		}
		without := "postgres://" + cfg.User + ":" + cfg.Password + "@" + strings.Join(ways, ",") + "/" + cfg.Database + "?sslmode=require"
		_, err := postgres.SchemaVersion(t.Context(), secret.New(without))
		fatalIf(t, err == nil, "%s: the control connects without a certificate", name)
		address := secret.New(without + "&sslcert=" + certFile + "&sslkey=" + keyFile)
		wantError(t, name+", a connection of its own", errorOf(postgres.SchemaVersion(t.Context(), address)), nil)
		s := open(t, address)
		wantError(t, name+", the pool", s.DB.Ready(t.Context()), nil)
		for range 2 { // the second replaces the pool's connections
			feed := must(s.Log.OpenFeed(t.Context()))(t)
			wantError(t, name+", the pool after the Feed", s.DB.Ready(t.Context()), nil)
			feed.Close()
		}
	}
}
