package api_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/auth"
)

const (
	reUUID = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	reTime = `\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z`
	nobody = "5f1f8f7e-9b3d-4c60-8465-b69e9f28b6db"
)

// accountShape is a service account's body, byte for byte but for ids and times; its tm_create, tm_update and tm_delete
// are the groups.
func accountShape(customer fmt.Stringer, name, detail, roles string) *regexp.Regexp {
	return regexp.MustCompile(`^\{"id":"` + reUUID + `","customer_id":"` + customer.String() + `","name":"` + name + `","detail":"` + detail +
		`","roles":` + regexp.QuoteMeta(roles) + `,"tm_create":"(` + reTime + `)","tm_update":"(` + reTime + `)","tm_delete":"(` + reTime + `)"\}$`)
}

// times holds a body to its shape and returns its times.
func (r response) times(shape *regexp.Regexp) (create, update, deleted string) {
	r.t.Helper()
	found := shape.FindStringSubmatch(string(r.wants(http.StatusOK).raw))
	if found == nil {
		r.t.Fatalf("body %s\nwant %s", r.raw, shape)
	}
	return found[1], found[2], found[3]
}

// GET|POST /v1.0/service_accounts, GET|PUT|DELETE /v1.0/service_accounts/{id}; "An account has name, detail and roles". One account's life,
// every body whole, and the other customer's list untouched by it.
func TestServiceAccountLivesFromPostToDelete(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const path = "/v1.0/service_accounts"
	foreign := h.post(path, h.globex.adminJWT, `{"name":"theirs"}`).wants(http.StatusOK)
	h.get(path, h.acme.adminJWT).same(lastPage())

	empty := h.post(path, h.acme.adminJWT, "")
	create, update, deleted := empty.times(accountShape(h.acme.customer.ID, "", "", "[]"))
	if create != update || deleted != sentinel {
		t.Errorf("a new account's times: %s", empty.raw)
	}
	whole := h.post(path, h.acme.token, `{"name":"Reports 語","detail":"nightly","roles":["agent_viewer","accesskey_viewer"],"id":"ignored"}`)
	whole.times(accountShape(h.acme.customer.ID, "Reports 語", "nightly", `["agent_viewer","accesskey_viewer"]`))
	one := path + "/" + whole.json()["id"].(string)
	h.get(one, h.acme.adminJWT).same(string(whole.raw))
	h.get(path, h.acme.adminJWT).same(lastPage(string(whole.raw), string(empty.raw)))
	first := h.get(path+"?page_size=1", h.acme.adminJWT).wants(http.StatusOK).json()
	h.get(path+"?page_size=1&page_token="+first["next_page_token"].(string), h.acme.adminJWT).same(lastPage(string(empty.raw)))

	for _, step := range []struct{ body, name, detail, roles string }{
		{`{"name":"n"}`, "n", "nightly", `["agent_viewer","accesskey_viewer"]`},
		{`{"detail":"","name":null,"roles":null}`, "n", "", `["agent_viewer","accesskey_viewer"]`},
		{`{"roles":["customer_admin"]}`, "n", "", `["customer_admin"]`},
		{`{"roles":[]}`, "n", "", `[]`},
		{``, "n", "", `[]`},
		{string(whole.raw), "Reports 語", "nightly", `["agent_viewer","accesskey_viewer"]`}, // as it was fetched
	} {
		got := h.put(one, h.acme.adminJWT, step.body)
		c, u, d := got.times(accountShape(h.acme.customer.ID, step.name, step.detail, step.roles))
		if c != whole.json()["tm_create"] || u <= update || d != sentinel {
			t.Errorf("%s: times of %s", step.body, got.raw)
		}
		update = u
		h.get(one, h.acme.adminJWT).same(string(got.raw))
	}

	gone := h.delete(one, h.acme.adminJWT)
	c, u, d := gone.times(accountShape(h.acme.customer.ID, "Reports 語", "nightly", `["agent_viewer","accesskey_viewer"]`))
	if c != whole.json()["tm_create"] || u != d || d <= update {
		t.Errorf("times of the deleted account: %s", gone.raw)
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		for _, at := range []string{one, path + "/" + nobody} {
			h.send(request{method: method, path: at, header: bearing(h.acme.adminJWT)}).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_NOT_FOUND")
		}
	}
	h.get(path, h.acme.adminJWT).same(lastPage(string(empty.raw)))
	h.get(path, h.globex.adminJWT).same(lastPage(string(foreign.raw)))
}

