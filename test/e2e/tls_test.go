//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// authority signs certificates for a loopback address with openssl.
type authority struct {
	t    *testing.T
	host string
	dir  string // with ca.pem and ca.key
}

func newAuthority(t *testing.T, host string) authority {
	t.Helper()
	a := authority{t, host, folder(t)}
	a.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=e2e",
		"-keyout", a.path("ca.key"), "-out", a.path("ca.pem"))
	return a
}

func (a authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a authority) openssl(arguments ...string) {
	a.t.Helper()
	if output, err := exec.CommandContext(a.t.Context(), "openssl", arguments...).CombinedOutput(); err != nil {
		a.t.Fatalf("openssl %v: %v\n%s", arguments, err, output)
	}
}

// renew puts a new certificate and key in the place of those before, as the clients of certificate authorities do.
func (a authority) renew(cert, key string) {
	a.t.Helper()
	a.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN="+a.host, "-keyout", key+".new", "-out", a.path("request"))
	write(a.t, a.path("names"), "subjectAltName=IP:"+a.host+"\n")
	a.openssl("x509", "-req", "-in", a.path("request"), "-CA", a.path("ca.pem"), "-CAkey", a.path("ca.key"), "-CAcreateserial", "-days", "1",
		"-extfile", a.path("names"), "-out", cert+".new")
	for _, path := range []string{cert, key} {
		servertest.OK(a.t, os.Rename(path+".new", path))
	}
}

// Without a proxy the server answers by HTTPS itself, to real clients, and a certificate that is renewed fails none of them.
func TestRenewedCertificateFailsNoRequest(t *testing.T) {
	t.Parallel()
	s := prepared(t, binary, newDatabase(t))
	host, _, _ := net.SplitHostPort(s.addr)
	ca := newAuthority(t, host)
	cert, key := ca.path("cert.pem"), ca.path("key.pem")
	ca.renew(cert, key)
	s.env = append(s.env, "TLS_CERT_FILE="+cert, "TLS_KEY_FILE="+key)
	s.start()
	curl := func(arguments ...string) (string, error) {
		output, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--cacert", ca.path("ca.pem")}, arguments...)...).CombinedOutput()
		return string(output), err
	}
	base := "https://" + s.addr
	s.Await(t, "the server is ready", func() bool { _, err := curl("-f", base+"/readyz"); return err == nil })

	output, err := curl("-i", base+"/v1.0/me", "-H", "Authorization: Bearer "+adminKey)
	if err != nil || !strings.HasPrefix(output, "HTTP/2 200") || !strings.Contains(output, "strict-transport-security: max-age=31536000") {
		t.Errorf("curl: %v\n%s", err, output)
	}
	for version, accepted := range map[string]bool{"1.1": false, "1.2": true, "1.3": true} {
		// SECLEVEL=0, or this curl would refuse TLS 1.1 by itself.
		_, err := curl("--ciphers", "DEFAULT@SECLEVEL=0", "--tls-max", version, "--tlsv1.1", base+"/ping")
		if (err == nil) != accepted {
			t.Errorf("TLS %s: %v", version, err)
		}
	}
	if output, err := curl("http://" + s.addr + "/ping"); err == nil && strings.Contains(output, "pong") {
		t.Errorf("without TLS: %s", output)
	}

	content := servertest.Must(os.ReadFile(ca.path("ca.pem")))(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(content)
	request := servertest.Must(http.NewRequest(http.MethodGet, base+"/auth/verify", nil))(t)
	request.Header.Set("Authorization", "Bearer "+adminKey)
	var requests, failed atomic.Int64
	var clients sync.WaitGroup
	var serials sync.Map
	done := make(chan struct{})
	for i := range 8 {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: i%2 == 0}
		t.Cleanup(transport.CloseIdleConnections)
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond):
				}
				response, err := transport.RoundTrip(request.Clone(context.Background()))
				requests.Add(1)
				if err != nil || response.StatusCode != http.StatusOK {
					failed.Add(1)
					t.Errorf("%v %v", response, err)
					continue
				}
				_ = response.Body.Close()
				serials.Store(response.TLS.PeerCertificates[0].SerialNumber.String(), true)
			}
		})
	}
	seen := func() (n int) {
		serials.Range(func(any, any) bool { n++; return true })
		return n
	}
	const renewals = 5
	for i := range renewals {
		servertest.Eventually(t, "the certificate is shown", func() bool { return seen() == i+1 })
		ca.renew(cert, key)
	}
	servertest.Eventually(t, "the last certificate is shown", func() bool { return seen() == renewals+1 })
	close(done)
	clients.Wait()
	counted(t, "TLS by the server itself, certificates renewed under load", version(t, "curl", "--version")+", "+version(t, "openssl", "version"),
		"%d renewals, %d requests: %d failed", renewals, requests.Load(), failed.Load())
}
