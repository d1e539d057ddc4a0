package main

import (
	"maps"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
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
			p.eventually("readiness fails", func() bool {
				got := call(t, "GET", base+"/readyz", "", "") // on a new connection: the last answer closed its own
				return got.code == 503 && got.closes()
			})
			call(t, "GET", base+"/v1.0/me", testKey, "").wants(t, 200)
			call(t, "POST", base+"/v1.0/accesskeys", testKey, `{}`).wants(t, 200)
		})
	}
}

// handOver makes a command of the program that finds a listener at file descriptor 3, as a service manager starts it.
func handOver(t *testing.T, listener net.Listener, env map[string]string, sockets string) *process {
	t.Helper()
	socket := must(listener.(*net.TCPListener).File())(t)
	t.Cleanup(func() { _ = socket.Close() })
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, must(binary())(t))
	cmd.ExtraFiles = []*os.File{socket}
	env = maps.Clone(env)
	env["LISTEN_FDS"] = sockets
	return spawnCommand(t, cmd, env, "")
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// While the program restarts, a socket that the service manager holds keeps connections waiting. None is refused.
func TestSocketThatIsHandedOverOutlivesARestart(t *testing.T) {
	t.Parallel()
	held := listener(t)
	base := "http://" + held.Addr().String()
	env := environment(pgtest.Migrated(t), map[string]string{"LISTEN_ADDR": "127.0.0.1:1"}) // which is not used
	for range 3 {
		p := handOver(t, held, env, "1")
		if got := p.base(); got != base {
			t.Fatalf("it listens on %s, want %s", got, base)
		}
		call(t, "GET", base+"/v1.0/me", testKey, "").wants(t, 200)
		p.stop(syscall.SIGTERM)
		waiting := dial(t, base) // with nobody there
		waiting.write("GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		p = handOver(t, held, env, "1")
		waiting.succeeds(waiting.read(patience))
		p.stop(syscall.SIGTERM)
	}
}

func TestOnlyASocketOfOursIsTaken(t *testing.T) {
	t.Parallel()
	held := listener(t)
	env := environment(pgtest.Migrated(t), nil)
	handOver(t, held, env, "2").fails(2, "LISTEN_FDS: .*")
	// LISTEN_PID is another process's: a parent of ours that was handed one does not share it.
	env["LISTEN_PID"], env["LISTEN_FDS"] = "1", "1"
	if addr := spawn(t, env, "", "serve").addr(); addr == held.Addr().String() {
		t.Error("it took another process's socket")
	}
}
