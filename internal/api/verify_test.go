package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// identityHeaders are the six that tell a proxy who is calling.
var identityHeaders = []string{"X-Auth-Type", "X-Auth-Id", "X-Customer-Id", "X-Agent-Id", "X-Auth-Permission", "X-Auth-Expire"}

// identityValues is a caller as the six headers tell it, in their order.
type identityValues [6]string

// diffAllowed holds a yes to all that is promised of it: the status, no body, and every header that it has. It returns what
// is wrong, "" where nothing is.
func (r response) diffAllowed(who identityValues) string {
	want := http.Header{
		"Cache-Control": {"no-store"}, "Referrer-Policy": {"no-referrer"}, "Content-Length": {"0"}, "Access-Control-Allow-Origin": {"*"},
		"Access-Control-Expose-Headers": {"X-Request-Id, Retry-After, WWW-Authenticate"},
	}
	for i, name := range identityHeaders {
		want[name] = []string{who[i]}
	}
	got := r.header.Clone()
	for _, name := range []string{"Date", "X-Request-Id"} {
		if len(got[name]) != 1 {
			return fmt.Sprintf("%s is %q", name, got[name])
		}
		delete(got, name)
	}
	if r.code == http.StatusOK && len(r.raw) == 0 && maps.EqualFunc(got, want, slices.Equal) {
		return ""
	}
	return fmt.Sprintf("status %d, header %v, body %q, want 200, %v and none", r.code, got, r.raw, want)
}

// stops fails the test unless this is a no with this status and reason, which names nobody and is kept by no cache.
func (r response) stops(code int, reason string) response {
	r.t.Helper()
	r.refuses(code, reason)
	for _, name := range identityHeaders {
		if _, there := r.header[name]; there {
			r.t.Errorf("a refusal has %s: %q", name, r.header[name])
		}
	}
	if (r.header.Get("WWW-Authenticate") != "") != (code == http.StatusUnauthorized) {
		r.t.Errorf("%d with WWW-Authenticate %q", code, r.header.Get("WWW-Authenticate"))
	}
	if r.header.Get("Cache-Control") != "no-store" || r.header.Get("Referrer-Policy") != "no-referrer" {
		r.t.Errorf("%d with %q and %q", code, r.header.Get("Cache-Control"), r.header.Get("Referrer-Policy"))
	}
	return r
}

// expiry is the end of a credential as the six headers have it, read without the code that writes it.
func (h *harness) expiry(credential string) string {
	h.t.Helper()
	if strings.HasPrefix(credential, auth.TokenPrefix) {
		return h.text(`SELECT to_char(tm_expire AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM accesskeys
			WHERE token_sha256 = sha256($1::text::bytea)`, credential)
	}
	_, payload, _ := split(credential)
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		h.t.Fatal(err)
	}
	var claims struct {
		Expires int64 `json:"exp"`
	}
	if err := json.Unmarshal(text, &claims); err != nil || claims.Expires == 0 {
		h.t.Fatalf("claims %s: %v", text, err)
	}
	return time.Unix(claims.Expires, 0).UTC().Format("2006-01-02T15:04:05") + ".000000Z"
}

// known is one caller of each kind, with what the six headers have to say of it.
type known struct {
	credential string
	who        identityValues
}

func (h *harness) everyKnown() map[string]known {
	h.t.Helper()
	customer := h.acme.customer.ID
	all := map[string]known{}
	add := func(name, kind string, id uuid.UUID, agent string, permission int, credential string) {
		all[name] = known{credential, identityValues{
			kind, id.String(), customer.String(), agent, strconv.Itoa(permission), h.expiry(credential),
		}}
	}
	agent := func(name string, a store.Agent, token string) {
		add(name, "agent", a.ID, a.ID.String(), int(a.Permission), token)
		key, bound := h.newBoundKey(a)
		add("key of "+name, "accesskey", key.ID, a.ID.String(), int(a.Permission), bound)
	}
	agent("admin", h.acme.admin, h.acme.adminJWT)
	agent("plain agent", h.acme.plain, h.acme.plainJWT)
	agent("superadmin", h.acme.super, h.acme.superJWT)
	several := h.newAgent(customer, auth.PermissionAll)
	agent("agent with every bit", several, h.jwtFor(several))
	nobody := h.newAgent(customer, auth.PermissionNone)
	agent("agent without a bit", nobody, h.jwtFor(nobody))
	add("customer-wide key", "accesskey", h.acme.key.ID, "", 32, h.acme.token)
	for role, permission := range map[auth.Role]int{auth.RoleCustomerAdmin: 32, auth.RoleAccessKeyAdmin: 0} {
		p := h.newProgram(customer, role)
		add("account with "+string(role), "service_account", p.account.ID, "", permission, p.token)
		made := h.post("/v1.0/accesskeys", p.token, `{"expire":700}`).wants(http.StatusOK).json()
		add("key of an account with "+string(role), "accesskey", uuid.MustParse(made["id"].(string)), "", permission, made["token"].(string))
	}
	bare := h.newProgram(customer)
	add("account without a role", "service_account", bare.account.ID, "", 0, bare.token)
	return all
}

