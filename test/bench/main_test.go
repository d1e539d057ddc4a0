//go:build bench

package bench

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		code := m.Run()
		_ = os.RemoveAll(uncheckedDir)
		printGoals()
		os.Exit(code)
	default:
		serveAs(role)
	}
}

// goal is something measured that has a bound.
type goal struct {
	name  string
	bound string
	got   float64
	met   bool
}

// goals are those measured in this run, in their order.
var goals []goal

func atLeast(name string, least, got float64) {
	goals = append(goals, goal{name, fmt.Sprintf("at least %.2f", least), got, got >= least})
}

func atMost(name string, most, got float64) {
	goals = append(goals, goal{name, fmt.Sprintf("at most %.2f", most), got, got <= most})
}

// printGoals writes a line for each goal.
func printGoals() {
	for _, g := range goals {
		verdict := "met"
		if !g.met {
			verdict = "MISSED"
		}
		fmt.Printf("goal: %-72s %s  %6.2f  %s\n", g.name, g.bound, g.got, verdict)
	}
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
