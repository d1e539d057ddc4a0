//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// load is a steady stream of requests from clients that keep their connections: of five one makes a key, two ask who they are,
// and two read a page of keys. Each is written once, on a connection of the client's own: http.Transport would repeat those
// that it takes for idempotent where a kept connection turns out to be closed, and these are among the ones to be counted.
type load struct {
	addr    string
	cancel  context.CancelFunc
	clients sync.WaitGroup

	mu      sync.Mutex
	figures loadFigures
}

type loadFigures struct {
	requests, posts, failed int
	slowest                 time.Duration
	made                    []string // the ids of the keys whose making was confirmed
	failures                []string // the first of those that failed
}

// startLoad sends so many requests a second by so many clients, until end is called or the test ends.
func startLoad(t testing.TB, addr string, clients, perSecond int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{addr: addr, cancel: cancel}
	every := time.Duration(clients) * time.Second / time.Duration(perSecond)
	for i := range clients {
		l.clients.Go(func() { l.client(ctx, i, every, every*time.Duration(i)/time.Duration(clients)) })
	}
	t.Cleanup(func() { l.end() })
	return l
}

// end waits for the requests under way, and returns what has come of all.
func (l *load) end() loadFigures {
	l.cancel()
	l.clients.Wait()
	return l.soFar()
}

func (l *load) soFar() loadFigures {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.figures
}

// client sends a request each time its turn has come; turns that pass while it waits for an answer are lost.
func (l *load) client(ctx context.Context, number int, every, first time.Duration) {
	k := &keptConnection{addr: l.addr}
	defer k.close()
	turn := time.NewTimer(first)
	defer turn.Stop()
	next := time.Now().Add(first)
	for i := number; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
		}
		l.request(k, i%5)
		for next = next.Add(every); time.Until(next) < 0; next = next.Add(every) {
		}
		turn.Reset(time.Until(next))
	}
}

func (l *load) request(k *keptConnection, kind int) {
	method, path, body := http.MethodGet, "/v1.0/me", ""
	switch kind {
	case 0:
		method, path, body = http.MethodPost, "/v1.0/accesskeys", `{"name":"load"}`
	case 1, 2:
		path = "/v1.0/accesskeys?page_size=10"
	}
	began := time.Now()
	a := k.send(method, path, body)
	took := time.Since(began)
	var key made
	if a.err == nil {
		a.err = json.Unmarshal([]byte(a.body), &key)
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.figures
	f.requests++
	f.slowest = max(f.slowest, took)
	if method == http.MethodPost {
		f.posts++
	}
	switch {
	case a.status != http.StatusOK || a.err != nil:
		f.failed++
		if len(f.failures) < 20 {
			f.failures = append(f.failures, fmt.Sprintf("%s %s %s after %v: status %d, %v, %.300s",
				began.Format("15:04:05.000000"), method, path, took, a.status, a.err, a.body))
		}
	case method == http.MethodPost:
		f.made = append(f.made, key.ID)
	}
}

// keptConnection is a connection that is used for as long as the other side allows.
type keptConnection struct {
	addr string
	conn net.Conn
	in   *bufio.Reader
}

func (k *keptConnection) close() {
	if k.conn != nil {
		_ = k.conn.Close()
	}
	k.conn = nil
}

// send sends a request once, as the admin's key, and reads the answer.
func (k *keptConnection) send(method, path, body string) (a answer) {
	const atMost = 30 * time.Second
	var err error
	if k.conn == nil {
		if k.conn, err = net.DialTimeout("tcp", k.addr, atMost); err != nil {
			return answer{err: fmt.Errorf("connecting: %w", err)}
		}
		k.in = bufio.NewReader(k.conn)
	}
	_ = k.conn.SetDeadline(time.Now().Add(atMost))
	a, last := exchange(k.conn, k.in, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		method, path, k.addr, adminKey, len(body), body))
	if last {
		k.close()
	}
	return a
}

// mustHaveServedAll fails the test where a request has failed, or a server doesn't list just the keys that were confirmed and
// the admin's.
func (f loadFigures) mustHaveServedAll(t testing.TB, at *server) {
	t.Helper()
	if f.failed > 0 {
		t.Errorf("%d of %d requests failed:\n%s", f.failed, f.requests, strings.Join(f.failures, "\n"))
	}
	listed := at.keys(t)
	for _, id := range f.made {
		if !listed[id] {
			t.Errorf("the key %s was confirmed and is not listed", id)
		}
	}
	if f.failed == 0 && (len(listed) != len(f.made)+1 || len(f.made) != f.posts) {
		t.Errorf("%d POSTs, %d keys confirmed, %d listed", f.posts, len(f.made), len(listed))
	}
}
