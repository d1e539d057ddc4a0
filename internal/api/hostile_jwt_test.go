package api_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/auth"
)

// signatures: good parts, and a signature that is not theirs.
func (f *forger) signatures(another string) map[string]string {
	input := f.header + "." + f.payload
	by := func(key string) string { return input + "." + mac(sha256.New, key, input) }
	other := newForger(f.t, another)
	made := map[string]string{
		"cut by one":                       input + "." + f.signature[:42],
		"cut in half":                      input + "." + f.signature[:21],
		"one byte":                         input + "." + f.signature[:2],
		"a character":                      input + "." + f.signature[:1],
		"longer":                           input + "." + f.signature + "AA",
		"of another token":                 input + "." + other.signature,
		"another token's claims":           f.header + "." + other.payload + "." + f.signature,
		"of the claims alone":              input + "." + mac(sha256.New, jwtSecret, f.payload),
		"without a dot between":            input + "." + mac(sha256.New, jwtSecret, f.header+f.payload),
		"of the decoded parts":             input + "." + mac(sha256.New, jwtSecret, goodHeader+"."+f.text()),
		"a digest without a key":           input + "." + b64(string(sha256.New().Sum([]byte(input)))),
		"in hex":                           input + "." + fmt.Sprintf("%x", mac(sha256.New, jwtSecret, input)),
		"half of HS512":                    input + "." + mac(sha512.New, jwtSecret, input)[:43],
		"the secret empty":                 by(""),
		"the secret one NUL":               by("\x00"),
		"another secret":                   by(strings.Repeat("other", 8)),
		"the secret cut":                   by(jwtSecret[:len(jwtSecret)-1]),
		"the secret and a line break":      by(jwtSecret + "\n"),
		"the secret in base64":             by(b64(jwtSecret)),
		"the secret twice":                 by(jwtSecret + jwtSecret),
		"both secrets":                     by(jwtSecret + jwtSecretPrevious),
		"the previous secret, cut to 31":   by(jwtSecretPrevious[:31]),
		"a usual secret":                   by("secret"),
		"the issuer as the secret":         by("accesskeys"),
		"zeroes":                           input + "." + strings.Repeat("A", 43),
		"claims changed, signature kept":   f.header + "." + b64(strings.Replace(f.text(), `"permission":32`, `"permission":1`, 1)) + "." + f.signature,
		"claims flipped in their last bit": f.header + "." + flip(f.payload, 2) + "." + f.signature,
	}
	for at := 2; at <= len(f.signature); at += 8 {
		made[fmt.Sprintf("a bit flipped, %d from the end", at)] = input + "." + flip(f.signature, at)
	}
	return made
}

// claimsOfTime: signed with the right secret, as by a service that shares it or by somebody who has it.
func (f *forger) claimsOfTime() map[string]string {
	const week = 604800
	n := f.now
	return map[string]string{
		"exp missing": f.without("exp"), "exp null": f.set("exp", nil), "exp empty": f.set("exp", ""), "exp zero": f.set("exp", 0),
		"exp a string": f.set("exp", fmt.Sprint(n+week)), "exp a float": f.set("exp", json.Number(fmt.Sprintf("%d.5", n+60))),
		"exp with a zero fraction": f.set("exp", json.Number(fmt.Sprintf("%d.0", n+60))), "exp with an exponent": f.set("exp", json.Number("1e10")),
		"exp negative": f.set("exp", -1), "exp true": f.set("exp", true), "exp an array": f.set("exp", []int64{n + week}),
		"exp huge": f.set("exp", int64(1<<63-1)), "exp of the year 9999": f.set("exp", int64(253402300799)),
		"exp past int64": f.set("exp", json.Number("9223372036854775808")), "exp past uint64": f.set("exp", json.Number("18446744073709551616")),
		"exp 1e400": f.set("exp", json.Number("1e400")), "exp of 400 digits": f.set("exp", json.Number(strings.Repeat("9", 400))),
		"exp least": f.set("exp", int64(-1<<63)), "exp in the past": f.times(n-100, n-1), "exp equal to iat": f.times(n, n),
		"exp before iat": f.times(n, n-1), "exp a second beyond 7 days": f.times(n, n+week+1), "exp a year beyond": f.times(n, n+365*86400),
		"exp in milliseconds": f.times(n, (n+week)*1000), "both in milliseconds": f.times(n*1000, (n+week/1000)*1000),
		"iat missing": f.without("iat"), "iat null": f.set("iat", nil), "iat a string": f.set("iat", fmt.Sprint(n)), "iat zero": f.times(0, week),
		"iat negative": f.times(-1, 1), "iat in an hour": f.times(n+3600, n+3600+week), "iat in a year": f.times(n+365*86400, n+365*86400+week),
		"iat at the end of time": f.times(int64(1<<63-1-week), int64(1<<63-1)), "iat where time wraps": f.times(int64(1<<63-62135596800), int64(1<<63-62135596800+week)),
		"exp minus iat wraps": f.times(int64(1<<63-1), int64(-1<<63)),
		"nbf in the future":   f.set("nbf", n+3600), "nbf in the past": f.set("nbf", n-3600), "nbf null": f.set("nbf", nil), "nbf a string": f.set("nbf", "x"),
		"exp twice":        f.replace(`"exp":`, fmt.Sprintf(`"exp":%d,"exp":`, n+60)),
		"exp twice, first": f.withText(fmt.Sprintf(`{"exp":%d,`, n+60) + f.text()[1:]), "EXP for exp": f.replace(`"exp":`, `"EXP":`),
		"password_time missing": f.without("password_time"), "password_time zero": f.set("password_time", 0),
		"password_time later": f.set("password_time", int64(1<<62)), "password_time a string": f.set("password_time", "0"),
	}
}

