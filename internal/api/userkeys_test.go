package api_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// keyIDs are the ids in a list, and what comes after it.
func (r response) keyIDs() (ids []string, next any) {
	r.t.Helper()
	body := r.wants(200).json()
	ids = []string{}
	for _, item := range body["result"].([]any) {
		ids = append(ids, item.(map[string]any)["id"].(string))
	}
	return ids, body["next_page_token"]
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
	h.get("/v1.0/me", token).refuses(401, "INVALID_CREDENTIALS")

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

// Such a key acts with that agent's permission as it is at the time of each request: promoted or demoted through one instance, it is so on
// the other at once.
func TestUserKeyActsAsItsAgentMayNow(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAgent)
	_, token := h.newBoundKey(agent)
	_, bystander := h.newBoundKey(h.acme.plain)
	for range 3 {
		for permission, code := range map[auth.Permission]int{0: 403, 16: 403, 32: 200, 64: 403, 48: 200, 1: 200} {
			h.put("/v1.0/agents/"+agent.ID.String()+"/permission", h.acme.superJWT, map[string]any{"permission": permission}).wants(200)
			for _, server := range []*harness{instance, h} {
				if got := server.get("/v1.0/accesskeys", token); got.code != code {
					t.Errorf("permission %d: %d, want %d", permission, got.code, code)
				}
				if me := server.get("/v1.0/me", token).wants(200).json(); me["permission"] != float64(permission) {
					t.Errorf("permission %v, want %d", me["permission"], permission)
				}
				foreign := server.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), token)
				if (foreign.code == 200) != (permission == 1) {
					t.Errorf("permission %d: another customer's key: %d", permission, foreign.code)
				}
				server.get("/v1.0/accesskeys", bystander).refuses(403, "PERMISSION_DENIED")
			}
		}
	}
}

