package api_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// The two forms of the header of a 401 (contract, section 3).
const (
	challengeBare    = `Bearer realm="voipbin"`
	challengeInvalid = `Bearer realm="voipbin", error="invalid_token"`
)

// diffChallenge holds a 401 to everything that the contract says of one: the whole body, which is the same whatever the
// cause, and the header. It returns what is wrong, "" where nothing is.
func (r response) diffChallenge(reason string) string {
	message, challenge := "The credential is not valid.", challengeInvalid
	if reason == "AUTHENTICATION_REQUIRED" {
		message, challenge = "The request carries no credential.", challengeBare
	}
	want := `{"error":{"status":"UNAUTHENTICATED","reason":"` + reason + `","message":"` + message +
		`","request_id":"` + r.header.Get("X-Request-Id") + `"}}`
	got := r.header.Values("WWW-Authenticate")
	if r.code == http.StatusUnauthorized && slices.Equal(got, []string{challenge}) && string(r.raw) == want {
		return ""
	}
	return fmt.Sprintf("status %d, WWW-Authenticate %q, body %s, want 401, %q, %s", r.code, got, r.raw, challenge, want)
}

// wantsChallenge fails the test unless this is such a 401.
func (r response) wantsChallenge(reason string) {
	r.t.Helper()
	if wrong := r.diffChallenge(reason); wrong != "" {
		r.t.Fatal(wrong)
	}
}

// on is the same harness for a subtest.
func (h *harness) on(t *testing.T) *harness {
	t.Helper()
	sub := *h
	sub.t = t
	return &sub
}

// carriers are the contract's three ways to present a credential.
var carriers = map[string]func(credential string) request{
	"?token=":     func(c string) request { return request{path: "/v1.0/me?token=" + url.QueryEscape(c)} },
	"?accesskey=": func(c string) request { return request{path: "/v1.0/me?accesskey=" + url.QueryEscape(c)} },
	"Bearer": func(c string) request {
		return request{path: "/v1.0/me", header: http.Header{"Authorization": {"Bearer " + c}}}
	},
}

// carries tells which carrier takes which kind.
func carries(carrier string, kind auth.CredentialKind) bool {
	return carrier == "Bearer" || carrier == "?token=" && kind == auth.KindJWT || carrier == "?accesskey=" && kind == auth.KindAccessKey
}

// cause asks the verifier why it refuses what a request presents, "" where it accepts.
func (h *harness) cause(query string, authorization ...string) string {
	h.t.Helper()
	c, err := auth.Extract(query, authorization)
	if err == nil {
		_, err = auth.NewVerifier(auth.VerifierConfig{Rows: h.rows, Sessions: h.sessions, Tokens: h.tokens, LastUsed: h.lastUsed}).Verify(h.t.Context(), c, netip.Addr{})
	}
	if err != nil && auth.Cause(err) == "" {
		h.t.Fatalf("an error that is no refusal: %v", err)
	}
	return auth.Cause(err)
}

// credential is one that exists in some state.
type credential struct {
	kind  auth.CredentialKind
	state string
	value string
	cause string // why it is refused, "" where it is not
}

