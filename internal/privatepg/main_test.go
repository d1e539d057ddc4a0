package privatepg

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/servertest"
)

const (
	helperEnv = "PRIVATEPG_TEST_HELPER"
	rootEnv   = "PRIVATEPG_TEST_ROOT"
	patience  = 30 * time.Second
)

// TestMain gives the tests a folder that every account can pass through (Go's own are closed to all but root), and fails
// the run if a process that knows this folder outlives it.
func TestMain(m *testing.M) {
	if settings := os.Getenv(helperEnv); settings != "" {
		if err := helperMain(settings); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	root, err := os.MkdirTemp("/tmp", "privatepg-")
	err = errors.Join(err, os.Chmod(root, 0o755), os.Setenv(rootEnv, root), os.Setenv("TMPDIR", root))
	code := 1
	if err == nil {
		code = m.Run()
	}
	left := make([]running, 1)
	for deadline := time.Now().Add(patience); len(left) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		left = processesOf(root)
	}
	if err = errors.Join(err, os.RemoveAll(root)); err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left running:", left, err)
		code = 1
	}
	os.Exit(code)
}

// newFolder returns an empty folder that every account can pass through.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(rootEnv), "t") //nolint:usetesting // t.TempDir is closed to other accounts
	ok(t, err, os.Chmod(dir, 0o777))
	return dir
}

// settings are a Config that can be sent to a helper process.
type settings struct {
	Dir        string
	Temp       string // TMPDIR
	Path       string // PATH; empty means the machine's
	Ephemeral  bool
	Parameters map[string]string
	Places     []string // nil means the usual ones
}

func (s settings) config(log io.Writer) Config {
	return Config{
		Dir: s.Dir, Ephemeral: s.Ephemeral, Parameters: s.Parameters, places: s.Places,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
		Getenv: func(name string) string {
			if name == "TMPDIR" {
				return s.Temp
			}
			if name == "PATH" && s.Path != "" {
				return s.Path
			}
			return os.Getenv(name)
		},
	}
}

// start starts a server and closes it with the test.
func start(t *testing.T, s settings) *Server {
	t.Helper()
	server, _ := startLogged(t, s)
	return server
}

func startLogged(t *testing.T, s settings) (*Server, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // taking over alone may take 30 s
	defer cancel()
	server := must(Start(ctx, s.config(log)))(t)
	t.Cleanup(func() { ok(t, server.Close()) })
	return server, log
}

// fails returns the error of a start that must fail.
func fails(t *testing.T, s settings) error {
	t.Helper()
	server, err := Start(t.Context(), s.config(io.Discard))
	if err == nil {
		ok(t, server.Close())
		t.Fatal("it started")
	}
	return err
}

// refused returns the error of a start that must find another owner.
func refused(t *testing.T, s settings) *InUseError {
	t.Helper()
	busy, is := errors.AsType[*InUseError](fails(t, s))
	if !is {
		t.Fatal("the error names no owner")
	}
	return busy
}

// initialisedFolder is a folder with a cluster that was shut down. Copies spare most tests the second that initdb takes.
func initialisedFolder(t *testing.T) string {
	t.Helper()
	return copied(t, must(templateFolder())(t), filepath.Join(newFolder(t), "pg"))
}

var templateFolder = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.Getenv(rootEnv), "template")
	server, err := Start(context.Background(), settings{Dir: dir, Ephemeral: true}.config(io.Discard))
	if err != nil {
		return "", err
	}
	return dir, server.Close()
})

func copied(t *testing.T, from, to string) string {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, output)
	}
	return to
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	return must(tryQuery(t.Context(), url, sql))(t)
}

// tryQuery runs a statement on a connection of its own and returns the first column of the last row.
func tryQuery(ctx context.Context, url, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 || len(results[0].Rows) == 0 || len(results[0].Rows[0]) == 0 {
		return "", err
	}
	return string(results[0].Rows[0][0]), nil
}

// busyClient keeps a session busy, and returns the number of its process and how it ends.
func busyClient(t *testing.T, url, sql string) (pid int, ended <-chan error) {
	t.Helper()
	end := make(chan error, 1)
	go func() {
		_, err := tryQuery(context.Background(), url, sql)
		end <- err
	}()
	servertest.Eventually(t, "the client's query ran", func() bool {
		pid = parsePID([]byte(query(t, url, "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()")))
		return pid != 0
	})
	return pid, end
}

// shows fails the test unless a query has this result.
func shows(t *testing.T, url, sql, want string) {
	t.Helper()
	if got := query(t, url, sql); got != want {
		t.Errorf("%s gives %q, want %q", sql, got, want)
	}
}

func hasSettings(t *testing.T, url string, settings map[string]string) {
	t.Helper()
	for setting, want := range settings {
		shows(t, url, "SELECT current_setting('"+setting+"')", want)
	}
}

func logOf(t *testing.T, dir string) string {
	t.Helper()
	return string(must(os.ReadFile(filepath.Join(dir, "postgres.log")))(t))
}

// running is a process. Those that have ended and only wait for init to notice do not count.
type running struct {
	pid, pgid int
	line      string // its number and its command line
	cwd       string
}

