package auth

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// signatory is a service account with one key, as the store would have it, and the private half.
type signatory struct {
	t          *testing.T
	credential store.ServiceAccountCredential
	private    any
	method     jwt.SigningMethod
	now        int64
}

// pairsOnce are one pair for each algorithm: the tests of rules need no fresh ones.
var pairsOnce = sync.OnceValue(func() map[Algorithm]secret.Value {
	made := map[Algorithm]secret.Value{}
	for _, algorithm := range Algorithms() {
		private, _, err := newKeyPair(algorithm)
		if err != nil {
			panic(err)
		}
		made[algorithm] = private
	}
	return made
})

func newSignatory(t *testing.T, algorithm Algorithm) *signatory {
	t.Helper()
	pem := []byte(pairsOnce()[algorithm].Reveal())
	var private any
	var err error
	switch algorithm {
	case RS256:
		private, err = jwt.ParseRSAPrivateKeyFromPEM(pem)
	case ES256:
		private, err = jwt.ParseECPrivateKeyFromPEM(pem)
	case EdDSA:
		private, err = jwt.ParseEdPrivateKeyFromPEM(pem)
	}
	if err != nil {
		t.Fatal(err)
	}
	public, err := publicOf(private)
	if err != nil {
		t.Fatal(err)
	}
	method, _ := algorithm.signingMethod()
	now := time.Date(2026, 8, 1, 12, 0, 0, 999_999_000, time.UTC) // late in its second: whole seconds are compared
	account := store.ServiceAccount{ID: uuid.New(), CustomerID: uuid.New(), TmDelete: store.Never()}
	key := store.ServiceAccountKey{
		ID: uuid.New(), AccountID: account.ID, Algorithm: string(algorithm), PublicKey: public, TmDelete: store.Never(),
	}
	credential := store.ServiceAccountCredential{Key: key, Account: account, CustomerTmDelete: store.Never(), Now: now}
	return &signatory{t: t, credential: credential, private: private, method: method, now: now.Unix()}
}

// publicOf is the public half's SubjectPublicKeyInfo.
func publicOf(private any) ([]byte, error) {
	return x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public())
}

