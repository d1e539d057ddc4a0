package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/api"
	"accesskeys/internal/web"
)

// concrete is a documented path with an id of acme's in it.
func (h *harness) concrete(path string) string {
	return strings.ReplaceAll(path, "{id}", h.acme.key.ID.String())
}

// verifyPath answers every method and every path below alike; verify_test.go has its tests.
const verifyPath = "/auth/verify"

// everyMethod are methods that a client may try, some of no standard.
var everyMethod = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW", "get"}

// Contract, section 5: Unknown route: 404 ROUTE_NOT_FOUND ... A trailing slash is an unknown route: no redirect ever carries a credential
// onward. With a credential in its place, whatever the method.
func TestUnknownRoutesAreNotFoundAndNeverRedirect(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.acme.key.ID.String()
	paths := []string{
		"/", "/nope", "/v1.0", "/v1.0/nope", "/v1.0/me/more", "/auth", "/auth/", "/auth/nope", "/v1.0x/me", "/v1/me", "/v2.0/me", "/V1.0/me",
		"/v1.0/Me", "/v1.0/ME", "//", "//v1.0/me", "//evil.example/v1.0/me", "/v1.0//me", "/v1.0/accesskeys//" + id, "/v1.0/me;x", "/v1.0/../ping",
		"/v1.0/./me", "/ping/../v1.0/me", "/v1.0%2fme", "/v1.0%2Fme", "/v1.0/accesskeys%2F" + id, "/%2e%2e/ping", "/auth//login", "/auth/Login",
		"/ping%00", "/ping%20", "/ping.", "/metrics/x", "/v1.0/accesskeys/" + id + "/token", "/v1.0/*", "/*",
	}
	for path := range methodsOf(t) {
		paths = append(paths, "/"+h.concrete(path))
		if path != verifyPath {
			paths = append(paths, h.concrete(path)+"/", h.concrete(path)+"//")
		}
	}
	for _, path := range paths {
		for _, method := range everyMethod {
			got := h.send(request{method: method, path: path, header: bearing(h.acme.token)})
			if got.code != 404 || got.header.Get("Location") != "" {
				t.Errorf("%s %s gave %d %s", method, path, got.code, got.raw)
			} else if method != http.MethodHead {
				got.refuses(404, "ROUTE_NOT_FOUND")
			}
		}
	}
}

// Contract, section 3: all of /v1.0/*, before routing: an unknown route without a credential is a 401, and so is an unknown method.
func TestUnknownRoutesWithoutACredentialAreUnauthenticated(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{"/v1.0", "/v1.0/", "/v1.0/nope", "/v1.0/me/", "/v1.0//me", "/v1.0/me", "/v1.0/accesskeys%2Fx", "/v1.0/../ping"} {
		for _, method := range everyMethod {
			got := h.send(request{method: method, path: path})
			if got.code != 401 {
				t.Errorf("%s %s gave %d %s", method, path, got.code, got.raw)
			}
		}
	}
}

// Contract, section 5: known route, wrong method: 405 METHOD_NOT_ALLOWED with Allow: exactly the document's methods, and HEAD where there is
// GET; 7: "wrong method: 405 with Allow".
func TestWrongMethodIsToldTheRightOnes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for path, methods := range methodsOf(t) {
		if path == verifyPath {
			continue
		}
		want := slices.Clone(methods)
		if slices.Contains(methods, "GET") {
			want = append(want, "HEAD")
		}
		slices.Sort(want)
		for _, method := range everyMethod {
			if slices.Contains(want, method) {
				continue
			}
			got := h.send(request{method: method, path: h.concrete(path), header: bearing(h.acme.token)})
			allow := strings.Split(got.header.Get("Allow"), ", ")
			slices.Sort(allow)
			if got.code != 405 || !slices.Equal(allow, want) {
				t.Errorf("%s %s gave %d, Allow %q, want %q", method, path, got.code, allow, want)
				continue
			}
			if method != http.MethodHead {
				got.refuses(405, "METHOD_NOT_ALLOWED")
			}
		}
	}
	h.get("/v1.0/me", h.acme.token).wants(200)
}

// Contract, section 5: HEAD answers as GET does, without the body: the same status and headers, errors too.
func TestHeadAnswersAsGetDoes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	paths := []string{"/nope", "/v1.0/nope", "/v1.0/accesskeys/no-id", "/v1.0/accesskeys/" + absentID, "/v1.0/accesskeys?page_size=x",
		"/v1.0/accesskeys/" + h.globex.key.ID.String(), "/auth/login", "/v1.0/me/"}
	for path, methods := range methodsOf(t) {
		if slices.Contains(methods, "GET") {
			paths = append(paths, h.concrete(path))
		}
	}
	for _, path := range paths {
		for _, bearer := range []string{h.acme.token, h.acme.plainJWT, ""} {
			header := bearing(bearer)
			header.Set("X-Request-Id", "same")
			get := h.send(request{method: "GET", path: path, header: header})
			head := h.send(request{method: "HEAD", path: path, header: header})
			for _, answer := range []response{get, head} {
				answer.header.Del("Date")
				if path == "/metrics" { // its figures, and so its length, move with every request
					answer.header.Del("Content-Length")
				} else if answer.header.Get("Content-Length") == "" {
					t.Errorf("%s has no Content-Length", path)
				}
			}
			if head.code != get.code || len(head.raw) > 0 {
				t.Errorf("HEAD %s gave %d and %d bytes, GET %d", path, head.code, len(head.raw), get.code)
			}
			equalJSON(t, head.header, get.header)
		}
	}
}

