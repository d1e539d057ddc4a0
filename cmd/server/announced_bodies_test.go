package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/pgtest"
)

// bodiesThatDoNotCome are headers that announce a body, with what comes of it.
var bodiesThatDoNotCome = []string{
	"Content-Length: 5\r\n\r\n",
	"Content-Length: 5\r\n\r\n{}",
	"Content-Length: 1000000000\r\n\r\n",
	"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n",
	"Transfer-Encoding: chunked\r\n\r\n",
	"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
}

// No answer waits for a body that it doesn't need: a proxy's check may have the header of a request whose body the proxy keeps. What comes
// later on such a connection is not read, since nobody knows whether it is the body or another client's request.
func TestAnnouncedBodyIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	base := served(t, pgtest.Migrated(t), nil).base()
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
			for _, body := range bodiesThatDoNotCome {
				answersAtOnce(t, base, method+" "+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testKey+"\r\n"+body, wanted)
			}
		}
	}
	// Routes that need a body refuse before they have it.
	for _, request := range []string{
		"POST /v1.0/accesskeys", "PUT /v1.0/accesskeys/" + id, "POST /auth/introspect", "PUT /v1.0/me/password", "POST /unknown", "POST /v1.0/unknown",
	} {
		for _, body := range bodiesThatDoNotCome {
			answersAtOnce(t, base, request+" HTTP/1.1\r\nHost: x\r\n"+body, 0)
		}
	}
}

// answersAtOnce sends a request of which a part is missing, and reads the answer. A read of the body would end after 15 s.
func answersAtOnce(t *testing.T, base, request string, wanted int) {
	t.Helper()
	w := dial(t, base)
	defer w.conn.Close()
	got, err := w.ask(request, 10*time.Second)
	if err != nil || wanted != 0 && got.code != wanted || !got.closes() || got.code == http.StatusContinue {
		t.Errorf("%q: %+v, %v", request, got, err)
		return
	}
	// As a proxy would that reuses the connection.
	_, _ = io.WriteString(w.conn, "00000GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
	if more, _ := io.ReadAll(w.in); len(more) > 0 {
		t.Errorf("%q: after it is answered: %q", request, more)
	}
}

// A body that has been read keeps the connection.
func TestReadBodyKeepsTheConnection(t *testing.T) {
	t.Parallel()
	w := dial(t, served(t, pgtest.Migrated(t), nil).base())
	for _, body := range []string{"Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "Content-Length: 1\r\n\r\n{"} {
		got, err := w.ask("POST /v1.0/accesskeys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testKey+"\r\n"+body, patience)
		if err != nil || got.closes() {
			t.Fatalf("%q: %v, %v", body, got, err)
		}
	}
}

// The same by HTTP/2, where a stream is open until its body has come.
func TestAnnouncedBodyIsNotWaitedForByHTTP2(t *testing.T) {
	t.Parallel()
	pair := newPair(t, 1)
	_, settings := pair.folder(t)
	base, client := "https://"+served(t, pgtest.Migrated(t), settings).addr(), pair.client()
	client.Timeout = 10 * time.Second
	for _, path := range []string{"/ping", "/auth/verify", "/v1.0/me"} {
		for _, method := range []string{"GET", "DELETE", "BREW"} {
			body, end := io.Pipe()
			r := must(http.NewRequestWithContext(t.Context(), method, base+path, body))(t)
			r.ContentLength = 5
			r.Header.Set("Authorization", "Bearer "+testKey)
			res := must(client.Do(r))(t) //nolint:bodyclose // closed in the next line, which the linter does not see behind must
			if _ = res.Body.Close(); res.ProtoMajor != 2 {
				t.Errorf("%s %s: %s", method, path, res.Proto)
			}
			_ = end.Close()
		}
	}
}

// A browser's cookies may be large, and a proxy's check has all of them.
func TestHeadersOf60KilobytesAreTaken(t *testing.T) {
	t.Parallel()
	base := served(t, pgtest.Migrated(t), nil).base()
	for kilobytes, want := range map[int]int{40: 200, 60: 200, 80: 431} {
		cookies := strings.Repeat("Cookie: c="+strings.Repeat("x", 4000)+"\r\n", kilobytes/4)
		got, err := dial(t, base).ask("GET /auth/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testKey+"\r\n"+cookies+"\r\n", patience)
		if err != nil || got.code != want {
			t.Errorf("%d kB of cookies: %+v, %v", kilobytes, got, err)
		}
	}
}

// Some answers are made before any handler is called. They are documented as what they are: plain text.
func TestAnswersThatAreNotOursArePlainText(t *testing.T) {
	t.Parallel()
	base := served(t, pgtest.Migrated(t), nil).base()
	for request, want := range map[string]int{
		"GET /ping HTTP/1.1\r\n\r\n":                                         400, // without Host
		"GET /ping HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n":                  400,
		"POST /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n":  501,
		"GET /ping HTTP/3.1\r\nHost: x\r\n\r\n":                              505,
		"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 80<<10): 431,
	} {
		got, err := dial(t, base).ask(request, patience)
		if err != nil || got.code != want || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain") || !got.closes() {
			t.Errorf("%.60q: %v, %v, want %d", request, got, err, want)
		}
	}
	// This one is ours, and an unknown route.
	got, err := dial(t, base).ask("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", patience)
	if err != nil || got.code != 404 || got.header.Get("X-Request-Id") == "" {
		t.Errorf("OPTIONS *: %v, %v", got, err)
	}
}
