package authcache

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the machine's start, in suspension too. The clock behind time.Now stands still in
// suspension, and a lease must not; nobody can set either.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 1<<63 - 1 // every lease has ended
	}
	return time.Duration(t.Nano())
}
