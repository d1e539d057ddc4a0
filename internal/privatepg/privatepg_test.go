package privatepg

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
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
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := processesNaming(dir); err != nil || len(left) > 0 {
		t.Errorf("after Close there is still %v (%v)", left, err)
	}
	second := start(t, settings{Dir: dir})
	if got := query(t, second.URL("dev"), "SELECT answer FROM kept"); got != "42" {
		t.Errorf("after another start the data is %q", got)
	}
	log, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
	if err != nil || strings.Count(string(log), "ready to accept connections") != 2 {
		t.Errorf("the log does not tell of two starts: %v\n%s", err, log)
	}
	if strings.Contains(string(log), "was not properly shut down") {
		t.Errorf("Close was no clean shutdown:\n%s", log)
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
	servertest.Eventually(t, "the supervisor's group was empty", func() bool { return len(group(t, pgid)) == 0 })
	if err := server.Start(t.Context()); err == nil {
		t.Error("a closed server could be started")
	}
}

func TestAddressAndDataSurviveStopAndCrash(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t)})
	url := server.URL("postgres")
	query(t, url, "CREATE TABLE kept (n int)")
	logged := func() string {
		content, err := os.ReadFile(filepath.Join(server.Dir(), "postgres.log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	for _, end := range []struct {
		name  string
		do    func() error
		crash bool
	}{
		{"Stop", func() error { return server.Stop(t.Context()) }, false},
		{"Kill", server.Kill, true},
	} {
		query(t, url, "INSERT INTO kept VALUES (1)")
		before := strings.Count(logged(), "was not properly shut down")
		if err := errors.Join(end.do(), end.do()); err != nil { // the second time there is nothing to do
			t.Fatalf("%s: %v", end.name, err)
		}
		if _, err := tryQuery(t.Context(), url, "SELECT 1"); err == nil {
			t.Errorf("after %s the server still answers", end.name)
		}
		begin := time.Now()
		if err := errors.Join(server.Start(t.Context()), server.Start(t.Context())); err != nil {
			t.Fatalf("start after %s: %v", end.name, err)
		}
		t.Logf("start after %s in %v", end.name, time.Since(begin).Round(time.Millisecond))
		if server.URL("postgres") != url {
			t.Errorf("after %s the address is another: %s", end.name, server.URL("postgres"))
		}
		if crashed := strings.Count(logged(), "was not properly shut down") > before; crashed != end.crash {
			t.Errorf("%s was a crash: %v, want %v", end.name, crashed, end.crash)
		}
	}
	if got := query(t, url, "SELECT count(*) FROM kept"); got != "2" {
		t.Errorf("%s rows of 2 are left", got)
	}
}

func TestServerStartsWhenItsDefaultDatabaseWasDropped(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	query(t, server.URL("template1"), "DROP DATABASE postgres")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := errors.Join(server.Stop(ctx), server.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	query(t, server.URL("template1"), "SELECT 1")
}

func TestStopDisconnectsClients(t *testing.T) {
	t.Parallel()
	server := start(t, settings{Dir: initialisedFolder(t), Ephemeral: true})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := tryQuery(ctx, server.URL("postgres"), "SELECT pg_sleep(600)")
		ended <- err
	}()
	servertest.Eventually(t, "the client's query ran", func() bool {
		return query(t, server.URL("postgres"), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(600)' AND state = 'active'") != "0"
	})
	if err := server.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("the client's query ended with %v", err)
	}
}

func TestServerHasNoNetworkPortWhateverTheParameters(t *testing.T) {
	t.Parallel()
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, tcpPort, err := net.SplitHostPort(free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
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
	for _, number := range []string{tcpPort, port} {
		if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:"+number); err == nil && number == tcpPort {
			conn.Close()
			t.Errorf("port %s is open", number)
		}
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
			if err := os.Rename(initialisedFolder(t), dir); err != nil {
				t.Fatal(err)
			}
			server := start(t, settings{Dir: dir, Ephemeral: true})
			url := server.URL("postgres")
			query(t, url, `CREATE DATABASE "a/b?c"`)
			if err := errors.Join(server.Kill(), server.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
			if got := query(t, server.URL("a/b?c"), "SELECT current_database()"); got != "a/b?c" {
				t.Errorf("connected to %q", got)
			}
			if inside := server.sockets == filepath.Join(dir, "run"); inside != test.inside {
				t.Errorf("the socket is in %s", server.sockets)
			}
			if info, err := os.Stat(server.sockets); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the socket's folder: %v, %v", info.Mode(), err)
			}
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
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
	_, err := Start(t.Context(), settings{Dir: dir, Parameters: map[string]string{"work_mem": "nonsense"}}.config(nil))
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "work_mem": "nonsense"`) {
		t.Errorf("the error does not show the log: %v", err)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("it took %v to see that the server had ended", took)
	}
	if left, err := processesNaming(dir); err != nil || len(left) > 0 {
		t.Errorf("there is still %v (%v)", left, err)
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
		server, err := Start(ctx, settings{Dir: dir}.config(nil))
		if err == nil {
			err = errors.Join(server.Close(), errors.New("it started"))
		}
		failed <- err
	}()
	servertest.Eventually(t, "initdb wrote", func() bool {
		return len(must(filepath.Glob(filepath.Join(dir, initPrefix+"*", "*")))(t)) > 0
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	for _, entry := range must(os.ReadDir(dir))(t) {
		if name := entry.Name(); name != "lock" && name != "postgres.log" {
			t.Errorf("there is still %s", name)
		}
	}
	if left := must(processesNaming(dir))(t); len(left) > 0 {
		t.Errorf("there is still %v", left)
	}
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]bool{maxLog: true, maxLog + 1: false} {
		dir := initialisedFolder(t)
		log := filepath.Join(dir, "postgres.log")
		if err := os.Truncate(log, size); err != nil {
			t.Fatal(err)
		}
		start(t, settings{Dir: dir, Ephemeral: true})
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		if kept := info.Size() > maxLog; kept != want {
			t.Errorf("a log of %d bytes has %d after a start", size, info.Size())
		}
	}
}

func TestDatabaseOutlivesAForgottenHandle(t *testing.T) {
	dir := initialisedFolder(t)
	url := func() string {
		server, err := Start(t.Context(), settings{Dir: dir, Ephemeral: true}.config(nil))
		if err != nil {
			t.Fatal(err)
		}
		return server.URL("postgres")
	}()
	_, pgid := postmaster(t, dir)
	t.Cleanup(func() { // there is no handle to close it with
		_ = syscall.Kill(-pgid, syscall.SIGKILL)
		servertest.Eventually(t, "everything had ended", func() bool {
			return len(must(processesNaming(dir))(t)) == 0
		})
	})
	collected := make(chan struct{})
	runtime.AddCleanup(&struct{ _ [64]byte }{}, func(done chan struct{}) { close(done) }, collected)
	servertest.Eventually(t, "the garbage collector ran", func() bool {
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
	if _, err := Start(t.Context(), settings{Dir: dir}.config(nil)); !errors.As(err, &busy) {
		t.Errorf("the lock of a forgotten handle is gone: %v", err)
	}
}
