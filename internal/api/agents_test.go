package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// agentBody is an agent on the wire, byte for byte.
func agentBody(id, customer any, username, name, detail string, permission int, create, update, end any) string {
	return fmt.Sprintf(`{"id":"%s","customer_id":"%s","username":"%s","name":"%s","detail":"%s","permission":%d,`+
		`"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`, id, customer, username, name, detail, permission, create, update, end)
}

// conflicts fails the test unless this is a 409 with this status and reason.
func (r response) conflicts(status, reason string) {
	r.t.Helper()
	if r.refuses(http.StatusConflict, reason); r.json()["error"].(map[string]any)["status"] != status {
		r.t.Errorf("body %s, want the status %s", r.raw, status)
	}
}

// Fields: id, customer_id, username, name, detail, permission, tm_*, each route, as a story.
func TestAgentLivesFromItsCreationToItsDeletion(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	admin, customer := h.acme.adminJWT, h.acme.customer.ID
	const password, renewed = "the first password", "the second password"
	login := func(username, password string) response {
		return h.post("/auth/login", "", map[string]string{"username": username, "password": password})
	}

	made := h.post("/v1.0/agents", admin, `{"username":"Ada","password":"`+password+`","name":"n","detail":"d","permission":80}`)
	body := made.wants(200).json()
	id, create := body["id"], body["tm_create"]
	made.same(agentBody(id, customer, "Ada", "n", "d", 80, create, create, sentinel))
	path := "/v1.0/agents/" + id.(string)
	h.get(path, admin).same(string(made.raw))
	login("ada", password).wants(200)

	minimal := h.post("/v1.0/agents", admin, `{"username":"bob","password":"p","name":null,"permission":null,"customer_id":null}`)
	bob := minimal.wants(200).json()
	minimal.same(agentBody(bob["id"], customer, "bob", "", "", 0, bob["tm_create"], bob["tm_create"], sentinel))
	list := h.get("/v1.0/agents?page_size=2", admin).wants(200)
	want := `{"result":[` + string(minimal.raw) + `,` + string(made.raw) + `],"next_page_token":"`
	if !strings.HasPrefix(string(list.raw), want) {
		t.Errorf("body %s\nwant %s", list.raw, want)
	}
	if n := len(h.get("/v1.0/agents", admin).wants(200).json()["result"].([]any)); n != 5 {
		t.Errorf("%d agents, want 5", n)
	}

	put := h.put(path, admin, `{"username":"Ada.L","name":"N","permission":32,"tm_create":1,"password":7}`)
	update := put.wants(200).json()["tm_update"]
	put.same(agentBody(id, customer, "Ada.L", "N", "d", 80, create, update, sentinel))
	if !parseTime(t, update).After(parseTime(t, create)) {
		t.Errorf("tm_update %v, tm_create %v", update, create)
	}
	login("ADA.l", password).wants(200)
	login("ada", password).refuses(401, "INVALID_CREDENTIALS")

	put = h.put(path+"/permission", admin, `{"permission":64}`)
	update = put.wants(200).json()["tm_update"]
	put.same(agentBody(id, customer, "Ada.L", "N", "d", 64, create, update, sentinel))
	put = h.put(path+"/password", admin, `{"password":"`+renewed+`"}`)
	update = put.wants(200).json()["tm_update"]
	put.same(agentBody(id, customer, "Ada.L", "N", "d", 64, create, update, sentinel))

	gone := h.delete(path, admin)
	end := gone.wants(200).json()["tm_delete"]
	gone.same(agentBody(id, customer, "Ada.L", "N", "d", 64, create, end, end))
	h.get(path, admin).refuses(404, "AGENT_NOT_FOUND")
	h.put(path, admin, `{}`).refuses(404, "AGENT_NOT_FOUND")
	h.put(path+"/permission", admin, `{"permission":0}`).refuses(404, "AGENT_NOT_FOUND")
	h.put(path+"/password", admin, `{"password":"p"}`).refuses(404, "AGENT_NOT_FOUND")
	h.delete(path, admin).refuses(404, "AGENT_NOT_FOUND")
	for _, secret := range []string{password, renewed} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// Contract, section 4: for agents: what is not valid is a 400 that names the field.
func TestAgentFieldsThatAreNotFitAreNamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	long := strings.Repeat("x", 256)
	path := "/v1.0/agents/" + h.acme.plain.ID.String()
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
		{"PUT", path, `{"username":""}`, "username"},
		{"PUT", path, `{"name":"` + long + `"}`, "name"},
		{"PUT", path + "/permission", `{}`, "permission"},
		{"PUT", path + "/permission", `{"permission":1.5}`, "permission"},
		{"PUT", path + "/password", `{}`, "password"},
		{"PUT", "/v1.0/me/password", `{"password":"p"}`, "old_password"},
		{"PUT", "/v1.0/me/password", `{"old_password":"p"}`, "password"},
	} {
		refusedFields(t, h.send(request{method: c.method, path: c.path, body: c.body, header: bearing(h.acme.adminJWT)}), c.field)
	}
	for _, noBody := range []string{"/permission", "/password"} {
		h.send(request{method: "PUT", path: path + noBody, header: bearing(h.acme.adminJWT)}).refuses(400, "INVALID_JSON_BODY")
	}
	h.get("/v1.0/agents?customer_id=acme", h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
	h.get("/v1.0/agents/acme", h.acme.adminJWT).refuses(400, "INVALID_ID")
}

