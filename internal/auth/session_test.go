package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

const (
	testSecret      = "the-secret-of-these-tests-01234567"
	testOtherSecret = "the-secret-of-others-0123456789abc"
)

func newSessions(tb testing.TB, current, previous string) *Sessions {
	tb.Helper()
	s, err := NewSessions(secret.New(current), secret.New(previous))
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func issue(tb testing.TB, s *Sessions, agent store.Agent, now time.Time) string {
	tb.Helper()
	token, err := s.Issue(agent, now)
	if err != nil {
		tb.Fatal(err)
	}
	return token.Reveal()
}

// anAgent is an agent whose password was set a month before now.
func anAgent(now time.Time) store.Agent {
	return store.Agent{
		ID: uuid.New(), CustomerID: uuid.New(), Username: "ä@example.org", Name: "A <b> & \u2028", Permission: 32,
		TmPassword: now.AddDate(0, -1, 0), TmDelete: store.Never(),
	}
}

// Contract, section 6: JWT_SECRET (required ..., at least 32 bytes, else it does not start), JWT_SECRET_PREVIOUS.
func TestShortJWTSecretIsRefused(t *testing.T) {
	t.Parallel()
	long, short := strings.Repeat("k", 32), strings.Repeat("k", 31)
	for _, c := range []struct {
		name, current, previous string
		ok                      bool
	}{
		{"32 bytes", long, "", true},
		{"32 bytes, and so the previous", long, long, true},
		{"32 bytes in fewer characters", strings.Repeat("ü", 16), "", true},
		{"31 bytes", short, "", false},
		{"none", "", "", false},
		{"none but the previous", "", long, false},
		{"the previous has 31", long, short, false},
		{"the previous has 1", long, "k", false},
	} {
		s, err := NewSessions(secret.New(c.current), secret.New(c.previous))
		if (err == nil) != c.ok || (s != nil) != c.ok {
			t.Errorf("%s: %v, want accepted %t", c.name, err, c.ok)
		}
		if err != nil && strings.Contains(err.Error(), "kkk") {
			t.Errorf("%s: the error shows the secret: %v", c.name, err)
		}
	}
}

// Contract, section 6: JWT_SECRET_PREVIOUS (verifies only). Each pair of a signer and a verifier is tried; the first case is the control of
// those that refuse.
func TestPreviousSecretVerifiesAndNeverSigns(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		name             string
		signer, verifier *Sessions
		ok               bool
	}{
		{"itself", newSessions(t, testSecret, ""), newSessions(t, testSecret, ""), true},
		{"signed before the change", newSessions(t, testOtherSecret, ""), newSessions(t, testSecret, testOtherSecret), true},
		{"signed after the change", newSessions(t, testSecret, testOtherSecret), newSessions(t, testSecret, ""), true},
		{"signed after it, read by one that has only the previous", newSessions(t, testSecret, testOtherSecret), newSessions(t, testOtherSecret, ""), false},
		{"signed before it, after the previous was dropped", newSessions(t, testOtherSecret, ""), newSessions(t, testSecret, ""), false},
		{"both the same", newSessions(t, testSecret, testSecret), newSessions(t, testSecret, testSecret), true},
	} {
		token := issue(t, c.signer, anAgent(now), now)
		claims, err := c.verifier.parse(token)
		if c.ok && (err != nil || claims == nil) {
			t.Errorf("%s: %v, want accepted", c.name, err)
		}
		if !c.ok && (Cause(err) != string(causeSignature) || claims != nil) {
			t.Errorf("%s: %v, want a bad signature", c.name, err)
		}
	}
}

