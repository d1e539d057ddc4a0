package api

import (
	"errors"
	"net/http"

	"accesskeys/internal/auth"
	"accesskeys/internal/mail"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// The reasons that are of nouns and credentials; package web has the others. api/openapi.yaml lists them all.
const (
	reasonAuthenticationRequired = "AUTHENTICATION_REQUIRED"
	reasonInvalidCredentials     = "INVALID_CREDENTIALS"
	reasonPermissionDenied       = "PERMISSION_DENIED"
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
	var p *web.Error
	var limited *auth.LimitedError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &limited):
		return web.TooMany(web.ByUsername, "Too many tries of this username.", limited.Wait)
	case errors.Is(err, auth.ErrNoCredential):
		return &web.Error{
			Code: http.StatusUnauthorized, Reason: reasonAuthenticationRequired, Message: "The request carries no credential.",
			Challenge: `Bearer realm="voipbin"`,
		}
	case errors.Is(err, auth.ErrInvalidCredential):
		return &web.Error{
			Code: http.StatusUnauthorized, Reason: reasonInvalidCredentials, Message: "The credential is not valid.",
			Challenge: `Bearer realm="voipbin", error="invalid_token"`,
		}
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

func permissionDenied() error {
	return &web.Error{
		Code: http.StatusForbidden, Reason: reasonPermissionDenied, Message: "The caller may not do this.",
	}
}
