// Package logging makes the program's logger.
package logging

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// delay is how long a line may wait for others, to be written together with them.
	delay = 20 * time.Millisecond
	// most is how many bytes of lines wait.
	most = 64 << 10
)

// New makes a logger of JSON lines, or of text. Lines are written a few at a time, because a system call for each would cost a
// request more than being checked does; what is worth a warning is written at once, with all before it. The caller
// calls flush at the end.
func New(w io.Writer, level slog.Leveler, text bool) (log *slog.Logger, flush func()) {
	lines := &lineWriter{out: w}
	options := &slog.HandlerOptions{Level: level}
	if text {
		return slog.New(urgentHandler{Handler: slog.NewTextHandler(lines, options), flush: lines.flush}), lines.flush
	}
	urgent := urgentHandler{Handler: slog.NewJSONHandler(lines, options), flush: lines.flush}
	return slog.New(jsonHandler{urgentHandler: urgent, lines: zerolog.New(lines)}), lines.flush
}

// urgentHandler flushes after a warning or an error.
type urgentHandler struct {
	slog.Handler
	flush func()
}

// Handle implements slog.Handler.
func (h urgentHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.flush()
	}
	return err
}

// WithAttrs implements slog.Handler.
func (h urgentHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return urgentHandler{Handler: h.Handler.WithAttrs(attrs), flush: h.flush}
}

// WithGroup implements slog.Handler.
func (h urgentHandler) WithGroup(name string) slog.Handler {
	return urgentHandler{Handler: h.Handler.WithGroup(name), flush: h.flush}
}

// lineWriter gathers lines. It is safe for concurrent use.
type lineWriter struct {
	out     io.Writer
	mu      sync.Mutex
	lines   []byte
	pending bool // a flush is due
}

// Write implements io.Writer. It never fails: there is nobody to tell.
func (w *lineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, line...)
	switch {
	case len(w.lines) >= most:
		w.write()
	case !w.pending:
		w.pending = true
		time.AfterFunc(delay, w.flush)
	}
	return len(line), nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = false
	w.write()
}

func (w *lineWriter) write() {
	if len(w.lines) > 0 {
		_, _ = w.out.Write(w.lines)
		w.lines = w.lines[:0]
	}
}
