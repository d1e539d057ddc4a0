package web

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Event is what is known of one request. It is filled on the way and logged once, at the end. It is one piece of memory, the
// request's context too: most requests wait for nothing, and are answered in less time than it would take to prepare for it.
type Event struct {
	requestContext
	recorder recorder
	// RequestID is the request's id (contract, section 1).
	RequestID string
	ids       [1]string // RequestID as the header's value
	// Client is the client's address, see Kit.clientAddr; the zero value where the peer has no address.
	Client netip.Addr
	// Route is the pattern that the request has matched, "" where no handler has said so.
	Route string
	// Caller is what the package that answers knows of the request.
	Caller Caller
	// MapStatus is the status to answer an error with in place of its own. Nil leaves it.
	MapStatus func(code int) int

	body     []byte // what the client sent, once it was read: a request can be decided twice, and read once
	bodyRead bool
	reason   string // the error's, "" where there was none
	cause    string // why a credential was refused; never told to the client
	err      error  // of a 5xx
}

// Caller is who sends a request, as far as the package that answers it knows.
type Caller interface {
	// Account is whom the memory of the answer is counted to: a value that can be compared.
	Account() any
	// Recheck checks the request's credential again, after something that may have taken long.
	Recheck(r *http.Request) error
	// LogAttrs adds to the request's log line who sends it.
	LogAttrs(attrs []slog.Attr) []slog.Attr
}

type eventKey struct{}

// EventOf returns a request's event. It panics where Observe has not seen the request.
func EventOf(r *http.Request) *Event { return r.Context().Value(eventKey{}).(*Event) }

// Value implements context.Context.
func (ev *Event) Value(key any) any {
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
