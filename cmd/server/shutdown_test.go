package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/app"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// wire is a connection on which a test writes requests by hand.
type wire struct {
	t      *testing.T
	conn   net.Conn
	in     *bufio.Reader
	method string // of the request that was asked last
}

func dial(t *testing.T, base string) *wire {
	t.Helper()
	conn := must(net.Dial("tcp", strings.TrimPrefix(base, "http://")))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{t: t, conn: conn, in: bufio.NewReader(conn)}
}

func (w *wire) write(text string) {
	w.t.Helper()
	must(io.WriteString(w.conn, text))(w.t)
}

// read reads one answer, or says how the connection ended. It waits at most this long.
func (w *wire) read(atMost time.Duration) (answer, error) {
	w.t.Helper()
	ok(w.t, w.conn.SetReadDeadline(time.Now().Add(atMost)))
	res, err := http.ReadResponse(w.in, &http.Request{Method: w.method}) //nolint:bodyclose // read closes it
	if err != nil {
		return answer{}, err
	}
	return read(res)
}

// ask writes a request, which the server may not read to its end, and reads the answer.
func (w *wire) ask(request string, atMost time.Duration) (answer, error) {
	w.t.Helper()
	_, _ = io.WriteString(w.conn, request)
	w.method, _, _ = strings.Cut(request, " ")
	return w.read(atMost)
}

// gets writes a request without a body, and expects a 200.
func (w *wire) gets(path, headers string) answer {
	w.t.Helper()
	return w.succeeds(w.ask("GET "+path+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n", patience))
}

func (w *wire) succeeds(got answer, err error) answer {
	w.t.Helper()
	if err != nil || got.code != 200 {
		w.t.Fatalf("%+v, %v, want 200", got, err)
	}
	return got
}

// finish sends the rest of an upload, which succeeds.
func (w *wire) finish() answer {
	w.t.Helper()
	w.write(uploadBody[10:])
	return w.succeeds(w.read(patience))
}

// isCut fails the test unless the server ends the connection, with an error as its last answer at most.
func (w *wire) isCut() {
	w.t.Helper()
	if got, err := w.read(patience); err == nil && got.code < 400 || errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Errorf("it ended with %+v, %v", got, err)
	}
}

// isClosed is the same, without an answer.
func (w *wire) isClosed() {
	w.t.Helper()
	if got, err := w.read(patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Errorf("an idle connection got %+v, %v", got, err)
	}
}

// closes says whether an answer is the connection's last.
func (a answer) closes() bool { return a.header.Get("Connection") == "close" }

const uploadBody = `{"name":"uploaded slowly"}`

// upload begins to create a key and keeps the end of the body back. When it returns the handler is reading.
func (w *wire) upload() {
	w.t.Helper()
	w.write(fmt.Sprintf("POST /v1.0/accesskeys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n", testKey, len(uploadBody)))
	if got, err := w.read(patience); err != nil || got.code != http.StatusContinue {
		w.t.Fatalf("%+v, %v, want 100 Continue", got, err)
	}
	w.write(uploadBody[:10])
}

// Contract, section 6: SIGTERM: stop accepting, finish what is under way (30 s at most), exit 0.
func TestTermFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			database := pgtest.Migrated(t)
			p := spawn(t, environment(database, nil), "", "serve")
			base := p.base()
			slow, idle := dial(t, base), dial(t, base)
			slow.upload()
			idle.gets("/ping", "")
			p.signal(signal)
			refusesConnections(t, base)
			idle.isClosed() // the lingering is over
			select {
			case <-p.ended:
				t.Fatal("it ended with a request under way")
			default:
			}
			key := slow.finish().wants(t, 200)
			if code := p.code(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if name := sql(t, database, `SELECT name FROM accesskeys WHERE id = $1`, key["id"]); name != "uploaded slowly" {
				t.Errorf("the key in the database: %q", name)
			}
		})
	}
}