// everyCredential makes access keys and JWTs in every state.
func everyCredential(h *harness) []credential {
	h.t.Helper()
	agentOf := func(c store.Customer, name string) store.AgentCredential {
		h.t.Helper()
		a, err := h.store.CreateAgent(h.t.Context(), store.Operator(), store.NewAgent{
			CustomerID: c.ID, Username: name, PasswordHash: tenantHash(), Permission: int64(auth.PermissionCustomerAdmin),
		})
		if err != nil {
			h.t.Fatal(err)
		}
		// So that an old login fails for its age alone.
		h.exec(`UPDATE agents SET tm_password = tm_password - interval '30 days' WHERE id = $1`, a.ID)
		return h.agentCredential(a.ID)
	}
	issue := func(s *auth.Sessions, a store.AgentCredential, ago time.Duration) string {
		h.t.Helper()
		token, err := s.Issue(a.Agent, a.Now.Add(-ago))
		if err != nil {
			h.t.Fatal(err)
		}
		return token.Reveal()
	}
	sessions := func(current string) *auth.Sessions {
		h.t.Helper()
		s, err := auth.NewSessions(secret.New(current), secret.Value{})
		if err != nil {
			h.t.Fatal(err)
		}
		return s
	}
	initech, err := h.store.CreateCustomer(h.t.Context(), store.Operator(), store.NewCustomer{Name: "initech"})
	if err != nil {
		h.t.Fatal(err)
	}
	agent, gone, orphan := agentOf(h.acme.customer, "live"), agentOf(h.acme.customer, "gone"), agentOf(initech, "orphan")
	changed := agentOf(h.acme.customer, "changed")
	unknown := agent
	unknown.ID = h.acme.customer.ID // an id, but no agent's
	live, valid := issue(h.sessions, agent, 0), h.acme.token
	expired, expiredToken := h.newKey(h.acme.customer, 3600)
	deleted, deletedToken := h.newKey(h.acme.customer, 3600)
	_, orphanToken := h.newKey(initech, 3600)
	both, bothToken := h.newKey(initech, 3600)
	h.exec(`UPDATE accesskeys SET tm_create = now() - interval '1 hour', tm_expire = now() WHERE id IN ($1, $2)`, expired.ID, both.ID)
	h.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id IN ($1, $2)`, deleted.ID, both.ID)
	h.exec(`UPDATE agents SET tm_password = now() WHERE id = $1`, changed.ID)
	h.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, gone.ID)
	h.exec(`UPDATE customers SET tm_delete = now() WHERE id = $1`, initech.ID)
	const week = 7 * 24 * time.Hour
	return []credential{
		{auth.KindAccessKey, "valid", valid, ""},
		{auth.KindAccessKey, "expired", expiredToken, "expired"},
		{auth.KindAccessKey, "deleted", deletedToken, "deleted"},
		{auth.KindAccessKey, "expired, deleted and its customer too", bothToken, "deleted"},
		{auth.KindAccessKey, "customer deleted", orphanToken, "owner deleted"},
		{auth.KindAccessKey, "unknown", auth.NewAccessToken().Reveal(), "unknown"},
		{auth.KindAccessKey, "malformed", valid[:len(valid)-1], "malformed"},
		{auth.KindAccessKey, "of another prefix", "VB_" + valid[3:], "malformed"},
		{auth.KindAccessKey, "tampered", valid[:len(valid)-1] + otherThan(valid[len(valid)-1]), "unknown"},
		{auth.KindAccessKey, "in another case", "vb_" + swapCase(valid[3:]), "unknown"},
		{auth.KindAccessKey, "its prefix and zeroes", valid[:11] + strings.Repeat("0", 24), "unknown"},
		{auth.KindAccessKey, "its hash", h.text(`SELECT encode(token_sha256, 'hex') FROM accesskeys WHERE id = $1`, h.acme.key.ID), "malformed"},
		{auth.KindAccessKey, "its id", h.acme.key.ID.String(), "malformed"},
		{auth.KindJWT, "valid", live, ""},
		{auth.KindJWT, "valid, of the previous secret", issue(sessions(jwtSecretPrevious), agent, 0), ""},
		{auth.KindJWT, "almost expired", issue(h.sessions, agent, week-time.Hour), ""},
		{auth.KindJWT, "expired", issue(h.sessions, agent, week), "expired"},
		{auth.KindJWT, "agent deleted", issue(h.sessions, gone, 0), "deleted"},
		{auth.KindJWT, "customer deleted", issue(h.sessions, orphan, 0), "owner deleted"},
		{auth.KindJWT, "unknown", issue(h.sessions, unknown, 0), "unknown"},
		{auth.KindJWT, "malformed", "abc.def.ghi", "malformed"},
		{auth.KindJWT, "of two parts", live[:strings.LastIndexByte(live, '.')], "malformed"},
		{auth.KindJWT, "tampered", live[:len(live)-9] + otherThan(live[len(live)-9]) + live[len(live)-8:], "bad signature"},
		{auth.KindJWT, "other secret", issue(sessions(strings.Repeat("other secret ", 3)), agent, 0), "bad signature"},
		{auth.KindJWT, "password changed", issue(h.sessions, changed, 0), "password changed"},
	}
}

func otherThan(c byte) string {
	if c == 'A' {
		return "Z"
	}
	return "A"
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return r
		}
	}, s)
}

// Contract, section 3: the table of carriers; "Expired (tm_expire at or before now), deleted, malformed, tampered: 401 INVALID_CREDENTIALS,
// and the body never says which. Each 401 has WWW-Authenticate: Bearer realm="voipbin", with error="invalid_token" where a credential was
// presented". Every credential in every state is sent over every carrier; that each is refused for its own cause, and not for another slip,
// is read off the verifier.
func TestEveryCredentialOverEveryCarrierGetsTheContractsAnswer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range everyCredential(h) {
		if got := h.cause("", "Bearer "+c.value); got != c.cause {
			t.Errorf("%s %s: refused as %q, want %q", c.kind, c.state, got, c.cause)
		}
		for name, carrier := range carriers {
			t.Run(name+" "+string(c.kind)+" "+c.state, func(t *testing.T) {
				t.Parallel()
				req := carrier(c.value)
				req.method = http.MethodGet
				got := h.on(t).send(req)
				if c.cause != "" || !carries(name, c.kind) {
					got.wantsChallenge("INVALID_CREDENTIALS")
					return
				}
				me := got.wants(http.StatusOK).json()
				if me["customer_id"] != h.acme.customer.ID.String() || got.header.Get("WWW-Authenticate") != "" {
					t.Errorf("me %v, header %v", me, got.header)
				}
			})
		}
	}
	for name, carrier := range carriers {
		t.Run(name+" empty", func(t *testing.T) {
			t.Parallel()
			req := carrier("")
			req.method = http.MethodGet
			h.on(t).send(req).wantsChallenge("AUTHENTICATION_REQUIRED")
		})
	}
}

// Contract, section 3: Expired (tm_expire at or before now); contract 2: "exp is iat + 604800". The database's clock, which decides, is
// stopped for this test, so that "exactly now" is a moment that can be met.
func TestCredentialExpiresAtExactlyItsTime(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const expires = "2031-05-06 07:08:09+00"
	h.exec(`CREATE SCHEMA stopped`)
	h.exec(`CREATE TABLE stopped.clock AS SELECT $1::timestamptz AS now`, expires)
	h.exec(`CREATE FUNCTION stopped.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now FROM stopped.clock'`)
	h.exec(`UPDATE accesskeys SET tm_expire = $1`, expires)
	h.exec(`UPDATE agents SET tm_password = $1::timestamptz - interval '30 days'`, expires)
	agent := h.agentCredential(h.acme.admin.ID)
	moment, err := time.Parse("2006-01-02 15:04:05-07", expires)
	if err != nil {
		t.Fatal(err)
	}
	session, err := h.sessions.Issue(agent.Agent, moment.AddDate(0, 0, -7))
	if err != nil {
		t.Fatal(err)
	}
	// Connections made from here on find that function before Postgres's own.
	h.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = stopped, public, pg_catalog', current_database()); END $$`)
	stopped := h.uncached()
	for _, c := range []struct {
		off string
		ok  bool
	}{{"-1 second", true}, {"-1 microsecond", true}, {"0", false}, {"1 microsecond", false}, {"1 second", false}} {
		h.exec(`UPDATE stopped.clock SET now = $1::timestamptz + $2::interval`, expires, c.off)
		for name, credential := range map[string]string{"access key": h.acme.token, "JWT": session.Reveal()} {
			got := stopped.get("/v1.0/me", credential)
			if c.ok && got.code != http.StatusOK || !c.ok && got.code != http.StatusUnauthorized {
				t.Errorf("%s at its time and %s: status %d, want accepted %t", name, c.off, got.code, c.ok)
			}
		}
	}
}

