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

// newDatabase starts a Postgres with real durability and returns its address.
func newDatabase(b *testing.B) secret.Value {
	b.Helper()
	postgres, err := privatepg.Start(b.Context(), privatepg.Config{Getenv: os.Getenv})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = postgres.Close() })
	return secret.New(postgres.URL("postgres"))
}

// process is a server that runs somewhere.
type process struct {
	addr string
	pid  int
}

// cpu returns how much time of the processor's it has used.
func (p process) cpu(b *testing.B) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // after the name, which can hold anything
	fields := strings.Fields(string(rest))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		b.Fatal(err)
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		b.Fatal(err)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	return time.Duration(user+system) * tick
}

// pause stops the server until resume. Only one of several that take turns runs: what it does beside answering, collecting
// garbage say, or writing down when keys were used, costs its own turns and not the others'.
func (p process) pause() { _ = syscall.Kill(p.pid, syscall.SIGSTOP) }

// resume lets the server go on, and gives it a moment to renew a lease that has ended meanwhile.
func (p process) resume() {
	_ = syscall.Kill(p.pid, syscall.SIGCONT)
	time.Sleep(50 * time.Millisecond)
}

// untilWeEnd keeps a process that is paused from staying behind.
func untilWeEnd() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// server is one of ours: the binary, with the customer, the admin and the key of the constants above.
type server struct {
	process
	ready time.Duration // from its start to its first answer at /readyz
	cmd   *exec.Cmd
	log   *os.File
}

// startServer runs the binary until the benchmark ends or stop is called. env has further settings.
func startServer(b *testing.B, database secret.Value, env ...string) *server {
	b.Helper()
	return startBinary(b, binary, database, env...)
}

func startBinary(b *testing.B, path string, database secret.Value, env ...string) *server {
	b.Helper()
	addr, err := servertest.FreeAddr()
	if err != nil {
		b.Fatal(err)
	}
	s := &server{process: process{addr: addr}, log: logFile(b)}
	s.cmd = exec.Command(path, "serve")
	s.cmd.Env = append(os.Environ(), "DATABASE_URL="+database.Reveal()+"&pool_max_conns=32", "LISTEN_ADDR="+s.addr,
		"JWT_SECRET="+jwtSecret.Reveal(), "RATE_LIMIT_AUTH_RPS=0", "SHUTDOWN_DELAY=0", "BOOTSTRAP_CUSTOMER="+customer,
		"BOOTSTRAP_USERNAME="+username, "BOOTSTRAP_PASSWORD="+password, "BOOTSTRAP_ACCESSKEY="+accessKey)
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stderr, s.cmd.SysProcAttr = s.log, untilWeEnd()
	started := time.Now()
	if err := s.cmd.Start(); err != nil {
		b.Fatalf("%v (make bench builds the binary)", err)
	}
	s.pid = s.cmd.Process.Pid
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
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
	_ = s.log.Close()
}

// logFile is where a server's log goes, as it would: writing it is part of what a request costs.
func logFile(b *testing.B) *os.File {
	b.Helper()
	log, err := os.CreateTemp(b.TempDir(), "log")
	if err != nil {
		b.Fatal(err)
	}
	return log
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
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		b.Fatal(err)
	}
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
			n, err := strconv.ParseFloat(strings.Fields(string(rest))[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("there is no %s", name)
	return 0
}
