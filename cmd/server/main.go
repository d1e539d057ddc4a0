// Command server is the access-key service. See run for its subcommands, and internal/config for its settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"accesskeys/internal/config"
)

// gcPercent is how much a server's memory may grow by before garbage is collected, in percent of what is in use. Most of
// that is remembered credentials, which each collection goes through: at Go's own 100 that takes a tenth of the processor.
const gcPercent = 200

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, invocation{
		args: os.Args[1:], getenv: os.Getenv, environ: os.Environ, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		hangups: func() (<-chan os.Signal, func()) {
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			return hangups, func() { signal.Stop(hangups) }
		},
	})
	stop()
	if err != nil {
		// On one line: pgx lists its attempts to connect on several.
		fmt.Fprintln(os.Stderr, "server:", strings.Join(strings.Fields(err.Error()), " "))
		if _, ok := errors.AsType[config.UsageError](err); ok {
			os.Exit(2)
		}
		os.Exit(1)
	}
}
