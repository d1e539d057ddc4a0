package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"accesskeys/internal/secret"
)

// asking is a `migrate down` at a pseudo-terminal: what is typed at the keyboard is what it reads.
type asking struct {
	*program
	keyboard *os.File
}

func migrateDownAtTerminal(t *testing.T, env map[string]string) asking {
	t.Helper()
	open := func(path string) *os.File {
		file := must(os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0))(t)
		t.Cleanup(func() { _ = file.Close() })
		return file
	}
	keyboard := open("/dev/ptmx")
	ok(t, unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0))
	stdin := open(fmt.Sprintf("/dev/pts/%d", must(unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN))(t)))
	quiet, args := map[string]string{"DATABASE_URL": env["DATABASE_URL"], "LOG_LEVEL": "warn"}, []string{"migrate", "down"}
	return asking{begin(t, args, func(ctx context.Context, p *program) error {
		return run(ctx, testInvocation(quiet, args, stdin, p.stdout, p.stderr))
	}), keyboard}
}

// asks waits for so many questions.
func (a asking) asks(questions int) {
	a.t.Helper()
	a.eventually("the question is asked", func() bool { return strings.Count(a.stderr.String(), "[y/N] ") == questions })
}

func (a asking) types(text string) {
	a.t.Helper()
	must(a.keyboard.WriteString(text))(a.t)
}

// ends fails the test unless it ends with this error, "" for none, and leaves this version.
func (a asking) ends(refusal, version string, database secret.Value) {
	a.t.Helper()
	if err := a.wait(); err != nil && err.Error() != refusal || (err == nil) != (refusal == "") {
		a.t.Errorf("it ended with: %v, want %s", err, refusal)
	}
	if left := versionOf(a.t, database); left != version {
		a.t.Errorf("version %s is left, want %s", left, version)
	}
}

const refusedFor = "version %d of the schema was not taken back: the answer was not yes"

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
			database, env := holding(t, holdings["a customer"])
			a := migrateDownAtTerminal(t, env)
			a.asks(1)
			if version := versionOf(t, database); version != "4" {
				t.Errorf("it has gone to version %s before the answer", version)
			}
			a.types(typed)
			out, version, refusal := "", "4", fmt.Sprintf(refusedFor, 4)
			if agrees {
				out, version, refusal = "3\n", "3", ""
			}
			a.ends(refusal, version, database)
			if a.stdout.String() != out || a.stderr.String() != loss[4]+".\nTake it back? [y/N] " {
				t.Errorf("stdout %q; stderr %q", a.stdout, a.stderr)
			}
		})
	}
}

// An answer is about the step that was asked about. Where somebody else takes that back meanwhile, the next is asked about too.
func TestMigrateDownTakesBackWhatWasAgreedToOnly(t *testing.T) {
	t.Parallel()
	database, env := holding(t, holdings["a customer"])
	a := migrateDownAtTerminal(t, env)
	a.asks(1)
	prints(t, env, "3\n", "migrate", "down", "--yes")
	a.types("yes\n")
	a.asks(2)
	a.types("no\n")
	a.ends(fmt.Sprintf(refusedFor, 3), "3", database)
}
