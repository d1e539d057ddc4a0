package api_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// madeBy makes a key as a caller, bound to an agent or to nobody, and returns it with its token.
func (h *harness) madeBy(bearer string, agent uuid.UUID) (key map[string]any, token string) {
	h.t.Helper()
	body := map[string]any{}
	if agent != uuid.Nil {
		body["agent_id"] = agent
	}
	key = h.post("/v1.0/accesskeys", bearer, body).wants(http.StatusOK).json()
	return key, key["token"].(string)
}

// Each key shows who made it, in every answer, to every caller, also after the maker is gone: it is the last field, and its maker's own
// id. Null are keys that nobody with a credential made, as the command line, bootstrapping and a sign-up do, and those of before.
func TestKeyShowsWhoMadeIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID
	program := h.newProgram(customer, auth.RoleAccessKeyAdmin)
	mine, mineToken := h.newBoundKey(h.acme.plain)
	wide, wideToken := h.storeKey(store.NewAccessKey{CustomerID: customer})
	first, firstToken := h.madeBy(program.token, uuid.Nil)
	for what, c := range map[string]struct {
		bearer string
		agent  uuid.UUID
		kind   string
		id     any
	}{
		"an agent":                {h.acme.adminJWT, uuid.Nil, "agent", h.acme.admin.ID},
		"an agent, for itself":    {h.acme.plainJWT, h.acme.plain.ID, "agent", h.acme.plain.ID},
		"a super admin":           {h.globex.superJWT, h.acme.plain.ID, "agent", h.globex.super.ID},
		"a user key":              {mineToken, h.acme.plain.ID, "accesskey", mine.ID},
		"a customer-wide key":     {wideToken, uuid.Nil, "accesskey", wide.ID},
		"a service account":       {program.token, uuid.Nil, "service_account", program.account.ID},
		"a service account's key": {firstToken, uuid.Nil, "accesskey", first["id"]},
	} {
		key, _ := h.madeBy(c.bearer, c.agent)
		path := "/v1.0/accesskeys/" + key["id"].(string)
		want := map[string]any{"type": c.kind, "id": c.id}
		equalJSON(t, key["created_by"], want)
		for _, got := range []response{
			h.get(path, h.acme.adminJWT), h.put(path, h.acme.token, `{"name":"other","created_by":{"type":"agent","id":"`+absentID+`"}}`),
			h.delete(path, h.acme.adminJWT),
		} {
			equalJSON(t, []any{what, got.wants(http.StatusOK).json()["created_by"]}, []any{what, want})
		}
	}
	for _, id := range []uuid.UUID{h.acme.key.ID, wide.ID} {
		if made, there := h.get("/v1.0/accesskeys/"+id.String(), h.acme.adminJWT).wants(http.StatusOK).json()["created_by"]; made != nil || !there {
			t.Errorf("a key that nobody with a credential made: %v", made)
		}
	}
	// A maker that is gone stays named.
	key, _ := h.madeBy(wideToken, uuid.Nil)
	h.delete("/v1.0/accesskeys/"+wide.ID.String(), h.acme.adminJWT).wants(http.StatusOK)
	equalJSON(t, h.get("/v1.0/accesskeys/"+key["id"].(string), h.acme.adminJWT).wants(http.StatusOK).json()["created_by"],
		map[string]any{"type": "accesskey", "id": wide.ID})
}

// descent is a service account with what came of it: keys that it made, and keys that those made, customer-wide and bound.
type descent struct {
	account program
	tokens  map[string]string
	ids     map[string]string
}

