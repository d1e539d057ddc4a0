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
}

// NewVerifier makes a Verifier.
func NewVerifier(s *store.Store, sessions *Sessions) *Verifier {
	return &Verifier{store: s, sessions: sessions}
}

// Verify returns whose credential it is. Its error is ErrInvalidCredential where the credential is not accepted, and
// store.ErrUnavailable where the store can't tell: that must never be taken for the former.
func (v *Verifier) Verify(ctx context.Context, c Credential) (Principal, error) {
	switch c.Kind {
	case KindAccessKey:
		return v.accessKey(ctx, c.token)
	case KindJWT:
		return v.session(ctx, c.jwt)
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
	case !key.CustomerTmDelete.Equal(store.Never()):
		return Principal{}, refused(causeOwner)
	}
	return Principal{
		Type:       TypeAccessKey,
		ID:         key.ID,
		CustomerID: key.CustomerID,
		Name:       key.Name,
		Detail:     key.Detail,
		Permission: PermissionCustomerAdmin, // contract, section 4
		TmCreate:   key.TmCreate,
		TmUpdate:   key.TmUpdate,
		TmDelete:   key.TmDelete,
	}, nil
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
	return Principal{
		Type:       TypeAgent,
		ID:         agent.ID,
		CustomerID: agent.CustomerID,
		Username:   agent.Username,
		Name:       agent.Name,
		Detail:     agent.Detail,
		// As it is now, not as it was at the login: a demotion counts at once.
		Permission: Permission(agent.Permission),
		TmCreate:   agent.TmCreate,
		TmUpdate:   agent.TmUpdate,
		TmDelete:   agent.TmDelete,
	}, nil
}
