package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// pair is a self-signed certificate for 127.0.0.1, with its key.
type pair struct {
	cert, key []byte // PEM
}

func newPair(t *testing.T, serial int64) pair {
	t.Helper()
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert := must(x509.CreateCertificate(rand.Reader, template, template, private.Public(), private))(t)
	key := must(x509.MarshalPKCS8PrivateKey(private))(t)
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
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
	writeFile(t, dir, "cert.pem", string(p.cert))
	writeFile(t, dir, "key.pem", string(p.key))
}

// client trusts the pair and nobody else, and keeps no connection.
func (p pair) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.cert)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}}
}

// serial is that of the certificate that the server shows, by any signer.
func serial(t *testing.T, addr string) int64 {
	t.Helper()
	conn := must(tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}))(t)
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func shows(t *testing.T, addr string, want int64) {
	t.Helper()
	if got := serial(t, addr); got != want {
		t.Errorf("certificate %d, want %d", got, want)
	}
}

func TestServerAnswersByTLSFromVersion12On(t *testing.T) {
	t.Parallel()
	own := newPair(t, 1)
	_, settings := own.folder(t)
	p := served(t, pgtest.Migrated(t), settings)
	addr := p.addr()
	for _, path := range []string{"/ping", "/v1.0/me", "/nope"} {
		res := must(own.client().Get("https://" + addr + path))(t) //nolint:bodyclose // closed in the next line
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
	plain := served(t, pgtest.Migrated(t), nil)
	if got := call(t, "GET", plain.base()+"/ping", "", ""); got.code != 200 || got.header.Get("Strict-Transport-Security") != "" {
		t.Errorf("by HTTP: %+v", got)
	}
}

func TestCertificateThatChangesIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	first, second, third := newPair(t, 1), newPair(t, 2), newPair(t, 3)
	dir, settings := first.folder(t)
	p := served(t, pgtest.Migrated(t), settings)
	addr := p.addr()
	shows(t, addr, 1)
	second.put(t, dir)
	servertest.Eventually(t, "the second certificate is shown", func() bool { return serial(t, addr) == 2 })

	// Half of a new pair is none, and the certificate before stays.
	writeFile(t, dir, "cert.pem", string(third.cert))
	const warning = "the one before stays"
	p.logs(warning)
	shows(t, addr, 2)
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
	_, right := newPair(t, 1).folder(t)
	_, others := newPair(t, 2).folder(t)
	cert, key, database := right["TLS_CERT_FILE"], right["TLS_KEY_FILE"], pgtest.Migrated(t)
	const noPair = "TLS_CERT_FILE, TLS_KEY_FILE: the certificate and its private key"
	for _, test := range []struct{ cert, key, want string }{
		{cert, "", "TLS_KEY_FILE is missing"},
		{"", key, "TLS_CERT_FILE is missing"},
		{cert + "x", key, "TLS_CERT_FILE: the file can't be read"},
		{cert, others["TLS_KEY_FILE"], noPair},
		{key, cert, noPair},
		{cert, cert, noPair},
	} {
		env := environment(database, map[string]string{"TLS_CERT_FILE": test.cert, "TLS_KEY_FILE": test.key})
		spawn(t, env, "", "serve").fails(2, test.want+".*")
	}
}

// `server dev` says how it is reached.
func TestDevWithACertificatePrintsAddressesOfHTTPS(t *testing.T) {
	t.Parallel()
	own := newPair(t, 1)
	_, settings := own.folder(t)
	settings["DATABASE_URL"], settings["LISTEN_ADDR"] = pgtest.Migrated(t).Reveal(), "127.0.0.1:0"
	p := launch(t, settings, "dev", "--dir", t.TempDir())
	p.eventually("it has printed its address", func() bool { return strings.Contains(p.stdout.String(), "Base URL:") })
	base := regexp.MustCompile("Base URL: +(.*)").FindStringSubmatch(p.stdout.String())[1]
	res := must(own.client().Get(base + "/ping"))(t) //nolint:bodyclose // closed in the next line
	_ = res.Body.Close()
	if !strings.HasPrefix(base, "https://") || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %d", base, res.StatusCode)
	}
}