// A proxy copies the six headers over the client's. So they are there every time, with these values, whatever the client has
// put into headers of the same names; and none of them is there on a no.
func TestWhoPassesIsNamedByAllSixHeadersEveryTime(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	callers := h.everyKnown()
	forged := http.Header{}
	for _, name := range identityHeaders {
		forged[name] = []string{"forged", "twice"}
		forged[strings.ToLower(name)] = []string{"forged"}
		forged[strings.ReplaceAll(name, "-", "_")] = []string{"forged"}
	}
	for name, c := range callers {
		if len(callers) != 16 || c.who[0] == "" {
			t.Fatalf("%d callers", len(callers))
		}
		for _, path := range []string{verifyPath, verifyPath + "?strict=0", verifyPath + "/some/path?x=1"} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				for _, header := range []http.Header{{}, forged.Clone()} {
					header.Set("Authorization", "Bearer "+c.credential)
					if wrong := h.send(request{method: method, path: path, header: header}).diffAllowed(c.who); wrong != "" {
						t.Errorf("%s, %s %s: %s", name, method, path, wrong)
					}
				}
			}
		}
	}
	forged.Set("Authorization", "Bearer "+h.acme.plainJWT)
	h.send(request{method: http.MethodGet, path: verifyPath + "?permission=admin", header: forged}).stops(403, "PERMISSION_DENIED")
	h.send(request{method: http.MethodGet, path: verifyPath + "?nonsense", header: forged}).stops(403, "INVALID_REQUEST_PARAMETER")
	forged.Del("Authorization")
	h.send(request{method: http.MethodGet, path: verifyPath, header: forged}).stops(401, "AUTHENTICATION_REQUIRED")
}

// Proxies ask with the client's own method, and Envoy with its path behind: all are answered alike, a CORS preflight too, which
// anywhere else passes without a credential. What merely looks like the route is none.
func TestEveryMethodAndEveryPathBelowAsksTheSame(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	who := identityValues{"accesskey", h.acme.key.ID.String(), h.acme.customer.ID.String(), "", "32", h.expiry(h.acme.token)}
	paths := []string{
		"", "/", "/a/b", "//", "//evil.example/a", "/v1.0/me", "/auth/verify", "/auth/login", "/ping", "/%2e%2e/ping", "/../ping", "/a%2fb", "/a%00b",
		"/*", "/{id}", "/" + strings.Repeat("long/", 2000), "/größe", "/a;token=x", "/%3Ftoken=x",
	}
	preflight := http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"DELETE"}}
	for i, path := range paths {
		methods := []string{http.MethodGet, http.MethodPost, http.MethodOptions, "X-MADE-UP"}
		if i < 4 {
			methods = append(methods, everyMethod...)
		}
		for _, method := range methods {
			for _, header := range []http.Header{{}, preflight.Clone()} {
				ask := func(credential string) response {
					header.Set("Authorization", "Bearer "+credential)
					return h.send(request{method: method, path: verifyPath + path, header: header})
				}
				if wrong := ask(h.acme.token).diffAllowed(who); wrong != "" {
					t.Errorf("%s %.40s: %s", method, path, wrong)
				}
				for credential, reason := range map[string]string{"": "AUTHENTICATION_REQUIRED", "nonsense": "INVALID_CREDENTIALS"} {
					switch got := ask(credential); {
					case method == http.MethodHead && (got.code != http.StatusUnauthorized || len(got.raw) > 0):
						t.Errorf("HEAD %.40s: %d", path, got.code)
					case method != http.MethodHead && got.diffChallenge(reason) != "":
						t.Errorf("%s %.40s: %s", method, path, got.diffChallenge(reason))
					}
				}
			}
		}
	}
	for _, path := range []string{"/auth/verifyx", "/auth/verify%2fx", "/auth/verif%79", "/auth/Verify", "/auth//verify", "//auth/verify", "/auth/verify.", "/v1.0/auth/verify"} {
		got := h.get(path, h.acme.token).refuses(404, "ROUTE_NOT_FOUND")
		if got.header.Get("X-Auth-Type") != "" {
			t.Errorf("%s names the caller", path)
		}
	}
}

// asking are the ways in which proxies ask about a request: with its query on the check itself, in a header, or behind the path.
var asking = map[string]func(request) request{
	"the check itself": func(about request) request {
		_, query, _ := strings.Cut(about.path, "?")
		return request{method: http.MethodGet, path: verifyPath + "?" + query, header: about.header}
	},
	"X-Original-URI": func(about request) request {
		return request{method: http.MethodGet, path: verifyPath, header: with(about.header, "X-Original-URI", about.path)}
	},
	"X-Forwarded-Uri": func(about request) request {
		return request{method: http.MethodGet, path: verifyPath, header: with(about.header, "X-Forwarded-Uri", about.path)}
	},
	"an absolute X-Original-URI": func(about request) request {
		return request{method: http.MethodGet, path: verifyPath, header: with(about.header, "X-Original-Uri", "https://api.example"+about.path)}
	},
	"X-Original-URL": func(about request) request {
		return request{method: http.MethodGet, path: verifyPath, header: with(about.header, "X-Original-URL", "https://api.example"+about.path)}
	},
	"a path below": func(about request) request {
		return request{method: http.MethodGet, path: verifyPath + about.path, header: about.header}
	},
}

// with is a header with one more line, its name as it is written here.
func with(header http.Header, name, value string) http.Header {
	more := header.Clone()
	if more == nil {
		more = http.Header{}
	}
	more[name] = append(more[name], value)
	return more
}

// Section 3 holds for the check and for the URL that it asks about: every credential in every state, over every carrier, in
// every way to ask.
func TestEveryCredentialIsCheckedAlikeInTheOriginalURL(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range everyCredential(h) {
		for carrierName, carrier := range carriers {
			for way, ask := range asking {
				got := h.send(ask(carrier(c.value)))
				name := fmt.Sprint(way, ", ", carrierName, " ", c.kind, " ", c.state)
				if c.cause != "" || !carries(carrierName, c.kind) {
					if wrong := got.diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
						t.Errorf("%s: %s", name, wrong)
					}
				} else if got.code != http.StatusOK || got.header.Get("X-Customer-Id") != h.acme.customer.ID.String() {
					t.Errorf("%s: %d %v %s", name, got.code, got.header, got.raw)
				}
			}
		}
	}
	for carrierName, carrier := range carriers {
		for way, ask := range asking {
			if wrong := h.send(ask(carrier(""))).diffChallenge("AUTHENTICATION_REQUIRED"); wrong != "" {
				t.Errorf("%s, %s empty: %s", way, carrierName, wrong)
			}
		}
	}
}