// Contract, section 2: The JWT's header is exactly {"alg:"HS256","typ":"JWT"}; exp is iat + 604800 (7 days); claims also hold iss, sub (the
// agent's id), jti, type: "agent", customer_id and agent: {id, customer_id, username, name, permission}".
func TestIssuedTokenHoldsWhatTheContractNames(t *testing.T) {
	t.Parallel()
	s := newSessions(t, testSecret, "")
	now := time.Date(2026, 8, 1, 12, 0, 0, 999_999_999, time.UTC)
	agent := anAgent(now)
	token := issue(t, s, agent, now)
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || string(header) != `{"alg":"HS256","typ":"JWT"}` {
		t.Errorf("header %s, %v", header, err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	jti, err := uuid.Parse(claims["jti"].(string))
	if err != nil || jti.Version() != 4 {
		t.Errorf("jti %v", claims["jti"])
	}
	got, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(map[string]any{
		"iss": "accesskeys", "sub": agent.ID, "jti": jti, "type": "agent", "customer_id": agent.CustomerID,
		"iat": 1785585600, "exp": 1785585600 + 604800, "password_time": agent.TmPassword.UnixMicro(),
		"agent": map[string]any{
			"id": agent.ID, "customer_id": agent.CustomerID, "username": agent.Username, "name": agent.Name, "permission": 32,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("claims %s\nwant   %s", got, want)
	}
	if again := issue(t, s, agent, now); again == token {
		t.Error("two logins in one second give one token")
	}
}

// The bound on a token's length must never refuse our own.
func TestLongestAgentsTokenStaysWithinTheBound(t *testing.T) {
	t.Parallel()
	s := newSessions(t, testSecret, "")
	now := time.Now()
	for _, character := range []string{"x", "<", "\"", "\u2028", "\U0001f600", "\x01"} {
		agent := anAgent(now)
		agent.Username, agent.Name = strings.Repeat(character, 255), strings.Repeat(character, 255)
		token := issue(t, s, agent, now)
		c, err := Extract("", []string{"Bearer " + token})
		if err != nil || c.jwt != token {
			t.Fatalf("%q: a token of %d bytes is refused: %v", character, len(token), err)
		}
		if _, err := s.parse(token); err != nil {
			t.Errorf("%q: %v", character, err)
		}
	}
}

// Contract, section 2: A token stops working at once where its agent is deleted, and where the agent's password is changed; contract 3:
// "Expired (... at or before now)". Each case is one change to what is accepted, at the bounds of time too.
func TestSessionIsHeldAgainstTheAgentAsItIsNow(t *testing.T) {
	t.Parallel()
	const issued = 1_800_000_000
	second := func(n int64) time.Time { return time.Unix(issued+n, 0) }
	type state struct {
		claims session
		agent  store.AgentCredential
		err    error // of reading the agent
	}
	for _, c := range []struct {
		name   string
		change func(*state)
		want   cause
	}{
		{"nothing", func(*state) {}, ""},
		{"last moment", func(s *state) { s.agent.Now = second(604800).Add(-time.Nanosecond) }, ""},
		{"exactly expired", func(s *state) { s.agent.Now = second(604800) }, causeExpired},
		{"long expired", func(s *state) { s.agent.Now = second(999999999) }, causeExpired},
		{"clock behind by a minute", func(s *state) { s.agent.Now = second(-60) }, ""},
		{"clock behind by more", func(s *state) { s.agent.Now = second(-61) }, causeClaims},
		{"iat at the end of time", func(s *state) { s.claims.issuedAt, s.claims.expiresAt = 1<<63-2, 1<<63-1 }, causeClaims},
		{"iat where time.Time wraps", func(s *state) {
			s.claims.issuedAt, s.claims.expiresAt = 1<<63-62135596800, 1<<63-62135596800+604800
		}, causeClaims},
		{"agent deleted", func(s *state) { s.agent.TmDelete = second(1) }, causeDeleted},
		{"agent to be deleted", func(s *state) { s.agent.TmDelete = second(1e8) }, causeDeleted},
		{"customer deleted", func(s *state) { s.agent.CustomerTmDelete = second(1) }, causeOwner},
		{"agent moved", func(s *state) { s.agent.CustomerID = uuid.New() }, causeClaims},
		{"password set later", func(s *state) { s.agent.TmPassword = second(1) }, causePassword},
		{"password set a microsecond later", func(s *state) { s.agent.TmPassword = s.agent.TmPassword.Add(time.Microsecond) }, causePassword},
		{"password set earlier than known", func(s *state) { s.agent.TmPassword = second(-100) }, causePassword},
		// The database's clock was ahead when the password was set: the token is of this password all the same.
		{"password set after iat", func(s *state) {
			s.agent.TmPassword = second(1)
			s.claims.passwordTime = second(1).UnixMicro()
		}, ""},
		{"password set a year after iat", func(s *state) {
			s.agent.TmPassword = second(365 * 86400)
			s.claims.passwordTime = second(365 * 86400).UnixMicro()
		}, ""},
		{"of another time after iat", func(s *state) {
			s.agent.TmPassword = second(2)
			s.claims.passwordTime = second(1).UnixMicro()
		}, causePassword},
		{"no such agent", func(s *state) { s.agent, s.err = store.AgentCredential{}, store.ErrNotFound }, causeUnknown},
		{"password set and login in one second", func(s *state) {
			s.agent.TmPassword = second(0).Add(999 * time.Millisecond)
			s.claims.passwordTime = s.agent.TmPassword.UnixMicro()
		}, ""},
		{"permission changed", func(s *state) { s.agent.Permission = 16 }, ""},
	} {
		agent := anAgent(second(0))
		s := state{
			claims: session{
				subject: agent.ID, customerID: agent.CustomerID, issuedAt: issued, expiresAt: issued + 604800,
				passwordTime: agent.TmPassword.UnixMicro(),
			},
			agent: store.AgentCredential{Agent: agent, CustomerTmDelete: store.Never(), Now: second(10)},
		}
		c.change(&s)
		if got, err := s.claims.refusal(s.agent, s.err); got != c.want || err != nil {
			t.Errorf("%s: refused as %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	// A store that can't tell is no refusal.
	if got, err := (&session{}).refusal(store.AgentCredential{}, store.ErrUnavailable); got != "" || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("where the store is unavailable: refused as %q, %v", got, err)
	}
}

// The names in the log are a closed set that tells an operator why, and never what.
func TestRefusalNamesItsCauseAndNothingElse(t *testing.T) {
	t.Parallel()
	s := newSessions(t, testSecret, "")
	now := time.Now()
	good := issue(t, s, anAgent(now), now)
	_, several := Extract("token="+good+"&token="+good, nil)
	_, malformed := s.parse("x" + good)
	_, signature := s.parse(good[:len(good)-8] + "AAAAAAAA")
	var got []string
	for _, err := range []error{several, malformed, signature, ErrNoCredential, nil} {
		got = append(got, Cause(err))
	}
	if want := []string{"several credentials", "malformed", "bad signature", "", ""}; !slices.Equal(got, want) {
		t.Errorf("causes %q, want %q", got, want)
	}
	for _, err := range []error{several, malformed, signature} {
		if err.Error() != "invalid credential: "+Cause(err) {
			t.Errorf("error %q", err)
		}
	}
}

// What is remembered of a token has the size that it is weighed with, whatever the token says: long names, a large aud, claims of no
// meaning. The token's text is not kept.
func TestWhatIsRememberedOfATokenDoesNotGrowWithIt(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := newSessions(t, testSecret, "")
	long := anAgent(now)
	long.Username, long.Name = strings.Repeat("u", 255), strings.Repeat("n", 255)
	signing := newSignatory(t, EdDSA)
	audience := `,"aud":["us","` + strings.Repeat("x", 2500) + `"],"other":"` + strings.Repeat("y", 2500) + `"`
	for name, c := range map[string]struct {
		short, long string
		remember    func(token string) any
		weighed     int
	}{
		"a login token": {
			issue(t, s, anAgent(now), now), issue(t, s, long, now), func(token string) any {
				claims, err := s.parse(token)
				if err != nil {
					t.Fatal(err)
				}
				return claims
			}, sessionBytes,
		},
		"a service account's token": {
			signing.sign(signing.header(), signing.claims("")), signing.sign(signing.header(), signing.claims(audience)), func(token string) any {
				a, err := parseAssertion(token)
				if err != nil {
					t.Fatal(err)
				}
				signed, err := a.verify(signing.credential, "us")
				if err != nil {
					t.Fatal(err)
				}
				return signed
			}, signedAssertionBytes + len(signing.credential.Key.PublicKey),
		},
	} {
		short, grown := sizeOf(reflect.ValueOf(c.remember(c.short))), sizeOf(reflect.ValueOf(c.remember(c.long)))
		if short != grown || grown > c.weighed || len(c.long) < len(c.short)+200 {
			t.Errorf("%s: %d bytes hold a token of %d, %d one of %d; weighed as %d", name, short, len(c.short), grown, len(c.long), c.weighed)
		}
	}
	// The control: what is measured does grow with what it holds.
	if small, large := sizeOf(reflect.ValueOf(&sessionClaims{})), sizeOf(reflect.ValueOf(&sessionClaims{Audience: []byte(audience)})); large < small+2500 {
		t.Errorf("%d bytes, and %d with an audience", small, large)
	}
}

// sizeOf is what a value takes of memory, with all that it alone points to.
func sizeOf(v reflect.Value) int {
	n := int(v.Type().Size())
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			n += sizeOf(v.Elem())
		}
	case reflect.String:
		n += v.Len()
	case reflect.Slice:
		n += v.Cap() * int(v.Type().Elem().Size())
	case reflect.Struct:
		for i := range v.NumField() {
			n += sizeOf(v.Field(i)) - int(v.Field(i).Type().Size())
		}
	default: // all of it is in its own size
	}
	return n
}
