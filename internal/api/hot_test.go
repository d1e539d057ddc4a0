package api_test

import (
	"net/netip"
	"testing"

	"accesskeys/internal/auth"
)

// No allocation on a hit. It is the check itself that is measured, from the header to the principal. Not parallel: memory that other tests
// take would count.
func TestCheckingARememberedCredentialTakesNoMemory(t *testing.T) {
	h := newHarness(t)
	from := netip.MustParseAddr("192.0.2.1")
	verifier := auth.NewVerifier(auth.VerifierConfig{Rows: h.rows, Sessions: h.sessions, Tokens: h.tokens, LastUsed: h.lastUsed})
	for name, credential := range map[string]string{"access key": h.acme.token, "JWT": h.acme.adminJWT} {
		header := []string{"Bearer " + credential}
		check := func() {
			c, err := auth.Extract("", header)
			if err == nil {
				_, err = verifier.Verify(t.Context(), c, from)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		check() // from here on it is remembered
		if n := testing.AllocsPerRun(1000, check); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
