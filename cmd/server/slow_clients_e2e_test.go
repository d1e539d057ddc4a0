//go:build e2e

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
)

// slowAttack is so many connections of clients that are slow on purpose.
type slowAttack struct {
	tls         bool
	connections int
	open        func(t *testing.T, conn net.Conn)
}

// attackedList is a list whose page has 2.4 MiB.
const attackedList = "/v1.0/accesskeys?accesskey="

// Clients that don't read their answers, or don't send their bodies, can't make the server take more memory than it has for them, nor
// keep others from being served.
//
//nolint:tparallel // one attack at a time: what several need together says nothing of the bound of one
func TestSlowClientsTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	attacked := attackedList + testKey
	const most = 256 << 20
	for name, attack := range map[string]slowAttack{
		"HTTP/1.1, lists": {false, 1000, func(_ *testing.T, conn net.Conn) {
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", attacked)
		}},
		"HTTP/1.1, metrics":                 {false, 1000, func(_ *testing.T, conn net.Conn) { pipeline(conn, "/metrics") }},
		"HTTP/1.1, the document":            {false, 1000, func(_ *testing.T, conn net.Conn) { pipeline(conn, "/openapi.json") }},
		"HTTP/2, lists":                     {true, 8, func(_ *testing.T, conn net.Conn) { openStreams(conn, "GET", attacked, true) }},
		"HTTP/2, small answers":             {true, 20, func(_ *testing.T, conn net.Conn) { openStreams(conn, "GET", "/ping", true) }},
		"HTTP/2, bodies that don't come":    {true, 20, func(_ *testing.T, conn net.Conn) { openStreams(conn, "POST", "/auth/login", false) }},
		"HTTP/2, lists on many connections": {true, 20, func(_ *testing.T, conn net.Conn) { openStreams(conn, "GET", attacked, true) }},
	} {
		t.Run(name, func(t *testing.T) {
			// A bound that is kept holds as soon as the machine lets the collector of garbage run; one that is missing never does.
			peak := attack.peak(t)
			for attempt := 1; peak > most && attempt < 3; attempt++ {
				peak = attack.peak(t)
			}
			if peak > most {
				t.Errorf("the server has taken %d MiB", peak>>20)
			}
		})
	}
}

// peak is how much memory a server has taken at most while it was attacked, in bytes.
func (attack slowAttack) peak(t *testing.T) int {
	t.Helper()
	database := pgtest.Migrated(t)
	env, client := environment(database, nil), &http.Client{Transport: &http.Transport{}}
	if attack.tls {
		pair := newPair(t, 1)
		_, files := pair.folder(t)
		for setting, value := range files {
			env[setting] = value
		}
		client = pair.client(t)
	}
	client.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext
	p := spawn(t, env, "", "serve")
	base := p.base()
	if attack.tls {
		base = strings.Replace(base, "http:", "https:", 1)
	}
	// Another customer, at another address, has as large a list.
	sql(t, database, `INSERT INTO customers (id, name) VALUES (gen_random_uuid(), 'other')`)
	other := "vb_" + strings.Repeat("o", 32)
	sql(t, database, `INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire)
		SELECT gen_random_uuid(), id, sha256($1::bytea), 'vb_oooooooo', '2100-01-01' FROM customers WHERE name = 'other'`, []byte(other))
	sql(t, database, `INSERT INTO accesskeys (id, customer_id, description, token_sha256, token_prefix, tm_expire)
		SELECT gen_random_uuid(), c.id, repeat(E'\x01', 4096), sha256(int8send(i) || c.id::text::bytea), 'vb_12345678', '2100-01-01'
		FROM generate_series(1, 200) i, customers c`)
	get := func(path string) (code int, took time.Duration, err error) {
		started := time.Now()
		answer, err := client.Get(base + path)
		if err != nil {
			return 0, 0, err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return answer.StatusCode, time.Since(started), err
	}
	until := time.Now().Add(patience)
	for code := 0; code != 200 && time.Now().Before(until); {
		code, _, _ = get("/readyz")
	}
	_, address, _ := strings.Cut(base, "://")
	var open sync.WaitGroup
	stop := make(chan struct{})
	for range attack.connections {
		open.Go(func() { attackOn(t, address, attack.tls, attack.open, stop) })
	}
	most, before := time.Duration(0), processMemory(t, p, "VmRSS")
	for begun, n := time.Now(), 0; time.Since(begun) < 3*time.Second || n < 10; n++ {
		for _, path := range []string{attackedList + other, "/v1.0/me?accesskey=" + other} {
			code, took, err := get(path)
			if code != 200 || err != nil {
				t.Errorf("meanwhile %s: %d, %v", path, code, err)
			}
			most = max(most, took)
		}
	}
	peak := processMemory(t, p, "VmHWM")
	t.Logf("%d MiB before, %d MiB at most; others waited for %v at most", before>>20, peak>>20, most)
	close(stop)
	open.Wait()
	return peak
}

// attackOn keeps a connection open, and opens another one where the server ends it.
func attackOn(t *testing.T, address string, encrypted bool, open func(*testing.T, net.Conn), stop chan struct{}) {
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.(*net.TCPConn).SetReadBuffer(4096)
			inner := conn
			if encrypted {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			}
			ended := make(chan struct{})
			go func() {
				select {
				case <-stop:
				case <-time.After(2 * time.Second): // a server may have cut it off, which is not noticed without reading
				}
				inner.Close()
				close(ended)
			}()
			open(t, conn)
			<-ended
		}
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// pipeline sends many requests and reads no answer.
func pipeline(conn net.Conn, path string) {
	_, _ = io.WriteString(conn, strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n", 100))
}

// openStreams opens a hundred HTTP/2 streams, whose answers have no room (RFC 9113, section 6.9.2). Each that is reset is opened again.
func openStreams(conn net.Conn, method, path string, whole bool) {
	block, flags, stream := headerBlock(method, path), byte(endHeaders), uint32(1)
	if whole {
		flags |= endStream
	}
	open := func(n int) bool {
		var b []byte
		for range n {
			b = append(b, frame(frameHeaders, flags, stream, block)...)
			stream += 2
		}
		_, err := conn.Write(b)
		return err == nil
	}
	const windowOfZero = "\x00\x04\x00\x00\x00\x00"
	beginHTTP2(conn, windowOfZero)
	in := bufio.NewReader(conn)
	for n := 100; open(n); n = 1 {
		for kind := byte(0); kind != frameReset; {
			var err error
			if kind, err = nextFrame(in); err != nil {
				return
			}
		}
	}
}

// processMemory is a figure of /proc, in bytes.
func processMemory(t *testing.T, p *process, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), name+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