// The last admin of a customer can't be deleted or demoted (409 LAST_ADMIN), by nobody.
func TestLastAdminStays(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	path := "/v1.0/agents/" + h.acme.admin.ID.String()
	for _, bearer := range []string{h.acme.adminJWT, h.acme.token, h.acme.superJWT, h.globex.superJWT} {
		h.delete(path, bearer).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
		h.put(path+"/permission", bearer, `{"permission":0}`).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
		h.put(path+"/permission", bearer, `{"permission":208}`).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
		h.put(path+"/permission", bearer, `{"permission":240}`).wants(200) // more than an admin is an admin still
		h.put(path+"/permission", bearer, `{"permission":32}`).wants(200)
	}
	// Neither a super admin nor one who is deleted takes an admin's place; another customer's last admin is another matter.
	h.put("/v1.0/agents/"+h.globex.admin.ID.String(), h.globex.superJWT, `{"name":"n"}`).wants(200)
	gone := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin)
	h.delete("/v1.0/agents/"+gone.ID.String(), h.acme.adminJWT).wants(200)
	h.delete(path, h.acme.superJWT).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
	h.get("/v1.0/me", h.acme.adminJWT).wants(200)

	second := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin|auth.PermissionCustomerAgent)
	h.put(path+"/permission", h.acme.adminJWT, `{"permission":16}`).wants(200)
	h.delete("/v1.0/agents/"+second.ID.String(), h.jwtFor(second)).conflicts("FAILED_PRECONDITION", "LAST_ADMIN")
	h.delete(path, h.jwtFor(second)).wants(200) // no admin any more
	h.delete("/v1.0/agents/"+h.acme.super.ID.String(), h.acme.superJWT).wants(200)
}

// The same where two admins remove one another at the same time, through two instances: one stays.
func TestOfAdminsWhoRemoveOneAnotherOneStays(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	servers := []*harness{h, h.instance()}
	overlapped := 0
	for round := range 16 {
		c, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "c"})
		if err != nil {
			t.Fatal(err)
		}
		admins := []store.Agent{h.newAgent(c.ID, auth.PermissionCustomerAdmin), h.newAgent(c.ID, auth.PermissionCustomerAdmin)}
		tokens := []string{h.jwtFor(admins[0]), h.jwtFor(admins[1])}
		var codes [2]int
		var group errgroup.Group
		for i := range servers {
			req := request{method: "DELETE", path: "/v1.0/agents/" + admins[1-i].ID.String(), header: bearing(tokens[i])}
			if (round>>i)&1 == 1 {
				req.method, req.path, req.body = "PUT", req.path+"/permission", `{"permission":16}`
			}
			group.Go(func() error {
				_, _, got, err := servers[i].do(req)
				codes[i] = got.code
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		left := h.text(`SELECT count(*) FROM agents WHERE customer_id = $1 AND permission & 32 <> 0 AND tm_delete > now()`, c.ID)
		if left != "1" || (codes[0] == 200) == (codes[1] == 200) {
			t.Errorf("%s admins are left; the answers were %v", left, codes)
		}
		if codes[0] == 409 || codes[1] == 409 {
			overlapped++
		}
	}
	t.Logf("%d of 16 rounds met after both were let in", overlapped)
}

// A taken username is 409 USERNAME_TAKEN, in whatever case and whosever it is; a deleted agent's is free.
func TestUsernameIsTakenInAnyCaseAndByAnyCustomer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	agent := "/v1.0/agents/" + h.acme.plain.ID.String()
	for _, taken := range []string{h.acme.admin.Username, "ADMIN@acme.example", "Admin@Globex.Example"} {
		h.post("/v1.0/agents", h.acme.adminJWT, map[string]any{"username": taken, "password": "p"}).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
		h.put(agent, h.acme.adminJWT, map[string]any{"username": taken}).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
	}
	h.get(agent, h.acme.adminJWT).same(agentBody(h.acme.plain.ID, h.acme.customer.ID, "plain@acme.example", "plain", "", 16,
		stamp(h.acme.plain.TmCreate), stamp(h.acme.plain.TmUpdate), sentinel))
	// Its own in another case is not taken by another.
	if got := h.put(agent, h.acme.adminJWT, `{"username":"PLAIN@acme.example"}`).wants(200).json()["username"]; got != "PLAIN@acme.example" {
		t.Errorf("username %v", got)
	}
	h.delete(agent, h.acme.adminJWT).wants(200)
	h.post("/v1.0/agents", h.globex.adminJWT, `{"username":"plain@ACME.example","password":"p"}`).wants(200)
}

