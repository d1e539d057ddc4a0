package web

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// Limit is a token bucket: RPS requests a second, and Burst at once. The zero value, or an RPS of 0, is no limit.
type Limit struct {
	RPS   float64
	Burst int
}

// maxLimited bounds the addresses that a limiter remembers, about 200 bytes each; the one that was quiet for longest is
// forgotten first.
const maxLimited = 1 << 16

// limiter keeps a bucket for each client.
type limiter struct {
	limit   Limit
	mu      sync.Mutex
	buckets *simplelru.LRU[netip.Prefix, *rate.Limiter]
}

func newLimiter(limit Limit) *limiter {
	buckets, err := simplelru.NewLRU[netip.Prefix, *rate.Limiter](maxLimited, nil)
	if err != nil {
		panic(err) // only a size below 1 is an error
	}
	return &limiter{limit: limit, buckets: buckets}
}

// wait is 0 where the client may go on, else how long until it may.
func (l *limiter) wait(client netip.Prefix, now time.Time) time.Duration {
	l.mu.Lock()
	bucket, known := l.buckets.Get(client)
	if !known {
		bucket = rate.NewLimiter(rate.Limit(l.limit.RPS), l.limit.Burst)
		l.buckets.Add(client, bucket)
	}
	l.mu.Unlock()
	reservation := bucket.ReserveN(now, 1)
	if delay := reservation.DelayFrom(now); delay > 0 {
		reservation.CancelAt(now) // a refused request uses nothing up
		return delay
	}
	return 0
}

// Limiter bounds what one client's address sends (contract, section 5).
type Limiter struct{ limiter *limiter } // nil: no limit

// NewLimiter makes a Limiter, for one route or for several that count together.
func NewLimiter(limit Limit) Limiter {
	if limit.RPS <= 0 {
		return Limiter{}
	}
	return Limiter{newLimiter(limit)}
}

// Check counts a request, and returns the 429 of one beyond the limit.
func (l Limiter) Check(r *http.Request) error {
	if l.limiter != nil {
		if wait := l.limiter.wait(clientNetwork(r), time.Now()); wait > 0 {
			return TooMany(ByIP, "Too many requests from this address.", wait)
		}
	}
	return nil
}

// RateLimit is the middleware of a Limiter.
func (k *Kit) RateLimit(l Limiter) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if l.limiter == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := l.Check(r); err != nil {
				k.Fail(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// clientNetwork is what counts as one client: an IPv4 address, or a /64 of IPv6, of which a single host has every
// address.
func clientNetwork(r *http.Request) netip.Prefix {
	addr := EventOf(r).Client
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	network, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address at all: such clients share a bucket
	}
	return network
}
