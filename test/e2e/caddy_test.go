//go:build e2e

package e2e

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// newCaddy starts Caddy with examples/caddy/Caddyfile, in which each pair of strings is replaced.
func newCaddy(t *testing.T, w *fixture, replacements ...string) *site {
	t.Helper()
	s := newSite(t, w, "caddy")
	host, _, _ := net.SplitHostPort(s.addr)
	s.logs = []string{s.path("access.log")}
	write(t, s.path("Caddyfile"), example(t, "caddy/Caddyfile", append([]string{
		"{\n\tlog {\n\t\timport", "{\n\tadmin off\n\tdefault_bind " + host + "\n\tlog {\n\t\timport",
		"127.0.0.1:8080", w.server.addr,
		"127.0.0.1:3000", s.backend.addr(),
		"http://localhost", s.url,
		"/var/log/caddy/accesskeys.log", s.logs[0],
		"root * /srv", "root * " + s.path("srv"),
	}, replacements...)...))
	caddy := exec.Command("caddy", "run", "--config", s.path("Caddyfile"), "--adapter", "caddyfile")
	caddy.Env = append(os.Environ(), "HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir, "XDG_DATA_HOME="+s.dir)
	return s.run(t, caddy)
}

// TestCaddysCheckIsWhatTheServiceReads looks at the requests that Caddy checks with.
func TestCaddysCheckIsWhatTheServiceReads(t *testing.T) {
	w := newFixture(t)
	const query = "a=%2F&b=%zz;c&permission=admin"
	for _, test := range []struct{ uri, asked string }{
		{"/auth/verify?strict=0{args.0}", "/auth/verify?strict=0"},
		{"/auth/verify?permission=admin", "/auth/verify?permission=admin"},
		{"/auth/verify?", "/auth/verify"},
		// Without a query of its own Caddy leaves the client's, byte for byte.
		{"/auth/verify", "/auth/verify?" + query},
	} {
		service := newBackend(t)
		s := newCaddy(t, w, "/auth/verify?strict=0{args.0}", test.uri, w.server.addr, service.addr())
		const other = "/other?forged=1"
		_, _, asked := service.during(func() answer {
			return s.call(t, http.MethodPost, "/page?"+query, "body", "X-Forwarded-Uri", other, "X-Original-URI", other, "Cookie", "a=b")
		})
		if asked.method != http.MethodGet || asked.uri != test.asked || asked.body != "" ||
			asked.header.Get("X-Original-Uri") != "" || strings.Join(asked.header["X-Forwarded-Uri"], " ") != "/page?"+query || asked.header.Get("Cookie") != "" {
			t.Errorf("with %q: %+v", test.uri, asked)
		}
	}

	// Both ways the service finds the credential of the client's URL, and the options that are Caddy's.
	plain := newCaddy(t, w, "uri /auth/verify?strict=0{args.0}", "uri /auth/verify")
	for _, c := range w.callers {
		told(t, plain.passes(t, http.MethodGet, "/page?a=%2F&b=%zz;c&nonsense=1&"+c.parameter+"="+c.credential, ""), c)
		told(t, plain.passes(t, http.MethodGet, "/page?strict=0", "", bearer(c.credential)...), c)
		// That is why the example has a query: without one the service takes the client's for Caddy's, and looks for options in it.
		plain.refuses(t, http.StatusForbidden, http.MethodGet, "/page?permission=write", bearer(c.credential)...)
	}
	plain.refuses(t, http.StatusUnauthorized, http.MethodGet, "/page?accesskey="+w.admin.credential, bearer(w.admin.credential)...)
	strict := newCaddy(t, w, "/auth/verify?strict=0{args.0}", "/auth/verify?permission=admin")
	strict.refuses(t, http.StatusForbidden, http.MethodGet, "/page?permission=admin", bearer(w.agent.credential)...)
	strict.passes(t, http.MethodGet, "/page?permission=admin", "", bearer(w.admin.credential)...)
}

// TestCaddyNeedsEveryLineOfItsExample takes lines out of the example, and sees what they are there against.
func TestCaddyNeedsEveryLineOfItsExample(t *testing.T) {
	w := newFixture(t)
	const copied = "copy_headers X-Auth-Type X-Auth-Id X-Customer-Id X-Agent-Id "

	t.Run("request_header -X-Agent-Id", func(t *testing.T) {
		// A Caddy that copies no empty header, as from 2.10 on.
		withoutEmpty := []string{copied, strings.Replace(copied, "X-Agent-Id ", "", 1)}
		forged := []string{"X-Agent-Id: forged"}
		arrived, _ := newCaddy(t, w, withoutEmpty...).forge(t, w.admin, forged)
		told(t, arrived, w.admin)
		withoutEmpty = append(withoutEmpty, "request_header -X-Agent-Id\n", "")
		arrived, _ = newCaddy(t, w, withoutEmpty...).forge(t, w.admin, forged)
		if arrived.header.Get("X-Agent-Id") != "forged" {
			t.Errorf("a header that nothing deletes or sets did not arrive: %v", arrived.header)
		}
	})
	t.Run("request_header -*_*", func(t *testing.T) {
		arrived, _ := newCaddy(t, w, "request_header -*_*\n", "").forge(t, w.admin, []string{"X_Agent_Id: forged"})
		if !slices.Equal(arrived.header["X_agent_id"], []string{"forged"}) {
			t.Errorf("a header with underscores did not arrive: %v", arrived.header)
		}
	})
	t.Run("request_header Connection", func(t *testing.T) {
		s := newCaddy(t, w, `request_header Connection "(?i)x[-a-z]+" ""`, "")
		arrived, _ := s.forge(t, w.agent, []string{"Connection: X-Agent-Id"})
		if arrived.header["X-Agent-Id"] != nil {
			t.Errorf("a header that Connection names arrived: %v", arrived.header)
		}
	})
	t.Run("request_header -Authorization", func(t *testing.T) {
		s := newCaddy(t, w, "request_header -Authorization\n", "")
		arrived := s.passes(t, http.MethodGet, "/page", "", bearer(w.admin.credential)...)
		if arrived.header.Get("Authorization") == "" {
			t.Error("the credential did not arrive")
		}
	})
	t.Run("route", func(t *testing.T) {
		s := newCaddy(t, w, "\troute {\n", "\thandle {\n")
		arrived := s.passes(t, http.MethodGet, "/page", "", bearer(w.admin.credential)...)
		if arrived.header["X-Auth-Id"] != nil {
			t.Errorf("what is deleted after the check arrived: %v", arrived.header)
		}
	})
	t.Run("without_credentials", func(t *testing.T) {
		s := newCaddy(t, w, "\timport without_credentials\n", "")
		s.without(func() {
			s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, "/page?accesskey="+w.admin.credential)
		})
		awaitLogged(t, s.logs[0], w.admin.credential)
	})
	t.Run("handle_errors", func(t *testing.T) {
		s := newCaddy(t, w, "respond 503", "respond 418")
		s.without(func() { s.refuses(t, http.StatusTeapot, http.MethodGet, "/page") })
	})
	t.Run("header_up", func(t *testing.T) {
		headers := append(bearer(w.admin.credential), "Cookie", strings.Repeat("x", 80_000))
		told(t, newCaddy(t, w).passes(t, http.MethodGet, "/page", "", headers...), w.admin)
		s := newCaddy(t, w, "header_up -Cookie\n", "")
		s.refuses(t, http.StatusRequestHeaderFieldsTooLarge, http.MethodGet, "/page", headers...)
	})
}

// TestCaddysOwnErrorsStayWhatTheyAre has the backend away: that is not for the check to explain.
func TestCaddysOwnErrorsStayWhatTheyAre(t *testing.T) {
	w := newFixture(t)
	s := newCaddy(t, w)
	s.backend.Close()
	s.refuses(t, http.StatusBadGateway, http.MethodGet, "/page", bearer(w.admin.credential)...)
	s.refuses(t, http.StatusNotFound, http.MethodGet, "/files/no-such-file", bearer(w.admin.credential)...)
}
