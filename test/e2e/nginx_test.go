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
	dir := folder(t)
	s := &site{fixture: w, name: "nginx", client: client(t), backend: newBackend(t)}
	addr := freeAddr(t)
	s.url = "http://" + addr
	access, errors := filepath.Join(dir, "access.log"), filepath.Join(dir, "error.log")
	newFiles(t, dir)
	write(t, filepath.Join(dir, "accesskeys.conf"), example(t, "nginx/accesskeys.conf", append([]string{
		"server 127.0.0.1:8080;", "server " + w.server.addr + ";",
		"server 127.0.0.1:3000;", "server " + s.backend.addr() + ";",
		"listen 80;", "listen " + addr + ";",
		"listen [::]:80;", "",
		"/var/log/nginx/accesskeys.log", access,
		"/var/log/nginx/accesskeys-error.log", errors,
		"root /srv;", "root " + dir + "/srv;",
	}, replacements...)...))
	// What Debian's nginx.conf says that matters here, with every folder that nginx writes to below the test's. It is one process:
	// workers outlive a master that is killed.
	var temporary strings.Builder
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temporary.WriteString(what + "_temp_path " + filepath.Join(dir, what) + ";\n")
	}
	write(t, filepath.Join(dir, "nginx.conf"), "daemon off;\nmaster_process off;\npid "+dir+"/nginx.pid;\n"+
		"error_log "+dir+"/main-error.log;\nevents { worker_connections 768; }\nhttp {\ninclude /etc/nginx/mime.types;\naccess_log off;\n"+temporary.String()+
		"include "+dir+"/accesskeys.conf;\n}\n")
	s.logs = []string{access, errors, filepath.Join(dir, "main-error.log")}
	nginx := exec.Command("nginx", "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "main-error.log"))
	p := start(t, "nginx", unprivileged(t, nginx, dir))
	s.logs = append(s.logs, p.log)
	p.awaitListening(t, addr)
	return s
}

func TestNginxLetsInOnlyWhomTheServiceKnows(t *testing.T) {
	s := newNginx(t, newFixture(t))
	s.runChecks(t, "auth_request asks /auth/verify", version(t, "nginx", "-v"))
}

func TestNginxTellsClientsApartForTheRateLimit(t *testing.T) {
	limitsPerClient(t, newNginx(t, newFixture(t).limit(t)))
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
		s.server.kill()
		defer s.server.begin()
		if a := s.call(t, http.MethodGet, "/page", ""); a.status != http.StatusInternalServerError {
			t.Errorf("nginx says %d by itself", a.status)
		}
	})
	t.Run("log_format and error_log", func(t *testing.T) {
		s := newNginx(t, w, "$request_method $uri $server_protocol", "$request", "log emerg;", "log;")
		s.server.kill()
		defer s.server.begin()
		s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, "/page?accesskey="+s.admin.credential)
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
