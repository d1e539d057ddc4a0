package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/web"
)

// slow lets two requests through and then, for the length of a test, none.
var slow = web.Limit{RPS: 0.001, Burst: 2}

// Contract, section 5: 429 RATE_LIMIT_EXCEEDED with Retry-After and details: [{"limited_by: "ip"}]"; 6: RATE_LIMIT_AUTH_* is on /auth/*,
// RATE_LIMIT_V1_* on /v1.0/*, and each has its own count.
func TestRequestsBeyondTheLimitAreToldWhenToComeBack(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.AuthLimit, c.V1Limit = slow, slow })
	limited := func(got response) {
		t.Helper()
		failure := got.refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED").failure()
		equalJSON(t, []any{failure["status"], failure["details"]}, []any{"RESOURCE_EXHAUSTED", []any{map[string]any{"limited_by": "ip"}}})
		if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || seconds < 900 || seconds > 1000 {
			t.Errorf("Retry-After %q, a request takes 1000 s to be let through again", got.header.Get("Retry-After"))
		}
	}
	h.login(h.acme.admin.Username).wants(200)
	h.get("/auth/nope", "").refuses(404, "ROUTE_NOT_FOUND") // counts too
	limited(h.login(h.acme.admin.Username))
	limited(h.post("/auth/login", "", "{"))
	limited(h.get("/auth/nope", ""))

	h.get("/v1.0/me", h.acme.token).wants(200)
	h.get("/v1.0/me", "").refuses(401, "AUTHENTICATION_REQUIRED") // counts too: it is the address that is limited
	limited(h.get("/v1.0/me", h.acme.token))
	limited(h.get("/v1.0/me", h.globex.token))
	limited(h.get("/v1.0/me", ""))
	for range 5 {
		h.get("/ping", "").wants(200)
		h.get("/readyz", "").wants(200)
	}
}

// Contract, section 6: 0 is off.
func TestWithoutALimitNothingIsLimited(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.AuthLimit, c.V1Limit = web.Limit{Burst: 1}, web.Limit{} })
	for range 30 {
		h.post("/auth/login", "", "{").refuses(400, "INVALID_JSON_BODY")
		h.get("/v1.0/me", h.acme.token).wants(200)
	}
}

// Contract, section 5: Retry-After tells the truth: a client that was refused is let in again, and refusals cost it nothing.
func TestLimitedClientIsLetInAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.V1Limit = web.Limit{RPS: 2, Burst: 1} })
	h.get("/v1.0/me", h.acme.token).wants(200)
	refused := 0
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		got := h.get("/v1.0/me", h.acme.token)
		if got.code == 200 {
			if refused == 0 {
				t.Error("nothing was refused")
			}
			return
		}
		got.refuses(429, "RATE_LIMIT_EXCEEDED")
		if got.header.Get("Retry-After") != "1" {
			t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
		}
		refused++
	}
	t.Errorf("after %d refusals in 10 s it is still refused", refused)
}

// from sends a request to the server as if it came from this peer, with lines of X-Forwarded-For: "peer < line + line".
func (h *harness) from(hop string) *httptest.ResponseRecorder {
	peer, forwarded, sent := strings.Cut(hop, " < ")
	r := httptest.NewRequestWithContext(h.t.Context(), http.MethodGet, "/v1.0/me", nil)
	r.RemoteAddr = peer
	if sent {
		r.Header["X-Forwarded-For"] = strings.Split(forwarded, " + ")
	}
	r.Header.Set("Authorization", "Bearer "+h.acme.token)
	// What others use for the same is never believed.
	for i, name := range []string{"X-Real-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "X-Client-Ip"} {
		r.Header.Set(name, fmt.Sprintf("198.51.100.%d", i))
	}
	r.Header.Set("Forwarded", "for=198.51.100.9")
	w := httptest.NewRecorder()
	h.server.ServeHTTP(w, r)
	return w
}

