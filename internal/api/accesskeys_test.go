package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accesskeys/internal/api"
	"accesskeys/internal/store"
)

// Contract, section 4: as a story: what POST made is what GET shows, acts as its customer's admin, and ends with DELETE.
func TestAKeyLivesFromItsCreationToItsDeletion(t *testing.T) {
	t.Parallel()
	h := newHarness(t)

	created := h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"name": "n", "detail": "d", "expire": 3600}).wants(200).json()
	token, _ := created["token"].(string)
	path := "/v1.0/accesskeys/" + created["id"].(string)
	if made, expires := parseTime(t, created["tm_create"]), parseTime(t, created["tm_expire"]); expires.Sub(made) != time.Hour {
		t.Errorf("expires %s after creation", expires.Sub(made))
	}
	h.get("/v1.0/me", token).wants(200)

	fetched := h.get(path, token).wants(200).json()
	delete(created, "token")
	equalJSON(t, fetched, created)

	h.delete(path, token).wants(200)
	h.get("/v1.0/me", token).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	h.delete(path, h.acme.adminJWT).refuses(http.StatusNotFound, "ACCESSKEY_NOT_FOUND")
	h.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), h.acme.adminJWT).refuses(http.StatusForbidden, "PERMISSION_DENIED")
}

// Contract, section 4: keys are made for, and listed to, the caller's own customer, a super admin's too.
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
		if made["customer_id"] != c.customer.ID.String() {
			t.Errorf("made for %v, want %s", made["customer_id"], c.customer.Name)
		}
		listed := h.get("/v1.0/accesskeys", c.bearer).wants(200).json()["result"].([]any)
		for _, item := range listed {
			if item.(map[string]any)["customer_id"] != c.customer.ID.String() {
				t.Errorf("%s is shown %v", c.customer.Name, item)
			}
		}
		if listed[0].(map[string]any)["id"] != made["id"] {
			t.Errorf("the newest of %s is %v, want the one just made", c.customer.Name, listed[0])
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
		{"credential, route", "GET", "/v1.0/nope", "", "", 401, "AUTHENTICATION_REQUIRED"},
		{"credential, method", "PUT", "/v1.0/me", "", "", 401, "AUTHENTICATION_REQUIRED"},
		{"credential, id", "GET", noID, "", "", 401, "AUTHENTICATION_REQUIRED"},
		{"bad credential, id", "GET", noID, "vb_nope", "", 401, "INVALID_CREDENTIALS"},
		{"credential, body", "POST", "/v1.0/accesskeys", "", noJSON, 401, "AUTHENTICATION_REQUIRED"},
		{"credential, size", "POST", "/v1.0/accesskeys", "", tooLarge, 401, "AUTHENTICATION_REQUIRED"},
		{"credential, query", "GET", "/v1.0/accesskeys?page_size=x", "", "", 401, "AUTHENTICATION_REQUIRED"},
		{"id, body", "PUT", noID, h.acme.adminJWT, noJSON, 400, "INVALID_ID"},
		{"id, size", "PUT", noID, h.acme.adminJWT, tooLarge, 400, "INVALID_ID"},
		{"id, permission", "GET", noID, h.acme.plainJWT, "", 400, "INVALID_ID"},
		{"id, permission", "DELETE", noID, h.acme.plainJWT, "", 400, "INVALID_ID"},
		{"id, permission", "PUT", noID, h.acme.plainJWT, `{}`, 400, "INVALID_ID"},
		{"body, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, noJSON, 400, "INVALID_JSON_BODY"},
		{"field, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, badField, 400, "INVALID_ARGUMENT"},
		{"size, permission", "POST", "/v1.0/accesskeys", h.acme.plainJWT, tooLarge, 413, "BODY_TOO_LARGE"},
		{"query, permission", "GET", "/v1.0/accesskeys?page_size=x", h.acme.plainJWT, "", 400, "INVALID_REQUEST_PARAMETER"},
		{"body, existence", "PUT", absent, h.acme.adminJWT, noJSON, 400, "INVALID_JSON_BODY"},
		{"field, existence", "PUT", absent, h.acme.adminJWT, badField, 400, "INVALID_ARGUMENT"},
		{"field, tenancy", "PUT", foreign, h.acme.adminJWT, badField, 400, "INVALID_ARGUMENT"},
		{"permission, existence", "GET", absent, h.acme.plainJWT, "", 403, "PERMISSION_DENIED"},
		{"permission, existence", "PUT", absent, h.acme.plainJWT, `{}`, 403, "PERMISSION_DENIED"},
		{"permission, existence", "DELETE", deleted, h.acme.plainJWT, "", 403, "PERMISSION_DENIED"},
		{"existence, tenancy", "GET", deleted, h.acme.adminJWT, "", 404, "ACCESSKEY_NOT_FOUND"},
		{"existence, tenancy", "PUT", deleted, h.acme.adminJWT, `{}`, 404, "ACCESSKEY_NOT_FOUND"},
		{"existence, tenancy", "DELETE", deleted, h.acme.token, "", 404, "ACCESSKEY_NOT_FOUND"},
		{"existence", "GET", absent, h.acme.token, "", 404, "ACCESSKEY_NOT_FOUND"},
		{"tenancy", "DELETE", foreign, h.acme.token, "", 403, "PERMISSION_DENIED"},
	} {
		req := request{method: c.method, path: c.path, header: bearing(c.bearer)}
		if c.body != "" {
			req.body = c.body
		}
		got := h.send(req)
		if got.code != c.code || got.json()["error"].(map[string]any)["reason"] != c.reason {
			t.Errorf("%s: %s %s gave %d %s, want %d %s", c.what, c.method, c.path, got.code, got.raw, c.code, c.reason)
		}
	}
	h.get("/v1.0/me", h.globex.token).wants(200)
}

// Contract, section 4: {id} not a UUID: 400 INVALID_ID. A UUID has one form here, in either case.
func TestIDInThePathMustBeAUUID(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.acme.key.ID.String()
	for _, wrong := range []string{
		"1", "null", id[:35], id + "0", "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), id[:35] + "g", "%20" + id,
		id + "%20", id + "%00", "..%2f" + id, strings.Replace(id, "-", "_", 1), h.acme.token,
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			h.send(request{method: method, path: "/v1.0/accesskeys/" + wrong, header: bearing(h.acme.adminJWT)}).refuses(400, "INVALID_ID")
		}
	}
	upper := h.get("/v1.0/accesskeys/"+strings.ToUpper(id), h.acme.adminJWT).wants(200).json()
	if upper["id"] != id {
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
		instance.get("/v1.0/me", token).wants(200)
		before := parseTime(t, h.text(`SELECT to_char(clock_timestamp(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`))
		got := h.delete(path, h.acme.adminJWT).wants(200).json()
		instance.get("/v1.0/me", token).refuses(401, "INVALID_CREDENTIALS")
		h.get("/v1.0/me", token).refuses(401, "INVALID_CREDENTIALS")

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
	if listed := h.get("/v1.0/accesskeys", h.acme.adminJWT).wants(200).json()["result"].([]any); len(listed) != 1 {
		t.Errorf("%d keys are listed, want the one that is left", len(listed))
	}
	instance.get("/v1.0/me", h.acme.token).wants(200)
}

// Contract, section 4: also where the request presented the very key it deletes.
func TestKeyCanDeleteItselfOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	path := "/v1.0/accesskeys/" + h.acme.key.ID.String()
	h.delete(path, h.acme.token).wants(200)
	h.delete(path, h.acme.token).refuses(401, "INVALID_CREDENTIALS")
	h.instance().get("/v1.0/me", h.acme.token).refuses(401, "INVALID_CREDENTIALS")
	h.get("/v1.0/me", h.globex.token).wants(200)
}

