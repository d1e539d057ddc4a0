package api_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/api"
	"accesskeys/internal/servertest"
	"accesskeys/internal/web"
)

// No stranger floods a mailbox: while three sign-ups of an address live there are no more mails to it, in whatever case it
// is written and however many ask at once; the answer stays the same, for known addresses too.
func TestAddressGetsOnlySoManyMails(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	for _, known := range []string{"flood@new.example", "post@acme.example"} {
		usual := anonymous(s.ask(known).wants(http.StatusOK))
		for _, got := range atOnce(t, []*harness{s.harness}, slices.Repeat([]request{signingUp(known), signingUp(strings.ToUpper(known))}, 6)...) {
			if anonymous(got) != usual {
				t.Errorf("answer %s, want %s", anonymous(got), usual)
			}
		}
		if mails := len(s.mail.To(known)) + len(s.mail.To(strings.ToUpper(known))); mails != 3 {
			t.Errorf("%d mails to %s", mails, known)
		}
	}
	beyond := s.ask("flood@new.example").wants(http.StatusOK).json()["temp_token"].(string)
	s.send(completion(beyond, s.mail.Mails()[0].Code())).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.begin("flood@else.example") // nobody else is hindered
	s.exec(`UPDATE signups SET tm_expire = now() WHERE lower(email) = 'flood@new.example'`)
	s.begin("flood@new.example")
}

// By hanging up once the mail is taken, nobody gets the sign-up uncounted, and so any number of mails.
func TestHangingUpDoesNotTakeASignupBack(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	release := s.mail.Hold()
	defer release()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/auth/signup", strings.NewReader(`{"email":"bob@new.example","accepted_tos":true}`))
	if err != nil {
		t.Fatal(err)
	}
	var asked sync.WaitGroup
	asked.Go(func() {
		if res, err := http.DefaultClient.Do(r); err == nil {
			t.Errorf("status %d before the mail server's word", res.StatusCode)
			_ = res.Body.Close()
		}
	})
	ended := func() bool { return strings.Contains(s.log.String(), `"route":"/auth/signup"`) }
	servertest.Eventually(t, "the mail comes", func() bool { return len(s.mail.Mails()) == 1 })
	hangUp()
	asked.Wait()
	// The time in which a server that heeds it would have given up.
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); runtime.Gosched() {
		if ended() {
			t.Fatal("the request ended with its client")
		}
	}
	release()
	servertest.Eventually(t, "the request ends", ended)
	if rows := s.text(`SELECT count(*) FROM signups`); rows != "1" {
		t.Errorf("%s sign-ups count", rows)
	}
}

