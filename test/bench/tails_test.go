//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"accesskeys/internal/servertest"
)

// BenchmarkTails shows wrk's own reading of the latencies under full load, of ours, of the router without the check and
// of the bare handler in turns. scripts/tails runs it, and BENCH_WRK is its script for wrk.
func BenchmarkTails(b *testing.B) {
	script := os.Getenv("BENCH_WRK")
	if script == "" {
		b.Skip("scripts/tails runs it")
	}
	const rounds, seconds = 3, 10
	w := newFixture(b)
	type side struct {
		name string
		process
	}
	sides := []side{
		{"ours", w.ours.process},
		{"router without the check", startUnchecked(b, w.database, keyToken(0))},
		{"bare handler", startBare(b, w.ours.process, w.keys[0])},
	}
	// They are all of one length, so that the script finds each without an index.
	drawn := filepath.Join(b.TempDir(), "requests")
	servertest.OK(b, os.WriteFile(drawn, bytes.Join(w.keys, nil), 0o600))
	for _, s := range sides {
		s.pause()
	}
	for b.Loop() {
		for round := range rounds {
			oneAfterAnother(round, sides, func(s side) {
				fmt.Printf("\n== round %d: %s\n", round+1, s.name)
				cmd := exec.Command("wrk", "--latency", "-t1", "-c16", "-d"+strconv.Itoa(seconds)+"s", "-s", script, "http://"+s.addr)
				cmd.Env = append(os.Environ(), "REQUESTS="+drawn, "REQUEST_LENGTH="+strconv.Itoa(len(w.keys[0])))
				cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
				servertest.OK(b, cmd.Run())
			})
		}
	}
}
