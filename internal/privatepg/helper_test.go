package privatepg

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

// helper is a process of its own that owns a server.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr *servertest.Log
	URL    string
	Dir    string
}

// startHelper starts the process; attr may be nil. The helper has no server before ready.
func startHelper(t *testing.T, s settings, attr *syscall.SysProcAttr) *helper {
	t.Helper()
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if attr != nil && attr.Credential != nil {
		// Go keeps the test binary in a folder that is closed to others.
		copied := filepath.Join(newFolder(t), "helper")
		if output, err := exec.CommandContext(t.Context(), "cp", binary, copied).CombinedOutput(); err != nil {
			t.Fatalf("copy: %v: %s", err, output)
		}
		binary = copied
	}
	// No context: it ends when its standard input does, see below.
	h := &helper{cmd: exec.CommandContext(context.Background(), binary), stderr: &servertest.Log{}}
	// Or the race detector makes every process last a second longer.
	h.cmd.Env = append(os.Environ(), helperEnv+"="+string(encoded), "GORACE=atexit_sleep_ms=0")
	h.cmd.SysProcAttr = attr
	h.cmd.Stderr = h.stderr
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.stdout = bufio.NewReader(stdout)
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.stdin.Close() // makes it close its server and end
		_ = h.cmd.Wait()
		if t.Failed() {
			t.Logf("the helper's log:\n%s", h.stderr)
		}
	})
	return h
}

// ready waits until the helper's server accepts connections.
func (h *helper) ready(t *testing.T) *helper {
	t.Helper()
	line, err := h.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("the helper did not start: %v\n%s", err, h.stderr)
	}
	if err := json.Unmarshal([]byte(line), h); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return h
}

// order makes the helper do something and returns what it says.
func (h *helper) order(t *testing.T, order string) string {
	t.Helper()
	if err := h.write(order); err != nil {
		t.Fatal(err)
	}
	return h.answer(t)
}

func (h *helper) write(order string) error {
	_, err := io.WriteString(h.stdin, order+"\n")
	return err
}

func (h *helper) answer(t *testing.T) string {
	t.Helper()
	line, err := h.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("no answer: %v\n%s", err, h.stderr)
	}
	return strings.TrimSpace(line)
}

// kill is kill -9.
func (h *helper) kill(t *testing.T) {
	t.Helper()
	kill(t, h.cmd.Process.Pid)
	_ = h.cmd.Wait()
}

// helperMain is the helper process: it starts a server, says where, and obeys one order per line.
func helperMain(encoded string) int {
	var s settings
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if s.Untraced != 0 {
		if err := goUntraced(s.Untraced); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if s.Umask != 0 {
		syscall.Umask(s.Umask)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	caught := make(chan os.Signal, 1)
	if s.Catch {
		signal.Notify(caught, os.Interrupt)
	}
	server, err := Start(ctx, s.config(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	started, err := json.Marshal(map[string]string{"URL": server.URL("postgres"), "Dir": server.Dir()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(string(started))

	go func() {
		<-caught
		_, err := tryQuery(ctx, server.URL("postgres"), "SELECT 1")
		fmt.Println("drained:", err)
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch order := lines.Text(); order {
		case "exit":
			os.Exit(3)
		case "panic":
			go func() { panic("as ordered") }()
			select {}
		case "stop":
			fmt.Println(server.Stop(ctx))
		case "forget":
			return 4 // without Close
		default:
			fmt.Println("unknown order", strconv.Quote(order))
		}
	}
	if err := server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
