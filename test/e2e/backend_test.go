//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/servertest"
)

// identityHeaders are what the service says of a caller, and a proxy to the backend.
var identityHeaders = []string{"X-Auth-Type", "X-Auth-Id", "X-Customer-Id", "X-Agent-Id", "X-Auth-Permission", "X-Auth-Expire"}

// arrival is a request as the backend got it.
type arrival struct {
	method, uri, body string
	header            http.Header
}

// backend is what the proxies protect: it answers 200 and remembers the last request.
type backend struct {
	*httptest.Server
	mu    sync.Mutex
	count int
	last  arrival
}

func newBackend(t testing.TB) *backend {
	b := &backend{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.count++
		b.last = arrival{r.Method, r.RequestURI, string(body), r.Header.Clone()}
		_, _ = io.WriteString(w, "from the backend")
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) addr() string { return b.Listener.Addr().String() }

// during is the answer to a request, how many have come in meanwhile, and the last of them.
func (b *backend) during(ask func() answer) (a answer, n int, last arrival) {
	b.mu.Lock()
	b.count, b.last = 0, arrival{}
	b.mu.Unlock()
	a = ask()
	b.mu.Lock()
	defer b.mu.Unlock()
	return a, b.count, b.last
}

// caller is somebody with a credential, and what a backend should be told of them.
type caller struct {
	name       string
	credential string
	parameter  string // the one that carries it in a URL
	identity   map[string]string
}

// fixture is a server, its Postgres, and a caller of each kind.
type fixture struct {
	postgres    *privatepg.Server
	server      *server
	admin       caller            // customer-wide
	agent       caller            // no admin
	callers     []caller          // those two among them
	bad         map[string]string // what is wrong, and a credential with which it is
	credentials []string          // all that were presented
}

// trusted is the setting by which the server believes the proxies of these tests.
const trusted = "TRUSTED_PROXIES=127.0.0.1/32"

func newFixture(t testing.TB) *fixture {
	t.Helper()
	w := &fixture{postgres: newPostgres(t, "200"), bad: map[string]string{}}
	w.server = newServer(t, w.postgres.URL("postgres"), trusted, "LOG_LEVEL=debug")
	w.makeCallers(t)
	w.makeBad(t)
	for _, c := range w.callers {
		w.credentials = append(w.credentials, c.credential)
	}
	for _, credential := range w.bad {
		w.credentials = append(w.credentials, credential)
	}
	return w
}

func (w *fixture) makeCallers(t testing.TB) {
	t.Helper()
	s := w.server
	var me made
	admin := s.login(t, adminName, adminPassword)
	s.api(t, http.MethodGet, "/v1.0/me", admin, "", &me)
	agent := s.make(t, "/v1.0/agents", `{"username":"ada@e2e.example","password":"adas-password","permission":16}`)
	key := s.make(t, "/v1.0/accesskeys", `{"name":"whole customer"}`)
	userKey := s.make(t, "/v1.0/accesskeys", fmt.Sprintf(`{"name":"Ada's","agent_id":%q}`, agent.ID))
	account := s.make(t, "/v1.0/service_accounts", `{"name":"export","roles":["accesskey_viewer"]}`)
	manager := s.make(t, "/v1.0/service_accounts", `{"name":"set-up","roles":["customer_admin"]}`)
	ada := s.login(t, "ada@e2e.example", "adas-password")
	signed, _ := s.signed(t, account.ID)
	signedAdmin, _ := s.signed(t, manager.ID)

	identity := func(kind, id, agentID, permission, expire string) map[string]string {
		return map[string]string{
			"X-Auth-Type": kind, "X-Auth-Id": id, "X-Customer-Id": me.CustomerID, "X-Agent-Id": agentID,
			"X-Auth-Permission": permission, "X-Auth-Expire": expire,
		}
	}
	w.admin = caller{"key of the whole customer", key.Token, "accesskey", identity("accesskey", key.ID, "", "32", key.TmExpire)}
	w.agent = caller{"agent", ada, "token", identity("agent", agent.ID, agent.ID, "16", expireOf(t, ada))}
	w.callers = []caller{
		w.admin, w.agent,
		{"admin", admin, "token", identity("agent", me.ID, me.ID, "32", expireOf(t, admin))},
		{"key of an agent", userKey.Token, "accesskey", identity("accesskey", userKey.ID, agent.ID, "16", userKey.TmExpire)},
		{"service account", signed, "token", identity("service_account", account.ID, "", "0", expireOf(t, signed))},
		{"service account that is an admin", signedAdmin, "token",
			identity("service_account", manager.ID, "", "32", expireOf(t, signedAdmin))},
	}
}

// expireOf is the exp of a JWT, as X-Auth-Expire has it.
func expireOf(t testing.TB, jwt string) string {
	t.Helper()
	var claims struct{ Exp int64 }
	decoded := servertest.Must(base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[1]))(t)
	servertest.OK(t, json.Unmarshal(decoded, &claims))
	return time.Unix(claims.Exp, 0).UTC().Format("2006-01-02T15:04:05.000000Z")
}

