package certificate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// put writes a new certificate with this serial number, and its key.
func put(t *testing.T, dir string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Kubernetes mounts a secret as links to a folder that it replaces: the files' own names, and the links', never change.
func TestFilesBehindALinkThatIsReplacedAreReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "first"), 1)
	put(t, filepath.Join(dir, "second"), 2)
	data := filepath.Join(dir, "..data")
	if err := os.Symlink("first", data); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	f, err := Open(filepath.Join(data, "tls.crt"), filepath.Join(data, "tls.key"), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	f.interval = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	serial := func() int64 {
		pair, err := f.Config().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Fatalf("certificate %d, want the first", got)
	}
	if err := os.Symlink("second", data+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data+".new", data); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); serial() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the second certificate is not used")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if bytes.Contains(log.Bytes(), []byte("PRIVATE")) || !bytes.Contains(log.Bytes(), []byte("not_after=")) {
		t.Errorf("the log: %s", log.Bytes())
	}
}
