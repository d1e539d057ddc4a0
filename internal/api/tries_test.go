package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/store"
)

// behindProxy has the server believe the tests' X-Forwarded-For.
func behindProxy(c *api.Config) {
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

// loginFrom is a login from an address.
func loginFrom(address, username, password string) request {
	return request{
		method: http.MethodPost, path: "/auth/login", body: map[string]string{"username": username, "password": password},
		header: http.Header{"X-Forwarded-For": {address}},
	}
}

// attack tries a username with wrong passwords from as many networks, a few at once, and returns how often each status came.
func (h *harness) attack(username string, times int) map[int]int {
	h.t.Helper()
	var requests []request
	for n := range times {
		requests = append(requests, loginFrom(fmt.Sprintf("198.18.%d.1", n), username, "a guess"))
	}
	var answers []response
	for some := range slices.Chunk(requests, 4) {
		answers = append(answers, atOnce(h.t, []*harness{h}, some...)...)
	}
	return statuses(answers)
}

// limitedBy fails the test unless this is the contract's 429 with a wait of up to a minute.
func (r response) limitedBy(whose string) response {
	r.t.Helper()
	r.refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED")
	equalJSON(r.t, []any{r.failure()["status"], r.failure()["details"]}, []any{"RESOURCE_EXHAUSTED", []any{map[string]any{"limited_by": whose}}})
	if seconds, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
		r.t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
	}
	return r
}

// Tries are also limited per username, known or not, from the 21st in a minute, wherever they come from; the answer is one.
func TestTriesOfAUsernameAreLimitedIfItExistsOrNot(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy)
	if _, err := h.store.DeleteAgent(t.Context(), store.Operator(), h.acme.plain); err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`req_[A-Z2-7]{26}`)
	var answers []string
	for what, username := range map[string]string{"known": h.acme.admin.Username, "unknown": "nobody@acme.example", "deleted": h.acme.plain.Username} {
		if codes := h.attack(username, 25); codes[401] != 20 || codes[429] != 5 {
			t.Errorf("%s: %v", what, codes)
		}
		for _, password := range []string{"a guess", tenantPassword} {
			got := h.send(loginFrom("203.0.113.1", " "+username, password)).limitedBy("username")
			answers = append(answers, id.ReplaceAllString(string(got.raw), ""))
		}
	}
	if len(slices.Compact(answers)) != 1 {
		t.Errorf("the answers differ: %s", answers)
	}
	h.login(h.globex.admin.Username).wants(200) // nobody else is hindered
	if n := h.series()[`accesskeys_login_refusals_total{reason="RATE_LIMIT_EXCEEDED"}`]; n != 3*(5+2) {
		t.Errorf("%v logins are counted as limited", n)
	}
}

// Whether a username that is limited exists can't be measured either.
//
// It measures time, so it runs before the tests that are parallel.
func TestLimitedTriesAllTakeTheSameTime(t *testing.T) {
	h := newHarness(t, behindProxy, hashing(t, 2, time.Minute))
	names := map[string]string{"known": h.acme.admin.Username, "unknown": "nobody@acme.example"}
	for _, name := range names {
		h.attack(name, 20)
	}
	attempts := map[string]func(){}
	for what, name := range names {
		attempts[what] = func() { h.send(loginFrom("203.0.113.1", name, "a guess")).limitedBy("username") }
	}
	takeTheSameTime(t, attempts, func(quickest map[string]time.Duration) bool {
		if quickest["known"] < 250*time.Millisecond || quickest["unknown"] < 250*time.Millisecond {
			t.Fatalf("quicker than a login that is refused: %v", quickest)
		}
		return (quickest["known"] - quickest["unknown"]).Abs() <= timeBound
	})
}

// fromAddress is a change of the caller's own password, from an address.
func fromAddress(address, bearer string, body map[string]any) request {
	header := bearing(bearer)
	header.Set("X-Forwarded-For", address)
	return request{method: http.MethodPut, path: "/v1.0/me/password", body: body, header: header}
}