// Contract, section 3: More than one, or one repeated: 401 INVALID_CREDENTIALS. Every one of the credentials is good by itself and they all
// are one customer's; each by itself is the control.
func TestMoreThanOneCredentialIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	type part struct{ query, header string }
	parts := map[string]part{
		"?token=":            {query: "token=" + h.acme.adminJWT},
		"?accesskey=":        {query: "accesskey=" + h.acme.token},
		"Bearer JWT":         {header: "Bearer " + h.acme.adminJWT},
		"Bearer key":         {header: "bearer " + h.acme.token},
		"?token= encoded":    {query: "%74o%6ben=" + h.acme.adminJWT},
		"?token= empty":      {query: "token="},
		"?token bare":        {query: "token"},
		"?accesskey= empty":  {query: "accesskey="},
		"Bearer empty":       {header: "Bearer "},
		"?accesskey= broken": {query: "accesskey=%zz"},
		"Basic":              {header: "Basic dTpw"},
	}
	absent := func(name string) bool {
		return name == "Basic" || strings.HasSuffix(name, "empty") || strings.HasSuffix(name, "bare")
	}
	// Two of a carrier are a repeated one; a second header line counts even where it is Basic.
	sameCarrier := func(a, b string) bool {
		if parts[a].header != "" || parts[b].header != "" {
			return parts[a].header != "" && parts[b].header != ""
		}
		return strings.HasPrefix(a, "?token") == strings.HasPrefix(b, "?token")
	}
	send := func(names ...string) response {
		var query []string
		header := http.Header{}
		for _, name := range names {
			if p := parts[name]; p.query != "" {
				query = append(query, p.query)
			} else {
				header.Add("Authorization", p.header)
			}
		}
		return h.send(request{method: http.MethodGet, path: "/v1.0/me?" + strings.Join(query, "&"), header: header})
	}
	const broken = "?accesskey= broken"
	for first := range parts {
		switch got := send(first); {
		case first == broken:
			got.wantsChallenge("INVALID_CREDENTIALS")
		case absent(first):
			got.wantsChallenge("AUTHENTICATION_REQUIRED")
		default:
			got.wants(http.StatusOK)
		}
		for second := range parts {
			switch got := send(first, second); {
			case absent(first) && absent(second):
				got.wantsChallenge("AUTHENTICATION_REQUIRED")
			case first != broken && second != broken && absent(first) != absent(second) && !sameCarrier(first, second):
				got.wants(http.StatusOK) // what is empty by itself counts as absent
			default:
				got.wantsChallenge("INVALID_CREDENTIALS")
			}
		}
	}
	send("?token=", "?accesskey=", "Bearer JWT").wantsChallenge("INVALID_CREDENTIALS")
}

