package auth

import (
	"context"
	"errors"
	"net/netip"

	"accesskeys/internal/authcache"
	"accesskeys/internal/lastused"
	"accesskeys/internal/store"
)

// Verifier finds out who presents a credential. It decides anew each time, by rows as the database has them at that moment.
type Verifier struct{ cfg VerifierConfig }

// VerifierConfig is what a Verifier is made of.
type VerifierConfig struct {
	Rows     *authcache.Cache
	Sessions *Sessions
	// Audience is the only one that a service account's token may name; where it is "", one that names any is not accepted.
	Audience string
	Tokens   *TokenCache      // nil: each token is parsed and verified each time
	LastUsed *lastused.Buffer // nil: nobody wants to know when keys were used
}

// NewVerifier makes a Verifier.
func NewVerifier(cfg VerifierConfig) *Verifier { return &Verifier{cfg} }

// Verify returns whose credential it is, for a client at an address (the zero value: not known). Its error is ErrInvalidCredential
// where the credential is not accepted, and store.ErrUnavailable where the store can't tell: that must never be taken for the former.
//
// A refusal that rests on a row is looked up again where it is proven: by a row that the primary had after the call. That there is none
// is proven already.
func (v *Verifier) Verify(ctx context.Context, c Credential, from netip.Addr) (Principal, error) {
	switch c.Kind {
	case KindAccessKey:
		return v.accessKey(ctx, c.token, from)
	case KindJWT:
		// An agent's token has our header, to the byte; whatever else there is can only be a service account's.
		if hasSessionHeader(c.jwt) {
			return v.session(ctx, c.jwt, from)
		}
		return v.serviceAccount(ctx, c.jwt, from)
	default:
		return Principal{}, refused(causeMalformed)
	}
}

func (v *Verifier) accessKey(ctx context.Context, presented AccessToken, from netip.Addr) (Principal, error) {
	hash := presented.Hash()
	key, err := v.cfg.Rows.AccessKeyByHash(ctx, hash, from)
	why, err := accessKeyRefusal(key.AccessKeyCredential, err)
	if err == nil && (why.restsOnRow() || why == causeExpired) {
		key, err = v.cfg.Rows.ProvenAccessKeyByHash(ctx, hash, from)
		why, err = accessKeyRefusal(key.AccessKeyCredential, err)
	}
	switch {
	case err != nil:
		return Principal{}, err
	case why != "":
		return Principal{}, refused(why)
	}
	if v.cfg.LastUsed != nil && key.NoteUse(lastused.Apart) {
		v.cfg.LastUsed.Note(key.ID, key.Now)
	}
	return principalOfAccessKey(key.AccessKeyCredential), nil
}

// accessKeyRefusal is why a key is not accepted, "" where it is. It passes on an error that is not store.ErrNotFound.
func accessKeyRefusal(key store.AccessKeyCredential, err error) (cause, error) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return causeUnknown, nil
	case err != nil:
		return "", err
	case !key.TmDelete.Equal(store.Never()):
		return causeDeleted, nil
	case !key.TmExpire.After(key.Now):
		return causeExpired, nil
	case !key.CustomerTmDelete.Equal(store.Never()),
		key.Agent != nil && !key.Agent.TmDelete.Equal(store.Never()),
		key.ServiceAccount != nil && !key.ServiceAccount.TmDelete.Equal(store.Never()):
		return causeOwner, nil
	}
	return "", nil
}

func (v *Verifier) session(ctx context.Context, token string, from netip.Addr) (Principal, error) {
	claims, err := v.sessionClaims(token)
	if err != nil {
		return Principal{}, err
	}
	agent, err := v.cfg.Rows.AgentCredential(ctx, claims.subject, from)
	why, err := claims.refusal(agent, err)
	if err == nil && why.restsOnRow() {
		agent, err = v.cfg.Rows.ProvenAgentCredential(ctx, claims.subject, from)
		why, err = claims.refusal(agent, err)
	}
	switch {
	case err != nil:
		return Principal{}, err
	case why != "":
		return Principal{}, refused(why)
	}
	// As the agent is now, not as it was at the login: a demotion counts at once.
	return principalOfAgent(agent.Agent).during(claims.issuedAt, claims.expiresAt), nil
}

// sessionClaims reads a login token, which it does once for each: what the bytes say and that we signed them stays true.
func (v *Verifier) sessionClaims(token string) (*session, error) {
	sum := sumOf(token)
	if claims, ok := cachedToken[*session](v.cfg.Tokens, sum); ok {
		return claims, nil
	}
	claims, err := v.cfg.Sessions.parse(token)
	if err == nil {
		v.cfg.Tokens.remember(sum, claims)
	}
	return claims, err
}

func (v *Verifier) serviceAccount(ctx context.Context, token string, from netip.Addr) (Principal, error) {
	sum := sumOf(token)
	signed, known := cachedToken[*signedAssertion](v.cfg.Tokens, sum)
	var a assertion
	if !known {
		var err error
		if a, err = parseAssertion(token); err != nil {
			return Principal{}, err
		}
		signed = &signedAssertion{keyID: a.keyID}
	}
	credential, err := v.cfg.Rows.ServiceAccountCredential(ctx, signed.keyID, from)
	why, err := ownerRefusal(credential, err)
	if err == nil && why.restsOnRow() {
		credential, err = v.cfg.Rows.ProvenServiceAccountCredential(ctx, signed.keyID, from)
		why, err = ownerRefusal(credential, err)
	}
	switch {
	case err != nil:
		return Principal{}, err
	case why != "":
		return Principal{}, refused(why)
	}
	if known && signed.by(credential.Key) {
		if err := signed.verify(credential); err != nil {
			return Principal{}, err
		}
		return signed.principal(credential), nil
	}
	if known { // with a key of before, which is not to be
		if a, err = parseAssertion(token); err != nil {
			return Principal{}, err
		}
	}
	if signed, err = a.verify(credential, v.cfg.Audience); err != nil {
		return Principal{}, err
	}
	v.cfg.Tokens.remember(sum, signed)
	return signed.principal(credential), nil
}
