package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// login logs in with the password of every tenant's agents.
func (h *harness) login(username string) response {
	h.t.Helper()
	return h.loginWith(username, tenantPassword)
}

func (h *harness) loginWith(username, password string) response {
	h.t.Helper()
	return h.post("/auth/login", "", map[string]string{"username": username, "password": password})
}

// Contract, section 2: 200 {username, token}, "the JWT's header is exactly {"alg":"HS256","typ":"JWT"}; exp is iat + 604800; claims also
// hold iss, sub, jti, type, customer_id and agent: {id, customer_id, username, name, permission}. No cookie is set."
func TestLoginGivesTheContractsToken(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	began := h.now()
	got := h.login(h.acme.admin.Username).wants(200)
	shape := regexp.MustCompile(`^\{"username":"admin@acme\.example","token":"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+"\}$`)
	parts := shape.FindSubmatch(got.raw)
	if parts == nil {
		t.Fatalf("body %s", got.raw)
	}
	if len(got.header.Values("Set-Cookie")) > 0 {
		t.Errorf("it sets a cookie: %q", got.header.Values("Set-Cookie"))
	}
	header, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil || string(header) != `{"alg":"HS256","typ":"JWT"}` {
		t.Errorf("header %q (%v)", header, err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(string(parts[2]))
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatalf("claims %s: %v", payload, err)
	}
	iat, _ := claims["iat"].(float64)
	if jti, _ := claims["jti"].(string); uuid.Validate(jti) != nil || int64(iat) < began || int64(iat) > began+60 {
		t.Errorf("claims %s of a login at %d", payload, began)
	}
	a := h.acme.admin
	equalJSON(t, claims, map[string]any{
		"iss": "accesskeys", "sub": a.ID, "jti": claims["jti"], "iat": iat, "exp": iat + 604800, "password_time": a.TmPassword.UnixMicro(),
		"type": "agent", "customer_id": a.CustomerID,
		"agent": map[string]any{"id": a.ID, "customer_id": a.CustomerID, "username": a.Username, "name": a.Name, "permission": a.Permission},
	})
	h.accepts(got.json()["token"].(string))
	if again := h.login(a.Username).wants(200).json()["token"]; again == got.json()["token"] {
		t.Error("two logins gave the same token")
	}
}

// Contract, section 2: Unknown user, wrong password and deleted user get one answer: everything but what differs from request to request is
// compared. Section 7: "401 with the error body".
func TestRefusedLoginsAllLookTheSame(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if _, err := h.store.DeleteAgent(t.Context(), store.Operator(), h.acme.plain); err != nil {
		t.Fatal(err)
	}
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, h.globex.customer.ID)
	want := `{"error":{"status":"UNAUTHENTICATED","reason":"INVALID_CREDENTIALS",` +
		`"message":"The credential is not valid.","request_id":"same"}}`
	var headers http.Header
	for what, body := range map[string]map[string]string{
		"unknown user":        {"username": "nobody@acme.example", "password": tenantPassword},
		"wrong password":      {"username": h.acme.admin.Username, "password": "wrong"},
		"long password":       {"username": h.acme.admin.Username, "password": strings.Repeat("p", 10_000)},
		"other case":          {"username": h.acme.admin.Username, "password": strings.ToUpper(tenantPassword)},
		"password and more":   {"username": h.acme.admin.Username, "password": tenantPassword + " "},
		"deleted user":        {"username": h.acme.plain.Username, "password": tenantPassword},
		"of deleted customer": {"username": h.globex.admin.Username, "password": tenantPassword},
	} {
		got := h.send(request{method: "POST", path: "/auth/login", body: body, header: http.Header{"X-Request-Id": {"same"}}})
		if got.code != 401 || string(got.raw) != want {
			t.Errorf("%s: %d %s", what, got.code, got.raw)
		}
		got.header.Del("Date")
		if headers == nil {
			headers = got.header
		}
		equalJSON(t, got.header, headers)
	}
	h.login(h.acme.admin.Username).wants(200)
}

// Contract, section 2: Body not JSON: 400 INVALID_JSON_BODY. A field missing, empty, or not a string: 400 INVALID_ARGUMENT with details; 4:
// "In every body a field that is null counts as absent".
func TestLoginTellsWhatIsWrongWithItsBody(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, body := range []string{
		"", " ", "{", "[]", `"x"`, "null", "1", "username=a&password=b", `{"username":"a","password":"b"} x`,
		`{"username":"a","username":"a","password":"b"}`, "{\"username\":\"\xff\",\"password\":\"b\"}",
	} {
		got := h.post("/auth/login", "", body).refuses(400, "INVALID_JSON_BODY")
		if _, has := got.failure()["details"]; has {
			t.Errorf("%q: %s", body, got.raw)
		}
	}
	for body, fields := range map[string][]string{
		`{}`:                                    {"username", "password"},
		`{"username":"a"}`:                      {"password"},
		`{"password":"b"}`:                      {"username"},
		`{"username":null,"password":"b"}`:      {"username"},
		`{"username":"a","password":null}`:      {"password"},
		`{"username":"","password":"b"}`:        {"username"},
		`{"username":"a","password":""}`:        {"password"},
		`{"username":1,"password":"b"}`:         {"username"},
		`{"username":"a","password":["b"]}`:     {"password"},
		`{"username":true,"password":{}}`:       {"username", "password"},
		`{"Username":"a","Password":"b"}`:       {"username", "password"},
		`{"username":"a\u0000","password":"b"}`: {"username"},
		`{"username":"a","password":"b\u0000"}`: {"password"},
		`{"username":"` + strings.Repeat("u", 256) + `","password":"password"}`: {"username"},
	} {
		refusedFields(t, h.post("/auth/login", "", body), fields...)
	}
	h.post("/auth/login", "", strings.Repeat(" ", 64<<10+1)).refuses(413, "BODY_TOO_LARGE")
	for _, body := range []string{`{"username":"a","password":"b"}`, ` {"password":"b","more":1,"username":"a"} `} {
		h.post("/auth/login", "", body).refuses(401, "INVALID_CREDENTIALS")
	}
}

// refusedFields fails the test unless this is the 400 whose details name exactly these fields, each with a message.
func refusedFields(t *testing.T, got response, fields ...string) {
	t.Helper()
	refusedDetails(t, got, "INVALID_ARGUMENT", fields...)
}

func refusedDetails(t *testing.T, got response, reason string, fields ...string) {
	t.Helper()
	details, _ := got.refuses(400, reason).failure()["details"].([]any)
	var named []string
	for _, d := range details {
		entry := d.(map[string]any)
		if message, _ := entry["message"].(string); message == "" || len(entry) != 2 {
			t.Errorf("detail %v", entry)
		}
		named = append(named, entry["field"].(string))
	}
	equalJSON(t, named, fields)
}