// makeBad makes credentials that are refused.
func (w *fixture) makeBad(t testing.TB) {
	t.Helper()
	deleted := w.server.make(t, "/v1.0/accesskeys", `{"name":"deleted"}`)
	w.server.deleteKey(t, deleted.ID)
	expired := w.server.make(t, "/v1.0/accesskeys", `{"name":"expired","expire":1}`)
	servertest.Eventually(t, "the key has expired", func() bool { return w.server.me(expired.Token) == http.StatusUnauthorized })
	w.bad["deleted"], w.bad["expired"] = deleted.Token, expired.Token
	w.bad["never made"] = "vb_NobodyHasEverMadeThisKeyNobody00"
	w.bad["another signature"] = w.agent.credential[:strings.LastIndexByte(w.agent.credential, '.')+1] + strings.Repeat("A", 43)
	w.bad["malformed"] = "vb_short-and-secret"
}

// site is a proxy with a backend and a folder behind it, as the examples have it: anybody whom the service knows may come to
// / and /files/, admins to /admin/.
type site struct {
	*fixture
	name    string
	addr    string
	url     string
	dir     string // the proxy's, below which is the one that it protects
	client  *http.Client
	backend *backend
	logs    []string // files that the proxy writes, the one about requests first
	tally
}

// tally counts requests.
type tally struct {
	requests int
	refused  int
	forged   int // with identity headers of their own
}

// row adds a line to the table.
func (y *tally) row(t testing.TB, what, with string) {
	t.Helper()
	counted(t, what, with, "%d requests, %d refused, %d with a forged identity: none arrived", y.requests, y.refused, y.forged)
}