// claimsOfIdentity: the same, but wrong about who and what for.
func (f *forger) claimsOfIdentity(h *harness) map[string]string {
	agent := func(change func(agent map[string]any)) string {
		return f.with(func(c map[string]any) { change(c["agent"].(map[string]any)) })
	}
	as := func(agentID, customerID any) string {
		return f.with(func(c map[string]any) {
			a := c["agent"].(map[string]any)
			c["sub"], a["id"], c["customer_id"], a["customer_id"] = agentID, agentID, customerID, customerID
		})
	}
	acme, globex := h.acme.customer.ID, h.globex.customer.ID
	made := map[string]string{
		"iss missing": f.without("iss"), "iss empty": f.set("iss", ""), "iss wrong": f.set("iss", "attacker"), "iss null": f.set("iss", nil),
		"iss in other case": f.set("iss", "AccessKeys"), "iss an array": f.set("iss", []string{"accesskeys"}), "iss with a space": f.set("iss", "accesskeys "),
		"aud present": f.set("aud", "accesskeys"), "aud an array": f.set("aud", []string{"accesskeys"}), "aud null": f.set("aud", nil), "aud empty": f.set("aud", ""),
		"sub missing": f.without("sub"), "sub null": f.set("sub", nil), "sub empty": f.set("sub", ""), "sub no UUID": f.set("sub", "admin"),
		"sub a number": f.set("sub", 1), "sub an array": f.set("sub", []any{h.acme.admin.ID}), "sub nil": as("00000000-0000-0000-0000-000000000000", acme),
		"sub of SQL": f.set("sub", "' OR 1=1 --"), "sub another agent": f.set("sub", h.acme.super.ID), "sub nobody": as(acme, acme),
		"agent.id another agent": agent(func(a map[string]any) { a["id"] = h.acme.super.ID }), "agent.id missing": agent(func(a map[string]any) { delete(a, "id") }),
		"agent.customer_id another":   agent(func(a map[string]any) { a["customer_id"] = globex }),
		"agent missing":               f.without("agent"),
		"agent null":                  f.set("agent", nil),
		"agent a string":              f.set("agent", "x"),
		"agent.permission a string":   agent(func(a map[string]any) { a["permission"] = "1" }),
		"another customer's agent":    as(h.globex.admin.ID, acme),
		"another customer":            as(h.acme.admin.ID, globex),
		"customer_id another":         f.set("customer_id", globex),
		"customer_id missing":         f.without("customer_id"),
		"customer_id no UUID":         f.set("customer_id", "*"),
		"an access key as agent":      as(h.acme.key.ID, acme),
		"type missing":                f.without("type"),
		"type accesskey":              f.set("type", "accesskey"),
		"type service_account":        f.set("type", "service_account"),
		"type in other case":          f.set("type", "Agent"),
		"type null":                   f.set("type", nil),
		"sub twice, ours last":        f.withText(fmt.Sprintf(`{"sub":%q,`, h.globex.admin.ID) + f.text()[1:]),
		"sub twice, ours first":       f.withText(strings.TrimSuffix(f.text(), "}") + fmt.Sprintf(`,"sub":%q}`, h.globex.admin.ID)),
		"sub twice, the same":         f.withText(fmt.Sprintf(`{"sub":%q,`, h.acme.admin.ID) + f.text()[1:]),
		"sub twice, once escaped":     f.withText(fmt.Sprintf(`{"\u0073ub":%q,`, h.globex.admin.ID) + f.text()[1:]),
		"permission twice":            f.replace(`"permission":`, `"permission":1,"permission":`),
		"SUB for sub":                 f.replace(`"sub":`, `"SUB":`),
		"Customer_ID for customer_id": f.replace(`"customer_id":`, `"Customer_ID":`),
		"invalid UTF-8":               f.replace(`"name":"`, "\"name\":\"\xff"),
		"invalid UTF-8 elsewhere":     f.withText("{\"x\":\"\xc0\xaf\"," + f.text()[1:]),
		"a lone surrogate":            f.replace(`"name":"`, `"name":"\ud800`),
		"a byte order mark":           f.withText("\ufeff" + f.text()),
		"agent nested deeply":         f.set("agent", json.RawMessage(strings.Repeat("[", 1500)+strings.Repeat("]", 1500))),
		"nested deeply":               f.withText(strings.Repeat("[", 2500) + strings.Repeat("]", 2500)),
		"nested without an end":       f.withText(strings.Repeat(`{"a":`, 1000)),
		"claims an array":             f.withText("[" + f.text() + "]"),
		"claims a string":             f.withText(`"` + f.payload + `"`),
		"claims null":                 f.withText("null"),
		"claims a number":             f.withText("1"),
		"claims empty":                f.withText("{}"),
		"claims no JSON":              f.withText("sub=admin"),
		"claims cut":                  f.withText(f.text()[:len(f.text())-1]),
		"claims and more":             f.withText(f.text() + "{}"),
		"claims and NUL":              f.withText(f.text() + "\x00"),
		"claims with a comment":       f.withText("/**/" + f.text()),
	}
	return made
}