// sign signs two texts as they stand.
func (s *signatory) sign(header, claims string) string {
	s.t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	signature, err := s.method.Sign(input, s.private)
	if err != nil {
		s.t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func (s *signatory) header() string {
	return fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, s.method.Alg(), s.credential.Key.ID)
}

// claims are those of a good token; more is added as it stands.
func (s *signatory) claims(more string) string {
	return s.times(fmt.Sprint(s.now), fmt.Sprint(s.now+3600), more)
}

func (s *signatory) times(iat, exp, more string) string {
	return fmt.Sprintf(`{"iss":%q,"iat":%s,"exp":%s%s}`, s.credential.Account.ID, iat, exp, more)
}

// verdict is the cause of the refusal, "" where the token is accepted: as Verifier goes about it at the first sight of a token. What it
// remembers then has to come to the same.
func (s *signatory) verdict(token, audience string) string {
	s.t.Helper()
	a, err := parseAssertion(token)
	if err == nil {
		if a.keyID != s.credential.Key.ID {
			s.t.Fatalf("it names the key %s", a.keyID)
		}
		var why cause
		if why, err = ownerRefusal(s.credential, nil); err == nil && why != "" {
			err = refused(why)
		}
	}
	if err == nil {
		var signed *signedAssertion
		if signed, err = a.verify(s.credential, audience); signed != nil {
			if again := signed.verify(s.credential); Cause(again) != Cause(err) || !signed.by(s.credential.Key) {
				s.t.Errorf("refused as %q at first, and as %q when it is remembered", Cause(err), Cause(again))
			}
		}
	}
	if err != nil && !errors.Is(err, ErrInvalidCredential) {
		s.t.Fatalf("an error that is no refusal: %v", err)
	}
	return Cause(err)
}

// Iat, exp at most iat + 3600, clock skew of 60 s allowed. Each rule at its very edge, on both sides.
func TestTimesOfAnAssertionAreHeldToTheSecond(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	at := func(iat, exp int64) string { return s.times(fmt.Sprint(s.now+iat), fmt.Sprint(s.now+exp), "") }
	nbf := func(seconds int64) string { return s.claims(fmt.Sprintf(`,"nbf":%d`, s.now+seconds)) }
	n := fmt.Sprint(s.now)
	for name, test := range map[string]struct{ claims, cause string }{
		"an hour":                   {at(0, 3600), ""},
		"an hour and a second":      {at(0, 3601), "bad claims"},
		"a second":                  {at(0, 1), ""},
		"no time at all":            {at(0, 0), "bad claims"},
		"exp before iat":            {at(0, -1), "bad claims"},
		"signed a minute ahead":     {at(60, 60+3600), ""},
		"signed 61 s ahead":         {at(61, 61+60), "bad claims"},
		"ended 59 s ago":            {at(-3659, -59), ""},
		"ended 60 s ago":            {at(-3660, -60), "expired"},
		"ended an hour ago":         {at(-7200, -3600), "expired"},
		"ends now":                  {at(-60, 0), ""},
		"long lived, nearly over":   {at(-86400, 1), "bad claims"},
		"nbf a minute ahead":        {nbf(60), ""},
		"nbf 61 s ahead":            {nbf(61), "bad claims"},
		"nbf past":                  {nbf(-1000000), ""},
		"nbf null":                  {s.claims(`,"nbf":null`), ""},
		"nbf a string":              {s.claims(`,"nbf":"0"`), "malformed"},
		"nbf twice":                 {s.claims(`,"nbf":0,"nbf":0`), "malformed"},
		"nbf a fraction":            {s.claims(`,"nbf":1.5`), "malformed"},
		"iat missing":               {fmt.Sprintf(`{"iss":%q,"exp":%d}`, s.credential.Account.ID, s.now+60), "bad claims"},
		"exp missing":               {fmt.Sprintf(`{"iss":%q,"iat":%d}`, s.credential.Account.ID, s.now), "bad claims"},
		"both missing":              {fmt.Sprintf(`{"iss":%q}`, s.credential.Account.ID), "bad claims"},
		"iat null":                  {s.times("null", n, ""), "bad claims"},
		"exp null":                  {s.times(n, "null", ""), "bad claims"},
		"iat a string":              {s.times(`"`+n+`"`, fmt.Sprint(s.now+60), ""), "malformed"},
		"exp a string":              {s.times(n, `"`+fmt.Sprint(s.now+60)+`"`, ""), "malformed"},
		"iat a fraction":            {s.times(n+".5", fmt.Sprint(s.now+60), ""), "malformed"},
		"exp a fraction":            {s.times(n, fmt.Sprint(s.now+60)+".0", ""), "malformed"},
		"exp an exponent":           {s.times(n, "1e10", ""), "malformed"},
		"exp true":                  {s.times(n, "true", ""), "malformed"},
		"exp a list":                {s.times(n, "["+fmt.Sprint(s.now+60)+"]", ""), "malformed"},
		"iat zero":                  {s.times("0", "3600", ""), "bad claims"},
		"iat negative":              {s.times("-1", "1", ""), "bad claims"},
		"exp at the end of int64":   {s.times(n, "9223372036854775807", ""), "bad claims"},
		"exp past int64":            {s.times(n, "9223372036854775808", ""), "malformed"},
		"iat at the end of int64":   {s.times("9223372036854775806", "9223372036854775807", ""), "bad claims"},
		"the difference would wrap": {s.times("-9223372036854775808", "9223372036854775807", ""), "bad claims"},
		"and the other way":         {s.times("9223372036854775807", "-9223372036854775808", ""), "bad claims"},
		"in milliseconds":           {s.times(n+"000", fmt.Sprint(s.now+60)+"000", ""), "bad claims"},
		"exp twice":                 {s.claims(fmt.Sprintf(`,"exp":%d`, s.now+60)), "malformed"},
		"iat twice":                 {s.claims(`,"iat":` + n), "malformed"},
		"exp escaped, once more":    {s.claims(fmt.Sprintf(`,"\u0065xp":%d`, s.now+60)), "malformed"},
		"EXP besides":               {s.claims(`,"EXP":1`), ""},
		"EXP instead":               {strings.Replace(s.claims(""), `"exp"`, `"EXP"`, 1), "bad claims"},
	} {
		if got := s.verdict(s.sign(s.header(), test.claims), ""); got != test.cause {
			t.Errorf("%s: refused as %q, want %q; claims %s", name, got, test.cause, test.claims)
		}
	}
}

// Iss = account id; "iss may be a JSON number or string where it is compared as text".
func TestIssuerOfAnAssertionIsItsAccountComparedAsText(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	id := s.credential.Account.ID
	for iss, cause := range map[string]string{
		`"` + id.String() + `"`: "", `"\u00` + fmt.Sprintf("%02x", id.String()[0]) + id.String()[1:] + `"`: "",
		`"` + uuid.NewString() + `"`: "bad claims", `"` + s.credential.Account.CustomerID.String() + `"`: "bad claims",
		`"` + s.credential.Key.ID.String() + `"`: "bad claims", `"` + strings.ToUpper(id.String()) + `x"`: "bad claims",
		`"urn:uuid:` + id.String() + `"`: "bad claims", `" ` + id.String() + `"`: "bad claims", `"` + id.String() + `\u0000"`: "bad claims",
		`""`: "bad claims", `null`: "bad claims", `1`: "bad claims", `1.0`: "bad claims", `true`: "bad claims",
		`["` + id.String() + `"]`: "bad claims", `{"iss":"` + id.String() + `"}`: "bad claims", `"accesskeys"`: "bad claims",
		`"a","iss":"` + id.String() + `"`: "malformed",
	} {
		claims := fmt.Sprintf(`{"iss":%s,"iat":%d,"exp":%d}`, iss, s.now, s.now+60)
		if got := s.verdict(s.sign(s.header(), claims), ""); got != cause {
			t.Errorf("iss %s: refused as %q, want %q", iss, got, cause)
		}
	}
	if got := s.verdict(s.sign(s.header(), fmt.Sprintf(`{"iat":%d,"exp":%d}`, s.now, s.now+60)), ""); got != "bad claims" {
		t.Errorf("without iss: refused as %q", got)
	}
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
	for aud, cause := range map[string]string{
		``: "", `,"aud":"` + us + `"`: "", `,"aud":["` + us + `"]`: "", `,"aud":["other","` + us + `"]`: "",
		`,"aud":"other"`: "bad claims", `,"aud":["other"]`: "bad claims", `,"aud":[]`: "bad claims", `,"aud":""`: "bad claims",
		`,"aud":[""]`: "bad claims", `,"aud":null`: "bad claims", `,"aud":[null]`: "bad claims", `,"aud":1`: "bad claims",
		`,"aud":true`: "bad claims", `,"aud":{}`: "bad claims", `,"aud":["` + us + `",1]`: "bad claims", `,"aud":[["` + us + `"]]`: "bad claims",
		`,"aud":"` + us + `/"`: "bad claims", `,"aud":"HTTPS://keys.example"`: "bad claims", `,"aud":"` + us + ` other"`: "bad claims",
		`,"aud":"other","aud":"` + us + `"`: "malformed",
	} {
		token := s.sign(s.header(), s.claims(aud))
		if got := s.verdict(token, us); got != cause {
			t.Errorf("aud %s: refused as %q, want %q", aud, got, cause)
		}
		if cause == "" && aud != "" {
			cause = "bad claims"
		}
		if got := s.verdict(token, ""); got != cause {
			t.Errorf("aud %s, where there is no AUDIENCE: refused as %q, want %q", aud, got, cause)
		}
	}
}

// Header kid = key id, alg the stored key's own. What a header may have besides, and what it may not.
func TestHeaderOfAnAssertionNamesItsKeyAndNothingThatChangesItsReading(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	kid := s.credential.Key.ID.String()
	bare := strings.ReplaceAll(kid, "-", "")
	for header, cause := range map[string]string{
		s.header(): "", `{"alg":"EdDSA","kid":"` + kid + `"}`: "", `{ "kid" : "` + kid + `", "alg" : "EdDSA" }`: "",
		`{"alg":"EdDSA","kid":"` + kid + `","typ":"jwt"}`: "", `{"alg":"EdDSA","kid":"` + kid + `","x":1}`: "",
		// A key in the header itself is not looked at.
		`{"alg":"EdDSA","kid":"` + kid + `","jwk":{"kty":"OKP"},"jku":"https://attacker.example"}`: "",

		`{"alg":"EdDSA","kid":"` + kid + `","typ":"at+jwt"}`: "malformed", `{"alg":"EdDSA","kid":"` + kid + `","typ":"JWE"}`: "malformed",
		`{"alg":"EdDSA","kid":"` + kid + `","typ":1}`: "malformed",
		`{"alg":"EdDSA"}`:                                  "malformed",
		`{"alg":"EdDSA","kid":""}`:                         "malformed",
		`{"alg":"EdDSA","kid":null}`:                       "malformed",
		`{"alg":"EdDSA","kid":1}`:                          "malformed",
		`{"alg":"EdDSA","kid":["` + kid + `"]}`:            "malformed",
		`{"alg":"EdDSA","kid":"` + bare + `"}`:             "malformed",
		`{"alg":"EdDSA","kid":"{` + kid + `}"}`:            "malformed",
		`{"alg":"EdDSA","kid":"urn:uuid:` + kid + `"}`:     "malformed",
		`{"alg":"EdDSA","kid":"` + kid + ` "}`:             "malformed",
		`{"alg":"EdDSA","kid":"../../dev/null"}`:           "malformed",
		`{"alg":"EdDSA","KID":"` + kid + `"}`:              "malformed",
		`{"alg":"EdDSA","kid":"x","kid":"` + kid + `"}`:    "malformed",
		`{"alg":"none","alg":"EdDSA","kid":"` + kid + `"}`: "malformed",
		`{"alg":1,"kid":"` + kid + `"}`:                    "malformed",

		`{"kid":"` + kid + `"}`: "bad signature", `{"alg":"","kid":"` + kid + `"}`: "bad signature",
		`{"alg":null,"kid":"` + kid + `"}`: "bad signature", `{"ALG":"EdDSA","kid":"` + kid + `"}`: "bad signature",
		`{"alg":"none","kid":"` + kid + `"}`: "bad signature", `{"alg":"eddsa","kid":"` + kid + `"}`: "bad signature",
		`{"alg":"Ed25519","kid":"` + kid + `"}`: "bad signature", `{"alg":"HS256","kid":"` + kid + `"}`: "bad signature",
		`{"alg":"RS256","kid":"` + kid + `"}`: "bad signature", `{"alg":"ES256","kid":"` + kid + `"}`: "bad signature",

		"": "malformed", "null": "malformed", "[]": "malformed", `"x"`: "malformed", "{": "malformed", "{}": "malformed",
		s.header() + s.header(): "malformed", "\ufeff" + s.header(): "malformed", s.header() + "\x00": "malformed",
		"{\"alg\":\"EdDSA\",\"kid\":\"" + kid + "\",\"x\":\"\xff\"}": "malformed",
	} {
		if got := s.verdict(s.sign(header, s.claims("")), ""); got != cause {
			t.Errorf("header %s: refused as %q, want %q", header, got, cause)
		}
	}
	for _, member := range []string{"crit", "b64", "zip", "cty"} {
		for _, value := range []string{`null`, `true`, `false`, `""`, `"JWT"`, `"DEF"`, `[]`, `["exp"]`, `["b64"]`} {
			header := fmt.Sprintf(`{"alg":"EdDSA","kid":%q,%q:%s}`, kid, member, value)
			if got := s.verdict(s.sign(header, s.claims("")), ""); got != "malformed" {
				t.Errorf("header %s: refused as %q", header, got)
			}
		}
	}
}

// RFC 7515 has one spelling of a token; a second one would be a second token to a program that keeps a list of them.
func TestAssertionHasOneSpelling(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	good := s.sign(s.header(), s.claims(""))
	if got := s.verdict(good, ""); got != "" {
		t.Fatalf("the control is refused as %q", got)
	}
	parts := strings.Split(good, ".")
	spare := parts[2][:85] + string(parts[2][85]+1) // 64 bytes leave four bits of the last character unused
	if strings.Trim(spare[85:], "ghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-_abcdef") != "" {
		t.Fatalf("%q is no base64", spare[85:])
	}
	for name, token := range map[string]string{
		"padding": good + "==", "padding of the header": parts[0] + "=." + parts[1] + "." + parts[2],
		"spare bits": parts[0] + "." + parts[1] + "." + spare, "a line break": good + "\n", "a line break inside": good[:len(good)-4] + "\r\n" + good[len(good)-4:],
		"a line break in the header": parts[0][:4] + "\n" + parts[0][4:] + "." + parts[1] + "." + parts[2], "a space": good + " ",
		"a part more": good + "." + parts[2], "a part less": parts[0] + "." + parts[1], "no signature": parts[0] + "." + parts[1] + ".",
		"no claims": parts[0] + ".." + parts[2], "too long": s.sign(s.header(), s.claims(`,"x":"`+strings.Repeat("x", 7000)+`"`)),
		"a list of claims": s.sign(s.header(), "["+s.claims("")+"]"), "claims null": s.sign(s.header(), "null"),
		"claims twice": s.sign(s.header(), s.claims("")+s.claims("")), "no JSON": s.sign(s.header(), "x"),
	} {
		if got := s.verdict(token, ""); got != "malformed" && got != "bad signature" && got != "bad claims" {
			t.Errorf("%s: refused as %q", name, got)
		}
	}
}

// A key, an account or a customer that was deleted ends the tokens, whatever the tokens say.
func TestAssertionEndsWithItsKeyAccountAndCustomer(t *testing.T) {
	t.Parallel()
	s := newSignatory(t, EdDSA)
	token := s.sign(s.header(), s.claims(""))
	whole, gone := s.credential, s.credential.Now.Add(-time.Microsecond)
	for cause, remove := range map[string][]func(){
		"":              {func() {}},
		"deleted":       {func() { s.credential.Key.TmDelete = gone }, func() { s.credential.Account.TmDelete = gone }},
		"owner deleted": {func() { s.credential.CustomerTmDelete = gone }},
	} {
		for i, r := range remove {
			s.credential = whole
			r()
			if got := s.verdict(token, ""); got != cause {
				t.Errorf("%q, %d: refused as %q", cause, i, got)
			}
		}
	}
}

// What Credentials.Sign makes, this service takes, for each algorithm; and no bit of it may change.
func TestSignedAssertionsVerifyAndAlteredOnesDoNot(t *testing.T) {
	t.Parallel()
	const us = "https://keys.example"
	for _, algorithm := range Algorithms() {
		s := newSignatory(t, algorithm)
		c := Credentials{
			AccountID: s.credential.Account.ID.String(), KeyID: s.credential.Key.ID.String(), PrivateKey: pairsOnce()[algorithm],
		}
		for _, audience := range []string{"", us} {
			signed, err := c.Sign(s.credential.Now, time.Hour, audience)
			if err != nil {
				t.Fatal(err)
			}
			token := signed.Reveal()
			if got := s.verdict(token, us); got != "" {
				t.Errorf("%s: refused as %q", algorithm, got)
			}
			dot := strings.LastIndexByte(token, '.')
			signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
			if err != nil {
				t.Fatal(err)
			}
			for bit := range len(signature) * 8 {
				if bit%5 != 0 && bit > 16 { // enough of them
					continue
				}
				signature[bit/8] ^= 1 << (bit % 8)
				if got := s.verdict(token[:dot+1]+base64.RawURLEncoding.EncodeToString(signature), us); got != "bad signature" {
					t.Errorf("%s, bit %d altered: refused as %q", algorithm, bit, got)
				}
				signature[bit/8] ^= 1 << (bit % 8)
			}
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
