package web

import (
	"math/rand/v2"
	"net/http"
	"strings"
)

const (
	maxRequestID   = 64
	requestIDChars = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"
)

// requestID is the client's own where it may be one (contract, section 1), else a fresh one.
//
// SECURITY: an id ends up in the log. One that holds what has the shape of an access key is not taken.
func (k *Kit) requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > maxRequestID || strings.Trim(id, requestIDChars) != "" || k.tokens.holds(id) {
		return freshRequestID()
	}
	return id
}

// freshRequestID is "req_" and 26 characters of base32, 130 random bits.
//
// They are the runtime's ChaCha8, which the system's randomness seeds: no system call a request. An id is there to find a line again and
// authorises nothing, so that it has to be unique and not secret: of 2^40 requests, two have the same with a chance of 2^-51.
func freshRequestID() string {
	const alphabet, prefix, length = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "req_", 26
	var id [len(prefix) + length]byte
	copy(id[:], prefix)
	random := id[len(prefix):]
	for len(random) > 0 {
		bits := rand.Uint64()                 //nolint:gosec // not a secret, as said above
		for i := range min(len(random), 12) { // of 5 bits each
			random[i] = alphabet[bits%32]
			bits /= 32
		}
		random = random[min(len(random), 12):]
	}
	return string(id[:])
}
