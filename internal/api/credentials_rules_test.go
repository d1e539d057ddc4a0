package api_test

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
)

// reading is a query and a header with a credential in them or not, and the reason of the 401 that it gets, "" where it gets none.
type reading struct{ query, header, reason string }

// filled puts a good access key in the place of <K>, and a good JWT in that of <J>.
func (h *harness) filled(text string) string {
	return strings.NewReplacer("<K>", h.acme.token, "<J>", h.acme.adminJWT).Replace(text)
}

// queriesAndHeaders are queries as a careful user of HTTP writes and as an attacker does, to be filled: "?accesskey=a;accesskey=b"
// vanishes from URL.Query().
func queriesAndHeaders(h *harness) []reading {
	const ok, required, invalid = "", "AUTHENTICATION_REQUIRED", "INVALID_CREDENTIALS"
	return []reading{
		{"token=<J>", "", ok},
		{"accesskey=<K>", "", ok},
		{"accesskey=<K>&page_size=1", "", ok},
		{"%74oken=<J>", "", ok},
		{"%61ccesske%79=<K>", "", ok},
		{"accesskey=%76%62_" + h.acme.token[3:], "", ok},
		{"token=" + strings.ReplaceAll(h.acme.adminJWT, ".", "%2e"), "", ok},
		{"token=&accesskey=<K>", "", ok},
		{"token&accesskey=<K>", "", ok},
		{"&&x&=y&accesskey=<K>&", "", ok},
		{"x=%zz&accesskey=<K>", "", ok},
		{"x=a;b&accesskey=<K>", "", ok},
		{"x=token&y=accesskey&accesskey=<K>", "", ok},
		{"", "Bearer <K>", ok},
		{"", "Bearer <J>", ok},
		{"", "bearer <K>", ok},
		{"", "BEARER <K>", ok},
		{"", "bEaReR <J>", ok},
		{"", "Bearer   <K>", ok},
		{"", "Bearer", required},
		{"", "Bearer ", required},
		{"", "Bearer<K>", required},
		{"", "Bearer\u00a0<K>", required},
		{"", "Bearer <K>, Bearer <K>", invalid},
		{"", "Bearer <J>, Bearer <J>", invalid},
		{"", "Bearer <K>,", invalid},
		{"", "Bearer <K> <K>", invalid},
		{"", "Bearer <J> <J>", invalid},
		{"", "Bearer <K>;q=1", invalid},
		{"", `Bearer "<K>"`, invalid},
		{"", "Bearer token=<J>", invalid},
		{"", "Bearer %76" + h.acme.token[1:], invalid}, // a header has no escapes
		{"", "Bearer Bearer <K>", invalid},
		{"accesskey=<K>;accesskey=<K>", "", invalid},
		{"accesskey=a;accesskey=b", "", invalid},
		{"accesskey=<K>;", "", invalid},
		{"accesskey=<K>;x=1", "", invalid},
		{";accesskey=<K>", "", invalid},
		{"x=1;token=<J>", "", invalid},
		{"x=1;%74oken=<J>", "", invalid},
		{"x=1;token=<J>&accesskey=<K>", "", invalid},
		{"x=1;token=<J>", "Bearer <K>", invalid},
		{"x;accesskey", "Bearer <K>", invalid},
		{"token=%zz", "", invalid},
		{"token=%", "", invalid},
		{"token=<J>%", "", invalid},
		{"token=%zz", "Bearer <K>", invalid},
		{"accesskey=%f&accesskey=<K>", "", invalid},
		{"token=+<J>", "", invalid},
		{"token=<J>+", "", invalid},
		{"accesskey=<K>%20", "", invalid},
		{"accesskey=%20<K>", "", invalid},
		{"accesskey=<K>%00", "", invalid},
		{"accesskey=<K>%0a", "", invalid},
		{"accesskey=<K>%3Baccesskey=<K>", "", invalid},
		{"accesskey=<K>%26x=1", "", invalid},
		{"accesskey==<K>", "", invalid},
		{"token=Bearer%20<J>", "", invalid},
		{"accesskey=" + url.QueryEscape("\ufeff") + "<K>", "", invalid},
	}
}

// Contract, section 3: Authorization: Bearer (scheme in any case), and queries, each read one way.
func TestQueriesAndHeadersAreReadOneWayOnly(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range queriesAndHeaders(h) {
		req := request{method: http.MethodGet, path: "/v1.0/me", header: http.Header{}}
		if c.query != "" {
			req.path += "?" + h.filled(c.query)
		}
		if c.header != "" {
			req.header.Set("Authorization", h.filled(c.header))
		}
		t.Run("?"+c.query+" "+c.header, func(t *testing.T) {
			t.Parallel()
			if got := h.on(t).send(req); c.reason == "" {
				got.wants(http.StatusOK)
			} else {
				got.wantsChallenge(c.reason)
			}
		})
	}
}

