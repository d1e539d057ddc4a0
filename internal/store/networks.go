package store

import (
	"context"
	"net/netip"

	"github.com/google/uuid"

	"accesskeys/internal/postgres"
)

const (
	// knownNetwork is for how long a network is known that an agent has logged in from, and freshNetwork for how long the next login
	// from there is not worth a write.
	knownNetwork = `interval '30 days'`
	freshNetwork = `interval '1 minute'`
	// networksPerAgent bounds the rows of an agent: the networks that it has logged in from last.
	networksPerAgent = 32
	// networkSweep bounds how many expired rows a login clears away: more than it adds, and never a long statement.
	networkSweep = 100
)

// RecordLogin notes that an agent has logged in from a network, and clears away what has expired, or is too much for one agent.
func (s *Store) RecordLogin(ctx context.Context, agentID uuid.UUID, network netip.Prefix) error {
	// A login waits neither for the disk nor for a standby: what is lost with them, the next login brings back.
	const record = `
		WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		INSERT INTO login_networks (agent_id, network, tm_login)
		SELECT $1::uuid, $2::cidr, now() FROM quick
		ON CONFLICT (agent_id, network) DO UPDATE SET tm_login = excluded.tm_login`
	// SKIP LOCKED: one that is just being used again is no longer expired.
	const sweep = `
		WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		DELETE FROM login_networks USING quick
		WHERE ctid = ANY (ARRAY (
			SELECT ctid FROM login_networks WHERE tm_login <= now() - ` + knownNetwork + ` ORDER BY tm_login LIMIT $1 FOR UPDATE SKIP LOCKED
		))`
	const bound = `
		WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		DELETE FROM login_networks USING quick
		WHERE agent_id = $1 AND (tm_login, network) < (
			SELECT tm_login, network FROM login_networks WHERE agent_id = $1 ORDER BY tm_login DESC, network DESC OFFSET $2 LIMIT 1
		)`
	// Each is a transaction of its own: none waits for a row while it holds another one that is waited for.
	_, err := s.DB.Exec(ctx, record, postgres.UUID(agentID), network)
	if err == nil {
		_, err = s.DB.Exec(ctx, sweep, networkSweep)
	}
	if err == nil {
		_, err = s.DB.Exec(ctx, bound, postgres.UUID(agentID), networksPerAgent-1)
	}
	return s.failed("recording the network of a login", err)
}
