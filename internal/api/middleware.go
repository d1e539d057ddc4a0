package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/auth"
)

// authenticate lets a request through with its principal, and everything else nowhere.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		credential, err := auth.Extract(r.URL.RawQuery, r.Header["Authorization"])
		if err := s.identify(r, credential, err); err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// identify finds out who presents a credential, or passes on why none was found, and notes and counts it.
func (s *Server) identify(r *http.Request, credential auth.Credential, err error) error {
	if err == nil {
		ev := eventOf(r)
		if ev.caller, err = s.verifier.Verify(r.Context(), credential, ev.client); err == nil {
			ev.principal, ev.server, ev.credential = &ev.caller, s, credential
		}
	}
	s.metrics.observeCredential(credential.Kind, err)
	return err
}

// identifyAgain checks the credential once more, after something that may have taken long: it may have been revoked meanwhile.
// Where no credential has let the request through, it does nothing.
func identifyAgain(r *http.Request) error {
	ev := eventOf(r)
	if ev.server == nil {
		return nil
	}
	caller, err := ev.server.verifier.Verify(r.Context(), ev.credential, ev.client)
	if err == nil {
		ev.caller = caller
	}
	return err
}

// decideAgain is for a request whose write did not happen because its caller, or what it is about, is not as it was when that was
// checked. It returns once the check can be made anew by what is true now.
func (s *Server) decideAgain(r *http.Request) error {
	if err := s.replica.Refresh(r.Context()); err != nil {
		return err
	}
	return identifyAgain(r)
}

// principalOf returns the caller. It is for handlers behind authenticate or identify, and panics elsewhere.
func principalOf(r *http.Request) auth.Principal { return *eventOf(r).principal }

// private marks answers that no cache may keep and whose address no other site may see: it can hold a credential.
func private(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setPrivate(w.Header())
		next.ServeHTTP(w, r)
	})
}

// Values of headers that most answers have. Nobody changes them: one slice serves every answer.
var (
	noStore       = []string{"no-store"}
	noReferrer    = []string{"no-referrer"}
	anyOrigin     = []string{"*"}
	exposedHeader = []string{"X-Request-Id, Retry-After, WWW-Authenticate"}
)

func setPrivate(header http.Header) {
	header["Cache-Control"] = noStore
	header["Referrer-Policy"] = noReferrer
}

// strictTransport is a year, for this host alone: whoever else has names below it may not be ours to speak for.
var strictTransport = []string{"max-age=31536000"}

// hsts keeps browsers from coming back without TLS, where they came with it (RFC 6797, section 7.1).
func hsts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			w.Header()["Strict-Transport-Security"] = strictTransport
		}
		next.ServeHTTP(w, r)
	})
}

// cors lets pages of any origin call, without credentials of the browser's own (contract, section 5): whoever has a key
// may use it anywhere, and there is no cookie to ride on.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header["Access-Control-Allow-Origin"] = anyOrigin
		if r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" && !isVerify(r) {
			header.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
			header.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id")
			header.Set("Access-Control-Max-Age", "86400")
			setPrivate(header) // it is answered before routing, which would tell where that is needed
			w.WriteHeader(http.StatusNoContent)
			return
		}
		header["Access-Control-Expose-Headers"] = exposedHeader
		next.ServeHTTP(w, r)
	})
}

// routedMethod routes HEAD as GET; net/http leaves the body out. Methods that no route has are routed as one that chi
// knows: others it would refuse before it looks at the path, and so before anyone asks for the credential.
func routedMethod(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		switch method {
		case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
		case http.MethodHead:
			method = http.MethodGet
		default:
			method = http.MethodTrace
		}
		chi.RouteContext(r.Context()).RouteMethod = method
		next.ServeHTTP(w, r)
	})
}

// connectionClose sends clients elsewhere while the server drains.
func (s *Server) connectionClose(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func routeNotFound(http.ResponseWriter, *http.Request) error {
	return notFound(reasonRouteNotFound, "route")
}

// methodNotAllowed answers with the methods that the route has (RFC 9110, section 15.5.6).
func methodNotAllowed(router chi.Routes) handler {
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}
	return func(w http.ResponseWriter, r *http.Request) error {
		path := r.URL.Path
		if r.URL.RawPath != "" {
			path = r.URL.RawPath // what chi routes by
		}
		var allowed []string
		for _, method := range methods {
			if router.Match(chi.NewRouteContext(), method, path) {
				allowed = append(allowed, method)
			}
		}
		if slices.Contains(allowed, http.MethodGet) {
			allowed = append(allowed, http.MethodHead)
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		return &problem{
			code: http.StatusMethodNotAllowed, reason: reasonMethodNotAllowed,
			message: "The route does not have this method.",
		}
	}
}
