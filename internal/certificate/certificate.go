// Package certificate keeps a TLS certificate that lies in two files, and reads them again when they change: a renewal
// needs no restart.
package certificate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// interval is how often the files are read. They are small, and reading them sees every way of replacing them, which watching
// for events does not: new files under old names, links that lead elsewhere, another file system.
const interval = time.Second

// Files is a certificate with its private key. It is safe for concurrent use.
type Files struct {
	certificate, key string // paths
	log              *slog.Logger
	interval         time.Duration

	current atomic.Pointer[tls.Certificate]
	reading sync.Mutex
	read    [sha256.Size]byte // under reading: the hash of what current was made of
}

// Open reads the files: the chain in PEM, the server's own certificate first, and its private key. It returns an error where
// one can't be read or they don't belong together.
func Open(certificate, key string, log *slog.Logger) (*Files, error) {
	f := &Files{certificate: certificate, key: key, log: log, interval: interval}
	return f, f.Reload()
}

// Config is for a listener that answers with the certificate as it is at each handshake: TLS 1.2 and newer.
func (f *Files) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current.Load(), nil },
	}
}

// Run reads the files again and again until ctx ends. What can't be used is said once in the log, and changes nothing: between the
// writing of one file and of the other they don't belong together.
func (f *Files) Run(ctx context.Context) error {
	ticker := time.NewTicker(f.interval)
	defer ticker.Stop()
	var failure string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		switch err := f.Reload(); {
		case err == nil:
			failure = ""
		case err.Error() != failure:
			failure = err.Error()
			f.log.Warn("the TLS certificate has changed and can't be used; the one before stays", "error", failure)
		}
	}
}

// Reload reads the files, and takes what is in them where it is new. Where it can't be used it returns an error, and the certificate before stays.
func (f *Files) Reload() error {
	f.reading.Lock()
	defer f.reading.Unlock()
	chain, err := os.ReadFile(f.certificate)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return fmt.Errorf("reading the private key: %w", err)
	}
	read := sha256.Sum256(bytes.Join([][]byte{chain, key}, []byte{0}))
	if read == f.read {
		return nil
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("the certificate and its private key: %w", err)
	}
	f.read = read
	f.current.Store(&pair)
	f.log.Info("TLS certificate", "names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter.UTC())
	return nil
}
