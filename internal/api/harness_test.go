package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	document "accesskeys/api"
	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/changelog"
	"accesskeys/internal/lastused"
	"accesskeys/internal/mail"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// The secrets of every harness. They are long enough and otherwise arbitrary.
const (
	jwtSecret         = "the-current-secret-of-the-tests-0123456789"
	jwtSecretPrevious = "the-previous-secret-of-the-tests-012345678"
)

// harness is the real router on a real database, with two customers in it: whatever one may do, the other must not feel.
type harness struct {
	t        *testing.T
	url      string // of the server
	database secret.Value
	sql      *pgxpool.Pool // for exec and text
	store    *store.Store
	server   *api.Server
	rows     *authcache.Cache // of the server
	tokens   *auth.TokenCache // nil without a cache
	lastUsed *lastused.Buffer
	sessions *auth.Sessions
	log      *servertest.Log

	acme   tenant
	globex tenant
}

// tenant is a customer with one caller of each kind.
type tenant struct {
	customer store.Customer
	admin    store.Agent // CustomerAdmin
	plain    store.Agent // CustomerAgent: may manage no keys
	super    store.Agent // ProjectSuperAdmin
	key      store.AccessKey
	token    string // of key

	adminJWT, plainJWT, superJWT string
}

// cheapHashes cost next to nothing: hashing as the program does took a third of all tests' time. Tests of how long a hash takes, or
// who waits for one, use hashing.
var cheapHashes = auth.HashCost{Memory: 64, Passes: 1, Lanes: 1}

const tenantPassword = "correct horse battery staple"

// tenantHash is its hash, made once: it is slow on purpose.
var tenantHash = sync.OnceValue(func() secret.Value {
	passwords, err := auth.NewPasswords(1, time.Minute, cheapHashes)
	if err != nil {
		panic(err)
	}
	hash, err := passwords.Hash(context.Background(), secret.New(tenantPassword))
	if err != nil {
		panic(err)
	}
	return hash
})

// newHarness starts one. options change its configuration.
func newHarness(t *testing.T, options ...func(*api.Config)) *harness {
	t.Helper()
	h := &harness{t: t, database: pgtest.Migrated(t), log: &servertest.Log{}}
	var err error
	if h.store, err = store.Open(t.Context(), h.database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.store.Close)
	h.connect()
	if h.sessions, err = auth.NewSessions(secret.New(jwtSecret), secret.New(jwtSecretPrevious)); err != nil {
		t.Fatal(err)
	}
	h.serve(options...)
	h.waitReady()
	hash := tenantHash()
	h.acme = h.newTenant("acme", hash)
	h.globex = h.newTenant("globex", hash)
	return h
}

// hashing is a server whose hashes cost what the program's do, so many at once.
func hashing(t *testing.T, atOnce int, wait time.Duration) func(*api.Config) {
	t.Helper()
	sessions, err := auth.NewSessions(secret.New(jwtSecret), secret.Value{})
	if err != nil {
		t.Fatal(err)
	}
	passwords, err := auth.NewPasswords(atOnce, wait, auth.DefaultHashCost())
	if err != nil {
		t.Fatal(err)
	}
	return func(c *api.Config) {
		c.Passwords, c.Authenticator = passwords, auth.NewAuthenticator(c.Store, sessions, passwords, c.Log)
	}
}

// serve starts the server on the harness's store, with a cache unless an option has it otherwise.
func (h *harness) serve(options ...func(*api.Config)) {
	h.t.Helper()
	passwords, err := auth.NewPasswords(2, 10*time.Second, cheapHashes)
	if err != nil {
		h.t.Fatal(err)
	}
	keyPairs, err := auth.NewKeyPairs(2, 10*time.Second)
	if err != nil {
		h.t.Fatal(err)
	}
	if h.rows == nil {
		h.rows = newCache(h.t, h.store, 2*time.Second)
	}
	if h.tokens == nil && h.rows.Stats().Lease > 0 {
		if h.tokens, err = auth.NewTokenCache(1 << 20); err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(h.tokens.Close)
	}
	if h.lastUsed == nil {
		h.lastUsed = lastused.New(h.store, slog.New(slog.DiscardHandler))
	}
	log := slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := api.Config{
		Store:         h.store,
		Cache:         h.rows,
		Tokens:        h.tokens,
		Verifier:      auth.NewVerifier(auth.VerifierConfig{Rows: h.rows, Sessions: h.sessions, Tokens: h.tokens, LastUsed: h.lastUsed}),
		Authenticator: auth.NewAuthenticator(h.store, h.sessions, passwords, log),
		Passwords:     passwords,
		KeyPairs:      keyPairs,
		CustomerTurns: auth.NewCustomerTurns(10 * time.Second),
		Mailer:        mail.NewLog(slog.New(slog.DiscardHandler)),
		Log:           log,
		MinExpire:     1,
	}
	for _, option := range options {
		option(&cfg)
	}
	h.server = api.New(cfg)
	listening := httptest.NewServer(h.server)
	h.t.Cleanup(listening.Close)
	h.url = listening.URL
}

