package privatepg

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

// killSupervisor is kill -9 for the supervisor and its helper. A child of the server may be in their group for a moment;
// to kill it would be a crash that the server answers itself.
func killSupervisor(t *testing.T, pgid int) {
	t.Helper()
	shells := slices.DeleteFunc(inGroup(pgid), func(r running) bool { return !strings.HasPrefix(r.line, fmt.Sprint(r.pid, " /bin/sh ")) })
	if len(shells) != 2 {
		t.Fatalf("these are not the supervisor and its helper: %v", shells)
	}
	kill(t, shells[0].pid, shells[1].pid)
}

// orphaned starts a server with something in it, and kills everybody who looks after it.
func orphaned(t *testing.T, s settings) (h *helper, pid int) {
	t.Helper()
	h = startHelper(t, s).ready(t)
	query(t, h.URL, "CREATE TABLE kept AS SELECT 42 AS answer")
	pid, pgid := postmaster(t, h.Dir)
	killSupervisor(t, pgid)
	h.kill(t)
	query(t, h.URL, "SELECT 1") // the control: there is something to take over
	return h, pid
}

func TestNextStartTakesOverAfterKillOfEverything(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	neighbour := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	_, pid := orphaned(t, settings{Dir: dir})
	server, log := startLogged(t, settings{Dir: dir})
	if alive(pid) {
		t.Errorf("process %d of the dead owner is still there", pid)
	}
	if !strings.Contains(log.String(), "taking over") || !strings.Contains(log.String(), strconv.Itoa(pid)) {
		t.Errorf("the log does not tell of it: %s", log)
	}
	shows(t, server.URL("postgres"), "SELECT answer FROM kept", "42")
	query(t, neighbour.URL("postgres"), "SELECT 1") // it was left alone
}

// In a container root may not look into the processes of others.
func TestRootTakesOverInAContainer(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	dir := initialisedFolder(t)
	_, pid := orphaned(t, settings{Dir: dir})
	container := []string{"setpriv", "--bounding-set=-sys_ptrace"}
	look := append(slices.Clone(container), "readlink", fmt.Sprintf("/proc/%d/cwd", pid))
	if output, err := exec.CommandContext(t.Context(), look[0], look[1:]...).Output(); err == nil { // the control
		t.Fatalf("it may look into process %d: %s", pid, output)
	}
	next := startHelper(t, settings{Dir: dir}, container...).ready(t)
	if got := query(t, next.URL, "SELECT answer FROM kept"); got != "42" || alive(pid) {
		t.Errorf("the data is %q, process %d lives: %v", got, pid, alive(pid))
	}
}

func TestNextStartTakesOverFromOrphanedSessions(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}).ready(t)
	// It computes and does not look whether its parent is there.
	session, ended := busyClient(t, h.URL, "SELECT sum(a) FROM generate_series(1, 1000000000) a")
	pid, pgid := postmaster(t, dir)
	killSupervisor(t, pgid)
	kill(t, pid)
	h.kill(t)
	servertest.Eventually(t, "the first process was gone", func() bool { return !alive(pid) })
	if !alive(session) { // the control
		t.Fatal("the session did not survive")
	}
	query(t, start(t, settings{Dir: dir}).URL("postgres"), "SELECT 1")
	if err := <-ended; err == nil {
		t.Error("the orphaned session finished")
	}
}

func TestNextStartFollowsAKillAtOnce(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	for _, when := range []string{"lock", "run", "data/postmaster.pid", "run/" + socketName, "ready"} {
		ok(t, os.RemoveAll(filepath.Join(dir, "run")))
		h := startHelper(t, settings{Dir: dir})
		switch when {
		case "lock":
			servertest.Eventually(t, "the helper had the lock", func() bool {
				return parsePID(must(os.ReadFile(filepath.Join(dir, "lock")))(t)) == h.cmd.Process.Pid
			})
		case "ready":
			h.ready(t)
		default:
			servertest.Eventually(t, when+" was there", func() bool { return exists(filepath.Join(dir, when)) })
		}
		h.kill(t) // its supervisor is about to stop the server, or even to start it
		server := start(t, settings{Dir: dir})
		query(t, server.URL("postgres"), "SELECT 1")
		ok(t, server.Close())
	}
}

// The supervisor of a killed owner may have started its server first, which is then stopped.
func TestServerThatIsRefusedTriesAgain(t *testing.T) {
	t.Parallel()
	programs, refused := newFolder(t), filepath.Join(newFolder(t), "refused")
	executable(t, filepath.Join(programs, "initdb"), "")
	executable(t, filepath.Join(programs, "postgres"),
		`[ "$1" != --version ] && mkdir `+refused+` && exit 1; exec `+filepath.Join(installed(t), "postgres")+` "$@"`)
	server := start(t, settings{Dir: initialisedFolder(t), Path: programs, Ephemeral: true})
	query(t, server.URL("postgres"), "SELECT 1")
	if !exists(refused) {
		t.Error("it was not refused")
	}
}

