package privatepg

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

func TestPostgresStopsWhenItsOwnerEnds(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"kill -9", "panic", "return"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			h := startHelper(t, settings{Dir: initialisedFolder(t)}).ready(t)
			_, pgid := postmaster(t, h.Dir)
			_, busy := busyClient(t, h.URL, "SELECT pg_sleep(600)") // it must not keep the server alive
			if end == "kill -9" {
				h.kill(t)
			} else {
				h.order(t, end)
				_ = h.cmd.Wait()
			}
			nothingLeft(t, h.Dir, pgid, false)
			if err := <-busy; err == nil {
				t.Error("it has waited for a client")
			}
			log := logOf(t, h.Dir)
			if !strings.HasSuffix(strings.TrimSpace(log), "database system is shut down") || !strings.Contains(log, "received fast shutdown request") {
				t.Errorf("that was no clean shutdown:\n%s", log)
			}
		})
	}
}

func TestTemporaryFolderGoesWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"initdb runs", "the server runs", "the server is stopped"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			temp := newFolder(t)
			h := startHelper(t, settings{Temp: temp, Ephemeral: true})
			if when == "initdb runs" {
				servertest.Eventually(t, "initdb wrote", func() bool { return len(found(temp, "*", initPrefix+"*", "*")) > 0 })
			} else {
				h.ready(t)
			}
			if when == "the server is stopped" {
				h.order(t, "stop")
				if got := h.answer(t); got != "stopped: <nil>" {
					t.Fatal(got)
				}
			}
			h.kill(t)
			servertest.Eventually(t, "nothing was left", func() bool { return len(processesOf(temp)) == 0 && len(found(temp, "*")) == 0 })
		})
	}
}

func TestSocketFolderGoesWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), strings.Repeat("deep", 25))
	ok(t, os.Rename(initialisedFolder(t), dir))
	h := startHelper(t, settings{Dir: dir, Ephemeral: true}).ready(t)
	_, pgid := postmaster(t, dir)
	sockets := query(t, h.URL, "SELECT trim('\"' FROM current_setting('unix_socket_directories'))")
	if !exists(sockets) || strings.HasPrefix(sockets, dir) {
		t.Fatalf("the socket is in %q", sockets)
	}
	h.kill(t)
	nothingLeft(t, dir, pgid, false)
	servertest.Eventually(t, "the socket's folder was gone", func() bool { return !exists(sockets) })
	if !exists(filepath.Join(dir, "data")) {
		t.Error("the data is gone as well")
	}
}

// A terminal sends it to the whole process group.
func TestCtrlCLeavesTheOwnerTimeToDrain(t *testing.T) {
	t.Parallel()
	h := startHelper(t, settings{Dir: initialisedFolder(t)}).ready(t)
	ok(t, syscall.Kill(-h.cmd.Process.Pid, syscall.SIGINT))
	if got := h.answer(t); got != "drained: <nil>" {
		t.Errorf("after Ctrl-C the database does not answer its owner: %s", got)
	}
}

func TestPostgresHoldsNoEndOfItsOwnersPipe(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	pid, pgid := postmaster(t, server.Dir())
	target := func(pid int, fd string) string {
		return must(os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "fd", fd)))(t)
	}
	orders, report := target(pgid, "4"), target(pgid, "1")
	if !strings.HasPrefix(orders, "pipe:") || !strings.HasPrefix(report, "pipe:") { // the control
		t.Fatalf("the supervisor's pipes are %q and %q", orders, report)
	}
	for _, fd := range must(os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd")))(t) {
		if held := target(pid, fd.Name()); held == orders || held == report {
			t.Errorf("PostgreSQL holds %s as %s", held, fd.Name())
		}
	}
}

func TestCloseStopsAServerWhoseSupervisorWasKilled(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	_, pgid := postmaster(t, server.Dir())
	killSupervisor(t, pgid)
	query(t, server.URL("postgres"), "SELECT 1") // nobody has stopped it yet
	ok(t, server.Close())
	nothingLeft(t, server.Dir(), pgid, false)
}