// waitReady returns once the server has a lease, as a balancer waits for /readyz: until it has, its store keeps what it can for that.
func (h *harness) waitReady() {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := h.rows.Ready(h.t.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatal(err)
		}
	}
}

// newCache runs an instance until the test ends.
func newCache(t *testing.T, s *store.Store, lease time.Duration) *authcache.Cache {
	t.Helper()
	return newAgingCache(t, s, lease, 0)
}

// newAgingCache is newCache with an age in which rows are read again.
func newAgingCache(t *testing.T, s *store.Store, lease, maxAge time.Duration) *authcache.Cache {
	t.Helper()
	r, err := authcache.New(authcache.Config{Store: s, Log: slog.New(slog.DiscardHandler), Lease: lease, MaxAge: maxAge, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (h *harness) newTenant(name string, hash secret.Value) tenant {
	h.t.Helper()
	ctx := h.t.Context()
	customer, err := h.store.CreateCustomer(ctx, store.Operator(), store.NewCustomer{Name: name, Email: "post@" + name + ".example"})
	if err != nil {
		h.t.Fatal(err)
	}
	tn := tenant{customer: customer}
	agent := func(role string, permission auth.Permission) (store.Agent, string) {
		h.t.Helper()
		a, err := h.store.CreateAgent(ctx, store.Operator(), store.NewAgent{
			CustomerID: customer.ID, Username: role + "@" + name + ".example", PasswordHash: hash, Name: role,
			Permission: int64(permission),
		})
		if err != nil {
			h.t.Fatal(err)
		}
		return a, h.jwtFor(a)
	}
	tn.admin, tn.adminJWT = agent("admin", auth.PermissionCustomerAdmin)
	tn.plain, tn.plainJWT = agent("plain", auth.PermissionCustomerAgent)
	tn.super, tn.superJWT = agent("super", auth.PermissionProjectSuperAdmin)
	tn.key, tn.token = h.newKey(customer, 3600)
	return tn
}

// newKey makes a key through the store and returns its token too.
func (h *harness) newKey(c store.Customer, expire int64) (store.AccessKey, string) {
	h.t.Helper()
	token := auth.NewAccessToken()
	key, err := h.store.CreateAccessKey(h.t.Context(), store.Operator(), store.NewAccessKey{
		CustomerID: c.ID, Name: "of " + c.Name, TokenHash: token.Hash(), TokenPrefix: token.Prefix(), Expire: expire,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return key, token.Reveal()
}

// jwtFor gives an agent a token as a login would, without the password.
func (h *harness) jwtFor(a store.Agent) string {
	h.t.Helper()
	c := h.agentCredential(a.ID)
	token, err := h.sessions.Issue(c.Agent, c.Now)
	if err != nil {
		h.t.Fatal(err)
	}
	return token.Reveal()
}

// agentCredential is an agent as the database has it now.
func (h *harness) agentCredential(id uuid.UUID) store.AgentCredential {
	h.t.Helper()
	found, err := h.store.Lookup(h.t.Context(), store.Lookup{Agents: []uuid.UUID{id}}, changelog.Position{}, store.HeadFirst)
	if err != nil {
		h.t.Fatal(err)
	}
	c, there := found.Agents[id]
	if !there {
		h.t.Fatalf("there is no agent %s", id)
	}
	return c
}

// connect makes ready the connection of exec and text: one for all calls of a test, which may be hundreds, and opened at
// the first.
func (h *harness) connect() {
	h.t.Helper()
	cfg, err := pgxpool.ParseConfig(h.database.Reveal())
	if err != nil {
		h.t.Fatal(err)
	}
	cfg.MaxConns = 1
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec // nothing is kept that a changed schema spoils
	if h.sql, err = pgxpool.NewWithConfig(h.t.Context(), cfg); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(h.sql.Close)
}

// exec runs SQL on the harness's database, for what no method of the store does.
// It returns when every server on the database has applied what it has changed.
func (h *harness) exec(sql string, args ...any) {
	h.t.Helper()
	ctx := h.t.Context()
	if _, err := h.sql.Exec(ctx, sql, args...); err != nil {
		h.t.Fatal(err)
	}
	for behind := true; behind; {
		err := h.sql.QueryRow(ctx, `SELECT EXISTS (SELECT FROM instances i, change_head h WHERE i.position < h.position)`).Scan(&behind)
		if err != nil {
			return // the schema is not what it was
		}
	}
}

// text reads one value of the harness's database, as Postgres writes it.
func (h *harness) text(sql string, args ...any) string {
	h.t.Helper()
	var value string
	if err := h.sql.QueryRow(h.t.Context(), `SELECT (`+sql+`)::text`, args...).Scan(&value); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// instance is another server, with its own connections, on the same database.
func (h *harness) instance() *harness {
	h.t.Helper()
	other := h.onDatabase(h.database, func(other *harness) { other.log = &servertest.Log{} })
	other.waitReady()
	return other
}

// uncached is another server, which asks the database each time.
func (h *harness) uncached() *harness {
	h.t.Helper()
	return h.onDatabase(h.database, func(other *harness) {
		other.log = &servertest.Log{}
		other.rows = newCache(h.t, other.store, 0)
	})
}

// onDatabase is another server on a database, wherever that is. with prepares it before it is served.
func (h *harness) onDatabase(database secret.Value, with func(other *harness)) *harness {
	h.t.Helper()
	other := *h
	other.rows, other.tokens, other.lastUsed, other.database = nil, nil, nil, database
	var err error
	if other.store, err = store.Open(h.t.Context(), database); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(other.store.Close)
	if with != nil {
		with(&other)
	}
	other.serve()
	return &other
}

// request is what to send. A string body is sent as it is, any other is encoded.
type request struct {
	method string
	path   string // with its query
	body   any
	header http.Header
}

// response is what came back, read to its end.
type response struct {
	t      *testing.T
	code   int
	header http.Header
	raw    []byte
	closes bool // the connection
}

// send sends a request and holds the answer, and what was accepted of requests, against the OpenAPI document.
func (h *harness) send(req request) response {
	h.t.Helper()
	r, sent, got, err := h.do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	conforms(h.t, r, sent, got)
	return got
}

// do sends a request and reads the answer to its end. Unlike send it may be called from any goroutine.
func (h *harness) do(req request) (r *http.Request, sent []byte, got response, err error) {
	var body io.Reader
	switch b := req.body.(type) {
	case nil:
	case string:
		sent = []byte(b)
	default:
		if sent, err = json.Marshal(b); err != nil {
			return nil, nil, got, err
		}
	}
	if req.body != nil {
		body = bytes.NewReader(sent)
	}
	if r, err = http.NewRequestWithContext(h.t.Context(), req.method, h.url+req.path, body); err != nil {
		return nil, nil, got, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(r.Header, req.header)
	res, err := noRedirects().Do(r)
	if err != nil {
		return nil, nil, got, err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	// Every answer in JSON ends in a newline. The tests look at what comes before.
	if raw = bytes.TrimSuffix(raw, []byte("\n")); err == nil && res.Header.Get("Content-Type") == "application/json" && res.ContentLength == int64(len(raw)) && len(raw) > 0 {
		h.t.Errorf("%s %s: no newline after %s", req.method, req.path, raw)
	}
	return r, sent, response{t: h.t, code: res.StatusCode, header: res.Header, raw: raw, closes: res.Close}, err
}

func noRedirects() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (h *harness) get(path, bearer string) response {
	h.t.Helper()
	return h.send(request{method: http.MethodGet, path: path, header: bearing(bearer)})
}

func (h *harness) post(path, bearer string, body any) response {
	h.t.Helper()
	return h.send(request{method: http.MethodPost, path: path, body: body, header: bearing(bearer)})
}

func (h *harness) put(path, bearer string, body any) response {
	h.t.Helper()
	return h.send(request{method: http.MethodPut, path: path, body: body, header: bearing(bearer)})
}

func (h *harness) delete(path, bearer string) response {
	h.t.Helper()
	return h.send(request{method: http.MethodDelete, path: path, header: bearing(bearer)})
}

// bearing is the header with a Bearer credential, without one where it is empty.
func bearing(credential string) http.Header {
	if credential == "" {
		return http.Header{}
	}
	return http.Header{"Authorization": {"Bearer " + credential}}
}

// json decodes the body.
func (r response) json() map[string]any {
	r.t.Helper()
	var body map[string]any
	if err := json.Unmarshal(r.raw, &body); err != nil {
		r.t.Fatalf("body %q: %v", r.raw, err)
	}
	return body
}

// wants fails the test unless this is a success with this status.
func (r response) wants(code int) response {
	r.t.Helper()
	if r.code != code {
		r.t.Fatalf("status %d, want %d; body %s", r.code, code, r.raw)
	}
	return r
}

// refuses fails the test unless this is an error with this status and reason, in the contract's envelope.
func (r response) refuses(code int, reason string) response {
	r.t.Helper()
	if r.code != code {
		r.t.Fatalf("status %d, want %d %s; body %s", r.code, code, reason, r.raw)
	}
	if r.header.Get("Content-Type") != "application/json" {
		r.t.Fatalf("Content-Type %q, want application/json", r.header.Get("Content-Type"))
	}
	envelope, ok := r.json()["error"].(map[string]any)
	if !ok || envelope["reason"] != reason {
		r.t.Fatalf("body %s, want reason %s", r.raw, reason)
	}
	if envelope["request_id"] != r.header.Get("X-Request-Id") || envelope["request_id"] == "" {
		r.t.Fatalf("request_id %v, X-Request-Id %q", envelope["request_id"], r.header.Get("X-Request-Id"))
	}
	return r
}

// specification is the document and its router, loaded once: both are read only.
var specification = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(document.OpenAPI)
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// conforms holds a request that was accepted, and every answer, against the OpenAPI document. What it does not describe
// (unknown routes and methods, HEAD, OPTIONS) has only the error envelope to keep to, which refuses checks.
func conforms(t *testing.T, r *http.Request, sent []byte, got response) {
	t.Helper()
	router, err := specification()
	if err != nil {
		t.Fatalf("the OpenAPI document: %v", err)
	}
	route, params, err := router.FindRoute(r)
	if err != nil {
		return
	}
	clone := r.Clone(context.Background())
	clone.Body = io.NopCloser(bytes.NewReader(sent))
	input := &openapi3filter.RequestValidationInput{
		Request: clone, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	if got.code < 400 {
		if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s %s was accepted, but is not as documented: %v", r.Method, r.URL.Path, err)
		}
	}
	output := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: got.code, Header: got.header, Options: input.Options,
	}
	output.SetBodyBytes(got.raw)
	if err := openapi3filter.ValidateResponse(t.Context(), output); err != nil {
		t.Errorf("the answer to %s %s is not as documented: %v", r.Method, r.URL.Path, err)
	}
}

// logLine returns the one log line with this request id. A line is written after its answer, so it may have to be waited for.
func (h *harness) logLine(requestID string) (fields map[string]any) {
	h.t.Helper()
	servertest.Eventually(h.t, "there is a log line with request id "+requestID, func() bool {
		for line := range strings.Lines(h.log.String()) {
			fields = nil
			if json.Unmarshal([]byte(line), &fields) == nil && fields["request_id"] == requestID {
				return true
			}
		}
		return false
	})
	return fields
}

// parseTime reads a timestamp of the wire's one form.
func parseTime(t *testing.T, v any) time.Time {
	t.Helper()
	s, _ := v.(string)
	parsed, err := time.Parse("2006-01-02T15:04:05.000000Z", s)
	if err != nil {
		t.Fatalf("timestamp %v: %v", v, err)
	}
	return parsed
}

// equalJSON compares whole bodies.
func equalJSON(t *testing.T, got, want any) {
	t.Helper()
	gotText, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	wantText, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(gotText, wantText) {
		t.Errorf("got  %s\nwant %s", gotText, wantText)
	}
}
