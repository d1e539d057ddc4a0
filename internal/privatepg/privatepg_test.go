package privatepg

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

func TestDataIsKeptBetweenRuns(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "not", "yet", "there")
	first := start(t, settings{Dir: dir})
	url := first.URL("postgres")
	query(t, url, "CREATE DATABASE dev")
	query(t, first.URL("dev"), "CREATE TABLE kept AS SELECT 42 AS answer")
	hasSettings(t, url, map[string]string{
		"server_encoding": "UTF8", "fsync": "on", "synchronous_commit": "on",
		"full_page_writes": "on", "TimeZone": "UTC",
	})
	if got := query(t, url, "SHOW lc_collate"); got != "C.UTF-8" && got != "C" {
		t.Errorf("it sorts by %q", got)
	}
	ok(t, first.Close())
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("after Close there is still %v", left)
	}
	second := start(t, settings{Dir: dir})
	shows(t, second.URL("dev"), "SELECT answer FROM kept", "42")
	log := logOf(t, dir)
	if strings.Count(log, "ready to accept connections") != 2 || strings.Contains(log, "was not properly shut down") {
		t.Errorf("the log does not tell of two starts and a clean shutdown:\n%s", log)
	}
}

func TestEphemeralServerIsFastHasNoPortAndLeavesNothing(t *testing.T) {
	t.Parallel()
	free := must(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	tcpPort := strconv.Itoa(free.Addr().(*net.TCPAddr).Port)
	ok(t, free.Close())
	server := start(t, settings{Temp: newFolder(t), Ephemeral: true, Parameters: map[string]string{
		"work_mem": "5MB", "listen_addresses": "*", "listen-addresses": "*", "LISTEN_ADDRESSES": "*", "port": tcpPort,
		"unix_socket_directories": "/tmp", "unix_socket_permissions": "0777",
	}})
	hasSettings(t, server.URL("postgres"), map[string]string{
		"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200", "work_mem": "5MB",
		"listen_addresses": "", "port": port, "unix_socket_permissions": "0700",
	})
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:"+tcpPort); err == nil {
		conn.Close()
		t.Errorf("port %s is open", tcpPort)
	}
	_, pgid := postmaster(t, server.Dir())
	var closers sync.WaitGroup
	failed := [3]error{}
	for i := range failed { // Close is idempotent, also at the same time
		closers.Go(func() { failed[i] = server.Close() })
	}
	closers.Wait()
	ok(t, failed[:]...)
	if exists(server.Dir()) {
		t.Errorf("%s is still there", server.Dir())
	}
	nothingLeft(t, server.Dir(), pgid, true)
	if err := server.Start(t.Context()); err == nil {
		t.Error("a closed server could be started")
	}
}

func TestAddressAndDataSurviveStopAndCrash(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t)})
	url := server.URL("template1")
	query(t, url, "CREATE TABLE kept (n int)")
	query(t, url, "DROP DATABASE postgres") // a start does not need it
	for _, end := range []struct {
		name    string
		do      func() error
		crashes int // in the log by then
	}{
		{"Stop", func() error { return server.Stop(t.Context()) }, 0},
		{"Kill", server.Kill, 1},
		{"kill -9 of the server", func() error { // which leaves its file saying that it is ready
			if server.proc.running() {
				kill(t, parsePID(must(os.ReadFile(server.postmasterFile()))(t)))
			}
			return server.Stop(t.Context())
		}, 2},
	} {
		query(t, url, "INSERT INTO kept VALUES (1)")
		_, disconnected := busyClient(t, url, "SELECT pg_sleep(600)")
		ok(t, end.do(), end.do()) // the second time there is nothing to do
		if err := <-disconnected; err == nil {
			t.Errorf("%s has waited for a client", end.name)
		}
		if _, err := tryQuery(t.Context(), url, "SELECT 1"); err == nil {
			t.Errorf("after %s the server still answers", end.name)
		}
		ok(t, server.Start(t.Context()), server.Start(t.Context()))
		if server.URL("template1") != url {
			t.Errorf("after %s the address is another: %s", end.name, server.URL("template1"))
		}
		log := logOf(t, server.Dir())
		if crashes := strings.Count(log, "was not properly shut down"); crashes != end.crashes {
			t.Errorf("after %s the log tells of %d crashes", end.name, crashes)
		}
	}
	shows(t, url, "SELECT count(*) FROM kept", "3")
}

