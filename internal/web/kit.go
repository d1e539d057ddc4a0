// Package web is what every request passes and every answer is made with: ids, log lines, metrics, limits, decoding, paging and errors.
// It knows no noun of the API.
package web

import (
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// requestTimeout bounds what a request may wait for the database and for its turn to check a password, so that even a silent network
// ends in a 503 within 5 s (contract, section 5).
const requestTimeout = 4 * time.Second

// Config is what a Kit is made of. Everything in it is needed.
type Config struct {
	Log *slog.Logger
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// Tokens are what no log may hold.
	Tokens Tokens
	// NewEvent makes a request's Event, with its Caller.
	NewEvent func() *Event
	// ProblemOf decides what a client is told of an error.
	ProblemOf func(error) *Error
	// Cause is why a credential was refused, for the log alone; "" for other errors.
	Cause func(error) string
	// Registry is where the metrics of requests are registered.
	Registry prometheus.Registerer
}

// Kit has the middlewares, and what they share. It is safe for concurrent use.
type Kit struct {
	log       *slog.Logger
	tokens    Tokens
	newEvent  func() *Event
	problemOf func(error) *Error
	cause     func(error) string
	proxies   proxies
	slow      slowClients
	metrics
	draining atomic.Bool
}

// NewKit makes a Kit.
func NewKit(cfg Config) *Kit {
	slow := newSlowClients()
	return &Kit{
		log:       cfg.Log,
		tokens:    cfg.Tokens,
		newEvent:  cfg.NewEvent,
		problemOf: cfg.ProblemOf,
		cause:     cfg.Cause,
		proxies:   proxies{trusted: cfg.TrustedProxies},
		slow:      slow,
		metrics:   newMetrics(cfg.Registry, slow),
	}
}

// Drain makes every answer ask its client to close the connection, so that clients go elsewhere before the listener closes.
func (k *Kit) Drain() { k.draining.Store(true) }

// Draining reports whether Drain was called.
func (k *Kit) Draining() bool { return k.draining.Load() }

// ConnectionClose is the middleware of Drain.
func (k *Kit) ConnectionClose(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// Handle is a handler that leaves the rendering of what went wrong to Fail.
func (k *Kit) Handle(h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		EventOf(r).Route = r.Pattern // chi's
		if err := h(w, r); err != nil {
			k.Fail(w, r, err)
		}
	}
}
