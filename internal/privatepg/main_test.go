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
		os.Exit(helperMain(settings))
	}
	root, err := os.MkdirTemp("/tmp", "privatepg-")
	if err == nil {
		err = errors.Join(os.Chmod(root, 0o755), os.Setenv(rootEnv, root), os.Setenv("TMPDIR", root))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	left := make([]running, 1)
	for deadline := time.Now().Add(patience); len(left) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		left, err = processesNaming(root)
	}
	if err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left running:", left, err)
		code = 1
	}
	if err := os.RemoveAll(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// newFolder returns an empty folder that every account can pass through.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(rootEnv), "t") //nolint:usetesting // t.TempDir is closed to other accounts
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// settings are a Config that can be sent to a helper process.
type settings struct {
	Dir         string
	Temp        string // TMPDIR
	Path        string // PATH; empty means the machine's
	Ephemeral   bool
	Parameters  map[string]string
	Folders     []string
	CacheDir    string
	DownloadURL string
	Catch       bool // catch SIGINT, then report whether the database still answers
}

func (s settings) config(logger *slog.Logger) Config {
	return Config{
		Dir: s.Dir, Ephemeral: s.Ephemeral, Parameters: s.Parameters, Folders: s.Folders,
		CacheDir: s.CacheDir, DownloadURL: s.DownloadURL, Logger: logger,
		Getenv: func(name string) string {
			switch {
			case name == "TMPDIR":
				return s.Temp
			case name == "PATH" && s.Path != "":
				return s.Path
			}
			return os.Getenv(name)
		},
	}
}

// logBuffer collects what a Server tells its logger.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// start starts a server and closes it with the test.
func start(t *testing.T, s settings) *Server {
	t.Helper()
	server, _ := startLogged(t, s)
	return server
}

func startLogged(t *testing.T, s settings) (*Server, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	begin := time.Now()
	server, err := Start(t.Context(), s.config(log.logger()))
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Logf("started in %v", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return server, log
}

// initialisedFolder is a folder with a cluster that was shut down. Copies spare most tests the second that initdb takes.
func initialisedFolder(t *testing.T) string {
	t.Helper()
	template, err := templateFolder()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(newFolder(t), "pg")
	if output, err := exec.CommandContext(t.Context(), "cp", "-a", template, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, output)
	}
	return dir
}

var templateFolder = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.Getenv(rootEnv), "template")
	server, err := Start(context.Background(), settings{Dir: dir, Ephemeral: true}.config(nil))
	if err != nil {
		return "", err
	}
	return dir, server.Close()
})

func query(t *testing.T, url, sql string) string {
	t.Helper()
	result, err := tryQuery(t.Context(), url, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return result
}

// tryQuery runs a statement on a connection of its own and returns the first column of the first row.
func tryQuery(ctx context.Context, url, sql string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, pgx.QueryExecModeSimpleProtocol) // results as text
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var result string
	for rows.Next() {
		values := rows.RawValues()
		if len(values) > 0 && result == "" {
			result = string(values[0])
		}
	}
	return result, rows.Err()
}

// eventually polls a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// running is a line of ps. Processes that have ended and only wait for init to notice do not count.
type running struct {
	pid, pgid int
	line      string
}

func list() ([]running, error) {
	output, err := exec.CommandContext(context.Background(), "ps", "-axww", "-o", "pid=,pgid=,stat=,args=").Output()
	if err != nil {
		return nil, err
	}
	var all []running
	for line := range strings.Lines(string(output)) {
		var r running
		var state string
		if _, err := fmt.Sscan(line, &r.pid, &r.pgid, &state); err == nil && !strings.HasPrefix(state, "Z") {
			r.line = strings.TrimSpace(line)
			all = append(all, r)
		}
	}
	return all, nil
}

// processesNaming lists processes with a folder in their arguments or as their working folder.
func processesNaming(folder string) ([]running, error) {
	all, err := list()
	return slices.DeleteFunc(all, func(r running) bool {
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", r.pid))
		return !strings.Contains(r.line, folder) && !strings.HasPrefix(cwd+"/", folder+"/")
	}), err
}

