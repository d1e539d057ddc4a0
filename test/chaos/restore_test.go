package chaos

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// Running servers forget what a restore took away. A dump carries the log with its positions, so that they are still there.
func TestWhatARestoreTookAwayIsForgotten(t *testing.T) {
	t.Parallel()
	programs := newBuilds(t)
	for _, test := range []struct{ name, shortcoming string }{{"all rules", ""}, {"without the epoch", "without_rule_epoch"}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, own(t), shortLease, "", slices.Repeat([]string{programs.server(t, test.shortcoming, false)}, 3)...)
			dump := filepath.Join(t.TempDir(), "dump")
			postgresTool(t, "pg_dump", "--format=custom", "--file="+dump, f.cluster.direct[0])
			c := &checker{fleet: f, slow: make(slow, 2)}
			l := victim{}
			servertest.OK(t, c.makeKey(t.Context(), &l))
			use := func(r *instance) int { return r.answered(http.MethodGet, me, l.bearer, "").status }
			for _, r := range f.instances {
				if status := use(r); status != http.StatusOK {
					t.Fatalf("instance %s answered the new key with %d", r.name, status)
				}
			}
			var waiting []*held // writes of a caller that the restore takes away
			for _, r := range f.instances {
				h := c.hold(&life{victim: &l}, r)
				if h == nil {
					t.Fatalf("instance %s takes no request", r.name)
				}
				waiting = append(waiting, h)
			}
			postgresTool(t, "pg_restore", "--clean", "--if-exists", "--single-transaction", "--dbname="+f.cluster.direct[0], dump)
			restored := time.Now()
			for _, h := range waiting {
				c.release(t.Context(), h)
			}
			if c.checkNothingHeld(); c.tally.n[written]+c.tally.n[violations] > 0 || c.tally.n[released] != len(waiting) {
				t.Errorf("of %d held writes %d were refused, %d written: %q", c.tally.n[released], c.tally.n[heldRefused], c.tally.n[written], c.tally.details)
			}
			for _, r := range f.instances {
				r.awaitServing(t.Context())
			}
			for time.Since(restored) < 4*shortLease {
				time.Sleep(shortLease / 4)
			}
			for _, r := range f.instances {
				status := use(r)
				switch {
				case test.shortcoming == "" && status != http.StatusUnauthorized:
					t.Errorf("instance %s answered %d to a key that the restored database does not have", r.name, status)
				case test.shortcoming != "" && status != http.StatusOK:
					t.Errorf("instance %s, built without the rule, answered %d: there was nothing to forget", r.name, status)
				}
			}
			if a := f.instances[0].answered(http.MethodDelete, l.target, adminKey, ""); a.status != http.StatusNotFound {
				t.Errorf("its deletion was answered with %d: %s", a.status, a.body)
			}
		})
	}
}

// postgresTool runs one of Postgres's programs, again where it ran into a deadlock with the servers.
func postgresTool(t *testing.T, name string, args ...string) {
	t.Helper()
	program := servertest.PostgresProgram(t, name)
	for attempt := 1; ; attempt++ {
		output, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		if err == nil {
			return
		}
		if attempt == 5 || !strings.Contains(string(output), "deadlock") {
			t.Fatalf("%s: %v\n%s", name, err, output)
		}
	}
}
