package auth

import (
	"context"
	"errors"
	"net/netip"

	"accesskeys/internal/authcache"
	"accesskeys/internal/store"
)

// Verifier finds out who presents a credential. It decides anew each time, by rows as the database has them at that moment.
type Verifier struct {
	rows     *authcache.Cache
	sessions *Sessions
	audience string
}

// NewVerifier makes a Verifier. A service account's token that names an audience is accepted only if it is this one;
// "" accepts none that does.
func NewVerifier(rows *authcache.Cache, sessions *Sessions, audience string) *Verifier {
	return &Verifier{rows: rows, sessions: sessions, audience: audience}
}

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
	key, err := v.rows.AccessKeyByHash(ctx, hash, from)
	why, err := accessKeyRefusal(key.AccessKeyCredential, err)
	if err == nil && (why.restsOnRow() || why == causeExpired) {
		key, err = v.rows.ProvenAccessKeyByHash(ctx, hash, from)
		why, err = accessKeyRefusal(key.AccessKeyCredential, err)
	}
	switch {
	case err != nil:
		return Principal{}, err
	case why != "":
		return Principal{}, refused(why)
	}
	v.rows.Used(key)
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
	agent, err := v.rows.AgentCredential(ctx, claims.subject, from)
	why, err := claims.refusal(agent, err)
	if err == nil && why.restsOnRow() {
		agent, err = v.rows.ProvenAgentCredential(ctx, claims.subject, from)
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
	if remembered, ok := v.rows.VerifiedToken(sum); ok {
		if claims, ok := remembered.(*session); ok {
			return claims, nil
		}
	}
	claims, err := v.sessions.parse(token)
	if err == nil {
		v.rows.RememberToken(sum, claims, sessionBytes)
	}
	return claims, err
}

func (v *Verifier) serviceAccount(ctx context.Context, token string, from netip.Addr) (Principal, error) {
	sum := sumOf(token)
	remembered, _ := v.rows.VerifiedToken(sum)
	signed, known := remembered.(*signedAssertion)
	var a assertion
	if !known {
		var err error
		if a, err = parseAssertion(token); err != nil {
			return Principal{}, err
		}
		signed = &signedAssertion{keyID: a.keyID}
	}
	credential, err := v.rows.ServiceAccountCredential(ctx, signed.keyID, from)
	why, err := ownerRefusal(credential, err)
	if err == nil && why.restsOnRow() {
		credential, err = v.rows.ProvenServiceAccountCredential(ctx, signed.keyID, from)
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
	if signed, err = a.verify(credential, v.audience); err != nil {
		return Principal{}, err
	}
	v.rows.RememberToken(sum, signed, signedAssertionBytes+len(signed.publicKey))
	return signed.principal(credential), nil
}
