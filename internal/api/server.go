// Package api is the service on the wire: routes, decoding, rendering, a file for each noun.
package api

import (
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/authn"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// readyTimeout bounds the check behind /readyz.
const readyTimeout = 2 * time.Second

// Config is what a Server is made of.
type Config struct {
	Store         *store.Store
	Cache         *authcache.Cache
	Verifier      *auth.Verifier
	Tokens        *auth.TokenCache // the Verifier's, for the metrics
	Authenticator *auth.Authenticator
	Passwords     *auth.Passwords
	KeyPairs      *auth.KeyPairs
	CustomerTurns *auth.CustomerTurns
	Mailer        Mailer // nil: nobody signs up by themselves
	Log           *slog.Logger
	// MinExpire is the least expire of a new access key in seconds, at least 1.
	MinExpire int64
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// AuthLimit and V1Limit bound the requests of one client address to /auth and to /v1.0, with which the routes count that check
	// a credential for somebody else; the zero value is no limit.
	AuthLimit web.Limit
	V1Limit   web.Limit
}

// Server answers requests. It is an http.Handler, safe for concurrent use.
type Server struct {
	store         *store.Store
	cache         *authcache.Cache
	authn         *authn.Authenticator
	authenticator *auth.Authenticator
	passwords     *auth.Passwords
	keyPairs      *auth.KeyPairs
	customerTurns *auth.CustomerTurns
	mailer        Mailer
	log           *slog.Logger
	minExpire     int64
	tries         *auth.Tries // of customers to choose a username that was taken
	metrics       *metrics
	kit           *web.Kit
	router        http.Handler
}

// New makes a Server.
func New(cfg Config) *Server {
	metrics := newMetrics(cfg.Store, cfg.Cache, cfg.Tokens)
	s := &Server{
		kit: web.NewKit(web.Config{
			Log: cfg.Log, TrustedProxies: cfg.TrustedProxies, NewEvent: authn.NewEvent, ProblemOf: problemOf, Cause: auth.Cause,
			Tokens:   web.Tokens{Prefixes: []string{auth.TokenPrefix, auth.SignupTokenPrefix}, Random: auth.TokenLength - len(auth.TokenPrefix)},
			Registry: metrics.registry,
		}),
		store:         cfg.Store,
		cache:         cfg.Cache,
		authn:         authn.New(cfg.Verifier, metrics.registry),
		authenticator: cfg.Authenticator,
		passwords:     cfg.Passwords,
		keyPairs:      cfg.KeyPairs,
		customerTurns: cfg.CustomerTurns,
		mailer:        cfg.Mailer,
		log:           cfg.Log,
		minExpire:     cfg.MinExpire,
		tries:         auth.NewTries(),
		metrics:       metrics,
	}
	s.router = s.routes(cfg)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.router.ServeHTTP(w, r) }

// Drain makes the server leave: /readyz answers 503 and every answer asks its client to close the connection, so that
// load balancers and clients go elsewhere before the listener closes.
func (s *Server) Drain() { s.kit.Drain() }
