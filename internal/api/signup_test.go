package api_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/mail"
	"accesskeys/internal/mailtest"
	"accesskeys/internal/secret"
)

// signups is a harness whose sign-ups' mails go to a real mail server.
type signups struct {
	*harness
	mail *mailtest.Server
}

func newSignups(t *testing.T, options ...func(*api.Config)) signups {
	t.Helper()
	server := mailtest.Start(t, mailtest.Options{})
	mailer, err := mail.NewSMTP(secret.New("smtp://"+server.Addr), "no-reply@keys.example")
	if err != nil {
		t.Fatal(err)
	}
	mailed := func(cfg *api.Config) { cfg.Mailer = mailer }
	return signups{newHarness(t, append([]func(*api.Config){mailed}, options...)...), server}
}

// ask sends a sign-up of this address.
func (s signups) ask(email string) response {
	s.t.Helper()
	return s.send(signingUp(email))
}

func signingUp(email string) request {
	return request{method: http.MethodPost, path: "/auth/signup", body: map[string]any{"email": email, "accepted_tos": true}}
}

// begin begins a sign-up and reads its code from the mail.
func (s signups) begin(email string) auth.Signup {
	s.t.Helper()
	before := len(s.mail.To(email))
	token := s.ask(email).wants(http.StatusOK).json()["temp_token"].(string)
	mails := s.mail.To(email)
	if len(mails) != before+1 || mails[before].Code() == "" {
		s.t.Fatalf("mails to %s: %v", email, mails)
	}
	return auth.Signup{TempToken: secret.New(token), Code: secret.New(mails[before].Code())}
}

func completion(token, code string) request {
	return request{method: http.MethodPost, path: "/auth/complete-signup", body: map[string]any{"temp_token": token, "code": code}}
}

func completionOf(secrets auth.Signup) request {
	return completion(secrets.TempToken.Reveal(), secrets.Code.Reveal())
}

func (s signups) complete(secrets auth.Signup) response {
	s.t.Helper()
	return s.send(completionOf(secrets))
}

// other is the same sign-up with the n-th code after its own.
func other(secrets auth.Signup, n int) auth.Signup {
	var code int
	if _, err := fmt.Sscanf(secrets.Code.Reveal(), "%d", &code); err != nil {
		panic(err)
	}
	secrets.Code = secret.New(fmt.Sprintf("%06d", (code+n)%1_000_000))
	return secrets
}

// anonymous is an answer without what differs from each to each.
func anonymous(r response) string {
	header := maps.Clone(r.header)
	for _, name := range []string{"X-Request-Id", "Date"} {
		header.Set(name, "")
	}
	body := strings.ReplaceAll(string(r.raw), r.header.Get("X-Request-Id"), "")
	if token, ok := r.json()["temp_token"].(string); ok {
		body = strings.ReplaceAll(body, token, strings.Repeat("x", len(token)))
	}
	return fmt.Sprint(r.code, header, body)
}

// POST /auth/complete-signup answers {"customer_id", "accesskey": {... "token"}}; what it makes works at once, on every instance, and is as
// far from the other customers as any.
func TestSignupMakesACustomerWithAKey(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	token := s.post("/auth/signup", "", map[string]any{
		"email": "ada@new.example", "accepted_tos": true, "name": "Ada Inc.", "detail": "by hand", "campaign": "ignored",
	}).wants(http.StatusOK).json()["temp_token"].(string)
	if len(token) != 35 || !strings.HasPrefix(token, "su_") {
		t.Errorf("temp token %q", token)
	}
	got := s.instance().send(completion(token, s.mail.To("ada@new.example")[0].Code())).wants(http.StatusOK).json()
	key := got["accesskey"].(map[string]any)
	plain := key["token"].(string)
	create := key["tm_create"]
	equalJSON(t, got, map[string]any{
		"customer_id": key["customer_id"],
		"accesskey": map[string]any{
			"id": key["id"], "customer_id": key["customer_id"], "agent_id": nil, "name": "Default", "detail": "", "token": plain,
			"token_prefix": plain[:11], "tm_create": create, "tm_update": create, "tm_delete": sentinel,
			"tm_last_used": nil, "created_by": nil, "tm_expire": stamp(parseTime(t, create).AddDate(0, 0, 365)),
		},
	})
	customer := s.get("/v1.0/customer", plain).wants(http.StatusOK).json()
	equalJSON(t, customer, map[string]any{
		"id": got["customer_id"], "name": "Ada Inc.", "detail": "by hand", "email": "ada@new.example",
		"tm_create": create, "tm_update": create, "tm_delete": sentinel,
	})
	// It is the customer's admin, and nobody else's.
	s.post("/v1.0/agents", plain, map[string]any{"username": "ada", "password": "a long pass phrase", "permission": 32}).wants(http.StatusOK)
	s.get("/v1.0/accesskeys/"+s.acme.key.ID.String(), plain).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	s.get("/v1.0/accesskeys/"+key["id"].(string), s.acme.token).refuses(http.StatusForbidden, "PERMISSION_DENIED")

	// Without a name it is the address.
	unnamed := s.complete(s.begin("Bob@New.example")).wants(http.StatusOK).json()["accesskey"].(map[string]any)["token"].(string)
	if customer := s.get("/v1.0/customer", unnamed).json(); customer["name"] != "Bob@New.example" || customer["email"] != "Bob@New.example" {
		t.Errorf("customer %v", customer)
	}
}

