package api

import (
	"errors"
	"net/http"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/web"
)

// slowWorkRetry is the Retry-After where a customer has slow work done: about as long as it waited for its turn.
const slowWorkRetry = time.Second

// turnOf waits until the caller's customer may have slow work done, and returns what ends its turn.
func (s *Server) turnOf(r *http.Request) (release func(), err error) {
	release, err = s.customerTurns.Take(r.Context(), authn.PrincipalOf(r).CustomerID)
	if errors.Is(err, auth.ErrBusy) {
		err = web.TooMany(web.ByCustomer, "Passwords and key pairs of this customer's are made one at a time.", slowWorkRetry)
	}
	return release, err
}
