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
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

const (
	// patience bounds every wait for something that is sure to happen.
	patience = 30 * time.Second

	testSecret   = "the-jwt-secret-of-these-tests-0123456789"
	testUsername = "admin@acme.example"
	testPassword = "correct horse battery staple"
	nowhere      = "postgres://u:hunter2@127.0.0.1:1/d" // no database
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
	return root, errors.Join(err, os.Chmod(root, 0o755))
})

func newFolder(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp(must(testRoot())(t), "t"))(t)
	ok(t, os.Chmod(dir, 0o755))
	return dir
}

// ok turns an error into the end of the test, and so does must.
func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		ok(t, err)
		return value
	}
}

// writeFile makes a file in a folder and returns its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	ok(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// binary is the path of the program, built as `make build` does.
var binary = sync.OnceValues(func() (string, error) {
	root, err := testRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "server")
	return path, servertest.Build(context.Background(), path, "-ldflags=-s -w")
})

// running is what is common to the program as a process and in this one.
type running struct {
	t              *testing.T
	args           []string
	stdout, stderr *servertest.Log
	ended          chan struct{}
}

// newRunning has its log shown where the test fails, after end has ended it.
func newRunning(t *testing.T, args []string, end func(running)) running {
	t.Helper()
	r := running{t, args, &servertest.Log{}, &servertest.Log{}, make(chan struct{})}
	t.Cleanup(func() {
		end(r)
		if t.Failed() {
			t.Logf("server %v:\n%s", args, r.stderr)
		}
	})
	return r
}

// eventually waits until something is so of the running program.
func (r running) eventually(what string, is func() bool) {
	r.t.Helper()
	servertest.Eventually(r.t, what, func() bool {
		select {
		case <-r.ended:
			if !is() { // nor in its last moment
				r.t.Fatalf("it ended before it was so that %s:\n%s", what, r.stderr)
			}
			return true
		default:
			return is()
		}
	})
}

// logs waits for a text in the log.
func (r running) logs(text string) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("the log has %q", text), func() bool { return strings.Contains(r.stderr.String(), text) })
}

// addr waits for the log line with the address.
func (r running) addr() (addr string) {
	r.t.Helper()
	r.eventually("it listens", func() bool {
		for line := range strings.Lines(r.stderr.String()) {
			var event struct{ Msg, Addr string }
			if json.Unmarshal([]byte(line), &event) == nil && event.Msg == "listening" {
				addr = event.Addr
			}
		}
		return addr != ""
	})
	return addr
}

// base is the address of a program that answers by HTTP, once it is ready.
func (r running) base() string {
	r.t.Helper()
	base := "http://" + r.addr()
	r.eventually("it is ready", func() bool { return call(r.t, "GET", base+"/readyz", "", "").code == 200 })
	return base
}

// process is the real program.
type process struct {
	running
	cmd *exec.Cmd
}

// spawn starts the program with this environment and nothing of ours but what it needs to find Postgres.
func spawn(t *testing.T, env map[string]string, stdin string, args ...string) *process {
	t.Helper()
	return spawnCommand(t, exec.Command(must(binary())(t), args...), env, stdin)
}

