package privatepg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// stopServers stops PostgreSQL's processes that work in a folder, and prints the numbers of those that it finds first.
// INT is the fast shutdown for a server's first process and harmless to its children, QUIT ends each of them at once, KILL
// is for what hangs.
//
// A number in a file proves nothing, since numbers are used again: a server is known by its name and by the folder that
// it works in. One that has ended and only waits for its parent (Z) is none. A shell looks for them because it can run as
// the account: root may not look into the processes of others everywhere, not in a container for one, but everybody may
// look into their own; and the account can do less harm.
const stopServers = `
[ -d "$1" ] || exit 0
cd -P -- "$1" || exit
data=$PWD turn=0 signal=INT
while :; do
	found=
	case $turn in 150) signal=QUIT ;; 250) signal=KILL ;; 300) exit 1 ;; esac
	for proc in /proc/[0-9]*; do
		pid=${proc##*/}
		read -r stat <"$proc/stat" || continue
		case $stat in "$pid (postgres) Z"*) continue ;; "$pid (postgres) "*) ;; *) continue ;; esac
		cd / # or a folder that was deleted would pass for the last one
		cd -P -- "$proc/cwd" && [ "$PWD" = "$data" ] || continue
		found=yes
		[ "$turn" -gt 0 ] || echo "$pid"
		kill -s "$signal" "$pid"
	done
	[ -n "$found" ] || exit 0
	turn=$((turn + 1))
	sleep 0.1
done
`

// takeOver stops every PostgreSQL process on the data whose owner is dead, and clears the way for the next one. The caller
// holds the lock.
func (h home) takeOver(ctx context.Context, log *slog.Logger) error {
	if _, err := os.Stat("/proc/self"); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing can be found here, and PostgreSQL itself refuses to start beside another one
	}
	// The file before the processes: a server that has written its number is visible by then.
	left, _ := os.ReadFile(h.postmasterFile()) // unreadable: PostgreSQL will say so
	found, err := h.command(exec.CommandContext(ctx, "/bin/sh", "-c", stopServers, "stop", h.data())).Output()
	if len(found) > 0 {
		log.Info("taking over from a PostgreSQL that was left running", "pids", strings.Fields(string(found)), "folder", h.dir)
	}
	if ctx.Err() != nil { // else it would be said that a signal has killed the shell
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("stop the server that was left running on %s: %w", h.data(), err)
	}
	// PostgreSQL would take the file for a living server's if another process has its number by now, or if it was cut
	// short. In every other case PostgreSQL decides: it looks also at the shared memory that is named there.
	now, _ := os.ReadFile(h.postmasterFile())
	if left == nil || !bytes.Equal(now, left) || gone(parsePID(left)) {
		return nil
	}
	if err := os.Remove(h.postmasterFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a stale file: %w", err)
	}
	return nil
}

// parsePID returns the number in the first line, or 0.
func parsePID(content []byte) int {
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid < 2 {
		return 0
	}
	return pid
}

// gone tells that no process has the number, not even one that waits for its parent.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
