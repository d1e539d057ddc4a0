package auth

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"accesskeys/internal/replica"
	"accesskeys/internal/store"
)

// Verifier finds out who presents a credential. It decides anew each time, by rows as the database has them at that moment.
type Verifier struct {
	rows     *replica.Replica
	sessions *Sessions
	audience string
}

// NewVerifier makes a Verifier. A service account's token that names an audience is accepted only if it is this one;
// "" accepts none that does.
func NewVerifier(rows *replica.Replica, sessions *Sessions, audience string) *Verifier {
	return &Verifier{rows: rows, sessions: sessions, audience: audience}
}

// Verify returns whose credential it is. Its error is ErrInvalidCredential where the credential is not accepted, and
// store.ErrUnavailable where the store can't tell: that must never be taken for the former.
func (v *Verifier) Verify(ctx context.Context, c Credential) (Principal, error) {
	switch c.Kind {
	case KindAccessKey:
		return v.accessKey(ctx, c.token)
	case KindJWT:
		// An agent's token has our header, to the byte; whatever else there is can only be a service account's.
		if hasSessionHeader(c.jwt) {
			return v.session(ctx, c.jwt)
		}
		return v.serviceAccount(ctx, c.jwt)
	default:
		return Principal{}, refused(causeMalformed)
	}
}

func (v *Verifier) accessKey(ctx context.Context, presented AccessToken) (Principal, error) {
	key, err := v.rows.AccessKeyByHash(ctx, presented.Hash())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Principal{}, refused(causeUnknown)
	case err != nil:
		return Principal{}, err
	case !key.TmDelete.Equal(store.Never()):
		return Principal{}, refused(causeDeleted)
	case !key.TmExpire.After(key.Now):
		return Principal{}, refused(causeExpired)
	case !key.CustomerTmDelete.Equal(store.Never()):
		return Principal{}, refused(causeOwner)
	}
	var agent store.AgentCredential // whom the key is bound to
	if key.AgentID != nil {
		switch agent, err = v.rows.AgentCredential(ctx, *key.AgentID); {
		case err != nil:
			return Principal{}, err // not found would be a broken foreign key
		case !agent.TmDelete.Equal(store.Never()):
			return Principal{}, refused(causeOwner)
		}
	}
	v.rows.Used(key)
	return principalOfAccessKey(key.AccessKeyCredential, agent.Agent), nil
}

func (v *Verifier) session(ctx context.Context, token string) (Principal, error) {
	claims, err := v.sessionClaims(token)
	if err != nil {
		return Principal{}, err
	}
	agent, err := v.rows.AgentCredential(ctx, claims.Subject)
	if errors.Is(err, store.ErrNotFound) {
		return Principal{}, refused(causeUnknown)
	}
	if err != nil {
		return Principal{}, err
	}
	if err := claims.verify(agent); err != nil {
		return Principal{}, err
	}
	// As the agent is now, not as it was at the login: a demotion counts at once.
	return principalOfAgent(agent.Agent).during(claims.IssuedAt, claims.ExpiresAt), nil
}

// sessionClaims reads a login token, which it does once for each: what the bytes say and that we signed them stays true.
func (v *Verifier) sessionClaims(token string) (*sessionClaims, error) {
	sum := sumOf(token)
	if remembered, ok := v.rows.Recall(sum); ok {
		if claims, ok := remembered.(*sessionClaims); ok {
			return claims, nil
		}
	}
	claims, err := v.sessions.parse(token)
	if err == nil {
		v.rows.Remember(sum, claims, len(token))
	}
	return claims, err
}

func (v *Verifier) serviceAccount(ctx context.Context, token string) (Principal, error) {
	sum := sumOf(token)
	remembered, _ := v.rows.Recall(sum)
	if signed, ok := remembered.(*signedAssertion); ok {
		credential, err := v.serviceAccountCredential(ctx, signed.keyID)
		if err != nil {
			return Principal{}, err
		}
		if signed.by(credential.Key) {
			if err := signed.verify(credential, v.audience); err != nil {
				return Principal{}, err
			}
			return signed.principal(credential), nil
		}
	}
	a, err := parseAssertion(token)
	if err != nil {
		return Principal{}, err
	}
	credential, err := v.serviceAccountCredential(ctx, a.keyID)
	if err != nil {
		return Principal{}, err
	}
	signed, err := a.verify(credential, v.audience)
	if err != nil {
		return Principal{}, err
	}
	v.rows.Remember(sum, signed, signedAssertionBytes)
	return signed.principal(credential), nil
}

func (v *Verifier) serviceAccountCredential(ctx context.Context, keyID uuid.UUID) (store.ServiceAccountCredential, error) {
	credential, err := v.rows.ServiceAccountCredential(ctx, keyID)
	if errors.Is(err, store.ErrNotFound) {
		return credential, refused(causeUnknown)
	}
	return credential, err
}
