package auth

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"testing"
)

// Codes and temp tokens are stored hashed, and one code has another hash in every sign-up: no table of a million hashes opens them.
func TestSignupHashesNeedTheTempToken(t *testing.T) {
	t.Parallel()
	shape, digits := regexp.MustCompile(`^su_[0-9A-Za-z]{32}$`), regexp.MustCompile(`^[0-9]{6}$`)
	seen := map[string]bool{}
	for range 1000 {
		s := NewSignup()
		token, code := s.TempToken.Reveal(), s.Code.Reveal()
		if !shape.MatchString(token) || seen[token] {
			t.Fatalf("temp token %q is misshapen or repeated", token)
		}
		seen[token] = true
		if !digits.MatchString(code) {
			t.Fatalf("code %q", code)
		}
		if s.TempTokenHash() != sha256.Sum256([]byte(token)) {
			t.Fatalf("the temp token's hash of %q is not its SHA-256", token)
		}
		other := Signup{TempToken: NewSignup().TempToken, Code: s.Code}
		if s.CodeHash() == other.CodeHash() || s.CodeHash() == sha256.Sum256([]byte(code)) || s.CodeHash() == s.TempTokenHash() {
			t.Fatalf("the code's hash does not depend on token %q and code %q together", token, code)
		}
		if s.CodeHash() != (Signup{TempToken: s.TempToken, Code: s.Code}).CodeHash() {
			t.Fatal("the code's hash changes")
		}
		if shown := fmt.Sprintf("%v %+v %#v", s, s, s); regexp.MustCompile(code + "|" + token[3:]).MatchString(shown) {
			t.Fatalf("a sign-up shows as %s", shown)
		}
	}
}
