package mail

import (
	"context"
	"log/slog"

	"accesskeys/internal/secret"
)

// Log writes codes to the log instead of sending them.
//
// SECURITY: who reads the log can then sign up with any address. It is for `server dev` alone.
type Log struct {
	log *slog.Logger
}

// NewLog makes a Log.
func NewLog(log *slog.Logger) *Log { return &Log{log: log} }

// SendCode logs the code.
func (l *Log) SendCode(ctx context.Context, to string, code secret.Value) error {
	l.log.InfoContext(ctx, "sign-up code (SMTP_URL is not set)", "to", to, "code", code.Reveal())
	return nil
}

// SendAccountExists logs that there is no code.
func (l *Log) SendAccountExists(ctx context.Context, to string) error {
	l.log.InfoContext(ctx, "a sign-up without a code: a customer has this address already", "to", to)
	return nil
}
