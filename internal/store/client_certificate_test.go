package store_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// newCertificate writes a certificate that signs itself, and its key.
func newCertificate(t *testing.T) (certificate tls.Certificate, certFile, keyFile string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	der := must(x509.CreateCertificate(rand.Reader, template, template, public, private))(t)
	key := must(x509.MarshalPKCS8PrivateKey(private))(t)
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
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
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var request [8]byte // a length, and the code for TLS
				if _, err := io.ReadFull(conn, request[:]); err != nil || binary.BigEndian.Uint32(request[4:]) != 80877103 {
					return
				}
				if _, err := io.WriteString(conn, "S"); err != nil {
					return
				}
				encrypted := tls.Server(conn, ofServer)
				if encrypted.Handshake() != nil {
					return
				}
				network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
				postgres, err := net.Dial(network, address)
				if err != nil {
					return
				}
				defer postgres.Close()
				go func() { _, _ = io.Copy(postgres, encrypted); _ = postgres.Close() }()
				_, _ = io.Copy(encrypted, postgres)
			}()
		}
	}()
	return listener.Addr().String()
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
		if _, err := postgres.SchemaVersion(t.Context(), secret.New(without)); err == nil {
			t.Fatalf("%s: the control connects without a certificate", name)
		}
		address := secret.New(without + "&sslcert=" + certFile + "&sslkey=" + keyFile)
		if _, err := postgres.SchemaVersion(t.Context(), address); err != nil {
			t.Errorf("%s, a connection of its own: %v", name, err)
		}
		s := must(store.Open(t.Context(), address))(t)
		t.Cleanup(s.Close)
		if err := s.DB.Ready(t.Context()); err != nil {
			t.Errorf("%s, the pool: %v", name, err)
		}
		for range 2 { // the second replaces the pool's connections
			feed := must(s.Log.OpenFeed(t.Context()))(t)
			if err := s.DB.Ready(t.Context()); err != nil {
				t.Errorf("%s, the pool after the Feed: %v", name, err)
			}
			feed.Close()
		}
	}
}