// Nobody grants a bit that they lack; nor do they take over, rename or end one who has such a bit. The matrix has further callers and bits.
func TestNobodyGrantsOrOverpowersBeyondTheirOwnBits(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	h.newAgent(customer, auth.PermissionCustomerAdmin)
	agents, keys := h.newProgram(customer, auth.RoleAgentAdmin).token, h.newProgram(customer, auth.RoleAccessKeyAdmin).token
	callers := map[string]struct {
		bearer, binds string // for agents, and for keys
		gives         auth.Permission
	}{
		"super":  {h.globex.superJWT, h.globex.superJWT, 0xffff},
		"admin":  {h.acme.adminJWT, h.acme.adminJWT, 0xf0},
		"_admin": {agents, keys, 0x50},
	}
	for who, c := range callers {
		for _, bits := range []auth.Permission{0x80, 0xf0, 1, 0x100} {
			allowed := bits&^c.gives == 0
			check := func(what string, got response) {
				t.Helper()
				if want := map[bool]int{true: 200, false: 403}[allowed]; got.code != want {
					t.Errorf("%s, %#x, %s: %d, want %d; body %s", who, int(bits), what, got.code, want, got.raw)
				}
			}
			check("create", h.post("/v1.0/agents", c.bearer, map[string]any{
				"customer_id": customer, "username": uuid.NewString(), "password": "p", "permission": bits,
			}))
			weak, strong := h.newAgent(customer, 0), h.newAgent(customer, bits)
			check("promote", h.put("/v1.0/agents/"+weak.ID.String()+"/permission", c.bearer, map[string]any{"permission": bits}))
			path := "/v1.0/agents/" + strong.ID.String()
			check("rename", h.put(path, c.bearer, `{"name":"renamed"}`))
			check("password", h.put(path+"/password", c.bearer, `{"password":"p"}`))
			check("bind", h.post("/v1.0/accesskeys", c.binds, map[string]any{"agent_id": strong.ID}))
			check("demote", h.put(path+"/permission", c.bearer, `{"permission":0}`))
			h.exec(`UPDATE agents SET permission = $2 WHERE id = $1`, strong.ID, int64(bits))
			check("delete", h.delete(path, c.bearer))
		}
	}
}

// A deleted agent's tokens and user keys stop at once, on every instance; nobody else's do.
func TestDeletedAgentsTokensAndKeysStopEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	key, token := h.newBoundKey(h.acme.plain)
	_, others := h.newBoundKey(h.acme.admin)
	for _, bearer := range []string{h.acme.plainJWT, token, others} {
		instance.get("/v1.0/me", bearer).wants(200)
	}
	h.delete("/v1.0/agents/"+h.acme.plain.ID.String(), h.acme.adminJWT).wants(200)
	for _, server := range []*harness{instance, h} {
		for _, bearer := range []string{h.acme.plainJWT, token} {
			server.get("/v1.0/me", bearer).refuses(401, "INVALID_CREDENTIALS")
		}
		server.login(h.acme.plain.Username).refuses(401, "INVALID_CREDENTIALS")
		server.get("/v1.0/accesskeys/"+key.ID.String(), h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
		for _, bearer := range []string{others, h.acme.adminJWT, h.acme.token, h.globex.plainJWT} {
			server.get("/v1.0/me", bearer).wants(200)
		}
	}
}

