package api

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
)

// event is what is known of one request. It is filled on the way and logged once, at the end. It is one piece of memory, the
// request's context too: most requests wait for nothing, and are answered in less time than it would take to prepare for it.
type event struct {
	requestContext
	recorder  recorder
	requestID string
	client    netip.Addr // see clientAddr; the zero value where the peer has no address
	route     string
	ids       [1]string // requestID as the header's value
	caller    auth.Principal
	principal *auth.Principal // nil until the credential is found valid
	server    *Server         // that found it so
	// credential is what was presented, for another check.
	credential auth.Credential
	// body is what the client sent, once it was read: a request can be decided twice, and read once.
	body     []byte
	bodyRead bool
	reason   string        // the error's, "" where there was none
	cause    string        // why a credential was refused; never told to the client
	err      error         // of a 5xx
	verify   verifyOptions // of a request that a proxy makes
}

type eventKey struct{}

func eventOf(r *http.Request) *event { return r.Context().Value(eventKey{}).(*event) }

// Value implements context.Context.
func (ev *event) Value(key any) any {
	if key == (eventKey{}) {
		return ev
	}
	return ev.requestContext.Value(key)
}

// requestContext is a context that ends at a deadline. Its timer is made for the first that waits.
type requestContext struct {
	parent   context.Context //nolint:containedctx // a context made of another one has to hold it
	deadline time.Time
	once     sync.Once
	timed    atomic.Pointer[timedContext]
}

type timedContext struct {
	context.Context //nolint:containedctx // this one is made late, and has to be kept for those who ask after
	cancel          context.CancelFunc
}

func (c *requestContext) wait() *timedContext {
	c.once.Do(func() {
		ctx, cancel := context.WithDeadline(c.parent, c.deadline)
		c.timed.Store(&timedContext{Context: ctx, cancel: cancel})
	})
	return c.timed.Load()
}

// end gives the timer back.
func (c *requestContext) end() {
	if timed := c.timed.Load(); timed != nil {
		timed.cancel()
	}
}

// Deadline implements context.Context.
func (c *requestContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} { return c.wait().Done() }

// Err implements context.Context.
func (c *requestContext) Err() error { return c.wait().Err() }

// Value implements context.Context.
func (c *requestContext) Value(key any) any {
	if timed := c.timed.Load(); timed != nil {
		return timed.Value(key) // lets package context find its own in it
	}
	return c.parent.Value(key)
}

