package api_test

import (
	"errors"
	"fmt"
	"testing"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// customerWire is a customer on the wire, byte for byte.
func customerWire(id any, name, detail, email string, create, update, end any) string {
	return fmt.Sprintf(`{"id":"%s","name":"%s","detail":"%s","email":"%s","tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`,
		id, name, detail, email, create, update, end)
}

// ProjectSuperAdmin (1) sees and manages all customers, as a story: a customer, its first admin, and its end.
func TestSuperAdminMakesACustomerAndItsFirstAdmin(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	super := h.acme.superJWT

	made := h.post("/v1.0/customers", super, `{"name":"Initech","detail":"d","email":"post@initech.example"}`)
	body := made.wants(200).json()
	id, create := body["id"].(string), body["tm_create"]
	made.same(customerWire(id, "Initech", "d", "post@initech.example", create, create, sentinel))
	path := "/v1.0/customers/" + id
	h.get(path, super).same(string(made.raw))
	h.get("/v1.0/customers", super).same(lastPage(string(made.raw), customerBody(h.globex.customer), customerBody(h.acme.customer)))
	minimal := h.post("/v1.0/customers", super, `{"name":"n","detail":null}`)
	other := minimal.wants(200).json()
	minimal.same(customerWire(other["id"], "n", "", "", other["tm_create"], other["tm_create"], sentinel))

	h.post("/v1.0/agents", super, map[string]any{
		"customer_id": id, "username": "boss@initech.example", "password": "p", "permission": 32,
	}).wants(200)
	boss := h.loginWith("boss@initech.example", "p").wants(200).json()["token"].(string)
	h.get("/v1.0/customer", boss).same(string(made.raw))
	h.get(path, boss).same(string(made.raw))
	key := h.post("/v1.0/accesskeys", boss, `{}`).wants(200).json()
	if key["customer_id"] != id {
		t.Errorf("its key is %v's", key["customer_id"])
	}
	if agents := h.get("/v1.0/agents?customer_id="+id, super).items(); len(agents) != 1 || agents[0]["username"] != "boss@initech.example" {
		t.Errorf("its agents are %v", agents)
	}

	put := h.put(path, super, `{"name":"Initrode","id":"x","tm_delete":"x"}`)
	update := put.wants(200).json()["tm_update"]
	put.same(customerWire(id, "Initrode", "d", "post@initech.example", create, update, sentinel))
	if !parseTime(t, update).After(parseTime(t, create)) {
		t.Errorf("tm_update %v, tm_create %v", update, create)
	}
	h.get("/v1.0/customer", boss).same(string(put.raw))

	gone := h.delete(path, super)
	end := gone.wants(200).json()["tm_delete"]
	gone.same(customerWire(id, "Initrode", "d", "post@initech.example", create, end, end))
	h.get(path, super).refuses(404, "CUSTOMER_NOT_FOUND")
	h.put(path, super, `{}`).refuses(404, "CUSTOMER_NOT_FOUND")
	h.delete(path, super).refuses(404, "CUSTOMER_NOT_FOUND")
	h.get("/v1.0/agents?customer_id="+id, super).refuses(404, "CUSTOMER_NOT_FOUND")
	h.post("/v1.0/agents", super, map[string]any{"customer_id": id, "username": "u", "password": "p"}).refuses(404, "CUSTOMER_NOT_FOUND")
	h.rejects(boss, key["token"].(string))
}

// Deleting a customer ends every credential of it at once, on every instance, and nobody else's; its usernames are free again.
func TestDeletedCustomersCredentialsEndEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	credentialsOf := func(tn tenant) (all []string) {
		_, bound := h.newBoundKey(tn.plain)
		account, without := h.newProgram(tn.customer.ID, auth.RoleCustomerAdmin), h.newProgram(tn.customer.ID)
		return []string{tn.adminJWT, tn.plainJWT, tn.superJWT, tn.token, bound, account.token, without.token}
	}
	ended, others := credentialsOf(h.globex), credentialsOf(h.acme)
	instance.accepts(append(ended, others...)...)
	h.delete("/v1.0/customers/"+h.globex.customer.ID.String(), h.acme.superJWT).wants(200)
	for _, server := range []*harness{instance, h} {
		server.rejects(ended...)
		server.accepts(others...)
		server.login(h.globex.admin.Username).refuses(401, "INVALID_CREDENTIALS")
		server.login(h.acme.admin.Username).wants(200)
	}
	h.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), h.acme.superJWT).refuses(404, "ACCESSKEY_NOT_FOUND")
	h.get("/v1.0/agents/"+h.globex.admin.ID.String(), h.acme.superJWT).refuses(404, "AGENT_NOT_FOUND")
	taken := h.post("/v1.0/agents", h.acme.adminJWT, map[string]any{"username": h.globex.admin.Username, "password": "p"}).wants(200).json()
	h.delete("/v1.0/agents/"+taken["id"].(string), h.acme.adminJWT).wants(200)

	// What is live of it all the same is void: the customer is looked at too. The control is that it lives again with it.
	for _, table := range []string{"accesskeys", "agents", "service_accounts", "service_account_keys"} {
		h.exec(`UPDATE ` + table + ` SET tm_delete = '9999-01-01 00:00:00+00' WHERE tm_delete < now() AND id <> '` + taken["id"].(string) + `'`)
	}
	instance.rejects(ended...)
	h.exec(`UPDATE customers SET tm_delete = '9999-01-01 00:00:00+00'`)
	instance.accepts(ended...)
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, h.globex.customer.ID)
	instance.rejects(ended...)

	// Nothing comes to be of it any more, for callers that were let in before too: a key, an account, an agent whose username would stay taken.
	ctx, id := t.Context(), h.globex.customer.ID
	_, key := h.store.CreateAccessKey(ctx, store.Operator(), store.NewAccessKey{CustomerID: id, TokenPrefix: "vb_00000000", Expire: 60})
	_, account := h.store.CreateServiceAccount(ctx, store.Operator(), store.NewServiceAccount{CustomerID: id, Roles: []string{}})
	_, agent := h.store.CreateAgent(ctx, store.Operator(), store.NewAgent{CustomerID: id, Username: "late", PasswordHash: tenantHash()})
	for what, err := range map[string]error{"a key": key, "a service account": account, "an agent": agent} {
		if !errors.Is(err, store.ErrNoCustomer) {
			t.Errorf("%s of a deleted customer: %v", what, err)
		}
	}
}