// Networks that logged in as it within 30 days are outside of that, so that nobody locks the owner out: a /24 or a /56, on every server,
// also one that was started since.
func TestNobodyLocksAnAgentOutOfItsOwnNetworks(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy)
	agent := h.acme.admin
	from := func(server *harness, address string) response {
		t.Helper()
		return server.send(loginFrom(address, agent.Username, tenantPassword))
	}
	attacked := func(server *harness) {
		t.Helper()
		if codes := server.attack(agent.Username, 21); codes[429] == 0 || codes[401]+codes[429] != 21 {
			t.Fatalf("the attack: %v", codes)
		}
	}
	from(h, "203.0.113.7").wants(200)
	from(h, "2001:db8:1:100::7").wants(200)
	attacked(h)
	restarted := h.onDatabase(h.database, nil) // with nothing in memory
	restarted.serve(behindProxy)
	restarted.waitReady()
	attacked(restarted)
	for _, server := range []*harness{h, restarted} {
		for _, address := range []string{"203.0.113.7", "203.0.113.250", "::ffff:203.0.113.1", "2001:db8:1:100::1", "2001:db8:1:1ff:ffff::1"} {
			from(server, address).wants(200)
			server.send(loginFrom(address, agent.Username, "a guess")).refuses(401, "INVALID_CREDENTIALS")
		}
		for _, address := range []string{"203.0.112.7", "203.0.114.7", "2001:db8:1:200::7", "2001:db8:1:ff::7", "127.0.0.1"} {
			from(server, address).limitedBy("username")
		}
		// The same goes for the old password.
		jwt := h.jwtFor(agent)
		guess := map[string]any{"old_password": "a guess", "password": "another"}
		server.send(fromAddress("203.0.114.7", jwt, guess)).limitedBy("username")
		server.send(fromAddress("203.0.113.8", jwt, guess)).refuses(400, "WRONG_PASSWORD")
	}
	// It is this agent's network, and not for ever.
	if codes := h.attack(h.globex.admin.Username, 20); codes[401] != 20 {
		t.Fatalf("the attack: %v", codes)
	}
	h.send(loginFrom("203.0.113.7", h.globex.admin.Username, tenantPassword)).limitedBy("username")
	h.exec(`UPDATE login_networks SET tm_login = now() - interval '30 days'`)
	from(h, "203.0.113.7").limitedBy("username")
}

// Logins from known networks don't use up the tries of others.
func TestLoginsFromKnownNetworksDontCount(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy)
	for range 30 {
		h.send(loginFrom("203.0.113.7", h.acme.admin.Username, tenantPassword)).wants(200)
	}
	// The first one came from a network that was not known yet.
	if codes := h.attack(h.acme.admin.Username, 21); codes[401] != 19 || codes[429] != 2 {
		t.Errorf("the tries left: %v", codes)
	}
}

// "The other limits still apply": a known network is as limited by address as any.
func TestKnownNetworkIsLimitedByAddress(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy, func(c *api.Config) { c.AuthLimit = slow })
	login := loginFrom("203.0.113.7", h.acme.admin.Username, tenantPassword)
	h.send(login).wants(200)
	h.send(login).wants(200)
	equalJSON(t, h.send(login).refuses(429, "RATE_LIMIT_EXCEEDED").failure()["details"], []any{map[string]any{"limited_by": "ip"}})
}

