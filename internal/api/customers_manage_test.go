package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
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
	h.get("/v1.0/customers", super).same(`{"result":[` + string(made.raw) + `,` + customerBody(h.globex.customer) + `,` +
		customerBody(h.acme.customer) + `],"next_page_token":null}`)
	minimal := h.post("/v1.0/customers", super, `{"name":"n","detail":null}`)
	other := minimal.wants(200).json()
	minimal.same(customerWire(other["id"], "n", "", "", other["tm_create"], other["tm_create"], sentinel))

	h.post("/v1.0/agents", super, map[string]any{
		"customer_id": id, "username": "boss@initech.example", "password": "p", "permission": 32,
	}).wants(200)
	login := h.post("/auth/login", "", `{"username":"boss@initech.example","password":"p"}`).wants(200)
	boss := login.json()["token"].(string)
	h.get("/v1.0/customer", boss).same(string(made.raw))
	h.get(path, boss).same(string(made.raw))
	key := h.post("/v1.0/accesskeys", boss, `{}`).wants(200).json()
	if key["customer_id"] != id {
		t.Errorf("its key is %v's", key["customer_id"])
	}
	agents := h.get("/v1.0/agents?customer_id="+id, super).wants(200).json()["result"].([]any)
	if len(agents) != 1 || agents[0].(map[string]any)["username"] != "boss@initech.example" {
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
	h.get("/v1.0/me", boss).refuses(401, "INVALID_CREDENTIALS")
	h.get("/v1.0/me", key["token"].(string)).refuses(401, "INVALID_CREDENTIALS")
}

// ProjectSuperAdmin manages customers, and nobody else does, not even its own. What was refused has changed nothing. The matrix has further
// callers.
func TestOnlySuperAdminsManageCustomers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	every := h.newAgent(h.acme.customer.ID, auth.PermissionAll&^auth.PermissionProjectSuperAdmin)
	_, bound := h.newBoundKey(h.acme.super)
	for what, c := range map[string]struct {
		bearer string
		may    bool
	}{
		"key of a super":  {bound, true},
		"every other bit": {h.jwtFor(every), false},
	} {
		code := map[bool]int{true: 200, false: 403}[c.may]
		for _, tn := range []tenant{h.acme, h.globex} {
			name := what + uuid.NewString()
			path := "/v1.0/customers/" + tn.customer.ID.String()
			if got := h.put(path, c.bearer, map[string]any{"name": name}); got.code != code {
				t.Errorf("%s changes %s: %d", what, tn.customer.Name, got.code)
			}
			if now := h.get(path, h.acme.superJWT).wants(200).json()["name"]; (now == name) != c.may {
				t.Errorf("%s changed %s: its name is %v", what, tn.customer.Name, now)
			}
			if !c.may {
				h.delete(path, c.bearer).refuses(403, "PERMISSION_DENIED")
			}
		}
		made := h.post("/v1.0/customers", c.bearer, `{"name":"made"}`)
		if made.code != code {
			t.Errorf("%s makes a customer: %d", what, made.code)
		}
		if seen := len(h.get("/v1.0/customers", c.bearer).wants(200).json()["result"].([]any)); (seen > 1) != c.may {
			t.Errorf("%s sees %d customers", what, seen)
		}
		if c.may {
			h.delete("/v1.0/customers/"+made.json()["id"].(string), c.bearer).wants(200)
		}
	}
	if live := h.text(`SELECT count(*) FROM customers WHERE tm_delete > now()`); live != "2" {
		t.Errorf("%s customers are left, want 2", live)
	}
}

// Contract, section 4: for customers: what is not valid is a 400 that names the field.
func TestCustomerFieldsThatAreNotFitAreNamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	path := "/v1.0/customers/" + h.acme.customer.ID.String()
	long := strings.Repeat("x", 256)
	for body, field := range map[string]string{
		`{}`:                                  "name",
		`{"name":null}`:                       "name",
		`{"name":""}`:                         "name",
		`{"name":"` + long + `"}`:             "name",
		`{"name":"n","email":"` + long + `"}`: "email",
		`{"name":"n","detail":1}`:             "detail",
	} {
		refusedFields(t, h.post("/v1.0/customers", h.acme.superJWT, body), field)
	}
	refusedFields(t, h.put(path, h.acme.superJWT, `{"name":""}`), "name")
	h.get("/v1.0/customers/acme", h.acme.superJWT).refuses(400, "INVALID_ID")
	h.put(path, h.acme.superJWT, `{}`).wants(200)
}

