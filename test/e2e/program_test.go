//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// patience bounds every wait for something that should come about by itself.
const patience = 60 * time.Second

// build compiles the server.
func build(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil { // other accounts run it too
		return err
	}
	return servertest.Build(context.Background(), filepath.Join(dir, "server"))
}

// program is a process that a test has started. It ends with the test, whatever way the test ends.
type program struct {
	name  string
	log   string // the path of what it has written
	cmd   *exec.Cmd
	ended chan struct{} // closed at its end
	err   error         // how it ended; to be read once ended is closed
}

// start runs a command in the background, what it writes going to a file, the end of which a failed test shows.
func start(t testing.TB, name string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{name: name, cmd: cmd, log: filepath.Join(t.TempDir(), name+".log"), ended: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := servertest.StartChild(cmd); err != nil {
		t.Fatalf("%s: %v (make e2e installs it)", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.stop()
		if t.Failed() {
			t.Logf("%s has written:\n%s", name, p.tail())
		}
	})
	return p
}

// tail is the end of what the program has written.
func (p *program) tail() string {
	content, _ := os.ReadFile(p.log)
	const most = 4000
	return string(bytes.TrimSpace(content[max(0, len(content)-most):]))
}

// stop ends the program as a service manager does, and kills its whole group where it takes too long.
func (p *program) stop() error {
	if !p.running() {
		return p.err // its number may be another process's by now
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(40 * time.Second):
		p.kill()
		return errors.New(p.name + " did not end by itself")
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what it may have left behind
	return p.err
}

// kill ends the program and its children at once.
func (p *program) kill() {
	if !p.running() {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

// awaitListening waits until the program accepts connections there.
func (p *program) awaitListening(t testing.TB, addr string) {
	t.Helper()
	servertest.Eventually(t, p.name+" listens", func() bool {
		if !p.running() {
			t.Fatalf("%s has ended: %v\n%s", p.name, p.err, p.tail())
		}
		return listens(addr)
	})
}

// running reports whether the program has not ended.
func (p *program) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// awaitLogged waits until a program has written something to its log, which it may do after it has answered.
func awaitLogged(t testing.TB, path, what string) {
	t.Helper()
	servertest.Eventually(t, filepath.Base(path)+" holds "+what, func() bool {
		content, err := os.ReadFile(path)
		return err == nil && bytes.Contains(content, []byte(what))
	})
}

// listens reports whether something accepts connections there.
func listens(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	addr, err := servertest.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// folder is a folder that any account may enter, unlike those of t.TempDir.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "accesskeys-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// write writes a file that anybody may read.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// unprivileged makes root's command run as an account without rights: Postgres, Patroni and pgbouncer refuse to run as
// root. Others run it as they are. The folders become the account's.
func unprivileged(t testing.TB, cmd *exec.Cmd, folders ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	account, err := user.Lookup("postgres") // which comes with Debian's PostgreSQL
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(account.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(uid), int(gid)))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd
}

// example is a file below examples, with each pair of strings replaced: an address that it names by one of the test's. A
// string that is not in it is a failure, so that no test runs something else than the file says.
func example(t testing.TB, path string, replacements ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../../examples", path))
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for i := 0; i < len(replacements); i += 2 {
		if !strings.Contains(text, replacements[i]) {
			t.Fatalf("examples/%s does not contain %q", path, replacements[i])
		}
		text = strings.ReplaceAll(text, replacements[i], replacements[i+1])
	}
	return text
}

// version is the first line of what a program says of itself that has a digit, such as "nginx version: nginx/1.22.1".
func version(t testing.TB, program string, arguments ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), program, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (make e2e installs it)", program, err)
	}
	for line := range strings.Lines(string(output)) {
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '/' || r == '\n' || r == ')' }) {
			if word = strings.TrimPrefix(word, "v"); word != "" && word[0] >= '0' && word[0] <= '9' && strings.Contains(word, ".") {
				return fmt.Sprintf("%s %s", filepath.Base(program), word)
			}
		}
	}
	t.Fatalf("%s does not say its version: %s", program, output)
	return ""
}
