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
	conn, err := (&net.Dialer{}).DialContext(h.t.Context(), "tcp", address.Host)
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

// revocable is a caller with all the ways that end it, or what it may do to others.
type revocable struct {
	caller
	ways map[string]revocation
}

// revocation is one by a request of somebody else's, or by hand.
type revocation struct {
	request request
	sql     string
	args    []any
	answer  int // that it leaves to the caller: 401, or 403 where the caller is somebody still
}

// revocables make callers of all kinds that may do as much as their kind can.
func revocables() map[string]func(h *harness, customer uuid.UUID) revocable {
	del := func(table string, id any) revocation {
		path := fmt.Sprintf("/v1.0/%s/%v", table, id)
		return revocation{
			request{method: http.MethodDelete, path: path}, `UPDATE ` + table + ` SET tm_delete = now() WHERE id = $1`, []any{id}, 401,
		}
	}
	put := func(path, body, sql string, id uuid.UUID, answer int) revocation {
		return revocation{request{method: http.MethodPut, path: "/v1.0/" + path, body: body}, sql, []any{id}, answer}
	}
	customerKey := func(h *harness, customer uuid.UUID) revocable {
		made, token := h.madeBy(h.newAdmin(customer), uuid.Nil)
		return revocable{caller{bearer: token}, map[string]revocation{
			"key deleted": del("accesskeys", made["id"]), "customer deleted": del("customers", customer),
		}}
	}
	agent := func(h *harness, customer uuid.UUID) revocable {
		a := h.newAgent(customer, auth.PermissionProjectSuperAdmin)
		key, _ := h.newBoundKey(a)
		path := "agents/" + a.ID.String()
		return revocable{caller{bearer: h.jwtFor(a), agent: a, mine: key.ID}, map[string]revocation{
			"agent deleted": del("agents", a.ID),
			"password changed": put(path+"/password", `{"password":"another"}`,
				`UPDATE agents SET tm_password = tm_password + interval '1 microsecond' WHERE id = $1`, a.ID, 401),
			"customer deleted": del("customers", customer),
			"agent demoted":    put(path+"/permission", `{"permission":16}`, `UPDATE agents SET permission = 16 WHERE id = $1`, a.ID, 403),
		}}
	}
	account := func(h *harness, customer uuid.UUID) revocable {
		p := h.newProgram(customer, auth.RoleCustomerAdmin)
		path := "service_accounts/" + p.account.ID.String()
		pair := del("service_account_keys", p.key.ID)
		pair.request.path = "/v1.0/" + path + "/keys/" + p.key.ID.String()
		return revocable{caller{bearer: p.token}, map[string]revocation{
			"account deleted":  del("service_accounts", p.account.ID),
			"key pair deleted": pair,
			"customer deleted": del("customers", customer),
			"roles taken":      put(path, `{"roles":[]}`, `UPDATE service_accounts SET roles = '{}' WHERE id = $1`, p.account.ID, 403),
		}}
	}
	// keyOf is a key that such a caller makes, which ends with it, and not by what is nothing to a key.
	keyOf := func(maker func(*harness, uuid.UUID) revocable, except string) func(*harness, uuid.UUID) revocable {
		return func(h *harness, customer uuid.UUID) revocable {
			r := maker(h, customer)
			made, token := h.madeBy(r.bearer, r.agent.ID)
			r.bearer = token
			delete(r.ways, except)
			r.ways["key deleted"] = del("accesskeys", made["id"])
			return r
		}
	}
	return map[string]func(*harness, uuid.UUID) revocable{
		"customer-wide key": customerKey, "agent": agent, "user key": keyOf(agent, "password changed"), "service account": account,
		"service account's key": keyOf(account, "key pair deleted"),
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

// attempt is a way to write while one's rights end.
type attempt struct {
	alone  func(request) response                                  // the control: nothing is revoked
	amid   func(request, revocation) (got response, before string) // with what the database held after the revocation
	every  func(row) bool                                          // are all ways to revoke tried on this route; else one after the other
	routes []row
}

// writeWhileRevoked has each kind of caller write, on each route that it may use, while it is revoked: it is refused, and nothing is written.
// What only lessens the caller's rights is a 403. The control is the same request without the revocation: a 200.
func writeWhileRevoked(t *testing.T, atLeast int, attemptOf func(h *harness) attempt) {
	t.Helper()
	for kind, newCaller := range revocables() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			a := attemptOf(h)
			tried := 0
			for _, route := range a.routes {
				own := h.newBelongings()
				c := newCaller(h, own.customer)
				if got := a.alone(h.requestBy(route, c.caller, own)); got.code == http.StatusForbidden && kind != "agent" {
					continue // this kind of caller may not do it at all
				} else if got.code != http.StatusOK {
					t.Errorf("%s, not revoked: %d %s", route, got.code, got.raw)
					continue
				}
				ways := slices.Sorted(maps.Keys(c.ways))
				if !a.every(route) {
					ways = ways[tried%len(ways):][:1]
				}
				for _, way := range ways {
					tried++
					h.tryWhileRevoked(a, route, way, newCaller)
				}
			}
			if tried < atLeast {
				t.Errorf("only %d cases", tried)
			}
		})
	}
}

