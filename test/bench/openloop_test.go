//go:build bench

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"accesskeys/internal/servertest"
)

// openConns is how many connections an open loop has.
const openConns = 32

// openLoop sends requests at a rate whatever becomes of them, as the fixture does: who waits for an answer before asking
// again sends less while the server is slow, and never sees the worst of it.
//
// It is one thread on bare sockets: Go's own timers are late by up to a millisecond on an idle machine, which is more than
// what there is to measure.
type openLoop struct {
	name string
	process
	conns []*rawConn
	polls []pollFD
	free  []int           // the connections that nobody waits on
	took  []time.Duration // of the turn under way

	p50s, p99s []float64 // of each turn, in µs
}

type rawConn struct {
	due  time.Time // of the request under way
	got  []byte
	room [4096]byte
}

// pollFD is struct pollfd of poll(2).
type pollFD struct {
	fd      int32
	events  int16
	revents int16
}

const pollIn = 1

func newOpenLoop(b *testing.B, name string, p process) *openLoop {
	b.Helper()
	to := netip.MustParseAddrPort(p.addr)
	l := &openLoop{name: name, process: p}
	for i := range openConns {
		fd := servertest.Must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))(b)
		b.Cleanup(func() { _ = syscall.Close(fd) })
		servertest.OK(b, syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1), syscall.SetNonblock(fd, true))
		l.conns = append(l.conns, &rawConn{})
		l.polls = append(l.polls, pollFD{fd: int32(fd), events: pollIn})
		l.free = append(l.free, i)
	}
	return l
}

// turn sends requests drawn at random for latencyTurn, rate of them a second, and waits for the answers. Every one must
// be a 200. How long it took is counted from when it was due.
func (l *openLoop) turn(b *testing.B, requests requests, rate float64) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel may be late by this much; 50 µs by default. Errors only make the figures worse, for all sides.
	const prSetTimerSlack = 29
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerSlack, 1, 0)

	total := int(rate * latencyTurn.Seconds())
	l.took = slices.Grow(l.took[:0], total)
	started := time.Now()
	due := func(i int) time.Time { return started.Add(time.Duration(float64(i) / rate * float64(time.Second))) }
	for sent := 0; sent < total || len(l.free) < len(l.conns); {
		now := time.Now()
		for sent < total && len(l.free) > 0 && !due(sent).After(now) {
			if err := l.send(requests[rand.IntN(len(requests))], due(sent)); err != nil {
				b.Fatalf("%s: %v", l.name, err)
			}
			sent++
		}
		wait := time.Second
		if sent < total && len(l.free) > 0 {
			wait = time.Until(due(sent))
		}
		if err := l.receive(max(wait, 0)); err != nil {
			b.Fatalf("%s: %v", l.name, err)
		}
		if time.Since(now) > 10*time.Second {
			b.Fatalf("%s: no answer for 10 s", l.name)
		}
	}
	slices.Sort(l.took)
	quantile := func(share float64) float64 {
		return float64(l.took[int(share*float64(len(l.took)-1))].Nanoseconds()) / 1000
	}
	l.p50s = append(l.p50s, quantile(0.50))
	l.p99s = append(l.p99s, quantile(0.99))
}

// send sends a request, which fits into a socket's buffer, on the connection that has been free for longest.
func (l *openLoop) send(request []byte, due time.Time) error {
	i := l.free[0]
	l.free = append(l.free[:0], l.free[1:]...)
	c := l.conns[i]
	c.due, c.got = due, c.room[:0]
	if n, err := syscall.Write(int(l.polls[i].fd), request); err != nil || n != len(request) {
		return fmt.Errorf("sending a request: %d of %d bytes, %w", n, len(request), err)
	}
	return nil
}

// receive waits for answers for up to a time and reads what there is.
func (l *openLoop) receive(wait time.Duration) error {
	timeout := syscall.NsecToTimespec(wait.Nanoseconds())
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&l.polls[0])), uintptr(len(l.polls)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	if errno != 0 && errno != syscall.EINTR {
		return fmt.Errorf("ppoll: %w", errno)
	}
	if errno == syscall.EINTR {
		return nil
	}
	for i, p := range l.polls {
		if p.revents == 0 {
			continue
		}
		c := l.conns[i]
		n, err := syscall.Read(int(p.fd), c.room[len(c.got):])
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("reading an answer: %d bytes, %w", n, err)
		}
		c.got = c.room[:len(c.got)+n]
		whole, err := complete(c.got)
		if err != nil {
			return err
		}
		if whole {
			l.took = append(l.took, time.Since(c.due))
			l.free = append(l.free, i)
		}
	}
	return nil
}

// complete reports whether an answer is there to its end, and fails where it is no 200.
func complete(got []byte) (bool, error) {
	header, body, ok := bytes.Cut(got, []byte("\r\n\r\n"))
	if !ok {
		return false, nil
	}
	if status := statusOf(header); status != http.StatusOK {
		return false, fmt.Errorf("answered %d: %s", status, body)
	}
	_, rest, ok := bytes.Cut(header, []byte("\r\nContent-Length: "))
	digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
	length, err := strconv.Atoi(string(digits))
	if !ok || err != nil {
		return false, errors.New("an answer without Content-Length")
	}
	return len(body) == length, nil
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
