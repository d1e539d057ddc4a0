//go:build bench

package bench

import (
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkCompare gives what requests cost here beside another build of ours, at BENCH_BASE, each with a database of its own. The figure to
// read is of-base: how many requests are answered in the time of one of the base's, the median of all rounds, between its quartiles.
func BenchmarkCompare(b *testing.B) {
	base := os.Getenv("BENCH_BASE")
	if base == "" {
		b.Fatal("BENCH_BASE names no program: run make bench-compare BASE=commit")
	}
	servers := map[string]*server{}
	for name, path := range map[string]string{"ours": binary, "base": base} {
		database := newDatabase(b)
		servers[name] = startBinary(b, path, database)
		seedOwnKeys(b, database)
	}
	for _, c := range []struct {
		name    string
		request []byte
	}{
		{"me", me(accessKey)},
		{"verify", get("/auth/verify", accessKey)},
		{"list100", get("/v1.0/accesskeys?page_size=100", accessKey)},
		{"create", create(accessKey)},
	} {
		b.Run(c.name, func(b *testing.B) {
			sides := []*side{newSide(b, "ours", servers["ours"].process, 8), newSide(b, "base", servers["base"].process, 8)}
			compare(b, requests{c.request}, sides[0], sides[1])
		})
	}
}

// compare has two sides take turns, and reports what the first does of the second in each round.
func compare(b *testing.B, requests requests, ours, base *side) {
	b.Helper()
	var rates, costs []float64
	for round := 0; b.Loop(); round++ {
		rate, cost := map[*side]float64{}, map[*side]float64{}
		oneAfterAnother(round, []*side{ours, base}, func(s *side) {
			s.requests, s.took = 0, 0
			before := s.cpu(b)
			s.turn(b, requests)
			rate[s] = s.rate()
			cost[s] = float64(s.cpu(b)-before) / float64(s.requests)
		})
		if round > 0 { // the first warms them up
			rates = append(rates, rate[ours]/rate[base])
			costs = append(costs, cost[ours]/cost[base])
		}
	}
	ours.resume()
	base.resume()
	b.ReportMetric(0, "ns/op")
	for name, ratios := range map[string][]float64{"of-base": rates, "cpu-of-base": costs} {
		if len(ratios) == 0 {
			b.Fatalf("no round in %s", b.Elapsed().Round(time.Second))
		}
		slices.Sort(ratios)
		for quartile, suffix := range map[int]string{1: "-q1", 2: "", 3: "-q3"} {
			b.ReportMetric(ratios[(len(ratios)-1)*quartile/4], name+suffix)
		}
	}
}
