package main

import (
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// A balancer that asks /readyz now and then must find out before a connection is refused. Without SHUTDOWN_DELAY it can't, which
// the second case shows.
func TestConnectionsAreAcceptedUntilBalancersHaveNoticed(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{30 * time.Second, 0} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			p := spawn(t, environment(pgtest.Migrated(t), map[string]string{"SHUTDOWN_DELAY": delay.String()}), "", "serve")
			base := p.base()
			slow := dial(t, base)
			slow.upload() // keeps it from ending
			p.signal(syscall.SIGTERM)
			if delay == 0 {
				refusesConnections(t, base)
				return
			}
			servertest.Eventually(t, "readiness fails", func() bool {
				res, err := http.Get(base + "/readyz") // on a new connection: the last answer closed its own
				if err != nil {
					t.Fatalf("a connection was refused: %v", err)
				}
				_ = res.Body.Close()
				return res.StatusCode == http.StatusServiceUnavailable && res.Close
			})
			call(t, "GET", base+"/v1.0/me", testKey, "").wants(t, 200)
			call(t, "POST", base+"/v1.0/accesskeys", testKey, `{}`).wants(t, 200)
		})
	}
}

// handOver makes a command of the program that finds a listener at file descriptor 3, as a service manager starts it.
func handOver(t *testing.T, listener *net.TCPListener, env map[string]string, sockets string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, path)
	cmd.ExtraFiles = []*os.File{socket}
	env = maps.Clone(env)
	env["LISTEN_FDS"] = sockets
	return spawnCommand(t, cmd, env, "")
}

// While the program restarts, a socket that the service manager holds keeps connections waiting. None is refused.
func TestSocketThatIsHandedOverOutlivesARestart(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	base := "http://" + listener.Addr().String()
	env := environment(pgtest.Migrated(t), map[string]string{"LISTEN_ADDR": "127.0.0.1:1"}) // which is not used
	for range 3 {
		p := handOver(t, listener.(*net.TCPListener), env, "1")
		if got := p.base(); got != base {
			t.Fatalf("it listens on %s, want %s", got, base)
		}
		call(t, "GET", base+"/v1.0/me", testKey, "").wants(t, 200)
		p.signal(syscall.SIGTERM)
		if code := p.code(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		waiting := dial(t, base) // with nobody there
		waiting.write("GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		p = handOver(t, listener.(*net.TCPListener), env, "1")
		if got, err := waiting.read(patience); err != nil || got.code != 200 {
			t.Errorf("the connection that waited got %+v, %v", got, err)
		}
		p.signal(syscall.SIGTERM)
		p.code()
	}
}

func TestOnlyASocketOfOursIsTaken(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	env := environment(pgtest.Migrated(t), nil)
	p := handOver(t, listener.(*net.TCPListener), env, "2")
	if code := p.code(); code != 2 || !strings.Contains(p.stderr.String(), "LISTEN_FDS: ") {
		t.Errorf("of two sockets: exit code %d, %s", code, p.stderr)
	}
	// LISTEN_PID is another process's: a parent of ours that was handed one does not share it.
	env["LISTEN_PID"], env["LISTEN_FDS"] = "1", "1"
	if base := spawn(t, env, "", "serve").base(); base == "http://"+listener.Addr().String() {
		t.Error("it took another process's socket")
	}
}
