// Package authn finds out who sends a request, and keeps it with the request. What answers requests under /v1.0 and what answers proxies
// both stand on it.
package authn

import (
	"errors"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"accesskeys/internal/auth"
	"accesskeys/internal/web"
)

// Authenticator lets requests through whose credential is valid. It is safe for concurrent use.
type Authenticator struct {
	verifier *auth.Verifier
	checks   *prometheus.CounterVec
	counters web.Found[check, prometheus.Counter] // of checks
}

// check labels what was checked.
type check struct {
	kind   auth.CredentialKind
	result string
}

// New makes an Authenticator, whose figures are registered.
func New(verifier *auth.Verifier, registry prometheus.Registerer) *Authenticator {
	a := &Authenticator{verifier: verifier, checks: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "accesskeys_credential_checks_total", Help: "Credentials checked, under /v1.0 and for proxies, by kind and result.",
	}, []string{"kind", "result"})}
	registry.MustRegister(a.checks)
	return a
}

// event is a request's web.Event with its caller, in one piece of memory.
type event struct {
	web.Event
	verified      auth.Principal
	principal     *auth.Principal // nil until the credential is found valid
	authenticator *Authenticator  // that found it so
	// credential is what was presented, for another check.
	credential auth.Credential
}

// NewEvent makes the web.Event of a request, with room for its caller.
func NewEvent() *web.Event {
	ev := &event{}
	ev.Caller = ev
	return &ev.Event
}

func eventOf(r *http.Request) *event { return web.EventOf(r).Caller.(*event) }

// Account implements web.Caller: a customer, or where nobody has logged in an address.
func (ev *event) Account() any {
	if ev.principal != nil {
		return ev.principal.CustomerID
	}
	return ev.Client
}

// Recheck implements web.Caller.
func (*event) Recheck(r *http.Request) error { return IdentifyAgain(r) }

// LogAttrs implements web.Caller.
func (ev *event) LogAttrs(attrs []slog.Attr) []slog.Attr {
	p := ev.principal
	if p == nil {
		return attrs
	}
	return append(attrs,
		slog.String("principal_type", string(p.Type)),
		slog.String("principal_id", p.ID.String()),
		slog.String("customer_id", p.CustomerID.String()))
}

// Middleware lets a request through with its caller, and everything else nowhere.
func (a *Authenticator) Middleware(kit *web.Kit) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			credential, err := auth.Extract(r.URL.RawQuery, r.Header["Authorization"])
			if err := a.Identify(r, credential, err); err != nil {
				kit.Fail(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Identify finds out who presents a credential, or passes on why none was found, and notes and counts it. Its error is auth.ErrNoCredential,
// auth.ErrInvalidCredential or store.ErrUnavailable.
func (a *Authenticator) Identify(r *http.Request, credential auth.Credential, err error) error {
	if err == nil {
		ev := eventOf(r)
		if ev.verified, err = a.verifier.Verify(r.Context(), credential, ev.Client); err == nil {
			ev.principal, ev.authenticator, ev.credential = &ev.verified, a, credential
		}
	}
	a.count(credential.Kind, err)
	return err
}

// IdentifyAgain checks the credential once more, after something that may have taken long: it may have been revoked meanwhile. Where no
// credential has let the request through, it does nothing.
func IdentifyAgain(r *http.Request) error {
	ev := eventOf(r)
	if ev.authenticator == nil {
		return nil
	}
	caller, err := ev.authenticator.verifier.Verify(r.Context(), ev.credential, ev.Client)
	if err == nil {
		ev.verified = caller
	}
	return err
}

// PrincipalOf returns the caller. It is for handlers behind Middleware or Identify, and panics elsewhere.
func PrincipalOf(r *http.Request) auth.Principal { return *eventOf(r).principal }

func (a *Authenticator) count(kind auth.CredentialKind, err error) {
	result := "accepted"
	switch {
	case errors.Is(err, auth.ErrNoCredential):
		result = "absent"
	case errors.Is(err, auth.ErrInvalidCredential):
		result = "refused"
	case err != nil:
		result = "unavailable"
	}
	if kind == "" {
		kind = "none" // none at all, or nothing of either kind's shape
	}
	a.counters.Of(check{kind, result}, func(c check) prometheus.Counter {
		return a.checks.WithLabelValues(string(c.kind), c.result)
	}).Inc()
}

// The reasons of refusals. api/openapi.yaml lists them all.
const (
	ReasonAuthenticationRequired = "AUTHENTICATION_REQUIRED"
	ReasonInvalidCredentials     = "INVALID_CREDENTIALS"
	ReasonPermissionDenied       = "PERMISSION_DENIED"
)

// Unauthenticated is the 401 of an error, nil where it is none.
func Unauthenticated(err error) *web.Error {
	switch {
	case errors.Is(err, auth.ErrNoCredential):
		return &web.Error{
			Code: http.StatusUnauthorized, Reason: ReasonAuthenticationRequired, Message: "The request carries no credential.",
			Challenge: `Bearer realm="voipbin"`,
		}
	case errors.Is(err, auth.ErrInvalidCredential):
		return &web.Error{
			Code: http.StatusUnauthorized, Reason: ReasonInvalidCredentials, Message: "The credential is not valid.",
			Challenge: `Bearer realm="voipbin", error="invalid_token"`,
		}
	default:
		return nil
	}
}

// PermissionDenied is the 403 of a caller who may not do this.
func PermissionDenied() error {
	return &web.Error{Code: http.StatusForbidden, Reason: ReasonPermissionDenied, Message: "The caller may not do this."}
}
