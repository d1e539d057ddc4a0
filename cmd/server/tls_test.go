package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// pair is a self-signed certificate for 127.0.0.1, with its key.
type pair struct {
	serial    int64
	cert, key []byte // PEM
}

func newPair(t *testing.T, serial int64) pair {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pair{serial, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
}

// folder is one with the pair's files, and the settings that name them.
func (p pair) folder(t *testing.T) (dir string, settings map[string]string) {
	t.Helper()
	dir = t.TempDir()
	p.put(t, dir)
	return dir, map[string]string{"TLS_CERT_FILE": filepath.Join(dir, "cert.pem"), "TLS_KEY_FILE": filepath.Join(dir, "key.pem")}
}

func (p pair) put(t *testing.T, dir string) {
	t.Helper()
	for name, content := range map[string][]byte{"cert.pem": p.cert, "key.pem": p.key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// client trusts the pair and nobody else, and keeps no connection.
func (p pair) client(t *testing.T) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(p.cert) {
		t.Fatal("the certificate can't be read")
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}}
}

// serial is that of the certificate that the server shows, by any signer.
func serial(t *testing.T, addr string) int64 {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestServerAnswersByTLSFromVersion12On(t *testing.T) {
	t.Parallel()
	own := newPair(t, 1)
	_, settings := own.folder(t)
	p := launch(t, environment(pgtest.Migrated(t), settings), "serve")
	addr := strings.TrimPrefix(listening(t, p.stderr, p.ended), "http://")
	for _, path := range []string{"/ping", "/v1.0/me", "/nope"} {
		res, err := own.client(t).Get("https://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.ProtoMajor != 2 || res.Header.Get("Strict-Transport-Security") != "max-age=31536000" {
			t.Errorf("%s: %s %v", path, res.Proto, res.Header)
		}
	}
	for version, accepted := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version})
		if (err == nil) != accepted {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	// Without TLS nothing is answered there, and no server without it asks for it.
	if got := call(t, "GET", "http://"+addr+"/v1.0/me", testKey, ""); got.code != 400 || strings.Contains(got.body, "permission") {
		t.Errorf("by HTTP: %+v", got)
	}
	plain := launch(t, environment(pgtest.Migrated(t), nil), "serve")
	if got := call(t, "GET", plain.base()+"/ping", "", ""); got.code != 200 || got.header.Get("Strict-Transport-Security") != "" {
		t.Errorf("by HTTP: %+v", got)
	}
}

func TestCertificateThatChangesIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	first, second, third := newPair(t, 1), newPair(t, 2), newPair(t, 3)
	dir, settings := first.folder(t)
	p := launch(t, environment(pgtest.Migrated(t), settings), "serve")
	addr := strings.TrimPrefix(listening(t, p.stderr, p.ended), "http://")
	if got := serial(t, addr); got != 1 {
		t.Fatalf("certificate %d, want the first", got)
	}
	second.put(t, dir)
	servertest.Eventually(t, "the second certificate is shown", func() bool { return serial(t, addr) == 2 })

	// Half of a new pair is none, and the certificate before stays.
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), third.cert, 0o600); err != nil {
		t.Fatal(err)
	}
	const warning = "the one before stays"
	servertest.Eventually(t, "the log says that the pair is none", func() bool { return strings.Contains(p.stderr.String(), warning) })
	if got := serial(t, addr); got != 2 {
		t.Errorf("certificate %d, want the second", got)
	}
	third.put(t, dir)
	servertest.Eventually(t, "the third certificate is shown", func() bool { return serial(t, addr) == 3 })
	if said := strings.Count(p.stderr.String(), warning); said != 1 {
		t.Errorf("the log said it %d times", said)
	}
	if log := p.stderr.String(); strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("the log shows a key:\n%s", log)
	}
}

func TestCertificateThatCannotBeUsedEndsTheProgram(t *testing.T) {
	t.Parallel()
	one, other := newPair(t, 1), newPair(t, 2)
	_, right := one.folder(t)
	_, others := other.folder(t)
	for name, test := range map[string]struct {
		cert, key string
		want      string
	}{
		"no key":            {right["TLS_CERT_FILE"], "", "TLS_KEY_FILE is missing"},
		"no certificate":    {"", right["TLS_KEY_FILE"], "TLS_CERT_FILE is missing"},
		"no file":           {right["TLS_CERT_FILE"] + "x", right["TLS_KEY_FILE"], "TLS_CERT_FILE: the file can't be read"},
		"another's key":     {right["TLS_CERT_FILE"], others["TLS_KEY_FILE"], "TLS_CERT_FILE, TLS_KEY_FILE: the certificate and its private key"},
		"the other way":     {right["TLS_KEY_FILE"], right["TLS_CERT_FILE"], "TLS_CERT_FILE, TLS_KEY_FILE: the certificate and its private key"},
		"the same for both": {right["TLS_CERT_FILE"], right["TLS_CERT_FILE"], "TLS_CERT_FILE, TLS_KEY_FILE: the certificate and its private key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := environment(pgtest.Migrated(t), map[string]string{"TLS_CERT_FILE": test.cert, "TLS_KEY_FILE": test.key})
			_, _, err := cli(t, env, "", "serve")
			if _, usage := errors.AsType[config.UsageError](err); !usage || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}

// `server dev` says how it is reached.
func TestDevWithACertificatePrintsAddressesOfHTTPS(t *testing.T) {
	t.Parallel()
	own := newPair(t, 1)
	_, settings := own.folder(t)
	settings["DATABASE_URL"], settings["LISTEN_ADDR"] = pgtest.Migrated(t).Reveal(), "127.0.0.1:0"
	p := launch(t, settings, "dev", "--dir", t.TempDir())
	servertest.Eventually(t, "it has printed its address", func() bool { return strings.Contains(p.stdout.String(), "Base URL:") })
	_, base, _ := strings.Cut(p.stdout.String(), "Base URL:    ")
	base, _, _ = strings.Cut(base, "\n")
	res, err := own.client(t).Get(base + "/ping")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if !strings.HasPrefix(base, "https://") || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %d", base, res.StatusCode)
	}
}
