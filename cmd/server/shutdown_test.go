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
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dial(t *testing.T, base string) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{t, conn, bufio.NewReader(conn)}
}

func (w *wire) write(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w.conn, text); err != nil {
		w.t.Fatal(err)
	}
}

// read reads one answer, or says how the connection ended. It waits at most this long.
func (w *wire) read(atMost time.Duration) (answer, error) {
	w.t.Helper()
	if err := w.conn.SetReadDeadline(time.Now().Add(atMost)); err != nil {
		w.t.Fatal(err)
	}
	res, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.Close { // ReadResponse has taken the header away
		res.Header.Set("Connection", "close")
	}
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body)}, err
}

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
			idle.write("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
			if got, err := idle.read(patience); err != nil || got.code != 200 {
				t.Fatalf("%+v, %v", got, err)
			}
			p.signal(signal)
			refusesConnections(t, base)
			if got, err := idle.read(patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // the lingering is over
				t.Errorf("an idle connection got %+v, %v", got, err)
			}
			select {
			case <-p.ended:
				t.Fatalf("it ended with a request under way:\n%s", p.stderr)
			default:
			}
			slow.write(uploadBody[10:])
			got, err := slow.read(patience)
			if err != nil {
				t.Fatal(err)
			}
			key := got.wants(t, 200)
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
			base, _, stop := startApp(t, func(a *app.App) {
				if a.Linger <= 0 || a.Linger > 5*time.Second {
					t.Errorf("open connections are answered for %v more", a.Linger)
				}
				a.Linger = linger
			})
			slow, probe, caller := dial(t, base), dial(t, base), dial(t, base)
			slow.upload() // keeps Shutdown from ending
			for _, w := range []*wire{probe, caller} {
				w.write("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
				if got, err := w.read(patience); err != nil || got.code != 200 {
					t.Fatalf("%+v, %v", got, err)
				}
			}
			stopped := make(chan error, 1)
			go func() { stopped <- stop() }()
			refusesConnections(t, base)

			if linger == 0 { // it is closed under a client that is about to send something
				if got, err := probe.read(patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("without lingering an idle connection got %+v, %v", got, err)
				}
			} else {
				probe.write("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
				ready, err := probe.read(patience)
				caller.write("GET /v1.0/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\n\r\n")
				me, meErr := caller.read(patience)
				if err = errors.Join(err, meErr); err != nil {
					t.Fatal(err)
				}
				ready.refuses(t, 503, "SERVICE_UNAVAILABLE")
				me.wants(t, 200)
				if ready.header.Get("Connection") != "close" || me.header.Get("Connection") != "close" {
					t.Errorf("the headers: %v, %v", ready.header, me.header)
				}
			}
			slow.write(uploadBody[10:])
			if got, err := slow.read(patience); err != nil || got.code != 200 {
				t.Errorf("the upload: %+v, %v", got, err)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
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
	servertest.Eventually(t, "it stops", func() bool { return strings.Contains(p.stderr.String(), `"shutting down: `) })
	p.signal(syscall.SIGTERM)
	if code := p.code(); code != -1 {
		t.Errorf("exit code %d", code)
	}
}

// startApp makes the program with its parts in reach, so that a test can shorten the bounds, and runs it.
func startApp(t *testing.T, change func(*app.App)) (base string, log *servertest.Log, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log = &servertest.Log{}
	cfg, err := load(environment(pgtest.Migrated(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	logger, flush := newLogger(log, cfg)
	t.Cleanup(flush)
	a, err := app.New(ctx, cfg, logger)
	if err != nil {
		t.Fatal(err)
	}
	change(a)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx, nil) }()
	stop = func() error {
		cancel()
		select {
		case err := <-ended:
			ended <- err // for the cleanup
			a.Close()
			return err
		case <-time.After(patience):
			return errors.New("run does not return")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return "http://" + a.Addr().String(), log, stop
}

// Contract, section 6: finish what is under way (30 s at most).
func TestRequestThatNeverEndsIsCutAtTheBound(t *testing.T) {
	t.Parallel()
	base, log, stop := startApp(t, func(a *app.App) {
		if a.ShutdownTimeout != 30*time.Second {
			t.Errorf("the bound is %v", a.ShutdownTimeout)
		}
		a.ShutdownTimeout = 200 * time.Millisecond
	})
	slow := dial(t, base)
	slow.upload()
	if err := stop(); err != nil {
		t.Error(err) // an error would be an exit code
	}
	if !strings.Contains(log.String(), "some requests did not finish in time and were cut off") {
		t.Errorf("the log does not say that a request was cut off:\n%s", log)
	}
	if got, err := slow.read(patience); err == nil && got.code < 400 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the request ended with %+v, %v", got, err)
	}
}

// A client that is slow on purpose does not keep its connection. Without the bounds it would: the second case shows that
// the first is their doing.
func TestSlowClientsAreCut(t *testing.T) {
	t.Parallel()
	const short, glance = 200 * time.Millisecond, 700 * time.Millisecond
	for name, begin := range map[string]func(*wire){
		"header": func(w *wire) { w.write("GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: ") },
		"body":   (*wire).upload,
		"idle": func(w *wire) {
			w.write("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
			if got, err := w.read(patience); err != nil || got.code != 200 {
				w.t.Fatalf("%+v, %v", got, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _, _ := startApp(t, func(a *app.App) {
				s := a.Server
				for _, bound := range []time.Duration{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout} {
					if bound <= 0 || bound > 2*time.Minute {
						t.Errorf("a bound of %v", bound)
					}
				}
				s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = short, short, short
			})
			slow := dial(t, base)
			begin(slow)
			if got, err := slow.read(patience); err == nil && got.code < 400 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("it ended with %+v, %v", got, err)
			}
			call(t, "GET", base+"/ping", "", "").wants(t, 200)

			base, _, _ = startApp(t, func(a *app.App) {
				a.Server.ReadHeaderTimeout, a.Server.ReadTimeout, a.Server.IdleTimeout, a.ShutdownTimeout = 0, 0, 0, short
			})
			slow = dial(t, base)
			begin(slow)
			if got, err := slow.read(glance); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("without bounds it ended with %+v, %v", got, err)
			}
		})
	}
}
