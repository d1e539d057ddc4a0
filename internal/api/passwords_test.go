package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// newBcryptAgent makes an agent as it is imported from VoIPBIN.
func (h *harness) newBcryptAgent(username, password string, cost int) store.Agent {
	h.t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		h.t.Fatal(err)
	}
	a, err := h.store.CreateAgent(h.t.Context(), store.Operator(), store.NewAgent{
		CustomerID: h.acme.customer.ID, Username: username, PasswordHash: secret.New(string(hash)), Permission: 32,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// Contract, section 2: a login with an imported bcrypt hash works, renews it, and goes on working; tokens stay good.
func TestBcryptPasswordLogsInAndIsRenewed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	longest := strings.Repeat("p", 72)
	for name, password := range map[string]string{"short": "s3cret", "longest": longest, "non-ascii": "пароль-ñ-😀"} {
		agent := h.newBcryptAgent(name+"@acme.example", password, bcrypt.MinCost)
		hash := func() string { return h.text(`SELECT password_hash FROM agents WHERE id = $1`, agent.ID) }
		login := func(password string) response { return h.loginWith(agent.Username, password) }
		imported := hash()
		login(password+"x").refuses(401, "INVALID_CREDENTIALS") // of 73 bytes bcrypt itself reads 72
		login(password[1:]).refuses(401, "INVALID_CREDENTIALS")
		if hash() != imported {
			t.Errorf("%s: a refused login changed the hash", name)
		}
		first := login(password).wants(200).json()["token"].(string)
		renewed := hash()
		if !strings.HasPrefix(imported, "$2") || !strings.HasPrefix(renewed, "$argon2id$v=19$"+cheapHashes.String()+"$") {
			t.Errorf("%s: the hash was %.7s, and is %.30s after a login", name, imported, renewed)
		}
		login(password).wants(200)
		login(password+"x").refuses(401, "INVALID_CREDENTIALS")
		if hash() != renewed {
			t.Errorf("%s: an up-to-date hash was renewed", name)
		}
		h.accepts(first) // a renewed hash is no changed password
	}
}

// A database's clock that was ahead when a password was set, or is behind since: a login works at once, and its token is accepted, on
// every server. Tokens of before stay refused, also where two passwords are set while the clock stands still or goes back: tm_password
// moves on whatever the clock says.
func TestPasswordThatWasSetByAClockAheadLogsInAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	admin := h.acme.admin
	works := func(token string, code int) {
		t.Helper()
		h.get("/v1.0/me", token).wants(code)
		other.get("/v1.0/me", token).wants(code)
	}
	before := h.login(admin.Username).wants(200).json()["token"].(string)
	works(before, 200)
	h.exec(`UPDATE agents SET tm_password = now() + interval '400 days' WHERE id = $1`, admin.ID)
	works(before, 401)
	old := []string{before}
	set := h.text(`SELECT tm_password FROM agents WHERE id = $1`, admin.ID)
	for range 3 {
		token := h.login(admin.Username).wants(200).json()["token"].(string)
		works(token, 200)
		h.put("/v1.0/agents/"+admin.ID.String()+"/password", h.acme.superJWT, map[string]any{"password": tenantPassword}).wants(200)
		if moved := h.text(`SELECT tm_password > $2::timestamptz FROM agents WHERE id = $1`, admin.ID, set); moved != "true" {
			t.Errorf("tm_password stays at %s, or goes back", set)
		}
		set = h.text(`SELECT tm_password FROM agents WHERE id = $1`, admin.ID)
		old = append(old, token)
		for _, token := range old {
			works(token, 401)
		}
	}
	own := h.login(admin.Username).wants(200).json()["token"].(string)
	h.put("/v1.0/me/password", own, map[string]any{"old_password": tenantPassword, "password": "another"}).wants(200)
	works(own, 401)
	works(h.loginWith(admin.Username, "another").wants(200).json()["token"].(string), 200)
	h.accepts(h.acme.plainJWT) // nobody else's
}

