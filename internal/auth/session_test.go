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

// Contract, section 6: JWT_SECRET (required ..., at least 32 bytes, else it does not start), JWT_SECRET_PREVIOUS.
func TestShortJWTSecretIsRefused(t *testing.T) {
	t.Parallel()
	long, short := strings.Repeat("k", 32), strings.Repeat("k", 31)
	for name, c := range map[string]struct {
		current, previous string
		ok                bool
	}{
		"32 bytes": {long, "", true}, "32 bytes, and so the previous": {long, long, true},
		"32 bytes in fewer characters": {strings.Repeat("ü", 16), "", true},
		"31 bytes":                     {short, "", false}, "none": {"", "", false}, "none but the previous": {"", long, false},
		"the previous has 31": {long, short, false}, "the previous has 1": {long, "k", false},
	} {
		s, err := NewSessions(secret.New(c.current), secret.New(c.previous))
		if (err == nil) != c.ok || (s != nil) != c.ok {
			t.Errorf("%s: %v, want accepted %t", name, err, c.ok)
		}
		if err != nil && strings.Contains(err.Error(), "kkk") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

// Contract, section 6: JWT_SECRET_PREVIOUS (verifies only). Each pair of a signer and a verifier is tried; the first case is the control of
// those that refuse.
func TestPreviousSecretVerifiesAndNeverSigns(t *testing.T) {
	t.Parallel()
	now := time.Now()
	const own, other = testSecret, testOtherSecret
	for name, c := range map[string]struct {
		signer, verifier [2]string // secrets: current and previous
		want             cause
	}{
		"itself":                   {[2]string{own}, [2]string{own}, ""},
		"signed before the change": {[2]string{other}, [2]string{own, other}, ""},
		"signed after the change":  {[2]string{own, other}, [2]string{own}, ""},
		"both the same":            {[2]string{own, own}, [2]string{own, own}, ""},
		"signed after it, read by one that has only the previous": {[2]string{own, other}, [2]string{other}, causeSignature},
		"signed before it, after the previous was dropped":        {[2]string{other}, [2]string{own}, causeSignature},
	} {
		token := issue(t, newSessions(t, c.signer[0], c.signer[1]), anAgent(now), now)
		claims, err := newSessions(t, c.verifier[0], c.verifier[1]).parse(token)
		if Cause(err) != string(c.want) || (err == nil) != (c.want == "") || (claims == nil) != (err != nil) {
			t.Errorf("%s: refused as %v, want %q", name, err, c.want)
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
	if header := must(base64.RawURLEncoding.DecodeString(parts[0]))(t); string(header) != `{"alg":"HS256","typ":"JWT"}` {
		t.Errorf("header %s", header)
	}
	var claims map[string]any
	if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(parts[1]))(t), &claims); err != nil {
		t.Fatal(err)
	}
	jti := must(uuid.Parse(claims["jti"].(string)))(t)
	if jti.Version() != 4 {
		t.Errorf("jti %v", jti)
	}
	got := must(json.Marshal(claims))(t)
	want := must(json.Marshal(map[string]any{
		"iss": "accesskeys", "sub": agent.ID, "jti": jti, "type": "agent", "customer_id": agent.CustomerID,
		"iat": 1785585600, "exp": 1785585600 + 604800, "password_time": agent.TmPassword.UnixMicro(),
		"agent": map[string]any{
			"id": agent.ID, "customer_id": agent.CustomerID, "username": agent.Username, "name": agent.Name, "permission": 32,
		},
	}))(t)
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
	type credential = store.AgentCredential
	password := func(set, claimed time.Time) func(*session, *credential) {
		return func(s *session, c *credential) { c.TmPassword, s.passwordTime = set, claimed.UnixMicro() }
	}
	issuedAt := func(seconds int64) func(*session, *credential) {
		return func(s *session, _ *credential) { s.issuedAt, s.expiresAt = seconds, seconds+604800 }
	}
	fraction := second(0).Add(999 * time.Millisecond)
	for name, c := range map[string]struct {
		change func(*session, *credential)
		want   cause
	}{
		"nothing":                          {func(*session, *credential) {}, ""},
		"last moment":                      {func(_ *session, c *credential) { c.Now = second(604800).Add(-time.Nanosecond) }, ""},
		"exactly expired":                  {func(_ *session, c *credential) { c.Now = second(604800) }, causeExpired},
		"long expired":                     {func(_ *session, c *credential) { c.Now = second(999999999) }, causeExpired},
		"clock behind by a minute":         {func(_ *session, c *credential) { c.Now = second(-60) }, ""},
		"clock behind by more":             {func(_ *session, c *credential) { c.Now = second(-61) }, causeClaims},
		"exp at the end of time":           {func(s *session, _ *credential) { s.issuedAt, s.expiresAt = 1<<63-2, 1<<63-1 }, causeClaims},
		"iat where time.Time wraps":        {issuedAt(1<<63 - 62135596800), causeClaims},
		"agent deleted":                    {func(_ *session, c *credential) { c.TmDelete = second(1) }, causeDeleted},
		"agent to be deleted":              {func(_ *session, c *credential) { c.TmDelete = second(1e8) }, causeDeleted},
		"customer deleted":                 {func(_ *session, c *credential) { c.CustomerTmDelete = second(1) }, causeOwner},
		"agent moved":                      {func(_ *session, c *credential) { c.CustomerID = uuid.New() }, causeClaims},
		"permission changed":               {func(_ *session, c *credential) { c.Permission = 16 }, ""},
		"password set later":               {func(_ *session, c *credential) { c.TmPassword = second(1) }, causePassword},
		"password set a microsecond later": {func(_ *session, c *credential) { c.TmPassword = c.TmPassword.Add(time.Microsecond) }, causePassword},
		"password set earlier than known":  {func(_ *session, c *credential) { c.TmPassword = second(-100) }, causePassword},
		// The database's clock was ahead when the password was set: the token is of this password all the same.
		"password set after iat":               {password(second(1), second(1)), ""},
		"password set a year after iat":        {password(second(365*86400), second(365*86400)), ""},
		"of another time after iat":            {password(second(2), second(1)), causePassword},
		"password set and login in one second": {password(fraction, fraction), ""},
	} {
		agent := anAgent(second(0))
		claims := session{
			subject: agent.ID, customerID: agent.CustomerID, issuedAt: issued, expiresAt: issued + 604800,
			passwordTime: agent.TmPassword.UnixMicro(),
		}
		now := credential{Agent: agent, CustomerTmDelete: store.Never(), Now: second(10)}
		c.change(&claims, &now)
		if got, err := claims.refusal(now, nil); got != c.want || err != nil {
			t.Errorf("%s: refused as %q, %v, want %q", name, got, err, c.want)
		}
	}
	if got, err := (&session{}).refusal(credential{}, store.ErrNotFound); got != causeUnknown || err != nil {
		t.Errorf("no such agent: refused as %q, %v", got, err)
	}
	// A store that can't tell is no refusal.
	if got, err := (&session{}).refusal(credential{}, store.ErrUnavailable); got != "" || !errors.Is(err, store.ErrUnavailable) {
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
			issue(t, s, anAgent(now), now), issue(t, s, long, now),
			func(token string) any { return must(s.parse(token))(t) }, sessionBytes,
		},
		"a service account's token": {
			signing.withClaims(signing.claims("")), signing.withClaims(signing.claims(audience)),
			func(token string) any {
				return must(must(parseAssertion(token))(t).verify(signing.credential, "us"))(t)
			},
			signedAssertionBytes + len(signing.credential.Key.PublicKey),
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
