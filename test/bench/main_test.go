//go:build bench

package bench

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	if encoded := os.Getenv(bareVariable); encoded != "" {
		serveBare(encoded)
		return
	}
	code := m.Run()
	_ = os.RemoveAll(uncheckedDir)
	for _, line := range goals {
		fmt.Println(line)
	}
	os.Exit(code)
}

// goals are lines about what was measured in this run and has a bound, in their order.
var goals []string

func atLeast(name string, least, got float64) { judge(name, "at least", least, got, got >= least) }
func atMost(name string, most, got float64)   { judge(name, "at most", most, got, got <= most) }

func judge(name, bound string, limit, got float64, met bool) {
	verdict := "met"
	if !met {
		verdict = "MISSED"
	}
	goals = append(goals, fmt.Sprintf("goal: %-72s %s %.2f  %6.2f  %s", name, bound, limit, got, verdict))
}

// number reads a whole number from the environment.
func number(b *testing.B, variable string, otherwise int) int {
	b.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s takes a positive whole number", variable)
	}
	return n
}

// progress tells the user what takes so long.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
