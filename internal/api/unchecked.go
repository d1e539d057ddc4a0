//go:build bench

package api

import (
	"net/http"

	"accesskeys/internal/auth"
)

// NewUnchecked makes a Server that looks at no credential: whatever comes is p's. Package bench measures beside it what
// the check costs.
//
// SECURITY: this file is in no program: only `make bench` sets the tag.
func NewUnchecked(cfg Config, p auth.Principal) *Server {
	s := unrouted(cfg)
	s.router = s.routes(cfg, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			eventOf(r).principal = &p
			next.ServeHTTP(w, r)
		})
	})
	return s
}