// Queries are read one way only, also those of the original URL: semicolons, escapes, repetitions.
func TestOriginalQueriesAreReadOneWayOnly(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range queriesAndHeaders(h) {
		about := request{path: "/some/path"}
		if c.query != "" {
			about.path += "?" + h.filled(c.query)
		}
		if c.header != "" {
			about.header = http.Header{"Authorization": {h.filled(c.header)}}
		}
		for way, ask := range asking {
			if way == "the check itself" {
				continue // its query has options
			}
			got := h.send(ask(about))
			if c.reason == "" && got.code != http.StatusOK || c.reason != "" && got.diffChallenge(c.reason) != "" {
				t.Errorf("%s, ?%s %s: %d %s, want %q", way, c.query, c.header, got.code, got.raw, c.reason)
			}
		}
	}
}

// An API may have a "token" in its queries that is none of ours: the check is told where to look. What it is told must be known.
func TestCheckLooksForCredentialsWhereItIsTold(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const foreign = "/calls?token=of-the-api&accesskey=another"
	for option, want := range map[string]struct{ header, query, both, foreign int }{
		"":                         {200, 200, 401, 401},
		"?in=both":                 {200, 200, 401, 401},
		"?in=header&in=query":      {200, 200, 401, 401},
		"?in=header":               {200, 401, 200, 200},
		"?strict=0&in=header":      {200, 401, 200, 200},
		"?in=query":                {401, 200, 200, 401},
		"?in=":                     {403, 403, 401, 401},
		"?in=Header":               {403, 403, 401, 401},
		"?in=cookie":               {403, 403, 401, 401},
		"?in=header&in=cookie":     {403, 403, 401, 401},
		"?in=header&permission=x":  {403, 403, 401, 401},
		"?in=header,query":         {403, 403, 401, 401},
		"?IN=header":               {403, 403, 401, 401},
		"?in=header&in=header&x=1": {403, 403, 401, 401},
	} {
		for carrier, c := range map[string]struct {
			want   int
			header http.Header
		}{
			"a header":                    {want.header, bearing(h.acme.token)},
			"a query":                     {want.query, http.Header{"X-Original-Uri": {"/a?accesskey=" + h.acme.token}}},
			"both":                        {want.both, with(bearing(h.acme.token), "X-Original-Uri", "/a?accesskey="+h.acme.token)},
			"a header, and a foreign one": {want.foreign, with(bearing(h.acme.token), "X-Original-Uri", foreign)},
		} {
			got := h.send(request{method: http.MethodGet, path: verifyPath + option, header: c.header})
			if got.code != c.want {
				t.Errorf("%q, %s: %d, want %d", option, carrier, got.code, c.want)
			}
		}
	}
}

// Exactly one credential in all: any two are refused, also the same one twice, and by client or proxy; but a
// query that is given again is a copy of the first, and counts once.
func TestTwoCredentialsAreRefusedWhereverTheyAre(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	places := map[string]func(*request, string){
		"the check itself": func(r *request, query string) { r.path += "&" + query },
		"X-Original-URI":   func(r *request, query string) { r.header.Add("X-Original-Uri", "/a?"+query) },
		"X-Original-URL":   func(r *request, query string) { r.header.Add("X-Original-Url", "http://x/a?"+query) },
		"X-Forwarded-Uri":  func(r *request, query string) { r.header.Add("X-Forwarded-Uri", "/b?"+query) },
	}
	credentials := map[string]string{
		"key": "accesskey=" + h.acme.token, "other key": "accesskey=" + h.globex.token, "JWT": "token=" + h.acme.adminJWT,
		"other JWT": "token=" + h.globex.adminJWT,
	}
	check := func() request { return request{method: http.MethodGet, path: verifyPath + "?", header: http.Header{}} }
	refused := func(name string, req request) {
		if wrong := h.send(req).diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
			t.Errorf("%s: %s", name, wrong)
		}
	}
	for placeA, inA := range places {
		for nameA, a := range credentials {
			alone := check()
			inA(&alone, a)
			h.send(alone).wants(http.StatusOK) // the control
			for placeB, inB := range places {
				for nameB, b := range credentials {
					two := check()
					inA(&two, a)
					inB(&two, b)
					name := fmt.Sprint(nameA, " in ", placeA, ", ", nameB, " in ", placeB)
					// "?&accesskey=..." of the check is not the very query of the headers.
					if a == b && placeA != "the check itself" && placeB != "the check itself" {
						h.send(two).wants(http.StatusOK)
						inB(&two, "x=1&"+b)
						name += " and another query with it"
					}
					refused(name, two)
				}
			}
			for _, bearer := range []string{h.acme.token, h.acme.adminJWT, h.globex.token, "nonsense"} {
				two := check()
				inA(&two, a)
				two.header.Add("Authorization", "Bearer "+bearer)
				refused("Bearer and "+nameA+" in "+placeA, two)
			}
			for _, empty := range []string{"token=", "accesskey="} {
				two := check()
				inA(&two, a)
				places["X-Original-URI"](&two, "x=1&"+empty)
				if strings.HasPrefix(a, empty) { // a carrier that is repeated
					refused(nameA+" in "+placeA+" and an empty one", two)
				} else {
					h.send(two).wants(http.StatusOK)
				}
			}
		}
	}
	// A copy in all three places is one, by client or proxy, and doesn't hide what else there is.
	for _, query := range []string{credentials["key"], credentials["JWT"]} {
		three := request{method: http.MethodGet, path: verifyPath + "?" + query, header: http.Header{
			"X-Original-Uri": {"/a?" + query, "/b?" + query}, "X-Forwarded-Uri": {"https://x.example/c?" + query},
		}}
		h.send(three).wants(http.StatusOK)
		three.header.Set("Authorization", "Bearer "+h.acme.token)
		refused("three copies and a Bearer", three)
		three.header.Del("Authorization")
		three.header.Add("X-Forwarded-Uri", "/?"+query+"&"+query)
		refused("three copies and a repeated one", three)
	}
	// Nor does anything else of the headers count: what is read is the query of a URL.
	for _, value := range []string{
		h.acme.token, "accesskey=" + h.acme.token, "/accesskey=" + h.acme.token, "/a#accesskey=" + h.acme.token, "/%3Faccesskey=" + h.acme.token,
		"/a;accesskey=" + h.acme.token, "https://" + h.acme.token + "@x.example/", "/a?x=1#&y", "?", "",
	} {
		for _, name := range []string{"X-Original-Uri", "X-Forwarded-Uri"} {
			req := check()
			req.header.Set(name, value)
			if wrong := h.send(req).diffChallenge("AUTHENTICATION_REQUIRED"); wrong != "" {
				t.Errorf("%s: %s: %s", name, value, wrong)
			}
		}
	}
}