// Contract, section 5: Cache-Control: no-store and Referrer-Policy: no-referrer on every answer under /v1.0 and /auth.
func TestAnswersThatMayHoldACredentialAreNotKept(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.AuthLimit = web.Limit{RPS: 0.001, Burst: 8} })
	codes := map[int]bool{}
	holds := func(what string, got response) {
		t.Helper()
		codes[got.code] = true
		if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %d with %q and %q", what, got.code, got.header.Get("Cache-Control"), got.header.Get("Referrer-Policy"))
		}
	}
	preflight := http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"GET"}}
	for path := range methodsOf(t) {
		if !strings.HasPrefix(path, "/v1.0/") {
			continue
		}
		for _, method := range everyMethod {
			for _, bearer := range []string{"", "vb_nope", h.acme.plainJWT, h.globex.token, h.acme.adminJWT} {
				holds(method+" "+path, h.send(request{method: method, path: h.concrete(path), header: bearing(bearer)}))
			}
		}
		holds("preflight "+path, h.send(request{method: "OPTIONS", path: h.concrete(path), header: preflight}))
	}
	for _, path := range []string{"/v1.0", "/v1.0/", "/v1.0/nope", "/v1.0/me/", "/v1.0/accesskeys/no-id", "/v1.0/accesskeys?page_size=x"} {
		holds(path, h.get(path, h.acme.adminJWT))
	}
	holds("too large", h.post("/v1.0/accesskeys", h.acme.adminJWT, strings.Repeat(" ", 64<<10+1)))
	holds("login", h.login(h.acme.admin.Username))
	holds("refused login", h.login("nobody"))
	holds("no login", h.post("/auth/login", "", "{"))
	holds("auth", h.get("/auth", ""))
	holds("unknown", h.get("/auth/nope", ""))
	holds("method", h.get("/auth/login", ""))
	holds("preflight", h.send(request{method: "OPTIONS", path: "/auth/login", header: preflight}))
	for !codes[429] {
		holds("limited", h.login(h.acme.admin.Username))
	}
	h.store.Close()
	holds("store", h.get("/v1.0/me", h.acme.token))
	for _, code := range []int{200, 204, 400, 401, 403, 404, 405, 413, 429, 503} {
		if !codes[code] {
			t.Errorf("no answer was a %d: this test does not show what it says", code)
		}
	}
}

// Contract, section 5: pages of any origin may call, and their preflights need no credential.
func TestPagesOfAnyOriginMayCall(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	holds := func(what string, got response) {
		t.Helper()
		if got.header.Get("Access-Control-Allow-Origin") != "*" || got.header.Values("Access-Control-Allow-Credentials") != nil {
			t.Errorf("%s: %d with %v", what, got.code, got.header)
		}
	}
	paths := []string{"/nope", "/v1.0/nope", "/v1.0", "/auth/nope"}
	for path := range methodsOf(t) {
		if path != verifyPath {
			paths = append(paths, h.concrete(path))
		}
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			got := h.send(request{method: "OPTIONS", path: path, header: http.Header{
				"Origin": {"https://page.example"}, "Access-Control-Request-Method": {method},
				"Access-Control-Request-Headers": {"authorization,content-type,x-request-id"},
			}}).wants(204)
			holds("preflight of "+path, got)
			if got.header.Get("Access-Control-Allow-Methods") != "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS" ||
				got.header.Get("Access-Control-Allow-Headers") != "Authorization, Content-Type, X-Request-Id, X-Requested-With, Accept, Origin, Idempotency-Key" ||
				got.header.Get("X-Request-Id") == "" || len(got.raw) > 0 {
				t.Errorf("preflight of %s: %v", path, got.header)
			}
			for _, bearer := range []string{"", h.acme.plainJWT} {
				simple := bearing(bearer)
				simple.Set("Origin", "null")
				holds(method+" "+path, h.send(request{method: method, path: path, header: simple}))
			}
		}
	}
	// OPTIONS that is no preflight is a method like any other.
	h.send(request{method: "OPTIONS", path: "/v1.0/me"}).refuses(401, "AUTHENTICATION_REQUIRED")
	h.send(request{method: "OPTIONS", path: "/ping", header: http.Header{"Origin": {"https://page.example"}}}).refuses(405, "METHOD_NOT_ALLOWED")
}