func list() []running {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	var all []running
	for _, path := range paths {
		stat, _ := os.ReadFile(filepath.Join(path, "stat"))
		arguments, _ := os.ReadFile(filepath.Join(path, "cmdline"))
		var r running
		var state string
		var parent int
		// Its name, in parentheses, may hold anything.
		if _, err := fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent, &r.pgid); err != nil || state == "Z" {
			continue // gone
		}
		r.pid, _ = strconv.Atoi(filepath.Base(path))
		r.cwd, _ = os.Readlink(filepath.Join(path, "cwd"))
		r.line = fmt.Sprint(r.pid, " ", strings.ReplaceAll(string(arguments), "\x00", " "))
		all = append(all, r)
	}
	return all
}

// processesOf lists processes with a folder in their arguments or as their working folder.
func processesOf(folder string) []running {
	return slices.DeleteFunc(list(), func(r running) bool {
		return !strings.Contains(r.line, folder) && !strings.HasPrefix(r.cwd+"/", folder+"/")
	})
}

// inGroup lists the processes of a process group.
func inGroup(pgid int) []running {
	return slices.DeleteFunc(list(), func(r running) bool { return r.pgid != pgid })
}

func alive(pid int) bool {
	return slices.ContainsFunc(list(), func(r running) bool { return r.pid == pid })
}

// postmaster returns the number of the server's first process and of its process group, whose leader is the supervisor.
func postmaster(t *testing.T, dir string) (pid, pgid int) {
	t.Helper()
	pid = parsePID(must(os.ReadFile(filepath.Join(dir, "data", "postmaster.pid")))(t))
	return pid, must(syscall.Getpgid(pid))(t)
}

// nothingLeft waits until the server, its supervisor and, where it was temporary, its folder are gone.
func nothingLeft(t *testing.T, dir string, pgid int, temporary bool) {
	t.Helper()
	servertest.Eventually(t, "nothing was left", func() bool {
		return len(processesOf(dir)) == 0 && len(inGroup(pgid)) == 0 && (!temporary || !exists(dir))
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// found lists what a pattern matches.
func found(parts ...string) []string {
	matches, _ := filepath.Glob(filepath.Join(parts...))
	return matches
}

func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		ok(t, syscall.Kill(pid, syscall.SIGKILL))
	}
}

// ok turns an error into the end of the test, and so does must.
func ok(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
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

// helper is a process of its own that owns a server.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer // to be read after its end
	URL    string
	Dir    string
}

// helperProgram is this program where every account can run it: Go keeps it in a folder that is closed to others.
func helperProgram(t *testing.T) string {
	t.Helper()
	return copied(t, must(os.Executable())(t), filepath.Join(newFolder(t), "helper"))
}

// startHelper starts the process in a process group of its own; by may name a program that is to run it. The helper has
// no server before ready.
func startHelper(t *testing.T, s settings, by ...string) *helper {
	t.Helper()
	arguments := []string{must(os.Executable())(t)}
	if len(by) > 0 {
		arguments = append(by, helperProgram(t))
	}
	// No context: it ends when its standard input does, see below.
	h := &helper{cmd: exec.CommandContext(context.Background(), arguments[0], arguments[1:]...)}
	// Or the race detector makes every process last a second longer.
	h.cmd.Env = append(os.Environ(), helperEnv+"="+string(must(json.Marshal(s))(t)), "GORACE=atexit_sleep_ms=0")
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h.cmd.Stderr = &h.stderr
	h.stdin = must(h.cmd.StdinPipe())(t)
	h.stdout = bufio.NewReader(must(h.cmd.StdoutPipe())(t))
	ok(t, h.cmd.Start())
	t.Cleanup(func() {
		h.stdin.Close() // makes it close its server and end
		_ = h.cmd.Wait()
		if t.Failed() {
			t.Logf("the helper's log:\n%s", &h.stderr)
		}
	})
	return h
}

// ready waits until the helper's server accepts connections.
func (h *helper) ready(t *testing.T) *helper {
	t.Helper()
	ok(t, json.Unmarshal([]byte(h.answer(t)), h))
	return h
}

// order makes the helper do something.
func (h *helper) order(t *testing.T, order string) {
	t.Helper()
	must(io.WriteString(h.stdin, order+"\n"))(t)
}

func (h *helper) answer(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(must(h.stdout.ReadString('\n'))(t))
}

// kill is kill -9.
func (h *helper) kill(t *testing.T) {
	t.Helper()
	kill(t, h.cmd.Process.Pid)
	_ = h.cmd.Wait()
}

// helperMain is the helper process: it starts a server, says where, and obeys one order per line. After Ctrl-C it reports
// whether the database still answers.
func helperMain(encoded string) error {
	var s settings
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt)
	server, err := Start(ctx, s.config(os.Stderr))
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"URL": server.URL("postgres"), "Dir": server.Dir()}); err != nil {
		return err
	}
	go func() {
		<-caught
		_, err := tryQuery(ctx, server.URL("postgres"), "SELECT 1")
		fmt.Println("drained:", err)
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "panic":
			panic("as ordered")
		case "stop":
			fmt.Println("stopped:", server.Stop(ctx))
		case "return":
			return nil // without Close
		}
	}
	return server.Close()
}
