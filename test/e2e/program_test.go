//go:build e2e

package e2e

import (
	"bytes"
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

type program = servertest.Program

// awaitListening waits until the program accepts connections there.
func awaitListening(t testing.TB, p *program, addr string) {
	t.Helper()
	p.Await(t, p.Name+" listens", func() bool { return listens(addr) })
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
	return servertest.Must(servertest.FreeAddr())(t)
}

// folder is a folder that any account may enter, unlike those of t.TempDir.
func folder(t testing.TB) string {
	t.Helper()
	dir := servertest.Must(os.MkdirTemp("", "accesskeys-e2e-"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	servertest.OK(t, os.Chmod(dir, 0o755))
	return dir
}

// write writes a file that anybody may read.
func write(t testing.TB, path, content string) {
	t.Helper()
	servertest.OK(t, os.WriteFile(path, []byte(content), 0o644), os.Chmod(path, 0o644))
}

// unprivileged makes root's command run as an account without rights: Postgres, Patroni and pgbouncer refuse to run as
// root. Others run it as they are. The folders become the account's.
func unprivileged(t testing.TB, cmd *exec.Cmd, folders ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	account := servertest.Must(user.Lookup("postgres"))(t) // which comes with Debian's PostgreSQL
	uid, err1 := strconv.ParseUint(account.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
	servertest.OK(t, err1, err2)
	for _, dir := range folders {
		servertest.OK(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(uid), int(gid)))
		}))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd
}

// example is a file below examples, with each pair of strings replaced: an address that it names by one of the test's. A
// string that is not in it is a failure, so that no test runs something else than the file says.
func example(t testing.TB, path string, replacements ...string) string {
	t.Helper()
	content := servertest.Must(os.ReadFile(filepath.Join("../../examples", path)))(t)
	return replace(t, "examples/"+path, string(content), replacements...)
}

// replace replaces strings that have to be there.
func replace(t testing.TB, where, text string, replacements ...string) string {
	t.Helper()
	for i := 0; i < len(replacements); i += 2 {
		if !strings.Contains(text, replacements[i]) {
			t.Fatalf("%s does not contain %q", where, replacements[i])
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
