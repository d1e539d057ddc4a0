package web

import (
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"
)

// Private marks answers that no cache may keep and whose address no other site may see: it can hold a credential.
func Private(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		SetPrivate(w.Header())
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

// SetPrivate sets its headers.
func SetPrivate(header http.Header) {
	header["Cache-Control"] = noStore
	header["Referrer-Policy"] = noReferrer
}

// strictTransport is a year, for this host alone: names below it may belong to others.
var strictTransport = []string{"max-age=31536000"}

// HSTS keeps browsers from coming back without TLS, where they came with it (RFC 6797, section 7.1).
func HSTS(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			w.Header()["Strict-Transport-Security"] = strictTransport
		}
		next.ServeHTTP(w, r)
	})
}

// CORS lets pages of any origin call, without credentials of the browser's own (contract, section 5): who has a key may use it
// anywhere, and there is no cookie to ride on. Preflights are answered before routing, but for requests that except is true of.
func CORS(except func(*http.Request) bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			header := w.Header()
			header["Access-Control-Allow-Origin"] = anyOrigin
			if r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" && !except(r) {
				header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
				header.Set("Access-Control-Allow-Headers",
					"Authorization, Content-Type, X-Request-Id, X-Requested-With, Accept, Origin, Idempotency-Key")
				header.Set("Access-Control-Max-Age", "86400")
				SetPrivate(header) // routing would tell where that is needed
				w.WriteHeader(http.StatusNoContent)
				return
			}
			header["Access-Control-Expose-Headers"] = exposedHeader
			next.ServeHTTP(w, r)
		})
	}
}

// RoutedMethod routes HEAD as GET; net/http leaves the body out. Methods that no route has are routed as one that chi
// knows: others it would refuse before it looks at the path, and so before anyone asks for the credential.
func RoutedMethod(next http.Handler) http.Handler {
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

// RouteNotFound is the 404 of a router.
func RouteNotFound(http.ResponseWriter, *http.Request) error {
	return NotFound(ReasonRouteNotFound, "route")
}

// MethodNotAllowed is the 405 of a router, with the methods that the route has (RFC 9110, section 15.5.6).
func MethodNotAllowed(router chi.Routes) func(http.ResponseWriter, *http.Request) error {
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
		return &Error{
			Code: http.StatusMethodNotAllowed, Reason: ReasonMethodNotAllowed,
			Message: "The route does not have this method.",
		}
	}
}
