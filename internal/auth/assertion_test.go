package auth

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// Iat, exp at most iat + 3600, clock skew of 60 s allowed. Each rule at its very edge, on both sides.
func TestTimesOfAnAssertionAreHeldToTheSecond(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	at := func(iat, exp int64) string { return s.times(fmt.Sprint(s.now+iat), fmt.Sprint(s.now+exp), "") }
	more := func(format string, after int64) string { return s.claims(fmt.Sprintf(format, s.now+after)) }
	n, end := fmt.Sprint(s.now), fmt.Sprint(s.now+60)
	const least, most = "-9223372036854775808", "9223372036854775807"
	s.verdicts("", s.withClaims, map[string][]string{
		"": {
			at(0, 3600), at(0, 1), at(60, 60+3600), at(-3659, -59), at(-60, 0), more(`,"nbf":%d`, 60), more(`,"nbf":%d`, -1000000),
			s.claims(`,"nbf":null`), s.claims(`,"EXP":1`),
		},
		"expired": {at(-3660, -60), at(-7200, -3600)},
		"bad claims": {
			at(0, 3601), at(0, 0), at(0, -1), at(61, 61+60), at(-86400, 1), more(`,"nbf":%d`, 61),
			fmt.Sprintf(`{"iss":%q,"exp":%s}`, s.credential.Account.ID, end), fmt.Sprintf(`{"iss":%q,"iat":%s}`, s.credential.Account.ID, n),
			fmt.Sprintf(`{"iss":%q}`, s.credential.Account.ID), strings.Replace(s.claims(""), `"exp"`, `"EXP"`, 1), "null",
			s.times("null", n, ""), s.times(n, "null", ""), s.times("0", "3600", ""), s.times("-1", "1", ""), s.times(n+"000", end+"000", ""),
			// At the ends of int64, where a difference would wrap.
			s.times(n, most, ""), s.times("9223372036854775806", most, ""), s.times(least, most, ""), s.times(most, least, ""),
		},
		"malformed": {
			s.times(n, "9223372036854775808", ""), s.times(`"`+n+`"`, end, ""), s.times(n, `"`+end+`"`, ""), s.times(n+".5", end, ""),
			s.times(n, end+".0", ""), s.times(n, "1e10", ""), s.times(n, "true", ""), s.times(n, "["+end+"]", ""),
			s.claims(`,"nbf":"0"`), s.claims(`,"nbf":0,"nbf":0`), s.claims(`,"nbf":1.5`),
			more(`,"exp":%d`, 60), more(`,"iat":%d`, 0), more(`,"\u0065xp":%d`, 60), // once more
			"[" + s.claims("") + "]", s.claims("") + s.claims(""), "x", s.claims(`,"x":"` + strings.Repeat("x", 7000) + `"`),
		},
	})
}

// Iss = account id; "iss may be a JSON number or string where it is compared as text".
func TestIssuerOfAnAssertionIsItsAccountComparedAsText(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	id := s.credential.Account.ID.String()
	s.verdicts("", func(iss string) string {
		return s.withClaims(fmt.Sprintf(`{%s"iat":%d,"exp":%d}`, strings.ReplaceAll(iss, "<id>", id), s.now, s.now+60))
	}, map[string][]string{
		"": {`"iss":"<id>",`, fmt.Sprintf(`"iss":"\u00%02x%s",`, id[0], id[1:])},
		"bad claims": {
			``, `"iss":"` + uuid.NewString() + `",`, `"iss":"` + s.credential.Account.CustomerID.String() + `",`,
			`"iss":"` + s.credential.Key.ID.String() + `",`, `"iss":"` + strings.ToUpper(id) + `x",`, `"iss":"urn:uuid:<id>",`, `"iss":" <id>",`,
			`"iss":"<id>\u0000",`, `"iss":"",`, `"iss":null,`, `"iss":1,`, `"iss":1.0,`, `"iss":true,`, `"iss":["<id>"],`, `"iss":{"iss":"<id>"},`,
			`"iss":"accesskeys",`,
		},
		"malformed": {`"iss":"a","iss":"<id>",`},
	})
	// An id that is a number's text can't be a UUID, so the comparison itself is shown.
	for raw, want := range map[string]string{
		`123`: "123", `"123"`: "123", `9007199254740993`: "9007199254740993", `"a b"`: "a b", `null`: "", `[1]`: "", `{}`: "", `true`: "", ``: "",
	} {
		if got := textOf([]byte(raw)); got != want {
			t.Errorf("the text of %s is %q, want %q", raw, got, want)
		}
	}
}

