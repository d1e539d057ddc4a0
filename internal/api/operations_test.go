package api_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	document "accesskeys/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/store"
)

// Contract, section 5: GET /ping: 200 {"message:"pong"}. /healthz (the process lives), /readyz (it can serve: database reachable and
// migrated)".
func TestProbesTellWhetherTheServerLivesAndCanServe(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.get("/ping", "").same(`{"message":"pong"}`)
	h.get("/healthz", "").same(`{"message":"ok"}`)
	h.get("/readyz", "").same(`{"message":"ready"}`)
	for _, path := range []string{"/ping", "/healthz", "/readyz", "/metrics", "/openapi.json"} {
		h.get(path, "vb_nope").wants(200) // no credential is asked for, and none is looked at
	}
}

// Contract, section 5: /readyz: "migrated"; 3 and 7: a store in trouble is a 503 and never a 401.
func TestServerIsNotReadyBeforeItsDatabaseIsMigrated(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	bare := *h
	bare.database = pgtest.Empty(t)
	var err error
	if bare.store, err = store.Open(t.Context(), bare.database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bare.store.Close)
	bare.rows = nil
	bare.serve()
	unavailable(t, bare.get("/readyz", ""))
	unavailable(t, bare.get("/v1.0/me", h.acme.token))
	unavailable(t, bare.login(h.acme.admin.Username))
	bare.get("/healthz", "").wants(200)
	bare.get("/ping", "").wants(200)
	h.get("/readyz", "").wants(200)
}

// What people can have changed in the database so that changes may be noticed late is not ready, and /readyz, the metric and the log say
// what it is: each trigger by its name. When it is put right, the server is ready again. Credentials are checked all the while.
func TestServerIsNotReadyWhileTriggersAreDisabled(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	servers := map[string]*harness{"with a cache": h, "without": h.uncached()}
	until := func(code int, trouble float64, message string) {
		t.Helper()
		for name, server := range servers {
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // it is looked at once a second
				got := server.get("/readyz", "")
				figures := server.figures()
				if got.code == code && figures["accesskeys_database_trouble"] == trouble {
					if code != 200 {
						unavailable(t, got)
						if said := got.json()["error"].(map[string]any)["message"]; said != message {
							t.Errorf("%s: /readyz says %q, want %q", name, said, message)
						}
					}
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: /readyz says %d %s, the metric %v", name, got.code, got.raw, figures["accesskeys_database_trouble"])
				}
			}
			server.get("/v1.0/me", h.acme.token).wants(200)
		}
	}
	until(200, 0, "")
	const late = "Triggers of the database are missing or disabled, so that changes by hand may be noticed late: "
	for _, c := range []struct{ wrong, right, named string }{
		{`ALTER TABLE accesskeys DISABLE TRIGGER changed`, `ALTER TABLE accesskeys ENABLE TRIGGER changed`, "changed on accesskeys"},
		{
			`ALTER TABLE agents DISABLE TRIGGER USER`,
			`ALTER TABLE agents ENABLE TRIGGER USER, ENABLE REPLICA TRIGGER applied, ENABLE ALWAYS TRIGGER emptied`,
			"applied on agents, changed on agents, emptied on agents, removed on agents",
		},
		{`ALTER TABLE customers ENABLE REPLICA TRIGGER removed`, `ALTER TABLE customers ENABLE ALWAYS TRIGGER removed`, "removed on customers"},
		{`ALTER TABLE instances ENABLE TRIGGER guarded`, `ALTER TABLE instances ENABLE ALWAYS TRIGGER guarded`, "guarded on instances"},
	} {
		h.exec(c.wrong)
		until(503, 1, late+c.named+".")
		h.exec(c.right)
		until(200, 0, "")
	}
}

// A server that reads from a database which takes no writes, a standby for one, can't know what was revoked: without a lease, too, each
// check is a 503, for good credentials and others, and so is /readyz. The control is the same server before.
func TestServerOnAReadOnlyDatabaseChecksNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	program := h.newProgram(h.acme.customer.ID, auth.RoleCustomerAdmin).token
	unknown := auth.NewAccessToken().Reveal()
	credentials := map[string]int{h.acme.token: 200, h.acme.adminJWT: 200, program: 200, unknown: 401}
	before := h.uncached()
	for credential, code := range credentials {
		before.get("/v1.0/me", credential).wants(code)
	}
	before.get("/readyz", "").wants(200)
	h.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
	for name, server := range map[string]*harness{"without a lease": h.uncached(), "with one": h.onDatabase(h.database, nil)} {
		for credential := range credentials {
			unavailable(t, server.get("/v1.0/me", credential))
			server.get("/auth/verify?strict=0", credential).stops(503, "SERVICE_UNAVAILABLE")
			server.get("/auth/verify", credential).stops(403, "SERVICE_UNAVAILABLE")
		}
		if got := server.get("/readyz", ""); got.code != http.StatusServiceUnavailable {
			t.Errorf("%s: /readyz says %d %s", name, got.code, got.raw)
		}
		server.get("/healthz", "").wants(200)
	}
}

