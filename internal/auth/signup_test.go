package auth

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"testing"
)

// A code has six digits. Each is as likely at each place, and no code is never drawn: chiSquare's measure with ten characters is 9 on
// average with a deviation of 4, so that 50 practically never comes by chance. The control is the usual mistake, one that never begins with
// a zero.
func TestSignupCodesAreUniformOverSixDigits(t *testing.T) {
	t.Parallel()
	const draws, bound = 20_000, 50.0
	measure := func(draw func() string) float64 {
		var counts [6][10]float64
		for range draws {
			code := draw()
			if len(code) != 6 {
				t.Fatalf("code %q", code)
			}
			for place := range code {
				counts[place][code[place]-'0']++
			}
		}
		worst := 0.0
		for _, count := range counts {
			sum := 0.0
			for _, n := range count {
				sum += (n - draws/10) * (n - draws/10) / (draws / 10)
			}
			worst = max(worst, sum)
		}
		return worst
	}
	uniform := func() string { return NewSignup().Code.Reveal() }
	if got := measure(uniform); got > bound {
		t.Errorf("chi-square %.0f of a place's digits, want at most %.0f", got, bound)
	}
	biased := func() string {
		for {
			if code := uniform(); code[0] != '0' {
				return code
			}
		}
	}
	if got := measure(biased); got <= bound {
		t.Errorf("chi-square %.0f of a biased generator: the bound of %.0f would not notice it", got, bound)
	}
}

// Codes and temp tokens are stored hashed, and one code has another hash in every sign-up: no table of a million hashes opens them.
func TestSignupHashesNeedTheTempToken(t *testing.T) {
	t.Parallel()
	shape := regexp.MustCompile(`^su_[0-9A-Za-z]{32}$`)
	seen := map[string]bool{}
	for range 1000 {
		s := NewSignup()
		token, code := s.TempToken.Reveal(), s.Code.Reveal()
		if !shape.MatchString(token) || seen[token] {
			t.Fatalf("temp token %q is misshapen or repeated", token)
		}
		seen[token] = true
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