// Nothing else is read: what other proxies send, cookies, Basic, the body. Good credentials lie there, and one in its place is good beside
// them.
func TestCheckReadsACredentialNowhereElse(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := h.globex.token
	basic := base64.StdEncoding.EncodeToString([]byte(h.globex.admin.Username + ":" + tenantPassword))
	url := "https://x.example/a?accesskey=" + key
	for name, value := range map[string]string{
		"X_Original_Url": url, "X-Rewrite-Url": url, "X-Forwarded-Url": url, "X-Envoy-Original-Path": url, "X-Auth-Request-Redirect": url, "Referer": url,
		"X_Original_URI": url, "X-Original-Uri-": url, "X-Forwarded-Query": "accesskey=" + key, "X-Replaced-Path": url, "X-Original-Authorization": "Bearer " + key,
		"X-Forwarded-Authorization": "Bearer " + key, "Proxy-Authorization": "Bearer " + key, "X-Api-Key": key, "Accesskey": key, "Token": h.globex.adminJWT,
		"Cookie": "accesskey=" + key + "; token=" + h.globex.adminJWT, "Authorization": "Basic " + basic, "X-Auth-Id": h.globex.key.ID.String(),
	} {
		header := http.Header{name: {value}}
		h.send(request{method: http.MethodGet, path: verifyPath, header: header}).wantsChallenge("AUTHENTICATION_REQUIRED")
		good := with(header, "X-Original-URI", "/a?accesskey="+h.acme.token)
		if got := h.send(request{method: http.MethodGet, path: verifyPath, header: good}).wants(http.StatusOK); got.header.Get("X-Auth-Id") != h.acme.key.ID.String() {
			t.Errorf("%s: %v", name, got.header)
		}
	}
	for _, path := range []string{verifyPath, verifyPath + "/a"} {
		inBody := form("accesskey=" + key)
		inBody.path = path
		h.send(inBody).wantsChallenge("AUTHENTICATION_REQUIRED")
	}
}

// However many paths and methods clients ask for, the metrics know two routes, and count what became of the credentials.
func TestChecksAreCountedByRouteAndResultAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i := range 20 {
		path := fmt.Sprint(verifyPath, "/a", i, "/b?c=", i)
		h.send(request{method: fmt.Sprint("M", i), path: path, header: bearing(h.acme.token)}).wants(http.StatusOK)
		h.get(path, "").stops(401, "AUTHENTICATION_REQUIRED")
		h.get(verifyPath, h.acme.token+"x").stops(401, "INVALID_CREDENTIALS")
	}
	var got []string
	for line := range strings.Lines(string(h.get("/metrics", "").raw)) {
		if strings.HasPrefix(line, "accesskeys_http_requests_total{") || strings.HasPrefix(line, "accesskeys_credential_checks_total{") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	equalJSON(t, got, []string{
		`accesskeys_credential_checks_total{kind="accesskey",result="accepted"} 20`,
		`accesskeys_credential_checks_total{kind="none",result="absent"} 20`,
		`accesskeys_credential_checks_total{kind="none",result="refused"} 20`,
		`accesskeys_http_requests_total{method="GET",route="/auth/verify",status="401"} 20`,
		`accesskeys_http_requests_total{method="GET",route="/auth/verify/*",status="401"} 20`,
		`accesskeys_http_requests_total{method="other",route="/auth/verify/*",status="200"} 20`,
	})
}

// powers are how many of the names agent, manager, admin and superadmin each kind of caller has; -1 is no caller any more.
var powers = map[string]int{
	"su": 4, "ad": 3, "ma": 2, "ag": 1, "a0": 0, "ck": 3, "ak": 3, "gk": 1, "CA": 3, "KA": 0, "KV": 0, "AA": 0, "AV": 0, "N0": 0, "sk": 0,
	"ek": -1, "dk": -1, "eu": -1, "xk": -1, "xj": -1, "xs": -1, "xt": -1, "xc": -1, "no": -1,
}

