package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
)

// handedOver is the first file descriptor that a service manager hands over (sd_listen_fds(3)).
const handedOver = 3

// checkHandedOver looks for a socket that a service manager holds for us, as systemd's socket units do: LISTEN_PID says
// whose it is, LISTEN_FDS how many there are. It takes LISTEN_ADDR's place. The manager keeps it open while we restart, so that
// connections wait in its queue meanwhile and none is refused.
func (s *settings) checkHandedOver(getenv func(string) string) error {
	if getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil // none, or another process's
	}
	if sockets := getenv("LISTEN_FDS"); sockets != "1" {
		return usagef("LISTEN_FDS: the service manager hands %q sockets over, this program takes one", sockets)
	}
	s.handedOver = true
	return nil
}

// listen opens what requests come in by.
func (s *settings) listen(ctx context.Context) (net.Listener, error) {
	if s.handedOver {
		socket := os.NewFile(handedOver, "the socket that was handed over")
		defer socket.Close() // the listener has a copy
		listener, err := net.FileListener(socket)
		if err != nil {
			return nil, usagef("LISTEN_FDS: file descriptor %d: %w", handedOver, err)
		}
		return listener, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.listenAddr)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_ADDR: %w", err)
	}
	return listener, nil
}
