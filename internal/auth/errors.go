package auth

import (
	"errors"
	"time"
)

var (
	// ErrNoCredential means that a request presents no credential at all.
	ErrNoCredential = errors.New("no credential")
	// ErrInvalidCredential means that what was presented is not accepted. A caller is told no more than that.
	ErrInvalidCredential = errors.New("invalid credential")
	// ErrBusy means that as much slow work is under way as may be.
	ErrBusy = errors.New("too much slow work at once")
)

// LimitedError means that a username was tried as often as it may be, whether an agent has it or not. It may be tried again after Wait.
type LimitedError struct{ Wait time.Duration }

// Error implements error.
func (*LimitedError) Error() string { return "too many tries of this username" }

// cause says why a credential was refused, for the log alone: to a caller all refusals look the same.
type cause string

const (
	causeSeveral   cause = "several credentials"
	causeMalformed cause = "malformed"
	causeSignature cause = "bad signature"
	causeClaims    cause = "bad claims"
	causeUnknown   cause = "unknown"
	causeExpired   cause = "expired"
	causeDeleted   cause = "deleted"
	causeOwner     cause = "owner deleted"
	causePassword  cause = "password changed"
	causeWrong     cause = "wrong password"
)

// restsOnRow reports whether a token is refused for a row that was found, not for what it says itself. That there is none was proven
// where it was looked up.
func (c cause) restsOnRow() bool { return c == causeDeleted || c == causeOwner || c == causePassword }

// refusal is an ErrInvalidCredential with its cause.
type refusal struct{ cause cause }

func refused(c cause) error { return refusal{c} }

// Error implements error. It names the cause and nothing of the credential.
func (r refusal) Error() string { return ErrInvalidCredential.Error() + ": " + string(r.cause) }

// Is makes errors.Is(err, ErrInvalidCredential) true.
func (refusal) Is(target error) bool { return target == ErrInvalidCredential }

// Cause returns why a credential was refused, "" where err is no refusal. It is for logs, never for callers.
func Cause(err error) string {
	if r, ok := errors.AsType[refusal](err); ok {
		return string(r.cause)
	}
	return ""
}