// Aud checked where sent (AUDIENCE setting). Where nobody has said who we are, a token that names anybody is not for us: a check that is off
// when its setting is missing is none.
func TestAudienceIsCheckedWhereItIsSent(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	const us = "https://keys.example"
	token := func(aud string) string { return s.withClaims(s.claims(strings.ReplaceAll(aud, "<us>", us))) }
	ours := []string{`,"aud":"<us>"`, `,"aud":["<us>"]`, `,"aud":["other","<us>"]`}
	others := []string{
		`,"aud":"other"`, `,"aud":["other"]`, `,"aud":[]`, `,"aud":""`, `,"aud":[""]`, `,"aud":null`, `,"aud":[null]`, `,"aud":1`, `,"aud":true`,
		`,"aud":{}`, `,"aud":["<us>",1]`, `,"aud":[["<us>"]]`, `,"aud":"<us>/"`, `,"aud":"HTTPS://keys.example"`, `,"aud":"<us> other"`,
	}
	malformed := []string{`,"aud":"other","aud":"<us>"`}
	s.verdicts(us, token, map[string][]string{"": append(ours, ""), "bad claims": others, "malformed": malformed})
	s.verdicts("", token, map[string][]string{"": {""}, "bad claims": append(ours, others...), "malformed": malformed})
}

// Header kid = key id, alg the stored key's own. What a header may have besides, and what it may not.
func TestHeaderOfAnAssertionNamesItsKeyAndNothingThatChangesItsReading(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	kid := s.credential.Key.ID.String()
	fill := strings.NewReplacer("<kid>", kid, "<bare>", strings.ReplaceAll(kid, "-", ""), "<good>", s.header())
	malformed := []string{
		`{"alg":"EdDSA","kid":"<kid>","typ":"at+jwt"}`, `{"alg":"EdDSA","kid":"<kid>","typ":"JWE"}`, `{"alg":"EdDSA","kid":"<kid>","typ":1}`,
		`{"alg":"EdDSA"}`, `{"alg":"EdDSA","kid":""}`, `{"alg":"EdDSA","kid":null}`, `{"alg":"EdDSA","kid":1}`, `{"alg":"EdDSA","kid":["<kid>"]}`,
		`{"alg":"EdDSA","kid":"<bare>"}`, `{"alg":"EdDSA","kid":"{<kid>}"}`, `{"alg":"EdDSA","kid":"urn:uuid:<kid>"}`, `{"alg":"EdDSA","kid":"<kid> "}`,
		`{"alg":"EdDSA","kid":"../../dev/null"}`, `{"alg":"EdDSA","KID":"<kid>"}`, `{"alg":"EdDSA","kid":"x","kid":"<kid>"}`,
		`{"alg":"none","alg":"EdDSA","kid":"<kid>"}`, `{"alg":1,"kid":"<kid>"}`,
		"", "null", "[]", `"x"`, "{", "{}", "<good><good>", "\ufeff<good>", "<good>\x00", "{\"alg\":\"EdDSA\",\"kid\":\"<kid>\",\"x\":\"\xff\"}",
	}
	for _, member := range []string{"crit", "b64", "zip", "cty"} {
		for _, value := range []string{`null`, `true`, `false`, `""`, `"JWT"`, `"DEF"`, `[]`, `["exp"]`, `["b64"]`} {
			malformed = append(malformed, fmt.Sprintf(`{"alg":"EdDSA","kid":"<kid>",%q:%s}`, member, value))
		}
	}
	s.verdicts("", func(header string) string { return s.sign(fill.Replace(header), s.claims("")) }, map[string][]string{
		"": {
			"<good>", `{"alg":"EdDSA","kid":"<kid>"}`, `{ "kid" : "<kid>", "alg" : "EdDSA" }`, `{"alg":"EdDSA","kid":"<kid>","typ":"jwt"}`,
			`{"alg":"EdDSA","kid":"<kid>","x":1}`,
			// A key in the header itself is not looked at.
			`{"alg":"EdDSA","kid":"<kid>","jwk":{"kty":"OKP"},"jku":"https://attacker.example"}`,
		},
		"malformed": malformed,
		"bad signature": {
			`{"kid":"<kid>"}`, `{"alg":"","kid":"<kid>"}`, `{"alg":null,"kid":"<kid>"}`, `{"ALG":"EdDSA","kid":"<kid>"}`, `{"alg":"none","kid":"<kid>"}`,
			`{"alg":"eddsa","kid":"<kid>"}`, `{"alg":"Ed25519","kid":"<kid>"}`, `{"alg":"HS256","kid":"<kid>"}`, `{"alg":"RS256","kid":"<kid>"}`,
			`{"alg":"ES256","kid":"<kid>"}`,
		},
	})
}