// The metrics tell of what goes around the log, and of what the database lost.
func TestMetricsTellWhatIsWrongWithTheDatabase(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	names := []string{"database_trouble", "unlogged_changes_total", "aged_rows_total", "lost_commits_total"}
	for _, server := range []*harness{h, h.uncached()} {
		figures := server.figures()
		for _, name := range names {
			if got, there := figures["accesskeys_"+name]; got != 0 || !there {
				t.Errorf("accesskeys_%s is %v, %t, where nothing is wrong", name, got, there)
			}
		}
	}
	// A key is deleted around the log, and remembered: until it is read again, within its age.
	quick := h.onDatabase(h.database, func(other *harness) { other.rows = newAgingCache(t, other.store, 2*time.Second, time.Second) })
	quick.waitReady()
	quick.get("/v1.0/me", h.acme.token).wants(200)
	h.exec(`ALTER TABLE accesskeys DISABLE TRIGGER USER`)
	h.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, h.acme.key.ID)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		// One that could not be read again in time, on a busy machine, is forgotten without being compared.
		figures := quick.figures()
		if figures["accesskeys_unlogged_changes_total"]+figures["accesskeys_aged_rows_total"] > 0 && quick.get("/v1.0/me", h.acme.token).code == 401 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what went around the log is not noticed: %v", figures)
		}
	}
}

// unavailable fails the test unless this is a 503 that says when to come back.
func unavailable(t *testing.T, got response) {
	t.Helper()
	got.refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 5 {
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
}

// Contract, section 6: on SIGTERM "finish what is under way": readiness fails first, and every answer asks its client to leave the
// connection, while requests are still served.
func TestDrainingServerSendsItsClientsElsewhere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	paths := map[string]int{"/ping": 200, "/healthz": 200, "/v1.0/me": 401, "/nope": 404}
	for path := range paths {
		if h.get(path, "").closes {
			t.Errorf("before: %s closes the connection", path)
		}
	}
	h.server.Drain()
	unavailable(t, h.get("/readyz", ""))
	for path, code := range paths {
		if got := h.get(path, ""); got.code != code || !got.closes {
			t.Errorf("%s gave %d, closes the connection: %v", path, got.code, got.closes)
		}
	}
	h.get("/v1.0/me", h.acme.token).wants(200)
	h.post("/v1.0/accesskeys", h.acme.token, `{}`).wants(200)
}

// Contract, section 5: /openapi.yaml and /openapi.json: the embedded document, and the same in JSON.
func TestDocumentIsServedInBothNotations(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	inYAML := h.get("/openapi.yaml", "").wants(200)
	inJSON := h.get("/openapi.json", "").wants(200)
	if !bytes.Equal(inYAML.raw, bytes.TrimSuffix(document.OpenAPI, []byte("\n"))) || inYAML.header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%d bytes of %s, the document has %d", len(inYAML.raw), inYAML.header.Get("Content-Type"), len(document.OpenAPI))
	}
	var want map[string]any
	if err := yaml.Unmarshal(document.OpenAPI, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) < 4 || !reflect.DeepEqual(inJSON.json(), want) || inJSON.header.Get("Content-Type") != "application/json" {
		t.Errorf("the JSON (%s) is not the YAML", inJSON.header.Get("Content-Type"))
	}
}

// series are the lines of /metrics by name and labels.
func (h *harness) series() map[string]float64 {
	h.t.Helper()
	got := h.get("/metrics", "").wants(200)
	found := map[string]float64{}
	for line := range strings.Lines(string(got.raw)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && !strings.HasPrefix(line, "#") {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				h.t.Fatalf("line %q", line)
			}
			found[name+"}"] = n
		}
	}
	return found
}

