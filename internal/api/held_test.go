package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/bcrypt"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// heldRequest is one whose head a server has read, and found the credential valid: it waits for the rest of the body.
type heldRequest struct {
	t     *testing.T
	conn  net.Conn
	reads *bufio.Reader
	rest  string
}

// hold sends a request but for the end of its body. It returns once the server reads the body, which it says by "100 Continue": with
// the answer instead where there is one already.
func (h *harness) hold(req request) (*heldRequest, *response) {
	h.t.Helper()
	body, isText := req.body.(string)
	if !isText && req.body != nil {
		raw, err := json.Marshal(req.body)
		if err != nil {
			h.t.Fatal(err)
		}
		body = string(raw)
	}
	if body == "" {
		body = "{}"
	}
	address, err := url.Parse(h.url)
	if err != nil {
		h.t.Fatal(err)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(h.t.Context(), "tcp", address.Host)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	held := &heldRequest{t: h.t, conn: conn, reads: bufio.NewReader(conn), rest: body[1:]}
	header := http.Header{"Content-Type": {"application/json"}}
	maps.Copy(header, req.header)
	held.write(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n", req.method, req.path, len(body)))
	for name, values := range header {
		held.write(name + ": " + values[0] + "\r\n")
	}
	held.write("\r\n")
	if got := held.read(); got.code != http.StatusContinue {
		return nil, &got
	}
	held.write(body[:1])
	return held, nil
}

// end sends the rest, and returns the answer.
func (held *heldRequest) end() response {
	held.t.Helper()
	held.write(held.rest)
	return held.read()
}

func (held *heldRequest) write(text string) {
	held.t.Helper()
	if _, err := io.WriteString(held.conn, text); err != nil {
		held.t.Fatal(err)
	}
}

func (held *heldRequest) read() response {
	held.t.Helper()
	res, err := http.ReadResponse(held.reads, nil)
	if err != nil {
		held.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got := response{t: held.t, code: res.StatusCode, header: res.Header}
	if res.StatusCode != http.StatusContinue {
		if got.raw, err = io.ReadAll(res.Body); err != nil {
			held.t.Fatal(err)
		}
	}
	return got
}

// contents is all that the database holds, in one hash.
func (h *harness) contents() string {
	h.t.Helper()
	conn, err := h.sql.Acquire(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Release()
	return contents(h.t, conn.Conn())
}

// late says that a request was answered so because it took too long, or met with changes: nothing was written, and it tells nothing
// more.
func (r response) late() bool {
	return r.code == http.StatusServiceUnavailable ||
		r.code == http.StatusBadRequest && strings.Contains(string(r.raw), "could not be read to its end in time")
}

// revocable is a caller with all the ways that end it, or what it may do.
type revocable struct {
	caller
	ends    map[string]revocation // after which the caller is nobody
	lessens map[string]revocation // after which it may do nothing to others
}

// revocation is one by a request of somebody else's, or by hand.
type revocation struct {
	request request
	sql     string
	args    []any
}

// way returns a way with the answer that it leaves to the caller.
func (r revocable) way(name string) (revocation, int) {
	if way, ends := r.ends[name]; ends {
		return way, http.StatusUnauthorized
	}
	return r.lessens[name], http.StatusForbidden
}

// ways are the names of all.
func (r revocable) ways() []string {
	return append(slices.Sorted(maps.Keys(r.ends)), slices.Sorted(maps.Keys(r.lessens))...)
}

// revocables make callers of all kinds that may do as much as their kind can.
func revocables() map[string]func(h *harness, customer uuid.UUID) revocable {
	del := func(table string, id any) revocation {
		return revocation{
			request{method: http.MethodDelete, path: fmt.Sprintf("/v1.0/%s/%v", table, id)},
			`UPDATE ` + table + ` SET tm_delete = now() WHERE id = $1`, []any{id},
		}
	}
	put := func(path string, body any, sql string, args ...any) revocation {
		return revocation{request{method: http.MethodPut, path: "/v1.0/" + path, body: body}, sql, args}
	}
	customerKey := func(h *harness, customer uuid.UUID) revocable {
		made := h.post("/v1.0/accesskeys", h.newAdmin(customer), `{}`).wants(200).json()
		return revocable{
			caller: caller{bearer: made["token"].(string)},
			ends:   map[string]revocation{"key deleted": del("accesskeys", made["id"]), "customer deleted": del("customers", customer)},
		}
	}
	agent := func(h *harness, customer uuid.UUID) revocable {
		a := h.newAgent(customer, auth.PermissionProjectSuperAdmin)
		key, _ := h.newBoundKey(a)
		path := "agents/" + a.ID.String()
		return revocable{
			caller: caller{bearer: h.jwtFor(a), agent: a, mine: key.ID},
			ends: map[string]revocation{
				"agent deleted": del("agents", a.ID),
				"password changed": put(path+"/password", map[string]any{"password": "another"},
					`UPDATE agents SET tm_password = tm_password + interval '1 microsecond' WHERE id = $1`, a.ID),
				"customer deleted": del("customers", customer),
			},
			lessens: map[string]revocation{
				"agent demoted": put(path+"/permission", map[string]any{"permission": 16}, `UPDATE agents SET permission = 16 WHERE id = $1`, a.ID),
			},
		}
	}
	userKey := func(h *harness, customer uuid.UUID) revocable {
		r := agent(h, customer)
		made := h.post("/v1.0/accesskeys", r.bearer, map[string]any{"agent_id": r.agent.ID}).wants(200).json()
		r.bearer = made["token"].(string)
		delete(r.ends, "password changed") // which is nothing to a key
		r.ends["key deleted"] = del("accesskeys", made["id"])
		return r
	}
	account := func(h *harness, customer uuid.UUID) revocable {
		p := h.newProgram(customer, auth.RoleCustomerAdmin)
		path := "service_accounts/" + p.account.ID.String()
		return revocable{
			caller: caller{bearer: p.token},
			ends: map[string]revocation{
				"account deleted": del("service_accounts", p.account.ID),
				"key pair deleted": {
					request{method: http.MethodDelete, path: "/v1.0/" + path + "/keys/" + p.key.ID.String()},
					`UPDATE service_account_keys SET tm_delete = now() WHERE id = $1`, []any{p.key.ID},
				},
				"customer deleted": del("customers", customer),
			},
			lessens: map[string]revocation{
				"roles taken": put(path, map[string]any{"roles": []string{}}, `UPDATE service_accounts SET roles = '{}' WHERE id = $1`, p.account.ID),
			},
		}
	}
	accountsKey := func(h *harness, customer uuid.UUID) revocable {
		r := account(h, customer)
		made := h.post("/v1.0/accesskeys", r.bearer, `{}`).wants(200).json()
		r.bearer = made["token"].(string)
		delete(r.ends, "key pair deleted") // which has signed nothing that is presented
		r.ends["key deleted"] = del("accesskeys", made["id"])
		return r
	}
	return map[string]func(*harness, uuid.UUID) revocable{
		"customer-wide key": customerKey, "agent": agent, "user key": userKey, "service account": account,
		"service account's key": accountsKey,
	}
}

// newAdmin gives a customer another admin, and returns its token.
func (h *harness) newAdmin(customer uuid.UUID) string {
	h.t.Helper()
	return h.jwtFor(h.newAgent(customer, auth.PermissionCustomerAdmin))
}

// revoke revokes by a request of somebody who may, and returns when that was answered 200.
func (h *harness) revoke(r revocation) {
	h.t.Helper()
	r.request.header = bearing(h.globex.superJWT)
	h.send(r.request).wants(http.StatusOK)
}

// withBody are the routes that read one, as rows of the matrix: every POST and PUT under /v1.0, and introspection.
func (h *harness) withBody() (rows []row) {
	h.t.Helper()
	for _, route := range append(h.routesOf(), "POST /auth/introspect") {
		method, path, _ := strings.Cut(route, " ")
		if method == http.MethodPost || method == http.MethodPut {
			rows = append(rows, row{method: method, path: path, target: "-"})
		}
	}
	return rows
}

// requestBy is what a row asks in the name of a caller.
func (h *harness) requestBy(r row, c caller, own belongings) request {
	h.t.Helper()
	w := &fixture{own: own, caller: c}
	if r.path == "/auth/introspect" {
		req := form("token=" + url.QueryEscape(h.acme.token))
		req.header.Set("Authorization", "Bearer "+c.bearer)
		return req
	}
	req := w.requestOf(r, own)
	if body, is := req.body.(map[string]any); is && r.method == http.MethodPost && r.path == "/v1.0/customers" {
		body["name"] = uuid.NewString()
	}
	return req
}

// No write of a caller takes effect once that caller's revocation has been answered, however long its body takes. Head and a part of the
// body reach one server, the caller is revoked at another, and then the rest comes: it is refused, and nothing is written. What only lessens
// the caller's rights is a 403. The control is the same request without the revocation: a 200.
func TestRequestThatIsHeldBackWritesNothingOnceItsCallerIsRevoked(t *testing.T) {
	t.Parallel()
	for kind, newCaller := range revocables() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			other := h.instance()
			tried := 0
			for _, route := range h.withBody() {
				own := h.newBelongings()
				c := newCaller(h, own.customer)
				held, refusal := h.hold(h.requestBy(route, c.caller, own))
				if refusal != nil {
					t.Fatalf("%s: %d %s", route, refusal.code, refusal.raw)
				}
				if got := held.end(); got.code == http.StatusForbidden && kind != "agent" {
					continue // this kind of caller may not do it at all
				} else if got.code != http.StatusOK {
					t.Errorf("%s, not revoked: %d %s", route, got.code, got.raw)
					continue
				}
				for _, way := range c.ways() {
					tried++
					h.holdAndRevoke(other, route, way, newCaller)
				}
			}
			if tried < 15 {
				t.Errorf("only %d cases", tried)
			}
		})
	}
}

// holdAndRevoke is one case of it, again where it took too long to tell.
func (h *harness) holdAndRevoke(other *harness, route row, way string, newCaller func(*harness, uuid.UUID) revocable) {
	h.t.Helper()
	for attempt := 1; ; attempt++ {
		own := h.newBelongings()
		c := newCaller(h, own.customer)
		revocation, want := c.way(way)
		held, refusal := h.hold(h.requestBy(route, c.caller, own))
		if refusal != nil {
			h.t.Fatalf("%s: %d %s", route, refusal.code, refusal.raw)
		}
		other.revoke(revocation)
		before := h.contents()
		got := held.end()
		written := h.contents() != before
		if route.path == "/v1.0/me/password" && want == http.StatusForbidden {
			want, written = http.StatusOK, !written // it needs no permission
		}
		if written {
			h.t.Errorf("%s, %s: %d %s, and what is written is not as it should be", route, way, got.code, got.raw)
		}
		switch {
		case got.code == want:
			return
		case !got.late():
			h.t.Errorf("%s, %s: %d %s, want %d", route, way, got.code, got.raw, want)
			return
		case attempt == 5:
			h.t.Errorf("%s, %s: %d time and again: %s", route, way, got.code, got.raw)
			return
		}
	}
}

// amid runs a request that decides, and then waits to write, while a transaction that changes rows by hand is open; that is committed
// once the request waits. It returns the answer, and what the database held after the change.
func (h *harness) amid(req request, change string, args ...any) (got response, before string) {
	h.t.Helper()
	ctx := h.t.Context()
	by, err := pgx.Connect(ctx, h.database.Reveal())
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = by.Close(context.WithoutCancel(ctx)) }()
	tx, err := by.Begin(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, change, args...); err != nil {
		h.t.Fatal(err)
	}
	before = contents(h.t, by)
	answered := make(chan response, 1)
	go func() {
		_, _, got, err := h.do(req)
		if err != nil {
			h.t.Error(err)
		}
		answered <- got
	}()
	const waiting = `SELECT count(*) > 0 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
		WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted`
	for h.text(waiting) != "true" {
		select {
		case got = <-answered: // it waits for nothing
			h.t.Errorf("%s %s did not wait for the transaction: %d %s", req.method, req.path, got.code, got.raw)
			return got, before
		default:
		}
	}
	if err := tx.Commit(ctx); err != nil {
		h.t.Fatal(err)
	}
	return <-answered, before
}

