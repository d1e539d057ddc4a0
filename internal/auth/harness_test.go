package auth

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
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

// An access key, and a text that has the form of a JWT.
const aKey, aJWT = "vb_0123456789abcdefABCDEFghijKLMNO_", "eyJh.eyJz.c2ln"

const (
	testSecret      = "the-secret-of-these-tests-01234567"
	testOtherSecret = "the-secret-of-others-0123456789abc"
)

// must takes a pair of results and fails the test on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

func newSessions(tb testing.TB, current, previous string) *Sessions {
	tb.Helper()
	return must(NewSessions(secret.New(current), secret.New(previous)))(tb)
}

func issue(tb testing.TB, s *Sessions, agent store.Agent, now time.Time) string {
	tb.Helper()
	return must(s.Issue(agent, now))(tb).Reveal()
}

// anAgent is an agent whose password was set a month before now.
func anAgent(now time.Time) store.Agent {
	return store.Agent{
		ID: uuid.New(), CustomerID: uuid.New(), Username: "ä@example.org", Name: "A <b> & \u2028", Permission: 32,
		TmPassword: now.AddDate(0, -1, 0), TmDelete: store.Never(),
	}
}

// hostile are texts that are nearly this good token, and that no parser may take. RFC 7515 has one spelling of a token; a second one
// would be a second token to a program that keeps a list of them.
func hostile(good string) []string {
	parts := strings.Split(good, ".")
	header, claims, signature := parts[0], parts[1], parts[2]
	texts := []string{
		good + "." + signature, header + "." + claims, header + "." + claims + ".", header + ".." + signature, "." + claims + "." + signature,
		spareBits(good), strings.Repeat(good+".", 20), header, claims, signature,
	}
	for _, junk := range []string{"\n", "\r\n", "=", "==", " ", ".", "\x00", "A", "%3D", signature} {
		texts = append(texts, good+junk, junk+good, header+junk+"."+claims+"."+signature, signature+junk)
	}
	for at := 0; at < len(good); at += 7 {
		texts = append(texts, good[:at], good[:at]+"\n"+good[at:], good[:at]+"\r\n"+good[at:], good[:at]+string(good[at]^1)+good[at+1:])
	}
	return texts
}

// spareBits is a text with another last character, which stands for the same bytes where these are 32, 64 or 256 in base64.
func spareBits(text string) string { return text[:len(text)-1] + string(text[len(text)-1]+1) }

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
	block, _ := pem.Decode([]byte(pairsOnce()[algorithm].Reveal()))
	private := must(x509.ParsePKCS8PrivateKey(block.Bytes))(t)
	method, _ := algorithm.signingMethod()
	now := time.Date(2026, 8, 1, 12, 0, 0, 999_999_000, time.UTC) // late in its second: whole seconds are compared
	account := store.ServiceAccount{ID: uuid.New(), CustomerID: uuid.New(), TmDelete: store.Never()}
	key := store.ServiceAccountKey{
		ID: uuid.New(), AccountID: account.ID, Algorithm: string(algorithm), TmDelete: store.Never(),
		PublicKey: must(x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public()))(t),
	}
	credential := store.ServiceAccountCredential{Key: key, Account: account, CustomerTmDelete: store.Never(), Now: now}
	return &signatory{t: t, credential: credential, private: private, method: method, now: now.Unix()}
}

// sign signs two texts as they stand.
func (s *signatory) sign(header, claims string) string {
	s.t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	return input + "." + base64.RawURLEncoding.EncodeToString(must(s.method.Sign(input, s.private))(s.t))
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

// verdict is the cause of the refusal, "" where the token is accepted, as Verifier finds it at the first sight of a token. What it
// remembers then has to come to the same.
func (s *signatory) verdict(token, audience string) string {
	s.t.Helper()
	a, err := parseAssertion(token)
	if err == nil {
		found := error(nil)
		if a.keyID != s.credential.Key.ID {
			found = store.ErrNotFound
		}
		var why cause
		if why, err = ownerRefusal(s.credential, found); err == nil && why != "" {
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

// verdicts fails the test unless each of the texts, listed by verdict, makes a token that has this verdict.
func (s *signatory) verdicts(audience string, token func(text string) string, wanted map[string][]string) {
	s.t.Helper()
	for want, texts := range wanted {
		for _, text := range texts {
			if got := s.verdict(token(text), audience); got != want {
				s.t.Errorf("refused as %q, want %q: %s", got, want, text)
			}
		}
	}
}

// withClaims is a token with a good header and these claims.
func (s *signatory) withClaims(claims string) string { return s.sign(s.header(), claims) }