// Contract, section 1: 503 UNAVAILABLE: a flood of logins waits for its turn, and then is told to come back; it is never a 401.
func TestLoginsBeyondTheBoundAreToldToComeBack(t *testing.T) {
	t.Parallel()
	h := newHarness(t, hashing(t, 1, time.Millisecond))
	login := request{method: "POST", path: "/auth/login", body: map[string]string{"username": h.acme.admin.Username, "password": tenantPassword}}
	answers := atOnce(t, []*harness{h}, slices.Repeat([]request{login}, 16)...)
	for _, answer := range answers {
		if answer.code != http.StatusOK {
			unavailable(t, answer)
			if answer.header.Get("Cache-Control") != "no-store" {
				t.Errorf("headers %v", answer.header)
			}
		}
	}
	if granted := statuses(answers)[200]; granted == 0 || granted == len(answers) {
		t.Errorf("of %d logins at once %d were granted, want some to be told to come back", len(answers), granted)
	}
	h.login(h.acme.admin.Username).wants(200)
}

// timeBound is by how much answers that are to take the same time may differ.
const timeBound = 30 * time.Millisecond

// takeTheSameTime has attempts take turns, until the quickest of each are alike. What others do on the machine only ever adds to a time. More
// rounds shrink such noise, but no true difference; there are as many as a username has tries.
func takeTheSameTime(t *testing.T, attempts map[string]func(), alike func(quickest map[string]time.Duration) bool) {
	t.Helper()
	const fewest, most = 4, 20
	quickest := map[string]time.Duration{}
	for round := 1; ; round++ {
		for what, attempt := range attempts {
			started := time.Now()
			attempt()
			if took := time.Since(started); quickest[what] == 0 || took < quickest[what] {
				quickest[what] = took
			}
		}
		if alike(quickest) && round >= fewest {
			return
		}
		if round == most {
			t.Fatalf("they are told apart, or the control is not: %v", quickest)
		}
	}
}

// Contract, section 2: Unknown user, wrong password and deleted user get one answer, in the same time, whatever the hash.
//
// It measures time, so it runs before the tests that are parallel.
func TestRefusedLoginsAllTakeTheSameTime(t *testing.T) {
	h := newHarness(t, hashing(t, 2, time.Minute))
	h.newBcryptAgent("bcrypt@acme.example", "the right one", bcrypt.MinCost)
	if _, err := h.store.DeleteAgent(t.Context(), store.Operator(), h.acme.plain); err != nil {
		t.Fatal(err)
	}
	refused := map[string][2]string{
		"unknown":      {"nobody@acme.example", "wrong"},
		"wrong":        {h.acme.admin.Username, "wrong"},
		"deleted":      {h.acme.plain.Username, tenantPassword},
		"wrong bcrypt": {"bcrypt@acme.example", "wrong"},
	}
	attempts := map[string]func(){"granted": func() { h.login(h.acme.admin.Username).wants(200) }}
	for what, a := range refused {
		attempts[what] = func() { h.loginWith(a[0], a[1]).refuses(401, "INVALID_CREDENTIALS") }
	}
	takeTheSameTime(t, attempts, func(quickest map[string]time.Duration) bool {
		var times []time.Duration
		for what := range refused {
			times = append(times, quickest[what])
		}
		// The control: a login that is granted need not wait, so this measurement must see a difference there.
		control := slices.Min(times)-quickest["granted"] > timeBound
		return slices.Max(times)-slices.Min(times) <= timeBound && control
	})
}

// A password is the same one however a device composes its letters.
func TestPasswordMayBeTypedOnAnotherDevice(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i, spellings := range [][2]string{{"caf\u00e9 noir", "cafe\u0301\u00a0noir"}, {"cafe\u0301\u2003noir", "caf\u00e9 noir"}} {
		username := fmt.Sprintf("user%d", i)
		h.post("/v1.0/agents", h.acme.adminJWT, map[string]any{"username": username, "password": spellings[0]}).wants(200)
		h.loginWith(username, spellings[1]).wants(200) // the other device first
		h.loginWith(username, spellings[0]).wants(200)
		for _, other := range []string{"cafe noir", "CAF\u00c9 NOIR", "caf\u00e9 noir ", "caf\u00e9noir"} {
			h.loginWith(username, other).refuses(401, "INVALID_CREDENTIALS")
		}
	}
}