func TestAwkwardFoldersGetAnAddressThatClientsUnderstand(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		folder string
		inside bool
	}{
		"special characters": {`it's "100%" $HOME & co; a+b?c=d#e`, true},
		"comma":              {"a,b", false},
		"too deep":           {strings.Repeat("deep", 25), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(newFolder(t), test.folder)
			ok(t, os.Rename(initialisedFolder(t), dir))
			server := start(t, settings{Dir: dir, Ephemeral: true})
			url := server.URL("postgres")
			query(t, url, `CREATE DATABASE "a/b?c"`)
			ok(t, server.Kill(), server.Start(t.Context()))
			shows(t, server.URL("a/b?c"), "SELECT current_database()", "a/b?c")
			if inside := server.sockets == filepath.Join(dir, "run"); inside != test.inside {
				t.Errorf("the socket is in %s", server.sockets)
			}
			if info, err := os.Stat(server.sockets); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the socket's folder: %v, %v", info.Mode(), err)
			}
			ok(t, server.Close())
			if !test.inside && exists(server.sockets) {
				t.Errorf("%s is still there", server.sockets)
			}
		})
	}
}

func TestFailedStartShowsItsLogAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	began := time.Now()
	err := fails(t, settings{Dir: dir, Parameters: map[string]string{"work_mem": "nonsense"}})
	if !strings.Contains(err.Error(), `invalid value for parameter "work_mem": "nonsense"`) {
		t.Errorf("the error does not show the log: %v", err)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v to see that the server had ended", took)
	}
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("there is still %v", left)
	}
	start(t, settings{Dir: dir}) // the lock is free
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "pg")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := Start(ctx, settings{Dir: dir}.config(io.Discard))
		failed <- err
	}()
	servertest.Eventually(t, "initdb wrote", func() bool { return len(found(dir, initPrefix+"*", "*")) > 0 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	if left := found(dir, "*"); len(left) != 2 || len(processesOf(dir)) > 0 { // the lock and the log
		t.Errorf("there is still %v, %v", left, processesOf(dir))
	}
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]bool{maxLog: true, maxLog + 1: false} {
		dir := initialisedFolder(t)
		log := filepath.Join(dir, "postgres.log")
		ok(t, os.Truncate(log, size))
		start(t, settings{Dir: dir, Ephemeral: true})
		info := must(os.Stat(log))(t)
		if kept := info.Size() > maxLog; kept != want {
			t.Errorf("a log of %d bytes has %d after a start", size, info.Size())
		}
	}
}

func TestDatabaseOutlivesAForgottenHandle(t *testing.T) {
	dir := initialisedFolder(t)
	url := must(Start(t.Context(), settings{Dir: dir, Ephemeral: true}.config(io.Discard)))(t).URL("postgres")
	_, pgid := postmaster(t, dir)
	t.Cleanup(func() { // there is no handle to close it with
		_ = syscall.Kill(-pgid, syscall.SIGKILL)
		nothingLeft(t, dir, pgid, false)
	})
	var collected atomic.Bool
	runtime.AddCleanup(&struct{ _ [64]byte }{}, func(done *atomic.Bool) { done.Store(true) }, &collected)
	servertest.Eventually(t, "the garbage collector ran", func() bool { runtime.GC(); return collected.Load() })
	query(t, url, "SELECT 1")
	_ = refused(t, settings{Dir: dir}) // the lock of a forgotten handle holds
}
