package privatepg

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

// expectNothingLeft waits until the server, its supervisor and, where it was temporary, its folder are gone.
func expectNothingLeft(t *testing.T, dir string, pgid int, temporary bool) {
	t.Helper()
	servertest.Eventually(t, "no process was left", func() bool {
		left, err := processesNaming(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0 && len(group(t, pgid)) == 0
	})
	if temporary {
		servertest.Eventually(t, "the temporary folder was gone", func() bool { return !exists(dir) })
	}
}

func TestPostgresStopsWhenItsOwnerEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*helper) error{
		"killed":  func(h *helper) error { return h.cmd.Process.Kill() },
		"panic":   func(h *helper) error { return h.write("panic") },
		"os.Exit": func(h *helper) error { return h.write("exit") },
		"return":  func(h *helper) error { return h.write("forget") },
		"SIGTERM": func(h *helper) error { return h.cmd.Process.Signal(syscall.SIGTERM) },
		// As a terminal does it: to the whole process group.
		"Ctrl-C": func(h *helper) error { return syscall.Kill(-h.cmd.Process.Pid, syscall.SIGINT) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startHelper(t, settings{Dir: initialisedFolder(t)}, &syscall.SysProcAttr{Setpgid: true}).ready(t)
			_, pgid := postmaster(t, h.Dir)
			// A client that is busy must not keep the server alive.
			busy := make(chan struct{})
			go func() {
				defer close(busy)
				_, _ = tryQuery(context.Background(), h.URL, "SELECT pg_sleep(600)")
			}()
			servertest.Eventually(t, "the client's query ran", func() bool {
				return query(t, h.URL, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(600)' AND state = 'active'") != "0"
			})
			if err := end(h); err != nil {
				t.Fatal(err)
			}
			_ = h.cmd.Wait()
			expectNothingLeft(t, h.Dir, pgid, false)
			<-busy
			log, err := os.ReadFile(filepath.Join(h.Dir, "postgres.log"))
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(log)), "database system is shut down") ||
				!strings.Contains(string(log), "received fast shutdown request") {
				t.Errorf("that was no clean shutdown: %v\n%s", err, log)
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
			h := startHelper(t, settings{Temp: temp, Ephemeral: true}, nil)
			switch when {
			case "initdb runs":
				servertest.Eventually(t, "initdb wrote", func() bool {
					return len(must(filepath.Glob(filepath.Join(temp, "*", initPrefix+"*", "*")))(t)) > 0
				})
			case "the server is stopped":
				if got := h.ready(t).order(t, "stop"); got != "<nil>" {
					t.Fatalf("stop: %s", got)
				}
			default:
				h.ready(t)
			}
			h.kill(t)
			servertest.Eventually(t, "nothing was left", func() bool {
				return len(must(processesNaming(temp))(t)) == 0 && len(must(os.ReadDir(temp))(t)) == 0
			})
		})
	}
}

func TestSocketFolderGoesWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), strings.Repeat("deep", 25))
	if err := os.Rename(initialisedFolder(t), dir); err != nil {
		t.Fatal(err)
	}
	h := startHelper(t, settings{Dir: dir, Ephemeral: true}, nil).ready(t)
	_, pgid := postmaster(t, dir)
	sockets := query(t, h.URL, "SELECT trim('\"' FROM current_setting('unix_socket_directories'))")
	if !exists(sockets) || strings.HasPrefix(sockets, dir) {
		t.Fatalf("the socket is in %q", sockets)
	}
	h.kill(t)
	expectNothingLeft(t, dir, pgid, false)
	servertest.Eventually(t, "the socket's folder was gone", func() bool { return !exists(sockets) })
	if !exists(filepath.Join(dir, "data")) {
		t.Error("the data is gone as well")
	}
}

func TestCtrlCLeavesTheOwnerTimeToDrain(t *testing.T) {
	t.Parallel()
	h := startHelper(t, settings{Dir: initialisedFolder(t), Catch: true}, &syscall.SysProcAttr{Setpgid: true}).ready(t)
	if err := syscall.Kill(-h.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := h.answer(t); got != "drained: <nil>" {
		t.Errorf("after Ctrl-C the database does not answer its owner: %s", got)
	}
}

func TestPostgresHoldsNoEndOfItsOwnersPipe(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	pid, pgid := postmaster(t, server.Dir())
	target := func(pid int, fd string) string {
		return must(os.Readlink(filepath.Join("/proc", itoa(pid), "fd", fd)))(t)
	}
	orders, report := target(pgid, "4"), target(pgid, "1")
	if !strings.HasPrefix(orders, "pipe:") || !strings.HasPrefix(report, "pipe:") { // the control
		t.Fatalf("the supervisor's pipes are %q and %q", orders, report)
	}
	for _, fd := range must(os.ReadDir(filepath.Join("/proc", itoa(pid), "fd")))(t) {
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
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	expectNothingLeft(t, server.Dir(), pgid, false)
}
