package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	document "accesskeys/api"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/store"
)

// Contract 5: "GET /ping: 200 {"message":"pong"}. /healthz (the process lives), /readyz (it can serve: database reachable
// and migrated)".
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

// Contract 5: /readyz: "migrated"; 3 and 7: a store in trouble is a 503 and never a 401.
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
	bare.serve()
	unavailable(t, bare.get("/readyz", ""))
	unavailable(t, bare.get("/v1.0/me", h.acme.token))
	unavailable(t, bare.login(h.acme.admin.Username))
	bare.get("/healthz", "").wants(200)
	bare.get("/ping", "").wants(200)
	h.get("/readyz", "").wants(200)
}

// unavailable fails the test unless this is a 503 that says when to come back.
func unavailable(t *testing.T, got response) {
	t.Helper()
	got.refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 5 {
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
}

// Contract 6: on SIGTERM "finish what is under way": readiness fails first, and every answer asks its client to leave
// the connection, while requests are still served.
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

// Contract 5: "/openapi.yaml and /openapi.json": the embedded document, and the same in JSON.
func TestDocumentIsServedInBothNotations(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	inYAML := h.get("/openapi.yaml", "").wants(200)
	inJSON := h.get("/openapi.json", "").wants(200)
	if !bytes.Equal(inYAML.raw, document.OpenAPI) || inYAML.header.Get("Content-Type") != "application/yaml" {
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

// Contract 5: "/metrics (Prometheus)". Its counters move by what was asked.
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

// Pitfalls and style: labels come from fixed sets, "maps keyed by client input without a bound" are refused. What
// clients make up, methods, paths, ids, usernames, hosts, adds no series however often.
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
