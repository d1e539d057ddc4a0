package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// A SIGHUP, which the rotation of logs sends, ends nothing: requests under way go on, and the certificate is read again.
func TestHangupEndsNothing(t *testing.T) {
	t.Parallel()
	first, second := newPair(t, 1), newPair(t, 2)
	dir, env := first.folder(t)
	p := spawn(t, environment(pgtest.Migrated(t), env), "", "serve")
	addr := strings.TrimPrefix(p.base(), "http://")
	for range 3 {
		p.signal(syscall.SIGHUP)
	}
	servertest.Eventually(t, "the signal is told of", func() bool { return strings.Contains(p.stderr.String(), "SIGHUP: the TLS certificate was read again") })
	if got := serial(t, addr); got != 1 {
		t.Errorf("certificate %d", got)
	}
	second.put(t, dir)
	p.signal(syscall.SIGHUP)
	servertest.Eventually(t, "the second certificate is shown", func() bool { return serial(t, addr) == 2 })
	if err := os.WriteFile(dir+"/cert.pem", []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	servertest.Eventually(t, "a wrong one is told of", func() bool {
		return strings.Contains(p.stderr.String(), `"level":"ERROR","msg":"SIGHUP: the TLS certificate can't be used; the one before stays"`)
	})
	if got := serial(t, addr); got != 2 {
		t.Errorf("certificate %d", got)
	}
	p.signal(syscall.SIGTERM)
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestHangupWithoutACertificateEndsNothing(t *testing.T) {
	t.Parallel()
	p := spawn(t, environment(pgtest.Migrated(t), nil), "", "serve")
	base := p.base()
	slow := dial(t, base)
	slow.upload()
	p.signal(syscall.SIGHUP)
	servertest.Eventually(t, "the signal is told of", func() bool { return strings.Contains(p.stderr.String(), "SIGHUP: there is nothing to read again") })
	slow.write(uploadBody[10:])
	if got, err := slow.read(patience); err != nil || got.code != 200 {
		t.Errorf("the request that was under way: %+v, %v", got, err)
	}
}