func TestNextStartRemovesTemporaryFoldersOfTheDead(t *testing.T) {
	t.Parallel()
	temp := newFolder(t)
	living := start(t, settings{Temp: temp, Ephemeral: true})
	dead, pid := orphaned(t, settings{Temp: temp, Ephemeral: true})
	foreign := filepath.Join(temp, temporaryPrefix+"foreign")
	if os.Geteuid() == 0 { // nobody else can give a folder away
		ok(t, os.Mkdir(foreign, 0o755), os.Chown(foreign, 12345, -1))
	}
	_ = fails(t, settings{Temp: temp, Path: "/nowhere", Places: []string{}}) // any start will do; this one is soon over
	if alive(pid) || exists(dead.Dir) {
		t.Errorf("process %d (%v) or %s (%v) is still there", pid, alive(pid), dead.Dir, exists(dead.Dir))
	}
	if os.Geteuid() == 0 && !exists(foreign) {
		t.Error("somebody else's folder was removed")
	}
	query(t, living.URL("postgres"), "SELECT 1")
}

func TestStaleNumberOfAnUnrelatedProcessIsNoObstacleAndNoTarget(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	// The crash leaves the file; the number in it is then somebody else's. It runs as the server's account, because
	// PostgreSQL ignores the processes of others.
	h := must(openHome(t.Context(), settings{Dir: dir}.config(io.Discard), slog.New(slog.DiscardHandler)))(t)
	unrelated := h.command(exec.CommandContext(t.Context(), "/bin/sleep", "600"))
	unrelated.Dir = h.data() // as near as a stranger can get
	ok(t, unrelated.Start())
	t.Cleanup(func() {
		_ = unrelated.Process.Kill()
		_ = unrelated.Wait()
	})
	content := fmt.Appendf(nil, "%d\n%s/data\n1700000000\n5432\n%[2]s/run\n\n 1 1\nready   \n", unrelated.Process.Pid, dir)
	ok(t, os.WriteFile(h.postmasterFile(), content, 0o600), h.own(h.postmasterFile()))
	output, err := h.command(exec.CommandContext(t.Context(), filepath.Join(installed(t), "postgres"), "-D", h.data())).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "already exists") { // the control
		t.Fatalf("PostgreSQL does not mind the stale file: %v\n%s", err, output)
	}
	// The socket has such a file, too.
	ok(t, unlock(h.lock), os.RemoveAll(h.run()), os.Mkdir(h.run(), 0o700), os.WriteFile(filepath.Join(h.run(), socketName+".lock"), content, 0o600))
	server := start(t, settings{Dir: dir})
	query(t, server.URL("postgres"), "SELECT 1")
	if !alive(unrelated.Process.Pid) {
		t.Error("the unrelated process was ended")
	}
	// A file that was cut short, as a crash of the machine leaves it.
	ok(t, server.Stop(t.Context()), os.WriteFile(h.postmasterFile(), nil, 0o600), h.own(h.postmasterFile()), server.Start(t.Context()))
}

func TestSecondOwnerIsRefusedWithThePidOfTheFirst(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}).ready(t)
	pid, _ := postmaster(t, dir)
	if busy := refused(t, settings{Dir: dir}); busy.PID != h.cmd.Process.Pid || busy.Dir != dir {
		t.Fatalf("second start: %v, want one that names process %d and %s", busy, h.cmd.Process.Pid, dir)
	}
	query(t, h.URL, "SELECT 1")

	// The control: without the lock the second owner would take the server for a dead one's.
	ok(t, os.Remove(filepath.Join(dir, "lock")))
	start(t, settings{Dir: dir})
	if alive(pid) {
		t.Error("without the lock the first server was left alone, so what does the lock protect?")
	}
}

func TestLockWithoutALivingNumberBlamesNobody(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	lock := must(lockFolder(t.Context(), dir))(t)
	for content, want := range map[string]int{
		"nonsense\n": 0, strconv.Itoa(1<<22 + 1): 0, strconv.Itoa(os.Getpid()) + "\n": os.Getpid(), // no number is above 1<<22
	} {
		ok(t, os.WriteFile(filepath.Join(dir, "lock"), []byte(content), 0o600))
		var busy *InUseError
		if _, err := lockFolder(t.Context(), dir); !errors.As(err, &busy) || busy.PID != want {
			t.Errorf("with %q in the lock: %v, want process %d", content, err, want)
		}
	}
	ok(t, unlock(lock))
}

func TestInterruptedInitIsRepaired(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "pg")
	h := startHelper(t, settings{Dir: dir})
	var half []string
	servertest.Eventually(t, "initdb wrote", func() bool {
		half = found(dir, "*", "PG_VERSION") // a half-made cluster must not be where the data belong
		return len(half) > 0
	})
	for _, process := range append(processesOf(dir), running{pid: h.cmd.Process.Pid}) {
		_ = syscall.Kill(process.pid, syscall.SIGKILL) // some end with the others
	}
	_ = h.cmd.Wait()
	servertest.Eventually(t, "initdb had ended", func() bool { return len(processesOf(dir)) == 0 })
	query(t, start(t, settings{Dir: dir}).URL("postgres"), "SELECT 1")
	if exists(half[0]) {
		t.Errorf("%s is still there", half[0])
	}
}
