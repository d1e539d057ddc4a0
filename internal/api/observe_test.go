package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"accesskeys/internal/auth"
)

var freshRequestID = regexp.MustCompile(`^req_[A-Z2-7]{26}$`)

// Contract, section 1: Every answer carries X-Request-Id: the client's own where it is 1-64 characters of [A-Za-z0-9_-], else a fresh req_ +
// 26 base32 characters; the same id is in the log line and in the error body. What looks like an access key is never taken: "The token
// itself is never ... logged".
func TestRequestIDIsTheClientsOwnWhereItIsFit(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := auth.NewAccessToken().Reveal()
	seen := map[string]bool{}
	for _, c := range []struct {
		sent string
		kept bool
	}{
		{"a", true},
		{"-", true},
		{"req_ABC-xyz_019", true},
		{strings.Repeat("x", 64), true},
		{strings.Repeat("x", 65), false},
		{"", false},
		{"a b", false},
		{"a.b", false},
		{"a/b", false},
		{`a"b`, false},
		{"größe", false},
		{"a\tb", false},
		{token, false},
		{"trace-" + token, false},
		{token + "-x", false},
		{token[:11], true}, // the prefix is no secret
	} {
		header := http.Header{"X-Request-Id": {c.sent}}
		ok := h.send(request{method: "GET", path: "/ping", header: header}).wants(200)
		failed := h.send(request{method: "GET", path: "/v1.0/me", header: header}).refuses(401, "AUTHENTICATION_REQUIRED")
		for _, answer := range []response{ok, failed} {
			id := answer.header.Get("X-Request-Id")
			if c.kept && id != c.sent {
				t.Errorf("sent %q, got %q", c.sent, id)
			}
			if !c.kept && (!freshRequestID.MatchString(id) || seen[id]) {
				t.Errorf("sent %q, got %q, want a fresh one", c.sent, id)
			}
			seen[id] = true
		}
		// refuses has found the header's id in the body already.
		if line := h.logLine(failed.header.Get("X-Request-Id")); line["reason"] == nil && line["path"] != "/ping" {
			t.Errorf("log line %v", line)
		}
	}
	if strings.Contains(h.log.String(), token) {
		t.Error("the log holds an access key that came as a request id")
	}
	absent := h.get("/nope", "").refuses(404, "ROUTE_NOT_FOUND").header.Get("X-Request-Id")
	if !freshRequestID.MatchString(absent) {
		t.Errorf("without one: %q", absent)
	}
}

// Contract, section 1: Error, on every 4xx and 5xx of every route, unknown routes and panics included.
func TestPanicIsAnErrorBodyThatTellsNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	server := httptest.NewServer(h.server.Observed(func(http.ResponseWriter, *http.Request) error {
		panic("the inner secret")
	}))
	t.Cleanup(server.Close)
	inner := *h
	inner.url = server.URL
	got := inner.get("/anything", "").refuses(http.StatusInternalServerError, "INTERNAL")
	id := got.header.Get("X-Request-Id")
	want := `{"error":{"status":"INTERNAL","reason":"INTERNAL","message":"Internal error.","request_id":"` + id + `"}}`
	if string(got.raw) != want {
		t.Errorf("body %s, want %s", got.raw, want)
	}
	line := h.logLine(id)
	cause, _ := line["error"].(string)
	if line["level"] != "ERROR" || line["status"] != 500.0 || !strings.Contains(cause, "the inner secret") {
		t.Errorf("log line %v", line)
	}
}

// Contract, section 1: panics included; one that comes after the answer has begun must not pass for a whole answer.
func TestPanicInTheMiddleOfAnAnswerBreaksIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for what, breaks := range map[string]bool{"whole": false, "half": true} {
		server := httptest.NewServer(h.server.Observed(func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, strings.Repeat("x", 10_000)) // more than net/http buffers
			if breaks {
				panic("in the middle")
			}
			return nil
		}))
		t.Cleanup(server.Close)
		res, err := http.Get(server.URL)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
		}
		if (err != nil) != breaks {
			t.Errorf("%s: reading the answer gave %v", what, err)
		}
	}
}