// Contract, section 5: /metrics (Prometheus). Its counters move by what was asked.
func TestMetricsCountWhatHappened(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	before := h.series()
	h.get("/ping", "").wants(200)
	h.get("/ping", "").wants(200)
	h.get("/v1.0/accesskeys/"+h.acme.key.ID.String(), h.acme.token).wants(200)
	h.get("/v1.0/accesskeys/"+absentID, h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
	h.get("/v1.0/me", "").refuses(401, "AUTHENTICATION_REQUIRED")
	h.get("/v1.0/me", "vb_"+strings.Repeat("0", 32)).refuses(401, "INVALID_CREDENTIALS")
	h.login(h.acme.admin.Username).wants(200)
	h.login("nobody").refuses(401, "INVALID_CREDENTIALS")
	want := map[string]float64{
		`accesskeys_http_requests_total{method="GET",route="/ping",status="200"}`:                 2,
		`accesskeys_http_requests_total{method="GET",route="/v1.0/accesskeys/{id}",status="200"}`: 1,
		`accesskeys_http_requests_total{method="GET",route="/v1.0/accesskeys/{id}",status="404"}`: 1,
		`accesskeys_http_requests_total{method="POST",route="/auth/login",status="200"}`:          1,
		`accesskeys_http_requests_total{method="POST",route="/auth/login",status="401"}`:          1,
		`accesskeys_http_request_duration_seconds_count{method="GET",route="/ping"}`:              2,
		`accesskeys_credential_checks_total{kind="accesskey",result="accepted"}`:                  1,
		`accesskeys_credential_checks_total{kind="accesskey",result="refused"}`:                   1,
		`accesskeys_credential_checks_total{kind="jwt",result="accepted"}`:                        1,
		`accesskeys_credential_checks_total{kind="none",result="absent"}`:                         1,
		`accesskeys_login_refusals_total{reason="INVALID_CREDENTIALS"}`:                           1,
	}
	// A request is counted after its answer, so the last of them may take a moment.
	var after map[string]float64
	moved := func() (wrong string) {
		after = h.series()
		for name, by := range want {
			if after[name]-before[name] != by {
				wrong += fmt.Sprintf("%s moved by %v, want %v\n", name, after[name]-before[name], by)
			}
		}
		return wrong
	}
	wrong := moved()
	for deadline := time.Now().Add(5 * time.Second); wrong != "" && time.Now().Before(deadline); wrong = moved() {
	}
	if wrong != "" {
		t.Error(wrong)
	}
	text := string(h.get("/metrics", "").raw)
	for _, gauge := range []string{"accesskeys_db_pool_connections ", "accesskeys_db_pool_max_connections ", "go_goroutines ", "process_open_fds "} {
		if !strings.Contains(text, "\n"+gauge) {
			t.Errorf("there is no %s", gauge)
		}
	}
}

// Labels come from fixed sets, "maps keyed by client input without a bound" are refused. What clients make up, methods, paths, ids,
// usernames, hosts, adds no series however often.
func TestWhatClientsMakeUpAddsNoMetric(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	flood := func(mark string) {
		for i := range 5 {
			made := fmt.Sprintf("%s%d", mark, i)
			for _, bearer := range []string{"", h.acme.token, made} {
				for _, path := range []string{"/" + made, "/v1.0/" + made, "/v1.0/accesskeys/" + made, "/auth/" + made, "/ping/" + made, "/ping?" + made} {
					for _, method := range []string{"GET", "HEAD", strings.ToUpper(made)} {
						h.send(request{method: method, path: path, header: bearing(bearer)})
					}
				}
			}
			h.post("/auth/login", "", map[string]string{"username": made, "password": made})
		}
	}
	count := func() int {
		// Two of the same in a row: everything before is counted by then.
		for last := -1; ; {
			now := len(h.series())
			if now == last {
				return now
			}
			last = now
		}
	}
	flood("aaa")
	before := count()
	flood("bbb")
	if after := count(); after != before {
		t.Errorf("there were %d series, and are %d", before, after)
	}
	text := strings.ToLower(string(h.get("/metrics", "").raw))
	if strings.Contains(text, "bbb") || !strings.Contains(text, `method="other",route="unmatched"`) {
		t.Error("made-up names are labels, or unknown ones are not gathered under one")
	}
}

// Each metric of the service is explained to operators, and no other is.
func TestEveryMetricIsExplained(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.get("/v1.0/me", h.acme.token).wants(http.StatusOK)
	h.post("/auth/login", "", map[string]any{"username": "nobody", "password": "x"}).wants(http.StatusUnauthorized)
	shown := map[string]bool{}
	for line := range strings.Lines(string(h.get("/metrics", "").wants(http.StatusOK).raw)) {
		if name, is := strings.CutPrefix(line, "# TYPE accesskeys_"); is {
			shown["accesskeys_"+strings.Fields(name)[0]] = true
		}
	}
	document, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(document), "| metric | what it is for |")
	if !found {
		t.Fatal("there is no table")
	}
	explained := map[string]bool{}
	for _, name := range regexp.MustCompile("`(accesskeys_[a-z0-9_]+)`").FindAllStringSubmatch(table, -1) {
		explained[name[1]] = true
	}
	if !maps.Equal(shown, explained) || len(shown) < 20 {
		t.Errorf("shown are\n%v, explained\n%v", slices.Sorted(maps.Keys(shown)), slices.Sorted(maps.Keys(explained)))
	}
}
