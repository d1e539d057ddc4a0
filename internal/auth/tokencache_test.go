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
	c, err := NewTokenCache(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	login, signed := sha256.Sum256([]byte("login")), sha256.Sum256([]byte("signed"))
	c.remember(login, &session{})
	c.remember(signed, &signedAssertion{})
	if _, ok := cachedToken[*session](c, login); !ok {
		t.Error("a login token is not remembered")
	}
	if _, ok := cachedToken[*signedAssertion](c, signed); !ok {
		t.Error("a service account's token is not remembered")
	}
	if _, ok := cachedToken[*signedAssertion](c, login); ok {
		t.Error("a login token is found as a service account's")
	}
	if _, ok := cachedToken[*session](c, signed); ok {
		t.Error("a service account's token is found as a login's")
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
	c, err := NewTokenCache(most)
	if err != nil {
		t.Fatal(err)
	}
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
