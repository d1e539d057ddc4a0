package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// agentBody is an agent on the wire, byte for byte.
func agentBody(id, customer any, username, name, detail string, permission int, create, update, end any) string {
	return fmt.Sprintf(`{"id":"%s","customer_id":"%s","username":"%s","name":"%s","detail":"%s","permission":%d,`+
		`"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`, id, customer, username, name, detail, permission, create, update, end)
}

// conflicts fails the test unless this is a 409 with this status and reason.
func (r response) conflicts(status, reason string) {
	r.t.Helper()
	if r.refuses(http.StatusConflict, reason); r.failure()["status"] != status {
		r.t.Errorf("body %s, want the status %s", r.raw, status)
	}
}

// Fields: id, customer_id, username, name, detail, permission, tm_*, each route, as a story.
func TestAgentLivesFromItsCreationToItsDeletion(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	admin, customer := h.acme.adminJWT, h.acme.customer.ID
	const password, renewed = "the first password", "the second password"

	made := h.post("/v1.0/agents", admin, `{"username":"Ada","password":"`+password+`","name":"n","detail":"d","permission":80}`)
	body := made.wants(200).json()
	id, create := body["id"], body["tm_create"]
	made.same(agentBody(id, customer, "Ada", "n", "d", 80, create, create, sentinel))
	path := "/v1.0/agents/" + id.(string)
	h.get(path, admin).same(string(made.raw))
	h.loginWith("ada", password).wants(200)

	minimal := h.post("/v1.0/agents", admin, `{"username":"bob","password":"p","name":null,"permission":null,"customer_id":null}`)
	bob := minimal.wants(200).json()
	minimal.same(agentBody(bob["id"], customer, "bob", "", "", 0, bob["tm_create"], bob["tm_create"], sentinel))
	list := h.get("/v1.0/agents?page_size=2", admin).wants(200)
	want := `{"result":[` + string(minimal.raw) + `,` + string(made.raw) + `],"next_page_token":"`
	if !strings.HasPrefix(string(list.raw), want) {
		t.Errorf("body %s\nwant %s", list.raw, want)
	}
	if n := len(h.get("/v1.0/agents", admin).items()); n != 5 {
		t.Errorf("%d agents, want 5", n)
	}

	put := h.put(path, admin, `{"username":"Ada.L","name":"N","permission":32,"tm_create":1,"password":7}`)
	update := put.wants(200).json()["tm_update"]
	put.same(agentBody(id, customer, "Ada.L", "N", "d", 80, create, update, sentinel))
	if !parseTime(t, update).After(parseTime(t, create)) {
		t.Errorf("tm_update %v, tm_create %v", update, create)
	}
	h.loginWith("ADA.l", password).wants(200)
	h.loginWith("ada", password).refuses(401, "INVALID_CREDENTIALS")

	for _, change := range [][2]string{{"/permission", `{"permission":64}`}, {"/password", `{"password":"` + renewed + `"}`}} {
		put = h.put(path+change[0], admin, change[1])
		update = put.wants(200).json()["tm_update"]
		put.same(agentBody(id, customer, "Ada.L", "N", "d", 64, create, update, sentinel))
	}

	gone := h.delete(path, admin)
	end := gone.wants(200).json()["tm_delete"]
	gone.same(agentBody(id, customer, "Ada.L", "N", "d", 64, create, end, end))
	for _, req := range []request{
		{method: http.MethodGet, path: path}, {method: http.MethodPut, path: path, body: `{}`}, {method: http.MethodDelete, path: path},
		{method: http.MethodPut, path: path + "/permission", body: `{"permission":0}`},
		{method: http.MethodPut, path: path + "/password", body: `{"password":"p"}`},
	} {
		req.header = bearing(admin)
		h.send(req).refuses(404, "AGENT_NOT_FOUND")
	}
	for _, secret := range []string{password, renewed} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// Contract, section 4: for agents and customers: what is not valid is a 400 that names the field.
func TestFieldsOfAgentsAndCustomersThatAreNotFitAreNamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	long := strings.Repeat("x", 256)
	agent, customer := "/v1.0/agents/"+h.acme.plain.ID.String(), "/v1.0/customers/"+h.acme.customer.ID.String()
	for _, c := range []struct{ method, path, body, field string }{
		{"POST", "/v1.0/agents", `{"password":"p"}`, "username"},
		{"POST", "/v1.0/agents", `{"username":"","password":"p"}`, "username"},
		{"POST", "/v1.0/agents", `{"username":"` + long + `","password":"p"}`, "username"},
		{"POST", "/v1.0/agents", `{"username":"a\u0000","password":"p"}`, "username"},
		{"POST", "/v1.0/agents", `{"username":"a"}`, "password"},
		{"POST", "/v1.0/agents", `{"username":"a","password":""}`, "password"},
		{"POST", "/v1.0/agents", `{"username":"a","password":null}`, "password"},
		{"POST", "/v1.0/agents", `{"username":"a","password":"p","permission":65536}`, "permission"},
		{"POST", "/v1.0/agents", `{"username":"a","password":"p","permission":-1}`, "permission"},
		{"POST", "/v1.0/agents", `{"username":"a","password":"p","permission":"16"}`, "permission"},
		{"POST", "/v1.0/agents", `{"username":"a","password":"p","customer_id":"acme"}`, "customer_id"},
		{"PUT", agent, `{"username":""}`, "username"},
		{"PUT", agent, `{"name":"` + long + `"}`, "name"},
		{"PUT", agent + "/permission", `{}`, "permission"},
		{"PUT", agent + "/permission", `{"permission":1.5}`, "permission"},
		{"PUT", agent + "/password", `{}`, "password"},
		{"PUT", "/v1.0/me/password", `{"password":"p"}`, "old_password"},
		{"PUT", "/v1.0/me/password", `{"old_password":"p"}`, "password"},
		{"POST", "/v1.0/customers", `{}`, "name"},
		{"POST", "/v1.0/customers", `{"name":null}`, "name"},
		{"POST", "/v1.0/customers", `{"name":""}`, "name"},
		{"POST", "/v1.0/customers", `{"name":"` + long + `"}`, "name"},
		{"POST", "/v1.0/customers", `{"name":"n","email":"` + long + `"}`, "email"},
		{"POST", "/v1.0/customers", `{"name":"n","detail":1}`, "detail"},
		{"PUT", customer, `{"name":""}`, "name"},
	} {
		refusedFields(t, h.send(request{method: c.method, path: c.path, body: c.body, header: bearing(h.acme.superJWT)}), c.field)
	}
	for _, noBody := range []string{"/permission", "/password"} {
		h.send(request{method: "PUT", path: agent + noBody, header: bearing(h.acme.adminJWT)}).refuses(400, "INVALID_JSON_BODY")
	}
	h.get("/v1.0/agents?customer_id=acme", h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
	h.put(customer, h.acme.superJWT, `{}`).wants(200)
}

// The last admin of a customer can't be deleted or demoted (409 LAST_ADMIN), by nobody.
func TestLastAdminStays(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	path := "/v1.0/agents/" + h.acme.admin.ID.String()
	for _, bearer := range []string{h.acme.adminJWT, h.acme.token, h.acme.superJWT, h.globex.superJWT} {
		h.delete(path, bearer).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
		h.put(path+"/permission", bearer, `{"permission":208}`).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
		h.put(path+"/permission", bearer, `{"permission":240}`).wants(200) // more than an admin is an admin still
	}
	second := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin|auth.PermissionCustomerAgent)
	h.put(path+"/permission", h.acme.adminJWT, `{"permission":16}`).wants(200)
	h.delete("/v1.0/agents/"+second.ID.String(), h.jwtFor(second)).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
	h.delete(path, h.jwtFor(second)).wants(200) // no admin any more
	h.delete("/v1.0/agents/"+h.acme.super.ID.String(), h.acme.superJWT).wants(200)
}

