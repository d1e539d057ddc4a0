package api_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
)

// Making a password hash or key pair on /v1.0 has its bound per customer, and an account's ten keys are counted before a pair is made. The
// test has the customer's turn; what needs one is a 429, and only that.
func TestCustomersSlowWorkIsDoneOneAtATime(t *testing.T) {
	t.Parallel()
	turns := auth.NewCustomerTurns(time.Millisecond)
	h := newHarness(t, func(c *api.Config) { c.CustomerTurns = turns })
	room, full := h.newAccount(h.acme.adminJWT, auth.EdDSA), h.newAccount(h.acme.adminJWT, auth.EdDSA)
	for range 9 {
		h.post("/v1.0/service_accounts/"+full.id+"/keys", h.acme.adminJWT, `{"algorithm":"EdDSA"}`).wants(200)
	}
	_, public := h.newAccount(h.globex.adminJWT, auth.EdDSA).public()
	plain := "/v1.0/agents/" + h.acme.plain.ID.String()
	slowWork := func(tn tenant, account *account) map[string]response {
		t.Helper()
		return map[string]response{
			"an agent":      h.post("/v1.0/agents", tn.adminJWT, map[string]any{"username": tn.customer.Name + time.Now().String(), "password": "p"}),
			"one by a key":  h.post("/v1.0/agents", tn.token, map[string]any{"username": tn.customer.Name + time.Now().String(), "password": "p"}),
			"a password":    h.put("/v1.0/agents/"+tn.plain.ID.String()+"/password", tn.adminJWT, map[string]any{"password": tenantPassword}),
			"its own":       h.put("/v1.0/me/password", h.jwtFor(tn.plain), map[string]any{"old_password": tenantPassword, "password": tenantPassword}),
			"an RSA pair":   h.post("/v1.0/service_accounts/"+account.id+"/keys", tn.adminJWT, ""),
			"an EdDSA pair": h.post("/v1.0/service_accounts/"+account.id+"/keys", tn.token, `{"algorithm":"EdDSA"}`),
			"an ES256 pair": h.post("/v1.0/service_accounts/"+account.id+"/keys", tn.token, `{"algorithm":"ES256"}`),
		}
	}
	release, err := turns.Take(t.Context(), h.acme.customer.ID)
	if err != nil {
		t.Fatal(err)
	}
	before := h.contents()
	for what, got := range slowWork(h.acme, room) {
		if got.code != http.StatusTooManyRequests {
			t.Errorf("%s: %d %s", what, got.code, got.raw)
			continue
		}
		got.limitedBy("customer")
	}
	h.post("/v1.0/service_accounts/"+full.id+"/keys", h.acme.adminJWT, "").conflicts("FAILED_PRECONDITION", "TOO_MANY_KEYS")
	if h.contents() != before {
		t.Error("something was written")
	}
	h.post("/v1.0/service_accounts/"+room.id+"/keys", h.acme.adminJWT, map[string]any{"public_key": public}).wants(200)
	h.put(plain, h.acme.adminJWT, `{"name":"another"}`).wants(200)
	h.login(h.acme.admin.Username).wants(200)
	for what, got := range slowWork(h.globex, h.newAccount(h.globex.adminJWT, auth.EdDSA)) {
		if got.code != http.StatusOK {
			t.Errorf("another customer, %s: %d %s", what, got.code, got.raw)
		}
	}
	release()
	for what, got := range slowWork(h.acme, room) {
		if got.code != http.StatusOK {
			t.Errorf("afterwards, %s: %d %s", what, got.code, got.raw)
		}
	}
}

// "So that one customer cannot occupy the CPU": a flood of one customer's leaves the turns to others, who log in and make agents meanwhile.
func TestFloodOfOneCustomersPasswordsLeavesTheTurnsToOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t, hashing(t, 1, time.Second), func(c *api.Config) { c.CustomerTurns = auth.NewCustomerTurns(time.Second) }) // as the program on two cores
	var stop atomic.Bool
	var flood sync.WaitGroup
	var limited, unavailable atomic.Int64
	for range 100 {
		flood.Go(func() {
			for !stop.Load() {
				_, _, got, err := h.do(request{
					method: http.MethodPut, path: "/v1.0/agents/" + h.acme.plain.ID.String() + "/password", body: `{"password":"p"}`,
					header: bearing(h.acme.adminJWT),
				})
				switch {
				case err != nil:
					t.Error(err)
					return
				case got.code == http.StatusTooManyRequests:
					limited.Add(1)
				case got.code == http.StatusServiceUnavailable:
					unavailable.Add(1)
				}
			}
		})
	}
	for limited.Load()+unavailable.Load() == 0 && !t.Failed() { // it is under way
		h.get("/v1.0/me", h.globex.token).wants(200)
	}
	for range 5 {
		for what, got := range map[string]response{
			"a login":  h.login(h.globex.admin.Username),
			"an agent": h.post("/v1.0/agents", h.globex.adminJWT, map[string]any{"username": time.Now().String(), "password": "p"}),
		} {
			if got.code != http.StatusOK {
				t.Errorf("another customer, %s: %d %s", what, got.code, got.raw)
			}
		}
	}
	stop.Store(true)
	flood.Wait()
	if limited.Load() == 0 {
		t.Error("the flood was not limited")
	}
}
