package web

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Error is an error as a client sees it (contract, section 1). Its message says nothing that the client did not know.
type Error struct {
	Code       int    // HTTP's
	Status     string // "": the one that belongs to Code
	Reason     string
	Message    string
	Details    []Detail
	RetryAfter time.Duration // 0: no Retry-After
	Challenge  string        // the WWW-Authenticate header of a 401
}

// Detail is one entry of an error's details.
type Detail struct {
	Field     string `json:"field,omitzero"`
	Message   string `json:"message,omitzero"`
	LimitedBy string `json:"limited_by,omitzero"`
}

// Error implements error.
func (p *Error) Error() string { return p.Reason }

// The reasons that need no noun. api/openapi.yaml lists them all.
const (
	ReasonInvalidID               = "INVALID_ID"
	ReasonInvalidJSONBody         = "INVALID_JSON_BODY"
	ReasonInvalidArgument         = "INVALID_ARGUMENT"
	ReasonInvalidRequestParameter = "INVALID_REQUEST_PARAMETER"
	ReasonBodyTooLarge            = "BODY_TOO_LARGE"
	ReasonUnsupportedMediaType    = "UNSUPPORTED_MEDIA_TYPE"
	ReasonRouteNotFound           = "ROUTE_NOT_FOUND"
	ReasonMethodNotAllowed        = "METHOD_NOT_ALLOWED"
	ReasonRateLimitExceeded       = "RATE_LIMIT_EXCEEDED"
	ReasonServiceUnavailable      = "SERVICE_UNAVAILABLE"
	ReasonInternal                = "INTERNAL"
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

// UnavailableRetry is the Retry-After of a 503: long enough not to hammer what is in trouble, short enough for what is
// usually a restart.
const UnavailableRetry = 2 * time.Second

// Whose requests a limit counts together.
const (
	ByIP       = "ip"
	ByUsername = "username"
	ByCustomer = "customer"
)

// TooMany is the 429 of a limit (contract, section 5).
func TooMany(by, message string, wait time.Duration) *Error {
	return &Error{
		Code: http.StatusTooManyRequests, Reason: ReasonRateLimitExceeded, Message: message, RetryAfter: wait,
		Details: []Detail{{LimitedBy: by}},
	}
}

// BadRequest is a 400.
func BadRequest(reason, message string, details ...Detail) error {
	return &Error{Code: http.StatusBadRequest, Reason: reason, Message: message, Details: details}
}

// Conflict is a 409, which alone of all codes has two statuses.
func Conflict(reason, status, message string) error {
	return &Error{Code: http.StatusConflict, Status: status, Reason: reason, Message: message}
}

// NotFound is a 404.
func NotFound(reason, what string) error {
	return &Error{Code: http.StatusNotFound, Reason: reason, Message: fmt.Sprintf("There is no such %s.", what)}
}

// Unavailable is a 503 that is worth asking again soon.
func Unavailable(message string) *Error {
	return &Error{
		Code: http.StatusServiceUnavailable, Reason: ReasonServiceUnavailable, Message: message, RetryAfter: UnavailableRetry,
	}
}

// errorBody is the body of every 4xx and 5xx.
type errorBody struct {
	Error struct {
		Status    string   `json:"status"`
		Reason    string   `json:"reason"`
		Message   string   `json:"message"`
		RequestID string   `json:"request_id"`
		Details   []Detail `json:"details,omitempty"`
	} `json:"error"`
}

// Fail renders an error and notes it for the request's log line. Nothing else writes error bodies.
func (k *Kit) Fail(w http.ResponseWriter, r *http.Request, err error) {
	ev := EventOf(r)
	p := k.problemOf(err)
	ev.reason, ev.cause = p.Reason, k.cause(err)
	if p.Code >= http.StatusInternalServerError {
		ev.err = err
	}
	code := p.Code
	if ev.MapStatus != nil {
		code = ev.MapStatus(code)
	}
	header := w.Header()
	if p.Challenge != "" {
		header.Set("WWW-Authenticate", p.Challenge)
	}
	retryAfter := p.RetryAfter
	if code == http.StatusServiceUnavailable {
		retryAfter = max(retryAfter, UnavailableRetry)
	}
	if retryAfter > 0 {
		seconds := (retryAfter + time.Second - 1) / time.Second
		header.Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	var body errorBody
	body.Error.Status = p.Status
	if p.Status == "" {
		body.Error.Status = statusName(code)
	}
	body.Error.Reason = p.Reason
	body.Error.Message = p.Message
	body.Error.RequestID = ev.RequestID
	body.Error.Details = p.Details
	WriteJSON(w, code, body)
}
