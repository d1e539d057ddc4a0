package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/store"
)

// Contract, section 4: keys are made for, and listed to, the caller's own customer, a super admin's too. Those that an agent or a
// customer-wide key makes are its admins.
func TestKeysAreMadeForAndListedToTheCallersCustomer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range []struct {
		bearer   string
		customer store.Customer
	}{
		{h.acme.adminJWT, h.acme.customer},
		{h.acme.token, h.acme.customer},
		{h.acme.superJWT, h.acme.customer},
		{h.globex.superJWT, h.globex.customer},
		{h.globex.token, h.globex.customer},
	} {
		// Whatever the body says about it.
		made := h.post("/v1.0/accesskeys", c.bearer, map[string]any{"customer_id": h.acme.customer.ID}).wants(200).json()
		listed := h.get("/v1.0/accesskeys", made["token"].(string)).items()
		for _, key := range append(listed, made, h.get("/v1.0/me", made["token"].(string)).wants(200).json()) {
			if key["customer_id"] != c.customer.ID.String() {
				t.Errorf("%s is shown %v", c.customer.Name, key)
			}
		}
		if listed[0]["id"] != made["id"] {
			t.Errorf("the newest of %s is %v, want the one just made", c.customer.Name, listed[0])
		}
		if me := h.get("/v1.0/me", made["token"].(string)).json(); me["permission"] != 32.0 {
			t.Errorf("the new key is %v", me)
		}
	}
}

