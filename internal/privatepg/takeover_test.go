package privatepg

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

// killSupervisor is kill -9 for the supervisor and its helper. A child of the server may be in their group for a moment;
// to kill it would be a crash that the server answers itself.
func killSupervisor(t *testing.T, pgid int) {
	t.Helper()
	shells := slices.DeleteFunc(must(list())(t), func(r running) bool {
		return r.pgid != pgid || !strings.HasPrefix(r.line, itoa(r.pid)+" /bin/sh ")
	})
	if len(shells) != 2 {
		t.Fatalf("these are not the supervisor and its helper: %v", shells)
	}
	kill(t, shells[0].pid, shells[1].pid)
}

func TestNextStartTakesOverAfterKillOfEverything(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}, nil).ready(t)
	query(t, h.URL, "CREATE TABLE kept AS SELECT 42 AS answer")
	pid, pgid := postmaster(t, dir)
	killSupervisor(t, pgid)
	h.kill(t)
	if got := query(t, h.URL, "SELECT 1"); got != "1" { // the control: there is something to take over
		t.Fatal("the server did not survive")
	}
	server, log := startLogged(t, settings{Dir: dir})
	if now, _ := postmaster(t, dir); now == pid || alive(t, pid) {
		t.Errorf("process %d of the dead owner is still there", pid)
	}
	if !strings.Contains(log.String(), "taking over") || !strings.Contains(log.String(), "pid="+itoa(pid)) {
		t.Errorf("the log does not tell of it: %s", log)
	}
	if got := query(t, server.URL("postgres"), "SELECT answer FROM kept"); got != "42" {
		t.Errorf("the data is %q", got)
	}
}

func TestNextStartTakesOverFromOrphanedSessions(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}, nil).ready(t)
	ended := make(chan error, 1)
	go func() {
		// It computes and does not look whether its parent is there.
		_, err := tryQuery(context.Background(), h.URL, "SELECT sum(a) FROM generate_series(1, 1000000000) a")
		ended <- err
	}()
	backend := ""
	servertest.Eventually(t, "the client's query ran", func() bool {
		backend = query(t, h.URL, "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE query LIKE '%sum(a)%' AND state = 'active' AND pid <> pg_backend_pid()")
		return backend != "0"
	})
	pid, pgid := postmaster(t, dir)
	killSupervisor(t, pgid)
	kill(t, pid)
	h.kill(t)
	servertest.Eventually(t, "the first process was gone", func() bool { return !alive(t, pid) })
	if !alive(t, atoi(t, backend)) { // the control
		t.Fatal("the session did not survive")
	}
	server := start(t, settings{Dir: dir})
	query(t, server.URL("postgres"), "SELECT 1")
	if err := <-ended; err == nil {
		t.Error("the orphaned session finished")
	}
}

func TestNextStartFollowsAKillAtOnce(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	for _, when := range []string{"lock", "run", "data/" + postmasterFile, "run/" + socketName, "ready"} {
		if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
			t.Fatal(err)
		}
		h := startHelper(t, settings{Dir: dir}, nil)
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
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNextStartRemovesTemporaryFoldersOfTheDead(t *testing.T) {
	t.Parallel()
	temp := newFolder(t)
	dead := startHelper(t, settings{Temp: temp, Ephemeral: true}, nil).ready(t)
	living := start(t, settings{Temp: temp, Ephemeral: true})
	pid, pgid := postmaster(t, dead.Dir)
	killSupervisor(t, pgid)
	dead.kill(t)
	foreign := filepath.Join(temp, temporaryPrefix+"foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o755), os.Chown(foreign, os.Geteuid()+12345, -1)); err != nil {
		if os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Logf("only root can give a folder to somebody else, so that it is spared is not tested: %v", err)
	}
	// Any start will do; this one is soon over.
	_, err := Start(t.Context(), settings{Temp: temp, Path: "/nowhere", Folders: []string{}}.config(nil))
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatal(err)
	}
	if alive(t, pid) || exists(dead.Dir) {
		t.Errorf("process %d (%v) or %s (%v) is still there", pid, alive(t, pid), dead.Dir, exists(dead.Dir))
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
	h, err := openHome(t.Context(), settings{Dir: dir}.config(nil), discard())
	if err != nil {
		t.Fatal(err)
	}
	unrelated := h.command(exec.CommandContext(t.Context(), "/bin/sleep", "600"))
	unrelated.Dir = filepath.Join(dir, "data") // as near as a stranger can get
	if err := unrelated.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unrelated.Process.Kill()
		_ = unrelated.Wait()
	})
	stale := filepath.Join(dir, "data", postmasterFile)
	content := itoa(unrelated.Process.Pid) + "\n" + dir + "/data\n1700000000\n5432\n" + dir + "/run\n\n 1 1\nready   \n"
	if err := errors.Join(os.WriteFile(stale, []byte(content), 0o600), h.own(stale)); err != nil {
		t.Fatal(err)
	}
	bin, err := finder{cfg: settings{}.config(nil), account: h.account}.find(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	output, err := h.command(exec.CommandContext(t.Context(), filepath.Join(bin, "postgres"), "-D", filepath.Join(dir, "data"))).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "already exists") { // the control
		t.Fatalf("PostgreSQL does not mind the stale file: %v\n%s", err, output)
	}
	if err := h.lock.Close(); err != nil {
		t.Fatal(err)
	}
	// The socket has such a file, too.
	if err := errors.Join(os.RemoveAll(h.run()), os.Mkdir(h.run(), 0o700),
		os.WriteFile(filepath.Join(h.run(), socketName+".lock"), []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
	server := start(t, settings{Dir: dir})
	query(t, server.URL("postgres"), "SELECT 1")
	if !alive(t, unrelated.Process.Pid) {
		t.Error("the unrelated process was ended")
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A file that was cut short, as a crash of the machine leaves it.
	if err := errors.Join(os.WriteFile(stale, nil, 0o600), h.own(stale), server.Start(t.Context())); err != nil {
		t.Errorf("start with an empty file: %v", err)
	}
}

func TestServersAreToldFromTheirNeighbours(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	server := start(t, settings{Dir: dir, Ephemeral: true})
	neighbour := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	pid, _ := postmaster(t, dir)
	other, _ := postmaster(t, neighbour.Dir())
	data := filepath.Join(dir, "data")
	found, err := server.home.servers(t.Context(), data, "")
	if err != nil || !slices.Contains(found.ours, pid) || slices.Contains(found.ours, other) {
		t.Errorf("found %v (%v), want %d and not %d", found.ours, err, pid, other)
	}
	query(t, server.URL("postgres"), "SELECT 1")

	if _, err := server.home.servers(t.Context(), data, "INT"); err != nil {
		t.Error(err)
	}
	servertest.Eventually(t, "it had ended", func() bool { return !alive(t, pid) })
	query(t, neighbour.URL("postgres"), "SELECT 1")
}

func TestSecondOwnerIsRefusedWithThePidOfTheFirst(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}, nil).ready(t)
	pid, _ := postmaster(t, dir)
	var busy *InUseError
	_, err := Start(t.Context(), settings{Dir: dir}.config(nil))
	if !errors.As(err, &busy) || busy.PID != h.cmd.Process.Pid || busy.Dir != dir {
		t.Fatalf("second start: %v, want one that names process %d and %s", err, h.cmd.Process.Pid, dir)
	}
	query(t, h.URL, "SELECT 1")

	// The control: without the lock the second owner would take the server for a dead one's.
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	start(t, settings{Dir: dir})
	if alive(t, pid) {
		t.Error("without the lock the first server was left alone, so what does the lock protect?")
	}
}

func TestLockGoesWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	h := startHelper(t, settings{Dir: dir}, nil).ready(t)
	h.kill(t)
	content, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil || parsePID(content) != h.cmd.Process.Pid {
		t.Fatalf("the lock does not name the dead owner: %q (%v)", content, err)
	}
	start(t, settings{Dir: dir})
}

func TestLockWithoutALivingNumberBlamesNobody(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	lock := must(lockFolder(t.Context(), dir))(t)
	t.Cleanup(func() {
		if err := unlock(lock); err != nil {
			t.Error(err)
		}
	})
	for content, want := range map[string]int{
		"nonsense\n": 0, itoa(1<<22 + 1): 0, itoa(os.Getpid()) + "\n": os.Getpid(), // no number is above 1<<22
	} {
		if err := os.WriteFile(filepath.Join(dir, "lock"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var busy *InUseError
		if _, err := lockFolder(t.Context(), dir); !errors.As(err, &busy) || busy.PID != want {
			t.Errorf("with %q in the lock: %v, want process %d", content, err, want)
		}
	}
}

func TestInterruptedInitIsRepaired(t *testing.T) {
	t.Parallel()
	for attempt := 1; ; attempt++ {
		dir := filepath.Join(newFolder(t), "pg")
		half := interruptInit(t, dir)
		// The control: had initdb worked in the final place, the folder would be of no use.
		bricked := filepath.Join(newFolder(t), "pg")
		servertest.Eventually(t, "the cluster held still", func() bool { // a child of initdb may outlast it unseen
			return exec.CommandContext(t.Context(), "sh", "-c", `rm -rf "$2" && mkdir "$2" && cp -a "$1" "$2/data"`, "sh", half, bricked).Run() == nil
		})
		if works(t, bricked) {
			if attempt == 5 {
				t.Fatal("a half-made cluster works")
			}
			continue // on a busy machine initdb may be through before it is killed
		}
		server := start(t, settings{Dir: dir})
		query(t, server.URL("postgres"), "SELECT 1")
		if exists(half) {
			t.Errorf("%s is still there", half)
		}
		return
	}
}

// works tells whether a folder can be used.
func works(t *testing.T, dir string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := Start(ctx, settings{Dir: dir}.config(nil))
	if err != nil {
		return false
	}
	_, err = tryQuery(ctx, server.URL("postgres"), "SELECT 1")
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	return err == nil
}

// interruptInit kills a process while initdb runs, and with it all that could clean up. It returns what is left.
func interruptInit(t *testing.T, dir string) (half string) {
	t.Helper()
	h := startHelper(t, settings{Dir: dir}, nil)
	pattern := filepath.Join(dir, initPrefix+"*", "PG_VERSION")
	servertest.Eventually(t, "initdb wrote", func() bool { return len(must(filepath.Glob(pattern))(t)) > 0 })
	half = filepath.Dir(must(filepath.Glob(pattern))(t)[0])
	left := must(processesNaming(half))(t)
	if len(left) == 0 {
		t.Fatal("there is no initdb")
	}
	for _, process := range append(left, running{pid: h.cmd.Process.Pid}) {
		_ = syscall.Kill(process.pid, syscall.SIGKILL) // some end with the others
	}
	_ = h.cmd.Wait()
	servertest.Eventually(t, "initdb had ended", func() bool { return len(must(processesNaming(half))(t)) == 0 })
	if !exists(half) || exists(filepath.Join(dir, "data")) {
		t.Fatal("it was not interrupted halfway")
	}
	return half
}