// Contract, section 3: all of /v1.0/*, before routing: an unknown route without a credential is a 401. The same requests with a credential
// get past it, which is the control.
func TestCredentialIsAskedForBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.acme.key.ID.String()
	for _, c := range []struct {
		method, path string
		body         any
		want         int // with a credential
	}{
		{http.MethodGet, "/v1.0/me", nil, 200},
		{http.MethodHead, "/v1.0/me", nil, 200},
		{http.MethodGet, "/v1.0/customer", nil, 200},
		{http.MethodGet, "/v1.0/customers", nil, 200},
		{http.MethodGet, "/v1.0/accesskeys", nil, 200},
		{http.MethodGet, "/v1.0/accesskeys?page_size=x", nil, 400},
		{http.MethodGet, "/v1.0/accesskeys?page_size=%zz", nil, 400},
		{http.MethodPost, "/v1.0/accesskeys", "{", 400},
		{http.MethodPost, "/v1.0/accesskeys", strings.Repeat(" ", 70000), 413},
		{http.MethodPut, "/v1.0/accesskeys/" + id, "[]", 400},
		{http.MethodGet, "/v1.0/accesskeys/" + id, nil, 200},
		{http.MethodGet, "/v1.0/accesskeys/no-id", nil, 400},
		{http.MethodDelete, "/v1.0/accesskeys/" + h.acme.customer.ID.String(), nil, 404},
		{http.MethodDelete, "/v1.0/accesskeys/" + h.globex.key.ID.String(), nil, 403},
		{http.MethodGet, "/v1.0", nil, 404},
		{http.MethodGet, "/v1.0/", nil, 404},
		{http.MethodGet, "/v1.0/me/", nil, 404},
		{http.MethodGet, "/v1.0/ME", nil, 404},
		{http.MethodGet, "/v1.0//me", nil, 404},
		{http.MethodGet, "/v1.0/%6De", nil, 404},
		{http.MethodGet, "/v1.0/no/such/route", nil, 404},
		{http.MethodGet, "/v1.0/%2e%2e/ping", nil, 404},
		{http.MethodGet, "/v1.0/%00", nil, 404},
		{http.MethodPost, "/v1.0/no/such/route", "{", 404},
		{http.MethodPost, "/v1.0/me", "{}", 405},
		{http.MethodDelete, "/v1.0/accesskeys", nil, 405},
		{http.MethodPatch, "/v1.0/accesskeys/" + id, "{}", 405},
		{http.MethodTrace, "/v1.0/me", nil, 405},
		{http.MethodOptions, "/v1.0/me", nil, 405}, // no preflight: it names no origin
		{"UNHEARDOF", "/v1.0/me", nil, 405},
	} {
		for reason, bearer := range map[string]string{"AUTHENTICATION_REQUIRED": "", "INVALID_CREDENTIALS": "nonsense"} {
			got := h.send(request{method: c.method, path: c.path, body: c.body, header: bearing(bearer)})
			wrong := got.diffChallenge(reason)
			if c.method == http.MethodHead && got.code == http.StatusUnauthorized && len(got.raw) == 0 {
				wrong = ""
			}
			if wrong != "" || got.header.Get("Allow") != "" {
				t.Errorf("%s %s: %s, Allow %q", c.method, c.path, wrong, got.header.Get("Allow"))
			}
		}
		got := h.send(request{method: c.method, path: c.path, body: c.body, header: bearing(h.acme.token)})
		if got.code != c.want {
			t.Errorf("%s %s with a credential: status %d, want %d", c.method, c.path, got.code, c.want)
		}
	}
	// Whatever was asked without a credential has changed nothing.
	for _, tn := range []tenant{h.acme, h.globex} {
		h.get("/v1.0/accesskeys/"+tn.key.ID.String(), tn.token).wants(http.StatusOK)
	}
}

// Contract, section 5: preflights answered without a credential; browsers send none with them. The request that follows needs one all the
// same, and says so to the page.
func TestPreflightNeedsNoCredential(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	origin := http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"DELETE"}}
	for _, path := range []string{"/v1.0/accesskeys/" + h.acme.key.ID.String(), "/v1.0/no/such/route"} {
		got := h.send(request{method: http.MethodOptions, path: path, header: origin}).wants(http.StatusNoContent)
		if len(got.raw) != 0 || got.header.Get("WWW-Authenticate") != "" || got.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: body %q, header %v", path, got.raw, got.header)
		}
		h.send(request{method: http.MethodDelete, path: path, header: origin}).wantsChallenge("AUTHENTICATION_REQUIRED")
	}
	h.get("/v1.0/me", h.acme.token).wants(http.StatusOK)
}