// A key, an account or a customer that was deleted ends the tokens, whatever the tokens say.
func TestAssertionEndsWithItsKeyAccountAndCustomer(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	token := s.withClaims(s.claims(""))
	for field, cause := range map[*time.Time]string{
		new(time.Time): "", &s.credential.Key.TmDelete: "deleted", &s.credential.Account.TmDelete: "deleted",
		&s.credential.CustomerTmDelete: "owner deleted",
	} {
		*field = s.credential.Now.Add(-time.Microsecond)
		if got := s.verdict(token, ""); got != cause {
			t.Errorf("refused as %q, want %q", got, cause)
		}
		*field = store.Never()
	}
}

// What this service issues, and what Credentials.Sign makes by each algorithm, it takes; and nothing else that is nearly that, in another
// spelling or with another bit.
func TestTokenHasOneSpellingAndNoBitOfItMayChange(t *testing.T) {
	t.Parallel()
	const us = "https://keys.example"
	sessions, now := newSessions(t, testSecret, ""), time.Now()
	verdicts := map[string]func(token string) string{}
	verdicts[issue(t, sessions, anAgent(now), now)] = func(token string) string {
		claims, err := sessions.parse(token)
		if (claims == nil) == (err == nil) {
			t.Errorf("%v with %v: %q", claims, err, token)
		}
		return Cause(err)
	}
	for _, algorithm := range Algorithms() {
		s := newSignatory(t, algorithm)
		c := Credentials{AccountID: s.credential.Account.ID.String(), KeyID: s.credential.Key.ID.String(), PrivateKey: pairsOnce()[algorithm]}
		for _, audience := range []string{"", us} {
			token := must(c.Sign(s.credential.Now, time.Hour, audience))(t).Reveal()
			verdicts[token] = func(token string) string { return s.verdict(token, us) }
		}
	}
	for good, verdict := range verdicts {
		if got := verdict(good); got != "" {
			t.Errorf("refused as %q: %s", got, good)
		}
		for _, text := range hostile(good) {
			if got := verdict(text); got == "" {
				t.Errorf("accepted: %q", text)
			}
		}
		dot := strings.LastIndexByte(good, '.')
		signature := must(base64.RawURLEncoding.DecodeString(good[dot+1:]))(t)
		if respelled := must(base64.RawURLEncoding.DecodeString(spareBits(good)[dot+1:]))(t); string(respelled) != string(signature) {
			t.Errorf("another last character is another signature: %s", good)
		}
		for bit := range len(signature) * 8 {
			if bit%5 != 0 && bit > 16 { // enough of them
				continue
			}
			signature[bit/8] ^= 1 << (bit % 8)
			if got := verdict(good[:dot+1] + base64.RawURLEncoding.EncodeToString(signature)); got != "bad signature" {
				t.Errorf("bit %d of the signature altered: refused as %q: %s", bit, got, good)
			}
			signature[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// "--expire 3600" is the most; and no error of signing shows the private key.
func TestSigningIsBoundedAndItsErrorsShowNoKey(t *testing.T) {
	t.Parallel()
	good := pairsOnce()[EdDSA].Reveal()
	marker := strings.Split(good, "\n")[1][10:40]
	tampered := strings.Replace(good, marker, marker[:20]+"AAAAAAAAAA", 1)
	for name, test := range map[string]struct {
		key      string
		lifetime time.Duration
		fine     bool
	}{
		"an hour": {good, time.Hour, true}, "a second": {good, time.Second, true}, "zero": {good, 0, false}, "negative": {good, -time.Second, false},
		"over an hour": {good, time.Hour + time.Second, false}, "no PEM": {marker, time.Hour, false},
		"another block": {strings.ReplaceAll(good, "PRIVATE", "EC PRIVATE"), time.Hour, false},
		"cut":           {strings.Replace(good, marker, "", 1), time.Hour, false}, "altered": {tampered, time.Hour, true},
	} {
		signed, err := Credentials{AccountID: "a", KeyID: "k", PrivateKey: secret.New(test.key)}.Sign(time.Now(), test.lifetime, "")
		if (err == nil) != test.fine || (err == nil) == signed.Empty() {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), marker[:10]) || strings.Contains(err.Error(), marker[10:])) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}
