package api_test

import (
	"net/http"
	"testing"
	"time"
)

// A list that has waited for memory is read for a caller that is still one.
func TestListThatWaitedIsNotReadForARevokedCaller(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, revoke := range map[string]func(tn tenant, id string){
		"revoked": func(_ tenant, id string) { h.delete("/v1.0/accesskeys/"+id, h.acme.adminJWT).wants(http.StatusOK) },
		"control": func(tenant, string) {},
	} {
		made := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"name":"n"}`).wants(http.StatusOK).json()
		release, err := h.server.HoldAnswers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan response, 1)
		go func() {
			_, _, got, _ := h.do(request{method: http.MethodGet, path: "/v1.0/accesskeys", header: bearing(made["token"].(string))})
			answered <- got
		}()
		for deadline := time.Now().Add(time.Minute); h.server.WaitingAnswers() != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not wait")
			}
		}
		revoke(h.acme, made["id"].(string))
		release()
		if got, want := <-answered, map[string]int{"revoked": 401, "control": 200}[name]; got.code != want {
			t.Errorf("%s: %d, want %d", name, got.code, want)
		}
	}
}