// group lists the processes of a process group.
func group(t *testing.T, pgid int) []int {
	t.Helper()
	var pids []int
	for _, r := range must(list())(t) {
		if r.pgid == pgid {
			pids = append(pids, r.pid)
		}
	}
	return pids
}

// postmaster returns the number of the server's first process and of its process group, whose leader is the supervisor.
func postmaster(t *testing.T, dir string) (pid, pgid int) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "data", postmasterFile))
	if err != nil {
		t.Fatal(err)
	}
	pid = parsePID(content)
	if pgid, err = syscall.Getpgid(pid); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	return pid, pgid
}

func alive(t *testing.T, pid int) bool {
	t.Helper()
	return slices.ContainsFunc(must(list())(t), func(r running) bool { return r.pid == pid })
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %d: %v", pid, err)
		}
	}
}

// helper is a process of its own that owns a server.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr *logBuffer
	URL    string
	Dir    string
}

// startHelper starts the process; attr may be nil. The helper has no server before ready.
func startHelper(t *testing.T, s settings, attr *syscall.SysProcAttr) *helper {
	t.Helper()
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if attr != nil && attr.Credential != nil {
		// Go keeps the test binary in a folder that is closed to others.
		copied := filepath.Join(newFolder(t), "helper")
		if output, err := exec.CommandContext(t.Context(), "cp", binary, copied).CombinedOutput(); err != nil {
			t.Fatalf("copy: %v: %s", err, output)
		}
		binary = copied
	}
	// No context: it ends when its standard input does, see below.
	h := &helper{cmd: exec.CommandContext(context.Background(), binary), stderr: &logBuffer{}}
	// Or the race detector makes every process last a second longer.
	h.cmd.Env = append(os.Environ(), helperEnv+"="+string(encoded), "GORACE=atexit_sleep_ms=0")
	h.cmd.SysProcAttr = attr
	h.cmd.Stderr = h.stderr
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.stdout = bufio.NewReader(stdout)
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.stdin.Close() // makes it close its server and end
		_ = h.cmd.Wait()
		if t.Failed() {
			t.Logf("the helper's log:\n%s", h.stderr)
		}
	})
	return h
}

// ready waits until the helper's server accepts connections.
func (h *helper) ready(t *testing.T) *helper {
	t.Helper()
	line, err := h.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("the helper did not start: %v\n%s", err, h.stderr)
	}
	if err := json.Unmarshal([]byte(line), h); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return h
}

// order makes the helper do something and returns what it says.
func (h *helper) order(t *testing.T, order string) string {
	t.Helper()
	if err := h.write(order); err != nil {
		t.Fatal(err)
	}
	return h.answer(t)
}

func (h *helper) write(order string) error {
	_, err := io.WriteString(h.stdin, order+"\n")
	return err
}

func (h *helper) answer(t *testing.T) string {
	t.Helper()
	line, err := h.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("no answer: %v\n%s", err, h.stderr)
	}
	return strings.TrimSpace(line)
}

// kill is kill -9.
func (h *helper) kill(t *testing.T) {
	t.Helper()
	kill(t, h.cmd.Process.Pid)
	_ = h.cmd.Wait()
}

// helperMain is the helper process: it starts a server, says where, and obeys one order per line.
func helperMain(encoded string) int {
	var s settings
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	caught := make(chan os.Signal, 1)
	if s.Catch {
		signal.Notify(caught, os.Interrupt)
	}
	server, err := Start(ctx, s.config(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	started, err := json.Marshal(map[string]string{"URL": server.URL("postgres"), "Dir": server.Dir()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(string(started))

	go func() {
		<-caught
		_, err := tryQuery(ctx, server.URL("postgres"), "SELECT 1")
		fmt.Println("drained:", err)
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch order := lines.Text(); order {
		case "exit":
			os.Exit(3)
		case "panic":
			go func() { panic("as ordered") }()
			select {}
		case "stop":
			fmt.Println(server.Stop(ctx))
		case "forget":
			return 4 // without Close
		default:
			fmt.Println("unknown order", strconv.Quote(order))
		}
	}
	if err := server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// must turns an error into the end of the test.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