func refusesConnections(t *testing.T, base string) {
	t.Helper()
	servertest.Eventually(t, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// Contract, section 6: stop accepting, finish what is under way: a request that meets the end on a connection which is open already gets its
// answer, and readiness fails there. Without the lingering it would be lost, which the second case shows.
func TestOpenConnectionsGetALastAnswer(t *testing.T) {
	t.Parallel()
	for _, linger := range []time.Duration{2 * time.Second, 0} {
		t.Run(linger.String(), func(t *testing.T) {
			t.Parallel()
			p := startApp(t, func(a *app.App) {
				if a.Linger <= 0 || a.Linger > 5*time.Second {
					t.Errorf("open connections are answered for %v more", a.Linger)
				}
				a.Linger = linger
			})
			base := p.base()
			slow, probe, caller := dial(t, base), dial(t, base), dial(t, base)
			slow.upload() // keeps Shutdown from ending
			probe.gets("/readyz", "")
			caller.gets("/readyz", "")
			stopped := make(chan error, 1)
			go func() { stopped <- p.end() }()
			refusesConnections(t, base)

			if linger == 0 { // it is closed under a client that is about to send something
				probe.isClosed()
			} else {
				ready := must(probe.ask("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", patience))(t)
				ready.refuses(t, 503, "SERVICE_UNAVAILABLE")
				me := caller.gets("/v1.0/me", "Authorization: Bearer "+testKey+"\r\n")
				if !ready.closes() || !me.closes() {
					t.Errorf("the headers: %v, %v", ready.header, me.header)
				}
			}
			slow.finish()
			ok(t, <-stopped)
		})
	}
}

// A second signal does not wait for what is under way.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := spawn(t, environment(pgtest.Migrated(t), nil), "", "serve")
	slow := dial(t, p.base())
	slow.upload()
	p.signal(syscall.SIGTERM)
	p.logs(`"shutting down: `)
	p.signal(syscall.SIGTERM)
	if code := p.code(); code != -1 {
		t.Errorf("exit code %d", code)
	}
}

// startApp makes the program with its parts in reach, so that a test can shorten the bounds, and runs it.
func startApp(t *testing.T, change func(*app.App)) *program {
	t.Helper()
	cfg := must(load(environment(pgtest.Migrated(t), nil)))(t)
	return begin(t, nil, func(ctx context.Context, p *program) error {
		logger, flush := newLogger(p.stderr, cfg)
		defer flush()
		a, err := app.New(ctx, cfg, logger)
		if err != nil {
			return err
		}
		defer a.Close()
		change(a)
		return a.Run(ctx, nil)
	})
}

// Contract, section 6: finish what is under way (30 s at most).
func TestRequestThatNeverEndsIsCutAtTheBound(t *testing.T) {
	t.Parallel()
	p := startApp(t, func(a *app.App) {
		if a.ShutdownTimeout != 30*time.Second {
			t.Errorf("the bound is %v", a.ShutdownTimeout)
		}
		a.ShutdownTimeout = 200 * time.Millisecond
	})
	slow := dial(t, p.base())
	slow.upload()
	ok(t, p.end()) // an error would be an exit code
	if !strings.Contains(p.stderr.String(), "some requests did not finish in time and were cut off") {
		t.Errorf("the log does not say that a request was cut off:\n%s", p.stderr)
	}
	slow.isCut()
}

// A client that is slow on purpose does not keep its connection. Without the bounds it would: the second case shows that
// the first is their doing.
func TestSlowClientsAreCut(t *testing.T) {
	t.Parallel()
	const short, glance = 200 * time.Millisecond, 700 * time.Millisecond
	for name, open := range map[string]func(*wire){
		"header": func(w *wire) { w.write("GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: ") },
		"body":   (*wire).upload,
		"idle":   func(w *wire) { w.gets("/ping", "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startApp(t, func(a *app.App) {
				s := a.Server
				for _, bound := range []time.Duration{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout} {
					if bound <= 0 || bound > 2*time.Minute {
						t.Errorf("a bound of %v", bound)
					}
				}
				s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = short, short, short
			})
			slow := dial(t, p.base())
			open(slow)
			slow.isCut()
			call(t, "GET", p.base()+"/ping", "", "").wants(t, 200)
			ok(t, p.end())

			p = startApp(t, func(a *app.App) {
				a.Server.ReadHeaderTimeout, a.Server.ReadTimeout, a.Server.IdleTimeout, a.ShutdownTimeout = 0, 0, 0, short
			})
			slow = dial(t, p.base())
			open(slow)
			if got, err := slow.read(glance); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("without bounds it ended with %+v, %v", got, err)
			}
		})
	}
}

// A SIGHUP, which the rotation of logs sends, ends nothing: requests under way go on, and the certificate is read again.
func TestHangupEndsNothing(t *testing.T) {
	t.Parallel()
	first, second := newPair(t, 1), newPair(t, 2)
	dir, env := first.folder(t)
	p := spawn(t, environment(pgtest.Migrated(t), env), "", "serve")
	addr := p.addr()
	for range 3 {
		p.signal(syscall.SIGHUP)
	}
	p.logs("SIGHUP: the TLS certificate was read again")
	shows(t, addr, 1)
	second.put(t, dir)
	p.signal(syscall.SIGHUP)
	servertest.Eventually(t, "the second certificate is shown", func() bool { return serial(t, addr) == 2 })
	writeFile(t, dir, "cert.pem", "none")
	p.signal(syscall.SIGHUP)
	p.logs(`"level":"ERROR","msg":"SIGHUP: the TLS certificate can't be used; the one before stays"`)
	shows(t, addr, 2)
	p.stop(syscall.SIGTERM)
}

func TestHangupWithoutACertificateEndsNothing(t *testing.T) {
	t.Parallel()
	p := spawn(t, environment(pgtest.Migrated(t), nil), "", "serve")
	base := p.base()
	slow := dial(t, base)
	slow.upload()
	p.signal(syscall.SIGHUP)
	p.logs("SIGHUP: there is nothing to read again")
	slow.finish()
}