// corpus is every hostile token, class by class. causes are those with which a class may be refused.
func (f *forger) corpus(h *harness) (classes []string, all []hostile) {
	add := func(class string, tokens map[string]string, causes ...string) {
		classes = append(classes, class)
		for name, token := range tokens {
			cause := h.cause("token=" + url.QueryEscape(token))
			if !slices.Contains(causes, cause) {
				f.t.Errorf("%s: %s: refused as %q, want one of %q", class, name, cause, causes)
			}
			all = append(all, hostile{class, name, token, cause})
		}
	}
	add("algorithm", f.algorithms(), "malformed", "bad signature")
	add("header", f.headers(), "malformed")
	add("spelling", f.spellings(), "malformed", "bad signature")
	add("signature", f.signatures(h.globex.adminJWT), "bad signature", "malformed")
	add("time", f.claimsOfTime(), "malformed", "bad claims", "expired", "password changed") // the last for a password_time
	add("identity", f.claimsOfIdentity(h), "malformed", "bad claims", "unknown")
	return classes, all
}

// headerForm is the credential as a header can carry it: HTTP itself trims and refuses some characters, and what it can't
// carry is sent in escapes, which a header does not have.
func headerForm(credential string) string {
	if strings.ContainsAny(credential, "\x00\r\n") || strings.Trim(credential, " \t") != credential {
		return strings.NewReplacer("\x00", "%00", "\n", "%0A", "\r", "%0D", " ", "%20", "\t", "%09").Replace(credential)
	}
	return credential
}

