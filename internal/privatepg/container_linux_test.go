package privatepg

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

const untracedEnv = "PRIVATEPG_TEST_UNTRACED"

// goUntraced makes a helper like root in a container, who may not look into the processes of others, and says whether it
// may look into this one. The process starts anew, because only a new program of root's goes without the capability.
func goUntraced(pid int) error {
	if os.Getenv(untracedEnv) != "" {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		fmt.Println("looked into it:", err)
		return nil
	}
	const dropFromBoundingSet, sysPtrace = 24, 19
	runtime.LockOSThread() // the set is the thread's
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, dropFromBoundingSet, sysPtrace, 0); errno != 0 {
		return errno
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	return errors.Join(os.Setenv(untracedEnv, "yes"), syscall.Exec(binary, os.Args, os.Environ()))
}

func TestRootTakesOverInAContainer(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	dir := initialisedFolder(t)
	dead := startHelper(t, settings{Dir: dir}, nil).ready(t)
	query(t, dead.URL, "CREATE TABLE kept AS SELECT 42 AS answer")
	pid, pgid := postmaster(t, dir)
	killSupervisor(t, pgid)
	dead.kill(t)
	next := startHelper(t, settings{Dir: dir, Untraced: pid}, nil)
	if got := next.answer(t); !strings.Contains(got, "permission denied") { // the control
		t.Fatalf("the helper may look into process %d: %s", pid, got)
	}
	if got := query(t, next.ready(t).URL, "SELECT answer FROM kept"); got != "42" {
		t.Errorf("the data is %q", got)
	}
	if now, _ := postmaster(t, dir); now == pid || alive(t, pid) {
		t.Errorf("process %d of the dead owner is still there", pid)
	}
}
