package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// refusedLoginTime is the least time that a login takes that is refused or limited. Checking argon2id and bcrypt, which an imported agent
// has until its first login, take different times; rounded up to this, they don't tell whether a user exists.
const refusedLoginTime = 250 * time.Millisecond

// recordTimeout bounds what a login waits for its network to be noted. The next one from there would note it as well.
const recordTimeout = 250 * time.Millisecond

// Authenticator logs agents in.
type Authenticator struct {
	store     *store.Store
	sessions  *Sessions
	passwords *Passwords
	tries     *Tries
	log       *slog.Logger
}

// NewAuthenticator makes an Authenticator.
func NewAuthenticator(s *store.Store, sessions *Sessions, passwords *Passwords, log *slog.Logger) *Authenticator {
	return &Authenticator{store: s, sessions: sessions, passwords: passwords, tries: NewTries(), log: log}
}

// Login checks the password of an agent that logs in from this address and returns the agent with a token for the next seven days. Its error is
// ErrInvalidCredential where user and password don't match a live agent, which of them was wrong being neither said nor
// measurable; a LimitedError where the username was tried too often, which says no more; ErrBusy where there are too many logins; and
// store.ErrUnavailable.
func (a *Authenticator) Login(
	ctx context.Context, username string, password secret.Value, from netip.Addr,
) (store.Agent, secret.Value, error) {
	started := time.Now()
	network := networkOf(from)
	agent, err := a.store.AgentByUsername(ctx, username, network)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.Agent{}, secret.Value{}, err
	}
	// Where the agent has logged in from lately, strangers who use up its tries don't lock it out.
	if !agent.KnownNetwork {
		if _, wait := a.tries.Take(username, time.Now()); wait > 0 {
			waitUntil(ctx, started.Add(refusedLoginTime))
			return store.Agent{}, secret.Value{}, &LimitedError{Wait: wait}
		}
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
	if network.IsValid() && !agent.FreshNetwork {
		a.record(ctx, agent.ID, network)
	}
	return agent.Agent, token, nil
}

// record notes the network of a login, which does not fail where that does.
func (a *Authenticator) record(ctx context.Context, agentID uuid.UUID, network netip.Prefix) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout) // a client that leaves now has logged in
	defer cancel()
	if err := a.store.RecordLogin(ctx, agentID, network); err != nil {
		a.log.Warn("the network of a login could not be noted; the next login from there tries again", "agent_id", agentID, "error", err.Error())
	}
}

// networkOf is what counts as one network: a /24 of IPv4, or a /56 of IPv6, which is what a provider gives to one place. It is the zero
// value where there is no address.
func networkOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 56
	if addr.Is4() {
		bits = 24
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}

func waitUntil(ctx context.Context, t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