// Nobody grants a bit that they lack: of the bits that the matrix, which shows the same for every route, does not have.
func TestNobodyGrantsABitThatTheyLack(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	for who, c := range map[string]struct {
		bearer string
		gives  int
	}{
		"super":       {h.globex.superJWT, 0xffff},
		"admin":       {h.acme.adminJWT, 0xf0},
		"agent_admin": {h.newProgram(customer, auth.RoleAgentAdmin).token, 0x50},
	} {
		for _, bits := range []int{0x40, 0x80, 0xf0, 1, 0x100} {
			got := h.post("/v1.0/agents", c.bearer, map[string]any{
				"customer_id": customer, "username": uuid.NewString(), "password": "p", "permission": bits,
			})
			if want := map[bool]int{true: 200, false: 403}[bits&^c.gives == 0]; got.code != want {
				t.Errorf("%s, %#x: %d, want %d; body %s", who, bits, got.code, want, got.raw)
			}
		}
	}
}

// A deleted agent's tokens and user keys stop at once, on every instance; nobody else's do. It may be deleted by a key of its own.
func TestDeletedAgentsTokensAndKeysStopEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin)
	first, token := h.newBoundKey(agent)
	second, secondToken := h.newBoundKey(agent)
	expired, expiredToken := h.newBoundKey(agent)
	_, others := h.newBoundKey(h.acme.admin)
	h.exec(`UPDATE accesskeys SET tm_create = now() - interval '1 hour', tm_expire = now() WHERE id = $1`, expired.ID)
	instance.rejects(expiredToken)
	ended := []string{h.jwtFor(agent), token, secondToken} // one key's end is not another's
	instance.accepts(append(ended, others)...)

	h.delete("/v1.0/agents/"+agent.ID.String(), token).wants(200)
	for _, server := range []*harness{instance, h} {
		server.rejects(ended...)
		server.accepts(others, h.acme.adminJWT, h.acme.token, h.globex.plainJWT)
		server.login(agent.Username).refuses(401, "INVALID_CREDENTIALS")
		for _, key := range []store.AccessKey{first, second} {
			server.get("/v1.0/accesskeys/"+key.ID.String(), h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
			server.delete("/v1.0/accesskeys/"+key.ID.String(), h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
		}
	}
	h.get("/v1.0/accesskeys?agent_id="+agent.ID.String(), h.acme.adminJWT).refuses(404, "AGENT_NOT_FOUND")
	h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"agent_id": agent.ID}).refuses(404, "AGENT_NOT_FOUND")
	// What comes to be in the same moment is void as well.
	_, late := h.newBoundKey(agent)
	h.rejects(late)
	if ids, _ := h.get("/v1.0/accesskeys", h.acme.adminJWT).keyIDs(); len(ids) < 1 || ids[len(ids)-1] != h.acme.key.ID.String() {
		t.Errorf("the customer's own key is not listed: %v", ids)
	}
}

