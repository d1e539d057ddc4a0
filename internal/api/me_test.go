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
	return fmt.Sprintf(`{"id":"%s","name":"%s","detail":"%s","email":"%s","tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`,
		c.ID, c.Name, c.Detail, c.Email, stamp(c.TmCreate), stamp(c.TmUpdate), stamp(c.TmDelete))
}

func stamp(t time.Time) string { return t.UTC().Format(wireTime) }

// same fails the test unless the body is this one, byte for byte.
func (r response) same(body string) {
	r.t.Helper()
	if r.wants(200); string(r.raw) != body {
		r.t.Errorf("body %s\nwant %s", r.raw, body)
	}
}

// Contract, section 5: GET /v1.0/me: the caller: {id, customer_id, type, username, name, detail, permission, tm_create, tm_update,
// tm_delete}, type being agent, accesskey ... (an access key's own id, username ")"; 7: "GET /me by access key: 200".
func TestMeShowsTheCaller(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, tn := range []tenant{h.acme, h.globex} {
		for bearer, a := range map[string]store.Agent{tn.adminJWT: tn.admin, tn.plainJWT: tn.plain, tn.superJWT: tn.super} {
			h.get("/v1.0/me", bearer).same(fmt.Sprintf(`{"id":"%s","customer_id":"%s","type":"agent","username":"%s","name":"%s",`+
				`"detail":"%s","permission":%d,"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`, a.ID, tn.customer.ID, a.Username,
				a.Name, a.Detail, a.Permission, stamp(a.TmCreate), stamp(a.TmUpdate), sentinel))
		}
		k := tn.key
		key := `{"id":"%s","customer_id":"%s","type":"accesskey","username":"","name":"%s",` +
			`"detail":"","permission":32,"tm_create":"%s","tm_update":"%s","tm_delete":"%s"}`
		h.get("/v1.0/me", tn.token).same(fmt.Sprintf(key, k.ID, tn.customer.ID, k.Name, stamp(k.TmCreate), stamp(k.TmUpdate), sentinel))
		h.get("/v1.0/me?accesskey="+tn.token, "").same(fmt.Sprintf(key, k.ID, tn.customer.ID, k.Name, stamp(k.TmCreate), stamp(k.TmUpdate), sentinel))

		changed := h.put("/v1.0/accesskeys/"+k.ID.String(), tn.token, `{"name":"renamed"}`).wants(200).json()
		h.get("/v1.0/me", tn.token).same(fmt.Sprintf(key, k.ID, tn.customer.ID, "renamed", stamp(k.TmCreate), changed["tm_update"], sentinel))
	}
}

// Contract, section 5: GET /v1.0/customer: the caller's customer, {id, name, detail, email, tm_create, tm_update, tm_delete}.
func TestCustomerShowsTheCallersOwn(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, tn := range []tenant{h.acme, h.globex} {
		for _, bearer := range []string{tn.adminJWT, tn.plainJWT, tn.superJWT, tn.token} {
			h.get("/v1.0/customer", bearer).same(customerBody(tn.customer))
		}
	}
}

// Contract, section 5: GET /v1.0/customers: a list of the customers that the caller may see (its own; ProjectSuperAdmin: all).
func TestCustomersAreThoseThatTheCallerMaySee(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	gone, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, gone.ID)
	for _, tn := range []tenant{h.acme, h.globex} {
		for _, bearer := range []string{tn.adminJWT, tn.plainJWT, tn.token} {
			h.get("/v1.0/customers", bearer).same(`{"result":[` + customerBody(tn.customer) + `],"next_page_token":null}`)
			h.get("/v1.0/customers?page_size=1", bearer).same(`{"result":[` + customerBody(tn.customer) + `],"next_page_token":null}`)
		}
		h.get("/v1.0/customers", tn.superJWT).same(`{"result":[` + customerBody(h.globex.customer) + `,` + customerBody(h.acme.customer) +
			`],"next_page_token":null}`)
	}

	first := h.get("/v1.0/customers?page_size=1", h.acme.superJWT).wants(200)
	token, more := first.json()["next_page_token"].(string)
	if !more || !strings.HasPrefix(string(first.raw), `{"result":[`+customerBody(h.globex.customer)+`],`) {
		t.Fatalf("first page %s", first.raw)
	}
	h.get("/v1.0/customers?page_size=1&page_token="+token, h.acme.superJWT).same(
		`{"result":[` + customerBody(h.acme.customer) + `],"next_page_token":null}`)
	// The token of a page of all customers shows others no more than their own, or nothing.
	h.get("/v1.0/customers?page_token="+token, h.acme.adminJWT).same(`{"result":[` + customerBody(h.acme.customer) + `],"next_page_token":null}`)
	h.get("/v1.0/customers?page_token="+token, h.globex.adminJWT).same(`{"result":[],"next_page_token":null}`)
}

// Contract, section 5 and 4: many customers that share a tm_create are paged as keys are: each exactly once.
func TestCustomersArePagedWithoutLoss(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`INSERT INTO customers (id, name, tm_create) SELECT gen_random_uuid(), 'c', '2026-01-01Z' FROM generate_series(1, 23)`)
	sizes, all := h.pages(h.acme.superJWT, "/v1.0/customers?page_size=5", func() {})
	equalJSON(t, sizes, []int{5, 5, 5, 5, 5})
	seen := map[place]bool{}
	for _, p := range all {
		seen[p] = true
	}
	if len(seen) != 25 {
		t.Errorf("%d customers, want 25", len(seen))
	}
}
