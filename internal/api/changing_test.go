package api_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/google/uuid"

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
		method, path string
		body         any
		made         string // what must be there once more
	}{
		"insert":   {http.MethodPost, "/v1.0/accesskeys", `{}`, `SELECT count(*) FROM accesskeys WHERE customer_id = $1`},
		"insert 2": {http.MethodPost, "/v1.0/service_accounts/%s/keys", `{"algorithm":"EdDSA"}`, `SELECT count(*) FROM service_account_keys WHERE $1::uuid IS NOT NULL`},
		"change":   {http.MethodPut, "/v1.0/accesskeys/" + h.acme.key.ID.String(), `{"name":"changed"}`, ""},
	} {
		admin := h.newAgent(customer, auth.PermissionCustomerAdmin)
		if what == "insert 2" {
			c.path = fmt.Sprintf(c.path, h.newProgram(customer).account.ID)
		}
		count := func() (n int) {
			if c.made != "" {
				_, _ = fmt.Sscan(h.text(c.made, customer), &n)
			}
			return n
		}
		before := count()
		got, _ := h.amid(request{method: c.method, path: c.path, body: c.body, header: bearing(h.jwtFor(admin))},
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
	for what, c := range map[string]struct {
		bearer  string
		promote int64
		method  string
		path    string // behind the agent's
		body    func(id uuid.UUID) any
	}{
		"a key bound to it, by an account":      {keys, 32, http.MethodPost, "", func(id uuid.UUID) any { return map[string]any{"agent_id": id} }},
		"a key bound to it, by a key":           {key, 1, http.MethodPost, "", func(id uuid.UUID) any { return map[string]any{"agent_id": id} }},
		"a key bound to it, by an admin":        {h.acme.adminJWT, 1, http.MethodPost, "", func(id uuid.UUID) any { return map[string]any{"agent_id": id} }},
		"its password, by an account":           {agents, 32, http.MethodPut, "/password", func(uuid.UUID) any { return `{"password":"mine"}` }},
		"its password, by an admin":             {h.acme.adminJWT, 1, http.MethodPut, "/password", func(uuid.UUID) any { return `{"password":"mine"}` }},
		"its username, by an account":           {agents, 32, http.MethodPut, "/", func(uuid.UUID) any { return `{"username":"mine"}` }},
		"its permission, by an account":         {agents, 32, http.MethodPut, "/permission", func(uuid.UUID) any { return `{"permission":64}` }},
		"its permission, by an admin":           {h.acme.adminJWT, 1, http.MethodPut, "/permission", func(uuid.UUID) any { return `{"permission":64}` }},
		"the agent itself, by an account":       {agents, 32, http.MethodDelete, "/", func(uuid.UUID) any { return nil }},
		"the agent itself, by a customer's key": {key, 1, http.MethodDelete, "/", func(uuid.UUID) any { return nil }},
	} {
		for _, promoted := range []bool{true, false} {
			target := h.newAgent(customer, auth.PermissionCustomerAgent)
			path := "/v1.0/accesskeys"
			if c.path != "" {
				path = "/v1.0/agents/" + target.ID.String()
				if c.path != "/" {
					path += c.path
				}
			}
			permission := int64(auth.PermissionCustomerManager)
			if promoted {
				permission = c.promote
			}
			got, before := h.amid(request{method: c.method, path: path, body: c.body(target.ID), header: bearing(c.bearer)},
				`UPDATE agents SET permission = $2 WHERE id = $1`, target.ID, permission)
			same := h.contents() == before
			if promoted && (got.code != http.StatusForbidden || !same) {
				t.Errorf("%s: %d %s; nothing was written: %t", what, got.code, got.raw, same)
			}
			if !promoted && (got.code != http.StatusOK || same) {
				t.Errorf("%s, of one who is not promoted: %d %s; nothing was written: %t", what, got.code, got.raw, same)
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
	other.get("/v1.0/me", token).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")

	admin := h.newAgent(customer, auth.PermissionCustomerAdmin)
	path, jwt := "/v1.0/agents/"+admin.ID.String(), h.jwtFor(admin)
	own := h.put("/v1.0/me/password", jwt, map[string]any{"old_password": tenantPassword, "password": "another"}).wants(http.StatusOK).json()
	if own["id"] != admin.ID.String() {
		t.Errorf("the agent that set its password: %v", own)
	}
	other.get("/v1.0/me", jwt).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	jwt = h.jwtFor(admin)
	if me := h.put(path+"/permission", jwt, map[string]any{"permission": 16}).wants(http.StatusOK).json(); me["permission"] != 16.0 {
		t.Errorf("the agent that demoted itself: %v", me)
	}
	other.get(path, jwt).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	second := h.newAgent(customer, auth.PermissionCustomerAdmin)
	jwt = h.jwtFor(second)
	h.put("/v1.0/agents/"+second.ID.String()+"/password", jwt, map[string]any{"password": "another"}).wants(http.StatusOK)
	other.get("/v1.0/me", jwt).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	jwt = h.jwtFor(second)
	h.delete("/v1.0/agents/"+second.ID.String(), jwt).wants(http.StatusOK)
	other.get("/v1.0/me", jwt).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")

	account := h.newProgram(customer, auth.RoleCustomerAdmin)
	accountPath := "/v1.0/service_accounts/" + account.account.ID.String()
	if now := h.put(accountPath, account.token, `{"roles":["agent_viewer"]}`).wants(http.StatusOK).json(); len(now["roles"].([]any)) != 1 {
		t.Errorf("the account that gave roles up: %v", now)
	}
	other.get("/v1.0/accesskeys", account.token).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	account = h.newProgram(customer, auth.RoleCustomerAdmin)
	h.delete("/v1.0/service_accounts/"+account.account.ID.String()+"/keys/"+account.key.ID.String(), account.token).wants(http.StatusOK)
	other.get("/v1.0/me", account.token).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
}

// Of deletions of one key at once, from both servers, by itself and by others, one is a 200. The others find no such key, or, where it
// is their own, may be nobody any more.
func TestOfDeletionsAtOnceOneIsAnswered200(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	servers := []*harness{h, h.instance()}
	for range 5 {
		key, token := h.storeKey(store.NewAccessKey{CustomerID: h.acme.customer.ID})
		var mu sync.Mutex
		var all sync.WaitGroup
		codes := map[int]int{}
		for i := range 8 {
			bearer := map[bool]string{true: token, false: h.acme.adminJWT}[i%4 < 2]
			all.Go(func() {
				_, _, got, err := servers[i%2].do(request{method: http.MethodDelete, path: "/v1.0/accesskeys/" + key.ID.String(), header: bearing(bearer)})
				mu.Lock()
				defer mu.Unlock()
				codes[got.code]++
				if err != nil || got.code == http.StatusUnauthorized && bearer != token {
					t.Errorf("by itself, %t: %d, %v", bearer == token, got.code, err)
				}
			})
		}
		all.Wait()
		if codes[http.StatusOK] != 1 || codes[http.StatusOK]+codes[http.StatusNotFound]+codes[http.StatusUnauthorized] != 8 {
			t.Errorf("answers: %v", codes)
		}
	}
}
