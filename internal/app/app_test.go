package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"accesskeys/internal/config"
	"accesskeys/internal/postgres"
)

// The waiting has an end, whatever the database says, and ends with the program.
func TestWaitForAConnectionIsBounded(t *testing.T) {
	t.Parallel()
	full := fmt.Errorf("connecting: %w", postgres.ErrNoConnection)
	stopped, stop := context.WithCancel(t.Context())
	for name, test := range map[string]struct {
		ctx      func() context.Context
		patience time.Duration
		do       func() error
	}{
		"its own bound": {t.Context, 2 * connectPause, func() error { return full }},
		"a signal":      {func() context.Context { return stopped }, time.Hour, func() error { stop(); return full }},
	} {
		attempts := 0
		err := retryForConnection(test.ctx(), slog.New(slog.DiscardHandler), test.patience, func() error { attempts++; return test.do() })
		if !errors.Is(err, postgres.ErrNoConnection) || attempts == 0 {
			t.Errorf("%s: %d attempts, %v", name, attempts, err)
		}
	}
	if connectTimeout != 30*time.Second {
		t.Errorf("the bound is %v", connectTimeout)
	}
}

// SIGNUP=true takes a mail server and a sender. Without it there is no mailer, whatever is set.
func TestMailerIsThereWhereSignupIs(t *testing.T) {
	t.Parallel()
	for _, env := range []map[string]string{
		{}, {"SIGNUP": "false"}, {"SMTP_FROM": "no-reply@example.com"},
		{"SIGNUP": "true", "SMTP_URL": "smtp://127.0.0.1:1", "SMTP_FROM": "no-reply@example.com"},
		{"SIGNUP": "true", "SMTP_URL": "smtp://127.0.0.1:1?from=no-reply@example.com"},
	} {
		cfg, err := config.Load(func(name string) string { return env[name] }, &config.Flags{}, nil)
		if err != nil {
			t.Errorf("%v: %v", env, err)
			continue
		}
		m, err := mailer(cfg, slog.New(slog.DiscardHandler))
		if err != nil || (m != nil) != (env["SIGNUP"] == "true") {
			t.Errorf("%v: the mailer is %v, %v", env, m, err)
		}
	}
}
