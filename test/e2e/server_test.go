//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/privatepg"
	"accesskeys/internal/servertest"
)

const (
	adminName     = "admin@e2e.example"
	adminPassword = "e2e-password"
	adminKey      = "vb_EndToEndEndToEndEndToEndEndToEnd"
)

// newDatabase starts a Postgres, as durable as in production, and returns its address.
func newDatabase(t testing.TB) string {
	t.Helper()
	postgres, err := privatepg.Start(t.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: map[string]string{"max_connections": "200"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = postgres.Close() })
	return postgres.URL("postgres")
}

// server is one process of ours, that can be started again at its address.
type server struct {
	*program
	t    testing.TB
	addr string
	env  []string
}

// newServer starts a server on a database, with the admin and the key of the constants above, and waits until it is ready. env
// has further settings; the last of a name counts.
func newServer(t testing.TB, database string, env ...string) *server {
	t.Helper()
	s := &server{t: t, addr: freeAddr(t)}
	s.env = append(append(os.Environ(), "DATABASE_URL="+database, "LISTEN_ADDR="+s.addr, "JWT_SECRET="+strings.Repeat("e2e-secret", 4),
		"RATE_LIMIT_AUTH_RPS=0", "BOOTSTRAP_CUSTOMER=E2E", "BOOTSTRAP_USERNAME="+adminName, "BOOTSTRAP_PASSWORD="+adminPassword,
		"BOOTSTRAP_ACCESSKEY="+adminKey), env...)
	s.begin()
	return s
}

// begin starts the process, and waits until it is ready.
func (s *server) begin() {
	s.t.Helper()
	cmd := exec.Command(binary, "serve")
	cmd.Env = s.env
	s.program = start(s.t, "server", cmd)
	s.awaitReady()
}

func (s *server) awaitReady() {
	s.t.Helper()
	servertest.Eventually(s.t, "the server is ready", func() bool {
		if !s.running() {
			s.t.Fatalf("the server has ended: %v\n%s", s.err, s.tail())
		}
		response, err := http.Get(s.url("/readyz"))
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

func (s *server) url(path string) string { return "http://" + s.addr + path }

// answer is what came of a request.
type answer struct {
	status int // 0 where there was no answer
	header http.Header
	body   string
	err    error
}

// into decodes the body of a 200; anything else ends the test.
func (a answer) into(t testing.TB, v any) {
	t.Helper()
	if a.err != nil || a.status != http.StatusOK {
		t.Fatalf("status %d: %s, %v", a.status, a.body, a.err)
	}
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// client keeps connections, follows no redirect and sends no request twice, of which it gives up on each after a while.
func client(t testing.TB) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// call sends a request. Headers come as name and value in turns.
func call(ctx context.Context, c *http.Client, method, url, body string, headers ...string) (a answer) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := c.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(content), err}
}

// newKey is an access key of the customer's, made at a server or a proxy before it.
func newKey(t testing.TB, c *http.Client, base string) (id, token string) {
	t.Helper()
	var key struct{ ID, Token string }
	call(t.Context(), c, http.MethodPost, base+"/v1.0/accesskeys", `{"name":"e2e"}`, "Authorization", "Bearer "+adminKey).into(t, &key)
	return key.ID, key.Token
}

// deleteKey deletes a key, and returns once that was confirmed.
func deleteKey(t testing.TB, c *http.Client, base, id string) {
	t.Helper()
	a := call(t.Context(), c, http.MethodDelete, base+"/v1.0/accesskeys/"+id, "", "Authorization", "Bearer "+adminKey)
	if a.status != http.StatusOK {
		t.Fatalf("deleting a key: %s", fmt.Sprint(a))
	}
}