// ?permission= lets those through who have that permission, or one with more power, and every kind of caller without it. Those
// that have ended get a 401 whatever is asked.
func TestPermissionIsAskedOfEveryKindOfCaller(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	all := slices.Concat(identities(), endedIdentities(), []identity{{"no", func(*harness, uuid.UUID) caller { return caller{} }}})
	if len(all) != len(powers) {
		t.Errorf("%d kinds of caller, want %d", len(all), len(powers))
	}
	for _, i := range all {
		customer, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: i.code})
		if err != nil {
			t.Fatal(err)
		}
		c := i.make(h, customer.ID)
		power, ok := powers[i.code]
		if !ok {
			t.Fatalf("%s has no power here", i.code)
		}
		for asked, option := range []string{"", "?permission=agent", "?permission=manager", "?permission=admin", "?permission=superadmin"} {
			got := h.get(verifyPath+option, c.bearer)
			want := http.StatusForbidden
			switch {
			case power < 0:
				want = http.StatusUnauthorized
			case power >= asked:
				want = http.StatusOK
			}
			if got.code != want {
				t.Errorf("%s, %s: %d %s, want %d", i.code, option, got.code, got.raw, want)
			}
			if want == http.StatusForbidden {
				got.stops(403, "PERMISSION_DENIED")
			}
		}
	}
}

// An option that nobody knows, or that makes no sense, is an error whatever else there is and in whatever order it is read: a slip
// in a proxy's configuration must not open a door. The caller here has every permission.
func TestOptionThatIsNotKnownOpensNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for query, field := range map[string]string{
		"permision=admin": "", "Permission=admin": "", "permission[]=admin": "", "permissions=admin": "", "perm=admin": "", "%20permission=admin": "",
		"role=admin": "", "x": "", "=": "", "=x": "", "customer_id=" + h.acme.customer.ID.String(): "", "permission=agent&permision=admin": "",
		"permission=agent&x=1&strict=0": "", "permission=": "permission", "permission": "permission", "permission=root": "permission",
		"permission=Admin": "permission", "permission=32": "permission", "permission=admin%20": "permission", "permission=admin,agent": "permission",
		"permission=agent&permission=agent": "permission", "permission=agent&permission=admin": "permission", "permission=agent&permission=": "permission",
		"permission=accesskey_admin": "permission", "permission=none": "permission", "strict": "strict", "strict=": "strict", "strict=2": "strict",
		"strict=false": "strict", "strict=00": "strict", "strict=0&strict=0": "strict", "strict=0&strict=1": "strict", "strict=1&strict=1": "strict",
		"strict=0&permission=root": "permission", "permission=agent;strict=0": "", "permission=%zz": "", "%zz=1": "", "permission=agent&x=%zz": "",
		";": "", "permission=agent;": "",
	} {
		for range 5 { // of several names, any may be read first
			got := h.get(verifyPath+"?"+query, h.acme.superJWT).stops(403, "INVALID_REQUEST_PARAMETER")
			envelope := got.json()["error"].(map[string]any)
			details, _ := envelope["details"].([]any)
			if envelope["status"] != "PERMISSION_DENIED" || len(details) != 1 {
				t.Fatalf("?%s: %s", query, got.raw)
			}
			if named, _ := details[0].(map[string]any)["field"].(string); named != field {
				t.Errorf("?%s: %s, want the field %q", query, got.raw, field)
			}
		}
		h.get(verifyPath+"?"+query, "").stops(401, "AUTHENTICATION_REQUIRED")
	}
	// The control: what is known, in every way to write it.
	for _, query := range []string{
		"", "&", "permission=superadmin", "strict=0", "strict=1", "permission=superadmin&strict=0", "strict=1&permission=superadmin", "&&permission=agent&",
		"%70ermission=superadmin", "permission=%73uperadmin", "token=", "accesskey=&permission=admin",
	} {
		h.get(verifyPath+"?"+query, h.acme.superJWT).wants(http.StatusOK)
	}
	h.get(verifyPath+"?strict=1&permission=admin&token="+h.acme.superJWT, "").wants(http.StatusOK)
}

// SECURITY: what the proxy's configuration asks for is asked for, whatever the client writes into its URL or into the headers
// that its proxy leaves alone.
func TestClientNeitherDropsNorRelaxesWhatTheProxyAsksFor(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.V1Limit = web.Limit{RPS: 0.001, Burst: 200} })
	originals := []string{
		"permission=admin", "permission=admin&strict=1", "permission=admin&", "permission=agent", "permission=", "permission=admin&permission=agent",
		"permission", "strict=0", "strict=0&permission=agent", "permision=admin", "x=%zz", "x;permission=agent", "", "%70ermission=admin",
		"permission=admin&strict=0",
	}
	forged := func(query, bearer string) []http.Header {
		return []http.Header{
			with(bearing(bearer), "X-Original-Uri", "/a?"+query), with(bearing(bearer), "X-Forwarded-Uri", "/a?"+query),
			with(with(bearing(bearer), "X-Original-Uri", "/a?"+query), "X-Forwarded-Uri", "/a?"+query),
		}
	}
	for _, query := range originals {
		for _, header := range forged(query, h.acme.plainJWT) {
			h.send(request{method: http.MethodGet, path: verifyPath + "?permission=admin", header: header}).stops(403, "PERMISSION_DENIED")
		}
		header := forged(query, h.acme.adminJWT)[0]
		h.send(request{method: http.MethodGet, path: verifyPath + "?permission=admin", header: header}).wants(http.StatusOK) // the control
	}
	for _, query := range originals[:3] { // the proxy's own query to the byte
		for _, header := range forged(query, h.acme.plainJWT) {
			h.send(request{method: http.MethodGet, path: verifyPath + "?" + query, header: header}).stops(403, "PERMISSION_DENIED")
		}
	}
	// Where a proxy leaves the client's query in the place of its own, names that are no options are the client's business.
	for _, header := range forged("page=2&accesskey="+h.acme.token, "") {
		h.send(request{method: http.MethodGet, path: verifyPath + "?page=2&accesskey=" + h.acme.token, header: header}).wants(http.StatusOK)
		h.send(request{method: http.MethodGet, path: verifyPath + "?page=3", header: header}).stops(403, "INVALID_REQUEST_PARAMETER")
	}
	// In a path below the query is the client's own: it asks for nothing and relaxes nothing.
	for _, query := range append(originals, "permission=superadmin", "permission=root") {
		if !strings.ContainsAny(query, "%;") {
			h.get(verifyPath+"/a?"+query, h.acme.plainJWT).wants(http.StatusOK)
		}
	}
	for range 200 {
		if h.get(verifyPath, h.acme.plainJWT).code != http.StatusOK {
			break
		}
	}
	for _, header := range forged("strict=0", h.acme.plainJWT) {
		h.send(request{method: http.MethodGet, path: verifyPath, header: header}).stops(403, "RATE_LIMIT_EXCEEDED")
		h.send(request{method: http.MethodGet, path: verifyPath + "/a?strict=0", header: header}).stops(403, "RATE_LIMIT_EXCEEDED")
	}
	h.get(verifyPath+"?strict=0", h.acme.plainJWT).stops(429, "RATE_LIMIT_EXCEEDED") // the control
}