// Too, however long the write itself waits: for a lock, a connection, a process that stands still. Here the transaction that revokes the
// caller is open while the request decides, and is committed when the request waits to write.
func TestWriteThatWaitsWritesNothingOnceItsCallerIsRevoked(t *testing.T) {
	t.Parallel()
	for kind, newCaller := range revocables() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			tried := 0
			for _, route := range h.routesOf() {
				method, path, _ := strings.Cut(route, " ")
				if method == http.MethodGet {
					continue
				}
				r := row{method: method, path: path, target: "-"}
				own := h.newBelongings()
				c := newCaller(h, own.customer)
				if got := h.send(h.requestBy(r, c.caller, own)); got.code == http.StatusForbidden && kind != "agent" {
					continue // this kind of caller may not do it at all
				} else if got.code != http.StatusOK {
					t.Errorf("%s, not revoked: %d %s", r, got.code, got.raw)
					continue
				}
				ways := c.ways()
				if path != "/v1.0/accesskeys" && path != "/v1.0/agents/{id}" {
					ways = ways[tried%len(ways):][:1] // one after the other
				}
				for _, way := range ways {
					tried++
					h.changeAmid(r, way, newCaller)
				}
			}
			if tried < 12 {
				t.Errorf("only %d cases", tried)
			}
		})
	}
}