// Contract, section 4: Order of checks: credential, id, body, permission level, existence, tenancy. Every request here is wrong in two ways,
// and the answer tells which was looked at first.
func TestChecksComeInTheContractsOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	gone, _ := h.newKey(h.globex.customer, 3600)
	h.delete("/v1.0/accesskeys/"+gone.ID.String(), h.globex.adminJWT).wants(200)
	const keys = "/v1.0/accesskeys/"
	var (
		foreign  = keys + h.globex.key.ID.String()
		deleted  = keys + gone.ID.String()
		absent   = keys + absentID
		noID     = keys + "no-id"
		noJSON   = `[`
		badField = `{"name":1}`
		tooLarge = `{"name":"` + strings.Repeat("x", 64<<10) + `"}`
	)
	for _, c := range []struct {
		what, method, path, bearer, body string
		code                             int
		reason                           string
	}{
		{"credential, id", "GET", noID, "", "", 401, "AUTHENTICATION_REQUIRED"},
		{"credential, body", "POST", "/v1.0/accesskeys", "", noJSON, 401, "AUTHENTICATION_REQUIRED"},
		{"id, body", "PUT", noID, h.acme.adminJWT, noJSON, 400, "INVALID_ID"},
		{"id, size", "PUT", noID, h.acme.adminJWT, tooLarge, 400, "INVALID_ID"},
		{"id, permission", "PUT", noID, h.acme.plainJWT, `{}`, 400, "INVALID_ID"},
		{"body, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, noJSON, 400, "INVALID_JSON_BODY"},
		{"field, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, badField, 400, "INVALID_ARGUMENT"},
		{"size, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, tooLarge, 413, "BODY_TOO_LARGE"},
		{"query, permission", "GET", "/v1.0/accesskeys?page_size=x", h.acme.plainJWT, "", 400, "INVALID_REQUEST_PARAMETER"},
		{"body, existence", "PUT", absent, h.acme.adminJWT, noJSON, 400, "INVALID_JSON_BODY"},
		{"field, existence", "PUT", absent, h.acme.adminJWT, badField, 400, "INVALID_ARGUMENT"},
		{"field, tenancy", "PUT", foreign, h.acme.adminJWT, badField, 400, "INVALID_ARGUMENT"},
		{"permission, existence", "DELETE", deleted, h.acme.plainJWT, "", 403, "PERMISSION_DENIED"},
		{"existence, tenancy", "GET", deleted, h.acme.adminJWT, "", 404, "ACCESSKEY_NOT_FOUND"},
		{"existence, tenancy", "PUT", deleted, h.acme.adminJWT, `{}`, 404, "ACCESSKEY_NOT_FOUND"},
		{"existence, tenancy", "DELETE", deleted, h.acme.token, "", 404, "ACCESSKEY_NOT_FOUND"},
	} {
		req := request{method: c.method, path: c.path, header: bearing(c.bearer)}
		if c.body != "" {
			req.body = c.body
		}
		got := h.send(req)
		if got.code != c.code || got.failure()["reason"] != c.reason {
			t.Errorf("%s: %s %s gave %d %s, want %d %s", c.what, c.method, c.path, got.code, got.raw, c.code, c.reason)
		}
	}
	h.accepts(h.globex.token)
}

// Contract, section 4: {id} not a UUID: 400 INVALID_ID, on every route and before the permission is looked at. A UUID has one form here,
// in either case.
func TestIDInThePathMustBeAUUID(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.acme.key.ID.String()
	for _, wrong := range []string{
		"1", "null", id[:35], id + "0", "%7B" + id + "%7D", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), id[:35] + "g", "%20" + id,
		id + "%20", id + "%00", "..%2f" + id, strings.Replace(id, "-", "_", 1), h.acme.token,
	} {
		for _, route := range h.routesOf() {
			method, path, _ := strings.Cut(route, " ")
			for _, one := range []string{"{id}", "{key_id}"} {
				if strings.Contains(path, one) {
					path := strings.NewReplacer(one, wrong, "{id}", absentID, "{key_id}", absentID).Replace(path)
					h.send(request{method: method, path: path, header: bearing(h.acme.plainJWT)}).refuses(400, "INVALID_ID")
				}
			}
		}
	}
	if upper := h.get("/v1.0/accesskeys/"+strings.ToUpper(id), h.acme.adminJWT).wants(200).json(); upper["id"] != id {
		t.Errorf("id %v, want %s", upper["id"], id)
	}
}

// Contract, section 4: From then on the key is refused by every instance, "tm_delete and tm_update set to now", "A second DELETE: 404"; 7:
// deleted is 404.
func TestDeletedKeyIsRefusedByEveryInstanceAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	for range 10 {
		key, token := h.newKey(h.acme.customer, 3600)
		path := "/v1.0/accesskeys/" + key.ID.String()
		instance.accepts(token)
		before := h.clock()
		got := h.delete(path, h.acme.adminJWT).wants(200).json()
		instance.rejects(token)
		h.rejects(token)
		deleted := parseTime(t, got["tm_delete"])
		if got["tm_update"] != got["tm_delete"] || deleted.Before(before) || deleted.After(before.Add(time.Minute)) {
			t.Errorf("deleted after %s: %v", before, got)
		}
		for field, want := range map[string]any{"id": key.ID.String(), "name": key.Name, "token_prefix": key.TokenPrefix} {
			if got[field] != want {
				t.Errorf("%s %v, want %v", field, got[field], want)
			}
		}
		for _, server := range []*harness{h, instance} {
			server.get(path, h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
			server.put(path, h.acme.adminJWT, `{"name":"back"}`).refuses(404, "ACCESSKEY_NOT_FOUND")
			server.delete(path, h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
			server.delete(path, h.globex.superJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
		}
	}
	if listed := h.get("/v1.0/accesskeys", h.acme.adminJWT).items(); len(listed) != 1 {
		t.Errorf("%d keys are listed, want the one that is left", len(listed))
	}
	instance.accepts(h.acme.token)
}

// Contract, section 4: A second DELETE: 404. Of deletions of one key at once, from both servers, by itself and by others, one is a 200. The
// others find no such key, or, where it is their own, may be nobody any more.
func TestOfDeletionsAtOnceOneIsAnswered200(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	servers := []*harness{h, h.instance()}
	for range 20 {
		key, token := h.storeKey(store.NewAccessKey{CustomerID: h.acme.customer.ID})
		deletion := func(bearer string) request {
			return request{method: http.MethodDelete, path: "/v1.0/accesskeys/" + key.ID.String(), header: bearing(bearer)}
		}
		own, admins := deletion(token), deletion(h.acme.adminJWT)
		answers := atOnce(t, servers, own, own, admins, admins, own, own, admins, admins)
		codes, byAdmins := statuses(answers), statuses(append(answers[2:4:4], answers[6:]...))
		if codes[200] != 1 || codes[200]+codes[404]+codes[401] != 8 || byAdmins[401] != 0 {
			t.Errorf("answers: %v, to others than the key itself: %v", codes, byAdmins)
		}
	}
}

// lives is how long a key lives, on the wire.
func lives(t *testing.T, key map[string]any) time.Duration {
	t.Helper()
	return parseTime(t, key["tm_expire"]).Sub(parseTime(t, key["tm_create"]))
}

// Contract, section 4: A floor can be configured (ACCESSKEY_MIN_EXPIRE, seconds...; VoIPBIN's own is 86400). Where it is above what a key
// lives for by default, that is the floor too, also for the first key of a sign-up.
func TestExpireHasAFloorThatCanBeSet(t *testing.T) {
	t.Parallel()
	const year = 365 * 86400
	for floor, byDefault := range map[int64]time.Duration{86400: year * time.Second, 2 * year: 2 * year * time.Second} {
		s := newSignups(t, func(c *api.Config) { c.MinExpire = floor })
		for _, short := range []int64{1, floor - 1} {
			refusedFields(t, s.post("/v1.0/accesskeys", s.acme.adminJWT, map[string]int64{"expire": short}), "expire")
		}
		shortest := s.post("/v1.0/accesskeys", s.acme.adminJWT, map[string]int64{"expire": floor}).wants(200).json()
		made := s.post("/v1.0/accesskeys", s.acme.adminJWT, `{}`).wants(200).json()
		first := s.complete(s.begin("ada@new.example")).wants(200).json()["accesskey"].(map[string]any)
		got := []time.Duration{lives(t, shortest), lives(t, made), lives(t, first)}
		equalJSON(t, got, []time.Duration{time.Duration(floor) * time.Second, byDefault, byDefault})
	}
}
