package api

import (
	"errors"
	"net/http"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/mail"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// The reasons that are of nouns and credentials; packages web and authn have the others. api/openapi.yaml lists them all.
const (
	reasonAccessKeyNotFound      = "ACCESSKEY_NOT_FOUND"
	reasonCustomerNotFound       = "CUSTOMER_NOT_FOUND"
	reasonAgentNotFound          = "AGENT_NOT_FOUND"
	reasonServiceAccountNotFound = "SERVICE_ACCOUNT_NOT_FOUND"
	// A key of a service account's.
	reasonServiceAccountKeyNotFound = "SERVICE_ACCOUNT_KEY_NOT_FOUND"
	reasonUsernameTaken             = "USERNAME_TAKEN"
	reasonLastAdmin                 = "LAST_ADMIN"
	reasonTooManyKeys               = "TOO_MANY_KEYS"
	reasonWrongPassword             = "WRONG_PASSWORD"
	reasonInvalidSignup             = "INVALID_SIGNUP"
)

// problemOf is the one place that decides what a client is told of an error.
func problemOf(err error) *web.Error {
	if p := authn.Unauthenticated(err); p != nil {
		return p
	}
	var p *web.Error
	var limited *auth.LimitedError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &limited):
		return web.TooMany(web.ByUsername, "Too many tries of this username.", limited.Wait)
	case errors.Is(err, auth.ErrBusy):
		return web.Unavailable("Too many concurrent requests; retry later.")
	case errors.Is(err, mail.ErrUnavailable):
		return web.Unavailable("Mail can't be sent; retry later.")
	case errors.Is(err, store.ErrChanged):
		return web.Unavailable("The caller or the target kept changing; retry.")
	case errors.Is(err, store.ErrUnavailable):
		return web.Unavailable("The database is unavailable; retry later.")
	default:
		return &web.Error{Code: http.StatusInternalServerError, Reason: web.ReasonInternal, Message: "Internal error."}
	}
}
