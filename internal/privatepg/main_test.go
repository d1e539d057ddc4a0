package privatepg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"

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
	Dir        string
	Temp       string // TMPDIR
	Path       string // PATH; empty means the machine's
	Ephemeral  bool
	Parameters map[string]string
	Folders    []string
	Umask      int
	Untraced   int  // go without the right to look into others' processes, and tell whether this one can be
	Catch      bool // catch SIGINT, then report whether the database still answers
}

func (s settings) config(logger *slog.Logger) Config {
	return Config{
		Dir: s.Dir, Ephemeral: s.Ephemeral, Parameters: s.Parameters, Folders: s.Folders,
		Logger: logger,
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

// start starts a server and closes it with the test.
func start(t *testing.T, s settings) *Server {
	t.Helper()
	server, _ := startLogged(t, s)
	return server
}

func startLogged(t *testing.T, s settings) (*Server, *servertest.Log) {
	t.Helper()
	log := &servertest.Log{}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // taking over alone may take 30 s
	defer cancel()
	server, err := Start(ctx, s.config(log.Logger()))
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
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
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

// running is a process. Those that have ended and only wait for init to notice do not count.
type running struct {
	pid, pgid int
	line      string // its number and its command line
}

func list() ([]running, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
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
		r.pid, err = strconv.Atoi(filepath.Base(path))
		r.line = fmt.Sprint(r.pid, " ", strings.ReplaceAll(string(arguments), "\x00", " "))
		all = append(all, r)
	}
	return all, err
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
