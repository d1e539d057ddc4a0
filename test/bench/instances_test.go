//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
)

const (
	// idleTime is how long nothing happens but what instances do by themselves.
	idleTime = 20 * time.Second
	// revocations is how many keys are made and deleted, one after the other.
	revocations = 100
)

// BenchmarkInstances gives what it costs that there are more and more instances: the processor's time that Postgres and the
// instances use while nobody asks them anything, and for each revocation, which every instance has to acknowledge; and how
// long a revocation takes.
func BenchmarkInstances(b *testing.B) {
	postgres, err := privatepg.Start(b.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: map[string]string{"max_connections": "600"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = postgres.Close() })
	var instances []*server
	for _, n := range []int{1, 10, 30, 100} {
		for len(instances) < n {
			instances = append(instances, startServer(b, secret.New(postgres.URL("postgres")), "CACHE_SIZE=16"))
		}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
			}
			used := func() (database, servers time.Duration) {
				for _, r := range instances {
					servers += r.cpu(b)
				}
				return postgresCPU(b, postgres.Dir()), servers
			}
			database, servers := used()
			started := time.Now()
			time.Sleep(idleTime)
			idleDatabase, idleServers := used()
			took := time.Since(started).Seconds()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric((idleDatabase-database).Seconds()/took*100, "idle-postgres-%core")
			b.ReportMetric((idleServers-servers).Seconds()/took*100/float64(n), "idle-instance-%core")

			c := dial(b, instances[0].addr)
			defer c.close()
			var times []time.Duration
			started = time.Now()
			for range revocations {
				var key struct{ ID string }
				ask(b, instances[0].addr, create(accessKey), &key)
				sent := time.Now()
				c.do(b, fmt.Appendf(nil, "DELETE /v1.0/accesskeys/%s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n\r\n", key.ID, accessKey))
				times = append(times, time.Since(sent))
			}
			took2 := time.Since(started).Seconds()
			busyDatabase, busyServers := used()
			slices.Sort(times)
			per := func(busy, idle, before time.Duration) float64 { // beyond what would have been used anyway
				return ((busy - idle).Seconds() - (idle-before).Seconds()/took*took2) * 1000 / revocations
			}
			b.ReportMetric(times[len(times)/2].Seconds()*1000, "delete-ms")
			b.ReportMetric(times[len(times)*99/100].Seconds()*1000, "delete-p99-ms")
			b.ReportMetric(per(busyDatabase, idleDatabase, database), "postgres-cpu-ms/delete")
			b.ReportMetric(per(busyServers, idleServers, servers)/float64(n), "instance-cpu-ms/delete")
		})
	}
}

// postgresCPU is how much of the processor's time a Postgres has used: its first process, those that are running below it, and
// those that have ended.
func postgresCPU(b *testing.B, dir string) (used time.Duration) {
	b.Helper()
	file, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(file), "\n")
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range processes {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		pid := filepath.Base(filepath.Dir(path))
		var ticks []string
		switch {
		case pid == first:
			ticks = fields[11:15] // its own and those of children that have ended
		case fields[1] == first:
			ticks = fields[11:13]
		}
		for _, text := range ticks {
			n, err := strconv.Atoi(text)
			if err != nil {
				b.Fatal(err)
			}
			used += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return used
}
