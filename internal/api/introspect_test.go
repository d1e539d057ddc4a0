package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// form is a request to introspect with this body, from nobody yet.
func form(body string) request {
	return request{
		method: http.MethodPost, path: "/auth/introspect", body: body, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
	}
}

// introspecting asks about a token as this caller.
func introspecting(caller, token string) request {
	asked := form(url.Values{"token": {token}}.Encode())
	asked.header.Set("Authorization", "Bearer "+caller)
	return asked
}

func (h *harness) introspect(caller, token string) response {
	h.t.Helper()
	return h.send(introspecting(caller, token))
}

// lifetime is a credential's iat and exp, read without the code that writes them.
func (h *harness) lifetime(credential string) string {
	h.t.Helper()
	if strings.HasPrefix(credential, auth.TokenPrefix) {
		return h.text(`SELECT format('"iat":%s,"exp":%s', floor(extract(epoch FROM tm_create)), floor(extract(epoch FROM tm_expire)))
			FROM accesskeys WHERE token_sha256 = sha256($1::text::bytea)`, credential)
	}
	_, payload, _ := split(credential)
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		h.t.Fatal(err)
	}
	var claims struct{ Iat, Exp json.Number }
	if err := json.Unmarshal(text, &claims); err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprintf(`"iat":%s,"exp":%s`, claims.Iat, claims.Exp)
}

// RFC 7662, section 2.2, for each kind of token: whole bodies. Whatever token_type_hint says makes no difference.
func TestIntrospectionTellsWhatRFC7662HasOfEachKindOfToken(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	customer := h.acme.customer.ID.String()
	bound, boundToken := h.newBoundKey(h.acme.plain)
	admin, viewer, bare := h.newProgram(h.acme.customer.ID, auth.RoleCustomerAdmin), h.newProgram(h.acme.customer.ID, auth.RoleAgentViewer, auth.RoleAccessKeyViewer), h.newProgram(h.acme.customer.ID)
	maker := h.newProgram(h.acme.customer.ID, auth.RoleAccessKeyAdmin)
	made := h.post("/v1.0/accesskeys", maker.token, `{"name":"made","expire":3600}`).wants(http.StatusOK).json()
	madeToken := made["token"].(string)
	for _, table := range []string{"accesskeys", "agents", "service_accounts"} { // so that no two times are the same
		h.exec(`UPDATE ` + table + ` SET tm_create = tm_create - interval '3 days', tm_update = tm_update - interval '1 day'`)
	}
	for name, c := range map[string]struct{ token, sub, rest string }{
		"login": {h.acme.plainJWT, h.acme.plain.ID.String() + `","username":"plain@acme.example`,
			`"type":"agent","customer_id":"` + customer + `","agent_id":"` + h.acme.plain.ID.String() + `","permission":16`},
		"login of a superadmin": {h.acme.superJWT, h.acme.super.ID.String() + `","username":"super@acme.example`,
			`"type":"agent","customer_id":"` + customer + `","agent_id":"` + h.acme.super.ID.String() + `","permission":1`},
		"customer-wide key": {h.acme.token, h.acme.key.ID.String(), `"type":"accesskey","customer_id":"` + customer + `","permission":32`},
		"key of an agent": {boundToken, bound.ID.String(),
			`"type":"accesskey","customer_id":"` + customer + `","agent_id":"` + h.acme.plain.ID.String() + `","permission":16`},
		"key of an account": {madeToken, made["id"].(string), `"type":"accesskey","customer_id":"` + customer + `","permission":0`},
		"account": {admin.token, admin.account.ID.String(),
			`"type":"service_account","customer_id":"` + customer + `","permission":32,"roles":["customer_admin"]`},
		"account with two roles": {viewer.token, viewer.account.ID.String(),
			`"type":"service_account","customer_id":"` + customer + `","permission":0,"roles":["agent_viewer","accesskey_viewer"]`},
		"account without a role": {bare.token, bare.account.ID.String(),
			`"type":"service_account","customer_id":"` + customer + `","permission":0,"roles":[]`},
	} {
		want := `{"active":true,"token_type":"Bearer","sub":"` + c.sub + `",` + h.lifetime(c.token) + `,` + c.rest + `}`
		got := h.introspect(h.acme.adminJWT, c.token).wants(http.StatusOK)
		if string(got.raw) != want {
			t.Errorf("%s\ngot  %s\nwant %s", name, got.raw, want)
		}
		if got.header.Get("Content-Type") != "application/json" || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("header %v", got.header)
		}
		for _, hint := range []string{"access_token", "refresh_token", "accesskey", "", "x&scope=y"} {
			asked := form("token_type_hint=" + hint + "&token=" + c.token)
			asked.header.Set("Authorization", "bearer "+h.acme.token)
			h.send(asked).same(want)
		}
		if same := h.introspect(h.globex.superJWT, c.token); string(same.raw) != want {
			t.Errorf("to another customer's superadmin: %s", same.raw)
		}
	}
	h.introspect(h.acme.token, h.acme.token).wants(http.StatusOK) // about itself
}

