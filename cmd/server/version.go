package main

import (
	"context"
	"fmt"

	"accesskeys/internal/buildinfo"
)

func printVersion(_ context.Context, inv invocation) error {
	flags, _ := inv.flagSet("version")
	if err := inv.parseFlags(flags); err != nil {
		return err
	}
	info := buildinfo.Read()
	_, err := fmt.Fprintf(inv.stdout, "accesskeys %s, commit %s, %s %s\n", info.Version, info.Commit, info.Go, info.Platform)
	return err
}
