package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/logging"
)

// Observe is the outermost middleware: it gives each request an id, turns a panic into a 500, and in the end counts it and writes its
// one log line.
func (k *Kit) Observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		ev := k.newEvent()
		ev.RequestID, ev.recorder.ResponseWriter, ev.Client = k.requestID(r), w, k.clientAddr(r)
		ev.parent, ev.deadline = r.Context(), started.Add(requestTimeout)
		defer ev.end()
		r = r.WithContext(ev)
		rec := &ev.recorder
		rec.clients = &k.slow
		// SECURITY: no answer waits for a body that the client has announced and doesn't send. What follows on such a connection may be the rest
		// of the body or another client's request, behind a proxy that cuts bodies off: it is not read.
		rec.closes = r.ContentLength != 0 && r.ProtoMajor == 1
		ev.ids[0] = ev.RequestID
		rec.Header()["X-Request-Id"] = ev.ids[:]
		defer func() {
			panicked := recover()
			if panicked != nil {
				k.recovered(rec, r, panicked)
			}
			rec.endShares()
			k.finish(r, ev, rec.code, time.Since(started))
			if panicked != nil && rec.aborted {
				panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// recovered answers for a handler that panicked. Panics of net/http's own making end the connection, as they ask.
func (k *Kit) recovered(rec *recorder, r *http.Request, panicked any) {
	if rec.code != 0 || panicked == http.ErrAbortHandler { //nolint:errorlint // net/http ends the connection for this very value, not for an error that wraps it
		rec.aborted = true
		return
	}
	k.Fail(rec, r, fmt.Errorf("panic: %v\n%s", panicked, debug.Stack()))
}

func (k *Kit) finish(r *http.Request, ev *Event, code int, took time.Duration) {
	if code == 0 {
		code = http.StatusOK // a handler that writes nothing has said so
	}
	route := ev.Route
	if route == "" { // no handler of ours was reached
		route = chi.RouteContext(r.Context()).RoutePattern()
	}
	if route == "" {
		route = "unmatched"
	}
	method := shownMethod(r.Method)
	k.observeRequest(method, route, code, took)

	level := slog.LevelInfo
	switch {
	case isProbe(route) && k.draining.Load():
		level = slog.LevelDebug // that it is not ready is as it should be
	case ev.err != nil && ev.parent.Err() == nil: // else the client has left
		level = slog.LevelError
	case isProbe(route):
		level = slog.LevelDebug
	}
	if !k.log.Enabled(r.Context(), level) {
		return
	}
	line := lines.Get().(*[maxAttrs]slog.Attr)
	defer lines.Put(line)
	attrs := append(line[:0],
		slog.String("method", method),
		slog.String("route", route),
		slog.String("path", k.redactedURI(r.URL)),
		slog.Int("status", code),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
		slog.String("request_id", ev.RequestID),
		slog.String("client_ip", ev.Client.String()),
	)
	attrs = ev.Caller.LogAttrs(attrs)
	if ev.reason != "" {
		attrs = append(attrs, slog.String("reason", ev.reason))
	}
	if ev.cause != "" {
		attrs = append(attrs, slog.String("cause", ev.cause))
	}
	if ev.err != nil {
		attrs = append(attrs, slog.String("error", ev.err.Error()))
	}
	logging.Line(r.Context(), k.log, level, "request", attrs)
}

// maxAttrs is how many attributes the line of a request has at most.
const maxAttrs = 14

// lines are the attributes of lines, one after the other.
var lines = sync.Pool{New: func() any { return new([maxAttrs]slog.Attr) }}

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
