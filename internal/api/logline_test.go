package api_test

import (
	"net/http"
	"testing"
)

// The log has one line for each request, which says what was asked for and by whom: an operator finds a request by its path.
func TestLogLineSaysExactlyWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := h.acme.key.ID.String()
	for _, c := range []struct {
		method, path, bearer string
		route, shown         string
		status               int
		reason, cause        string
	}{
		{"GET", "/v1.0/accesskeys/" + key, h.acme.token, "/v1.0/accesskeys/{id}", "/v1.0/accesskeys/" + key, 200, "", ""},
		{"GET", "/v1.0/accesskeys?page_size=5", h.acme.token, "/v1.0/accesskeys", "/v1.0/accesskeys?page_size=5", 200, "", ""},
		{"GET", "/v1.0/me?accesskey=" + h.acme.token, "", "/v1.0/me", "/v1.0/me?accesskey=REDACTED", 200, "", ""},
		{"PATCH", "/v1.0/accesskeys/" + key, h.acme.token, "/v1.0/*", "/v1.0/accesskeys/" + key, 405, "METHOD_NOT_ALLOWED", ""},
		{"GET", "/v1.0/a%20b/c", h.acme.token, "/v1.0/*", "/v1.0/a%20b/c", 404, "ROUTE_NOT_FOUND", ""},
		{"GET", "/v1.0/me", "nonsense", "/v1.0/*", "/v1.0/me", 401, "INVALID_CREDENTIALS", "malformed"},
		{"GET", "/nowhere", "", "unmatched", "/nowhere", 404, "ROUTE_NOT_FOUND", ""},
	} {
		req := request{method: c.method, path: c.path}
		if c.bearer != "" {
			req.header = bearing(c.bearer)
		}
		id := h.send(req).wants(c.status).header.Get("X-Request-Id")
		line := h.logLine(id)
		took, _ := line["duration_ms"].(float64)
		if took <= 0 || line["time"] == nil {
			t.Errorf("%s %s: %v", c.method, c.path, line)
		}
		delete(line, "duration_ms")
		delete(line, "time")
		want := map[string]any{"level": "INFO", "msg": "request", "method": c.method, "route": c.route, "path": c.shown, "status": c.status,
			"request_id": id, "client_ip": "127.0.0.1"}
		if c.reason != "" {
			want["reason"] = c.reason
		}
		if c.cause != "" {
			want["cause"] = c.cause
		}
		if c.status != http.StatusUnauthorized && c.path != "/nowhere" {
			want["principal_type"], want["principal_id"], want["customer_id"] = "accesskey", key, h.acme.customer.ID.String()
		}
		equalJSON(t, line, want)
	}
}
