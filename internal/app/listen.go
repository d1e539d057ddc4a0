package app

import (
	"context"
	"fmt"
	"net"
	"os"

	"accesskeys/internal/config"
)

// inheritedSocket is the first file descriptor that a service manager hands over (sd_listen_fds(3)).
const inheritedSocket = 3

// listen opens what requests come in by: a service manager's socket, or the address of LISTEN_ADDR.
func listen(ctx context.Context, s *config.Settings) (net.Listener, error) {
	if s.Inherited {
		socket := os.NewFile(inheritedSocket, "the socket that was handed over")
		defer socket.Close() // the listener has a copy
		listener, err := net.FileListener(socket)
		if err != nil {
			return nil, config.Usagef("LISTEN_FDS: file descriptor %d: %w", inheritedSocket, err)
		}
		return listener, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.ListenAddr)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_ADDR: %w", err)
	}
	return listener, nil
}
