package auth

import (
	"context"
	"errors"

	"accesskeys/internal/store"
)

// Verifier finds out who presents a credential. It asks the store each time, so what was revoked is refused from the
// next request on.
type Verifier struct {
	store    *store.Store
	sessions *Sessions
	audience string
}

// NewVerifier makes a Verifier. A service account's token that names an audience is accepted only if it is this one;
// "" accepts none that does.
func NewVerifier(s *store.Store, sessions *Sessions, audience string) *Verifier {
	return &Verifier{store: s, sessions: sessions, audience: audience}
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

func (v *Verifier) accessKey(ctx context.Context, token AccessToken) (Principal, error) {
	key, err := v.store.AccessKeyByHash(ctx, token.Hash())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Principal{}, refused(causeUnknown)
	case err != nil:
		return Principal{}, err
	case !key.TmDelete.Equal(store.Never()):
		return Principal{}, refused(causeDeleted)
	case !key.TmExpire.After(key.Now):
		return Principal{}, refused(causeExpired)
	case !key.CustomerTmDelete.Equal(store.Never()), !key.AgentTmDelete.Equal(store.Never()):
		return Principal{}, refused(causeOwner)
	}
	return principalOfAccessKey(key), nil
}

func (v *Verifier) session(ctx context.Context, token string) (Principal, error) {
	claims, err := v.sessions.parse(token)
	if err != nil {
		return Principal{}, err
	}
	agent, err := v.store.AgentCredential(ctx, claims.Subject)
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
	return principalOfAgent(agent.Agent), nil
}

func (v *Verifier) serviceAccount(ctx context.Context, token string) (Principal, error) {
	a, err := parseAssertion(token)
	if err != nil {
		return Principal{}, err
	}
	credential, err := v.store.ServiceAccountCredential(ctx, a.keyID)
	if errors.Is(err, store.ErrNotFound) {
		return Principal{}, refused(causeUnknown)
	}
	if err != nil {
		return Principal{}, err
	}
	if err := a.verify(credential, v.audience); err != nil {
		return Principal{}, err
	}
	return principalOfServiceAccount(credential.Account), nil
}
