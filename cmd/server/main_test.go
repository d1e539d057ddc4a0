package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

const (
	// patience bounds every wait for something that is sure to happen.
	patience = 30 * time.Second

	testSecret   = "the-jwt-secret-of-these-tests-0123456789"
	testUsername = "admin@acme.example"
	testPassword = "correct horse battery staple"
	testKey      = "vb_TestTestTestTestTestTestTestTest"
)

// TestMain fails the run if a process that knows the tests' folder outlives it.
func TestMain(m *testing.M) {
	code := m.Run()
	root, err := testRoot()
	left := []string{"unknown"}
	for deadline := time.Now().Add(patience); err == nil && len(left) > 0 && time.Now().Before(deadline); {
		left, err = processesOf(root)
		time.Sleep(10 * time.Millisecond)
	}
	if err = errors.Join(err, os.RemoveAll(root)); err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left running:", left, err)
		code = 1
	}
	os.Exit(code)
}

// testRoot is a folder that every account can pass through: Go's own are closed to the one that runs Postgres for root.
var testRoot = sync.OnceValues(func() (string, error) {
	root, err := os.MkdirTemp("/tmp", "server-test-")
	if err != nil {
		return "", err
	}
	return root, os.Chmod(root, 0o755)
})

func newFolder(t *testing.T) string {
	t.Helper()
	root, err := testRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "t")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// binary is the path of the program, built as `make build` does.
var binary = sync.OnceValues(func() (string, error) {
	root, err := testRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "server")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program: %w\n%s", err, output)
	}
	return path, nil
})

// process is the real program.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *servertest.Log
	ended          chan struct{}
}

// spawn starts the program with this environment and nothing of ours but what it needs to find Postgres.
func spawn(t *testing.T, env map[string]string, stdin string, args ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return spawnCommand(t, exec.Command(path, args...), env, stdin)
}

func spawnCommand(t *testing.T, cmd *exec.Cmd, env map[string]string, stdin string) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, stdout: &servertest.Log{}, stderr: &servertest.Log{}, ended: make(chan struct{})}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(stdin), p.stdout, p.stderr
	p.cmd.WaitDelay = patience
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the code is in ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // usually it has ended
		<-p.ended
		if t.Failed() {
			t.Logf("server %v:\n%s", cmd.Args[1:], p.stderr)
		}
	})
	return p
}