// RFC 7662: "{"active": false}" and no more for all that is not good, whatever its form, and for what is another customer's, to which
// the caller must not find a way by guessing.
func TestTokenThatIsNotGoodOrAnotherCustomersIsJustNotActive(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const inactive = `{"active":false}`
	for _, c := range everyCredential(h) {
		got := h.introspect(h.acme.adminJWT, c.value).wants(http.StatusOK)
		if (string(got.raw) == inactive) != (c.cause != "") || c.cause == "" && got.json()["active"] != true {
			t.Errorf("%s %s: %s", c.kind, c.state, got.raw)
		}
		if got := h.introspect(h.globex.adminJWT, c.value); string(got.raw) != inactive {
			t.Errorf("%s %s, to another customer: %s", c.kind, c.state, got.raw)
		}
		got = h.introspect(h.globex.superJWT, c.value).wants(http.StatusOK)
		if (string(got.raw) == inactive) != (c.cause != "") {
			t.Errorf("%s %s, to another customer's superadmin: %s", c.kind, c.state, got.raw)
		}
	}
	_, globexBound := h.newBoundKey(h.globex.plain)
	for _, token := range []string{h.globex.token, h.globex.superJWT, h.globex.plainJWT, globexBound, h.newProgram(h.globex.customer.ID, auth.RoleCustomerAdmin).token} {
		h.introspect(h.acme.adminJWT, token).same(inactive)
		h.introspect(h.acme.token, token).same(inactive)
		if got := h.introspect(h.acme.superJWT, token).wants(http.StatusOK).json(); got["active"] != true || got["customer_id"] != h.globex.customer.ID.String() {
			t.Errorf("a superadmin is told %v", got)
		}
	}
	for _, token := range []string{
		" ", "x", "..", "a.b.c", "Bearer " + h.acme.token, h.acme.token + " ", " " + h.acme.token, h.acme.token + "\x00", "\x00", "\xff", h.acme.token + "\n",
		h.acme.token + "," + h.acme.token, h.acme.token[:11], h.acme.key.ID.String(), h.acme.admin.Username, "su_" + strings.Repeat("a", 32), "vb_",
		strings.Repeat("vb_", 12), "null", "{}", strings.Repeat("x", 60_000), strings.Repeat("e", 20_000) + ".b.c", h.acme.adminJWT + ".", "." + h.acme.adminJWT,
	} {
		h.introspect(h.acme.adminJWT, token).same(inactive)
	}
}

// Who may read access keys may introspect, and nobody else, whatever the token and also where it is their own.
func TestOnlyWhoMayReadAccessKeysMayIntrospect(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	may := map[string]bool{"su": true, "ad": true, "ck": true, "ak": true, "CA": true, "KA": true, "KV": true, "sk": true}
	seen := 0
	for _, i := range identities() {
		customer, err := h.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: i.code})
		if err != nil {
			t.Fatal(err)
		}
		_, token := h.storeKey(store.NewAccessKey{CustomerID: customer.ID})
		c := i.make(h, customer.ID)
		for _, about := range []string{token, c.bearer + "x", "x", h.globex.token} {
			got := h.introspect(c.bearer, about)
			switch {
			case powers[i.code] < 0:
				got.refuses(401, map[bool]string{true: "AUTHENTICATION_REQUIRED", false: "INVALID_CREDENTIALS"}[c.bearer == ""])
			case !may[i.code]:
				got.refuses(403, "PERMISSION_DENIED")
			default:
				seen++
				active := about == token || about == h.globex.token && i.code == "su"
				if got.wants(http.StatusOK).json()["active"] != active {
					t.Errorf("%s: %s, want active %t", i.code, got.raw, active)
				}
			}
		}
		if c.bearer != "" && powers[i.code] >= 0 && !may[i.code] {
			h.introspect(c.bearer, c.bearer).refuses(403, "PERMISSION_DENIED")
		}
	}
	if seen != 4*len(may) {
		t.Errorf("%d answers, want %d", seen, 4*len(may))
	}
}