// A changed password ends the tokens issued before it, on every instance; keys, and others' tokens, go on.
func TestPasswordThatAnAdminChangesEndsEarlierTokens(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	_, token := h.newBoundKey(h.acme.plain)
	instance.get("/v1.0/me", h.acme.plainJWT).wants(200)
	h.put("/v1.0/agents/"+h.acme.plain.ID.String()+"/password", h.acme.adminJWT, `{"password":"another"}`).wants(200)
	instance.get("/v1.0/me", h.acme.plainJWT).refuses(401, "INVALID_CREDENTIALS")
	instance.login(h.acme.plain.Username).refuses(401, "INVALID_CREDENTIALS")
	fresh := instance.post("/auth/login", "", map[string]string{"username": h.acme.plain.Username, "password": "another"}).wants(200)
	for _, bearer := range []string{fresh.json()["token"].(string), token, h.acme.adminJWT, h.globex.plainJWT} {
		h.get("/v1.0/me", bearer).wants(200)
	}
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
	h.get("/v1.0/me", h.acme.plainJWT).wants(200) // nothing has changed

	p := h.acme.plain
	done := h.put(path, h.acme.plainJWT, change)
	done.same(agentBody(p.ID, p.CustomerID, p.Username, p.Name, "", 16, stamp(p.TmCreate), done.wants(200).json()["tm_update"], sentinel))
	for _, server := range []*harness{h, instance} {
		server.get("/v1.0/me", h.acme.plainJWT).refuses(401, "INVALID_CREDENTIALS")
		server.login(p.Username).refuses(401, "INVALID_CREDENTIALS")
		server.get("/v1.0/me", bound).wants(200)
		server.get("/v1.0/me", h.globex.plainJWT).wants(200)
		server.login(h.globex.plain.Username).wants(200)
	}
	h.post("/auth/login", "", map[string]string{"username": p.Username, "password": "another"}).wants(200)
}

// It checks a password, so it can be tried as often as a login, and no oftener.
func TestOwnPasswordIsAsLimitedAsALogin(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.AuthLimit = web.Limit{RPS: 0.001, Burst: 2} })
	guess := map[string]any{"old_password": "a guess", "password": "another"}
	for range 2 {
		h.put("/v1.0/me/password", h.acme.plainJWT, guess).refuses(400, "WRONG_PASSWORD")
	}
	h.put("/v1.0/me/password", h.acme.plainJWT, guess).refuses(429, "RATE_LIMIT_EXCEEDED")
	h.get("/v1.0/me", h.acme.plainJWT).wants(200) // the rest of /v1.0 is not limited so
}

// Usernames are compared by RFC 8265: what people can't tell apart is one username, and what can be mistaken for another one is none.
func TestUsernamesFollowRFC8265(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	body := func(username string) map[string]any { return map[string]any{"username": username, "password": "p"} }
	made := h.post("/v1.0/agents", h.acme.adminJWT, body("Jos\u00e9")).wants(200).json()
	agent := "/v1.0/agents/" + made["id"].(string)
	for _, same := range []string{"Jose\u0301", "JOS\u00c9", "\uff2aos\u00e9"} {
		h.post("/v1.0/agents", h.globex.adminJWT, body(same)).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
		for _, typed := range []string{same, " " + same + "\n"} {
			if got := h.post("/auth/login", "", body(typed)).wants(200).json()["username"]; got != "Jos\u00e9" {
				t.Errorf("%q logs in as %v", typed, got)
			}
		}
		if got := h.put(agent, h.acme.adminJWT, map[string]any{"username": same}).wants(200).json()["username"]; got != same {
			t.Errorf("renamed to %v, want %q", got, same)
		}
		h.put(agent, h.acme.adminJWT, map[string]any{"username": "Jos\u00e9"}).wants(200)
	}
	for _, wrong := range []string{"Jos\u00e9 ", " Jos\u00e9", "Jos\u00e9\n", "Jo\u200bs\u00e9", "\u202eJos\u00e9", "\ufeffada", "a\tb", "\u2168"} {
		refusedDetails(t, h.post("/v1.0/agents", h.acme.adminJWT, body(wrong)), "INVALID_ARGUMENT", "username")
		refusedDetails(t, h.post("/v1.0/agents", h.acme.plainJWT, body(wrong)), "INVALID_ARGUMENT", "username") // the body comes before rights
		refusedDetails(t, h.put(agent, h.acme.adminJWT, map[string]any{"username": wrong}), "INVALID_ARGUMENT", "username")
	}
	// One from before there was a rule stays, and can be sent back.
	h.exec(`UPDATE agents SET username = 'Jo' || chr(8203) WHERE id = $1`, made["id"])
	sent := h.get(agent, h.acme.adminJWT).wants(200).json()
	sent["name"] = "changed"
	if got := h.put(agent, h.acme.adminJWT, sent).wants(200).json(); got["name"] != "changed" || got["username"] != "Jo\u200b" {
		t.Errorf("sent back, it is %v", got)
	}
	h.post("/auth/login", "", body("Jo\u200b")).wants(200)
}
