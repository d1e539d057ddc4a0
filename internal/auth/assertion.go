package auth

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

const (
	// MaxAssertionLifetime is how long a token that a service account signs may be valid for.
	MaxAssertionLifetime = time.Hour
	// assertionSkew is how far an account's clock may be off.
	assertionSkew = time.Minute
)

// assertion is a token that a service account has signed: read, not verified.
type assertion struct {
	keyID     uuid.UUID
	algorithm string // what the header says; it has to be the key's
	token     string
}

// assertionHeader is the header of such a token. Names that mean nothing here are ignored, as RFC 7515 has it, but for
// those that would change how the token is to be read.
type assertionHeader struct {
	Algorithm string         `json:"alg"`
	Type      string         `json:"typ"`
	KeyID     string         `json:"kid"`
	Critical  jsontext.Value `json:"crit,omitzero"`
	Encoded   jsontext.Value `json:"b64,omitzero"`
	Zip       jsontext.Value `json:"zip,omitzero"`
	Content   jsontext.Value `json:"cty,omitzero"`
}

// parseAssertion reads a token's header, which names the key to verify it with.
func parseAssertion(token string) (assertion, error) {
	encoded, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(token) > maxJWTLength || strings.ContainsAny(token, "\r\n") {
		return assertion{}, refused(causeMalformed)
	}
	var header assertionHeader
	if err := json.Unmarshal(raw, &header); err != nil {
		return assertion{}, refused(causeMalformed)
	}
	keyID, err := uuid.Parse(header.KeyID)
	if err != nil || header.KeyID != keyID.String() || header.Type != "" && !strings.EqualFold(header.Type, "JWT") ||
		header.Critical != nil || header.Encoded != nil || header.Zip != nil || header.Content != nil {
		return assertion{}, refused(causeMalformed)
	}
	return assertion{keyID: keyID, algorithm: header.Algorithm, token: token}, nil
}

// assertionClaims are the claims of such a token.
type assertionClaims struct {
	Issuer    jsontext.Value `json:"iss"`
	IssuedAt  *int64         `json:"iat"`
	ExpiresAt *int64         `json:"exp"`
	NotBefore *int64         `json:"nbf"`
	Audience  jsontext.Value `json:"aud,omitzero"`
}

// verify checks the token against the key that it names, as the store has it now. audience is who we are, "" where
// nobody has said.
func (a assertion) verify(c store.ServiceAccountCredential, audience string) (*signedAssertion, error) {
	claims, err := a.claims(PublicKey{Algorithm: Algorithm(c.Key.Algorithm), DER: c.Key.PublicKey})
	if err != nil {
		return nil, err
	}
	issuer, err := uuid.Parse(textOf(claims.Issuer))
	if err != nil || textOf(claims.Issuer) != issuer.String() || !claims.meantFor(audience) || claims.IssuedAt == nil || claims.ExpiresAt == nil {
		return nil, refused(causeClaims)
	}
	signed := &signedAssertion{
		keyID: a.keyID, algorithm: c.Key.Algorithm, publicKey: c.Key.PublicKey,
		issuer: issuer, issuedAt: *claims.IssuedAt, expiresAt: *claims.ExpiresAt,
	}
	if claims.NotBefore != nil {
		signed.notBefore, signed.hasNotBefore = *claims.NotBefore, true
	}
	return signed, signed.verify(c)
}

// signedAssertion is what is needed of a token whose signature a key has verified, and that is meant for us, as it is remembered: of a
// known size, and without the token. All of it stays true of the same bytes and the same key.
type signedAssertion struct {
	keyID        uuid.UUID
	algorithm    string
	publicKey    []byte
	issuer       uuid.UUID
	issuedAt     int64 // these are seconds since 1970
	expiresAt    int64
	notBefore    int64
	hasNotBefore bool
}

// signedAssertionBytes is about what one takes of memory beside the public key.
const signedAssertionBytes = 160

func (s *signedAssertion) bytes() int { return signedAssertionBytes + len(s.publicKey) }

// verify checks all but the signature and whom the token is meant for.
func (s *signedAssertion) verify(c store.ServiceAccountCredential) error {
	now, skew := c.Now.Unix(), int64(assertionSkew/time.Second)
	switch {
	case s.issuer != c.Account.ID:
		return refused(causeClaims)
	case s.issuedAt <= 0, s.expiresAt <= s.issuedAt, s.expiresAt-s.issuedAt > int64(MaxAssertionLifetime/time.Second),
		s.issuedAt > now+skew, s.hasNotBefore && s.notBefore > now+skew:
		return refused(causeClaims)
	case s.expiresAt+skew <= now:
		return refused(causeExpired)
	}
	return nil
}