// The answer to signup never tells whether the address is known: not by its body, its headers or what it waits for. The temp token of a
// known one completes nothing.
func TestSignupTellsNobodyWhoIsACustomer(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	const known = "POST@Acme.example" // in other case than the customer has it
	unknown := s.ask("nobody@acme.example").wants(http.StatusOK)
	asked := s.ask(known)
	if got, want := anonymous(asked), anonymous(unknown); got != want {
		t.Errorf("known   %s\nunknown %s", got, want)
	}
	if len(s.mail.To(known)) != 1 || s.mail.To(known)[0].Code() != "" || s.mail.To("nobody@acme.example")[0].Code() == "" {
		t.Errorf("mails %v", s.mail.Mails())
	}
	if s.mail.Dials() != 2 {
		t.Errorf("%d mails' time was taken for two answers", s.mail.Dials())
	}
	// Even with the right code, had anyone one.
	secrets := auth.Signup{TempToken: secret.New(asked.json()["temp_token"].(string)), Code: secret.New("271828")}
	hash := secrets.CodeHash()
	s.exec(`UPDATE signups SET code_hash = $1 WHERE email = $2`, hash[:], known)
	s.complete(secrets).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.exec(`UPDATE customers SET email = ''`)
	s.complete(secrets).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.exec(`UPDATE signups SET known = false`)
	s.complete(secrets).wants(http.StatusOK) // the control: nothing else kept it

	// A customer that is deleted is none.
	s.exec(`UPDATE customers SET tm_delete = now(), email = 'gone@acme.example' WHERE id = $1`, s.globex.customer.ID)
	s.complete(s.begin("gone@acme.example")).wants(http.StatusOK)
}

