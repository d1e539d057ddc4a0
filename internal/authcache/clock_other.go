//go:build !linux

package authcache

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the machine's start. Outside of Linux this clock goes on in suspension (macOS) or the
// system knows no better one.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 1<<63 - 1 // every lease has ended
	}
	return time.Duration(t.Nano())
}
