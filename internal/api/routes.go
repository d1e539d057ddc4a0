package api

import (
	"errors"
	"net/http"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// routes is the whole surface, with what lets requests under /v1.0 through. TestRoutesAreTheDocuments holds it against
// api/openapi.yaml.
func (s *Server) routes(cfg Config, authenticate func(http.Handler) http.Handler) http.Handler {
	r := chi.NewRouter()
	r.Use(s.kit.Observe, s.kit.Stream, s.kit.ConnectionClose, web.HSTS, web.CORS(isVerify), web.RoutedMethod)
	r.NotFound(s.handle(web.RouteNotFound))
	r.MethodNotAllowed(s.handle(web.MethodNotAllowed(r)))

	r.Get("/ping", s.handle(s.ping))
	r.Get("/healthz", s.handle(s.healthz))
	r.Get("/readyz", s.handle(s.readyz))
	r.With(s.kit.Takes(web.MetricsMemory)).Method(http.MethodGet, "/metrics", s.metrics.handler())
	r.Get("/openapi.yaml", s.handle(s.openapiYAML))
	r.Get("/openapi.json", s.handle(s.openapiJSON))

	v1Limit := s.kit.RateLimit(cfg.V1Limit)
	// What a proxy asks for each of its requests. It checks credentials that can't be guessed: limited as /v1.0 is, not as a login.
	verify := chi.Chain(web.Private, forProxy, v1Limit).HandlerFunc(s.handle(s.verify))
	r.Handle(verifyPath, verify)
	r.Handle(verifyPath+"/*", verify) // Envoy puts the path that it asks about behind
	r.With(web.Private, v1Limit, authenticate).Post("/auth/introspect", s.handle(s.introspect))

	r.Route("/auth", func(r chi.Router) {
		r.Use(web.Private, s.kit.RateLimit(cfg.AuthLimit))
		r.Post("/login", s.handle(s.login))
		if s.mailer != nil { // else there is no signing up
			r.Post("/signup", s.handle(s.signup))
			r.Post("/complete-signup", s.handle(s.completeSignup))
		}
	})

	// The credential is asked for before routing: without one, an unknown route is a 401 too (contract, section 3).
	r.Route("/v1.0", func(r chi.Router) {
		r.Use(web.Private, v1Limit, authenticate)
		r.Get("/me", s.handle(s.me))
		// It checks a password, so it is as limited as a login.
		r.With(s.kit.RateLimit(cfg.AuthLimit)).Put("/me/password", s.handle(s.setOwnPassword))

		r.Get("/customer", s.handle(s.customer))
		r.Get("/customers", s.handle(s.listCustomers))
		r.Post("/customers", s.handle(s.createCustomer))
		r.Get("/customers/{id}", s.handle(s.getCustomer))
		r.Put("/customers/{id}", s.handle(s.updateCustomer))
		r.Delete("/customers/{id}", s.handle(s.deleteCustomer))

		r.Get("/agents", s.handle(s.listAgents))
		r.Post("/agents", s.handle(s.createAgent))
		r.Get("/agents/{id}", s.handle(s.getAgent))
		r.Put("/agents/{id}", s.handle(s.updateAgent))
		r.Delete("/agents/{id}", s.handle(s.deleteAgent))
		r.Put("/agents/{id}/permission", s.handle(s.setAgentPermission))
		r.Put("/agents/{id}/password", s.handle(s.setAgentPassword))

		r.Get("/accesskeys", s.handle(s.listAccessKeys))
		r.Post("/accesskeys", s.handle(s.createAccessKey))
		r.Get("/accesskeys/{id}", s.handle(s.getAccessKey))
		r.Put("/accesskeys/{id}", s.handle(s.updateAccessKey))
		r.Delete("/accesskeys/{id}", s.handle(s.deleteAccessKey))

		r.Get("/service_accounts", s.handle(s.listServiceAccounts))
		r.Post("/service_accounts", s.handle(s.createServiceAccount))
		r.Get("/service_accounts/{id}", s.handle(s.getServiceAccount))
		r.Put("/service_accounts/{id}", s.handle(s.updateServiceAccount))
		r.Delete("/service_accounts/{id}", s.handle(s.deleteServiceAccount))
		r.Get("/service_accounts/{id}/keys", s.handle(s.listServiceAccountKeys))
		r.Post("/service_accounts/{id}/keys", s.handle(s.createServiceAccountKey))
		r.Delete("/service_accounts/{id}/keys/{key_id}", s.handle(s.deleteServiceAccountKey))
	})
	return r
}

// handler is a handler that leaves the rendering of what went wrong to its caller.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) handle(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		web.EventOf(r).Route = r.Pattern // chi's
		err := h(w, r)
		// Nothing was written then, neither to the store nor to the client: the handler decides anew.
		for attempt := 1; errors.Is(err, store.ErrChanged) && attempt < decisions; attempt++ {
			if err = s.decideAgain(r); err == nil {
				err = h(w, r)
			}
		}
		if err != nil {
			s.kit.Fail(w, r, err)
		}
	}
}

// decisions is how often a request is decided at most, while its caller or what it is about keeps changing.
const decisions = 4