// Contract, section 4: A second DELETE: 404, also where both come at once and to different instances.
func TestOfRacingDeletesExactlyOneWins(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	servers := []*harness{h, h.instance()}
	for range 20 {
		key, _ := h.newKey(h.acme.customer, 60)
		codes := make([]int, 6)
		var group errgroup.Group
		for i := range codes {
			group.Go(func() error {
				_, _, got, err := servers[i%2].do(request{
					method: "DELETE", path: "/v1.0/accesskeys/" + key.ID.String(), header: bearing(h.acme.adminJWT),
				})
				codes[i] = got.code
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(codes)
		equalJSON(t, codes, []int{200, 404, 404, 404, 404, 404})
	}
}

// Contract, section 4: A floor can be configured (ACCESSKEY_MIN_EXPIRE, seconds...; VoIPBIN's own is 86400).
func TestExpireHasAFloorThatCanBeSet(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.MinExpire = 86400 })
	for _, short := range []string{"1", "86399"} {
		refusedFields(t, h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":`+short+`}`), "expire")
	}
	for body, want := range map[string]time.Duration{`{"expire":86400}`: 24 * time.Hour, `{}`: 365 * 24 * time.Hour} {
		got := h.post("/v1.0/accesskeys", h.acme.adminJWT, body).wants(200).json()
		if lives := parseTime(t, got["tm_expire"]).Sub(parseTime(t, got["tm_create"])); lives != want {
			t.Errorf("%s lives %s", body, lives)
		}
	}
}

// Where the floor is above what a key lives for by default, that is the floor too, also for the first key of a sign-up.
func TestFloorAboveTheDefaultIsTheDefault(t *testing.T) {
	t.Parallel()
	const floor = 2 * 365 * 86400
	s := newSignups(t, func(c *api.Config) { c.MinExpire = floor })
	made := s.post("/v1.0/accesskeys", s.acme.adminJWT, `{}`).wants(200).json()
	first := s.complete(s.begin("ada@new.example")).wants(200).json()["accesskey"].(map[string]any)
	for what, key := range map[string]map[string]any{"a key": made, "the first key of a sign-up": first} {
		if lives := parseTime(t, key["tm_expire"]).Sub(parseTime(t, key["tm_create"])); lives != floor*time.Second {
			t.Errorf("%s lives %s", what, lives)
		}
	}
}
