package auth

import (
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
	// sessionLifetime is how long a login lasts (contract, section 2).
	sessionLifetime = 7 * 24 * time.Hour
	// sessionHeader is the one header of our tokens, {"alg":"HS256","typ":"JWT"}, as it stands in them.
	sessionHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
	// sessionIssuer is the iss of our tokens.
	sessionIssuer = "accesskeys"
	// sessionSkew is how far in the future an iat may lie: after a failover the new primary's clock may be behind.
	sessionSkew = time.Minute
	// MinSecretLength is the least length of a JWT secret in bytes: that of the hash (RFC 7518, section 3.2).
	MinSecretLength = 32
)

// Sessions issues and reads the JWTs that agents get by logging in.
//
// SECURITY: a token is accepted only if its header is, byte for byte, the one that we write. There is no algorithm to
// choose, no kid, no crit, no second spelling: RFC 8725, sections 3.1 and 3.11, by construction.
type Sessions struct {
	current secret.Value
	keys    jwt.VerificationKeySet
	parser  *jwt.Parser
}

// NewSessions makes a Sessions that signs with current and verifies with current and, unless it is empty, previous.
// It returns an error where a secret is shorter than MinSecretLength.
func NewSessions(current, previous secret.Value) (*Sessions, error) {
	s := &Sessions{
		current: current,
		// Times are checked against the database's clock, by verify.
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation()),
	}
	keys := []secret.Value{current}
	if !previous.Empty() {
		keys = append(keys, previous)
	}
	for _, key := range keys {
		if key.Len() < MinSecretLength {
			return nil, fmt.Errorf("a JWT secret needs at least %d bytes, this one has %d", MinSecretLength, key.Len())
		}
		s.keys.Keys = append(s.keys.Keys, []byte(key.Reveal()))
	}
	return s, nil
}

// sessionClaims are the claims of our tokens. Times are whole seconds since 1970 (RFC 7519, section 2, NumericDate).
type sessionClaims struct {
	Issuer     string       `json:"iss"`
	Subject    uuid.UUID    `json:"sub"`
	ID         uuid.UUID    `json:"jti"`
	IssuedAt   int64        `json:"iat"`
	ExpiresAt  int64        `json:"exp"`
	Type       string       `json:"type"`
	CustomerID uuid.UUID    `json:"customer_id"`
	Agent      sessionAgent `json:"agent"`
	// PasswordTime is the agent's tm_password in microseconds since 1970. iat has whole seconds, which can't tell a token
	// issued just before a change of password from one issued just after it.
	PasswordTime int64 `json:"password_time"`
	// Claims that we never write; a token with one of them is not ours.
	NotBefore jsontext.Value `json:"nbf,omitzero"`
	Audience  jsontext.Value `json:"aud,omitzero"`
}

type sessionAgent struct {
	ID         uuid.UUID  `json:"id"`
	CustomerID uuid.UUID  `json:"customer_id"`
	Username   string     `json:"username"`
	Name       string     `json:"name"`
	Permission Permission `json:"permission"`
}

// strict carries claims through golang-jwt. The embedded ones stay empty: the library asks claims for anything only where it
// validates them, which is ours to do.
type strict[T any] struct {
	jwt.RegisteredClaims
	claims T
}

// UnmarshalJSON decodes strictly: a name that is repeated, or text that is not UTF-8, makes the token malformed, and a
// name in another case is another name. golang-jwt by itself would take the last of two.
func (s *strict[T]) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, &s.claims) }

// MarshalJSON encodes with the same library that decodes.
func (s *strict[T]) MarshalJSON() ([]byte, error) { return json.Marshal(&s.claims) }