// A changed password ends the tokens issued before it, on every instance; keys, and others' tokens, go on.
func TestPasswordThatAnAdminChangesEndsEarlierTokens(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	_, token := h.newBoundKey(h.acme.plain)
	instance.accepts(h.acme.plainJWT)
	h.put("/v1.0/agents/"+h.acme.plain.ID.String()+"/password", h.acme.adminJWT, `{"password":"another"}`).wants(200)
	instance.rejects(h.acme.plainJWT)
	instance.login(h.acme.plain.Username).refuses(401, "INVALID_CREDENTIALS")
	fresh := instance.loginWith(h.acme.plain.Username, "another").wants(200)
	h.accepts(fresh.json()["token"].(string), token, h.acme.adminJWT, h.globex.plainJWT)
}

// PUT /v1.0/me/password (asks for the old one). An agent with a login token only: who has found a key must not lock its owner out.
func TestAgentChangesItsOwnPasswordForTheOldOne(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	const path = "/v1.0/me/password"
	change := map[string]any{"old_password": tenantPassword, "password": "another"}
	_, bound := h.newBoundKey(h.acme.plain)
	for _, bearer := range []string{bound, h.acme.token, h.newProgram(h.acme.customer.ID, auth.RoleCustomerAdmin).token} {
		h.put(path, bearer, change).refuses(403, "PERMISSION_DENIED")
	}
	for _, wrong := range []string{"another", tenantPassword + " ", strings.ToUpper(tenantPassword)} {
		got := h.put(path, h.acme.plainJWT, map[string]any{"old_password": wrong, "password": "another"}).refuses(400, "WRONG_PASSWORD")
		if !strings.Contains(string(got.raw), `"details":[{"field":"old_password","message":"is incorrect"}]`) {
			t.Errorf("body %s", got.raw)
		}
	}
	h.accepts(h.acme.plainJWT) // nothing has changed

	p := h.acme.plain
	done := h.put(path, h.acme.plainJWT, change)
	done.same(agentBody(p.ID, p.CustomerID, p.Username, p.Name, "", 16, stamp(p.TmCreate), done.wants(200).json()["tm_update"], sentinel))
	for _, server := range []*harness{h, instance} {
		server.rejects(h.acme.plainJWT)
		server.accepts(bound, h.globex.plainJWT)
		server.login(p.Username).refuses(401, "INVALID_CREDENTIALS")
		server.login(h.globex.plain.Username).wants(200)
	}
	h.loginWith(p.Username, "another").wants(200)
}

