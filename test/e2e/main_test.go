//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// binary is the server under test.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "accesskeys-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "server")
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	fmt.Print(report())
	return code
}

// row is one line of the table at the end: what was run, with which programs, and what was counted.
type row struct{ what, with, counted string }

var (
	rowsLock sync.Mutex
	rows     []row
)

// counted adds a line to the table. A test calls it at its end, with figures that it has checked.
func counted(t testing.TB, what, with, format string, args ...any) {
	t.Helper()
	if t.Failed() {
		return
	}
	rowsLock.Lock()
	defer rowsLock.Unlock()
	rows = append(rows, row{what, with, fmt.Sprintf(format, args...)})
}

func report() string {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat was run\twith\tcounted")
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.what, b.what) }) // they end in any order
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.what, r.with, r.counted)
	}
	_ = w.Flush()
	return text.String()
}
