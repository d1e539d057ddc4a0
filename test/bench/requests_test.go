//go:build bench

package bench

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/servertest"
)

// BenchmarkRequests gives, for each kind of request, what one costs here, on our router without the check, and on a bare
// net/http handler that answers with the same bytes, on a small database.
func BenchmarkRequests(b *testing.B) {
	database := newDatabase(b)
	s := startServer(b, database)
	keyID := seedOwnKeys(b, database)
	for _, c := range []struct {
		name    string
		conns   int
		caller  func() string // its credential; nil for a login
		request func(credential string) []byte
	}{
		{"me/accesskey", 8, func() string { return accessKey }, me},
		{"me/userkey", 8, func() string { return userKey(b, s.addr) }, me},
		{"me/HS256", 8, func() string { return login(b, s.addr) }, me},
		{"me/RS256", 8, func() string { return signedTokens(b, s.addr, auth.RS256, 1, 1)[0] }, me},
		{"me/ES256", 8, func() string { return signedTokens(b, s.addr, auth.ES256, 1, 1)[0] }, me},
		{"me/EdDSA", 8, func() string { return signedTokens(b, s.addr, auth.EdDSA, 1, 1)[0] }, me},
		{"verify", 8, func() string { return accessKey }, func(t string) []byte { return get("/auth/verify", t) }},
		{"introspect", 8, func() string { return accessKey }, introspect},
		{"get", 8, func() string { return accessKey }, func(t string) []byte { return get("/v1.0/accesskeys/"+keyID, t) }},
		{"list10", 8, func() string { return accessKey }, func(t string) []byte { return get("/v1.0/accesskeys?page_size=10", t) }},
		{"list100", 8, func() string { return accessKey }, func(t string) []byte { return get("/v1.0/accesskeys?page_size=100", t) }},
		{"create", 8, func() string { return accessKey }, create},
		{"login", 2, nil, func(string) []byte { return loginRequest() }},
	} {
		b.Run(c.name, func(b *testing.B) {
			credential := ""
			if c.caller != nil {
				credential = c.caller()
			}
			request := requests{c.request(credential)}
			sides := []*side{
				newSide(b, "ours", s.process, c.conns),
				newSide(b, "bare", startBare(b, s.process, request[0]), c.conns),
			}
			if c.caller != nil && c.name != "verify" && c.name != "introspect" { // which check by themselves
				sides = append(sides, newSide(b, "router", startUnchecked(b, database, credential), c.conns))
			}
			takeTurns(b, request, sides...)
			for _, other := range sides[1:] {
				b.ReportMetric(sides[0].rate()/other.rate(), "of-"+other.name)
			}
		})
	}
}

func me(credential string) []byte { return get("/v1.0/me", credential) }

func introspect(credential string) []byte {
	form := "token=" + accessKey
	return fmt.Appendf(nil, "POST /auth/introspect HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", credential, len(form), form)
}

func create(credential string) []byte {
	return post("/v1.0/accesskeys", credential, `{"name":"bench","expire":3600}`)
}

// footprintLoad is how long the load before the second reading of the memory lasts.
const footprintLoad = time.Minute

// BenchmarkFootprint gives the time from start to ready on a migrated database (the median of nine), the resident
// memory of an idle server and of one after a minute at 64 connections, and the size of the binary.
func BenchmarkFootprint(b *testing.B) {
	database := newDatabase(b)
	startServer(b, database).stop()
	seedOwnKeys(b, database)
	var starts []time.Duration
	var s *server
	for range 9 {
		if s != nil {
			s.stop()
		}
		s = startServer(b, database)
		starts = append(starts, s.ready)
	}
	slices.Sort(starts)
	idle := s.resident(b)
	load := newSide(b, "ours", s.process, 64)
	mix := requests{
		me(accessKey), me(login(b, s.addr)), get("/v1.0/accesskeys?page_size=100", accessKey), create(accessKey),
	}
	for until := time.Now().Add(footprintLoad); time.Now().Before(until); {
		load.turn(b, mix)
	}
	for b.Loop() {
	}
	loaded := s.resident(b)
	info := servertest.Must(os.Stat(binary))(b)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(starts[len(starts)/2].Milliseconds()), "ready-ms")
	b.ReportMetric(idle, "idle-MiB")
	b.ReportMetric(loaded, "loaded-MiB")
	b.ReportMetric(float64(info.Size())/(1<<20), "binary-MiB")
}
