package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// A caller whose rights change between the decision and the write, and still suffice, gets what it asked for, once: it is decided
// again. Each of the kinds of write is tried, and a change of the target's that changes nothing about who may.
func TestCallerWhoseRightsChangeAndStillSufficeGetsItsAnswer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	for what, c := range map[string]struct {
		method, path, body string
		made               string // the table that is to have one row more
	}{
		"a key":      {http.MethodPost, "/v1.0/accesskeys", `{}`, "accesskeys"},
		"a key pair": {http.MethodPost, "/v1.0/service_accounts/%s/keys", `{"algorithm":"EdDSA"}`, "service_account_keys"},
		"a change":   {http.MethodPut, "/v1.0/accesskeys/" + h.acme.key.ID.String(), `{"name":"changed"}`, ""},
	} {
		admin := h.newAgent(customer, auth.PermissionCustomerAdmin)
		path := strings.Replace(c.path, "%s", h.newProgram(customer).account.ID.String(), 1)
		count := func() (n int) {
			if c.made != "" {
				_, _ = fmt.Sscan(h.text(`SELECT count(*) FROM `+c.made), &n)
			}
			return n
		}
		before := count()
		got, _ := h.amid(request{method: c.method, path: path, body: c.body, header: bearing(h.jwtFor(admin))},
			`UPDATE agents SET permission = 32 + 64 WHERE id = $1`, admin.ID)
		if got.code != http.StatusOK || c.made != "" && count() != before+1 {
			t.Errorf("%s: %d %s, and %d new rows", what, got.code, got.raw, count()-before)
		}
	}
	target := h.newAgent(customer, auth.PermissionCustomerAgent)
	got, _ := h.amid(request{
		method: http.MethodPut, path: "/v1.0/agents/" + target.ID.String() + "/permission", body: `{"permission":64}`, header: bearing(h.acme.adminJWT),
	}, `UPDATE agents SET permission = 16 + 64 WHERE id = $1`, target.ID)
	if got.code != http.StatusOK || got.json()["permission"] != 64.0 {
		t.Errorf("a target that changes: %d %s", got.code, got.raw)
	}
}

// Nobody takes over from an agent that is promoted while they do: the agent is held against what the caller may give at the moment of
// the write. The controls are the same requests about an agent of whom something else changes, which are answered 200.
func TestAgentThatIsPromotedMeanwhileIsNotTakenOver(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	keys, agents := h.newProgram(customer, auth.RoleAccessKeyAdmin).token, h.newProgram(customer, auth.RoleAgentAdmin).token
	_, key := h.storeKey(store.NewAccessKey{CustomerID: customer})
	const toKeys, toAgent = "/v1.0/accesskeys", "/v1.0/agents/%s"
	for what, c := range map[string]struct {
		bearer             string
		promote            int64
		method, path, body string // with the agent's id for %s
	}{
		"a key bound to it, by an account":      {keys, 32, http.MethodPost, toKeys, `{"agent_id":"%s"}`},
		"a key bound to it, by a key":           {key, 1, http.MethodPost, toKeys, `{"agent_id":"%s"}`},
		"a key bound to it, by an admin":        {h.acme.adminJWT, 1, http.MethodPost, toKeys, `{"agent_id":"%s"}`},
		"its password, by an account":           {agents, 32, http.MethodPut, toAgent + "/password", `{"password":"mine"}`},
		"its password, by an admin":             {h.acme.adminJWT, 1, http.MethodPut, toAgent + "/password", `{"password":"mine"}`},
		"its username, by an account":           {agents, 32, http.MethodPut, toAgent, `{"username":"mine"}`},
		"its permission, by an account":         {agents, 32, http.MethodPut, toAgent + "/permission", `{"permission":64}`},
		"its permission, by an admin":           {h.acme.adminJWT, 1, http.MethodPut, toAgent + "/permission", `{"permission":64}`},
		"the agent itself, by an account":       {agents, 32, http.MethodDelete, toAgent, ""},
		"the agent itself, by a customer's key": {key, 1, http.MethodDelete, toAgent, ""},
	} {
		for _, promoted := range []bool{true, false} {
			target := h.newAgent(customer, auth.PermissionCustomerAgent)
			req := request{method: c.method, path: strings.Replace(c.path, "%s", target.ID.String(), 1), header: bearing(c.bearer)}
			if c.body != "" {
				req.body = strings.Replace(c.body, "%s", target.ID.String(), 1)
			}
			permission, want := int64(auth.PermissionCustomerManager), http.StatusOK
			if promoted {
				permission, want = c.promote, http.StatusForbidden
			}
			got, before := h.amid(req, `UPDATE agents SET permission = $2 WHERE id = $1`, target.ID, permission)
			if same := h.contents() == before; got.code != want || same != promoted {
				t.Errorf("%s, promoted %t: %d %s; nothing was written: %t", what, promoted, got.code, got.raw, same)
			}
		}
	}
}

// What a caller does to itself is answered 200, though it ends what it was done by: on the server that it was sent to, and it
// counts on the other one.
func TestCallerMayEndAndLessenItself(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	customer := h.acme.customer.ID
	key, token := h.storeKey(store.NewAccessKey{CustomerID: customer})
	gone := h.delete("/v1.0/accesskeys/"+key.ID.String(), token).wants(http.StatusOK).json()
	if gone["id"] != key.ID.String() || gone["tm_delete"] == sentinel {
		t.Errorf("the key that deleted itself: %v", gone)
	}
	h.delete("/v1.0/accesskeys/"+key.ID.String(), token).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	other.rejects(token)

	for _, own := range []request{
		{method: http.MethodPut, path: "/v1.0/me/password", body: map[string]any{"old_password": tenantPassword, "password": "another"}},
		{method: http.MethodPut, path: "/v1.0/agents/%s/password", body: `{"password":"another"}`},
		{method: http.MethodDelete, path: "/v1.0/agents/%s"},
		{method: http.MethodPut, path: "/v1.0/agents/%s/permission", body: `{"permission":16}`},
	} {
		admin := h.newAgent(customer, auth.PermissionCustomerAdmin)
		jwt := h.jwtFor(admin)
		own.path, own.header = strings.Replace(own.path, "%s", admin.ID.String(), 1), bearing(jwt)
		if got := h.send(own).wants(http.StatusOK).json(); got["id"] != admin.ID.String() {
			t.Errorf("%s %s: %v", own.method, own.path, got)
		}
		if strings.HasSuffix(own.path, "/permission") {
			other.get("/v1.0/agents", jwt).refuses(http.StatusForbidden, "PERMISSION_DENIED")
		} else {
			other.rejects(jwt)
		}
	}

	account := h.newProgram(customer, auth.RoleCustomerAdmin)
	accountPath := "/v1.0/service_accounts/" + account.account.ID.String()
	if now := h.put(accountPath, account.token, `{"roles":["agent_viewer"]}`).wants(http.StatusOK).json(); len(now["roles"].([]any)) != 1 {
		t.Errorf("the account that gave roles up: %v", now)
	}
	other.get("/v1.0/accesskeys", account.token).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	account = h.newProgram(customer, auth.RoleCustomerAdmin)
	h.delete("/v1.0/service_accounts/"+account.account.ID.String()+"/keys/"+account.key.ID.String(), account.token).wants(http.StatusOK)
	other.rejects(account.token)
}
