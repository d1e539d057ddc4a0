package api_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/store"
)

const sentinel = "9999-01-01T00:00:00.000000Z"

// keyShape is an access key's body, byte for byte but for the values, each in a group. createdBy is that field as it is to be.
func keyShape(withToken bool, createdBy string) *regexp.Regexp {
	const (
		uuidV4 = `([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})`
		tm     = `(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z)`
	)
	token := ""
	if withToken {
		token = `"token":"(vb_[0-9A-Za-z]{32})",`
	}
	return regexp.MustCompile(`^\{"id":"` + uuidV4 + `","customer_id":"` + uuidV4 + `","agent_id":null,"name":"([^"]*)","detail":"([^"]*)",` +
		token + `"token_prefix":"(vb_[0-9A-Za-z]{8})","tm_expire":"` + tm + `","tm_create":"` + tm + `","tm_update":"` + tm +
		`","tm_delete":"` + tm + `","tm_last_used":null,"created_by":` + regexp.QuoteMeta(createdBy) + `\}$`)
}

// Contract, section 1: Access key, keys in this order, every one present, "token ONLY in the answer to POST; absent everywhere else". The
// raw bytes count: a map would hide the order.
func TestAccessKeyHasTheContractsKeysInOrderAndItsTokenOnlyAtCreation(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	created := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":60}`).wants(200)
	admin := `{"type":"agent","id":"` + h.acme.admin.ID.String() + `"}`
	if !keyShape(true, admin).Match(created.raw) {
		t.Fatalf("created: %s", created.raw)
	}
	if keyShape(false, admin).Match(created.raw) {
		t.Fatal("the shape without a token matches one with a token: this test proves nothing")
	}
	path := "/v1.0/accesskeys/" + created.json()["id"].(string)
	for what, answer := range map[string]response{
		"fetched": h.get(path, h.acme.adminJWT).wants(200),
		"updated": h.put(path, h.acme.adminJWT, `{"name":"n","detail":"d"}`).wants(200),
		"deleted": h.delete(path, h.acme.adminJWT).wants(200),
	} {
		if !keyShape(false, admin).Match(answer.raw) {
			t.Errorf("%s: %s", what, answer.raw)
		}
	}
	listed := h.get("/v1.0/accesskeys", h.acme.adminJWT).wants(200)
	inner, isList := strings.CutPrefix(string(listed.raw), `{"result":[`)
	inner, isLast := strings.CutSuffix(inner, `],"next_page_token":null}`)
	if !isList || !isLast || !keyShape(false, "null").MatchString(inner) {
		t.Errorf("listed: %s", listed.raw)
	}
}

// Contract, section 1: At creation tm_update equals tm_create, and tm_expire is tm_create plus expire seconds to the microsecond,
// "9999-01-01T00:00:00.000000Z means has not happened", "token_prefix: first 11 characters of the token", name and detail "" where none was
// given.
func TestCreatedKeyIsWholeAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for expire, body := range map[time.Duration]string{
		365 * 24 * time.Hour:           `{}`,
		time.Second:                    `{"expire":1}`,
		86401 * time.Second:            `{"expire":86401}`,
		100 * 365 * 24 * time.Hour:     `{"expire":3153600000}`,
		(1<<31 + 1) * time.Second:      `{"expire":2147483649}`,
		365*24*time.Hour - time.Second: `{"expire":31535999,"name":null}`,
		365*24*time.Hour + 1*time.Hour: `{"expire":31539600,"detail":null}`,
		10 * 365 * 24 * time.Hour:      `{"expire":315360000,"name":"","detail":""}`,
	} {
		key := h.post("/v1.0/accesskeys", h.acme.adminJWT, body).wants(200).json()
		made := parseTime(t, key["tm_create"])
		if got := parseTime(t, key["tm_expire"]).Sub(made); got != expire {
			t.Errorf("%s: expires %s after its creation", body, got)
		}
		token := key["token"].(string)
		equalJSON(t, key, map[string]any{
			"id": key["id"], "customer_id": h.acme.customer.ID, "agent_id": nil, "name": "", "detail": "", "token": token,
			"token_prefix": token[:11], "tm_expire": key["tm_expire"], "tm_create": key["tm_create"],
			"tm_update": key["tm_create"], "tm_delete": sentinel, "tm_last_used": nil,
			"created_by": map[string]any{"type": "agent", "id": h.acme.admin.ID},
		})
	}
}