// waits holds an answer that asks to come back later to its Retry-After, in seconds.
func (r response) waits(least, most int) {
	r.t.Helper()
	if seconds, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || seconds < least || seconds > most {
		r.t.Errorf("%d with Retry-After %q, want from %d to %d", r.code, r.header["Retry-After"], least, most)
	}
}

// A check that fails because the database does is neither a yes nor a 401, which would make a client throw its credential away: a
// 403, or with strict=0 a 503. Which credential it is makes no difference. What needs no look-up is refused as ever.
func TestFailingStoreLetsNobodyThroughAndRefusesNoCredential(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(*harness) *harness{
		"pool closed":      func(h *harness) *harness { h.store.Close(); return h },
		"nobody listens":   func(h *harness) *harness { return h.onStoreAt(deadAddress(h.t)) },
		"a column is gone": func(h *harness) *harness { h.exec(`ALTER TABLE customers RENAME tm_delete TO x`); return h },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t).uncached()
			unknown := auth.NewAccessToken().Reveal()
			program := h.newProgram(h.acme.customer.ID, auth.RoleCustomerAdmin).token
			h.get(verifyPath, h.acme.token).wants(http.StatusOK)
			h.get(verifyPath, unknown).stops(401, "INVALID_CREDENTIALS")
			h = breakIt(h)
			for _, credential := range []string{h.acme.token, unknown, h.acme.adminJWT, program} {
				for path, code := range map[string]int{
					verifyPath: 403, verifyPath + "?permission=agent": 403, verifyPath + "?strict=1": 403, verifyPath + "?nonsense": 403,
					verifyPath + "/a?strict=0": 403, verifyPath + "?strict=0": 503, verifyPath + "?strict=0&permission=superadmin": 503,
				} {
					got := h.get(path, credential).stops(code, "SERVICE_UNAVAILABLE")
					got.waits(2, 2)
					if status := got.json()["error"].(map[string]any)["status"]; status != map[int]string{403: "PERMISSION_DENIED", 503: "UNAVAILABLE"}[code] {
						t.Errorf("%s: status %v", path, status)
					}
				}
			}
			for _, path := range []string{verifyPath, verifyPath + "?strict=0"} {
				h.get(path, "nonsense").stops(401, "INVALID_CREDENTIALS")
				h.get(path, "").stops(401, "AUTHENTICATION_REQUIRED")
			}
		})
	}
}

// A defect in the check, here a verifier that is not there, lets nobody through either, and the log has it.
func TestPanicLetsNobodyThrough(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.serve(func(c *api.Config) { c.Verifier = nil })
	for path, code := range map[string]int{verifyPath: 403, verifyPath + "/a?strict=0": 403, verifyPath + "?strict=0": 503} {
		for _, method := range []string{http.MethodGet, http.MethodPost, "BREW"} {
			got := h.send(request{method: method, path: path, header: bearing(h.acme.token)}).stops(code, "INTERNAL")
			line := h.logLine(got.header.Get("X-Request-Id"))
			if line["level"] != "ERROR" || line["status"] != float64(code) || !strings.Contains(fmt.Sprint(line["error"]), "panic") {
				t.Errorf("log line %v", line)
			}
			if code == 503 {
				got.waits(1, 5)
			}
		}
	}
	h.get("/v1.0/me", h.acme.token).refuses(500, "INTERNAL") // the control: it is the check alone that says 403
}

