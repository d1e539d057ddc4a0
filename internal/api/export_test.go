package api

import (
	"net/http"

	"github.com/go-chi/chi/v5"
)

// Routes are the real router's.
func (s *Server) Routes() chi.Routes { return s.router.(chi.Routes) }

// Observed is a handler in the place of a route's, surrounded by what surrounds every request.
func (s *Server) Observed(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return s.observe(s.handle(h))
}
