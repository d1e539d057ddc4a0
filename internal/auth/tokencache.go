package auth

import (
	"fmt"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

// TokenCache remembers what tokens say whose signature was found good, by the SHA-256 of their bytes. It follows from the bytes alone,
// whatever the database holds: nothing makes it be forgotten but want of room. It is safe for concurrent use; nil remembers nothing.
type TokenCache struct {
	tokens  *otter.Cache[[32]byte, verifiedToken]
	evicted atomic.Int64
}

// verifiedToken is a *session or a *signedAssertion.
type verifiedToken interface {
	// bytes is about how many it takes of memory.
	bytes() int
}

// tokenOverhead is about what an entry costs beside what it holds: key, pointers, and its place in the cache's lists.
const tokenOverhead = 200

// NewTokenCache makes a TokenCache of so many bytes at most, a MiB at least.
func NewTokenCache(bytes uint64) (*TokenCache, error) {
	c := &TokenCache{}
	tokens, err := otter.New(&otter.Options[[32]byte, verifiedToken]{
		MaximumWeight: max(bytes, 1<<20),
		Weigher:       func(_ [32]byte, t verifiedToken) uint32 { return uint32(tokenOverhead + t.bytes()) }, //nolint:gosec // a token takes a few hundred bytes, a public key with it
		OnDeletion: func(e otter.DeletionEvent[[32]byte, verifiedToken]) {
			if e.WasEvicted() {
				c.evicted.Add(1)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the cache of tokens: %w", err)
	}
	c.tokens = tokens
	return c, nil
}

// Close ends what the cache does in the background.
func (c *TokenCache) Close() {
	if c != nil {
		c.tokens.StopAllGoroutines()
	}
}

// TokenStats are figures for the metrics.
type TokenStats struct {
	Entries int
	Bytes   uint64 // taken by them, about
	Evicted int64  // dropped for want of room so far
}

// Stats returns the figures as they stand.
func (c *TokenCache) Stats() TokenStats {
	if c == nil {
		return TokenStats{}
	}
	return TokenStats{Entries: c.tokens.EstimatedSize(), Bytes: c.tokens.WeightedSize(), Evicted: c.evicted.Load()}
}

// cachedToken returns what is remembered of the token with this SHA-256, if it is a T.
func cachedToken[T verifiedToken](c *TokenCache, sum [32]byte) (t T, ok bool) {
	if c == nil {
		return t, false
	}
	remembered, ok := c.tokens.GetIfPresent(sum)
	if !ok {
		return t, false
	}
	t, ok = remembered.(T)
	return t, ok
}

func (c *TokenCache) remember(sum [32]byte, t verifiedToken) {
	if c != nil {
		c.tokens.Set(sum, t)
	}
}
