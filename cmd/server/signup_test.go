package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"accesskeys/internal/mailtest"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
)

// beginSignup begins a sign-up and returns its temp token.
func beginSignup(t *testing.T, base, email string) string {
	t.Helper()
	body := `{"email":"` + email + `","accepted_tos":true}`
	return call(t, http.MethodPost, base+"/auth/signup", "", body).wants(t, 200)["temp_token"].(string)
}

// completeSignup returns the key that a sign-up ends in.
func completeSignup(t *testing.T, base, token, code string) string {
	t.Helper()
	body, err := json.Marshal(map[string]string{"temp_token": token, "code": code})
	if err != nil {
		t.Fatal(err)
	}
	made := call(t, http.MethodPost, base+"/auth/complete-signup", "", string(body)).wants(t, 200)
	return made["accesskey"].(map[string]any)["token"].(string)
}

// Off unless SIGNUP=true; the code goes out by SMTP, and shows neither in the log nor does the server's password.
func TestServedSignupIsMailed(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{Auth: true})
	database := pgtest.Empty(t)
	mail := map[string]string{"SMTP_URL": "smtp://keys:hunter2@" + server.Addr, "SMTP_FROM": "Acme <no-reply@acme.example>"}
	off := launch(t, environment(database, mail), "serve")
	for _, path := range []string{"/auth/signup", "/auth/complete-signup"} {
		call(t, http.MethodPost, off.base()+path, "", `{}`).refuses(t, 404, "ROUTE_NOT_FOUND")
	}
	mail["SIGNUP"] = "true"
	on := launch(t, environment(database, mail), "serve")
	token := beginSignup(t, on.base(), "ada@new.example")
	mails := server.To("ada@new.example")
	if len(mails) != 1 || mails[0].Login != "keys:hunter2" || mails[0].From != "<no-reply@acme.example>" {
		t.Fatalf("mails %v", mails)
	}
	key := completeSignup(t, on.base(), token, mails[0].Code())
	if customer := call(t, http.MethodGet, off.base()+"/v1.0/customer", key, "").wants(t, 200); customer["email"] != "ada@new.example" {
		t.Errorf("customer %v", customer)
	}
	if err := on.end(); err != nil {
		t.Fatal(err)
	}
	for _, forbidden := range []string{`"code":`, "hunter2", token, key} {
		if strings.Contains(on.stderr.String(), forbidden) {
			t.Errorf("the log shows %q", forbidden)
		}
	}
}

// Or, in dev, to the log, and there only.
func TestDevWritesCodesToItsLog(t *testing.T) {
	t.Parallel()
	p, c := startDev(t, devFolder(t), map[string]string{"SIGNUP": "true"})
	token := beginSignup(t, c.base, "ada@new.example")
	var code string
	servertest.Eventually(t, "the code is in the log", func() bool {
		match := regexp.MustCompile(`to=ada@new\.example code=([0-9]{6})\n`).FindStringSubmatch(p.stderr.String())
		if match != nil {
			code = match[1]
		}
		return match != nil
	})
	key := completeSignup(t, c.base, token, code)
	call(t, http.MethodGet, c.base+"/v1.0/me", key, "").wants(t, 200)
	beginSignup(t, c.base, "ada@new.example")
	servertest.Eventually(t, "the log tells that the address is known", func() bool {
		return strings.Contains(p.stderr.String(), `a customer has this address already" to=ada@new.example`)
	})
}
