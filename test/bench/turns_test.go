//go:build bench

package bench

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// turnTime is how long a server answers before the next has its turn: long enough for its caches to be warm again, short
// enough for whatever else the machine is doing to hit all of them.
const turnTime = 250 * time.Millisecond

// side is one of the servers that take turns.
type side struct {
	name string
	process
	conns    []*conn
	requests int
	took     time.Duration
}

// newSide connects to a server for the time of the benchmark.
func newSide(b *testing.B, name string, p process, conns int) *side {
	b.Helper()
	s := &side{name: name, process: p}
	for range conns {
		c := dial(b, p.addr)
		b.Cleanup(c.close)
		s.conns = append(s.conns, c)
	}
	return s
}

// takeTurns sends each side requests drawn at random, as fast as it answers, for a turn after the other until the
// benchmark's time is over, and reports what a request costs on each: in µs of the time that passed, which is shared with
// the client, and in µs of the processor's time that the server used, which a noisy neighbour hardly changes.
func takeTurns(b *testing.B, requests requests, sides ...*side) {
	b.Helper()
	cpu := make([]time.Duration, len(sides))
	for i, s := range sides {
		s.turn(b, requests) // warms it up
		s.requests, s.took = 0, 0
		cpu[i] = s.cpu(b)
		s.pause()
	}
	for round := 0; b.Loop(); round++ {
		oneAfterAnother(round, sides, func(s *side) { s.turn(b, requests) })
	}
	b.ReportMetric(0, "ns/op") // an iteration is a turn of each and says nothing
	for i, s := range sides {
		s.resume()
		b.ReportMetric(1e6/s.rate(), s.name+"-us/req")
		b.ReportMetric(float64((s.cpu(b)-cpu[i]).Microseconds())/float64(s.requests), s.name+"-cpu-us/req")
	}
}

// oneAfterAnother has each of those that take turns run for one, while the others are paused.
func oneAfterAnother[S interface {
	resume()
	pause()
}](round int, sides []S, turn func(S)) {
	for i := range sides {
		s := sides[(round+i)%len(sides)] // nobody always follows the same one
		s.resume()
		turn(s)
		s.pause()
	}
}

func (s *side) turn(b *testing.B, requests requests) {
	b.Helper()
	started := time.Now()
	counts := make([]int, len(s.conns))
	var group sync.WaitGroup
	for i, c := range s.conns {
		group.Go(func() {
			random := rand.New(rand.NewPCG(rand.Uint64(), uint64(i)))
			for time.Since(started) < turnTime {
				if err := c.ok(requests[random.IntN(len(requests))]); err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
				counts[i]++
			}
		})
	}
	group.Wait()
	if b.Failed() {
		b.FailNow()
	}
	s.took += time.Since(started)
	for _, n := range counts {
		s.requests += n
	}
}

// rate is in requests a second.
func (s *side) rate() float64 { return float64(s.requests) / s.took.Seconds() }