// Contract, section 6: TRUSTED_PROXIES (CIDRs whose X-Forwarded-For is believed; default none); "per client IP". Each case is requests that
// come from one client whatever they claim, so that the third is refused, and one from another client, which is not.
func TestClientIsCountedByItsAddressWhateverItClaims(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, trusted string
		client        []string
		logged        string // the client's address in the log line of the third
		other         string
	}{
		{"nobody is trusted", "",
			[]string{"203.0.113.9:1 < 192.0.2.1", "203.0.113.9:2 < 192.0.2.2", "203.0.113.9:3"}, "203.0.113.9", "203.0.113.10:1 < 192.0.2.1"},
		{"the peer is not trusted", "10.0.0.0/8",
			[]string{"203.0.113.9:1 < 192.0.2.1", "203.0.113.9:2 < 10.0.0.1", "203.0.113.9:3 < 192.0.2.3, 10.0.0.1"},
			"203.0.113.9", "203.0.113.10:1 < 192.0.2.1"},
		{"the client writes addresses before its own", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1", "10.0.0.2:1 < 198.51.100.1, 192.0.2.1", "10.0.0.1:1 < 10.9.9.9, 1.1.1.1,192.0.2.1"},
			"192.0.2.1", "10.0.0.1:1 < 192.0.2.1, 192.0.2.2"},
		{"several trusted proxies", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1, 10.0.0.7, 10.0.0.8", "10.0.0.1:1 < 9.9.9.9, 192.0.2.1, 10.0.0.9", "10.0.0.1:1 < 192.0.2.1"},
			"192.0.2.1", "10.0.0.1:1 < 192.0.2.1, 192.0.2.9, 10.0.0.7"},
		{"several headers", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.7 + 192.0.2.1", "10.0.0.1:1 < 192.0.2.8 + 192.0.2.1, 10.0.0.2", "10.0.0.1:1 < 192.0.2.1 + 10.0.0.3"},
			"192.0.2.1", "10.0.0.1:1 < 192.0.2.1 + 192.0.2.7"},
		{"the proxy says nothing, or only garbage", "10.0.0.0/8",
			[]string{"10.0.0.1:1", "10.0.0.1:2 < 192.0.2.1, garbage", "10.0.0.1:3 < 10.0.0.2"}, "10.0.0.1", "10.0.0.1:1 < 192.0.2.1"},
		{"with ports, in brackets, in quotes", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1:51234", `10.0.0.1:2 < 198.51.100.1, "192.0.2.1:1", 10.0.0.9:443`, "10.0.0.1:3 < [::ffff:192.0.2.1]:443"},
			"192.0.2.1", "10.0.0.1:1 < 192.0.2.2:51234"},
		{"IPv6 with ports", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < [2001:db8::1]:443", `10.0.0.1:2 < "[2001:db8::1]"`, "10.0.0.1:3 < \t2001:db8::1 ,10.0.0.3:80 + 10.0.0.2"},
			"2001:db8::1", "10.0.0.1:1 < [2001:db8:0:1::1]:443"},
		{"what a proxy writes where it does not know", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1, unknown", "10.0.0.1:2 < 192.0.2.2, _hidden", "10.0.0.1:3 < 192.0.2.3, "},
			"10.0.0.1", "10.0.0.1:1 < unknown, 192.0.2.1"},
		{"what is no address", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1, 192.0.2.9:99999", `10.0.0.1:2 < 192.0.2.2, "192.0.2.9`, "10.0.0.1:3 < 192.0.2.3, [192.0.2.9]:1"},
			"10.0.0.1", "10.0.0.1:1 < 192.0.2.1:0"},
		{"what is no port", "10.0.0.0/8",
			[]string{"10.0.0.1:1 < 192.0.2.1, 192.0.2.9:", "10.0.0.1:2 < 192.0.2.2, [2001:db8::1]443", "10.0.0.1:3 < 192.0.2.3, [2001:db8::1]:_x"},
			"10.0.0.1", "10.0.0.1:1 < 192.0.2.1:65535"},
		{"one network of IPv6", "10.0.0.0/8",
			[]string{"[2001:db8:0:1::1]:1", "[2001:db8:0:1:ffff::2]:1", "10.0.0.1:1 < 2001:db8:0:1:dead:beef:0:3"},
			"2001:db8:0:1:dead:beef:0:3", "[2001:db8:0:2::1]:1"},
		{"IPv4 in IPv6", "10.0.0.0/8",
			[]string{"[::ffff:192.0.2.1]:1", "192.0.2.1:1", "[::ffff:10.0.0.1]:1 < ::ffff:192.0.2.1"}, "192.0.2.1", "[::ffff:192.0.2.2]:1"},
		{"a zone", "",
			[]string{"[fe80::1%eth0]:1", "[fe80::1%eth1]:1", "[fe80::2]:1"}, "fe80::2", "[fe81::1%eth0]:1"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, func(cfg *api.Config) {
				cfg.V1Limit = slow
				if c.trusted != "" {
					cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(c.trusted)}
				}
			})
			for i, want := range []int{200, 200, 429} {
				got := h.from(c.client[i])
				if got.Code != want {
					t.Errorf("request %d from %q: %d, want %d", i+1, c.client[i], got.Code, want)
				}
				if line := h.logLine(got.Header().Get("X-Request-Id")); i == 2 && line["client_ip"] != c.logged {
					t.Errorf("client_ip %v, want %s", line["client_ip"], c.logged)
				}
			}
			if got := h.from(c.other); got.Code != 200 {
				t.Errorf("another client gave %d: %s", got.Code, strings.TrimSpace(got.Body.String()))
			}
		})
	}
}

// That clients can't be told apart is said, once a minute and not for each request.
func TestUnreadableForwardedAddressIsToldOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	for _, hop := range []string{"10.0.0.1:1 < unknown", "10.0.0.1:1 < 192.0.2.1, garbage", "10.0.0.1:1 < "} {
		h.from(hop)
	}
	h.from("192.0.2.7:1 < unknown") // is not believed anyway
	if n := strings.Count(h.log.String(), "X-Forwarded-For that can't be read"); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}
