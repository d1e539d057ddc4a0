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
		got.refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED")
		e := got.json()["error"].(map[string]any)
		equalJSON(t, e["details"], []any{map[string]any{"limited_by": "ip"}})
		if e["status"] != "RESOURCE_EXHAUSTED" {
			t.Errorf("status %v", e["status"])
		}
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

// from sends a request to the server as if it came from this peer.
func (h *harness) from(peer string, forwarded ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(h.t.Context(), http.MethodGet, "/v1.0/me", nil)
	r.RemoteAddr = peer
	r.Header["X-Forwarded-For"] = forwarded
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
	type hop struct {
		peer      string
		forwarded []string
	}
	xff := func(lines ...string) []string { return lines }
	for what, c := range map[string]struct {
		trusted string
		client  [3]hop
		logged  string // the client's address in the log line of the third
		other   hop
	}{
		"nobody is trusted": {"",
			[3]hop{{"203.0.113.9:1", xff("192.0.2.1")}, {"203.0.113.9:2", xff("192.0.2.2")}, {"203.0.113.9:3", nil}},
			"203.0.113.9", hop{"203.0.113.10:1", xff("192.0.2.1")}},
		"the peer is not trusted": {"10.0.0.0/8",
			[3]hop{{"203.0.113.9:1", xff("192.0.2.1")}, {"203.0.113.9:2", xff("10.0.0.1")}, {"203.0.113.9:3", xff("192.0.2.3, 10.0.0.1")}},
			"203.0.113.9", hop{"203.0.113.10:1", xff("192.0.2.1")}},
		"the client writes addresses before its own": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1")}, {"10.0.0.2:1", xff("198.51.100.1, 192.0.2.1")}, {"10.0.0.1:1", xff("10.9.9.9, 1.1.1.1,192.0.2.1")}},
			"192.0.2.1", hop{"10.0.0.1:1", xff("192.0.2.1, 192.0.2.2")}},
		"several trusted proxies": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1, 10.0.0.7, 10.0.0.8")}, {"10.0.0.1:1", xff("9.9.9.9, 192.0.2.1, 10.0.0.9")}, {"10.0.0.1:1", xff("192.0.2.1")}},
			"192.0.2.1", hop{"10.0.0.1:1", xff("192.0.2.1, 192.0.2.9, 10.0.0.7")}},
		"several headers": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.7", "192.0.2.1")}, {"10.0.0.1:1", xff("192.0.2.8", "192.0.2.1, 10.0.0.2")}, {"10.0.0.1:1", xff("192.0.2.1", "10.0.0.3")}},
			"192.0.2.1", hop{"10.0.0.1:1", xff("192.0.2.1", "192.0.2.7")}},
		"the proxy says nothing, or only garbage": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", nil}, {"10.0.0.1:2", xff("192.0.2.1, garbage")}, {"10.0.0.1:3", xff("10.0.0.2")}},
			"10.0.0.1", hop{"10.0.0.1:1", xff("192.0.2.1")}},
		"with ports, in brackets, in quotes": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1:51234")}, {"10.0.0.1:2", xff(`198.51.100.1, "192.0.2.1:1", 10.0.0.9:443`)}, {"10.0.0.1:3", xff("[::ffff:192.0.2.1]:443")}},
			"192.0.2.1", hop{"10.0.0.1:1", xff("192.0.2.2:51234")}},
		"IPv6 with ports": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("[2001:db8::1]:443")}, {"10.0.0.1:2", xff(`"[2001:db8::1]"`)}, {"10.0.0.1:3", xff("\t2001:db8::1 ,10.0.0.3:80", "10.0.0.2")}},
			"2001:db8::1", hop{"10.0.0.1:1", xff("[2001:db8:0:1::1]:443")}},
		"what a proxy writes where it does not know": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1, unknown")}, {"10.0.0.1:2", xff("192.0.2.2, _hidden")}, {"10.0.0.1:3", xff("192.0.2.3, ")}},
			"10.0.0.1", hop{"10.0.0.1:1", xff("unknown, 192.0.2.1")}},
		"what is no address": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1, 192.0.2.9:99999")}, {"10.0.0.1:2", xff(`192.0.2.2, "192.0.2.9`)}, {"10.0.0.1:3", xff("192.0.2.3, [192.0.2.9]:1")}},
			"10.0.0.1", hop{"10.0.0.1:1", xff("192.0.2.1:0")}},
		"what is no port": {"10.0.0.0/8",
			[3]hop{{"10.0.0.1:1", xff("192.0.2.1, 192.0.2.9:")}, {"10.0.0.1:2", xff(`192.0.2.2, [2001:db8::1]443`)}, {"10.0.0.1:3", xff("192.0.2.3, [2001:db8::1]:_x")}},
			"10.0.0.1", hop{"10.0.0.1:1", xff("192.0.2.1:65535")}},
		"one network of IPv6": {"10.0.0.0/8",
			[3]hop{{"[2001:db8:0:1::1]:1", nil}, {"[2001:db8:0:1:ffff::2]:1", nil}, {"10.0.0.1:1", xff("2001:db8:0:1:dead:beef:0:3")}},
			"2001:db8:0:1:dead:beef:0:3", hop{"[2001:db8:0:2::1]:1", nil}},
		"IPv4 in IPv6": {"10.0.0.0/8",
			[3]hop{{"[::ffff:192.0.2.1]:1", nil}, {"192.0.2.1:1", nil}, {"[::ffff:10.0.0.1]:1", xff("::ffff:192.0.2.1")}},
			"192.0.2.1", hop{"[::ffff:192.0.2.2]:1", nil}},
		"a zone": {"",
			[3]hop{{"[fe80::1%eth0]:1", nil}, {"[fe80::1%eth1]:1", nil}, {"[fe80::2]:1", nil}},
			"fe80::2", hop{"[fe81::1%eth0]:1", nil}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, func(c0 *api.Config) {
				c0.V1Limit = slow
				if c.trusted != "" {
					c0.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(c.trusted)}
				}
			})
			for i, hop := range c.client {
				got := h.from(hop.peer, hop.forwarded...)
				if want := []int{200, 200, 429}[i]; got.Code != want {
					t.Errorf("request %d from %s, X-Forwarded-For %q: %d, want %d", i+1, hop.peer, hop.forwarded, got.Code, want)
				}
				if line := h.logLine(got.Header().Get("X-Request-Id")); i == 2 && line["client_ip"] != c.logged {
					t.Errorf("client_ip %v, want %s", line["client_ip"], c.logged)
				}
			}
			if got := h.from(c.other.peer, c.other.forwarded...); got.Code != 200 {
				t.Errorf("another client gave %d: %s", got.Code, strings.TrimSpace(got.Body.String()))
			}
		})
	}
}

// That clients can't be told apart is said, once a minute and not for each request.
func TestUnreadableForwardedAddressIsToldOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	for _, forwarded := range []string{"unknown", "192.0.2.1, garbage", ""} {
		h.from("10.0.0.1:1", forwarded)
	}
	h.from("192.0.2.7:1", "unknown") // is not believed anyway
	if n := strings.Count(h.log.String(), "X-Forwarded-For that can't be read"); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}