// principal is the account whose token this is, once it was verified.
func (s *signedAssertion) principal(c store.ServiceAccountCredential) Principal {
	p := principalOfServiceAccount(c).during(s.issuedAt, s.expiresAt)
	p.acceptedBefore = p.Expires.Add(assertionSkew)
	return p
}

// by reports whether this is the key that the signature was verified with.
func (s *signedAssertion) by(key store.ServiceAccountKey) bool {
	return s.algorithm == key.Algorithm && bytes.Equal(s.publicKey, key.PublicKey)
}

// ownerRefusal is why no token of the key is accepted, "" where key, account and customer are there. It passes on an error that is
// not store.ErrNotFound.
func ownerRefusal(c store.ServiceAccountCredential, err error) (cause, error) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return causeUnknown, nil
	case err != nil:
		return "", err
	case !c.Key.TmDelete.Equal(store.Never()), !c.Account.TmDelete.Equal(store.Never()):
		return causeDeleted, nil
	case !c.CustomerTmDelete.Equal(store.Never()):
		return causeOwner, nil
	}
	return "", nil
}

// claims verifies the signature with this key, by this key's algorithm, and returns what was signed.
func (a assertion) claims(key PublicKey) (*assertionClaims, error) {
	method, ok := key.Algorithm.signingMethod()
	if !ok || a.algorithm != method.Alg() {
		return nil, refused(causeSignature)
	}
	public, err := x509.ParsePKIXPublicKey(key.DER)
	if err != nil {
		return nil, fmt.Errorf("reading a stored public key: %w", err)
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{method.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	var read strict[assertionClaims]
	_, err = parser.ParseWithClaims(a.token, &read, func(*jwt.Token) (any, error) { return public, nil })
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return nil, refused(causeSignature)
	case err != nil:
		return nil, refused(causeMalformed)
	}
	return &read.claims, nil
}

// textOf is a JSON string's or number's text: some libraries write ids as numbers.
func textOf(v jsontext.Value) string {
	switch v.Kind() {
	case jsontext.KindString:
		var s string
		if json.Unmarshal(v, &s) != nil {
			return ""
		}
		return s
	case jsontext.KindNumber:
		return string(v)
	default:
		return ""
	}
}

// meantFor checks aud where it was sent (RFC 7519, section 4.1.3): a token for somebody else is not for us, and where
// nobody has said who we are, one that names anybody is not.
func (c *assertionClaims) meantFor(audience string) bool {
	if c.Audience == nil {
		return true
	}
	if audience == "" {
		return false
	}
	var several []string
	if json.Unmarshal(c.Audience, &several) == nil {
		for _, one := range several {
			if one == audience {
				return true
			}
		}
		return false
	}
	return c.Audience.Kind() == jsontext.KindString && textOf(c.Audience) == audience
}

// Credentials are the file that a service account gets once: whose it is, which key, and its private half.
type Credentials struct {
	AccountID  string
	KeyID      string
	PrivateKey secret.Value // PKCS #8 in PEM
}

// Sign makes a token of a service account's, good from now for the lifetime, which may be up to MaxAssertionLifetime.
// audience is left out where it is empty.
func (c Credentials) Sign(now time.Time, lifetime time.Duration, audience string) (secret.Value, error) {
	if lifetime < time.Second || lifetime > MaxAssertionLifetime {
		return secret.Value{}, fmt.Errorf("a token lives from one second to %s", MaxAssertionLifetime)
	}
	block, _ := pem.Decode([]byte(c.PrivateKey.Reveal()))
	if block == nil || block.Type != "PRIVATE KEY" {
		return secret.Value{}, errors.New("the private key is not a PEM block PRIVATE KEY")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return secret.Value{}, errors.New("the private key can't be read") // the cause could quote it
	}
	signer, ok := private.(interface{ Public() crypto.PublicKey })
	if !ok {
		return secret.Value{}, ErrUnsupportedKey
	}
	algorithm, ok := algorithmOf(signer.Public())
	if !ok {
		return secret.Value{}, ErrUnsupportedKey
	}
	method, _ := algorithm.signingMethod()
	claims := jwt.MapClaims{"iss": c.AccountID, "iat": now.Unix(), "exp": now.Add(lifetime).Unix()}
	if audience != "" {
		claims["aud"] = audience
	}
	token := jwt.NewWithClaims(method, claims)
	token.Header["kid"] = c.KeyID
	signed, err := token.SignedString(private)
	if err != nil {
		return secret.Value{}, fmt.Errorf("signing a token: %w", err)
	}
	return secret.New(signed), nil
}
