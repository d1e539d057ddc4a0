package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// chiSquare measures, at each position, how far the counts of the alphabet's characters are from equal, and returns the
// worst position. For characters drawn uniformly it is about 61 with a deviation of 11, so that 150 practically never
// comes by chance.
func chiSquare(draws int, draw func() string) float64 {
	counts := make([][256]int, tokenRandom)
	for range draws {
		for position, c := range []byte(draw()) {
			counts[position][c]++
		}
	}
	expected := float64(draws) / float64(len(tokenAlphabet))
	worst := 0.0
	for _, count := range counts {
		sum := 0.0
		for _, c := range []byte(tokenAlphabet) {
			off := float64(count[c]) - expected
			sum += off * off / expected
		}
		worst = max(worst, sum)
	}
	return worst
}

// Contract, section 1: 32 characters of [0-9A-Za-z], every one drawn uniformly from a CSPRNG. The control is the usual mistake, a byte
// modulo 62, which must be told apart by the same measure.
func TestTokenCharactersAreUniform(t *testing.T) {
	t.Parallel()
	const draws, bound = 40_000, 150.0
	if got := chiSquare(draws, func() string { return NewAccessToken().Reveal()[len("vb_"):] }); got > bound {
		t.Errorf("chi-square %.0f of a position's characters, want at most %.0f", got, bound)
	}
	biased := func() string {
		random := make([]byte, tokenRandom)
		_, _ = rand.Read(random)
		for i, b := range random {
			random[i] = tokenAlphabet[int(b)%len(tokenAlphabet)]
		}
		return string(random)
	}
	if got := chiSquare(draws, biased); got <= bound {
		t.Errorf("chi-square %.0f of a biased generator: the bound of %.0f would not notice it", got, bound)
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
	for token, want := range map[string]bool{
		"vb_" + random:                       true,
		"vb_" + strings.Repeat("-", 32):      true,
		"vb_" + strings.Repeat("_", 32):      true,
		"":                                   false,
		"vb_":                                false,
		random:                               false,
		"VB_" + random:                       false,
		"vb-" + random:                       false,
		"vb_" + random[1:]:                   false,
		"vb_" + random + "a":                 false,
		" vb_" + random:                      false,
		"vb_" + random + "\n":                false,
		"vb_" + random[:31] + "\n":           false,
		"vb_" + random[:31] + "\x00":         false,
		"vb_" + random[:31] + " ":            false,
		"vb_" + random[:31] + "+":            false,
		"vb_" + random[:31] + "/":            false,
		"vb_" + random[:31] + "=":            false,
		"vb_" + random[:31] + ".":            false,
		"vb_" + random[:31] + "%":            false,
		"vb_" + random[:31] + "@":            false, // beside A in ASCII, as the next ones are beside Z, a, z, 0 and 9
		"vb_" + random[:31] + "[":            false,
		"vb_" + random[:31] + "`":            false,
		"vb_" + random[:31] + "{":            false,
		"vb_" + random[:31] + ":":            false,
		"vb_" + random[:30] + "é":            false, // two bytes
		"vb_" + random[:29] + "\u212a":       false, // the Kelvin sign, which folds to k
		"vb_" + random[:31] + "\xff":         false,
		"vb_" + strings.Repeat("\uff11", 10): false,
	} {
		parsed, ok := ParseAccessToken(token)
		if ok != want {
			t.Errorf("ParseAccessToken(%q) = %t, want %t", token, ok, want)
		}
		if ok && parsed.Reveal() != token || !ok && !parsed.Empty() {
			t.Errorf("ParseAccessToken(%q) gave %q", token, parsed.Reveal())
		}
	}
}