// newDescent has an account with a role make keys, some bound to this agent, which has none of an admin's bits yet.
func (h *harness) newDescent(customer uuid.UUID, role auth.Role, agent uuid.UUID) descent {
	h.t.Helper()
	d := descent{account: h.newProgram(customer, role), tokens: map[string]string{}, ids: map[string]string{}}
	keep := func(name, bearer string, agent uuid.UUID) {
		key, token := h.madeBy(bearer, agent)
		d.ids[name], d.tokens[name] = key["id"].(string), token
	}
	keep("wide", d.account.token, uuid.Nil)
	keep("bound", d.account.token, agent)
	keep("wide, by wide", d.tokens["wide"], uuid.Nil)
	keep("bound, by wide", d.tokens["wide"], agent)
	keep("bound, by bound", d.tokens["bound"], agent)
	keep("wide, by wide, by wide", d.tokens["wide, by wide"], uuid.Nil)
	return d
}

// A key that a service account made ends with it, and so does what was made by that key: on every server from the answer on, and
// they are shown as deleted. The control is what an agent made, and another account.
func TestKeysOfAServiceAccountEndWithIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	customer := h.acme.customer.ID
	d, sibling := h.newDescent(customer, auth.RoleAccessKeyAdmin, h.acme.plain.ID), h.newDescent(customer, auth.RoleAccessKeyAdmin, h.acme.plain.ID)
	_, byAdmin := h.madeBy(h.acme.adminJWT, h.acme.plain.ID)
	other.accepts(slices.Collect(maps.Values(d.tokens))...)
	h.delete("/v1.0/service_accounts/"+d.account.account.ID.String(), h.acme.adminJWT).wants(http.StatusOK)
	for _, server := range []*harness{other, h} {
		for name, token := range d.tokens {
			server.rejects(token)
			server.get("/v1.0/accesskeys/"+d.ids[name], h.acme.adminJWT).refuses(http.StatusNotFound, "ACCESSKEY_NOT_FOUND")
		}
		server.accepts(append(slices.Collect(maps.Values(sibling.tokens)), byAdmin)...)
	}
	listed, _ := h.get("/v1.0/accesskeys?page_size=100", h.acme.adminJWT).keyIDs()
	for name, id := range d.ids {
		if slices.Contains(listed, id) {
			t.Errorf("%s is listed", name)
		}
	}
	// By hand, too: what is live of an account that isn't, is not accepted.
	h.exec(`UPDATE service_accounts SET tm_delete = now() WHERE id = $1`, sibling.account.account.ID)
	for name, token := range sibling.tokens {
		other.rejects(token)
		if got := h.get("/v1.0/me", token); got.code == http.StatusOK || h.logLine(got.header.Get("X-Request-Id"))["cause"] != "owner deleted" {
			t.Errorf("%s: the log's cause is not its owner's end", name)
		}
	}
}