// Where a login's network can't be noted, or not soon, it is a login all the same. So it is where there is no address.
func TestLoginDoesNotFailForItsNetwork(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy)
	rows := func() string { return h.text(`SELECT count(*) FROM login_networks`) }
	login := loginFrom("203.0.113.7", h.acme.admin.Username, tenantPassword)
	warned := func(times int) {
		t.Helper()
		if n := strings.Count(h.log.String(), "the network of a login could not be noted"); n != times {
			t.Errorf("%d warnings, want %d: %s", n, times, h.log.String())
		}
	}

	h.send(login).wants(200)
	h.exec(`UPDATE login_networks SET tm_login = tm_login - interval '2 minutes'`)
	tx, err := h.sql.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT set_config('idle_in_transaction_session_timeout', '5s', true) FROM login_networks FOR UPDATE`)
	}
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	h.send(login).wants(200)
	if took := time.Since(started); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	warned(1)

	h.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '53100'; END $$`)
	h.exec(`CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON login_networks FOR EACH ROW EXECUTE FUNCTION refuse()`)
	elsewhere := loginFrom("198.51.100.7", h.acme.admin.Username, tenantPassword)
	h.get("/v1.0/me", h.send(elsewhere).wants(200).json()["token"].(string)).wants(200)
	warned(2)
	h.exec(`DROP TRIGGER refuse ON login_networks`)

	before := rows()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/auth/login",
		strings.NewReader(`{"username":"`+h.acme.admin.Username+`","password":"`+tenantPassword+`"}`))
	r.RemoteAddr = "@" // of a Unix socket
	w := httptest.NewRecorder()
	h.server.ServeHTTP(w, r)
	if w.Code != 200 || rows() != before {
		t.Errorf("without an address: %d, %s networks, there were %s", w.Code, rows(), before)
	}
	warned(2)
}

// Admins of other customers can't learn usernames by 409 faster than that: of 20 names a minute a customer learns that they are taken, by
// whichever of its credentials, making agents or renaming them, and then of none that it is free either.
func TestTakenUsernamesAreToldToACustomerAsRarelyAsTries(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	taken := h.globex.admin.Username
	create := func(bearer, username string) response {
		t.Helper()
		return h.post("/v1.0/agents", bearer, map[string]any{"username": username, "password": "p"})
	}
	plain := "/v1.0/agents/" + h.acme.plain.ID.String()
	rename := func(bearer, username string) response {
		t.Helper()
		return h.put(plain, bearer, map[string]any{"username": username})
	}
	for n := range 20 {
		create(h.acme.adminJWT, fmt.Sprintf("free %d", n)).wants(200) // doesn't count
		rename(h.acme.token, fmt.Sprintf("renamed %d", n)).wants(200)
		switch n % 4 {
		case 0:
			create(h.acme.adminJWT, strings.ToUpper(taken)).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
		case 1:
			create(h.acme.token, taken).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
		default:
			rename(h.acme.adminJWT, taken).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
		}
	}
	before := h.text(`SELECT count(*) FROM agents`)
	for _, username := range []string{taken, "nobody has this"} {
		create(h.acme.adminJWT, username).limitedBy("customer")
		create(h.acme.token, username).limitedBy("customer")
		rename(h.acme.adminJWT, username).limitedBy("customer")
	}
	if after := h.text(`SELECT count(*) FROM agents`); after != before {
		t.Errorf("%s agents, there were %s", after, before)
	}
	// All else goes on: a fetched agent can be sent back, and other customers make agents.
	h.put(plain, h.acme.adminJWT, h.get(plain, h.acme.adminJWT).wants(200).json()).wants(200)
	h.put(plain, h.acme.adminJWT, `{"name":"another"}`).wants(200)
	create(h.globex.adminJWT, "globex's").wants(200)
	create(h.globex.adminJWT, h.acme.admin.Username).conflicts("ALREADY_EXISTS", "USERNAME_TAKEN")
}

// Nor does it learn more by asking for many at once.
func TestTakenUsernamesAreNotToldFasterAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	rename := request{
		method: http.MethodPut, path: "/v1.0/agents/" + h.acme.plain.ID.String(), body: map[string]any{"username": h.globex.admin.Username},
		header: bearing(h.acme.adminJWT),
	}
	if counts := statuses(atOnce(t, []*harness{h}, slices.Repeat([]request{rename}, 60)...)); counts[409] != 20 || counts[429] != 40 {
		t.Errorf("answers: %v", counts)
	}
}