func spawnCommand(t *testing.T, cmd *exec.Cmd, env map[string]string, stdin string) *process {
	t.Helper()
	cmd.Env = append(variables(env), "PATH="+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"))
	r := newRunning(t, cmd.Args[1:], func(r running) {
		if cmd.Process != nil {
			_ = cmd.Process.Kill() // usually it has ended
			<-r.ended
		}
	})
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = strings.NewReader(stdin), r.stdout, r.stderr, patience
	ok(t, cmd.Start())
	go func() {
		_ = cmd.Wait() // the code is in ProcessState
		close(r.ended)
	}()
	return &process{r, cmd}
}

// signal sends a signal to the running program.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	ok(p.t, p.cmd.Process.Signal(s))
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

// stop ends it by a signal, after which its code has to be 0.
func (p *process) stop(s os.Signal) {
	p.t.Helper()
	p.signal(s)
	if code := p.code(); code != 0 {
		p.t.Errorf("server %q: exit code %d after %v", p.args, code, s)
	}
}

// fails fails the test unless the program ends with this code and one line, which matches the pattern and has no secret.
func (p *process) fails(code int, line string) {
	p.t.Helper()
	p.says(code, "server: "+line+"\n")
}

// says is the same for a pattern of all that the program says.
func (p *process) says(code int, pattern string) {
	p.t.Helper()
	got, said := p.code(), p.stderr.String()
	if got != code || p.stdout.String() != "" || !regexp.MustCompile("^"+pattern+"$").MatchString(said) || strings.Contains(said, "hunter2") {
		p.t.Errorf("server %q: exit code %d, stdout %q, stderr %q, want %s", p.args, got, p.stdout, said, pattern)
	}
}

// program is run in this process: the same, but with the race detector looking on.
type program struct {
	running
	err    error // valid after ended
	cancel context.CancelFunc
}

// testInvocation is one to which no signal comes.
func testInvocation(env map[string]string, args []string, stdin io.Reader, stdout, stderr io.Writer) invocation {
	return invocation{
		args: args, getenv: lookup(env), environ: func() []string { return variables(env) }, stdin: stdin, stdout: stdout, stderr: stderr,
		hangups: func() (<-chan os.Signal, func()) { return nil, func() {} },
	}
}

// launch starts run. It ends with the test.
func launch(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	return begin(t, args, func(ctx context.Context, p *program) error {
		return run(ctx, testInvocation(env, args, strings.NewReader(""), p.stdout, p.stderr))
	})
}

func begin(t *testing.T, args []string, run func(context.Context, *program) error) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{cancel: cancel}
	p.running = newRunning(t, args, func(running) {
		if err := p.end(); err != nil && !t.Failed() {
			t.Logf("server %v ended with: %v", args, err)
		}
	})
	go func() {
		p.err = run(ctx, p)
		close(p.ended)
	}()
	return p
}

// served is a launched server on a database, with further settings.
func served(t *testing.T, database secret.Value, more map[string]string) *program {
	t.Helper()
	return launch(t, environment(database, more), "serve")
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

func variables(env map[string]string) (all []string) {
	for name, value := range env {
		all = append(all, name+"="+value)
	}
	return all
}

// newPostgres is a Postgres of the test's own.
func newPostgres(t *testing.T, parameters map[string]string) *privatepg.Server {
	t.Helper()
	dir := filepath.Join(newFolder(t), "postgres")
	server := must(privatepg.Start(t.Context(), privatepg.Config{Dir: dir, Getenv: os.Getenv, Parameters: parameters}))(t)
	t.Cleanup(func() { ok(t, server.Close()) })
	return server
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

// prints fails the test unless a subcommand succeeds and prints this.
func prints(t *testing.T, env map[string]string, want string, args ...string) {
	t.Helper()
	if out, log, err := cli(t, env, "", args...); err != nil || out != want {
		t.Fatalf("server %v: %q, want %q: %v\n%s", args, out, want, err, log)
	}
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
	res, err := client.Do(r) //nolint:bodyclose // read closes it
	if err != nil {
		return answer{}, err
	}
	return read(res)
}

func read(res *http.Response) (answer, error) {
	defer func() { _ = res.Body.Close() }()
	if res.Close { // Go has taken the header away
		res.Header.Set("Connection", "close")
	}
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, strings.TrimSuffix(string(body), "\n")}, err
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
	body := must(json.Marshal(map[string]string{"username": username, "password": password}))(t)
	return call(t, "POST", base+"/auth/login", "", string(body))
}

// sql runs a query and returns the first column of its first row as text, "" where there is none.
func sql(t *testing.T, database secret.Value, query string, args ...any) string {
	t.Helper()
	conn := must(pgx.Connect(t.Context(), database.Reveal()))(t)
	defer func() { _ = conn.Close(context.Background()) }()
	rows := must(conn.Query(t.Context(), query, args...))(t)
	values, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		all, err := row.Values()
		return fmt.Sprint(all[0]), err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return strings.Join(values[:min(len(values), 1)], "")
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
