package privatepg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
// output and the supervisor waits for our end, on which it removes the two folders it was given.
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
while read -r late <&4; do :; done
for folder in "$first" "$second"; do
	[ -z "$folder" ] || rm -rf -- "$folder"
done
`

// errEnded says that PostgreSQL ended by itself instead of starting.
var errEnded = errors.New("it ended by itself")

// process is a command under its supervisor.
type process struct {
	home
	cmd    *exec.Cmd
	orders *os.File      // the pipe whose end stops everything
	begin  int64         // where its output begins in the log
	ended  chan struct{} // closed when the command ended, or the supervisor before it
	status string        // the command's, valid after ended; empty when the supervisor ended first
	gone   chan struct{} // closed when the supervisor ended
}

// supervise starts a command as the home's account, with its output in the log. When we end, the folders are removed.
func (h home) supervise(folders []string, command ...string) (*process, error) {
	log, begin, err := h.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	arguments := append([]string{"-c", supervisor, "supervisor-of-postgres"}, append(slices.Clone(folders), "", "")[:2]...)
	// No context: it would kill the supervisor and leave the command.
	cmd := h.command(exec.CommandContext(context.Background(), "/bin/sh", append(arguments, command...)...))
	cmd.Stderr = log
	// No StdinPipe: that would end with the supervisor, and if that is killed alone, its reader would stop the server.
	stdin, orders, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", command[0], err)
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	report, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", command[0], errors.Join(err, orders.Close()))
	}
	p := &process{home: h, cmd: cmd, orders: orders, begin: begin, ended: make(chan struct{}), gone: make(chan struct{})}
	// This goroutine ends with the supervisor. It also keeps the pipe and the lock reachable: were they collected with a
	// forgotten Server, their finalizers would close them, and with the pipe the database that is still in use.
	go func() {
		line, _ := bufio.NewReader(report).ReadString('\n') // an error is the supervisor's end, and then there is no status
		p.status = strings.TrimSpace(line)
		close(p.ended)
		_ = cmd.Wait() // its status is rm's, and says nothing new
		close(p.gone)
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

// awaitReady waits until the server accepts connections, which it writes into its file; pg_ctl -w reads it there, too. It
// returns errEnded as soon as the server has ended.
func (p *process) awaitReady(ctx context.Context) error {
	const statusLine = 7 // counted from 0
	for {
		content, _ := os.ReadFile(p.postmasterFile()) // it takes a moment to appear
		lines := strings.Split(string(content)+strings.Repeat("\n", statusLine), "\n")
		// The file of a server that is still going down names a process of another group.
		group, err := syscall.Getpgid(parsePID(content))
		if strings.TrimSpace(lines[statusLine]) == "ready" && err == nil && group == p.cmd.Process.Pid {
			return nil
		}
		if !p.running() {
			return errEnded
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// failed adds to an error what the command has said last.
func (p *process) failed(err error) error {
	const longest = 4096
	output, readErr := os.ReadFile(p.logFile())
	output = output[min(p.begin, int64(len(output))):]
	output = output[max(0, len(output)-longest):]
	return errors.Join(fmt.Errorf("%w; its log ends:\n%s", err, strings.TrimSpace(string(output))), readErr)
}

// end sends a signal to the command and waits for its end. When the context ends first, the shutdown goes on.
func (p *process) end(ctx context.Context, signal string) error {
	_, _ = p.orders.WriteString(signal + "\n") // fails only when the supervisor is gone, which closes ended
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dismiss ends the supervisor of a command that has ended; the folders stay.
func (p *process) dismiss() {
	select {
	case <-p.gone: // somebody has killed it, and its number may be another's by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // fails only when it has just ended
		<-p.gone
	}
	p.orders.Close()
}

// release lets the supervisor go, which stops the command and removes the folders, and waits for that. The supervisor
// bounds itself; one that takes longer, say because it was suspended, is killed.
func (p *process) release() {
	p.orders.Close()
	select {
	case <-p.gone:
	case <-time.After(time.Minute):
		p.dismiss()
	}
}
