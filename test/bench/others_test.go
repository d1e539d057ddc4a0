//go:build bench

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/logging"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// The servers beside ours are this binary, run again with one of the roles in roleVariable, and in payloadVariable what
// the role needs.
const (
	roleVariable    = "BENCH_ROLE"
	payloadVariable = "BENCH_PAYLOAD"

	roleBare      = "bare"      // a net/http handler; its payload is an answer
	roleUnchecked = "unchecked" // our router without the check; its payload is a caller
)

// answer is one of ours, as the bare server repeats it.
type answer struct {
	Header http.Header
	Body   []byte
}

// caller is who every request to the unchecked server is from.
type caller struct {
	Database   string
	Credential string
}

// serveAs answers until standard input ends, having printed its address.
func serveAs(role string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	serve := map[string]func([]byte, net.Listener) error{roleBare: serveBare, roleUnchecked: serveUnchecked}[role]
	fmt.Println(listener.Addr())
	go func() { must(serve([]byte(os.Getenv(payloadVariable)), listener)) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// serveBare gives the same answer to everything. It reads what it is sent, as any server must.
func serveBare(payload []byte, listener net.Listener) error {
	var a answer
	must(json.Unmarshal(payload, &a))
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		maps.Copy(w.Header(), a.Header)
		_, _ = w.Write(a.Body)
	}))
}

// serveUnchecked answers by our router without the check. All else is as internal/app has it: the bounds on slow
// clients, which cost timers, and a line of JSON for each request in a file.
func serveUnchecked(payload []byte, listener net.Listener) error {
	var c caller
	must(json.Unmarshal(payload, &c))
	ctx := context.Background()
	db, err := store.Open(ctx, secret.New(c.Database))
	must(err)
	sessions, err := auth.NewSessions(jwtSecret, secret.Value{})
	must(err)
	credential, err := auth.Extract("", []string{"Bearer " + c.Credential})
	must(err)
	debug.SetGCPercent(200) // as in cmd/server
	log, _ := logging.New(os.Stderr, slog.LevelInfo, false)
	rows, err := authcache.New(authcache.Config{Store: db, Log: log}) // asked once, so that it need remember nothing
	must(err)
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- rows.Run(running) }()
	principal, err := auth.NewVerifier(auth.VerifierConfig{Rows: rows, Sessions: sessions}).Verify(ctx, credential, netip.Addr{})
	must(err)
	stop()
	must(<-stopped)
	server := &http.Server{
		Handler:           api.NewUnchecked(api.Config{Store: db, Cache: rows, Log: log, MinExpire: 1}, principal),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return server.Serve(listener)
}

// startUnchecked starts our router without the check, where everybody is whose credential it is.
func startUnchecked(b *testing.B, database secret.Value, credential string) process {
	b.Helper()
	return startOther(b, roleUnchecked, caller{Database: database.Reveal(), Credential: credential})
}

// startBare starts a bare server that answers with what ours answers to the request.
func startBare(b *testing.B, ours process, request []byte) process {
	b.Helper()
	c := dial(b, ours.addr)
	defer c.close()
	header, body := c.do(b, request)
	header.Del("Date") // net/http adds it
	return startOther(b, roleBare, answer{Header: header, Body: body})
}

func startOther(b *testing.B, role string, payload any) process {
	b.Helper()
	encoded, err := json.Marshal(payload)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	log := logFile(b)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, payloadVariable+"="+string(encoded))
	cmd.Stderr, cmd.SysProcAttr = log, untilWeEnd()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := process{pid: cmd.Process.Pid}
	b.Cleanup(func() {
		p.resume()
		_ = stdin.Close()
		_ = cmd.Wait()
		_ = log.Close()
	})
	if _, err := fmt.Fscanln(stdout, &p.addr); err != nil {
		b.Fatal(err)
	}
	return p
}

// sameShape fails unless every server answers the requests with the same header fields and as many bytes as the first:
// what is compared must differ in nothing but what it costs.
func sameShape(b *testing.B, requests requests, servers ...process) {
	b.Helper()
	var want string
	for _, s := range servers {
		c := dial(b, s.addr)
		for i := range min(10, len(requests)) {
			header, body := c.do(b, requests[i*len(requests)/min(10, len(requests))])
			got := fmt.Sprintf("%d bytes", len(body))
			for _, name := range slices.Sorted(maps.Keys(header)) {
				got += fmt.Sprintf(", %s of %d", name, len(header.Get(name)))
			}
			if want == "" {
				want = got
			}
			if got != want {
				b.Fatalf("the answers differ in shape: %s, and %s", want, got)
			}
		}
		c.close()
	}
}
