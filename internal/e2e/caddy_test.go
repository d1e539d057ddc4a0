//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// newCaddy starts Caddy with examples/caddy/Caddyfile, in which each pair of strings is replaced.
func newCaddy(t *testing.T, w *world, replacements ...string) *site {
	t.Helper()
	dir := folder(t)
	s := &site{world: w, name: "caddy", client: client(t), backend: newBackend(t)}
	addr := freeAddr(t)
	s.url = "http://" + addr
	access := filepath.Join(dir, "access.log")
	newFiles(t, dir)
	write(t, filepath.Join(dir, "Caddyfile"), example(t, "caddy/Caddyfile", append([]string{
		"{\n\tlog {\n\t\timport", "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tlog {\n\t\timport",
		"127.0.0.1:8080", w.server.addr,
		"127.0.0.1:3000", s.backend.addr(),
		"http://localhost", s.url,
		"/var/log/caddy/accesskeys.log", access,
		"root * /srv", "root * " + dir + "/srv",
	}, replacements...)...))
	caddy := exec.Command("caddy", "run", "--config", filepath.Join(dir, "Caddyfile"), "--adapter", "caddyfile")
	caddy.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	p := start(t, "caddy", unprivileged(t, caddy, dir))
	s.logs = []string{access, p.log}
	eventually(t, "caddy listens", func() bool {
		if !p.running() {
			t.Fatalf("caddy has ended: %v\n%s", p.err, p.tail())
		}
		return listens(addr)
	})
	return s
}

func TestCaddyLetsInOnlyWhomTheServiceKnows(t *testing.T) {
	s := newCaddy(t, newWorld(t))
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { c.run(t, s) })
	}
	counted(t, "forward_auth asks /auth/verify", version(t, "caddy", "version"), "%d requests, %d refused, %d with a forged identity: none arrived",
		s.requests, s.refused, s.forged)
}

func TestCaddyTellsClientsApartForTheRateLimit(t *testing.T) {
	limitsPerClient(t, newCaddy(t, newWorld(t, limited()...)))
}