// Contract, section 3: Nothing else is read: no cookie, no Basic, no X-API-Key, no body field. Good credentials lie everywhere but in their
// place: without one there it is a 401 as for none at all, and with one there nobody else speaks.
func TestNothingButTheThreeCarriersIsRead(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key, session := h.globex.token, h.globex.adminJWT
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	one := func(name, value string) request { return request{header: http.Header{name: {value}}} }
	for name, req := range map[string]request{
		"cookie token":               one("Cookie", "token="+session),
		"cookie accesskey":           one("Cookie", "accesskey="+key+"; Authorization=Bearer "+key),
		"X-API-Key":                  one("X-Api-Key", key),
		"X-Access-Key":               one("X-Access-Key", key),
		"X-Auth-Token":               one("X-Auth-Token", session),
		"header token":               one("Token", session),
		"header accesskey":           one("Accesskey", key),
		"Proxy-Authorization":        one("Proxy-Authorization", "Bearer "+key),
		"X-Authorization":            one("X-Authorization", "Bearer "+key),
		"X-Forwarded-Authorization":  one("X-Forwarded-Authorization", "Bearer "+key),
		"X-Original-URI":             one("X-Original-Uri", "/v1.0/me?accesskey="+key),
		"X-Forwarded-Uri":            one("X-Forwarded-Uri", "/v1.0/me?accesskey="+key),
		"Referer":                    one("Referer", "https://example.org/?accesskey="+key),
		"User-Agent":                 one("User-Agent", "Bearer "+key),
		"Sec-WebSocket-Protocol":     one("Sec-Websocket-Protocol", "bearer, "+key),
		"Basic, key as user":         one("Authorization", basic(key+":")),
		"Basic, key as password":     one("Authorization", basic("accesskey:"+key)),
		"Basic, user and password":   one("Authorization", basic(h.globex.admin.Username+":"+tenantPassword)),
		"no scheme":                  one("Authorization", key),
		"scheme Token":               one("Authorization", "Token "+key),
		"scheme ApiKey":              one("Authorization", "ApiKey "+key),
		"scheme JWT":                 one("Authorization", "JWT "+session),
		"scheme Bearer and a colon":  one("Authorization", "Bearer: "+key),
		"scheme Bearer and a tab":    one("Authorization", "Bearer\t"+key),
		"Digest":                     one("Authorization", `Digest username="`+key+`"`),
		"Basic before Bearer":        one("Authorization", "Basic x, Bearer "+key),
		"body fields":                {method: http.MethodPost, body: map[string]any{"token": session, "accesskey": key}},
		"body as a form":             {method: http.MethodPost, body: "accesskey=" + key, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}},
		"upper-case names":           {path: "?TOKEN=" + session + "&ACCESSKEY=" + key},
		"mixed-case names":           {path: "?Token=" + session + "&accessKey=" + key},
		"names with brackets":        {path: "?token[]=" + session + "&accesskey[0]=" + key},
		"names with spaces":          {path: "?+token=" + session + "&token+=" + session + "&%20accesskey=" + key},
		"names with NUL":             {path: "?token%00=" + session + "&accesskey%00=" + key},
		"names that are twice coded": {path: "?%2574oken=" + session},
		"names that can't be read":   {path: "?%zztoken=" + session + "&accesskey%=" + key},
		"names alike":                {path: "?access_key=" + key + "&api_key=" + key + "&key=" + key + "&access_token=" + session + "&jwt=" + session},
		"an encoded ampersand":       {path: "?x=1%26token=" + session},
		"an encoded question mark":   {path: "%3Ftoken=" + session},
		"the path":                   {path: ";token=" + session},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := h.on(t)
			if req.method == "" {
				req.method = http.MethodGet
			}
			rest := req.path
			req.path = "/v1.0/accesskeys" + rest
			h.send(req).wantsChallenge("AUTHENTICATION_REQUIRED")
			if req.method != http.MethodGet || rest != "" && rest[0] != '?' {
				return // /me has no such method, nor is there a route beside it
			}
			// With a credential of another customer in its place, that one alone counts.
			req.path = "/v1.0/me?accesskey=" + h.acme.token + strings.Replace(rest, "?", "&", 1)
			if me := h.send(req).wants(http.StatusOK).json(); me["id"] != h.acme.key.ID.String() {
				t.Errorf("me %v, want %s", me, h.acme.key.ID)
			}
		})
	}
}
