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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postmasterFile is where a server writes the number of its first process.
const postmasterFile = "postmaster.pid"

// findServers lists PostgreSQL's processes: "ours" work in the folder and get the signal, if there is one; of "unknown"
// ones it cannot be told. It says nothing of those that work elsewhere.
//
// A number in a file proves nothing, since numbers are used again: a server is known by its name and by the folder that
// it works in. One that has ended and only waits for its parent (Z) is none. A shell looks for them because it can run as
// the account: root may not look into the processes of others everywhere, not in a container for one, but everybody may
// look into their own; and the account can do less harm.
//
// Where there is no /proc it finds none, and PostgreSQL itself refuses to start beside another one.
const findServers = `
cd -P -- "$1" || exit 1
data=$PWD signal=$2
for proc in /proc/[0-9]*; do
	pid=${proc##*/}
	read -r stat <"$proc/stat" || continue
	case $stat in "$pid (postgres) Z"*) continue ;; "$pid (postgres) "*) ;; *) continue ;; esac
	cd / # or a folder that was deleted would pass for the last one
	if ! cd -P -- "$proc/cwd"; then
		echo "unknown $pid"
	elif [ "$PWD" = "$data" ]; then
		echo "ours $pid"
		[ -z "$signal" ] || kill -s "$signal" "$pid"
	fi
done
exit 0
`

// servers are PostgreSQL's processes as findServers tells them.
type servers struct {
	ours, unknown []int
}

// servers looks for the processes that work in a data folder, and sends them a signal unless that is empty.
func (a account) servers(ctx context.Context, data, signal string) (servers, error) {
	var found servers
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	output, err := a.command(exec.CommandContext(ctx, "/bin/sh", "-c", findServers, "find", data, signal)).Output()
	if ctx.Err() != nil { // else it would be said that a signal has killed the shell
		err = ctx.Err()
	}
	if err != nil {
		return found, fmt.Errorf("look for a server that was left running: %w", err)
	}
	for line := range strings.Lines(string(output)) {
		kind, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, err := strconv.Atoi(number)
		switch {
		case err != nil:
			return found, fmt.Errorf("look for a server that was left running: found %q", line)
		case kind == "ours":
			found.ours = append(found.ours, pid)
		default:
			found.unknown = append(found.unknown, pid)
		}
	}
	return found, nil
}

// takeOver stops every PostgreSQL process of a data folder whose owner is dead, and clears the way for the next one. It
// reports whether there was any. The caller holds the folder's lock.
func (a account) takeOver(ctx context.Context, data string, log *slog.Logger) (found bool, err error) {
	const pollsPerSecond = 50
	for poll := range 30 * pollsPerSecond {
		// INT is the fast shutdown for the first process and harmless to its children, QUIT ends each of them at once,
		// KILL is for what hangs.
		signal := ""
		switch second := poll / pollsPerSecond; {
		case poll%pollsPerSecond != 0:
		case second < 15:
			signal = "INT"
		case second < 25:
			signal = "QUIT"
		default:
			signal = "KILL"
		}
		// The file before the processes: whoever has written its number is visible by then.
		left, _ := os.ReadFile(filepath.Join(data, postmasterFile)) // unreadable: PostgreSQL will say so
		servers, err := a.servers(ctx, data, signal)
		if err != nil {
			return found, err
		}
		if len(servers.ours) == 0 {
			return found, removeStale(filepath.Join(data, postmasterFile), left, servers.unknown)
		}
		if !found {
			log.Info("taking over from a PostgreSQL that was left running", "pid", parsePID(left), "folder", data)
			found = true
		}
		if err := pause(ctx, time.Second/pollsPerSecond); err != nil {
			return found, err
		}
	}
	return found, fmt.Errorf("the server that was left running on %s does not end", data)
}

// removeStale removes the file of a server that is gone, if PostgreSQL would take it for a living one's: because another
// process has its number by now, or because it was cut short. In every other case PostgreSQL decides. It looks also at
// the shared memory that is named in the file, and so must have it if a server could still be there.
func removeStale(path string, content []byte, unknown []int) error {
	if content == nil {
		return nil
	}
	if pid := parsePID(content); pid != 0 && (gone(pid) || slices.Contains(unknown, pid)) {
		return nil
	}
	now, err := os.ReadFile(path)
	if err == nil && bytes.Equal(now, content) {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