// It checks a password, so it can be tried as often as a login, and no oftener.
func TestOwnPasswordIsAsLimitedAsALogin(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.AuthLimit = slow })
	guess := map[string]any{"old_password": "a guess", "password": "another"}
	for range 2 {
		h.put("/v1.0/me/password", h.acme.plainJWT, guess).refuses(400, "WRONG_PASSWORD")
	}
	h.put("/v1.0/me/password", h.acme.plainJWT, guess).refuses(429, "RATE_LIMIT_EXCEEDED")
	h.accepts(h.acme.plainJWT) // the rest of /v1.0 is not limited so
}

// Usernames are compared by RFC 8265, over all customers: what people can't tell apart is one username, 409 USERNAME_TAKEN, and what can be
// mistaken for another one is none. Contract, section 2: the answer to a login has the name as it is stored.
func TestUsernamesFollowRFC8265(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	body := func(username string) map[string]any {
		return map[string]any{"username": username, "password": tenantPassword}
	}
	plain := "/v1.0/agents/" + h.acme.plain.ID.String()
	for username, spellings := range map[string][]string{
		"Jos\u00e9":                     {"Jose\u0301", "JOS\u00c9", "\uff2aos\u00e9"},
		"Jürgen.ÆØÅ.Жанна@acme.example": {"jürgen.æøå.жанна@acme.example", "JÜRGEN.ÆØÅ.ЖАННА@ACME.EXAMPLE"},
	} {
		made := h.post("/v1.0/agents", h.acme.adminJWT, body(username)).wants(200).json()
		agent := "/v1.0/agents/" + made["id"].(string)
		for _, same := range append(spellings, username) {
			h.post("/v1.0/agents", h.globex.adminJWT, body(same)).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
			h.put(plain, h.acme.adminJWT, body(same)).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
			for _, typed := range []string{same, " " + same + "\n"} {
				if got := h.login(typed).wants(200).json()["username"]; got != username {
					t.Errorf("%q logs in as %v", typed, got)
				}
			}
			if got := h.put(agent, h.acme.adminJWT, map[string]any{"username": same}).wants(200).json()["username"]; got != same {
				t.Errorf("renamed to %v, want %q", got, same)
			}
			h.put(agent, h.acme.adminJWT, body(username)).wants(200)
		}
		for _, wrong := range []string{
			username + " ", " " + username, username + "\n", "Jo\u200bs\u00e9", "\u202eJos\u00e9", "\ufeffada", "a\tb", "\u2168",
		} {
			refusedFields(t, h.post("/v1.0/agents", h.acme.adminJWT, body(wrong)), "username")
			refusedFields(t, h.post("/v1.0/agents", h.acme.plainJWT, body(wrong)), "username") // the body comes before rights
			refusedFields(t, h.put(agent, h.acme.adminJWT, body(wrong)), "username")
		}
		// One from before there was a rule stays, and can be sent back. The username of before, and of one who is deleted, is free.
		h.exec(`UPDATE agents SET username = 'Jo' || chr(8203) WHERE id = $1`, made["id"])
		sent := h.get(agent, h.acme.adminJWT).wants(200).json()
		sent["name"] = "changed"
		if got := h.put(agent, h.acme.adminJWT, sent).wants(200).json(); got["name"] != "changed" || got["username"] != "Jo\u200b" {
			t.Errorf("sent back, it is %v", got)
		}
		h.login("Jo\u200b").wants(200)
		h.delete(agent, h.acme.adminJWT).wants(200)
		h.post("/v1.0/agents", h.globex.adminJWT, body(username)).wants(200)
	}
	h.get(plain, h.acme.adminJWT).same(agentBody(h.acme.plain.ID, h.acme.customer.ID, "plain@acme.example", "plain", "", 16,
		stamp(h.acme.plain.TmCreate), stamp(h.acme.plain.TmUpdate), sentinel))
}
