package privatepg

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// supervisor runs a command and outlives us if need be. Its standard input is a pipe that only we hold open, so the
// kernel tells it of our end whatever the cause: exit, panic, SIGKILL. That works on every Unix; Linux's parent-death
// signal follows threads and exists nowhere else.
//
// The first line it reads is a signal for the command; an end of file means INT. The signal is repeated, because a
// shell starts background commands with INT ignored and PostgreSQL needs a moment to install its handlers, and it is
// raised to QUIT and KILL so that the end is bounded. When the command has ended, its status is reported on standard
// output and the supervisor waits: for the line "keep", or for our end, on which it removes the two folders it was
// given. Any other line is a signal that came too late.
//
// The supervisor ignores the signals that are meant for us, and what a shell has to say about jobs that it kills. The
// command gets the log as standard output and error, and no end of the pipe.
const supervisor = `
trap '' HUP INT TERM PIPE
exec 4<&0 </dev/null
first=$1 second=$2
shift 2
"$@" >&2 4<&- &
child=$!
exec 2>/dev/null
(
	exec >&2
	read -r signal <&4 || signal=INT
	seconds=0
	while kill -s "$signal" "$child"; do
		case $seconds in 15) signal=QUIT ;; 25) signal=KILL ;; esac
		seconds=$((seconds + 1))
		sleep 1
	done
) &
reader=$!
wait "$child"
status=$?
kill -s KILL "$reader"
wait "$reader"
echo "$status"
while read -r order <&4; do
	[ "$order" = keep ] && exit 0
done
for folder in "$first" "$second"; do
	[ -z "$folder" ] || rm -rf -- "$folder"
done
`

// supervisorName is what the supervisor is called in a list of processes.
const supervisorName = "supervisor-of-postgres"

// process is a command under its supervisor.
type process struct {
	cmd    *exec.Cmd
	orders *os.File      // the pipe whose end stops everything
	held   *os.File      // the folder's lock
	ended  chan struct{} // closed when the command ended, or the supervisor before it
	status string        // the command's, valid after ended; empty when the supervisor ended first
	gone   chan struct{} // closed when the supervisor ended
}

// supervise starts a command as the home's account, with its output in the log. When we end, the folders are removed.
func (h home) supervise(log *os.File, folders, command []string) (*process, error) {
	folders = append(slices.Clone(folders), "", "")[:2]
	arguments := append([]string{"-c", supervisor, supervisorName}, folders...)
	// No context: it would kill the supervisor and leave the command.
	cmd := h.command(exec.CommandContext(context.Background(), "/bin/sh", append(arguments, command...)...))

	stdin, orders, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open a pipe: %w", err)
	}
	defer stdin.Close()
	report, stdout, err := os.Pipe()
	if err != nil {
		orders.Close()
		return nil, fmt.Errorf("open a pipe: %w", err)
	}
	defer stdout.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, log
	if err := cmd.Start(); err != nil {
		orders.Close()
		report.Close()
		return nil, fmt.Errorf("start %s: %w", command[0], err)
	}
	p := &process{cmd: cmd, orders: orders, held: h.lock, ended: make(chan struct{}), gone: make(chan struct{})}
	// This goroutine ends with the supervisor. It also keeps the pipe and the lock reachable: were they collected with a
	// forgotten Server, their finalizers would close them, and with the pipe the database that is still in use.
	go func() {
		line, _ := bufio.NewReader(report).ReadString('\n') // an error is the supervisor's end, and then there is no status
		p.status = strings.TrimSpace(line)
		close(p.ended)
		_ = cmd.Wait() // its status is the command's or rm's, and either says nothing new
		report.Close()
		close(p.gone)
		runtime.KeepAlive(p)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// contains tells whether a process is the command or a child that has not left its group.
func (p *process) contains(pid int) bool {
	group, err := syscall.Getpgid(pid)
	return pid != 0 && err == nil && group == p.cmd.Process.Pid
}

// end sends a signal to the command and waits for its end. When the context ends first, the shutdown goes on.
func (p *process) end(ctx context.Context, signal string) error {
	if p.running() {
		_, _ = io.WriteString(p.orders, signal+"\n") // fails only when the supervisor is gone, which closes ended
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keep dismisses the supervisor of a command that has ended; its folders stay.
func (p *process) keep() {
	_, _ = io.WriteString(p.orders, "keep\n")
	p.release(time.Second)
}

// release lets the supervisor go, which stops the command and removes the folders, and waits for that. The supervisor
// bounds itself; one that takes longer than the patience, say because it was suspended, is killed.
func (p *process) release(patience time.Duration) {
	p.orders.Close()
	select {
	case <-p.gone:
	case <-time.After(patience):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // fails only when it has just ended
		<-p.gone
	}
}