// Roles: a list out of accesskey_admin, accesskey_viewer, agent_admin, agent_viewer, customer_admin. Everything else is refused, by POST and
// by PUT, with the field's name, and changes nothing.
func TestRolesAreAListOutOfTheModel(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if got := fmt.Sprint(auth.Roles()); len(auth.Roles()) != 5 {
		t.Fatalf("the roles are %s", got)
	}
	all := `["accesskey_admin","accesskey_viewer","agent_admin","agent_viewer","customer_admin"]`
	made := h.post("/v1.0/service_accounts", h.acme.adminJWT, `{"roles":`+all+`}`)
	made.times(accountShape(h.acme.customer.ID, "", "", all))
	at := "/v1.0/service_accounts/" + made.json()["id"].(string)
	wrong := []any{map[string]any{
		"field": "roles", "message": "must be a list of distinct values from [customer_admin accesskey_admin accesskey_viewer agent_admin agent_viewer]",
	}}
	for _, roles := range []string{
		`"customer_admin"`, `{}`, `1`, `true`, `[1]`, `[null]`, `[[]]`, `["root"]`, `[""]`, `["Customer_Admin"]`, `["customer_admin "]`,
		`["accesskey_admin","accesskey_admin"]`, `["accesskey_admin",null]`, `["agent_viewer","superadmin"]`, `["\u0000"]`,
		`["customer_admin","customer\u005fadmin"]`,
	} {
		for _, got := range []response{
			h.post("/v1.0/service_accounts", h.acme.adminJWT, `{"roles":`+roles+`}`), h.put(at, h.acme.adminJWT, `{"name":"x","roles":`+roles+`}`),
		} {
			equalJSON(t, got.refuses(http.StatusBadRequest, "INVALID_ARGUMENT").failure()["details"], wrong)
		}
	}
	refusedFields(t, h.post("/v1.0/service_accounts", h.acme.adminJWT, map[string]any{
		"name": strings.Repeat("x", 256), "detail": strings.Repeat("x", 4097), "roles": "x",
	}), "name", "detail", "roles")
	for _, body := range []string{`[]`, `"x"`, `{`, `{"name":"a","name":"b"}`} {
		h.post("/v1.0/service_accounts", h.acme.adminJWT, body).refuses(http.StatusBadRequest, "INVALID_JSON_BODY")
		h.put(at, h.acme.adminJWT, body).refuses(http.StatusBadRequest, "INVALID_JSON_BODY")
	}
	h.get(at, h.acme.adminJWT).same(string(made.raw))
	h.get("/v1.0/service_accounts", h.acme.adminJWT).same(lastPage(string(made.raw)))
}

// Without a role an account reads itself and its customer, the list of customers included; and a role that is given or taken counts from the
// next request on, for tokens that were signed before.
func TestRolesCountFromTheNextRequestOn(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := h.newAccount(h.acme.adminJWT, auth.EdDSA)
	token := a.token()
	at := "/v1.0/service_accounts/" + a.id
	for _, step := range []struct {
		roles      string
		permission int
		may        []string
	}{
		{`[]`, 0, nil},
		{`["accesskey_viewer"]`, 0, []string{"accesskeys"}},
		{`["agent_viewer"]`, 0, []string{"agents"}},
		{`["agent_admin","accesskey_admin"]`, 0, []string{"accesskeys", "agents"}},
		{`["customer_admin"]`, 32, []string{"accesskeys", "agents", "service_accounts"}},
		{`[]`, 0, nil},
	} {
		changed := h.put(at, h.acme.adminJWT, `{"roles":`+step.roles+`}`).wants(http.StatusOK).json()
		h.get("/v1.0/me", token).same(fmt.Sprintf(`{"id":"%s","customer_id":"%s","type":"service_account","username":"","name":"of EdDSA",`+
			`"detail":"","permission":%d,"roles":%s,"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`,
			a.id, h.acme.customer.ID, step.permission, step.roles, changed["tm_create"], changed["tm_update"], sentinel))
		h.get("/v1.0/customer", token).same(customerBody(h.acme.customer))
		h.get("/v1.0/customers", token).same(lastPage(customerBody(h.acme.customer)))
		h.get("/v1.0/customers/"+h.acme.customer.ID.String(), token).same(customerBody(h.acme.customer))
		for _, noun := range []string{"accesskeys", "agents", "service_accounts"} {
			if got := h.get("/v1.0/"+noun, token); slices.Contains(step.may, noun) {
				got.wants(http.StatusOK)
			} else {
				got.refuses(http.StatusForbidden, "PERMISSION_DENIED")
			}
		}
	}
}