// RATE_LIMIT_V1 counts /v1.0, the check and introspection together; RATE_LIMIT_AUTH counts logins, and neither of these.
func TestChecksAreLimitedWithV1AndNotAsLoginsAre(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.V1Limit, c.AuthLimit = web.Limit{RPS: 0.001, Burst: 5}, slow })
	introspection := introspecting(h.acme.adminJWT, h.acme.token)
	h.get(verifyPath, h.acme.token).wants(http.StatusOK)
	h.get(verifyPath+"/a", "").stops(401, "AUTHENTICATION_REQUIRED") // counts too
	h.get(verifyPath+"?nonsense", h.acme.token).stops(403, "INVALID_REQUEST_PARAMETER")
	h.send(introspection).wants(http.StatusOK)
	h.get("/v1.0/me", h.acme.token).wants(http.StatusOK)
	for path, code := range map[string]int{
		verifyPath: 403, verifyPath + "?permission=agent": 403, verifyPath + "?nonsense": 403, verifyPath + "/a?strict=0": 403,
		verifyPath + "?strict=0&nonsense": 403, verifyPath + "?nonsense&strict=0": 403, verifyPath + "?permission=root&strict=0": 403,
		verifyPath + "?strict=0&x=1&y=2": 403, verifyPath + "?strict=0": 429, "/v1.0/me": 429,
	} {
		for _, credential := range []string{h.acme.token, h.globex.adminJWT, ""} {
			got := h.get(path, credential).stops(code, "RATE_LIMIT_EXCEEDED")
			got.waits(900, 1000)
			equalJSON(t, got.json()["error"].(map[string]any)["details"], []any{map[string]any{"limited_by": "ip"}})
		}
	}
	h.send(introspection).refuses(429, "RATE_LIMIT_EXCEEDED").waits(900, 1000)
	h.login(h.acme.admin.Username).wants(http.StatusOK) // nothing of this was a login
	h.login(h.acme.admin.Username).wants(http.StatusOK)
	h.login(h.acme.admin.Username).refuses(429, "RATE_LIMIT_EXCEEDED")
}

// It is the client that is limited and not its proxy, where TRUSTED_PROXIES has the proxy; elsewhere nobody claims an address.
func TestChecksAreCountedByTheClientsAddress(t *testing.T) {
	t.Parallel()
	for trusted, want := range map[string][]int{"10.0.0.0/8": {200, 200, 403, 200, 403}, "": {200, 200, 403, 403, 403}} {
		h := newHarness(t, func(c *api.Config) {
			c.V1Limit = slow
			if trusted != "" {
				c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(trusted)}
			}
		})
		for i, client := range []string{"192.0.2.1", "9.9.9.9, 192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, verifyPath, nil)
			r.RemoteAddr = "10.0.0.1:1"
			r.Header = http.Header{"X-Forwarded-For": {client}, "Authorization": {"Bearer " + h.acme.token}}
			w := httptest.NewRecorder()
			h.server.ServeHTTP(w, r)
			if w.Code != want[i] {
				t.Errorf("trusting %q, request %d of %s: %d, want %d", trusted, i+1, client, w.Code, want[i])
			}
		}
	}
}

// Whatever a client sends that net/http takes, up to a megabyte, is answered with one of the three statuses.
func TestGiantRequestIsStillAYesOrANo(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	giant := strings.Repeat("a", 400_000)
	many := strings.Repeat("a=b&", 50_000)
	for name, c := range map[string]struct {
		path   string
		header http.Header
		code   int
	}{
		"a giant original URL":         {"", http.Header{"X-Original-Uri": {"/" + giant}}, 401},
		"a giant query":                {"", http.Header{"X-Original-Uri": {"/?" + giant}}, 401},
		"a giant credential":           {"", http.Header{"X-Forwarded-Uri": {"/?token=" + giant + ".b.c"}}, 401},
		"a giant Bearer":               {"", bearing(giant), 401},
		"many pairs":                   {"", http.Header{"X-Original-Uri": {"/?" + many}}, 401},
		"many pairs before the key":    {"", http.Header{"X-Original-Uri": {"/?" + many + "accesskey=" + h.acme.token}}, 200},
		"many pairs and two keys":      {"", http.Header{"X-Original-Uri": {"/?accesskey=" + h.acme.token + "&" + many + "accesskey=" + h.acme.token}}, 401},
		"many original URLs":           {"", http.Header{"X-Original-Uri": slices.Repeat([]string{"/?a"}, 5000), "Authorization": {"Bearer " + h.acme.token}}, 200},
		"many different original URLs": {"", http.Header{"X-Original-Uri": strings.SplitAfter(many[:20_000], "&"), "Authorization": {"Bearer " + h.acme.token}}, 200},
		"a giant path below":           {"/" + giant, bearing(h.acme.token), 200},
		"many pairs below":             {"/?" + many, bearing(h.acme.token), 200},
		"a giant option":               {"?permission=" + giant, bearing(h.acme.token), 403},
		"many options":                 {"?" + many, bearing(h.acme.token), 403},
	} {
		took := time.Hour
		for try := 0; try < 5 && took > 5*time.Second; try++ { // again where the machine was busy
			started := time.Now()
			if got := h.send(request{method: http.MethodGet, path: verifyPath + c.path, header: c.header}); got.code != c.code {
				t.Errorf("%s: %d %s, want %d", name, got.code, got.raw, c.code)
			}
			took = time.Since(started)
		}
		if took > 5*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
}

// Revoked through one server, refused by the check on another at once, which had it in memory: a key, a login, a program's token,
// by their own end, their owner's and a changed password.
func TestRevokedCredentialPassesNoCheckOnAnyInstance(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	customer := h.acme.customer.ID
	key, keyToken := h.newKey(h.acme.customer, 3600)
	agent, keyed, changed := h.newAgent(customer, 16), h.newAgent(customer, 16), h.newAgent(customer, 16)
	_, boundToken := h.newBoundKey(keyed)
	account, keyless := h.newProgram(customer), h.newProgram(customer)
	owner, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "owner"})
	if err != nil {
		t.Fatal(err)
	}
	_, ownersToken := h.newKey(owner, 3600)
	ownersAgent := h.newAgent(owner.ID, auth.PermissionCustomerAdmin)
	_, ownersBoundToken := h.newBoundKey(ownersAgent)
	for what, c := range map[string]struct {
		method, path string
		body         any
		ends         []string
	}{
		"DELETE of the key":            {"DELETE", "accesskeys/" + key.ID.String(), nil, []string{keyToken}},
		"DELETE of the agent":          {"DELETE", "agents/" + agent.ID.String(), nil, []string{h.jwtFor(agent)}},
		"DELETE of the key's agent":    {"DELETE", "agents/" + keyed.ID.String(), nil, []string{boundToken, h.jwtFor(keyed)}},
		"another password":             {"PUT", "agents/" + changed.ID.String() + "/password", `{"password":"another"}`, []string{h.jwtFor(changed)}},
		"DELETE of the account":        {"DELETE", "service_accounts/" + account.account.ID.String(), nil, []string{account.token}},
		"DELETE of the account's key":  {"DELETE", "service_accounts/" + keyless.account.ID.String() + "/keys/" + keyless.key.ID.String(), nil, []string{keyless.token}},
		"DELETE of the whole customer": {"DELETE", "customers/" + owner.ID.String(), nil, []string{ownersToken, ownersBoundToken, h.jwtFor(ownersAgent), h.newProgram(owner.ID).token}},
	} {
		servers := []*harness{other, h}
		for _, credential := range c.ends {
			for _, server := range servers {
				server.get(verifyPath, credential).wants(http.StatusOK) // from here on it is remembered
			}
		}
		h.send(request{method: c.method, path: "/v1.0/" + c.path, body: c.body, header: bearing(h.globex.superJWT)}).wants(http.StatusOK)
		for _, credential := range c.ends {
			for _, server := range servers {
				for _, path := range []string{verifyPath, verifyPath + "?strict=0", verifyPath + "/a"} {
					if wrong := server.get(path, credential).diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
						t.Errorf("after %s, %s: %s", what, path, wrong)
					}
				}
				server.introspect(h.acme.superJWT, credential).same(`{"active":false}`)
			}
		}
	}
}

