package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// refusedLoginTime is the least time that a login takes that is refused or limited. Checking argon2id and bcrypt, which an imported agent
// has until its first login, take different times; rounded up to this, they don't tell whether a user exists.
const refusedLoginTime = 250 * time.Millisecond

// Authenticator logs agents in.
type Authenticator struct {
	store     *store.Store
	sessions  *Sessions
	passwords *Passwords
	tries     *Tries
}

// NewAuthenticator makes an Authenticator.
func NewAuthenticator(s *store.Store, sessions *Sessions, passwords *Passwords) *Authenticator {
	return &Authenticator{store: s, sessions: sessions, passwords: passwords, tries: NewTries()}
}

// Login checks an agent's password and returns the agent with a token for the next seven days. Its error is
// ErrInvalidCredential where user and password don't match a live agent, which of them was wrong being neither said nor
// measurable; a LimitedError where the username was tried too often, which says no more; ErrBusy where there are too many logins; and
// store.ErrUnavailable.
func (a *Authenticator) Login(ctx context.Context, username string, password secret.Value) (store.Agent, secret.Value, error) {
	started := time.Now()
	agent, err := a.store.AgentByUsername(ctx, username)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.Agent{}, secret.Value{}, err
	}
	if _, wait := a.tries.Take(username, time.Now()); wait > 0 {
		waitUntil(ctx, started.Add(refusedLoginTime))
		return store.Agent{}, secret.Value{}, &LimitedError{Wait: wait}
	}
	// An unknown user has an empty hash, which is checked like any other.
	ok, renewed, err := a.passwords.check(ctx, password, agent.PasswordHash)
	if err != nil {
		return store.Agent{}, secret.Value{}, err
	}
	if !ok {
		waitUntil(ctx, started.Add(refusedLoginTime))
		return store.Agent{}, secret.Value{}, refused(causeWrong)
	}
	if !renewed.Empty() {
		if err := a.store.RenewPasswordHash(ctx, agent, renewed); err != nil {
			return store.Agent{}, secret.Value{}, fmt.Errorf("logging in: %w", err)
		}
	}
	token, err := a.sessions.Issue(agent.Agent, agent.Now)
	if err != nil {
		return store.Agent{}, secret.Value{}, err
	}
	return agent.Agent, token, nil
}

func waitUntil(ctx context.Context, t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
