//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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

// newPostgres starts a Postgres, as durable as in production.
func newPostgres(t testing.TB, maxConnections string) *privatepg.Server {
	t.Helper()
	parameters := map[string]string{"max_connections": maxConnections}
	postgres := servertest.Must(privatepg.Start(t.Context(), privatepg.Config{Getenv: os.Getenv, Parameters: parameters}))(t)
	t.Cleanup(func() { _ = postgres.Close() })
	return postgres
}

func newDatabase(t testing.TB) string {
	t.Helper()
	return newPostgres(t, "200").URL("postgres")
}

// server is one process of ours, that can be started again at its address.
type server struct {
	*program
	t      testing.TB
	binary string
	addr   string
	env    []string
	client *http.Client
	socket *os.File // that it inherits, if any
}

// prepared is a server on a database, with the admin and the key of the constants above, that is not started yet. env has further
// settings; the last of a name counts.
func prepared(t testing.TB, binary, database string, env ...string) *server {
	t.Helper()
	s := &server{t: t, binary: binary, addr: freeAddr(t), client: client(t)}
	s.env = append(append(os.Environ(), "DATABASE_URL="+database, "LISTEN_ADDR="+s.addr, "JWT_SECRET="+strings.Repeat("e2e-secret", 4),
		"RATE_LIMIT_AUTH_RPS=0", "BOOTSTRAP_CUSTOMER=E2E", "BOOTSTRAP_USERNAME="+adminName, "BOOTSTRAP_PASSWORD="+adminPassword,
		"BOOTSTRAP_ACCESSKEY="+adminKey), env...)
	return s
}

// newServer starts such a server, and waits until it is ready.
func newServer(t testing.TB, database string, env ...string) *server {
	t.Helper()
	s := prepared(t, binary, database, env...)
	s.begin()
	return s
}

// begin starts the process, and waits until it is ready.
func (s *server) begin() {
	s.t.Helper()
	s.start()
	s.awaitReady()
}

func (s *server) start() {
	s.t.Helper()
	cmd := exec.Command(s.binary, "serve")
	cmd.Env = s.env
	if s.socket != nil {
		cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, s.binary)
		cmd.Env = append(s.env, "LISTEN_FDS=1", "LISTEN_ADDR=") // which has to be of no account
		cmd.ExtraFiles = []*os.File{s.socket}
	}
	s.program = servertest.Start(s.t, "server", cmd)
}

func (s *server) awaitReady() {
	s.t.Helper()
	s.Await(s.t, "the server is ready", func() bool { return s.call(http.MethodGet, "/readyz", "", "").status == http.StatusOK })
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
	return read(response)
}

func read(response *http.Response) answer {
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(content), err}
}

// exchange sends the bytes of a request, or the rest of one, and reads the answer; last says that the connection is of no use any more.
func exchange(conn net.Conn, in *bufio.Reader, request string) (a answer, last bool) {
	if _, err := io.WriteString(conn, request); err != nil {
		return answer{err: fmt.Errorf("sending: %w", err)}, true
	}
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return answer{err: fmt.Errorf("reading the answer: %w", err)}, true
	}
	a = read(response)
	return a, response.Close || a.err != nil
}

// call sends a request, with a credential where there is one.
func (s *server) call(method, path, credential, body string) answer {
	var headers []string
	if credential != "" {
		headers = bearer(credential)
	}
	// Not under the test's context: what was sent when that ends still has an outcome.
	return call(context.WithoutCancel(s.t.Context()), s.client, method, s.url(path), body, headers...)
}

// me is the status of a request with a credential.
func (s *server) me(credential string) int {
	return s.call(http.MethodGet, "/v1.0/me", credential, "").status
}

// api sends a request whose answer has to be a 200, and decodes that.
func (s *server) api(t testing.TB, method, path, credential, body string, into any) {
	t.Helper()
	s.call(method, path, credential, body).into(t, into)
}

// made is what was made: a key or another resource.
type made struct {
	ID, Token  string
	CustomerID string `json:"customer_id"`
	TmExpire   string `json:"tm_expire"`
}

// make makes a resource, as the admin.
func (s *server) make(t testing.TB, path, body string) (m made) {
	t.Helper()
	s.api(t, http.MethodPost, path, adminKey, body, &m)
	return m
}

// newKey is an access key of the customer's.
func (s *server) newKey(t testing.TB) (id, token string) {
	t.Helper()
	key := s.make(t, "/v1.0/accesskeys", `{"name":"e2e"}`)
	return key.ID, key.Token
}

// delete deletes something as the admin, and returns once that was confirmed.
func (s *server) delete(t testing.TB, path string) {
	t.Helper()
	s.api(t, http.MethodDelete, path, adminKey, "", &struct{}{})
}

func (s *server) deleteKey(t testing.TB, id string) {
	t.Helper()
	s.delete(t, "/v1.0/accesskeys/"+id)
}

// keys are the ids of all keys that the server lists.
func (s *server) keys(t testing.TB) map[string]bool {
	t.Helper()
	ids := map[string]bool{}
	for token := ""; ; {
		var page struct {
			Result []struct{ ID string }
			Next   *string `json:"next_page_token"`
		}
		s.api(t, http.MethodGet, "/v1.0/accesskeys?page_size=100&page_token="+url.QueryEscape(token), adminKey, "", &page)
		for _, key := range page.Result {
			ids[key.ID] = true
		}
		if page.Next == nil {
			return ids
		}
		token = *page.Next
	}
}

func (s *server) login(t testing.TB, username, password string) string {
	t.Helper()
	return s.make(t, "/auth/login", fmt.Sprintf(`{"username":%q,"password":%q}`, username, password)).Token
}

// signed is a token of a service account's that the server's own program signs, by a key pair that is made for it; keyID is that one's.
func (s *server) signed(t testing.TB, account string) (token, keyID string) {
	t.Helper()
	var pair struct {
		KeyID string `json:"key_id"`
	}
	a := s.call(http.MethodPost, "/v1.0/service_accounts/"+account+"/keys", adminKey, "")
	a.into(t, &pair)
	file := filepath.Join(folder(t), "credentials.json")
	write(t, file, a.body)
	output, err := exec.CommandContext(t.Context(), s.binary, "token", "sign", "--credentials", file).Output()
	token, found := strings.CutPrefix(strings.TrimSpace(string(output)), "Authorization: Bearer ")
	if err != nil || !found {
		t.Fatalf("token sign: %v, %q", err, output)
	}
	return token, pair.KeyID
}
