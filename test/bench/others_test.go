//go:build bench

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// A bare server beside ours is this binary, run again with an answer of ours in this variable.
const bareVariable = "BENCH_BARE"

// answer is one of ours, as the bare server repeats it.
type answer struct {
	Header http.Header
	Body   []byte
}

// serveBare gives the same answer to everything until standard input ends, having printed its address. It reads what it is sent, as any
// server must.
func serveBare(encoded string) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var a answer
	must(json.Unmarshal([]byte(encoded), &a))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Println(listener.Addr())
	go func() {
		must(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			maps.Copy(w.Header(), a.Header)
			_, _ = w.Write(a.Body)
		})))
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// unchecked takes the check out of the server: who sends the first request sends every other.
var unchecked = []servertest.Edit{
	{File: "internal/authn/authn.go", Text: "	\"net/http\"\n\n", Instead: "	\"net/http\"\n	\"sync/atomic\"\n\n"},
	{
		File: "internal/authn/authn.go", Text: "func eventOf(r *http.Request) *event {",
		Instead: "var unchecked atomic.Pointer[auth.Principal]\n\nfunc eventOf(r *http.Request) *event {",
	},
	{
		File: "internal/authn/authn.go",
		Text: "			credential, err := auth.Extract(r.URL.RawQuery, r.Header[\"Authorization\"])\n",
		Instead: "			if p := unchecked.Load(); p != nil {\n				eventOf(r).principal = p\n				next.ServeHTTP(w, r)\n				return\n			}\n" +
			"			credential, err := auth.Extract(r.URL.RawQuery, r.Header[\"Authorization\"])\n",
	},
	{
		File: "internal/authn/authn.go", Text: "ev.principal, ev.authenticator, ev.credential = &ev.verified, a, credential\n",
		Instead: "ev.principal, ev.authenticator, ev.credential = &ev.verified, a, credential\n			p := ev.verified\n			unchecked.Store(&p)\n",
	},
}

// uncheckedDir is what TestMain removes; "" before uncheckedBinary.
var uncheckedDir string

// uncheckedBinary builds that server, once.
var uncheckedBinary = sync.OnceValues(func() (path string, err error) {
	if uncheckedDir, err = os.MkdirTemp("", "bench"); err != nil {
		return "", err
	}
	overlay, err := servertest.Overlay("../..", uncheckedDir, unchecked, nil)
	if err != nil {
		return "", err
	}
	path = filepath.Join(uncheckedDir, "unchecked")
	return path, servertest.Build(context.Background(), path, "-ldflags=-s -w", overlay)
})

// startUnchecked starts our server without the check, where everybody is whose credential it is.
func startUnchecked(b *testing.B, database secret.Value, credential string) process {
	b.Helper()
	path := servertest.Must(uncheckedBinary())(b)
	s := startBinary(b, path, database)
	c := dial(b, s.addr)
	defer c.close()
	c.do(b, []byte("GET /v1.0/me HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "+credential+"\r\n\r\n"))
	return s.process
}

// startBare starts a bare server that answers with what ours answers to the request.
func startBare(b *testing.B, ours process, request []byte) process {
	b.Helper()
	c := dial(b, ours.addr)
	defer c.close()
	header, body := c.do(b, request)
	header.Del("Date") // net/http adds it
	encoded := servertest.Must(json.Marshal(answer{header, body}))(b)
	cmd := exec.Command(servertest.Must(os.Executable())(b))
	cmd.Env = append(os.Environ(), bareVariable+"="+string(encoded))
	cmd.Stderr = os.Stderr
	stdin, stdout := servertest.Must(cmd.StdinPipe())(b), servertest.Must(cmd.StdoutPipe())(b)
	servertest.OK(b, servertest.StartChild(cmd)) // or one that is paused might stay behind
	p := process{pid: cmd.Process.Pid}
	b.Cleanup(func() {
		p.resume()
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	servertest.Must(fmt.Fscanln(stdout, &p.addr))(b)
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
