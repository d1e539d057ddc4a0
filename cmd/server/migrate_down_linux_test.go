package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// terminal is a pseudo-terminal: what is typed at its keyboard is what a program reads from the other end.
type terminal struct{ keyboard, stdin *os.File }

func newTerminal(t *testing.T) terminal {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	descriptor := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(descriptor, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(descriptor, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() })
	return terminal{keyboard, stdin}
}

func (at terminal) types(t *testing.T, text string) {
	t.Helper()
	if _, err := at.keyboard.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// asking is a `migrate down` at a terminal.
type asking struct {
	terminal
	stdout, stderr *servertest.Log
	ended          chan error
}

func migrateDownAtTerminal(t *testing.T, database secret.Value) *asking {
	t.Helper()
	a := &asking{newTerminal(t), &servertest.Log{}, &servertest.Log{}, make(chan error, 1)}
	env := map[string]string{"DATABASE_URL": database.Reveal(), "LOG_LEVEL": "warn"}
	go func() {
		a.ended <- run(t.Context(), testInvocation(env, []string{"migrate", "down"}, a.stdin, a.stdout, a.stderr))
	}()
	return a
}

// asks waits for so many questions.
func (a *asking) asks(t *testing.T, questions int) {
	t.Helper()
	servertest.Eventually(t, "the question is asked", func() bool { return strings.Count(a.stderr.String(), "[y/N] ") == questions })
}

// At a terminal it asks, and takes back the step for a yes only.
func TestMigrateDownAsksAtATerminal(t *testing.T) {
	t.Parallel()
	const endOfFile = "\x04"
	for typed, agrees := range map[string]bool{
		"y\n": true, "yes\n": true, "YES\n": true, " y \n": true,
		"n\n": false, "\n": false, "yes please\n": false, "j\n": false, endOfFile: false,
	} {
		t.Run(fmt.Sprintf("%q", typed), func(t *testing.T) {
			t.Parallel()
			database := holding(t, holdings["a customer"])
			a := migrateDownAtTerminal(t, database)
			a.asks(t, 1)
			if version := versionOf(t, database); version != "4" {
				t.Errorf("it has gone to version %s before the answer", version)
			}
			a.types(t, typed)
			err := <-a.ended
			version, want, out := versionOf(t, database), "4", ""
			if agrees {
				want, out = "3", "3\n"
			}
			if version != want || a.stdout.String() != out || a.stderr.String() != lossOfNewest+".\nTake it back? [y/N] " {
				t.Errorf("version %s, want %s; stdout %q; stderr %q", version, want, a.stdout, a.stderr)
			}
			refusal := "version 4 of the schema was not taken back: the answer was not yes"
			if agrees && err != nil || !agrees && (err == nil || err.Error() != refusal) {
				t.Errorf("it ended with: %v", err)
			}
		})
	}
}

// An answer is about the step that was asked about. Where somebody else takes that back meanwhile, the next is asked about too.
func TestMigrateDownTakesBackWhatWasAgreedToOnly(t *testing.T) {
	t.Parallel()
	database := holding(t, holdings["a customer"])
	a := migrateDownAtTerminal(t, database)
	a.asks(t, 1)
	env := map[string]string{"DATABASE_URL": database.Reveal()}
	if _, log, err := cli(t, env, "", "migrate", "down", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	a.types(t, "yes\n")
	a.asks(t, 2)
	a.types(t, "no\n")
	if err := <-a.ended; err == nil || err.Error() != "version 3 of the schema was not taken back: the answer was not yes" {
		t.Errorf("it ended with: %v", err)
	}
	if version := versionOf(t, database); version != "3" {
		t.Errorf("version %s is left", version)
	}
}
