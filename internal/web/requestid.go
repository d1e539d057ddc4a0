package web

import (
	"crypto/rand"
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
func freshRequestID() string {
	const alphabet, length = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 26
	var random [length]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the program instead
	id := append(make([]byte, 0, 4+length), "req_"...)
	for _, b := range random {
		id = append(id, alphabet[b%32])
	}
	return string(id)
}
