package web

import (
	"io"
	"net/http"
	"runtime"
	"sync"

	"accesskeys/internal/slowclient"
)

// What requests may hold while their clients are slow, in bytes.
const (
	// An HTTP/1.1 connection has one request at a time, and costs about as much without one: there only large answers count.
	answerMemory = 10 << 20 // for each core
	itemMemory   = 40_000   // an item's of a list at most: its text in 4 bytes a character, or 6 in JSON
	// MetricsMemory is an answer's of /metrics.
	MetricsMemory = 1 << 20
	// An HTTP/2 connection has a hundred, so that each of them counts.
	streamsMemory = 4 << 20  // for each core
	streamMemory  = 32 << 10 // one's, beside its header
	// chunk is how much of an answer a client must take at a time to count as one that reads.
	chunk = 64 << 10
)

// slowClients are the memory of what slow clients hold.
type slowClients struct {
	answers, streams *slowclient.Budget
}

func newSlowClients() slowClients {
	cores := int64(runtime.GOMAXPROCS(0))
	return slowClients{slowclient.NewBudget(cores * answerMemory), slowclient.NewBudget(cores * streamsMemory)}
}

// Answers is the memory of answers under way, and its size in bytes.
func (k *Kit) Answers() (*slowclient.Budget, int64) {
	return k.slow.answers, int64(runtime.GOMAXPROCS(0)) * answerMemory
}

func (s slowClients) cutOff() float64 { return float64(s.answers.CutOff() + s.streams.CutOff()) }

// shares are one request's of both.
type shares struct {
	answer, stream slowclient.Share
}

// share is made for requests that need it. Most don't.
func (rec *recorder) share() *shares {
	if rec.shares == nil {
		rec.shares = &shares{}
		rec.shares.answer.Begin(rec.clients.answers, rec.ResponseWriter)
		rec.shares.stream.Begin(rec.clients.streams, rec.ResponseWriter)
	}
	return rec.shares
}

func (rec *recorder) endShares() {
	if rec.shares != nil {
		rec.shares.answer.End()
		rec.shares.stream.End()
	}
}

// Take waits for memory of the answer. The request has it until its client has read the answer. SECURITY: after a wait the credential is
// checked again: it may have been revoked meanwhile.
func Take(r *http.Request, bytes int64) error {
	ev := EventOf(r)
	waited, err := ev.recorder.share().answer.Take(r.Context(), ev.Caller.Account(), bytes)
	if err != nil {
		return &Error{
			Code: http.StatusServiceUnavailable, Reason: ReasonServiceUnavailable,
			Message: "Too many answers are waiting for slow clients; retry later.", RetryAfter: UnavailableRetry,
		}
	}
	if waited {
		return ev.Caller.Recheck(r)
	}
	return nil
}

// Takes is Take as a middleware.
func (k *Kit) Takes(bytes int64) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := Take(r, bytes); err != nil {
				k.Fail(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Stream counts HTTP/2 requests. Their answers are sent to the end within it, not when the handler has returned.
func (*Kit) Stream(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 {
			next.ServeHTTP(w, r)
			return
		}
		rec := &EventOf(r).recorder
		if _, err := rec.share().stream.Take(r.Context(), EventOf(r).Client, streamMemory+headerBytes(r.Header)); err != nil {
			rec.code = http.StatusServiceUnavailable // for the log: an answer could wait for its client too
			panic(http.ErrAbortHandler)
		}
		r.Body = slowBody{r.Body, rec}
		next.ServeHTTP(w, r)
		_, _ = rec.wait(func() (int, error) { return 0, http.NewResponseController(rec.ResponseWriter).Flush() })
	})
}

func headerBytes(header http.Header) (n int64) {
	for name, values := range header {
		for _, value := range values {
			n += int64(len(name) + len(value))
		}
	}
	return n
}

// slowBody is a request's body that its client may send slowly.
type slowBody struct {
	io.ReadCloser
	rec *recorder
}

// Read implements io.Reader.
func (b slowBody) Read(p []byte) (int, error) {
	return b.rec.wait(func() (int, error) { return b.ReadCloser.Read(p) })
}

// wait calls do, which waits for the client.
func (rec *recorder) wait(do func() (int, error)) (int, error) {
	s := rec.share()
	return s.answer.Wait(func() (int, error) { return s.stream.Wait(do) })
}

// write sends what may take long, a chunk at a time: each is a progress of the client's.
func (rec *recorder) write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		var n int
		n, err = rec.wait(func() (int, error) { return rec.ResponseWriter.Write(b[:min(len(b), chunk)]) })
		b, written = b[n:], written+n
	}
	return written, err
}

// chunks are a body in pieces, so that it can grow without being copied and shrink while it is written.
type chunks struct {
	filled []*[chunk]byte // all full but the last
	length int
}

var freeChunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// Write implements io.Writer.
func (c *chunks) Write(b []byte) (int, error) {
	written := len(b)
	for len(b) > 0 {
		if c.length == len(c.filled)*chunk {
			c.filled = append(c.filled, freeChunks.Get().(*[chunk]byte))
		}
		n := copy(c.filled[len(c.filled)-1][c.length%chunk:], b)
		b, c.length = b[n:], c.length+n
	}
	return written, nil
}

func (c *chunks) first() []byte { return c.filled[0][:min(c.length, chunk)] }

// drop takes the first away.
func (c *chunks) drop() {
	freeChunks.Put(c.filled[0])
	c.length -= min(c.length, chunk)
	c.filled = c.filled[1:]
}

func (c *chunks) memory() int64 { return int64(len(c.filled)) * chunk }
