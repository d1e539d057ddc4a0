package api

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/mail"
	"accesskeys/internal/store"
)

// problem is an error as a client sees it (contract, section 1). Its message says nothing that the client did not know.
type problem struct {
	code       int
	status     string // "": the one that goes with code
	reason     string
	message    string
	details    []detail
	retryAfter time.Duration // 0: no Retry-After
	challenge  string        // the WWW-Authenticate header of a 401
}

// detail is one entry of an error's details.
type detail struct {
	Field     string `json:"field,omitzero"`
	Message   string `json:"message,omitzero"`
	LimitedBy string `json:"limited_by,omitzero"`
}

// Error implements error.
func (p *problem) Error() string { return p.reason }

// The reasons of the contract. api/openapi.yaml lists the same.
const (
	reasonAuthenticationRequired  = "AUTHENTICATION_REQUIRED"
	reasonInvalidCredentials      = "INVALID_CREDENTIALS"
	reasonPermissionDenied        = "PERMISSION_DENIED"
	reasonInvalidID               = "INVALID_ID"
	reasonInvalidJSONBody         = "INVALID_JSON_BODY"
	reasonInvalidArgument         = "INVALID_ARGUMENT"
	reasonInvalidRequestParameter = "INVALID_REQUEST_PARAMETER"
	reasonBodyTooLarge            = "BODY_TOO_LARGE"
	reasonUnsupportedMediaType    = "UNSUPPORTED_MEDIA_TYPE"
	reasonAccessKeyNotFound       = "ACCESSKEY_NOT_FOUND"
	reasonCustomerNotFound        = "CUSTOMER_NOT_FOUND"
	reasonAgentNotFound           = "AGENT_NOT_FOUND"
	reasonServiceAccountNotFound  = "SERVICE_ACCOUNT_NOT_FOUND"
	// A key of a service account's.
	reasonServiceAccountKeyNotFound = "SERVICE_ACCOUNT_KEY_NOT_FOUND"
	reasonUsernameTaken             = "USERNAME_TAKEN"
	reasonLastAdmin                 = "LAST_ADMIN"
	reasonTooManyKeys               = "TOO_MANY_KEYS"
	reasonWrongPassword             = "WRONG_PASSWORD"
	reasonInvalidSignup             = "INVALID_SIGNUP"
	reasonRouteNotFound             = "ROUTE_NOT_FOUND"
	reasonMethodNotAllowed          = "METHOD_NOT_ALLOWED"
	reasonRateLimitExceeded         = "RATE_LIMIT_EXCEEDED"
	reasonServiceUnavailable        = "SERVICE_UNAVAILABLE"
	reasonInternal                  = "INTERNAL"
)

// statusName maps an HTTP status to the status of an error body.
func statusName(code int) string {
	switch code {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return "INVALID_ARGUMENT"
	case http.StatusUnauthorized:
		return "UNAUTHENTICATED"
	case http.StatusForbidden:
		return "PERMISSION_DENIED"
	case http.StatusNotFound:
		return "NOT_FOUND"
	case http.StatusTooManyRequests:
		return "RESOURCE_EXHAUSTED"
	case http.StatusServiceUnavailable:
		return "UNAVAILABLE"
	default:
		return "INTERNAL"
	}
}

// unavailableRetry is the Retry-After of a 503: long enough not to hammer what is in trouble, short enough for what is
// usually a restart.
const unavailableRetry = 2 * time.Second

