package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// skew is how far ahead the wall clock of a skewed build is. Its monotonic clock is as it was.
const skew = time.Hour

// skewedClock returns what go build's -overlay has to replace for a time.Now that is ahead; the copy is in dir.
func skewedClock(ctx context.Context, dir string) (map[string]string, error) {
	goRoot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	original := filepath.Join(strings.TrimSpace(string(goRoot)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return nil, err
	}
	const reading = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), reading) != 1 {
		return nil, errors.New("time.Now of this Go is not written as expected: the wall clock can't be put ahead")
	}
	ahead := strings.Replace(string(source), reading, reading+"\tsec += 3600\n", 1)
	replacement := filepath.Join(dir, "time.go")
	return map[string]string{original: replacement}, os.WriteFile(replacement, []byte(ahead), 0o600)
}

// checkSkew shows by the time of its first log line that the instance's clock is ahead, and that the others' are not.
func checkSkew(t testing.TB, r *instance, want time.Duration) {
	t.Helper()
	var line struct{ Time time.Time }
	servertest.Eventually(t, "the instance has logged something", func() bool {
		content, err := os.ReadFile(r.logPath)
		return err == nil && json.NewDecoder(bytes.NewReader(content)).Decode(&line) == nil
	})
	if off := time.Until(line.Time) - want; off > time.Minute || off < -5*time.Minute {
		t.Fatalf("instance %s logged %s, which is %s from now, want %s", r.name, line.Time, time.Until(line.Time).Round(time.Second), want)
	}
	r.fleet.note("instance %s logs the time as %s", r.name, line.Time)
}
