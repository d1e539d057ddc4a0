package auth

import (
	"crypto/sha256"
	"strconv"
	"testing"
	"time"
)

// What is remembered of one kind of token is never found as the other, and nothing is where nothing is remembered.
func TestTokenIsRememberedAsItsOwnKind(t *testing.T) {
	t.Parallel()
	c := must(NewTokenCache(0))(t)
	t.Cleanup(c.Close)
	login, signed := sha256.Sum256([]byte("login")), sha256.Sum256([]byte("signed"))
	c.remember(login, &session{})
	c.remember(signed, &signedAssertion{})
	_, asLogin := cachedToken[*session](c, login)
	_, asSigned := cachedToken[*signedAssertion](c, signed)
	if !asLogin || !asSigned {
		t.Errorf("a login token is remembered: %t, a service account's: %t", asLogin, asSigned)
	}
	_, asSigned = cachedToken[*signedAssertion](c, login)
	_, asLogin = cachedToken[*session](c, signed)
	if asLogin || asSigned {
		t.Errorf("a login token is found as a service account's: %t, and the other way: %t", asSigned, asLogin)
	}
	var none *TokenCache
	none.remember(login, &session{})
	if _, ok := cachedToken[*session](none, login); ok || none.Stats() != (TokenStats{}) {
		t.Error("no cache remembers a token")
	}
	none.Close()
}

// Whatever is presented, no more is remembered than fits.
func TestRememberedTokensAreBounded(t *testing.T) {
	t.Parallel()
	const most = 1 << 20
	c := must(NewTokenCache(most))(t)
	t.Cleanup(c.Close)
	const tokens = 20_000
	for i := range tokens {
		c.remember(sha256.Sum256([]byte(strconv.Itoa(i))), &session{})
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s := c.Stats()
		if s.Bytes <= most && s.Evicted >= tokens-most/tokenOverhead && s.Entries > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
}
