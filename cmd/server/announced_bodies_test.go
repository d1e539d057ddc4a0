package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/pgtest"
)

// bodiesThatDoNotCome are headers that announce a body, with what comes of it.
var bodiesThatDoNotCome = map[string]string{
	"a length":        "Content-Length: 5\r\n\r\n",
	"a part":          "Content-Length: 5\r\n\r\n{}",
	"a large length":  "Content-Length: 1000000000\r\n\r\n",
	"chunks":          "Transfer-Encoding: chunked\r\n\r\n",
	"a part of one":   "Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
	"after a promise": "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n",
}

// No answer waits for a body that it doesn't need: a proxy's check may have the header of a request whose body the proxy keeps. What comes
// later on such a connection is not read, since nobody knows whether it is the body or another client's request.
func TestAnnouncedBodyIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	base := launch(t, environment(pgtest.Migrated(t), nil), "serve").base()
	address := strings.TrimPrefix(base, "http://")
	id := uuid.NewString()
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"} {
		for path, wanted := range map[string]int{
			"/ping": 200, "/healthz": 200, "/readyz": 200, "/metrics": 200, "/openapi.yaml": 200, "/openapi.json": 200,
			"/auth/verify": 200, "/auth/verify/some/path": 200, "/v1.0/me": 200, "/v1.0/customer": 200, "/v1.0/customers": 200, "/v1.0/agents": 200,
			"/v1.0/accesskeys": 200, "/v1.0/service_accounts": 200, "/v1.0/accesskeys/" + id: 404, "/v1.0/agents/" + id: 404,
			"/v1.0/unknown": 404, "/unknown": 404,
		} {
			if method != "GET" && !strings.HasPrefix(path, "/auth/verify") {
				wanted = 0 // any
			}
			for name, body := range bodiesThatDoNotCome {
				request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s", method, path, testKey, body)
				answersAtOnce(t, address, name, method, request, wanted)
			}
		}
	}
	// Routes that need a body refuse before they have it.
	for _, request := range []string{
		"POST /v1.0/accesskeys", "PUT /v1.0/accesskeys/" + id, "POST /auth/introspect", "PUT /v1.0/me/password", "POST /unknown", "POST /v1.0/unknown",
	} {
		for name, body := range bodiesThatDoNotCome {
			answersAtOnce(t, address, name, "POST", request+" HTTP/1.1\r\nHost: x\r\n"+body, 0)
		}
	}
}

// answersAtOnce sends a request of which a part is missing, and reads the answer. A read of the body would end after 15 s.
func answersAtOnce(t *testing.T, address, name, method, request string, wanted int) {
	t.Helper()
	line, _, _ := strings.Cut(request, "\r\n")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	answer, err := readAnswer(in, method)
	if err != nil {
		t.Errorf("%s, %s: %v", line, name, err)
		return
	}
	if wanted != 0 && answer.code != wanted || !answer.closes || answer.code == http.StatusContinue {
		t.Errorf("%s, %s: %d, which ends the connection: %t", line, name, answer.code, answer.closes)
	}
	// As a proxy would that reuses the connection.
	_, _ = io.WriteString(conn, "00000GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
	if more, _ := io.ReadAll(in); len(more) > 0 {
		t.Errorf("%s, %s: after it is answered: %q", line, name, more)
	}
}

// rawAnswer is what is told of an answer.
type rawAnswer struct {
	code   int
	closes bool
	header http.Header
}

// readAnswer reads a whole answer.
func readAnswer(in *bufio.Reader, method string) (rawAnswer, error) {
	answer, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return rawAnswer{}, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return rawAnswer{answer.StatusCode, answer.Close, answer.Header}, err
}

// A body that has been read keeps the connection.
func TestReadBodyKeepsTheConnection(t *testing.T) {
	t.Parallel()
	base := launch(t, environment(pgtest.Migrated(t), nil), "serve").base()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for _, body := range []string{"Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "Content-Length: 1\r\n\r\n{"} {
		fmt.Fprintf(conn, "POST /v1.0/accesskeys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s", testKey, body)
		if answer, err := readAnswer(in, "POST"); err != nil || answer.closes {
			t.Fatalf("%q: %v, %v", body, answer, err)
		}
	}
}

// The same by HTTP/2, where a stream is open until its body has come.
func TestAnnouncedBodyIsNotWaitedForByHTTP2(t *testing.T) {
	t.Parallel()
	_, settings := newPair(t, 1).folder(t)
	p := launch(t, environment(pgtest.Migrated(t), settings), "serve")
	conn, err := tls.Dial("tcp", strings.TrimPrefix(listening(t, p.stderr, p.ended), "http://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	beginHTTP2(conn, "")
	in, stream := bufio.NewReader(conn), uint32(1)
	for _, path := range []string{"/ping", "/auth/verify", "/v1.0/me"} {
		for _, method := range []string{"GET", "DELETE", "BREW"} {
			block := headerBlock(method, path, "content-length", "5", "authorization", "Bearer "+testKey)
			if _, err := conn.Write(frame(frameHeaders, endHeaders, stream, block)); err != nil {
				t.Fatal(err)
			}
			stream += 2
			for kind := byte(0); kind != frameHeaders; {
				if kind, err = nextFrame(in); err != nil {
					t.Fatalf("%s %s: %v", method, path, err)
				}
			}
		}
	}
}

// A browser's cookies may be large, and a proxy's check has all of them.
func TestHeadersOf60KilobytesAreTaken(t *testing.T) {
	t.Parallel()
	base := launch(t, environment(pgtest.Migrated(t), nil), "serve").base()
	for kilobytes, want := range map[int]int{40: 200, 60: 200, 80: 431} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/auth/verify", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+testKey)
		for i := range kilobytes / 4 {
			r.Header.Add("Cookie", fmt.Sprintf("c%d=%s", i, strings.Repeat("x", 4000)))
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%d kB of cookies: %s", kilobytes, answer.Status)
		}
	}
}

// Some answers are made before any handler is called. They are documented as what they are: plain text.
func TestAnswersThatAreNotOursArePlainText(t *testing.T) {
	t.Parallel()
	address := strings.TrimPrefix(launch(t, environment(pgtest.Migrated(t), nil), "serve").base(), "http://")
	for request, want := range map[string]int{
		"GET /ping HTTP/1.1\r\n\r\n":                                         400, // without Host
		"GET /ping HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n":                  400,
		"POST /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n":  501,
		"GET /ping HTTP/3.1\r\nHost: x\r\n\r\n":                              505,
		"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 80<<10): 431,
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, request)
		answer, err := readAnswer(bufio.NewReader(conn), "GET")
		if err != nil || answer.code != want || !strings.HasPrefix(answer.header.Get("Content-Type"), "text/plain") || !answer.closes {
			t.Errorf("%.60q: %v, %v, want %d", request, answer, err, want)
		}
		_ = conn.Close()
	}
	// This one is ours, and an unknown route.
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
	if answer, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil || answer.code != 404 || answer.header.Get("X-Request-Id") == "" {
		t.Errorf("OPTIONS *: %v, %v", answer, err)
	}
}