// newSite is one whose proxy is still to be run.
func newSite(t testing.TB, w *fixture, name string) *site {
	t.Helper()
	s := &site{fixture: w, name: name, addr: freeAddr(t), dir: folder(t), client: client(t), backend: newBackend(t)}
	s.url = "http://" + s.addr
	servertest.OK(t, os.MkdirAll(s.path("srv/files"), 0o755))
	write(t, s.path("srv/files/hello.txt"), hello)
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// run runs the proxy, and waits until it listens.
func (s *site) run(t testing.TB, cmd *exec.Cmd) *site {
	t.Helper()
	p := servertest.Start(t, s.name, unprivileged(t, cmd, s.dir))
	s.logs = append(s.logs, p.Log)
	awaitListening(t, p, s.addr)
	return s
}

// without the service the proxy is asked.
func (s *site) without(ask func()) {
	s.server.Kill()
	defer s.server.begin()
	ask()
}

// hello is the content of the one file at /files/hello.txt.
const hello = "hello from the folder\n"

// call sends a request through the proxy.
func (s *site) call(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	a := call(t.Context(), s.client, method, s.url+path, body, headers...)
	if a.err != nil {
		t.Fatalf("%s %s: %v", method, path, a.err)
	}
	return s.count(a)
}

func (s *site) count(a answer) answer {
	s.requests++
	if a.status >= 400 {
		s.refused++
	}
	return a
}

// raw sends a request that Go's client would not send: a path, and further header lines, as they are. It returns what arrived at the
// backend, nothing where nothing did.
func (s *site) raw(t testing.TB, path string, c caller, lines ...string) (arrival, answer) {
	t.Helper()
	lines = append([]string{"Host: " + s.addr, "Connection: close", "Authorization: Bearer " + c.credential}, lines...)
	a, _, arrived := s.backend.during(func() answer {
		return s.count(rawCall(t, s.addr, "GET "+path+" HTTP/1.1\r\n"+strings.Join(lines, "\r\n")+"\r\n\r\n"))
	})
	return arrived, a
}

// rawCall sends the bytes of a request, which asks for the connection to be closed.
func rawCall(t testing.TB, addr, request string) answer {
	t.Helper()
	conn := servertest.Must(net.DialTimeout("tcp", addr, patience))(t)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	a, _ := exchange(conn, bufio.NewReader(conn), request)
	if a.status == 0 {
		t.Fatalf("%v, to %q", a.err, request)
	}
	return a
}

// passes demands that a request gets to the backend, and returns what arrived there.
func (s *site) passes(t testing.TB, method, path, body string, headers ...string) arrival {
	t.Helper()
	a, n, arrived := s.backend.during(func() answer { return s.call(t, method, path, body, headers...) })
	if a.status != http.StatusOK || n != 1 {
		t.Fatalf("%s %.200s: %d, and %d requests got to the backend: %s", method, path, a.status, n, a.body)
	}
	return arrived
}

// refuses demands that a request gets this status, and not to the backend.
func (s *site) refuses(t testing.TB, status int, method, path string, headers ...string) answer {
	t.Helper()
	a, n, _ := s.backend.during(func() answer { return s.call(t, method, path, "", headers...) })
	if a.status != status || n != 0 {
		t.Fatalf("%s %.200s with %.300q: %d, not %d; %d requests got to the backend: %s", method, path, headers, a.status, status, n, a.body)
	}
	challenged(t, a, method, path)
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || seconds < 1 {
			t.Fatalf("a %d with Retry-After: %q", status, a.header.Get("Retry-After"))
		}
	}
	return a
}

// challenged demands a challenge with a 401, and with nothing else.
func challenged(t testing.TB, a answer, method, path string) {
	t.Helper()
	challenge := a.header.Get("WWW-Authenticate")
	if (a.status == http.StatusUnauthorized) != strings.HasPrefix(challenge, `Bearer realm="voipbin"`) {
		t.Fatalf("%s %.200s: a %d with WWW-Authenticate: %q", method, path, a.status, challenge)
	}
}

func bearer(credential string) []string { return []string{"Authorization", "Bearer " + credential} }

// told demands that the backend was told who is calling and nothing else, by whatever spelling of a header's name: many a
// backend can't tell X_Agent_Id from X-Agent-Id.
func told(t testing.TB, arrived arrival, c caller) {
	t.Helper()
	for _, name := range identityHeaders {
		var values []string
		for spelling, given := range arrived.header {
			if strings.EqualFold(strings.ReplaceAll(spelling, "_", "-"), name) {
				values = append(values, given...)
			}
		}
		if want := c.identity[name]; len(values) > 1 || strings.Join(values, "") != want {
			t.Fatalf("the backend was told that %s is %q of the %s, not %q:\n%v", name, values, c.name, want, arrived.header)
		}
	}
	if given := arrived.header["Authorization"]; given != nil {
		t.Fatalf("the backend got the credential of the %s", c.name)
	}
}

// check is what every proxy has to do.
type check struct {
	name string
	run  func(*testing.T, *site)
}

var checks = []check{
	{"EveryCallerPassesOverEveryCarrier", everyCallerPasses},
	{"EveryMethodArrivesWithItsBody", everyMethodArrives},
	{"LongRequestsAreNoTrouble", longRequestsPass},
	{"WithoutOneGoodCredentialNobodyPasses", nobodyElsePasses},
	{"RevokedIsRefusedByTheNextRequest", revokedIsRefused},
	{"PermissionIsAskedForInEverySpellingOfThePath", permissionIsAsked},
	{"ClientsQueryChangesNoOption", queryChangesNothing},
	{"ForgedIdentityNeverReachesTheBackend", forgedNeverArrives},
	{"PreflightsPassAndNothingElseDoes", preflightsPass},
	{"DatabaseAwayIsA503", databaseAway},
	{"ServiceAwayIsA503", serviceAway},
	{"HangingServiceIsA503", serviceHangs},
	{"NoLogHoldsACredential", logsHoldNoCredential},
}