// Deleting a customer ends every credential of it at once, on every instance, and nobody else's; its usernames are free again.
func TestDeletedCustomersCredentialsEndEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	instance := h.instance()
	credentialsOf := func(tn tenant) map[string]string {
		_, bound := h.newBoundKey(tn.admin)
		return map[string]string{
			"admin": tn.adminJWT, "plain": tn.plainJWT, "super": tn.superJWT, "key": tn.token, "user key": bound,
			"service account": h.newProgram(tn.customer.ID, auth.RoleCustomerAdmin).token,
			"without roles":   h.newProgram(tn.customer.ID).token,
		}
	}
	ended, others := credentialsOf(h.globex), credentialsOf(h.acme)
	for _, bearers := range []map[string]string{ended, others} {
		for _, bearer := range bearers {
			instance.get("/v1.0/me", bearer).wants(200)
		}
	}
	h.delete("/v1.0/customers/"+h.globex.customer.ID.String(), h.acme.superJWT).wants(200)
	for _, server := range []*harness{instance, h} {
		for what, bearer := range ended {
			if got := server.get("/v1.0/me", bearer); got.code != 401 {
				t.Errorf("%s: %d", what, got.code)
			}
		}
		for what, bearer := range others {
			if got := server.get("/v1.0/me", bearer); got.code != 200 {
				t.Errorf("another customer's %s: %d", what, got.code)
			}
		}
		server.login(h.globex.admin.Username).refuses(401, "INVALID_CREDENTIALS")
		server.login(h.acme.admin.Username).wants(200)
	}
	// Nothing of it is left, and all of the other customer's is.
	for _, table := range []string{"customers", "agents", "accesskeys", "service_accounts"} {
		column := map[bool]string{true: "id", false: "customer_id"}[table == "customers"]
		live := `SELECT count(*) FROM ` + table + ` WHERE ` + column + ` = $1 AND tm_delete > now()`
		if got := h.text(live, h.globex.customer.ID); got != "0" {
			t.Errorf("%s rows of %s are left", got, table)
		}
		if got := h.text(live, h.acme.customer.ID); got == "0" {
			t.Errorf("no row of the other customer's %s is left", table)
		}
	}
	keys := `SELECT count(*) FROM service_account_keys k JOIN service_accounts a ON a.id = k.account_id
		WHERE a.customer_id = $1 AND k.tm_delete > now()`
	if gone, left := h.text(keys, h.globex.customer.ID), h.text(keys, h.acme.customer.ID); gone != "0" || left != "2" {
		t.Errorf("%s keys of its service accounts are left, and %s of the other's", gone, left)
	}
	for path, reason := range map[string]string{
		"accesskeys/" + h.globex.key.ID.String(): "ACCESSKEY_NOT_FOUND",
		"agents/" + h.globex.admin.ID.String():   "AGENT_NOT_FOUND",
	} {
		h.get("/v1.0/"+path, h.acme.superJWT).refuses(404, reason)
	}
	h.post("/v1.0/agents", h.acme.adminJWT, map[string]any{"username": h.globex.admin.Username, "password": "p"}).wants(200)

	// What is live of it all the same is void: the customer is looked at too. The control is that it lives again with it.
	_, err := h.sql.Exec(t.Context(), `
		UPDATE accesskeys SET tm_delete = '9999-01-01 00:00:00+00';
		UPDATE agents SET tm_delete = '9999-01-01 00:00:00+00' WHERE username NOT LIKE 'admin@globex%';
		UPDATE service_accounts SET tm_delete = '9999-01-01 00:00:00+00';
		UPDATE service_account_keys SET tm_delete = '9999-01-01 00:00:00+00'`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	void := func(code int) {
		t.Helper()
		for what, bearer := range ended {
			if got := instance.get("/v1.0/me", bearer); got.code != code && what != "admin" && what != "user key" {
				t.Errorf("%s, live of a customer that is deleted, or that is again: %d, want %d", what, got.code, code)
			}
		}
	}
	h.exec(`UPDATE customers SET name = name`) // until it is applied
	void(401)
	h.exec(`UPDATE customers SET tm_delete = '9999-01-01 00:00:00+00'`)
	void(200)
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, h.globex.customer.ID)
	void(401)

	// Nothing comes to be of it any more, for callers that were let in before too: a key, an account, an agent whose username would stay taken.
	_, err = h.store.CreateAccessKey(t.Context(), store.Operator(), store.NewAccessKey{
		CustomerID: h.globex.customer.ID, TokenPrefix: "vb_00000000", Expire: 60,
	})
	if !errors.Is(err, store.ErrNoCustomer) {
		t.Errorf("a key of a deleted customer: %v", err)
	}
	_, err = h.store.CreateServiceAccount(t.Context(), store.Operator(), store.NewServiceAccount{CustomerID: h.globex.customer.ID, Roles: []string{}})
	if !errors.Is(err, store.ErrNoCustomer) {
		t.Errorf("a service account of a deleted customer: %v", err)
	}
	_, err = h.store.CreateAgent(t.Context(), store.Operator(), store.NewAgent{CustomerID: h.globex.customer.ID, Username: "late", PasswordHash: secret.New("$argon2id$")})
	if !errors.Is(err, store.ErrNoCustomer) {
		t.Errorf("an agent of a deleted customer: %v", err)
	}
}