// Contract, section 1: Stored: its SHA-256 (32 raw bytes, unique) and the prefix, the sentinel "is stored as such in Postgres too
// (timestamptz, not null)".
func TestTokenIsStoredAsItsHashAndTheSentinelAsATime(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"name":"n"}`).wants(200).json()
	token := key["token"].(string)
	row := h.text(`SELECT to_jsonb(k) FROM accesskeys k WHERE id = $1`, key["id"])
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(token)))
	if !strings.Contains(row, `"\\x`+hash+`"`) || !strings.Contains(row, `"`+token[:11]+`"`) {
		t.Errorf("row %s, want the hash %s and the prefix %s in it", row, hash, token[:11])
	}
	if strings.Contains(row, token) {
		t.Error("the row holds the token")
	}
	if got := h.text(`SELECT octet_length(token_sha256) FROM accesskeys WHERE id = $1`, key["id"]); got != "32" {
		t.Errorf("the hash has %s bytes", got)
	}
	for _, table := range []string{"customers", "agents", "accesskeys"} {
		got := h.text(`SELECT data_type || ' ' || is_nullable FROM information_schema.columns
			WHERE table_name = $1 AND column_name = 'tm_delete'`, table)
		if got != "timestamp with time zone NO" {
			t.Errorf("%s.tm_delete is %s", table, got)
		}
	}
	if got := h.text(`SELECT tm_delete = '9999-01-01 00:00:00+00' FROM accesskeys WHERE id = $1`, key["id"]); got != "true" {
		t.Error("the sentinel is not what the row holds")
	}
	// Unique: the same token can't become a second key, for any customer.
	_, err := h.store.CreateAccessKey(t.Context(), store.Operator(), store.NewAccessKey{
		CustomerID: h.globex.customer.ID, TokenHash: sha256.Sum256([]byte(token)), TokenPrefix: token[:11], Expire: 60,
	})
	if err == nil {
		t.Error("a second key with the same token was stored")
	}
}

// Contract, section 1: Token: vb_ and 32 characters of [0-9A-Za-z], every one drawn uniformly. Here: each position of tokens seen on the
// wire takes many of the 62; a stuck or narrowed position would not.
func TestTokensVaryAtEveryPosition(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const tokens = 120
	var seen [32]map[byte]bool
	for i := range seen {
		seen[i] = map[byte]bool{}
	}
	for range tokens {
		token := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{}`).wants(200).json()["token"].(string)
		for i := range seen {
			seen[i][token[3+i]] = true
		}
	}
	for i, chars := range seen {
		// 120 uniform draws out of 62 show 53 on average; fewer than 36 come once in far more than 10^9 runs.
		if len(chars) < 36 {
			t.Errorf("position %d showed only %d different characters in %d tokens", i, len(chars), tokens)
		}
	}
}

// Contract, section 1: result is [], never null, where there is nothing, "On the last page next_page_token is null".
func TestEmptyListIsAnEmptyArray(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`DELETE FROM accesskeys WHERE customer_id = $1`, h.acme.customer.ID)
	got := h.get("/v1.0/accesskeys", h.acme.adminJWT).wants(200)
	if string(got.raw) != `{"result":[],"next_page_token":null}` {
		t.Errorf("body %s", got.raw)
	}
	// The other customer's key is still there: the list was empty because it is acme's.
	if other := h.get("/v1.0/accesskeys", h.globex.adminJWT).wants(200).json()["result"].([]any); len(other) != 1 {
		t.Errorf("globex has %d keys, want 1", len(other))
	}
}

// Contract, section 1: Error ... Content-Type: application/json, its keys in order, and the status for each HTTP status.
func TestErrorEnvelopeIsTheContracts(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const id = "the-clients-own_id-1"
	for _, c := range []struct {
		what       string
		req        request
		bearer     string
		code       int
		status     string
		reason     string
		detailsAre string
	}{
		{"field", request{method: "POST", path: "/v1.0/accesskeys", body: `{"expire":0}`}, h.acme.adminJWT, 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT",
			`,"details":[{"field":"expire","message":"must be a whole number from 1 to 3153600000"}]`},
		{"json", request{method: "POST", path: "/auth/login", body: `{`}, "", 400, "INVALID_ARGUMENT", "INVALID_JSON_BODY", ""},
		{"no credential", request{method: "GET", path: "/v1.0/me"}, "", 401, "UNAUTHENTICATED", "AUTHENTICATION_REQUIRED", ""},
		{"permission", request{method: "GET", path: "/v1.0/accesskeys"}, h.acme.plainJWT, 403, "PERMISSION_DENIED", "PERMISSION_DENIED", ""},
		{"key", request{method: "GET", path: "/v1.0/accesskeys/" + absentID}, h.acme.adminJWT, 404, "NOT_FOUND", "ACCESSKEY_NOT_FOUND", ""},
		{"route", request{method: "GET", path: "/nope"}, "", 404, "NOT_FOUND", "ROUTE_NOT_FOUND", ""},
		{"route inside", request{method: "GET", path: "/v1.0/nope"}, h.acme.adminJWT, 404, "NOT_FOUND", "ROUTE_NOT_FOUND", ""},
		{"method", request{method: "DELETE", path: "/ping"}, "", 405, "INVALID_ARGUMENT", "METHOD_NOT_ALLOWED", ""},
		{"too large", request{method: "POST", path: "/v1.0/accesskeys", body: strings.Repeat(" ", 64<<10+1)}, h.acme.adminJWT, 413,
			"INVALID_ARGUMENT", "BODY_TOO_LARGE", ""},
	} {
		c.req.header = bearing(c.bearer)
		c.req.header.Set("X-Request-Id", id)
		got := h.send(c.req).refuses(c.code, c.reason)
		want := regexp.MustCompile(`^\{"error":\{"status":"` + c.status + `","reason":"` + c.reason +
			`","message":"[A-Z][^"]+\.","request_id":"` + id + `"` + regexp.QuoteMeta(c.detailsAre) + `\}\}$`)
		if !want.Match(got.raw) {
			t.Errorf("%s: body %s", c.what, got.raw)
		}
	}
	h.store.Close()
	away := h.get("/v1.0/me", h.acme.token).refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	if e := away.json()["error"].(map[string]any); e["status"] != "UNAVAILABLE" {
		t.Errorf("body %s", away.raw)
	}
}

// absentID is a UUID that no key has.
const absentID = "00000000-0000-4000-8000-000000000000"