// proxies are those that the examples configure.
var proxies = map[string]func(*testing.T, *fixture, ...string) *site{"caddy": newCaddy, "nginx": newNginx}

func TestProxiesLetInOnlyWhomTheServiceKnows(t *testing.T) {
	for name, run := range proxies {
		t.Run(name, func(t *testing.T) {
			s := run(t, newFixture(t))
			for _, c := range checks {
				t.Run(c.name, func(t *testing.T) { c.run(t, s) })
			}
			s.row(t, "a proxy asks /auth/verify", version(t, name, map[string]string{"caddy": "version", "nginx": "-v"}[name]))
		})
	}
}

func TestProxiesTellClientsApartForTheRateLimit(t *testing.T) {
	for name, run := range proxies {
		t.Run(name, func(t *testing.T) { limitsPerClient(t, run(t, newFixture(t).limit(t))) })
	}
}

func everyCallerPasses(t *testing.T, s *site) {
	for _, c := range s.callers {
		told(t, s.passes(t, http.MethodGet, "/page", "", bearer(c.credential)...), c)
		told(t, s.passes(t, http.MethodGet, "/page", "", "authorization", "bearer "+c.credential), c)
		query := "/page?a=1&" + c.parameter + "=" + c.credential + "&b=%2F%20+"
		arrived := s.passes(t, http.MethodGet, query, "")
		told(t, arrived, c)
		if arrived.uri != query {
			t.Errorf("the backend was asked for %q", arrived.uri)
		}
		for _, headers := range [][]string{bearer(c.credential), nil} {
			path := "/files/hello.txt"
			if headers == nil {
				path += "?" + c.parameter + "=" + c.credential
			}
			if a := s.call(t, http.MethodGet, path, "", headers...); a.status != http.StatusOK || a.body != hello {
				t.Errorf("the %s got %d for the file: %s", c.name, a.status, a.body)
			} else if a.header.Get("Cache-Control") != "private, no-cache" || a.header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("a cache may keep the file, or a page tell its address: %v", a.header)
			}
		}
	}
}

func everyMethodArrives(t *testing.T, s *site) {
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
		for _, body := range []string{"", "some bytes", strings.Repeat("a megabyte, but for a bit ", 40_000)} {
			if method == "HEAD" && body != "" {
				continue
			}
			arrived := s.passes(t, method, "/page", body, bearer(s.agent.credential)...)
			told(t, arrived, s.agent)
			if arrived.method != method || arrived.body != body {
				t.Errorf("%s with %d bytes arrived as %s with %d", method, len(body), arrived.method, len(arrived.body))
			}
		}
		s.refuses(t, http.StatusUnauthorized, method, "/page")
		s.refuses(t, http.StatusForbidden, method, "/admin/page", bearer(s.agent.credential)...)
	}
}

func longRequestsPass(t *testing.T, s *site) {
	cookies := []string{}
	for i := range 4 {
		cookies = append(cookies, "Cookie", fmt.Sprintf("c%d=%s", i, strings.Repeat("x", 7_500)))
	}
	arrived := s.passes(t, http.MethodGet, "/page", "", append(cookies, bearer(s.admin.credential)...)...)
	told(t, arrived, s.admin)
	if size := len(strings.Join(arrived.header["Cookie"], "")); size < 30_000 {
		t.Errorf("%d bytes of cookies arrived", size)
	}
	path := "/page?long=" + strings.Repeat("y", 7_000) + "&accesskey=" + s.admin.credential
	told(t, s.passes(t, http.MethodGet, path, ""), s.admin)
	s.refuses(t, http.StatusUnauthorized, http.MethodGet, "/page", append(cookies, bearer(s.bad["deleted"])...)...)
}

