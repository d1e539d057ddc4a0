package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/config"
	"accesskeys/internal/postgres"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
)

const (
	// takeoverWait is how long another `server dev` on the same folder has to stop: longer than its shutdown may take.
	takeoverWait = shutdownTimeout + 10*time.Second
	takeoverPoll = 50 * time.Millisecond
)

// DevOptions are what `server dev` has besides the settings.
type DevOptions struct {
	Dir     string // keeps the data between runs
	Getenv  func(string) string
	Environ []string  // "NAME=value" of all variables
	Stdout  io.Writer // for the credentials
}

// Dev serves on a Postgres of its own, or on DATABASE_URL, with credentials that it prints, until ctx ends.
func Dev(ctx context.Context, cfg *config.Settings, o DevOptions, log *slog.Logger) error {
	cfg.SignupLog = true
	folder, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	owned := cfg.DatabaseURL.Empty()
	if owned {
		if err := forgetLibpq(o.Environ); err != nil {
			return err
		}
		cluster, err := ownPostgres(ctx, folder, o.Getenv, log)
		if err != nil {
			return err
		}
		defer func() {
			if err := cluster.Close(); err != nil {
				log.Error("stopping Postgres", "error", err.Error())
			}
		}()
		if err := postgres.CreateDatabase(ctx, secret.New(cluster.URL("postgres")), demoDatabase); err != nil {
			return err
		}
		cfg.DatabaseURL = secret.New(cluster.URL(demoDatabase))
	}
	if cfg.JWTSecret.Empty() {
		if cfg.JWTSecret, err = keptSecret(filepath.Join(folder, "jwt_secret")); err != nil {
			return err
		}
	}
	bootstrap := cfg.Bootstrap
	cfg.Bootstrap = config.Bootstrap{} // demo does it, and more
	a, err := New(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer a.Close()
	d, err := a.demo(ctx, bootstrap, owned && isLoopback(a.Addr()))
	if err != nil {
		return err
	}
	if err := d.print(o.Stdout, a.baseURL()); err != nil {
		return err
	}
	return a.Run(ctx, nil)
}

// forgetLibpq removes libpq's variables (its manual, section 34.15) from the environment, in which the driver reads them: they are about
// other databases than one of our own.
func forgetLibpq(environ []string) error {
	for _, variable := range environ {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("removing %s from the environment: %w", name, err)
			}
		}
	}
	return nil
}

// ownPostgres starts Postgres on the folder's data. Another `server dev` there is asked to stop first: what is left of a
// run that was killed, or was forgotten in another window, must not keep the next one from starting.
func ownPostgres(ctx context.Context, folder string, getenv func(string) string, log *slog.Logger) (*privatepg.Server, error) {
	deadline := time.Now().Add(takeoverWait)
	asked := 0
	for {
		cluster, err := privatepg.Start(ctx, privatepg.Config{Dir: filepath.Join(folder, "postgres"), Logger: log, Getenv: getenv})
		inUse, held := errors.AsType[*privatepg.InUseError](err)
		if !held || time.Now().After(deadline) {
			return cluster, err
		}
		if inUse.PID > 0 && inUse.PID != asked && inUse.PID != os.Getpid() {
			log.Warn("taking over from another `server dev` on this folder, which is asked to stop", "pid", inUse.PID)
			asked = inUse.PID
			_ = syscall.Kill(inUse.PID, syscall.SIGTERM) // an error: it has just ended
		}
		select {
		case <-time.After(takeoverPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keptSecret returns the secret in the file, made at the first run: with it, logins survive a restart.
func keptSecret(path string) (secret.Value, error) {
	kept, err := os.ReadFile(path)
	if err == nil && len(kept) >= auth.MinSecretLength {
		return secret.New(string(kept)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return secret.Value{}, fmt.Errorf("reading the demo's JWT secret: %w", err)
	}
	made := rand.Text() + rand.Text()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return secret.Value{}, fmt.Errorf("making the demo's folder: %w", err)
	}
	if err := os.WriteFile(path, []byte(made), 0o600); err != nil {
		return secret.Value{}, fmt.Errorf("keeping the demo's JWT secret: %w", err)
	}
	return secret.New(made), nil
}