// silentListener takes connections and never says a word, as a network that drops packets does.
func silentListener(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// deadAddress is one where nobody listens any more.
func deadAddress(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// onStoreAt is the harness's server on another store, wherever that one's database is.
func (h *harness) onStoreAt(address string) *harness {
	h.t.Helper()
	return h.onDatabase(secret.New("postgres://u:p@"+address+"/d?sslmode=disable"), nil)
}

// Contract, section 3: A look-up that fails because the database does is a 503, never a 401; contract 5: "503 SERVICE_UNAVAILABLE with
// Retry-After within 5 s". A key that is good and one that nobody has get the same answer; what needs no look-up to be refused is refused as
// ever. The control is the same requests on a store that works.
func TestFailingStoreIsA503AndNeverARefusal(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(*harness) *harness{
		"pool closed":       func(h *harness) *harness { h.store.Close(); return h }, // which asks it each time
		"nobody listens":    func(h *harness) *harness { return h.onStoreAt(deadAddress(h.t)) },
		"somebody is mute":  func(h *harness) *harness { return h.onStoreAt(silentListener(h.t)) },
		"tables are gone":   func(h *harness) *harness { h.exec(`ALTER SCHEMA public RENAME TO elsewhere`); return h },
		"a column is gone":  func(h *harness) *harness { h.exec(`ALTER TABLE customers RENAME tm_delete TO x`); return h },
		"rights are gone":   func(h *harness) *harness { return h.onSetting(`role = pg_monitor`) },
		"tables are locked": (*harness).locked,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t).uncached()
			unknownAgent := h.acme.admin
			unknownAgent.ID = h.acme.customer.ID
			unknownJWT, err := h.sessions.Issue(unknownAgent, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			credentials := []struct {
				name, value string
				code        int // while the store works
			}{
				{"good key", h.acme.token, 200},
				{"unknown key", auth.NewAccessToken().Reveal(), 401},
				{"good JWT", h.acme.adminJWT, 200},
				{"unknown JWT", unknownJWT.Reveal(), 401},
			}
			for _, c := range credentials {
				h.get("/v1.0/me", c.value).wants(c.code)
			}
			h = breakIt(h)
			asks := map[string]request{"login": {
				method: http.MethodPost, path: "/auth/login",
				body: map[string]any{"username": h.acme.admin.Username, "password": tenantPassword},
			}}
			for _, c := range credentials {
				asks[c.name] = request{method: http.MethodGet, path: "/v1.0/me", header: bearing(c.value)}
			}
			type answer struct {
				r    *http.Request
				sent []byte
				got  response
				err  error
				took time.Duration
			}
			// Side by side, and all in the turn of one test: some take seconds, and only wait.
			answers := map[string]*answer{}
			var asking sync.WaitGroup
			for what, req := range asks {
				a := &answer{}
				answers[what] = a
				asking.Go(func() {
					started := time.Now()
					a.r, a.sent, a.got, a.err = h.do(req)
					a.took = time.Since(started)
				})
			}
			asking.Wait()
			for what, a := range answers {
				t.Run(what, func(t *testing.T) {
					if a.err != nil {
						t.Fatal(a.err)
					}
					a.got.t = t
					conforms(t, a.r, a.sent, a.got)
					a.got.refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
					for try := 0; try < 5 && a.took > 5*time.Second; try++ { // again where the machine was busy
						started := time.Now()
						h.send(asks[what]).refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
						a.took = time.Since(started)
					}
					if a.took > 5*time.Second {
						t.Errorf("answered after %s", a.took)
					}
					if !slices.Equal(a.got.header["Retry-After"], []string{"2"}) || a.got.header.Get("WWW-Authenticate") != "" {
						t.Errorf("header %v", a.got.header)
					}
				})
			}
			h.get("/v1.0/me", "nonsense").wantsChallenge("INVALID_CREDENTIALS")
			h.get("/v1.0/me", "").wantsChallenge("AUTHENTICATION_REQUIRED")
		})
	}
}

// onSetting is another server, with connections on which a setting of the database's is in force.
func (h *harness) onSetting(setting string) *harness {
	h.t.Helper()
	h.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ` + setting + `', current_database()); END $$`)
	return h.onDatabase(h.database, nil)
}

// locked is another server, which finds the tables locked, as by a migration, and gives up on them.
func (h *harness) locked() *harness {
	h.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, h.database.Reveal())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close(ctx) })
	if _, err := conn.Exec(ctx, `BEGIN; LOCK TABLE accesskeys, agents, customers`); err != nil {
		h.t.Fatal(err)
	}
	return h.onSetting(`lock_timeout = 50`)
}