func nobodyElsePasses(t *testing.T, s *site) {
	key, jwt := s.admin.credential, s.agent.credential
	var queries []string
	headers := [][]string{nil, bearer(""), {"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+key))},
		{"Authorization", key}, {"X-Api-Key", key}, {"Cookie", "token=" + jwt + "; accesskey=" + key}}
	for _, credential := range s.bad {
		headers = append(headers, bearer(credential))
		queries = append(queries, "accesskey="+credential, "token="+credential)
	}
	queries = append(queries, "token=", "accesskey=", "token="+key, "accesskey="+jwt, "accesskey="+key+"&accesskey="+key,
		"accesskey="+key+"&token="+jwt, "accesskey="+key+";", "accesskey="+key+"%00", "access%6bey="+key+"&accesskey="+key)
	for _, path := range []string{"/page", "/admin/page", "/files/hello.txt", "/files/no-such-file", "/"} {
		for _, h := range headers {
			s.refuses(t, http.StatusUnauthorized, http.MethodGet, path, h...)
		}
		for _, q := range queries {
			s.refuses(t, http.StatusUnauthorized, http.MethodGet, path+"?"+q)
		}
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, path+"?accesskey="+key, bearer(key)...)
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, path+"?token="+jwt, bearer(s.bad["deleted"])...)
	}
	// What names another URL to the service is not the client's to say.
	for _, header := range []string{"X-Original-URI", "X-Forwarded-Uri", "X-Original-Url", "X_Original_Uri", "X-Rewrite-Url"} {
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, "/page", header, "/page?accesskey="+key)
		other := append(bearer(key), header, "/page?accesskey="+s.bad["deleted"])
		told(t, s.passes(t, http.MethodGet, "/page", "", other...), s.admin)
	}
	nobody := caller{credential: s.bad["deleted"]}
	arrived, a := s.forge(t, nobody, []string{"Authorization: Bearer " + key})
	if arrived.method != "" || a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest { // nginx has it that way
		t.Errorf("a good credential behind a bad one: %d", a.status)
	}
}

func revokedIsRefused(t *testing.T, s *site) {
	for range 20 {
		id, token := s.server.newKey(t)
		s.credentials = append(s.credentials, token)
		for range 3 {
			s.passes(t, http.MethodGet, "/page", "", bearer(token)...)
		}
		s.server.deleteKey(t, id)
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, "/page", bearer(token)...)
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, "/files/hello.txt?accesskey="+token)
	}
}

func permissionIsAsked(t *testing.T, s *site) {
	for _, c := range s.callers {
		if c.identity["X-Auth-Permission"] == "32" {
			told(t, s.passes(t, http.MethodGet, "/admin/page", "", bearer(c.credential)...), c)
			continue
		}
		for _, path := range []string{"/admin", "/admin?a=b", "/admin/", "/admin/page", "//admin/page", "/%61dmin/page", "/admin%2Fpage",
			"/x/../admin/page", "/x/%2e%2e/admin/page", "/x/..%2fadmin/page", "/./admin/page", "/admin//page", "/admin/../admin/"} {
			arrived, a := s.raw(t, path, c)
			if a.status != http.StatusForbidden || arrived.method != "" {
				t.Errorf("%s by the %s: %d, and the backend was asked for %q", path, c.name, a.status, arrived.uri)
			}
		}
	}
}

func queryChangesNothing(t *testing.T, s *site) {
	for _, query := range []string{"permission=agent", "permission=admin", "permission=", "permission=agent&permission=admin",
		"strict=0", "strict=1", "strict=0&permission=admin", "permission=admin&strict=0", "strict=0&permission=agent", "nonsense=1"} {
		s.refuses(t, http.StatusForbidden, http.MethodGet, "/admin/page?"+query, bearer(s.agent.credential)...)
		s.refuses(t, http.StatusForbidden, http.MethodGet, "/admin/page?"+query+"&token="+s.agent.credential)
		told(t, s.passes(t, http.MethodGet, "/admin/page?"+query, "", bearer(s.admin.credential)...), s.admin)
		told(t, s.passes(t, http.MethodGet, "/page?"+query, "", bearer(s.agent.credential)...), s.agent)
	}
}

