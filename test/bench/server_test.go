//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// binary is the server under test, built by `make bench`.
const binary = "../../bin/server"

const (
	customer  = "Bench"
	username  = "admin@bench.example"
	password  = "bench-password"
	accessKey = "vb_BenchBenchBenchBenchBenchBenchBe"
)

// jwtSecret is that of every server here.
var jwtSecret = secret.New(strings.Repeat("bench-secret", 4))

// newPostgres starts a Postgres with real durability.
func newPostgres(b *testing.B, maxConnections string) *privatepg.Server {
	b.Helper()
	parameters := map[string]string{"max_connections": maxConnections}
	postgres := servertest.Must(privatepg.Start(b.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: parameters}))(b)
	b.Cleanup(func() { _ = postgres.Close() })
	return postgres
}

func newDatabase(b *testing.B) secret.Value {
	b.Helper()
	return secret.New(newPostgres(b, "100").URL("postgres")) // which is Postgres's own number
}

// process is a server that runs somewhere.
type process struct {
	addr string
	pid  int
}

// cpu returns how much time of the processor's it has used.
func (p process) cpu(b *testing.B) time.Duration {
	b.Helper()
	return cpuTime(b, p.pid, 2)
}

// cpuTime is the sum of so many of a process's times: its own in user mode and in the kernel, and those of its children that have ended. It
// is 0 for one that has ended.
func cpuTime(b *testing.B, pid, times int) (used time.Duration) {
	b.Helper()
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	if fields := servertest.Stat(pid); len(fields) > 14 {
		for _, field := range fields[11 : 11+times] {
			used += time.Duration(servertest.Must(strconv.Atoi(field))(b)) * tick
		}
	}
	return used
}

// pause stops the server until resume. Only one of several that take turns runs: what it does beside answering, collecting
// garbage say, or writing down when keys were used, costs its own turns and not the others'.
func (p process) pause() { _ = syscall.Kill(p.pid, syscall.SIGSTOP) }

// resume lets the server go on, and gives it a moment to renew a lease that has ended meanwhile.
func (p process) resume() {
	_ = syscall.Kill(p.pid, syscall.SIGCONT)
	time.Sleep(50 * time.Millisecond)
}

// server is one of ours: the binary, with the customer, the admin and the key of the constants above.
type server struct {
	process
	program *servertest.Program
	ready   time.Duration // from its start to its first answer at /readyz
}

// startServer runs the binary until the benchmark ends or stop is called. env has further settings.
func startServer(b *testing.B, database secret.Value, env ...string) *server {
	b.Helper()
	return startBinary(b, binary, database, env...)
}

func startBinary(b *testing.B, path string, database secret.Value, env ...string) *server {
	b.Helper()
	s := &server{process: process{addr: servertest.Must(servertest.FreeAddr())(b)}}
	cmd := exec.Command(path, "serve")
	cmd.Env = append(append(os.Environ(), "DATABASE_URL="+database.Reveal()+"&pool_max_conns=32", "LISTEN_ADDR="+s.addr,
		"JWT_SECRET="+jwtSecret.Reveal(), "RATE_LIMIT_AUTH_RPS=0", "SHUTDOWN_DELAY=0", "BOOTSTRAP_CUSTOMER="+customer,
		"BOOTSTRAP_USERNAME="+username, "BOOTSTRAP_PASSWORD="+password, "BOOTSTRAP_ACCESSKEY="+accessKey), env...)
	started := time.Now()
	s.program = servertest.Start(b, "server", cmd) // whose log is a file, as it would be: writing it is part of what a request costs
	s.pid = cmd.Process.Pid
	b.Cleanup(s.stop)
	for !ready(s.addr) {
		if time.Since(started) > 30*time.Second {
			b.Fatal("the server is not ready after 30 s")
		}
		time.Sleep(time.Millisecond)
	}
	s.ready = time.Since(started)
	return s
}

func (s *server) stop() {
	s.resume()
	_ = s.program.Stop()
}

func ready(addr string) bool {
	res, err := http.Get("http://" + addr + "/readyz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// resident reads the server's resident memory in MiB.
func (s *server) resident(b *testing.B) float64 {
	b.Helper()
	status := servertest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid)))(b)
	return lineOf(b, status, "VmRSS:") / 1024
}

// figure reads one of the server's metrics.
func (s *server) figure(b *testing.B, name string) float64 {
	b.Helper()
	c := dial(b, s.addr)
	defer c.close()
	_, metrics := c.do(b, get("/metrics", ""))
	return lineOf(b, metrics, name+" ")
}

// lineOf returns the number that follows name at the start of a line.
func lineOf(b *testing.B, text []byte, name string) float64 {
	b.Helper()
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return servertest.Must(strconv.ParseFloat(strings.Fields(string(rest))[0], 64))(b)
		}
	}
	b.Fatalf("there is no %s", name)
	return 0
}