// And ends with the agent: its keys are gone, and stay so.
func TestUserKeysEndWithTheirAgent(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAdmin)
	var paths, tokens []string
	for range 3 {
		key, token := h.newBoundKey(agent)
		paths, tokens = append(paths, "/v1.0/accesskeys/"+key.ID.String()), append(tokens, token)
	}
	expired, expiredToken := h.newBoundKey(agent)
	h.exec(`UPDATE accesskeys SET tm_create = now() - interval '1 hour', tm_expire = now() WHERE id = $1`, expired.ID)
	instance.get("/v1.0/me", expiredToken).refuses(401, "INVALID_CREDENTIALS")
	instance.get("/v1.0/me", tokens[0]).wants(200) // one key's end is not another's

	// The agent is deleted by its own key, which ends with it.
	h.delete("/v1.0/agents/"+agent.ID.String(), tokens[1]).wants(200)
	for i := range tokens {
		instance.get("/v1.0/me", tokens[i]).refuses(401, "INVALID_CREDENTIALS")
		instance.get(paths[i], h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
		instance.delete(paths[i], h.acme.adminJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
	}
	h.get("/v1.0/accesskeys?agent_id="+agent.ID.String(), h.acme.adminJWT).refuses(404, "AGENT_NOT_FOUND")
	h.post("/v1.0/accesskeys", h.acme.adminJWT, map[string]any{"agent_id": agent.ID}).refuses(404, "AGENT_NOT_FOUND")
	// What comes to be in the same moment is void as well.
	_, late := h.newBoundKey(agent)
	h.get("/v1.0/me", late).refuses(401, "INVALID_CREDENTIALS")
	if ids, _ := h.get("/v1.0/accesskeys", h.acme.adminJWT).keyIDs(); len(ids) < 1 || ids[len(ids)-1] != h.acme.key.ID.String() {
		t.Errorf("the customer's own key is not listed: %v", ids)
	}
}

// Any agent may create, list (?agent_id=<own>), read, rename and delete keys bound to itself, whatever its permission; everything else about
// keys still needs CustomerAdmin: by its login, and by such a key.
func TestAnyAgentManagesItsOwnKeysAndNoOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	adminKey, _ := h.newBoundKey(h.acme.admin)
	foreignKey, _ := h.newBoundKey(h.globex.plain)
	for _, permission := range []auth.Permission{0, 16, 64, 0x80, 0xffff &^ 0x21} {
		agent := h.newAgent(h.acme.customer.ID, permission)
		first, token := h.newBoundKey(agent)
		for _, bearer := range []string{h.jwtFor(agent), token} {
			own := "?agent_id=" + agent.ID.String()
			made := h.post("/v1.0/accesskeys", bearer, map[string]any{"agent_id": agent.ID, "name": "n"}).wants(200).json()
			if made["agent_id"] != agent.ID.String() || made["customer_id"] != h.acme.customer.ID.String() {
				t.Errorf("made %v", made)
			}
			path := "/v1.0/accesskeys/" + made["id"].(string)
			ids, next := h.get("/v1.0/accesskeys"+own, bearer).keyIDs()
			equalJSON(t, []any{ids, next}, []any{[]any{made["id"], first.ID}, nil})
			h.get(path, bearer).wants(200)
			if got := h.put(path, bearer, `{"name":"renamed"}`).wants(200).json()["name"]; got != "renamed" {
				t.Errorf("name %v", got)
			}
			h.delete(path, bearer).wants(200)
			ids, _ = h.get("/v1.0/accesskeys"+own, bearer).keyIDs()
			equalJSON(t, ids, []any{first.ID})

			h.get("/v1.0/accesskeys", bearer).refuses(403, "PERMISSION_DENIED")
			h.get("/v1.0/accesskeys?agent_id=", bearer).refuses(403, "PERMISSION_DENIED")
			h.post("/v1.0/accesskeys", bearer, `{}`).refuses(403, "PERMISSION_DENIED")
			for _, other := range []uuid.UUID{h.acme.admin.ID, h.acme.plain.ID, h.globex.plain.ID, uuid.MustParse(absentID), uuid.New()} {
				h.get("/v1.0/accesskeys?agent_id="+other.String(), bearer).refuses(403, "PERMISSION_DENIED")
				h.post("/v1.0/accesskeys", bearer, map[string]any{"agent_id": other}).refuses(403, "PERMISSION_DENIED")
			}
			gone := made["id"].(string)
			for _, id := range []string{adminKey.ID.String(), foreignKey.ID.String(), h.acme.key.ID.String(), absentID, gone} {
				h.get("/v1.0/accesskeys/"+id, bearer).refuses(403, "PERMISSION_DENIED")
				h.put("/v1.0/accesskeys/"+id, bearer, `{"name":"x"}`).refuses(403, "PERMISSION_DENIED")
				h.delete("/v1.0/accesskeys/"+id, bearer).refuses(403, "PERMISSION_DENIED")
			}
		}
	}
	for _, key := range []store.AccessKey{adminKey, foreignKey, h.acme.key} {
		if got := h.text(`SELECT name = $2 AND tm_delete = '9999-01-01 00:00:00+00' FROM accesskeys WHERE id = $1`,
			key.ID, key.Name); got != "true" {
			t.Errorf("key %s was changed", key.ID)
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
		var paged []string
		for page, token := 0, any(""); token != nil && page < 4; page++ {
			ids, token = h.get(path+"&page_size=2&page_token="+token.(string), bearer).keyIDs()
			paged = append(paged, ids...)
		}
		equalJSON(t, paged, want)
	}
	// All of the customer's keys are the bound ones too.
	for _, all := range []string{"", "?agent_id="} {
		if ids, _ := h.get("/v1.0/accesskeys"+all, h.acme.adminJWT).keyIDs(); len(ids) != 7 {
			t.Errorf("%d keys, want 7: %v", len(ids), ids)
		}
	}
	for _, wrong := range []string{"me", "1", h.acme.plain.ID.String() + "&agent_id=" + h.acme.plain.ID.String()} {
		h.get("/v1.0/accesskeys?agent_id="+wrong, h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
	}
	for _, nobody := range []string{absentID, uuid.Nil.String()} {
		h.get("/v1.0/accesskeys?agent_id="+nobody, h.acme.adminJWT).refuses(404, "AGENT_NOT_FOUND")
	}
	h.get("/v1.0/accesskeys?agent_id="+h.globex.plain.ID.String(), h.acme.adminJWT).refuses(403, "PERMISSION_DENIED")
}

// A customer-wide key has no more rights than the service account that made it, nor has a key that is made with it; the
// key of a customer_admin acts as CustomerAdmin, as any did before.
func TestKeysThatServiceAccountsMakeHaveNoMoreRightsThanThey(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	agents := map[string]any{"username": "u", "password": "p"}
	making := func(bearer string) string {
		return h.post("/v1.0/accesskeys", bearer, `{}`).wants(200).json()["token"].(string)
	}
	maker := h.newProgram(customer, auth.RoleAccessKeyAdmin)
	first := making(maker.token)
	for _, bearer := range []string{maker.token, first, making(first)} {
		if got := h.get("/v1.0/me", bearer).wants(200).json()["permission"]; got != 0.0 {
			t.Errorf("permission %v", got)
		}
		h.get("/v1.0/accesskeys", bearer).wants(200)
		h.get("/v1.0/agents", bearer).refuses(403, "PERMISSION_DENIED")
		h.post("/v1.0/agents", bearer, agents).refuses(403, "PERMISSION_DENIED")
		h.get("/v1.0/service_accounts", bearer).refuses(403, "PERMISSION_DENIED")
		h.post("/v1.0/service_accounts", bearer, `{"roles":["customer_admin"]}`).refuses(403, "PERMISSION_DENIED")
		h.put("/v1.0/service_accounts/"+maker.account.ID.String(), bearer, `{"roles":["customer_admin"]}`).refuses(403, "PERMISSION_DENIED")
		h.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), bearer).refuses(403, "PERMISSION_DENIED")
		// Nor is a key that is bound to somebody more powerful a way up.
		h.post("/v1.0/accesskeys", bearer, map[string]any{"agent_id": h.acme.admin.ID}).refuses(403, "PERMISSION_DENIED")
		h.post("/v1.0/accesskeys", bearer, map[string]any{"agent_id": h.acme.super.ID}).refuses(403, "PERMISSION_DENIED")
		h.post("/v1.0/accesskeys", bearer, map[string]any{"agent_id": h.acme.plain.ID}).wants(200)
	}
	both := making(h.newProgram(customer, auth.RoleAccessKeyAdmin, auth.RoleAgentViewer).token)
	h.get("/v1.0/agents", both).wants(200)
	h.post("/v1.0/agents", both, agents).refuses(403, "PERMISSION_DENIED")

	full := making(h.newProgram(customer, auth.RoleCustomerAdmin).token)
	for _, bearer := range []string{full, making(full), making(h.acme.token), making(h.acme.adminJWT)} {
		if got := h.get("/v1.0/me", bearer).wants(200).json()["permission"]; got != 32.0 {
			t.Errorf("permission %v", got)
		}
		h.get("/v1.0/agents", bearer).wants(200)
		h.get("/v1.0/service_accounts", bearer).wants(200)
	}
}