// observe surrounds every request: it gives it an id, turns a panic into a 500, and in the end counts it and writes its
// one log line.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		ev := &event{requestID: requestID(r), recorder: recorder{ResponseWriter: w}, client: s.clientAddr(r)}
		ev.parent, ev.deadline = r.Context(), started.Add(requestTimeout)
		defer ev.end()
		r = r.WithContext(ev)
		rec := &ev.recorder
		rec.clients = &s.slow
		// SECURITY: no answer waits for a body that the client has announced and doesn't send. What follows on such a connection may be the rest
		// of the body or another client's request, behind a proxy that cuts bodies off: it is not read.
		rec.closes = r.ContentLength != 0 && r.ProtoMajor == 1
		ev.ids[0] = ev.requestID
		rec.Header()["X-Request-Id"] = ev.ids[:]
		defer func() {
			panicked := recover()
			if panicked != nil {
				s.recovered(rec, r, panicked)
			}
			rec.endShares()
			s.finish(r, ev, rec.code, time.Since(started))
			if panicked != nil && rec.aborted {
				panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// recovered answers for a handler that panicked. Panics of net/http's own making end the connection, as they ask.
func (s *Server) recovered(rec *recorder, r *http.Request, panicked any) {
	if rec.code != 0 || panicked == http.ErrAbortHandler { //nolint:errorlint // net/http ends the connection for this very value, not for an error that wraps it
		rec.aborted = true
		return
	}
	s.fail(rec, r, fmt.Errorf("panic: %v\n%s", panicked, debug.Stack()))
}

func (s *Server) finish(r *http.Request, ev *event, code int, took time.Duration) {
	if code == 0 {
		code = http.StatusOK // a handler that writes nothing has said so
	}
	route := ev.route
	if route == "" { // no handler of ours was reached
		route = chi.RouteContext(r.Context()).RoutePattern()
	}
	if route == "" {
		route = "unmatched"
	}
	method := shownMethod(r.Method)
	s.metrics.observeRequest(method, route, code, took)

	level := slog.LevelInfo
	switch {
	case isProbe(route) && s.draining.Load():
		level = slog.LevelDebug // that it is not ready is as it should be
	case ev.err != nil && ev.parent.Err() == nil: // else the client has left
		level = slog.LevelError
	case isProbe(route):
		level = slog.LevelDebug
	}
	if !s.log.Enabled(r.Context(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("method", method),
		slog.String("route", route),
		slog.String("path", redactedURI(r.URL)),
		slog.Int("status", code),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
		slog.String("request_id", ev.requestID),
		slog.String("client_ip", ev.client.String()),
	)
	if p := ev.principal; p != nil {
		attrs = append(attrs,
			slog.String("principal_type", string(p.Type)),
			slog.String("principal_id", p.ID.String()),
			slog.String("customer_id", p.CustomerID.String()))
	}
	if ev.reason != "" {
		attrs = append(attrs, slog.String("reason", ev.reason))
	}
	if ev.cause != "" {
		attrs = append(attrs, slog.String("cause", ev.cause))
	}
	if ev.err != nil {
		attrs = append(attrs, slog.String("error", ev.err.Error()))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// shownMethod is a request's method, fit for a log and a metric.
//
// SECURITY: any word is a method in HTTP, an access key too.
func shownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	default:
		return "other"
	}
}

// isProbe tells the routes that are asked every few seconds and say nothing new.
func isProbe(route string) bool {
	return route == "/healthz" || route == "/readyz" || route == "/metrics" || route == "/ping"
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	code    int
	aborted bool
	closes  bool // the connection, since the body has not been read to its end
	clients *slowClients
	shares  *shares // nil: nothing that a slow client could hold
}

// WriteHeader implements http.ResponseWriter.
func (rec *recorder) WriteHeader(code int) {
	if rec.code == 0 {
		rec.code = code
		if rec.closes {
			rec.Header().Set("Connection", "close")
		}
	}
	rec.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (rec *recorder) Write(b []byte) (int, error) {
	if rec.code == 0 {
		rec.WriteHeader(http.StatusOK)
	}
	if len(b) > chunk || rec.shares != nil {
		return rec.write(b)
	}
	return rec.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

const (
	maxRequestID   = 64
	requestIDChars = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"
)

// requestID is the client's own where it may be one (contract, section 1), else a fresh one.
//
// SECURITY: an id ends up in the log. One that holds what has the shape of an access key is not taken.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > maxRequestID || strings.Trim(id, requestIDChars) != "" || holdsToken(id, auth.TokenPrefix) ||
		holdsToken(id, auth.SignupTokenPrefix) {
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

// holdsToken reports whether s has room for a token after its prefix. All of ours have the same length.
func holdsToken(s, prefix string) bool {
	i := strings.Index(s, prefix)
	return i >= 0 && len(s)-i >= auth.TokenLength
}

// redactedURI is a request's path and query, fit for a log.
//
// SECURITY: this is a list of what may be shown, not of what must not: a credential under a misspelt name, or pasted
// into the path, is as secret as one in its place. What can't be read for certain, because of escapes that are wrong or double, is not shown.
func redactedURI(u *url.URL) string {
	var b strings.Builder
	b.WriteString(redactedPath(u.EscapedPath()))
	if u.RawQuery == "" {
		return b.String()
	}
	for i, pair := range strings.Split(clipped(u.RawQuery), "&") {
		if pair == "" {
			continue
		}
		name, value, hasValue := strings.Cut(pair, "=")
		b.WriteByte("?&"[min(i, 1)])
		if !showable(name) {
			name = secret.Redacted
		}
		b.WriteString(name)
		if hasValue {
			b.WriteByte('=')
			if !showableParam(name, value) {
				value = secret.Redacted
			}
			b.WriteString(value)
		}
	}
	return b.String()
}

// showableParam reports whether a parameter is what its name says, and no secret.
func showableParam(name, value string) bool {
	switch name {
	case "page_size":
		_, ok := parsePageSize([]string{value})
		return ok && len(value) < 20
	case "page_token":
		plain, err := url.QueryUnescape(value)
		_, ok := parsePageToken(plain)
		return err == nil && ok
	default:
		return false
	}
}

// redactedPath replaces the path's segments that may hold credentials.
func redactedPath(path string) string {
	segments := strings.Split(clipped(path), "/")
	for i, segment := range segments {
		if !showable(segment) {
			segments[i] = secret.Redacted
		}
	}
	return strings.Join(segments, "/")
}

// showable reports whether a piece of a URL can be read and holds no access key, JWT or temp token, nor anything that is as long as one.
func showable(s string) bool {
	plain, err := url.PathUnescape(s)
	if err != nil || strings.Contains(plain, "%") {
		return false
	}
	if _, isID := parseID(plain); isID {
		return true
	}
	const random = auth.TokenLength - len(auth.TokenPrefix)
	word := func(r rune) bool { return !strings.ContainsRune(requestIDChars, r) }
	return !strings.Contains(plain, auth.TokenPrefix) && !strings.Contains(plain, "eyJ") &&
		!slices.ContainsFunc(strings.FieldsFunc(plain, word), func(w string) bool { return len(w) >= random })
}

// clipped bounds what one request can add to the log.
func clipped(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