// problemOf is the one place that decides what a client is told of an error.
func problemOf(err error) *problem {
	var p *problem
	var limited *auth.LimitedError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &limited):
		return tooMany(byUsername, "Too many tries of this username.", limited.Wait)
	case errors.Is(err, auth.ErrNoCredential):
		return &problem{
			code: http.StatusUnauthorized, reason: reasonAuthenticationRequired, message: "The request carries no credential.",
			challenge: `Bearer realm="voipbin"`,
		}
	case errors.Is(err, auth.ErrInvalidCredential):
		return &problem{
			code: http.StatusUnauthorized, reason: reasonInvalidCredentials, message: "The credential is not valid.",
			challenge: `Bearer realm="voipbin", error="invalid_token"`,
		}
	case errors.Is(err, auth.ErrBusy):
		return &problem{
			code: http.StatusServiceUnavailable, reason: reasonServiceUnavailable,
			message: "Too much of this is under way at once; try again shortly.", retryAfter: unavailableRetry,
		}
	case errors.Is(err, mail.ErrUnavailable):
		return &problem{
			code: http.StatusServiceUnavailable, reason: reasonServiceUnavailable,
			message: "The service can't send mail at the moment; try again shortly.", retryAfter: unavailableRetry,
		}
	case errors.Is(err, store.ErrChanged):
		return &problem{
			code: http.StatusServiceUnavailable, reason: reasonServiceUnavailable,
			message: "What the request rests on kept changing; try again.", retryAfter: unavailableRetry,
		}
	case errors.Is(err, store.ErrUnavailable):
		return &problem{
			code: http.StatusServiceUnavailable, reason: reasonServiceUnavailable,
			message: "The service can't reach its database; try again shortly.", retryAfter: unavailableRetry,
		}
	default:
		return &problem{code: http.StatusInternalServerError, reason: reasonInternal, message: "Something went wrong here."}
	}
}

// Whose requests a limit counts together.
const (
	byIP       = "ip"
	byUsername = "username"
	byCustomer = "customer"
)

// tooMany is the 429 of a limit (contract, section 5).
func tooMany(by, message string, wait time.Duration) *problem {
	return &problem{
		code: http.StatusTooManyRequests, reason: reasonRateLimitExceeded, message: message, retryAfter: wait,
		details: []detail{{LimitedBy: by}},
	}
}

func badRequest(reason, message string, details ...detail) error {
	return &problem{code: http.StatusBadRequest, reason: reason, message: message, details: details}
}

func permissionDenied() error {
	return &problem{
		code: http.StatusForbidden, reason: reasonPermissionDenied, message: "The caller may not do this.",
	}
}

// conflict is a 409, which alone of all codes has two statuses.
func conflict(reason, status, message string) error {
	return &problem{code: http.StatusConflict, status: status, reason: reason, message: message}
}

func notFound(reason, what string) error {
	return &problem{code: http.StatusNotFound, reason: reason, message: fmt.Sprintf("There is no such %s.", what)}
}

// errorBody is the body of every 4xx and 5xx.
type errorBody struct {
	Error struct {
		Status    string   `json:"status"`
		Reason    string   `json:"reason"`
		Message   string   `json:"message"`
		RequestID string   `json:"request_id"`
		Details   []detail `json:"details,omitempty"`
	} `json:"error"`
}

// fail renders an error and notes it for the request's log line. Nothing else writes error bodies.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	ev := eventOf(r)
	p := problemOf(err)
	ev.reason, ev.cause = p.reason, auth.Cause(err)
	if p.code >= http.StatusInternalServerError {
		ev.err = err
	}
	code := ev.verify.statuses.narrow(p.code)
	header := w.Header()
	if p.challenge != "" {
		header.Set("WWW-Authenticate", p.challenge)
	}
	retryAfter := p.retryAfter
	if code == http.StatusServiceUnavailable {
		retryAfter = max(retryAfter, unavailableRetry)
	}
	if retryAfter > 0 {
		seconds := (retryAfter + time.Second - 1) / time.Second
		header.Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	var body errorBody
	body.Error.Status = p.status
	if p.status == "" {
		body.Error.Status = statusName(code)
	}
	body.Error.Reason = p.reason
	body.Error.Message = p.message
	body.Error.RequestID = ev.requestID
	body.Error.Details = p.details
	writeJSON(w, code, body)
}