// forgeries are ways to say who one is oneself: each a list of header lines.
func forgeries() (all [][]string) {
	for _, name := range identityHeaders {
		forged := "forged-" + name
		underscores := strings.ReplaceAll(name, "-", "_")
		mixed := strings.Replace(name, "-", "_", 1)
		mixed2 := name[:strings.LastIndexByte(name, '-')] + "_" + name[strings.LastIndexByte(name, '-')+1:]
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name), underscores,
			strings.ToUpper(underscores), mixed, mixed2} {
			all = append(all, []string{spelling + ": " + forged})
		}
		all = append(all,
			[]string{name + ": "},
			[]string{name + ": ", name + ": " + forged},
			[]string{name + ": " + forged, name + ": " + forged},
			[]string{name + ": " + forged, strings.ToLower(name) + ": " + forged + "2", underscores + ": " + forged},
			[]string{"Connection: " + name}, // what Connection names goes no further (RFC 9110, section 7.6.1)
			[]string{"Connection: keep-alive", "Connection: upgrade , " + strings.ToUpper(name)},
			[]string{"Connection: close, " + strings.ToLower(name), name + ": " + forged},
		)
	}
	return all
}

func forgedNeverArrives(t *testing.T, s *site) {
	for _, c := range s.callers {
		for _, lines := range forgeries() {
			arrived, a := s.forge(t, c, lines)
			if a.status != http.StatusOK {
				t.Fatalf("%q by the %s: %d", lines, c.name, a.status)
			}
			told(t, arrived, c)
		}
	}
}

// forge sends a request with further header lines.
func (s *site) forge(t testing.TB, c caller, lines []string) (arrival, answer) {
	t.Helper()
	s.forged++
	return s.raw(t, "/page", c, lines...)
}

// preflight are a browser's headers when it asks whether a page may call (Fetch standard, section 4.8).
var preflight = []string{"Origin", "https://page.example", "Access-Control-Request-Method", "DELETE"}

func preflightsPass(t *testing.T, s *site) {
	nobody := caller{name: "preflight", identity: map[string]string{}}
	for _, path := range []string{"/page", "/admin/page", "/page?a=b"} {
		for _, more := range [][]string{nil, {"Access-Control-Request-Headers", "authorization"}, {"X-Auth-Type", "agent", "X-Agent-Id", "forged", "X-Auth-Permission", "32"}} {
			arrived := s.passes(t, "OPTIONS", path, "", slices.Concat(preflight, more)...)
			told(t, arrived, nobody)
			if arrived.header.Get("Access-Control-Request-Method") != "DELETE" || arrived.header.Get("Origin") == "" {
				t.Errorf("the backend can't answer: %v", arrived.header)
			}
		}
		for _, method := range []string{"GET", "POST", "DELETE", "HEAD", "PROPFIND"} {
			s.refuses(t, http.StatusUnauthorized, method, path, preflight...)
		}
		for _, headers := range [][]string{
			nil, preflight[:2], preflight[2:],
			append(slices.Clone(preflight), "X-HTTP-Method-Override", "DELETE"), append(slices.Clone(preflight), "X-HTTP-Method", "DELETE"),
			append(slices.Clone(preflight), "X-Method-Override", "DELETE"), append(slices.Clone(preflight), "x-http-method-override", "GET"),
		} {
			s.refuses(t, http.StatusUnauthorized, "OPTIONS", path, headers...)
		}
		// A caller's own OPTIONS is the caller's.
		told(t, s.passes(t, "OPTIONS", "/page", "", append(bearer(s.admin.credential), "Origin", "https://page.example")...), s.admin)
	}
}

func databaseAway(t *testing.T, s *site) {
	servertest.OK(t, s.postgres.Stop(t.Context()))
	for _, path := range []string{"/page", "/admin/page", "/files/hello.txt"} {
		servertest.Eventually(t, "nobody is let in from memory any more", func() bool {
			a := s.call(t, http.MethodGet, path, "", bearer(s.admin.credential)...)
			if a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
				t.Fatalf("without a database: %d", a.status)
			}
			return a.status == http.StatusServiceUnavailable
		})
		for _, credential := range []string{s.admin.credential, s.agent.credential, s.bad["deleted"], s.bad["never made"]} {
			s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, path, bearer(credential)...)
			s.refuses(t, http.StatusServiceUnavailable, http.MethodPost, path, bearer(credential)...)
		}
		s.refuses(t, http.StatusUnauthorized, http.MethodGet, path) // for that no database is needed
	}
	servertest.OK(t, s.postgres.Start(t.Context()))
	s.recovers(t)
}

