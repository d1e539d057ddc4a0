package auth

import (
	"crypto/rand"
	"crypto/sha256"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// The shape of an access key's token (contract, section 1).
const (
	// TokenPrefix starts every token; secret scanners know it.
	TokenPrefix = "vb_"
	// TokenLength is that of a whole token in characters.
	TokenLength = len(TokenPrefix) + tokenRandom

	tokenRandom   = 32
	tokenShown    = 11 // characters of the token that are stored and shown
	tokenAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	tokenUnbiased = 256 - 256%len(tokenAlphabet) // bytes from here on would favour the alphabet's first characters
)

// AccessToken is the token of an access key: well-formed, not necessarily known. It redacts itself.
type AccessToken struct {
	secret.Value
}

// NewAccessToken draws a token: each of its 32 characters uniform out of 62, from the system's generator (190 bits).
func NewAccessToken() AccessToken { return AccessToken{drawToken(TokenPrefix)} }

// drawToken is a prefix and tokenRandom random characters.
func drawToken(prefix string) secret.Value {
	token := append(make([]byte, 0, len(prefix)+tokenRandom), prefix...)
	var random [64]byte
	for {
		_, _ = rand.Read(random[:]) // never fails: it ends the program instead
		for _, b := range random {
			if int(b) >= tokenUnbiased {
				continue
			}
			token = append(token, tokenAlphabet[int(b)%len(tokenAlphabet)])
			if len(token) == len(prefix)+tokenRandom {
				return secret.New(string(token))
			}
		}
	}
}

// ParseAccessToken returns s as a token where it has the shape of one.
func ParseAccessToken(s string) (AccessToken, bool) {
	if len(s) != TokenLength || s[:len(TokenPrefix)] != TokenPrefix {
		return AccessToken{}, false
	}
	for i := len(TokenPrefix); i < len(s); i++ {
		if !tokenChar(s[i]) {
			return AccessToken{}, false
		}
	}
	return AccessToken{secret.New(s)}, true
}

func tokenChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '-' || c == '_'
}

// Hash is the SHA-256 by which the key is stored and found. A fast hash is right here: a token has 190 random bits,
// so there is nothing to guess from its hash.
func (t AccessToken) Hash() store.TokenHash { return sumOf(t.Reveal()) }

// sumOf is the SHA-256 of a string. Short ones, which is every token but the longest, take no memory for it.
func sumOf(s string) [sha256.Size]byte {
	var short [1024]byte
	if len(s) > len(short) {
		return sha256.Sum256([]byte(s))
	}
	return sha256.Sum256(short[:copy(short[:], s)])
}

// Prefix is the part of the token that is stored and shown, so that a person can tell keys apart. 143 bits stay secret.
func (t AccessToken) Prefix() string { return t.Reveal()[:tokenShown] }
