package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"accesskeys/internal/mailtest"
	"accesskeys/internal/pgtest"
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
	body := must(json.Marshal(map[string]string{"temp_token": token, "code": code}))(t)
	made := call(t, http.MethodPost, base+"/auth/complete-signup", "", string(body)).wants(t, 200)
	return made["accesskey"].(map[string]any)["token"].(string)
}

// Off unless SIGNUP=true; the code goes out by SMTP, and shows neither in the log nor does the server's password.
func TestServedSignupIsMailed(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{Auth: true})
	database := pgtest.Empty(t)
	mail := map[string]string{"SMTP_URL": "smtp://keys:hunter2@" + server.Addr, "SMTP_FROM": "Acme <no-reply@acme.example>"}
	off := served(t, database, mail)
	for _, path := range []string{"/auth/signup", "/auth/complete-signup"} {
		call(t, http.MethodPost, off.base()+path, "", `{}`).refuses(t, 404, "ROUTE_NOT_FOUND")
	}
	mail["SIGNUP"] = "true"
	on := served(t, database, mail)
	token := beginSignup(t, on.base(), "ada@new.example")
	mails := server.To("ada@new.example")
	if len(mails) != 1 || mails[0].Login != "keys:hunter2" || mails[0].From != "<no-reply@acme.example>" {
		t.Fatalf("mails %v", mails)
	}
	key := completeSignup(t, on.base(), token, mails[0].Code())
	if customer := call(t, http.MethodGet, off.base()+"/v1.0/customer", key, "").wants(t, 200); customer["email"] != "ada@new.example" {
		t.Errorf("customer %v", customer)
	}
	ok(t, on.end())
	for _, forbidden := range []string{`"code":`, "hunter2", token, key} {
		if strings.Contains(on.stderr.String(), forbidden) {
			t.Errorf("the log shows %q", forbidden)
		}
	}
}

// Or, in dev, to the log, and there only.
func TestDevWritesCodesToItsLog(t *testing.T) {
	t.Parallel()
	d := startDev(t, devFolder(t), map[string]string{"SIGNUP": "true"})
	token := beginSignup(t, d.url, "ada@new.example")
	var code []string
	d.eventually("the code is in the log", func() bool {
		code = regexp.MustCompile(`to=ada@new\.example code=([0-9]{6})\n`).FindStringSubmatch(d.stderr.String())
		return code != nil
	})
	d.accepts(completeSignup(t, d.url, token, code[1]))
	beginSignup(t, d.url, "ada@new.example")
	d.logs(`a customer has this address already" to=ada@new.example`)
}
