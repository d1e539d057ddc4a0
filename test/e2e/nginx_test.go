//go:build e2e

package e2e

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newNginx starts nginx with examples/nginx/accesskeys.conf, in which each pair of strings is replaced.
func newNginx(t *testing.T, w *fixture, replacements ...string) *site {
	t.Helper()
	s := newSite(t, w, "nginx")
	s.logs = []string{s.path("access.log"), s.path("error.log"), s.path("main-error.log")}
	write(t, s.path("accesskeys.conf"), example(t, "nginx/accesskeys.conf", append([]string{
		"server 127.0.0.1:8080;", "server " + w.server.addr + ";",
		"server 127.0.0.1:3000;", "server " + s.backend.addr() + ";",
		"listen 80;", "listen " + s.addr + ";",
		"listen [::]:80;", "",
		"/var/log/nginx/accesskeys.log", s.logs[0],
		"/var/log/nginx/accesskeys-error.log", s.logs[1],
		"root /srv;", "root " + s.path("srv") + ";",
	}, replacements...)...))
	// It is one process: workers outlive a master that is killed.
	return s.run(t, nginxAround(t, s.dir, s.logs[2], "master_process off;"))
}

// nginxAround is nginx with the accesskeys.conf in a folder, what Debian's nginx.conf says that matters here, and every folder that nginx
// writes to below that one.
func nginxAround(t testing.TB, dir, log, settings string) *exec.Cmd {
	t.Helper()
	write(t, filepath.Join(dir, "nginx.conf"), `
pid nginx.pid;
events { worker_connections 768; }
http {
    include /etc/nginx/mime.types;
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include accesskeys.conf;
}
`)
	return exec.Command("nginx", "-e", log, "-p", dir, "-c", "nginx.conf", "-g", "daemon off;"+settings)
}

// TestNginxNeedsEveryLineOfItsExample takes lines out of the example, and sees what they are there against.
func TestNginxNeedsEveryLineOfItsExample(t *testing.T) {
	w := newFixture(t)
	const ada = "X-Agent-Id: forged"

	t.Run("identity headers", func(t *testing.T) {
		s := newNginx(t, w, "proxy_set_header X-Agent-Id        $caller_agent;", "", `proxy_set_header Authorization     "";`, "")
		arrived, _ := s.forge(t, s.admin, []string{ada})
		if arrived.header.Get("X-Agent-Id") != "forged" || arrived.header.Get("Authorization") == "" {
			t.Errorf("a header that nothing is set for did not arrive: %v", arrived.header)
		}
	})
	t.Run("error_page", func(t *testing.T) {
		s := newNginx(t, w, "error_page 500 = @unchecked;", "")
		s.without(func() { s.refuses(t, http.StatusInternalServerError, http.MethodGet, "/page") })
	})
	t.Run("log_format and error_log", func(t *testing.T) {
		s := newNginx(t, w, "$request_method $uri $server_protocol", "$request", "log emerg;", "log;")
		s.without(func() {
			s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, "/page?accesskey="+s.admin.credential)
		})
		for _, path := range s.logs[:2] {
			awaitLogged(t, path, s.admin.credential)
		}
	})
	t.Run("internal", func(t *testing.T) {
		for _, path := range []string{"/_accesskeys/any", "/_accesskeys/admin", "/_accesskeys", "/_accesskeys/other"} {
			newNginx(t, w).refuses(t, http.StatusNotFound, http.MethodGet, path, bearer(w.admin.credential)...)
		}
		s := newNginx(t, w, "internal;", "")
		if a := s.call(t, http.MethodGet, "/_accesskeys/any", "", bearer(w.admin.credential)...); a.status != http.StatusOK {
			t.Errorf("a check that is not internal: %d", a.status)
		}
	})
	t.Run("proxy_pass_request_headers", func(t *testing.T) {
		const large = "large_client_header_buffers 8 16k;"
		var headers []string
		for range 5 {
			headers = append(headers, "X-Large", strings.Repeat("x", 15_000))
		}
		headers = append(headers, bearer(w.admin.credential)...)
		s := newNginx(t, w, "server_name localhost;", large)
		told(t, s.passes(t, http.MethodGet, "/page", "", headers...), w.admin)
		s = newNginx(t, w, "server_name localhost;", large, "proxy_pass_request_headers off;", "")
		s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, "/page", headers...)
	})
	t.Run("preflight", func(t *testing.T) {
		s := newNginx(t, w, "if ($preflight) { return 204; }", "")
		s.refuses(t, http.StatusUnauthorized, "OPTIONS", "/page", preflight...)
	})
}

// A check that announces the client's body, and doesn't have it, is answered at once: what nginx does without two of the example's lines.
func TestNginxsCheckNeedsNoBody(t *testing.T) {
	w := newFixture(t)
	s := newNginx(t, w, "proxy_pass_request_body    off;", "", `proxy_set_header Content-Length  "";`, "",
		"proxy_read_timeout    10s;", "proxy_read_timeout 5s;")
	for _, size := range []int{1, 1000, 100_000, 1_000_000} {
		told(t, s.passes(t, http.MethodPost, "/page", strings.Repeat("x", size), bearer(w.admin.credential)...), w.admin)
	}
}

// TestNginxRefusesARepeatedAuthorization is about a second credential behind the one that would be checked.
func TestNginxRefusesARepeatedAuthorization(t *testing.T) {
	w := newFixture(t)
	s := newNginx(t, w)
	for _, second := range []string{w.bad["deleted"], w.agent.credential, w.admin.credential} {
		arrived, a := s.forge(t, w.admin, []string{"Authorization: Bearer " + second})
		if a.status != http.StatusBadRequest || arrived.method != "" {
			t.Errorf("a second header: %d, and %v arrived", a.status, arrived)
		}
	}
}
