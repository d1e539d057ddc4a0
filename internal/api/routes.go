package api

import (
	"errors"
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"accesskeys/internal/authn"
	"accesskeys/internal/forwardauth"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// routes is the whole surface. TestRoutesAreTheDocuments holds it against api/openapi.yaml.
func (s *Server) routes(cfg Config) http.Handler {
	r := chi.NewRouter()
	r.Use(s.kit.Observe, s.kit.Stream, s.kit.ConnectionClose, web.HSTS, web.CORS(forwardauth.IsVerify), web.RoutedMethod)
	r.NotFound(s.handle(web.RouteNotFound))
	r.MethodNotAllowed(s.handle(web.MethodNotAllowed(r)))

	r.Get("/ping", object(s, s.ping))
	r.Get("/healthz", object(s, s.healthz))
	r.Get("/readyz", object(s, s.readyz))
	r.With(s.kit.Takes(web.MetricsMemory)).Method(http.MethodGet, "/metrics", s.metrics.handler())
	r.Get("/openapi.yaml", s.handle(s.openapiYAML))
	r.Get("/openapi.json", s.handle(s.openapiJSON))

	// What checks a credential for somebody else, which can't be guessed, counts with /v1.0 and not with logins.
	v1Limit := web.NewLimiter(cfg.V1Limit)
	forwardauth.Mount(r, forwardauth.Config{Kit: s.kit, Authenticator: s.authn, Verifier: cfg.Verifier, Limit: v1Limit})

	r.Route("/auth", func(r chi.Router) {
		r.Use(web.Private, s.kit.RateLimit(web.NewLimiter(cfg.AuthLimit)))
		r.Post("/login", object(s, s.login))
		if s.mailer != nil { // else there is no signing up
			r.Post("/signup", object(s, s.signup))
			r.Post("/complete-signup", object(s, s.completeSignup))
		}
	})

	// The credential is asked for before routing: without one, an unknown route is a 401 too (contract, section 3).
	r.Route("/v1.0", func(r chi.Router) {
		r.Use(web.Private, s.kit.RateLimit(v1Limit), s.authn.Middleware(s.kit))
		r.Get("/me", object(s, s.me))
		// It checks a password, so it is as limited as a login.
		r.With(s.kit.RateLimit(web.NewLimiter(cfg.AuthLimit))).Put("/me/password", object(s, s.setOwnPassword))

		r.Get("/customer", object(s, s.customer))
		r.Get("/customers", list(s, s.listCustomers))
		r.Post("/customers", object(s, s.createCustomer))
		r.Get("/customers/{id}", object(s, byID(s.getCustomer)))
		r.Put("/customers/{id}", object(s, byID(s.updateCustomer)))
		r.Delete("/customers/{id}", object(s, byID(s.deleteCustomer)))

		r.Get("/agents", list(s, s.listAgents))
		r.Post("/agents", object(s, s.createAgent))
		r.Get("/agents/{id}", object(s, byID(s.getAgent)))
		r.Put("/agents/{id}", object(s, byID(s.updateAgent)))
		r.Delete("/agents/{id}", object(s, byID(s.deleteAgent)))
		r.Put("/agents/{id}/permission", object(s, byID(s.setAgentPermission)))
		r.Put("/agents/{id}/password", object(s, byID(s.setAgentPassword)))

		r.Get("/accesskeys", list(s, s.listAccessKeys))
		r.Post("/accesskeys", object(s, s.createAccessKey))
		r.Get("/accesskeys/{id}", object(s, byID(s.getAccessKey)))
		r.Put("/accesskeys/{id}", object(s, byID(s.updateAccessKey)))
		r.Delete("/accesskeys/{id}", object(s, byID(s.deleteAccessKey)))

		r.Get("/service_accounts", list(s, s.listServiceAccounts))
		r.Post("/service_accounts", object(s, s.createServiceAccount))
		r.Get("/service_accounts/{id}", object(s, byID(s.getServiceAccount)))
		r.Put("/service_accounts/{id}", object(s, byID(s.updateServiceAccount)))
		r.Delete("/service_accounts/{id}", object(s, byID(s.deleteServiceAccount)))
		r.Get("/service_accounts/{id}/keys", list(s, byID(s.listServiceAccountKeys)))
		r.Post("/service_accounts/{id}/keys", object(s, byID(s.createServiceAccountKey)))
		r.Delete("/service_accounts/{id}/keys/{key_id}", object(s, byID(s.deleteServiceAccountKey)))
	})
	return r
}

// object is the handler of a route that answers with one object.
func object[T any](s *Server, h func(*http.Request) (T, error)) http.HandlerFunc {
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		answer, err := h(r)
		if err == nil {
			web.WriteJSON(w, http.StatusOK, answer)
		}
		return err
	})
}

// list is the handler of a route that answers with a page.
func list[T any](s *Server, h func(*http.Request) (web.List[T], error)) http.HandlerFunc {
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		answer, err := h(r)
		if err == nil {
			web.WriteList(w, r, answer)
		}
		return err
	})
}

// byID is for routes with an {id}.
func byID[T any](h func(*http.Request, uuid.UUID) (T, error)) func(*http.Request) (T, error) {
	return func(r *http.Request) (answer T, err error) {
		id, err := web.PathID(r)
		if err != nil {
			return answer, err
		}
		return h(r, id)
	}
}

// decisions is how often a request is decided at most, while its caller or what it is about keeps changing.
const decisions = 4

// handle leaves the rendering of what went wrong to the Kit.
func (s *Server) handle(h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
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

// decideAgain is for a request whose write did not happen because its caller, or what it is about, is not as it was when that was
// checked. It returns once the check can be made anew by what is true now.
func (s *Server) decideAgain(r *http.Request) error {
	if err := s.cache.Refresh(r.Context()); err != nil {
		return err
	}
	return authn.IdentifyAgain(r)
}