// Issue returns a token for an agent that was read at now, the database's time.
func (s *Sessions) Issue(agent store.Agent, now time.Time) (secret.Value, error) {
	issued := now.Unix()
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, &strict[sessionClaims]{claims: sessionClaims{
		Issuer:     sessionIssuer,
		Subject:    agent.ID,
		ID:         uuid.New(),
		IssuedAt:   issued,
		ExpiresAt:  issued + int64(sessionLifetime/time.Second),
		Type:       string(TypeAgent),
		CustomerID: agent.CustomerID,
		Agent: sessionAgent{
			ID: agent.ID, CustomerID: agent.CustomerID, Username: agent.Username, Name: agent.Name,
			Permission: Permission(agent.Permission),
		},
		PasswordTime: agent.TmPassword.UnixMicro(),
	}})
	signed, err := token.SignedString([]byte(s.current.Reveal()))
	if err != nil {
		return secret.Value{}, fmt.Errorf("signing a login token: %w", err)
	}
	return secret.New(signed), nil
}

func hasSessionHeader(token string) bool {
	header, _, _ := strings.Cut(token, ".")
	return header == sessionHeader
}

// session is what is needed of a login token that we signed, as it is remembered: of a known size, and without the token.
type session struct {
	subject, customerID uuid.UUID
	issuedAt, expiresAt int64 // seconds since 1970
	passwordTime        int64 // microseconds since 1970
}

// sessionBytes is about what a session takes of memory.
const sessionBytes = 80

func (*session) bytes() int { return sessionBytes }

// parse returns what a token says that we signed, whatever its times; else a refusal.
func (s *Sessions) parse(token string) (*session, error) {
	// Go's base64 skips line breaks, even where it is strict; they would give the signature a second spelling.
	if len(token) > maxJWTLength || !hasSessionHeader(token) || strings.ContainsAny(token, "\r\n") {
		return nil, refused(causeMalformed)
	}
	var read strict[sessionClaims]
	_, err := s.parser.ParseWithClaims(token, &read, func(*jwt.Token) (any, error) { return s.keys, nil })
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return nil, refused(causeSignature)
	case err != nil:
		return nil, refused(causeMalformed)
	}
	if !read.claims.consistent() {
		return nil, refused(causeClaims)
	}
	c := &read.claims
	return &session{
		subject: c.Subject, customerID: c.CustomerID, issuedAt: c.IssuedAt, expiresAt: c.ExpiresAt, passwordTime: c.PasswordTime,
	}, nil
}

// consistent reports whether the claims are such as Issue writes. The signature already says that we wrote them; this
// is for a secret that is shared with, or was leaked by, something else.
func (c *sessionClaims) consistent() bool {
	lifetime := c.ExpiresAt - c.IssuedAt
	return c.Issuer == sessionIssuer && c.Type == string(TypeAgent) &&
		c.Subject != uuid.Nil && c.Subject == c.Agent.ID && c.CustomerID == c.Agent.CustomerID &&
		c.IssuedAt > 0 && lifetime > 0 && lifetime <= int64(sessionLifetime/time.Second) &&
		c.NotBefore == nil && c.Audience == nil
}

// refusal is why the token is not accepted, by the agent that it names as the store has it now, "" where it is. It passes on an error
// that is not store.ErrNotFound.
//
// What ties a token to a password is the time at which that was set, as the token has it. The token's iat says nothing more: the
// database's clock may have been ahead when the password was set.
func (c *session) refusal(agent store.AgentCredential, err error) (cause, error) {
	now := agent.Now
	switch {
	case errors.Is(err, store.ErrNotFound):
		return causeUnknown, nil
	case err != nil:
		return "", err
	case agent.CustomerID != c.customerID:
		return causeClaims, nil
	case c.expiresAt <= now.Unix():
		return causeExpired, nil
	case c.issuedAt > now.Add(sessionSkew).Unix(): // as numbers: a time.Time wraps at the far end of int64
		return causeClaims, nil
	case !agent.TmDelete.Equal(store.Never()):
		return causeDeleted, nil
	case !agent.CustomerTmDelete.Equal(store.Never()):
		return causeOwner, nil
	case c.passwordTime != agent.TmPassword.UnixMicro():
		return causePassword, nil
	}
	return "", nil
}