func serviceAway(t *testing.T, s *site) {
	s.logs = append(s.logs, s.server.Log)
	s.without(func() {
		for _, path := range []string{"/page", "/admin/page?accesskey=" + s.admin.credential, "/files/hello.txt"} {
			s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, path)
			s.refuses(t, http.StatusServiceUnavailable, http.MethodPost, path, bearer(s.admin.credential)...)
		}
	})
	s.recovers(t)
}

func serviceHangs(t *testing.T, s *site) {
	process := s.server.Cmd.Process
	servertest.OK(t, process.Signal(syscall.SIGSTOP))
	defer func() { _ = process.Signal(syscall.SIGCONT) }()
	servertest.Eventually(t, "every thread of the server has stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", process.Pid))
		for _, thread := range threads {
			status, _ := os.ReadFile(thread)
			if !bytes.Contains(status, []byte("\nState:\tT")) {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
	s.refuses(t, http.StatusServiceUnavailable, http.MethodGet, "/page", bearer(s.admin.credential)...)
	servertest.OK(t, process.Signal(syscall.SIGCONT))
	s.recovers(t)
}

func (s *site) recovers(t testing.TB) {
	t.Helper()
	servertest.Eventually(t, "callers are let in again", func() bool {
		return s.call(t, http.MethodGet, "/page", "", bearer(s.admin.credential)...).status == http.StatusOK
	})
}

// logsHoldNoCredential comes after all the others, so that the logs have something to hold.
func logsHoldNoCredential(t *testing.T, s *site) {
	const last = "/page/the-last-request-of-these-tests"
	s.call(t, http.MethodGet, last, "")
	awaitLogged(t, s.logs[0], last) // and so what was asked for before
	for _, path := range append(s.logs, s.server.Log) {
		content := servertest.Must(os.ReadFile(path))(t)
		for _, credential := range s.credentials {
			end := credential[max(0, len(credential)-12):] // an access key's beginning is no secret
			if at := bytes.Index(content, []byte(end)); at >= 0 {
				t.Errorf("%s holds a credential: %.600s", filepath.Base(path), content[max(0, at-200):])
			}
		}
	}
}

// burst is how many requests an address has at a limited server.
const burst = 10

// limit makes the fixture's server one that limits its clients.
func (w *fixture) limit(t testing.TB) *fixture {
	t.Helper()
	w.server = newServer(t, w.postgres.URL("postgres"), trusted,
		"RATE_LIMIT_V1_RPS=0.001", fmt.Sprintf("RATE_LIMIT_V1_BURST=%d", burst))
	return w
}

// limitsPerClient shows that the addresses of clients are told apart, and not told by the clients.
func limitsPerClient(t *testing.T, s *site) {
	by := func(address string) func(...string) answer {
		client := from(t, address)
		return func(headers ...string) answer {
			s.client = client
			return s.call(t, http.MethodGet, "/page", "", append(bearer(s.admin.credential), headers...)...)
		}
	}
	first, second := by("127.0.0.2"), by("127.0.0.3")
	for i := range burst {
		if a := first("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i)); a.status != http.StatusOK {
			t.Fatalf("request %d: %d", i, a.status)
		}
	}
	for i := range 5 {
		a := first("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i))
		// A thousand seconds, as the service says.
		if seconds, _ := strconv.Atoi(a.header.Get("Retry-After")); a.status != http.StatusTooManyRequests || seconds < 900 {
			t.Fatalf("beyond the limit: %d with Retry-After: %q", a.status, a.header.Get("Retry-After"))
		}
	}
	if a := second(); a.status != http.StatusOK {
		t.Fatalf("another address: %d", a.status)
	}
}
