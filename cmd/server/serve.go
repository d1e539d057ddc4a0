package main

import (
	"context"

	"accesskeys/internal/app"
)

func serve(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("serve")
	cfg, err := inv.parse(flags, given, "DATABASE_URL", "JWT_SECRET")
	if err != nil {
		return err
	}
	log, flush := newLogger(inv.stderr, cfg)
	defer flush()
	cfg.Warn(inv.environ(), log)
	hangups, ignore := inv.hangups()
	defer ignore()
	return app.Serve(ctx, cfg, log, hangups)
}