// RFC 7662, section 2.1: the token comes in a form. What is no form with exactly one token is a 400 and never an answer about one.
func TestIntrospectedTokenComesInAFormAndOnlyThere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := "token=" + h.acme.token
	ask := func(body, contentType, query string) response {
		t.Helper()
		asked := form(body)
		asked.header.Set("Authorization", "Bearer "+h.acme.adminJWT)
		asked.header["Content-Type"] = []string{contentType}
		if contentType == "" {
			asked.header["Content-Type"] = nil
		}
		asked.path += query
		return h.send(asked)
	}
	const urlencoded = "application/x-www-form-urlencoded"
	for _, contentType := range []string{
		urlencoded, "Application/X-WWW-Form-Urlencoded", urlencoded + "; charset=UTF-8", urlencoded + ";charset=utf-8", urlencoded + ` ; charset="utf-8"`,
	} {
		if got := ask(token, contentType, "").wants(http.StatusOK).json(); got["active"] != true {
			t.Errorf("%s: %v", contentType, got)
		}
	}
	for _, contentType := range []string{
		"", "application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencodedx", "x-www-form-urlencoded", ";", "*/*",
		urlencoded + "; charset", urlencoded + ", application/json",
	} {
		got := ask(token, contentType, "").refuses(400, "INVALID_ARGUMENT")
		if !strings.Contains(string(got.raw), `"details":[{"field":"token"`) {
			t.Errorf("%q: %s", contentType, got.raw)
		}
	}
	for _, body := range []string{
		token, "&" + token + "&", "x=1&" + token, token + "&x=%61", "%74oken=" + h.acme.token, "token=%76b_" + h.acme.token[3:],
		token + "&accesskey=" + h.globex.token, token + "&Token=x",
	} {
		if got := ask(body, urlencoded, "").wants(http.StatusOK).json(); got["active"] != true {
			t.Errorf("%s: %v", body, got)
		}
	}
	for _, body := range []string{
		"", "&", "token", "token=", "x=1", "Token=" + h.acme.token, "accesskey=" + h.acme.token, "access_token=" + h.acme.token, "token[]=" + h.acme.token,
		token + "&" + token, token + "&token=x", token + "&token=", "token=&" + token, token + "&token", token + "&%74oken=x", token + ";x=1", token + "&x;y",
		"x=%zz&" + token, token + "%zz", token + "%", h.acme.token, `{"token":"` + h.acme.token + `"}`,
	} {
		ask(body, urlencoded, "").refuses(400, "INVALID_ARGUMENT")
	}
	ask(`{"token":"`+h.acme.token+`"}`, "application/json", "").refuses(400, "INVALID_ARGUMENT")
	ask(token+"&x="+strings.Repeat("x", 64<<10-len(token)-3), urlencoded, "").wants(http.StatusOK)
	ask(token+"&x="+strings.Repeat("x", 64<<10-len(token)-2), urlencoded, "").refuses(413, "BODY_TOO_LARGE")

	// A token in the URL is the caller's credential, of which there is one, and never the one that is asked about.
	for _, query := range []string{"?token=" + h.acme.adminJWT, "?accesskey=" + h.acme.token} {
		alone := form("")
		alone.path += query
		h.send(alone).refuses(400, "INVALID_ARGUMENT")
		alone.body = "token=" + h.globex.token
		h.send(alone).same(`{"active":false}`)
		alone.body = "token=" + h.acme.token
		if got := h.send(alone).wants(http.StatusOK).json(); got["sub"] != h.acme.key.ID.String() {
			t.Errorf("%s: %v", query, got)
		}
		ask(token, urlencoded, query).wantsChallenge("INVALID_CREDENTIALS") // which would be two
	}
	// Nor is it the caller's, without another one.
	for _, body := range []string{token, "token=" + h.acme.adminJWT, "accesskey=" + h.acme.token} {
		h.send(form(body)).wantsChallenge("AUTHENTICATION_REQUIRED")
	}
	for _, name := range []string{"X-Original-Uri", "X-Forwarded-Uri"} { // these are for checks
		asked := form(token)
		asked.header.Set(name, "/?accesskey="+h.acme.token)
		h.send(asked).wantsChallenge("AUTHENTICATION_REQUIRED")
		asked.header.Set("Authorization", "Bearer "+h.acme.token)
		h.send(asked).wants(http.StatusOK)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete} {
		asked := form(token)
		asked.method = method
		asked.header.Set("Authorization", "Bearer "+h.acme.adminJWT)
		if got := h.send(asked); got.code != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: %d, Allow %q", method, got.code, got.header.Get("Allow"))
		}
	}
}

