package bench

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/auth"
)

// BenchmarkRequests gives, for each kind of request, what one costs here and on a bare net/http handler that answers
// with the same bytes. The two take turns of a few hundred requests, so that a noisy neighbour hits both. ratio is our
// throughput as a share of the bare handler's.
func BenchmarkRequests(b *testing.B) {
	s := newBench(b)
	for _, c := range []struct {
		name    string
		request []byte
		conns   int
		turn    int // requests on each connection
	}{
		{"me/accesskey", get("/v1.0/me", accessKey), 8, 50},
		{"me/userkey", get("/v1.0/me", s.userKey), 8, 50},
		{"me/HS256", get("/v1.0/me", s.jwt), 8, 50},
		{"me/RS256", get("/v1.0/me", s.signed[auth.RS256]), 8, 50},
		{"me/ES256", get("/v1.0/me", s.signed[auth.ES256]), 8, 50},
		{"me/EdDSA", get("/v1.0/me", s.signed[auth.EdDSA]), 8, 50},
		{"get", get("/v1.0/accesskeys/"+s.keyID, accessKey), 8, 50},
		{"list10", get("/v1.0/accesskeys?page_size=10", accessKey), 8, 50},
		{"list100", get("/v1.0/accesskeys?page_size=100", accessKey), 8, 20},
		{"create", post("/v1.0/accesskeys", accessKey, `{"name":"bench","expire":3600}`), 8, 20},
		{"login", post("/auth/login", "", `{"username":"`+username+`","password":"`+password+`"}`), 2, 2},
	} {
		b.Run(c.name, func(b *testing.B) {
			ours := s.conns(b, s.addr, c.conns)
			header, body := ours[0].do(b, c.request)
			path, _, _ := strings.Cut(strings.Fields(string(c.request))[1], "?")
			header.Del("Date")
			bare := s.conns(b, startBare(b, []answer{{Path: path, Header: header, Body: string(body)}}), c.conns)
			turn(b, ours, c.request, c.turn) // warms both up
			turn(b, bare, c.request, c.turn)
			var oursTook, bareTook time.Duration
			requests := 0
			for b.Loop() {
				oursTook += turn(b, ours, c.request, c.turn)
				bareTook += turn(b, bare, c.request, c.turn)
				requests += c.conns * c.turn
			}
			b.ReportMetric(0, "ns/op") // an iteration is a turn of both and says nothing
			b.ReportMetric(float64(oursTook.Microseconds())/float64(requests), "ours-us/req")
			b.ReportMetric(float64(bareTook.Microseconds())/float64(requests), "bare-us/req")
			b.ReportMetric(float64(bareTook)/float64(oursTook), "ratio")
		})
	}
}

func (*bench) conns(b *testing.B, addr string, n int) []*conn {
	b.Helper()
	conns := make([]*conn, n)
	for i := range conns {
		conns[i] = dial(b, addr)
		b.Cleanup(conns[i].close)
	}
	return conns
}

// turn sends a request n times on each connection at once, and returns how long all of it took.
func turn(b *testing.B, conns []*conn, request []byte, n int) time.Duration {
	b.Helper()
	started := time.Now()
	var group sync.WaitGroup
	for _, c := range conns {
		group.Go(func() {
			if err := c.spin(request, n); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return time.Since(started)
}

// footprintLoad is how long the load before the second reading of the memory lasts.
const footprintLoad = time.Minute

// BenchmarkFootprint gives the time from start to ready on a migrated database (the median of nine), the resident
// memory of an idle server and of one after a minute at 64 connections, and the size of the binary.
func BenchmarkFootprint(b *testing.B) {
	s := newBench(b)
	var starts []time.Duration
	for range 9 {
		s.stop()
		starts = append(starts, s.start(b))
	}
	slices.Sort(starts)
	idle := s.resident(b)
	conns := s.conns(b, s.addr, 64)
	requests := [][]byte{
		get("/v1.0/me", accessKey), get("/v1.0/me", s.jwt), get("/v1.0/accesskeys?page_size=100", accessKey),
		post("/v1.0/accesskeys", accessKey, `{"name":"bench","expire":3600}`),
	}
	for until := time.Now().Add(footprintLoad); time.Now().Before(until); {
		for _, request := range requests {
			turn(b, conns, request, 10)
		}
	}
	for b.Loop() {
	}
	loaded := s.resident(b)
	info, err := os.Stat(binary)
	if err != nil {
		b.Fatal(err)
	}
	const mib = 1 << 20
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(starts[len(starts)/2].Milliseconds()), "ready-ms")
	b.ReportMetric(float64(idle)/mib, "idle-MiB")
	b.ReportMetric(float64(loaded)/mib, "loaded-MiB")
	b.ReportMetric(float64(info.Size())/mib, "binary-MiB")
}

// resident reads the server's resident memory in bytes.
func (s *bench) resident(b *testing.B) int64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kib, err := strconv.ParseInt(strings.Fields(string(rest))[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
