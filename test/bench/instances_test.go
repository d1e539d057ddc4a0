//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
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
	postgres := newPostgres(b, "600")
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
				key := ask(b, instances[0].addr, create(accessKey))
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
	var first int
	servertest.Must(fmt.Sscan(string(servertest.Must(os.ReadFile(filepath.Join(dir, "data", "postmaster.pid")))(b)), &first))(b)
	used = cpuTime(b, first, 4) // its own and that of children that have ended
	for _, pid := range servertest.Children(first) {
		used += cpuTime(b, pid, 2)
	}
	return used
}
