// Package servertest runs the program as processes of its own, for tests that need more than one, or one that can be killed.
package servertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
)

// Build compiles the server to path. It uses the Makefile's flags, so that what is compiled already is not compiled again;
// arguments are further ones of go build's.
func Build(ctx context.Context, path string, arguments ...string) error {
	all := append([]string{"build", "-buildvcs=false", "-trimpath", "-o", path}, arguments...)
	cmd := exec.CommandContext(ctx, "go", append(all, "accesskeys/cmd/server")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the server with %q: %w\n%s", arguments, err, output)
	}
	return nil
}

// FreeAddr returns a loopback address that nobody listened on a moment ago, and that no connection will come from: those come
// from 127.0.0.1, whose ports they take at random. Only Linux has other addresses on loopback.
func FreeAddr() (string, error) {
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(256), 1+rand.IntN(254))
	}
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}
