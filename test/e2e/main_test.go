//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"accesskeys/internal/servertest"
)

// binary is the server under test.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "accesskeys-e2e-")
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "server")
	if err == nil {
		err = os.Chmod(dir, 0o755) // other accounts run it too
	}
	if err == nil {
		err = servertest.Build(context.Background(), binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer report()
	return m.Run()
}

// rows are the lines of the table at the end: what was run, with which programs, and what was counted.
var (
	rowsLock sync.Mutex
	rows     []string
)

// counted adds a line to the table. A test calls it at its end, with figures that it has checked.
func counted(t testing.TB, what, with, format string, args ...any) {
	t.Helper()
	if t.Failed() {
		return
	}
	rowsLock.Lock()
	defer rowsLock.Unlock()
	rows = append(rows, what+"\t"+with+"\t"+fmt.Sprintf(format, args...))
}

// report prints the table.
func report() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat was run\twith\tcounted")
	slices.Sort(rows) // they end in any order
	fmt.Fprintln(w, strings.Join(rows, "\n"))
	_ = w.Flush()
}
