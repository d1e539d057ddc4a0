package main

import (
	"context"

	"accesskeys/internal/app"
)

// dev serves on a Postgres of its own, or on DATABASE_URL, with credentials that it prints.
func dev(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("dev")
	dir := flags.String("dir", ".dev", "the folder that keeps the data between runs")
	inner := inv.getenv
	inv.getenv = func(name string) string {
		if value := inner(name); value != "" {
			return value
		}
		return map[string]string{"LISTEN_ADDR": "127.0.0.1:8080", "LOG_FORMAT": "text", "SHUTDOWN_DELAY": "0"}[name]
	}
	cfg, err := inv.parse(flags, given)
	if err != nil {
		return err
	}
	log, flush := newLogger(inv.stderr, cfg)
	defer flush()
	cfg.Warn(inv.environ(), log)
	// A terminal that closes ends the demo, and its Postgres with it.
	hangups, ignore := inv.hangups()
	defer ignore()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-hangups:
			stop()
		case <-ctx.Done():
		}
	}()
	return app.Dev(ctx, cfg, app.DevOptions{Dir: *dir, Getenv: inv.getenv, Environ: inv.environ(), Stdout: inv.stdout}, log)
}