// Contract, section 3: JWTs: the algorithm is fixed by the key that verifies, never by the token's header; RFC 8725 applies in full;
// "malformed, tampered: 401 INVALID_CREDENTIALS, and the body never says which". The controls: the good token, taken apart and put together
// by the same code, is accepted, as it is and under the previous secret; and after each class it still is.
func TestHostileJWTIsRefusedOverEveryCarrier(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	f := newForger(t, h.acme.adminJWT)
	byPrevious := f.header + "." + f.payload + "." + mac(sha256.New, jwtSecretPrevious, f.header+"."+f.payload)
	accepted := func(token string) {
		t.Helper()
		for _, name := range []string{"?token=", "Bearer"} {
			req := carriers[name](token)
			req.method = http.MethodGet
			if me := h.send(req).wants(http.StatusOK).json(); me["id"] != h.acme.admin.ID.String() {
				t.Errorf("me %v, want %s", me, h.acme.admin.ID)
			}
		}
	}
	for _, token := range []string{
		h.acme.adminJWT, signed(f.header, f.payload), f.withHeader(goodHeader), f.withText(f.text()), f.withText(" " + f.text()),
		f.with(func(map[string]any) {}), f.times(f.now, f.now+604800), f.set("exp", f.now+3600), byPrevious,
	} {
		accepted(token)
	}
	classes, corpus := f.corpus(h)
	distinct := map[string]bool{}
	for _, class := range classes {
		for _, bad := range corpus {
			if bad.class != class {
				continue
			}
			distinct[bad.token] = true
			for name, carrier := range carriers {
				req := carrier(bad.token)
				if req.header != nil {
					req.header.Set("Authorization", "Bearer "+headerForm(bad.token))
				}
				req.method = http.MethodGet
				if wrong := h.send(req).diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
					t.Errorf("%s: %s over %s: %s", class, bad.name, name, wrong)
				}
			}
		}
		accepted(h.acme.adminJWT)
	}
	if len(distinct) < 60 {
		t.Errorf("only %d different tokens", len(distinct))
	}
	h.get("/v1.0/me", h.globex.adminJWT).wants(http.StatusOK)
}

// Contract, section 7: agent deleted or demoted after login ... stops at once: rights are the store's, never the token's. The control is a
// token of who really has them.
func TestRightsInATokenGiveNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	f := newForger(t, h.acme.plainJWT)
	raise := func(c map[string]any) {
		agent := c["agent"].(map[string]any)
		agent["permission"], agent["username"] = 1, h.acme.super.Username
		c["permission"], c["scope"], c["role"], c["SUB"], c["Agent"] = 1, "admin", "admin", h.globex.super.ID, agent
	}
	raised := f.with(raise)
	if me := h.get("/v1.0/me", raised).wants(http.StatusOK).json(); me["id"] != h.acme.plain.ID.String() ||
		me["permission"] != float64(auth.PermissionCustomerAgent) || me["username"] != h.acme.plain.Username {
		t.Errorf("me %v", me)
	}
	h.get("/v1.0/accesskeys", raised).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	h.post("/v1.0/accesskeys", raised, "{}").refuses(http.StatusForbidden, "PERMISSION_DENIED")
	h.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), raised).refuses(http.StatusForbidden, "PERMISSION_DENIED")
	customers := func(bearer string) int {
		return len(h.get("/v1.0/customers", bearer).wants(http.StatusOK).json()["result"].([]any))
	}
	if got := customers(raised); got != 1 {
		t.Errorf("sees %d customers", got)
	}
	if got := customers(h.acme.superJWT); got != 2 {
		t.Errorf("the control sees %d customers", got)
	}
}

// Bound the token's length before parsing. Ever longer headers are refused, at the latest by the server's own bound, and never stop it.
func TestGiantCredentialIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for size, want := range map[int]int{8 << 10: 401, 64 << 10: 401, 512 << 10: 401, 1<<20 + 8<<10: 431, 4 << 20: 431} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(h.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		go func() { // the server need not read to the end
			_, _ = fmt.Fprintf(conn, "GET /v1.0/me HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s.%s.c\r\n\r\n",
				strings.Split(h.acme.adminJWT, ".")[0], strings.Repeat("A", size))
		}()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		_ = res.Body.Close()
		_ = conn.Close()
		if res.StatusCode != want {
			t.Errorf("%d bytes: status %d, want %d", size, res.StatusCode, want)
		}
		h.get("/v1.0/me", h.acme.adminJWT).wants(http.StatusOK)
	}
}
