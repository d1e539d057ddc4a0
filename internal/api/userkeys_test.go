package api_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
)

// keyIDs are the ids in a list, and what comes after it.
func (r response) keyIDs() (ids []string, next any) {
	r.t.Helper()
	ids = []string{}
	for _, item := range r.items() {
		ids = append(ids, item["id"].(string))
	}
	return ids, r.json()["next_page_token"]
}

// POST /v1.0/accesskeys takes agent_id, "Objects gain agent_id (null for customer-wide)", "GET /v1.0/me by a user key shows the agent's id
// and permission".
func TestUserKeyShowsItsAgent(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	plain := h.acme.plain.ID
	made := h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"agent_id": plain, "name": "n", "detail": "d", "expire": 60})
	k := made.wants(200).json()
	token := k["token"].(string)
	wire := func(name, token string, update, end any) string { // used less than a minute ago
		return fmt.Sprintf(`{"id":"%s","customer_id":"%s","agent_id":"%s","name":"%s","detail":"d",%s"token_prefix":"%s",`+
			`"tm_expire":"%s","tm_create":"%s","tm_update":"%s","tm_delete":"%s","tm_last_used":null,`+
			`"created_by":{"type":"agent","id":"%s"}}`, k["id"], h.acme.customer.ID, plain, name, token,
			k["token_prefix"], k["tm_expire"], k["tm_create"], update, end, h.acme.admin.ID)
	}
	made.same(wire("n", `"token":"`+token+`",`, k["tm_create"], sentinel))
	path := "/v1.0/accesskeys/" + k["id"].(string)
	h.get(path, h.acme.adminJWT).same(wire("n", "", k["tm_create"], sentinel))
	me := `{"id":"%s","customer_id":"%s","type":"accesskey","agent_id":"%s","username":"","name":"%s","detail":"d","permission":%d,` +
		`"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`
	h.get("/v1.0/me", token).same(fmt.Sprintf(me, k["id"], h.acme.customer.ID, plain, "n", 16, k["tm_create"], k["tm_create"], sentinel))
	h.get("/v1.0/me?accesskey="+token, "").wants(200)
	h.exec(`UPDATE agents SET permission = 80 WHERE id = $1`, plain)
	put := h.put(path, token, map[string]any{"name": "N", "agent_id": h.acme.admin.ID}) // it stays bound to whom it is
	update := put.wants(200).json()["tm_update"]
	put.same(wire("N", "", update, sentinel))
	h.get("/v1.0/me", token).same(fmt.Sprintf(me, k["id"], h.acme.customer.ID, plain, "N", 80, k["tm_create"], update, sentinel))
	gone := h.delete(path, token)
	end := gone.wants(200).json()["tm_delete"]
	gone.same(wire("N", "", end, end))
	h.rejects(token)

	for _, wide := range []any{nil, map[string]any{}, map[string]any{"agent_id": nil}} {
		if got, there := h.post("/v1.0/accesskeys", h.acme.adminJWT, wide).wants(200).json()["agent_id"]; got != nil || !there {
			t.Errorf("agent_id %v of a customer-wide key", got)
		}
	}
	for _, wrong := range []any{"", "me", 7, true, plain.String()[:35], []any{}} {
		refusedFields(t, h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"agent_id": wrong}), "agent_id")
	}
	h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"agent_id": absentID}).refuses(404, "AGENT_NOT_FOUND")
}

// An agent's login token and its keys act with its permission as it is at the time of each request: promoted or demoted through one
// instance, it is so on the other at once.
func TestUserKeyActsAsItsAgentMayNow(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAgent)
	_, token := h.newBoundKey(agent)
	jwt := h.jwtFor(agent)
	_, bystander := h.newBoundKey(h.acme.plain)
	for range 3 {
		for permission, code := range map[auth.Permission]int{0: 403, 16: 403, 32: 200, 64: 403, 48: 200, 1: 200} {
			h.put("/v1.0/agents/"+agent.ID.String()+"/permission", h.acme.superJWT, map[string]any{"permission": permission}).wants(200)
			for _, server := range []*harness{instance, h} {
				for _, bearer := range []string{token, jwt} {
					if got := server.get("/v1.0/accesskeys", bearer); got.code != code {
						t.Errorf("permission %d: %d, want %d", permission, got.code, code)
					}
					if me := server.get("/v1.0/me", bearer).wants(200).json(); me["permission"] != float64(permission) {
						t.Errorf("permission %v, want %d", me["permission"], permission)
					}
					foreign := server.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), bearer)
					if (foreign.code == 200) != (permission == 1) {
						t.Errorf("permission %d: another customer's key: %d", permission, foreign.code)
					}
				}
				server.get("/v1.0/accesskeys", bystander).refuses(403, "PERMISSION_DENIED")
			}
		}
	}
}

// List (?agent_id=<own>): only that agent's, newest first, in pages, without deleted ones.
func TestKeysOfOneAgentAreListed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newBoundKey(h.acme.admin)
	h.newBoundKey(h.globex.plain)
	var want []string
	for range 5 {
		key, _ := h.newBoundKey(h.acme.plain)
		want = append([]string{key.ID.String()}, want...)
	}
	deleted, _ := h.newBoundKey(h.acme.plain)
	h.delete("/v1.0/accesskeys/"+deleted.ID.String(), h.acme.plainJWT).wants(200)
	path := "/v1.0/accesskeys?agent_id=" + h.acme.plain.ID.String()
	viewer := h.newProgram(h.acme.customer.ID, auth.RoleAccessKeyViewer).token
	for _, bearer := range []string{h.acme.plainJWT, h.acme.adminJWT, h.acme.token, h.globex.superJWT, viewer} {
		ids, next := h.get(path, bearer).keyIDs()
		equalJSON(t, []any{ids, next}, []any{want, nil})
		sizes, paged := h.pages(bearer, path+"&page_size=2")
		equalJSON(t, []any{sizes, paged}, []any{[]int{2, 2, 1}, want})
	}
	// All of the customer's keys are the bound ones too.
	for _, all := range []string{"", "?agent_id="} {
		if ids, _ := h.get("/v1.0/accesskeys"+all, h.acme.adminJWT).keyIDs(); len(ids) != 7 {
			t.Errorf("%d keys, want 7: %v", len(ids), ids)
		}
	}
	h.get("/v1.0/accesskeys?agent_id=", h.acme.plainJWT).refuses(403, "PERMISSION_DENIED")
	for _, wrong := range []string{"me", "1", h.acme.plain.ID.String() + "&agent_id=" + h.acme.plain.ID.String()} {
		h.get("/v1.0/accesskeys?agent_id="+wrong, h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
	}
	for _, nobody := range []string{absentID, uuid.Nil.String()} {
		h.get("/v1.0/accesskeys?agent_id="+nobody, h.acme.adminJWT).refuses(404, "AGENT_NOT_FOUND")
	}
}