// A demotion counts from the next check on, on every instance.
func TestCheckAsksForThePermissionAsItIsNow(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin)
	token := h.jwtFor(agent)
	_, key := h.newBoundKey(agent)
	for _, permission := range []int{32, 16, 64, 0, 1, 32} {
		h.put("/v1.0/agents/"+agent.ID.String()+"/permission", h.acme.superJWT, map[string]any{"permission": permission}).wants(http.StatusOK)
		for _, credential := range []string{token, key} {
			got := other.get(verifyPath, credential).wants(http.StatusOK).header.Get("X-Auth-Permission")
			if got != strconv.Itoa(permission) {
				t.Errorf("permission %d is told as %s", permission, got)
			}
			if code := other.get(verifyPath+"?permission=admin", credential).code; (code == 200) != (permission == 32 || permission == 1) {
				t.Errorf("permission %d: %d", permission, code)
			}
		}
	}
}

// A check that lets a key through is a use of it; one that doesn't is none.
func TestKeyThatPassesACheckWasUsed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other, stop := h.stoppable(2 * time.Second)
	used, usedToken := h.newKey(h.acme.customer, 3600)
	unused, _ := h.newKey(h.acme.customer, 3600)
	several, severalToken := h.newKey(h.acme.customer, 3600)
	before := h.clock()
	other.send(request{method: http.MethodGet, path: verifyPath, header: http.Header{"X-Original-Uri": {"/a?accesskey=" + usedToken}}}).wants(http.StatusOK)
	after := h.clock()
	other.send(request{method: http.MethodGet, path: verifyPath, header: http.Header{
		"X-Original-Uri": {"/a?accesskey=" + severalToken}, "Authorization": {"Bearer " + severalToken},
	}}).stops(401, "INVALID_CREDENTIALS")
	stop()
	lastUsed := func(k store.AccessKey) any {
		return h.get("/v1.0/accesskeys/"+k.ID.String(), h.acme.adminJWT).wants(http.StatusOK).json()["tm_last_used"]
	}
	if at := parseTime(t, lastUsed(used)); at.Before(before) || at.After(after.Add(time.Second)) {
		t.Errorf("used between %v and %v, it says at %v", before, after, at)
	}
	for _, k := range []store.AccessKey{unused, several} {
		if at := lastUsed(k); at != nil {
			t.Errorf("not used, it says at %v", at)
		}
	}
}

// Pages in a browser can't be told who somebody is by a check: no cross-origin page may read the six headers, and the answers about
// tokens are kept by nobody, whatever their status.
func TestAnswersOfChecksAreNotKeptNorShownToPages(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	origin := with(bearing(h.acme.token), "Origin", "https://page.example")
	got := h.send(request{method: http.MethodGet, path: verifyPath, header: origin}).wants(http.StatusOK)
	exposed := strings.ToLower(got.header.Get("Access-Control-Expose-Headers"))
	for _, name := range identityHeaders {
		if strings.Contains(exposed, strings.ToLower(name)) || strings.Contains(exposed, "*") {
			t.Errorf("pages may read %s", exposed)
		}
	}
	preflight := http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"POST"}}
	for _, path := range []string{verifyPath, verifyPath + "/a", "/auth/introspect", "/auth/introspect/", "/auth/verifyx"} {
		for _, method := range everyMethod {
			for _, header := range []http.Header{{}, bearing(h.acme.token), bearing("nonsense"), preflight} {
				got := h.send(request{method: method, path: path, header: header})
				if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Referrer-Policy") != "no-referrer" {
					t.Errorf("%s %s: %d with %q and %q", method, path, got.code, got.header.Get("Cache-Control"), got.header.Get("Referrer-Policy"))
				}
			}
		}
	}
}
