package chaos

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// flow is what a proxy does with what passes through it.
type flow struct {
	refuse       bool          // connections are closed, open ones too
	holdRequests bool          // what the client sends stays here, its end included, as in a network that drops it
	holdReplies  bool          // what the server sends stays here
	delay        time.Duration // on every other connection each piece of a reply waits for a random time up to this
}

func (f flow) holds(replies bool) bool { return replies && f.holdReplies || !replies && f.holdRequests }

// proxy stands between one instance and one database. What it held back is delivered when the hold ends, late, as TCP does
// after a partition.
type proxy struct {
	listener net.Listener
	network  string
	address  string

	accepted atomic.Int64

	mu      sync.Mutex
	flow    flow
	changed chan struct{} // closed at each change of flow
	links   map[*link]struct{}
	group   sync.WaitGroup
}

// link is one connection through a proxy.
type link struct {
	client, server net.Conn
	slow           bool // a delay is for this one: what comes by another can then overtake it
	listens        atomic.Bool
	once           sync.Once
	done           chan struct{}
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.client.Close()
		if l.server != nil {
			_ = l.server.Close()
		}
	})
}

func newProxy(t testing.TB, network, address string) *proxy {
	t.Helper()
	listener := servertest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	p := &proxy{listener: listener, network: network, address: address, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.group.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.set(flow{})
		p.cut()
		p.group.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// set changes the flow, for open connections too.
func (p *proxy) set(f flow) {
	p.mu.Lock()
	p.flow = f
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if f.refuse {
		p.cut()
	}
}

// cut closes every open connection. What was held back in them is lost.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// move has new connections lead elsewhere. Those that listen linger where they are, the others are closed.
func (p *proxy) move(network, address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.network, p.address = network, address
	for l := range p.links {
		if !l.listens.Load() {
			l.close()
		}
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.serve(client) })
	}
}

func (p *proxy) serve(client net.Conn) {
	l := &link{client: client, slow: p.accepted.Add(1)%2 == 0, done: make(chan struct{})}
	defer l.close()
	p.mu.Lock()
	refuse, network, address := p.flow.refuse, p.network, p.address
	p.mu.Unlock()
	if refuse {
		return
	}
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, address)
	if err != nil {
		return
	}
	l.server = server
	p.mu.Lock()
	refuse = p.flow.refuse // since then
	if !refuse {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	if refuse {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pump(l, server, client, false) })
	both.Go(func() { p.pump(l, client, server, true) })
	both.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// pump passes one direction on until either end closes. The end is held back like everything else: a database on the far
// side of a partition doesn't learn that its client has gone, and keeps its locks.
func (p *proxy) pump(l *link, to io.Writer, from io.Reader, replies bool) {
	defer l.close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if !replies && bytes.Contains(buffer[:n], []byte("LISTEN accesskeys_changes")) {
			l.listens.Store(true)
		}
		if !p.admit(l, replies) {
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// admit waits until what was read may pass; false means that the connection has been cut.
func (p *proxy) admit(l *link, replies bool) bool {
	delayed := false
	for {
		p.mu.Lock()
		f, changed := p.flow, p.changed
		p.mu.Unlock()
		var wait <-chan time.Time
		switch {
		case f.holds(replies):
		case replies && l.slow && f.delay > 0 && !delayed:
			delayed = true
			wait = time.After(rand.N(f.delay))
			changed = nil
		default:
			return true
		}
		select {
		case <-changed:
		case <-wait:
		case <-l.done:
			return false
		}
	}
}

// The faults are only as good as the proxy that makes them.
func TestProxyPassesHoldsAndRefuses(t *testing.T) {
	t.Parallel()
	echo := servertest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	p := newProxy(t, "tcp", echo.Addr().String())
	dial := func() net.Conn {
		t.Helper()
		c := servertest.Must(net.Dial("tcp", p.addr()))(t)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	answer := func(within time.Duration) string {
		t.Helper()
		servertest.OK(t, c.SetReadDeadline(time.Now().Add(within)))
		got := make([]byte, 64)
		n, err := c.Read(got)
		if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
			return "nothing"
		}
		if err != nil {
			return "closed"
		}
		return string(bytes.TrimSpace(got[:n]))
	}
	const soon, patience = 30 * time.Millisecond, 10 * time.Second
	say := func(word string) { _, _ = io.WriteString(c, word) }
	for _, step := range []struct {
		flow   flow
		say    string
		within time.Duration
		want   string
	}{
		{flow{}, "one", patience, "one"},
		{flow{holdRequests: true}, "two", soon, "nothing"},
		{flow{}, "", patience, "two"},
		{flow{holdReplies: true}, "three", soon, "nothing"},
		{flow{delay: time.Millisecond}, "", patience, "three"},
		{flow{holdRequests: true, holdReplies: true}, "four", soon, "nothing"},
		{flow{refuse: true}, "", patience, "closed"},
	} {
		p.set(step.flow)
		say(step.say)
		if got := answer(step.within); got != step.want {
			t.Fatalf("%+v: %q was answered by %q, want %q", step.flow, step.say, got, step.want)
		}
	}
	c = dial()
	if got := answer(patience); got != "closed" {
		t.Errorf("a new connection that should be refused got %q", got)
	}
	p.set(flow{})
	c = dial()
	say("five")
	if got := answer(patience); got != "five" {
		t.Errorf("after all of it: %q", got)
	}
}