// A mail server that is down is a 503 for everybody alike, and what it never sent does not count.
func TestSignupWithoutAMailServerIsA503(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	s.mail.Answer("MAIL", 451)
	unknown := s.ask("nobody@acme.example").refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	known := s.ask("post@acme.example")
	if anonymous(known) != anonymous(unknown) || unknown.header.Get("Retry-After") == "" {
		t.Errorf("known   %s\nunknown %s", anonymous(known), anonymous(unknown))
	}
	for range 4 {
		s.ask("nobody@acme.example").refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	}
	if left := s.text(`SELECT count(*) FROM signups`); left != "0" {
		t.Errorf("%s sign-ups are left", left)
	}
	s.mail.Answer("MAIL", 0)
	s.complete(s.begin("nobody@acme.example")).wants(http.StatusOK)

	// A recipient that the mail server refuses is no news to the client.
	taken := s.ask("bob@new.example").wants(http.StatusOK)
	s.mail.Answer("RCPT", 550)
	for _, email := range []string{"carol@new.example", "post@globex.example"} {
		if got := s.ask(email); anonymous(got) != anonymous(taken) {
			t.Errorf("%s: %s", email, anonymous(got))
		}
	}
	dead := s.onStoreAt(deadAddress(t))
	dead.send(signingUp("dora@new.example")).refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	dead.send(completion("su_x", "123456")).refuses(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
}

// 5 tries: the sixth code is not looked at, be it the right one.
func TestOnlyFiveCodesMayBeTried(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	four, five, many := s.begin("four@new.example"), s.begin("five@new.example"), s.begin("many@new.example")
	elsewhere := s.instance()
	for n := range 4 {
		s.complete(other(four, n+1)).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
		elsewhere.send(completionOf(other(five, n+1))).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	}
	s.complete(other(five, 5)).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.complete(five).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.complete(four).wants(http.StatusOK)

	// At once, too: of twenty wrong codes and then the right one, none gets through.
	var wrong []request
	for n := range 20 {
		wrong = append(wrong, completionOf(other(many, n+1)))
	}
	if codes := statuses(atOnce(t, []*harness{s.harness}, wrong...)); codes[http.StatusBadRequest] != len(wrong) {
		t.Errorf("answers %v", codes)
	}
	if tries := s.text(`SELECT tries FROM signups WHERE email = 'many@new.example'`); tries != "5" {
		t.Errorf("%s tries", tries)
	}
	s.complete(many).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
}

// They "live 15 minutes", by the clock of the database, are refused then, as TestRefusedCompletionsAllLookTheSame shows, and go away.
func TestSignupEndsAfterFifteenMinutes(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	s.begin("early@new.example")
	if lives := s.text(`SELECT tm_expire - tm_create FROM signups`); lives != "00:15:00" {
		t.Errorf("it lives for %s", lives)
	}
	// Those that have expired are cleared away by the next, a bounded number at a time, and the others stay.
	s.exec(`INSERT INTO signups (id, temp_token_hash, code_hash, email, name, known, tm_expire)
		SELECT gen_random_uuid(), sha256(n::text::bytea), sha256('x'), 'x@new.example', 'x', false, now() - interval '1 s'
		FROM generate_series(1, 150) n`)
	for _, want := range []string{"52", "3"} { // 1 + 150 - 100 + 1, and then no expired one
		s.begin("next@new.example")
		if left := s.text(`SELECT count(*) FROM signups`); left != want {
			t.Errorf("%s sign-ups are left, want %s", left, want)
		}
	}
}

// A sign-up completes once, whatever is sent at the same time; of an address there is one customer at most.
func TestSignupCompletesOnce(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	servers := []*harness{s.harness, s.instance()}
	race := func(sent ...auth.Signup) (won int) {
		var requests []request
		for _, secrets := range sent {
			requests = append(requests, completionOf(secrets))
		}
		codes := statuses(atOnce(t, servers, requests...))
		if codes[http.StatusOK]+codes[http.StatusBadRequest] != len(sent) {
			t.Errorf("answers %v", codes)
		}
		return codes[http.StatusOK]
	}
	one := s.begin("one@new.example")
	if won := race(one, one, one, one); won != 1 {
		t.Errorf("a sign-up was completed %d times", won)
	}
	s.complete(one).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	first, second, third := s.begin("two@new.example"), s.begin("Two@New.example"), s.begin("TWO@new.example")
	if won := race(first, second, third); won != 1 {
		t.Errorf("three sign-ups of one address were completed %d times", won)
	}
	if made := s.text(`SELECT count(*) || ' ' || count(DISTINCT lower(c.email)) FROM customers c JOIN accesskeys k ON k.customer_id = c.id
		WHERE lower(c.email) LIKE '%@new.example'`); made != "2 2" {
		t.Errorf("customers and addresses: %s", made)
	}
}

// All that can be wrong with temp token and code looks the same.
func TestRefusedCompletionsAllLookTheSame(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	used, expired, tried, live := s.begin("used@new.example"), s.begin("expired@new.example"), s.begin("tried@new.example"), s.begin("live@new.example")
	s.complete(used).wants(http.StatusOK)
	s.exec(`UPDATE signups SET tm_expire = now() WHERE email = 'expired@new.example'`)
	s.exec(`UPDATE signups SET tries = 5 WHERE email = 'tried@new.example'`)
	mixed := auth.Signup{TempToken: live.TempToken, Code: other(live, 1).Code}
	want := anonymous(s.complete(mixed).refuses(http.StatusBadRequest, "INVALID_SIGNUP"))
	for name, req := range map[string]auth.Signup{
		"used": used, "expired": expired, "tried": tried, "unknown": auth.NewSignup(),
		"no token": {TempToken: secret.New("x"), Code: live.Code}, "no code": {TempToken: live.TempToken, Code: secret.New("x")},
		"another's code": {TempToken: live.TempToken, Code: secret.New(used.TempToken.Reveal())},
		"spaces":         {TempToken: live.TempToken, Code: secret.New(" " + live.Code.Reveal())},
	} {
		if got := anonymous(s.complete(req)); got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	s.complete(live).wants(http.StatusOK) // the fifth try
}