// tryWhileRevoked is one case of it, again where it took too long to tell.
func (h *harness) tryWhileRevoked(a attempt, route row, way string, newCaller func(*harness, uuid.UUID) revocable) {
	h.t.Helper()
	for tries := 1; ; tries++ {
		own := h.newBelongings()
		c := newCaller(h, own.customer)
		want := c.ways[way].answer
		got, before := a.amid(h.requestBy(route, c.caller, own), c.ways[way])
		written := h.contents() != before
		if route.path == "/v1.0/me/password" && want == http.StatusForbidden {
			want, written = http.StatusOK, !written // it needs no permission
		}
		if written {
			h.t.Errorf("%s, %s: %d %s, and what is written is not as it should be", route, way, got.code, got.raw)
		}
		if got.code == want {
			return
		}
		if !got.late() || tries == 5 {
			h.t.Errorf("%s, %s: %d %s, want %d", route, way, got.code, got.raw, want)
			return
		}
	}
}

// No write of a caller takes effect once that caller's revocation has been answered, however long its body takes. Head and a part of the
// body reach one server, the caller is revoked at another, and then the rest comes.
func TestRequestThatIsHeldBackWritesNothingOnceItsCallerIsRevoked(t *testing.T) {
	t.Parallel()
	writeWhileRevoked(t, 15, func(h *harness) attempt {
		other := h.instance()
		hold := func(req request) *heldRequest {
			held, refusal := h.hold(req)
			if refusal != nil {
				h.t.Fatalf("%s %s: %d %s", req.method, req.path, refusal.code, refusal.raw)
			}
			return held
		}
		return attempt{
			alone: func(req request) response { return hold(req).end() },
			amid: func(req request, way revocation) (response, string) {
				held := hold(req)
				other.revoke(way)
				before := h.contents()
				return held.end(), before
			},
			every:  func(row) bool { return true },
			routes: h.withBody(),
		}
	})
}

// later sends a request, whose answer comes by the channel.
func (h *harness) later(req request) <-chan response {
	answered := make(chan response, 1)
	go func() {
		_, _, got, err := h.do(req)
		if err != nil {
			h.t.Error(err)
		}
		answered <- got
	}()
	return answered
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
	answered := h.later(req)
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
	writeWhileRevoked(t, 12, func(h *harness) attempt {
		var writes []row
		for _, route := range h.routesOf() {
			if method, path, _ := strings.Cut(route, " "); method != http.MethodGet {
				writes = append(writes, row{method: method, path: path, target: "-"})
			}
		}
		return attempt{
			alone:  h.send,
			amid:   func(req request, way revocation) (response, string) { return h.amid(req, way.sql, way.args...) },
			every:  func(r row) bool { return r.path == "/v1.0/accesskeys" || r.path == "/v1.0/agents/{id}" },
			routes: writes,
		}
	})
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
		// A look stops the program.
		for deadline := time.Now().Add(time.Minute); !strings.Contains(stacks(t), function); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nobody is in %s", function)
			}
		}
	}
	const turn, waiting = "auth.bcryptMatches(", "auth.(*turns).take("
	try := func(req request, key store.AccessKey, cost int) (got response, held bool) {
		t.Helper()
		slow := h.newBcryptAgent(uuid.NewString(), "the right one", cost)
		login := h.later(request{
			method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": slow.Username, "password": "wrong"},
		})
		until(turn)
		answered := h.later(req)
		until(waiting)
		other.delete("/v1.0/accesskeys/"+key.ID.String(), h.globex.superJWT).wants(http.StatusOK)
		before := h.contents()
		held = strings.Contains(stacks(t), turn)
		<-login
		got = <-answered
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