// A key that a service account made has at most the rights that the account has now, whatever it was made with and whatever becomes of
// the agent that it is bound to: as one matrix of what the account has and what the key may. Each cell says, for the customer-wide
// keys and the bound ones, which permission /me, checks and introspection show, and what the key may: list keys (k), list the keys
// of its agent (o), make a customer-wide key (m), make a key of its agent (b), list agents (a), make one (n), list accounts (s).
func TestKeyOfAServiceAccountHasAtMostItsRightsNow(t *testing.T) {
	t.Parallel()
	const keys, viewsKeys, agents, all = auth.RoleAccessKeyAdmin, auth.RoleAccessKeyViewer, auth.RoleAgentAdmin, auth.RoleCustomerAdmin
	for _, c := range []struct {
		made        auth.Role   // what the account had when it made the keys
		has         []auth.Role // what it has now
		agent       int64       // what the agent has now
		wide, bound string
	}{
		{keys, []auth.Role{keys}, 16, "0 komb", "16 ob"},
		{keys, []auth.Role{keys}, 32, "0 kom", "0 ob"},
		{keys, []auth.Role{keys}, 32 | 64, "0 kom", "64 ob"},
		{keys, []auth.Role{keys}, 1, "0 kom", "0 ob"},
		{keys, []auth.Role{viewsKeys}, 32, "0 ko", "0 o"},
		{keys, []auth.Role{agents}, 32, "0 ", "0 "},
		{keys, []auth.Role{}, 32, "0 ", "0 "},
		{keys, []auth.Role{}, 16, "0 ", "0 "},
		{keys, []auth.Role{all}, 32, "0 kom", "32 kombans"},
		{keys, []auth.Role{all}, 1, "0 kom", "0 ob"},
		{all, []auth.Role{all}, 32, "32 kombans", "32 kombans"},
		{all, []auth.Role{all}, 16, "32 kombans", "16 ob"},
		{all, []auth.Role{keys}, 32, "0 kom", "0 ob"},
		{all, []auth.Role{viewsKeys, agents}, 32, "0 koan", "0 o"},
		{all, []auth.Role{}, 32, "0 ", "0 "},
	} {
		t.Run(fmt.Sprint(c.made, " ", c.has, " ", c.agent), func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			other := h.instance()
			agent := h.newAgent(h.acme.customer.ID, auth.PermissionCustomerAgent)
			d := h.newDescent(h.acme.customer.ID, c.made, agent.ID)
			other.accepts(slices.Collect(maps.Values(d.tokens))...) // remembered as they are before
			h.put("/v1.0/service_accounts/"+d.account.account.ID.String(), h.acme.adminJWT, map[string]any{"roles": c.has}).wants(http.StatusOK)
			h.put("/v1.0/agents/"+agent.ID.String()+"/permission", h.acme.superJWT, map[string]any{"permission": c.agent}).wants(http.StatusOK)
			for name, token := range d.tokens {
				want := c.wide
				if name[0] == 'b' {
					want = c.bound
				}
				for _, server := range []*harness{other, h} {
					if got := server.powers(token, agent.ID); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
			}
		})
	}
}

// powers are what a key may, in the letters of TestKeyOfAServiceAccountHasAtMostItsRightsNow, behind the permission that it shows.
func (h *harness) powers(token string, agent uuid.UUID) string {
	h.t.Helper()
	me := h.get("/v1.0/me", token).wants(http.StatusOK).json()
	shown := fmt.Sprint(me["permission"])
	if got := h.get("/auth/verify", token).wants(http.StatusOK).header.Get("X-Auth-Permission"); got != shown {
		h.t.Errorf("/me shows the permission %s, a check %s", shown, got)
	}
	if got := fmt.Sprint(h.introspect(h.acme.adminJWT, token).wants(http.StatusOK).json()["permission"]); got != shown {
		h.t.Errorf("/me shows the permission %s, introspection %s", shown, got)
	}
	has := int(me["permission"].(float64))
	for name, bit := range map[string]int{"admin": 32 | 1, "superadmin": 1, "manager": 64 | 32 | 1} {
		if got := h.get("/auth/verify?permission="+name, token).code == http.StatusOK; got != (has&bit != 0) {
			h.t.Errorf("with the permission %s a check for %s passes: %t", shown, name, got)
		}
	}
	powers := shown + " "
	for _, power := range []struct {
		letter, method, path string
		body                 any
	}{
		{"k", http.MethodGet, "accesskeys", nil},
		{"o", http.MethodGet, "accesskeys?agent_id=" + agent.String(), nil},
		{"m", http.MethodPost, "accesskeys", `{"expire":60}`},
		{"b", http.MethodPost, "accesskeys", map[string]any{"agent_id": agent, "expire": 60}},
		{"a", http.MethodGet, "agents", nil},
		{"n", http.MethodPost, "agents", map[string]any{"username": uuid.NewString(), "password": "p"}},
		{"s", http.MethodGet, "service_accounts", nil},
	} {
		switch got := h.send(request{method: power.method, path: "/v1.0/" + power.path, body: power.body, header: bearing(token)}); got.code {
		case http.StatusOK:
			powers += power.letter
		case http.StatusForbidden:
		default:
			h.t.Errorf("%s: %d %s", power.letter, got.code, got.raw)
		}
	}
	return powers
}
