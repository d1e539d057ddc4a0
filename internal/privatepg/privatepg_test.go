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
	"syscall"
	"testing"
	"time"
)

func TestDataIsKeptBetweenRuns(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "not", "yet", "there")
	first := start(t, settings{Dir: dir})
	url := first.URL("postgres")
	query(t, url, "CREATE DATABASE dev")
	query(t, first.URL("dev"), "CREATE TABLE kept AS SELECT 42 AS answer")
	for setting, want := range map[string]string{
		"server_encoding": "UTF8", "fsync": "on", "synchronous_commit": "on",
		"full_page_writes": "on", "TimeZone": "UTC",
	} {
		if got := query(t, url, "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if got := query(t, url, "SHOW lc_collate"); got != "C.UTF-8" && got != "C" {
		t.Errorf("it sorts by %q", got)
	}
	ok(t, first.Close())
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("after Close there is still %v", left)
	}
	second := start(t, settings{Dir: dir})
	if got := query(t, second.URL("dev"), "SELECT answer FROM kept"); got != "42" {
		t.Errorf("after another start the data is %q", got)
	}
	log := string(must(os.ReadFile(filepath.Join(dir, "postgres.log")))(t))
	if strings.Count(log, "ready to accept connections") != 2 || strings.Contains(log, "was not properly shut down") {
		t.Errorf("the log does not tell of two starts and a clean shutdown:\n%s", log)
	}
}

func TestEphemeralServerIsFastAndLeavesNothing(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Temp: newFolder(t), Ephemeral: true, Parameters: map[string]string{"work_mem": "5MB"}})
	for setting, want := range map[string]string{
		"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200", "work_mem": "5MB",
	} {
		if got := query(t, server.URL("postgres"), "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	_, pgid := postmaster(t, server.Dir())
	var closers sync.WaitGroup
	for range 3 { // Close is idempotent, also at the same time
		closers.Go(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
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
		log := string(must(os.ReadFile(filepath.Join(server.Dir(), "postgres.log")))(t))
		if crashes := strings.Count(log, "was not properly shut down"); crashes != end.crashes {
			t.Errorf("after %s the log tells of %d crashes", end.name, crashes)
		}
	}
	if got := query(t, url, "SELECT count(*) FROM kept"); got != "3" {
		t.Errorf("%s rows of 3 are left", got)
	}
}

func TestServerHasNoNetworkPortWhateverTheParameters(t *testing.T) {
	t.Parallel()
	free := must(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	tcpPort := strconv.Itoa(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true, Parameters: map[string]string{
		"listen_addresses": "*", "listen-addresses": "*", "LISTEN_ADDRESSES": "*", "port": tcpPort,
		"unix_socket_directories": "/tmp", "unix_socket_permissions": "0777",
	}})
	for setting, want := range map[string]string{
		"listen_addresses": "", "port": port, "unix_socket_permissions": "0700",
	} {
		if got := query(t, server.URL("postgres"), "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:"+tcpPort); err == nil {
		conn.Close()
		t.Errorf("port %s is open", tcpPort)
	}
	for _, folder := range []string{"run", "data"} {
		info, err := os.Stat(filepath.Join(server.Dir(), folder))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, mode %v, want 0700", folder, err, info.Mode())
		}
	}
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
			if got := query(t, server.URL("a/b?c"), "SELECT current_database()"); got != "a/b?c" {
				t.Errorf("connected to %q", got)
			}
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
	begin := time.Now()
	err := fails(t, settings{Dir: dir, Parameters: map[string]string{"work_mem": "nonsense"}})
	if !strings.Contains(err.Error(), `invalid value for parameter "work_mem": "nonsense"`) {
		t.Errorf("the error does not show the log: %v", err)
	}
	if took := time.Since(begin); took > patience {
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
		server, err := Start(ctx, settings{Dir: dir}.config(io.Discard))
		if err == nil {
			err = server.Close()
		}
		failed <- err
	}()
	eventually(t, "initdb wrote", func() bool { return len(found(dir, initPrefix+"*", "*")) > 0 })
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
	collected := make(chan struct{})
	runtime.AddCleanup(&struct{ _ [64]byte }{}, func(done chan struct{}) { close(done) }, collected)
	eventually(t, "the garbage collector ran", func() bool {
		runtime.GC()
		select {
		case <-collected:
			return true
		default:
			return false
		}
	})
	query(t, url, "SELECT 1")
	var busy *InUseError
	if err := fails(t, settings{Dir: dir}); !errors.As(err, &busy) {
		t.Errorf("the lock of a forgotten handle is gone: %v", err)
	}
}