// Where the store can't tell, the answer is a 503 and not {"active":false}, which would end a session that is good. The caller's own
// credential is found; it is the table behind the other token that is gone, or all are.
func TestFailingStoreIsA503AndNeverAnInactiveToken(t *testing.T) {
	t.Parallel()
	for table, behind := range map[string][]string{
		"accesskeys": {"key"}, "agents": {"key", "login"}, "service_account_keys": {"account"}, "customers": {"key", "login", "account"},
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t).uncached()
			program := h.newProgram(h.acme.customer.ID, auth.RoleCustomerAdmin)
			tokens := map[string]string{"key": h.acme.token, "login": h.acme.plainJWT, "account": program.token}
			caller := h.acme.token // or, where its own look-up fails, the first other one whose doesn't
			for i, kind := range []string{"key", "login", "account"} {
				if !slices.Contains(behind, kind) {
					caller = []string{h.acme.token, h.acme.adminJWT, program.token}[i]
					break
				}
			}
			active := func(token string) {
				t.Helper()
				if got := h.introspect(caller, token).wants(http.StatusOK); got.json()["active"] != true {
					t.Errorf("a good token: %s", got.raw)
				}
			}
			for _, token := range tokens {
				active(token)
			}
			unknown := auth.NewAccessToken().Reveal()
			h.introspect(caller, unknown).same(`{"active":false}`)
			h.exec(`ALTER TABLE ` + table + ` RENAME TO elsewhere`)
			for kind, token := range tokens {
				if !slices.Contains(behind, kind) {
					active(token) // the caller is found as ever, and what is not behind that table
					continue
				}
				h.introspect(caller, token).refuses(503, "SERVICE_UNAVAILABLE").waits(2, 2)
			}
			if slices.Contains(behind, "key") {
				h.introspect(caller, unknown).refuses(503, "SERVICE_UNAVAILABLE")
			}
		})
	}
}

// What a token is, it is at the moment of the question: a promotion, another role and the end of its time count at once.
func TestIntrospectionTellsWhatATokenIsNow(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	_, bound := h.newBoundKey(h.acme.plain)
	for _, permission := range []float64{64, 0, 48, 16} {
		h.put("/v1.0/agents/"+h.acme.plain.ID.String()+"/permission", h.acme.adminJWT, map[string]any{"permission": permission}).wants(http.StatusOK)
		for _, token := range []string{h.acme.plainJWT, bound} {
			if got := other.introspect(h.acme.adminJWT, token).wants(http.StatusOK).json(); got["active"] != true || got["permission"] != permission {
				t.Errorf("permission %v is told as %v", permission, got)
			}
		}
	}
	program := h.newProgram(h.acme.customer.ID, auth.RoleAgentViewer)
	for _, roles := range []string{`["accesskey_viewer"]`, `[]`} {
		h.put("/v1.0/service_accounts/"+program.account.ID.String(), h.acme.adminJWT, `{"roles":`+roles+`}`).wants(http.StatusOK)
		if got := other.introspect(h.acme.adminJWT, program.token); !strings.HasSuffix(string(got.raw), `"roles":`+roles+`}`) {
			t.Errorf("roles %s are told as %s", roles, got.raw)
		}
	}
	short := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":1}`).wants(http.StatusOK).json()["token"].(string)
	other.introspect(h.acme.adminJWT, short).wants(http.StatusOK)
	for deadline := time.Now().Add(20 * time.Second); ; {
		got := other.introspect(h.acme.adminJWT, short)
		if string(got.raw) == `{"active":false}` {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a key of one second is active 20 s later: %s", got.raw)
		}
	}
}