// changeAmid is one case of it, again where it took too long to tell.
func (h *harness) changeAmid(r row, way string, newCaller func(*harness, uuid.UUID) revocable) {
	h.t.Helper()
	for attempt := 1; ; attempt++ {
		own := h.newBelongings()
		c := newCaller(h, own.customer)
		revocation, want := c.way(way)
		got, before := h.amid(h.requestBy(r, c.caller, own), revocation.sql, revocation.args...)
		written := h.contents() != before
		if r.path == "/v1.0/me/password" && want == http.StatusForbidden {
			want, written = http.StatusOK, !written // it needs no permission
		}
		if r.path == "/v1.0/customers/{id}" && way == "customer deleted" && got.code == http.StatusNotFound {
			h.t.Errorf("%s: a caller that is nobody is told what there is", r)
		}
		if written {
			h.t.Errorf("%s, %s: %d %s, and what is written is not as it should be", r, way, got.code, got.raw)
		}
		switch {
		case got.code == want:
			return
		case !got.late() || attempt == 5:
			h.t.Errorf("%s, %s: %d %s, want %d", r, way, got.code, got.raw, want)
			return
		}
	}
}

// stacks are those of all goroutines.
func stacks(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// The same where a turn for a password's hash is what is waited for: the credential was valid when the whole body was there. The only
// turn is held by a login with an imported hash, which takes long, while the request waits and its caller is revoked.
//
// It looks at what goroutines do, so it runs before the tests that are parallel.
func TestRequestThatWaitsForATurnWritesNothingOnceItsCallerIsRevoked(t *testing.T) {
	h := newHarness(t, hashing(t, 1, time.Minute))
	other := h.instance()
	until := func(function string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !strings.Contains(stacks(t), function); time.Sleep(time.Millisecond) { // a look stops the fixture
			if time.Now().After(deadline) {
				t.Fatalf("nobody is in %s", function)
			}
		}
	}
	const turn, waiting = "auth.bcryptMatches(", "auth.(*turns).take("
	try := func(req request, key store.AccessKey, cost int) (got response, held bool) {
		t.Helper()
		slow := h.newBcryptAgent(uuid.NewString(), "the right one", cost)
		var requests sync.WaitGroup
		requests.Go(func() {
			_, _, _, err := h.do(request{
				method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": slow.Username, "password": "wrong"},
			})
			if err != nil {
				t.Error(err)
			}
		})
		until(turn)
		requests.Go(func() {
			var err error
			if _, _, got, err = h.do(req); err != nil {
				t.Error(err)
			}
		})
		until(waiting)
		other.delete("/v1.0/accesskeys/"+key.ID.String(), h.globex.superJWT).wants(http.StatusOK)
		before := h.contents()
		held = strings.Contains(stacks(t), turn)
		requests.Wait()
		if held && h.contents() != before {
			t.Errorf("%s %s: %d, and something was written", req.method, req.path, got.code)
		}
		return got, held
	}
	cost := 13 // how long that takes, the machine says
	for _, route := range []row{
		{method: http.MethodPost, path: "/v1.0/agents", target: "-"}, {method: http.MethodPut, path: "/v1.0/agents/{id}/password", target: "-"},
	} {
		for attempt := 1; ; attempt++ {
			own := h.newBelongings()
			key, token := h.storeKey(store.NewAccessKey{CustomerID: own.customer})
			got, held := try(h.requestBy(route, caller{bearer: token}, own), key, cost)
			if held && !got.late() {
				got.refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
				break
			}
			if attempt == 20 {
				t.Fatalf("%s: it took too long, or not long enough, each time: %d %s", route, got.code, got.raw)
			}
			if held { // for longer than a request waits
				cost = max(cost-1, bcrypt.MinCost)
			} else {
				cost = min(cost+1, 15) // the most that is accepted
			}
		}
	}
}
