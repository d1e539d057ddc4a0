package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/store"
)

const wireTime = "2006-01-02T15:04:05.000000Z"

func customerBody(c store.Customer) string {
	return customerWire(c.ID, c.Name, c.Detail, c.Email, stamp(c.TmCreate), stamp(c.TmUpdate), stamp(c.TmDelete))
}

func stamp(t time.Time) string { return t.UTC().Format(wireTime) }

// same fails the test unless the body is this one, byte for byte.
func (r response) same(body string) {
	r.t.Helper()
	if r.wants(200); string(r.raw) != body {
		r.t.Errorf("body %s\nwant %s", r.raw, body)
	}
}

// lastPage is a list of these on the wire, with no page behind it.
func lastPage(items ...string) string {
	return `{"result":[` + strings.Join(items, ",") + `],"next_page_token":null}`
}

// Contract, section 5: GET /v1.0/me: the caller: {id, customer_id, type, username, name, detail, permission, tm_create, tm_update,
// tm_delete}, type being agent, accesskey ... (an access key's own id, username ")"; 7: "GET /me by access key: 200".
func TestMeShowsTheCaller(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const me = `{"id":"%s","customer_id":"%s","type":"%s","username":"%s","name":"%s","detail":"%s","permission":%d,` +
		`"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`
	for _, tn := range []tenant{h.acme, h.globex} {
		for bearer, a := range map[string]store.Agent{tn.adminJWT: tn.admin, tn.plainJWT: tn.plain, tn.superJWT: tn.super} {
			h.get("/v1.0/me", bearer).same(fmt.Sprintf(me, a.ID, tn.customer.ID, "agent", a.Username, a.Name, a.Detail, a.Permission,
				stamp(a.TmCreate), stamp(a.TmUpdate), sentinel))
		}
		key := func(name string, update any) string {
			return fmt.Sprintf(me, tn.key.ID, tn.customer.ID, "accesskey", "", name, "", 32, stamp(tn.key.TmCreate), update, sentinel)
		}
		h.get("/v1.0/me", tn.token).same(key(tn.key.Name, stamp(tn.key.TmUpdate)))
		h.get("/v1.0/me?accesskey="+tn.token, "").same(key(tn.key.Name, stamp(tn.key.TmUpdate)))
		changed := h.put("/v1.0/accesskeys/"+tn.key.ID.String(), tn.token, `{"name":"renamed"}`).wants(200).json()
		h.get("/v1.0/me", tn.token).same(key("renamed", changed["tm_update"]))
	}
}

// Contract, section 5: GET /v1.0/customer: the caller's customer, {id, name, detail, email, tm_create, tm_update, tm_delete}; GET
// /v1.0/customers: a list of the customers that the caller may see (its own; ProjectSuperAdmin: all).
func TestCustomersAreThoseThatTheCallerMaySee(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	gone, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, gone.ID)
	acme, globex := customerBody(h.acme.customer), customerBody(h.globex.customer)
	for _, tn := range []tenant{h.acme, h.globex} {
		for _, bearer := range []string{tn.adminJWT, tn.plainJWT, tn.token} {
			h.get("/v1.0/customer", bearer).same(customerBody(tn.customer))
			h.get("/v1.0/customers", bearer).same(lastPage(customerBody(tn.customer)))
			h.get("/v1.0/customers?page_size=1", bearer).same(lastPage(customerBody(tn.customer)))
		}
		h.get("/v1.0/customer", tn.superJWT).same(customerBody(tn.customer))
		h.get("/v1.0/customers", tn.superJWT).same(lastPage(globex, acme))
	}

	first := h.get("/v1.0/customers?page_size=1", h.acme.superJWT).wants(200)
	token, more := first.json()["next_page_token"].(string)
	if !more || !strings.HasPrefix(string(first.raw), `{"result":[`+globex+`],`) {
		t.Fatalf("first page %s", first.raw)
	}
	h.get("/v1.0/customers?page_size=1&page_token="+token, h.acme.superJWT).same(lastPage(acme))
	// The token of a page of all customers shows others no more than their own, or nothing.
	h.get("/v1.0/customers?page_token="+token, h.acme.adminJWT).same(lastPage(acme))
	h.get("/v1.0/customers?page_token="+token, h.globex.adminJWT).same(lastPage())
}
