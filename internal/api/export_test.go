package api

import (
	"context"
	"net/http"
	"net/http/httptest"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/slowclient"
)

// Routes are the real router's.
func (s *Server) Routes() chi.Routes { return s.router.(chi.Routes) }

// Observed is a handler in the place of a route's, surrounded by what surrounds every request.
func (s *Server) Observed(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return s.kit.Observe(s.handle(h))
}

// HoldAnswers takes all memory of answers until release is called.
func (s *Server) HoldAnswers(ctx context.Context) (release func(), err error) {
	budget, size := s.kit.Answers()
	var all slowclient.Share
	all.Begin(budget, httptest.NewRecorder())
	_, err = all.Take(ctx, "a test", size)
	return all.End, err
}

// WaitingAnswers is how many requests wait for it.
func (s *Server) WaitingAnswers() int {
	budget, _ := s.kit.Answers()
	return budget.Waiting()
}
