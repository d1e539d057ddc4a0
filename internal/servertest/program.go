package servertest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Program is a process in the background, whose output is in a file.
type Program struct {
	Name  string
	Log   string // the path of what it has written
	Cmd   *exec.Cmd
	Ended chan struct{} // closed at its end
	Err   error         // how it ended; to be read once Ended is closed
}

// Run starts a command, which ends with our process at the latest. What it writes is appended to the file at log.
func Run(name, log string, cmd *exec.Cmd) (*Program, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	if err := StartChild(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &Program{Name: name, Log: log, Cmd: cmd, Ended: make(chan struct{})}
	go func() {
		p.Err = cmd.Wait()
		close(p.Ended)
	}()
	return p, nil
}

// Start is Run for a test, with which the program ends. A test that has failed shows the end of its output.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Program {
	t.Helper()
	p := Must(Run(name, filepath.Join(t.TempDir(), name+".log"), cmd))(t)
	t.Cleanup(func() {
		_ = p.Stop()
		if t.Failed() {
			t.Logf("%s has written:\n%s", name, p.Tail())
		}
	})
	return p
}

// Tail is the end of what the program has written.
func (p *Program) Tail() string {
	content, _ := os.ReadFile(p.Log)
	const most = 4000
	return string(bytes.TrimSpace(content[max(0, len(content)-most):]))
}

// Running reports whether the program has not ended.
func (p *Program) Running() bool {
	select {
	case <-p.Ended:
		return false
	default:
		return true
	}
}

// Await is Eventually for what needs the program to run.
func (p *Program) Await(t testing.TB, what string, is func() bool) {
	t.Helper()
	Eventually(t, what, func() bool {
		if !p.Running() {
			t.Fatalf("%s has ended: %v\n%s", p.Name, p.Err, p.Tail())
		}
		return is()
	})
}

// Stop ends the program as a service manager does, and kills its whole group where it takes too long.
func (p *Program) Stop() error {
	if !p.Running() {
		return p.Err // its number may be another process's by now
	}
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Ended:
	case <-time.After(40 * time.Second):
		p.Kill()
		return errors.New(p.Name + " did not end by itself")
	}
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // what it may have left behind
	return p.Err
}

// Kill ends the program and its children at once.
func (p *Program) Kill() {
	if p.Running() {
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
		<-p.Ended
	}
}
