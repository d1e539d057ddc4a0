package api

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/web"
)

// event is a request's Event with its caller, in one piece of memory.
type event struct {
	web.Event
	verified  auth.Principal
	principal *auth.Principal // nil until the credential is found valid
	server    *Server         // that found it so
	// credential is what was presented, for another check.
	credential auth.Credential
	verify     verifyOptions // of a request that a proxy makes
}

func newEvent() *web.Event {
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
func (*event) Recheck(r *http.Request) error { return identifyAgain(r) }

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

// authenticate lets a request through with its principal, and everything else nowhere.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		credential, err := auth.Extract(r.URL.RawQuery, r.Header["Authorization"])
		if err := s.identify(r, credential, err); err != nil {
			s.kit.Fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// identify finds out who presents a credential, or passes on why none was found, and notes and counts it.
func (s *Server) identify(r *http.Request, credential auth.Credential, err error) error {
	if err == nil {
		ev := eventOf(r)
		if ev.verified, err = s.verifier.Verify(r.Context(), credential, ev.Client); err == nil {
			ev.principal, ev.server, ev.credential = &ev.verified, s, credential
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
	caller, err := ev.server.verifier.Verify(r.Context(), ev.credential, ev.Client)
	if err == nil {
		ev.verified = caller
	}
	return err
}

// decideAgain is for a request whose write did not happen because its caller, or what it is about, is not as it was when that was
// checked. It returns once the check can be made anew by what is true now.
func (s *Server) decideAgain(r *http.Request) error {
	if err := s.cache.Refresh(r.Context()); err != nil {
		return err
	}
	return identifyAgain(r)
}

// principalOf returns the caller. It is for handlers behind authenticate or identify, and panics elsewhere.
func principalOf(r *http.Request) auth.Principal { return *eventOf(r).principal }

// slowWorkRetry is the Retry-After where a customer has slow work done: about as long as it waited for its turn.
const slowWorkRetry = time.Second

// turnOf waits until the caller's customer may have slow work done, and returns what ends its turn.
func (s *Server) turnOf(r *http.Request) (release func(), err error) {
	release, err = s.customerTurns.Take(r.Context(), principalOf(r).CustomerID)
	if errors.Is(err, auth.ErrBusy) {
		err = web.TooMany(web.ByCustomer, "Passwords and key pairs of this customer's are made one at a time.", slowWorkRetry)
	}
	return release, err
}