// signal sends a signal to the running program.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// code waits for the end and returns the exit code, -1 where a signal was the end.
func (p *process) code() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("the program does not end; its log:\n%s", p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// base is the address of a program that logs JSON, once it listens.
func (p *process) base() string {
	p.t.Helper()
	return listening(p.t, p.stderr, p.ended)
}

// program is run in this process: the same, but with the race detector looking on.
type program struct {
	t              *testing.T
	stdout, stderr *servertest.Log
	ended          chan struct{}
	err            error // valid after ended
	cancel         context.CancelFunc
}

// testInvocation is one to which no signal comes.
func testInvocation(env map[string]string, args []string, stdin io.Reader, stdout, stderr io.Writer) invocation {
	return invocation{
		args: args, getenv: lookup(env), stdin: stdin, stdout: stdout, stderr: stderr,
		environ: func() (all []string) {
			for name, value := range env {
				all = append(all, name+"="+value)
			}
			return all
		},
		hangups: func() (<-chan os.Signal, func()) { return nil, func() {} },
	}
}

// launch starts run. It ends with the test.
func launch(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{t: t, stdout: &servertest.Log{}, stderr: &servertest.Log{}, ended: make(chan struct{}), cancel: cancel}
	go func() {
		p.err = run(ctx, testInvocation(env, args, strings.NewReader(""), p.stdout, p.stderr))
		close(p.ended)
	}()
	t.Cleanup(func() {
		if err := p.end(); err != nil && !t.Failed() {
			t.Logf("server %v ended with: %v", args, err)
		}
		if t.Failed() {
			t.Logf("server %v:\n%s", args, p.stderr)
		}
	})
	return p
}

// base is the program's address, once it is ready.
func (p *program) base() string {
	p.t.Helper()
	base := listening(p.t, p.stderr, p.ended)
	servertest.Eventually(p.t, "the server is ready", func() bool { return call(p.t, "GET", base+"/readyz", "", "").code == 200 })
	return base
}

// end does what SIGTERM would and returns run's error.
func (p *program) end() error {
	p.cancel()
	return p.wait()
}

// wait waits until run returns by itself.
func (p *program) wait() error {
	select {
	case <-p.ended:
		return p.err
	case <-time.After(patience):
		return errors.New("run does not return")
	}
}

// listening waits for the log line with the address.
func listening(t *testing.T, log *servertest.Log, ended <-chan struct{}) string {
	t.Helper()
	base := ""
	servertest.Eventually(t, "the server listens", func() bool {
		for line := range strings.Lines(log.String()) {
			var event struct{ Msg, Addr string }
			if json.Unmarshal([]byte(line), &event) == nil && event.Msg == "listening" {
				base = "http://" + event.Addr
				return true
			}
		}
		select {
		case <-ended:
			t.Fatalf("it ended instead of listening:\n%s", log)
		default:
		}
		return false
	})
	return base
}

func lookup(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

// environment is what serve needs, with a customer, its admin and its key; more overrides it.
func environment(database secret.Value, more map[string]string) map[string]string {
	env := map[string]string{
		"DATABASE_URL": database.Reveal(), "JWT_SECRET": testSecret, "LISTEN_ADDR": "127.0.0.1:0", "LOG_LEVEL": "debug",
		"SHUTDOWN_DELAY":     "0", // of which the tests that are about it have one
		"BOOTSTRAP_CUSTOMER": "acme", "BOOTSTRAP_USERNAME": testUsername, "BOOTSTRAP_PASSWORD": testPassword,
		"BOOTSTRAP_ACCESSKEY": testKey,
	}
	maps.Copy(env, more)
	return env
}

// cli runs a subcommand to its end.
func cli(t *testing.T, env map[string]string, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	err = run(t.Context(), testInvocation(env, args, strings.NewReader(stdin), &out, &log))
	return out.String(), log.String(), err
}

// printed runs a subcommand that prints one object and returns it, as text and decoded.
func printed(t *testing.T, env map[string]string, stdin string, args ...string) (string, map[string]any) {
	t.Helper()
	out, log, err := cli(t, env, stdin, args...)
	if err != nil {
		t.Fatalf("server %v: %v\n%s", args, err, log)
	}
	text, rest, _ := strings.Cut(out, "\n")
	if rest != "" {
		t.Fatalf("server %v printed more than a line: %s", args, out)
	}
	return text, object(t, text)
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return fields
}

// answer is what the service said.
type answer struct {
	code   int
	header http.Header
	body   string
}

// reason is that of an error, "" for anything else.
func (a answer) reason() string {
	var body struct{ Error struct{ Reason string } }
	_ = json.Unmarshal([]byte(a.body), &body) // what is no JSON has no reason
	return body.Error.Reason
}

// ask sends a request; an empty bearer is none.
func ask(ctx context.Context, client *http.Client, method, url, bearer, body string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, strings.TrimSuffix(string(raw), "\n")}, err
}

func call(t *testing.T, method, url, bearer, body string) answer {
	t.Helper()
	got, err := ask(t.Context(), http.DefaultClient, method, url, bearer, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return got
}

// wants fails the test unless the answer has this status, and returns its body.
func (a answer) wants(t *testing.T, code int) map[string]any {
	t.Helper()
	if a.code != code {
		t.Fatalf("status %d, want %d: %s", a.code, code, a.body)
	}
	return object(t, a.body)
}

// refuses fails the test unless the answer is this error.
func (a answer) refuses(t *testing.T, code int, reason string) {
	t.Helper()
	if a.code != code || a.reason() != reason {
		t.Fatalf("status %d, want %d %s: %s", a.code, code, reason, a.body)
	}
}

// login asks for a JWT.
func login(t *testing.T, base, username, password string) answer {
	t.Helper()
	body, err := json.Marshal(map[string]string{"username": username, "password": password})
	if err != nil {
		t.Fatal(err)
	}
	return call(t, "POST", base+"/auth/login", "", string(body))
}

// sql runs a query and returns the first column of its first row as text, "" where there is none.
func sql(t *testing.T, database secret.Value, query string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		all, err := row.Values()
		return fmt.Sprint(all[0]), err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// processesOf lists the processes with a folder in their arguments or as their working folder, one line each.
func processesOf(folder string) ([]string, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, proc := range all {
		arguments, err := os.ReadFile(proc + "/cmdline")
		if err != nil || len(arguments) == 0 {
			continue // gone, or only waiting for its parent to notice
		}
		line := strings.ReplaceAll(string(arguments), "\x00", " ")
		cwd, _ := os.Readlink(proc + "/cwd") // "" where it is gone by now
		if strings.Contains(line, folder) || strings.HasPrefix(cwd, folder+"/") {
			found = append(found, filepath.Base(proc)+" "+line)
		}
	}
	return found, err
}
