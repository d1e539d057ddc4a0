package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// chiSquare measures, at each position, how far the counts of the alphabet's characters are from equal, and returns the worst position.
func chiSquare(alphabet string, draws int, draw func() string) float64 {
	counts := make([][256]int, len(draw()))
	for range draws {
		for position, c := range []byte(draw()) {
			counts[position][c]++
		}
	}
	expected := float64(draws) / float64(len(alphabet))
	worst := 0.0
	for _, count := range counts {
		sum := 0.0
		for _, c := range []byte(alphabet) {
			off := float64(count[c]) - expected
			sum += off * off / expected
		}
		worst = max(worst, sum)
	}
	return worst
}

// Contract, section 1: 32 characters of [0-9A-Za-z], every one drawn uniformly from a CSPRNG; a sign-up's code has six digits, and no code is
// never drawn. chiSquare is about n-1 for n characters, with a deviation of the root of twice that, so that the bounds practically never
// come by chance. The controls are the usual mistakes, a byte modulo 62 and a number that never begins with a zero.
func TestCharactersOfTokensAndCodesAreUniform(t *testing.T) {
	t.Parallel()
	code := func() string { return NewSignup().Code.Reveal() }
	for name, c := range map[string]struct {
		alphabet      string
		draws         int
		bound         float64
		draw, mistake func() string
	}{
		"token": {
			tokenAlphabet, 40_000, 150, func() string { return NewAccessToken().Reveal()[len("vb_"):] }, func() string {
				random := make([]byte, tokenRandom)
				_, _ = rand.Read(random)
				for i, b := range random {
					random[i] = tokenAlphabet[int(b)%len(tokenAlphabet)]
				}
				return string(random)
			},
		},
		"code": {
			"0123456789", 20_000, 50, code, func() string {
				for {
					if code := code(); code[0] != '0' {
						return code
					}
				}
			},
		},
	} {
		if got := chiSquare(c.alphabet, c.draws, c.draw); got > c.bound {
			t.Errorf("%s: chi-square %.0f of a position's characters, want at most %.0f", name, got, c.bound)
		}
		if got := chiSquare(c.alphabet, c.draws, c.mistake); got <= c.bound {
			t.Errorf("%s: chi-square %.0f of a biased generator: the bound of %.0f would not notice it", name, got, c.bound)
		}
	}
}

// Contract, section 1: Token: vb_ and 32 characters of [0-9A-Za-z]; "first 11 characters of the token"; "Stored: its SHA-256".
func TestTokenHasItsShapeHashAndPrefix(t *testing.T) {
	t.Parallel()
	shape := regexp.MustCompile(`^vb_[0-9A-Za-z]{32}$`)
	seen := map[string]bool{}
	for range 1000 {
		token := NewAccessToken()
		plain := token.Reveal()
		if !shape.MatchString(plain) || seen[plain] {
			t.Fatalf("token %q is misshapen or repeated", plain)
		}
		seen[plain] = true
		if token.Prefix() != plain[:11] {
			t.Fatalf("Prefix() = %q of %q", token.Prefix(), plain)
		}
		if token.Hash() != sha256.Sum256([]byte(plain)) {
			t.Fatalf("Hash() of %q is not its SHA-256", plain)
		}
		parsed, ok := ParseAccessToken(plain)
		if !ok || parsed != token {
			t.Fatalf("ParseAccessToken(%q) = %q, %t", plain, parsed.Reveal(), ok)
		}
	}
}

// The example of the contract's section 1, with a digest made by another program.
func TestTokenHashIsThePlainSHA256(t *testing.T) {
	t.Parallel()
	token, ok := ParseAccessToken("vb_a3Bf9xKmPq2nR7sT4wYzLp8mN5qR1xWe")
	if !ok {
		t.Fatal("the contract's example is no token")
	}
	const want = "780075c2de066f87a3a053efe6ec8997e1412b1528b7f2e15c4eb5cd067123ac"
	if got := fmt.Sprintf("%x", token.Hash()); got != want {
		t.Errorf("Hash() = %s, want %s", got, want)
	}
	if token.Prefix() != "vb_a3Bf9xKm" {
		t.Errorf("Prefix() = %q", token.Prefix())
	}
}

// Contract, section 1: Presented ones may hold - and _ too. Everything else is no token.
func TestOnlyWellFormedTokensParse(t *testing.T) {
	t.Parallel()
	const random = "0123456789abcdefABCDEFghijKLMNO_"
	tokens := map[string]bool{"vb_" + random: true, "vb_" + strings.Repeat("-", 32): true, "vb_" + strings.Repeat("_", 32): true}
	for _, token := range []string{
		"", "vb_", random, "VB_" + random, "vb-" + random, "vb_" + random[1:], "vb_" + random + "a", " vb_" + random, "vb_" + random + "\n",
		"vb_" + random[:30] + "é",      // two bytes
		"vb_" + random[:29] + "\u212a", // the Kelvin sign, which folds to k
		"vb_" + strings.Repeat("\uff11", 10),
	} {
		tokens[token] = false
	}
	for _, last := range "\n\x00 +/=.%@[`{:" { // the last ones stand beside A, Z, a, z and 9 in ASCII, as / does beside 0
		tokens["vb_"+random[:31]+string(last)] = false
	}
	tokens["vb_"+random[:31]+"\xff"] = false
	for token, want := range tokens {
		parsed, ok := ParseAccessToken(token)
		if ok != want {
			t.Errorf("ParseAccessToken(%q) = %t, want %t", token, ok, want)
		}
		if ok && parsed.Reveal() != token || !ok && !parsed.Empty() {
			t.Errorf("ParseAccessToken(%q) gave %q", token, parsed.Reveal())
		}
	}
}