// What a sign-up may hold. An address that could smuggle something into a mail is none.
func TestSignupTellsWhatIsWrongWithItsBody(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	const address = "must be an email address such as ada@example.com" // which are, mail has the tests of
	detail := func(field, message string) map[string]any { return map[string]any{"field": field, "message": message} }
	long := fmt.Sprintf(`"name":"%s","detail":"%s"`, strings.Repeat("é", 256), strings.Repeat("é", 4097))
	for body, want := range map[string][]any{
		`{}`:                                  {detail("email", "is required"), detail("accepted_tos", "must be true")},
		`{"email":null}`:                      {detail("email", "is required"), detail("accepted_tos", "must be true")},
		`{"email":1,"accepted_tos":true}`:     {detail("email", "must be a string")},
		`{"email":"","accepted_tos":true}`:    {detail("email", "must not be empty")},
		`{"email":"ada","accepted_tos":true}`: {detail("email", address)},
		`{"email":"a@b.example\r\nBcc: c@d.example","accepted_tos":true}`:  {detail("email", address)},
		`{"email":"a@b.example\n","accepted_tos":true}`:                    {detail("email", address)},
		`{"email":"a@b.example\u0000","accepted_tos":true}`:                {detail("email", "must not contain the character NUL")},
		`{"email":"` + strings.Repeat("a", 256) + `","accepted_tos":true}`: {detail("email", "must have at most 255 characters")},
		`{"email":"a@b.example"}`:                                          {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","accepted_tos":false}`:                     {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","accepted_tos":"true"}`:                    {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","accepted_tos":1}`:                         {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","accepted_tos":null}`:                      {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","Accepted_TOS":true}`:                      {detail("accepted_tos", "must be true")},
		`{"email":"a@b.example","accepted_tos":true,"name":""}`:            {detail("name", "must not be empty")},
		`{"email":"a@b.example","accepted_tos":true,"name":1,"detail":[]}`: {detail("name", "must be a string"), detail("detail", "must be a string")},
		`{"email":"a@b.example","accepted_tos":true,` + long + `}`: {
			detail("name", "must have at most 255 characters"), detail("detail", "must have at most 4096 characters"),
		},
	} {
		got := s.post("/auth/signup", "", body).refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
		equalJSON(t, got.failure()["details"], want)
	}
	for body, want := range map[string][]any{
		`{}`:                                     {detail("temp_token", "is required"), detail("code", "is required")},
		`{"temp_token":"su_x","code":null}`:      {detail("code", "is required")},
		`{"temp_token":"","code":""}`:            {detail("temp_token", "must not be empty"), detail("code", "must not be empty")},
		`{"temp_token":"su_x","code":12345}`:     {detail("code", "must be a string")},
		`{"temp_token":"su_x","code":"1\u0000"}`: {detail("code", "must not contain the character NUL")},
		fmt.Sprintf(`{"temp_token":"%s","code":"123456"}`, strings.Repeat("a", 65)): {detail("temp_token", "must have at most 64 characters")},
	} {
		got := s.post("/auth/complete-signup", "", body).refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
		equalJSON(t, got.failure()["details"], want)
	}
	for _, path := range []string{"/auth/signup", "/auth/complete-signup"} {
		for _, body := range []string{"", "[]", "null", `{"email":"a@b.example","email":"c@d.example","accepted_tos":true}`, "{} {}"} {
			s.post(path, "", body).refuses(http.StatusBadRequest, "INVALID_JSON_BODY")
		}
		s.post(path, "", `{"x":"`+strings.Repeat("x", 64<<10)+`"}`).refuses(http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE")
	}
	if mails, rows := s.mail.Dials(), s.text(`SELECT count(*) FROM signups`); mails != 0 || rows != "0" {
		t.Errorf("%d mails, %s sign-ups", mails, rows)
	}
	longest := strings.Repeat("é", 255)
	s.post("/auth/signup", "", map[string]any{
		"email": "a@b.example", "accepted_tos": true, "name": longest, "detail": strings.Repeat("é", 4096),
	}).wants(http.StatusOK)
}

// Off unless SIGNUP=true: then both routes are as unknown as any other, by whatever method.
func TestSignupRoutesAreUnknownWhereNobodyMaySignUp(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(cfg *api.Config) { cfg.Mailer = nil })
	for _, path := range []string{"/auth/signup", "/auth/complete-signup", "/auth/none"} {
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
			h.send(request{method: method, path: path, body: `{"email":"a@b.example","accepted_tos":true}`}).
				refuses(http.StatusNotFound, "ROUTE_NOT_FOUND")
		}
	}
	on := newSignups(t)
	on.ask("a@b.example").wants(http.StatusOK)
	on.get("/auth/signup", "").refuses(http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED")
}

// Signing up counts against the same limit as logging in.
func TestSigningUpIsLimitedByAddress(t *testing.T) {
	t.Parallel()
	s := newSignups(t, func(cfg *api.Config) { cfg.AuthLimit = web.Limit{RPS: 0.001, Burst: 3} })
	s.ask("a@b.example").wants(http.StatusOK)
	s.send(completion("su_x", "123456")).refuses(http.StatusBadRequest, "INVALID_SIGNUP")
	s.login("x").refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	s.ask("a@b.example").refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED")
	s.send(completion("su_x", "123456")).refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED")
	if s.mail.Dials() != 1 {
		t.Errorf("%d mails", s.mail.Dials())
	}
}

// Codes, temp tokens and the key that comes of them are in no log line, table, metric or other answer; the code can't even
// be found out from its hash.
func TestSignupSecretsShowInNoSink(t *testing.T) {
	t.Parallel()
	s := newSignups(t)
	a := &aviary{harness: s.harness}
	secrets := s.begin("ada@new.example")
	waiting := s.begin("bob@new.example")
	token := waiting.TempToken.Reveal()
	for _, req := range []request{
		completion(token, other(waiting, 1).Code.Reveal()),
		{method: http.MethodPost, path: "/auth/complete-signup?temp_token=" + token + "&code=" + waiting.Code.Reveal(), body: "{}"},
		{method: http.MethodPost, path: "/auth/complete-signup?" + token, body: `{"temp_token":"` + token + `","code":1}`},
		{method: http.MethodPost, path: "/auth/" + token, body: "{}"},
		{method: http.MethodGet, path: "/v1.0/me?accesskey=" + token},
		{method: http.MethodGet, path: "/ping", header: http.Header{"X-Request-Id": {token}}},
		signingUp(token + "@"),
	} {
		a.ask(s.harness, req)
	}
	s.mail.Answer("RCPT", 451)
	a.ask(s.harness, signingUp("c4n4ry@new.example"))
	got := s.complete(secrets).wants(http.StatusOK)
	key := got.json()["accesskey"].(map[string]any)["token"].(string)
	metrics := s.send(request{method: http.MethodGet, path: "/metrics"}).wants(http.StatusOK)
	sinks := map[string]string{"log": a.logged(), "answers": a.answers.String(), "tables": a.tables(), "metrics": string(metrics.raw)}
	flock := []canary{
		newCanary("temp token", secrets.TempToken.Reveal()[3:]), newCanary("waiting temp token", token[3:]), newCanary("key", key[11:]),
		newCanary("address that could not be mailed to", "c4n4ry@new.example"),
	}
	for name, text := range sinks {
		for _, c := range flock {
			if form := c.in(text); form != "" {
				t.Errorf("the %s shows %s: %q", name, c.name, form)
			}
		}
		if name != "tables" && strings.Contains(text, waiting.Code.Reveal()) && strings.Contains(text, `code=`+waiting.Code.Reveal()) {
			t.Errorf("the %s shows the code", name)
		}
	}
	if !strings.Contains(sinks["tables"], "bob@new.example") || !strings.Contains(sinks["log"], "the mail server is unavailable") {
		t.Error("the sinks are not what they should be")
	}
	hash := waiting.CodeHash()
	if stored := s.text(`SELECT encode(code_hash, 'hex') FROM signups`); stored != fmt.Sprintf("%x", hash) {
		t.Errorf("the code is stored as %s", stored)
	}
	if bare := s.text(`SELECT count(*) FROM signups WHERE code_hash = sha256($1::bytea)`, []byte(waiting.Code.Reveal())); bare != "0" {
		t.Error("the hash is of the code alone: a million tries find it")
	}
}
