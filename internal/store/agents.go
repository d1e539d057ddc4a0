package store

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
)

// Agent is a person of a customer's, who logs in with a password.
type Agent struct {
	ID         uuid.UUID
	CustomerID uuid.UUID
	Username   string
	Name       string
	Detail     string
	Permission int64 // bits, see package auth
	TmPassword time.Time
	TmCreate   time.Time
	TmUpdate   time.Time
	TmDelete   time.Time
}

const agentColumns = `id, customer_id, username, name, description AS detail, permission, tm_password, tm_create, tm_update, tm_delete`

// NewAgent is what a caller chooses of an Agent.
type NewAgent struct {
	CustomerID   uuid.UUID
	Username     string
	PasswordHash secret.Value
	Name         string
	Detail       string
	Permission   int64
}

// AgentCredential is what verifying an agent's login token needs: the agent, deleted or not, with its customer's tm_delete.
type AgentCredential struct {
	Agent
	CustomerTmDelete time.Time
	Now              time.Time // the database's time when this was read
}

// AgentLogin is what a login needs.
type AgentLogin struct {
	Agent
	PasswordHash secret.Value
	Now          time.Time
	// KnownNetwork means that the agent has logged in from the network within 30 days, FreshNetwork that it just has.
	KnownNetwork, FreshNetwork bool
}

const insertAgent = `
	INSERT INTO agents (id, customer_id, username, password_hash, name, description, permission, username_key, username_key_of)
	SELECT $1, $2, $3, $4, $5, $6, $7, $8, $3
	WHERE ` + mayWrite + `
	RETURNING ` + agentColumns

// values are what insertAgent takes.
func (a NewAgent) values(usernameKey string) []any {
	return []any{uuid.New(), a.CustomerID, a.Username, a.PasswordHash.Reveal(), a.Name, a.Detail, a.Permission, usernameKey}
}

// CreateAgent stores an agent under a fresh id. It returns ErrUsername, ErrUsernameTaken, ErrNoCustomer and ErrChanged.
func (s *Store) CreateAgent(ctx context.Context, caller Caller, a NewAgent) (Agent, error) {
	key, err := s.newUsernameKey(ctx, a.Username)
	if err != nil {
		return Agent{}, err
	}
	// The customer's lock keeps it from being deleted at the same moment, which would overlook the agent, and leave its
	// username taken for ever.
	agent, err := insertOne[Agent](ctx, s, caller, target{customerID: a.CustomerID}, "creating an agent", insertAgent, a.values(key)...)
	if errors.Is(err, ErrNotFound) {
		return Agent{}, ErrNoCustomer
	}
	return agent, err
}

const agentsByID = `
	SELECT found.*
	FROM unnest((SELECT $1::uuid[])) AS wanted (id) CROSS JOIN LATERAL (
		SELECT a.id, a.customer_id, a.username, a.name, a.description, a.permission, a.tm_password, a.tm_create, a.tm_update, a.tm_delete,
		       c.tm_delete
		FROM agents a JOIN customers c ON c.id = a.customer_id
		WHERE a.id = wanted.id
		LIMIT 1
	) found`

// scanAgent reads a row of agentsByID.
func scanAgent(row pgx.CollectableRow) (a AgentCredential, err error) {
	err = row.Scan(
		&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate, &a.TmDelete,
		&a.CustomerTmDelete)
	return a, err
}

// AgentByUsername returns the live agent of a live customer who has this username in whatever spelling, else ErrNotFound: the one whose
// username has the same letters in whatever case, else the one whose username has the same key. Blanks around it count only where an
// agent is called that. It is not limited to one customer: usernames are unique over all. network is where the login comes from; the
// zero value is known of nobody.
func (s *Store) AgentByUsername(ctx context.Context, username string, network netip.Prefix) (AgentLogin, error) {
	const sql = `
		SELECT a.id, a.customer_id, a.username, a.name, a.description, a.permission, a.tm_password, a.tm_create, a.tm_update,
		       a.tm_delete, a.password_hash, now(),
		       n.tm_login IS NOT NULL, coalesce(n.tm_login > now() - ` + freshNetwork + `, false),
		       CASE lower(a.username) WHEN lower($1) THEN 2 WHEN lower($3) THEN 1 ELSE 0 END
		FROM (
			SELECT * FROM agents WHERE lower(username) COLLATE "C" = ANY (ARRAY[lower($1), lower($3)]) AND ` + live + `
			UNION ALL
			SELECT * FROM agents WHERE username_key COLLATE "C" = $4 AND username_key_of = username AND ` + live + `
		) a
		JOIN customers c ON c.id = a.customer_id
		LEFT JOIN login_networks n ON n.agent_id = a.id AND n.network = $2::cidr AND n.tm_login > now() - ` + knownNetwork + `
		WHERE c.tm_delete >= '9999-01-01 00:00:00+00'`
	trimmed := strings.TrimSpace(username)
	var key *string // nobody's
	if k, err := usernameKey(trimmed); err == nil {
		key = &k
	}
	type match struct {
		agent AgentLogin
		rank  int
	}
	rows, err := s.DB.Query(ctx, sql, username, network, trimmed, key)
	if err != nil {
		return AgentLogin{}, s.failed("reading an agent by username", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m match, err error) {
		a, hash := &m.agent, ""
		err = row.Scan(
			&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate,
			&a.TmDelete, &hash, &a.Now, &a.KnownNetwork, &a.FreshNetwork, &m.rank)
		a.PasswordHash = secret.New(hash)
		return m, err
	})
	if err == nil && len(found) == 0 {
		err = pgx.ErrNoRows
	}
	if err != nil {
		return AgentLogin{}, s.failed("reading an agent by username", err)
	}
	return slices.MaxFunc(found, func(a, b match) int { return a.rank - b.rank }).agent, nil
}

// RenewPasswordHash puts a better hash of the same password in the place of the one that was read, for an agent that logs in. It
// does nothing where the agent has been changed since, and leaves tm_password alone: tokens stay valid.
func (s *Store) RenewPasswordHash(ctx context.Context, agent AgentLogin, renewed secret.Value) error {
	// Logged as any change is, and waited for by nobody: what verification reads is the same as before.
	caller := AgentCaller(agent.Agent, time.Time{})
	_, err := s.writeLogged(ctx, caller, target{customerID: agent.CustomerID}, changelog.NounAgents, agent.ID, func(b *pgx.Batch) {
		b.Queue(`
			UPDATE agents
			SET password_hash = $3
			WHERE id = $1 AND password_hash = $2 AND `+liveByID,
			agent.ID, agent.PasswordHash.Reveal(), renewed.Reveal())
	})
	if errors.Is(err, ErrChanged) {
		return nil
	}
	return s.failed("renewing a password's hash", err)
}

// SetPassword gives a live agent another password; login tokens issued before are void from then on. The agent is given as the
// caller was found to be allowed to change it. It returns ErrNotFound where there is no such agent, and ErrChanged.
func (s *Store) SetPassword(ctx context.Context, caller Caller, of Agent, hash secret.Value) (Agent, error) {
	// Later than the one before whatever the clock says: a token knows its password by this time.
	return writeOneAndWait[Agent](ctx, s, caller, caller.on(of.CustomerID, of.ID, of.Permission), changelog.NounAgents, of.ID, "setting a password", `
		UPDATE agents
		SET password_hash = $2, tm_password = greatest(now(), tm_password + interval '1 microsecond'), tm_update = now()
		WHERE id = $1 AND customer_id = $3 AND `+liveByID+`
		RETURNING `+agentColumns,
		of.ID, hash.Reveal(), of.CustomerID)
}

// Agent returns an agent that is not deleted, else ErrNotFound. It is not limited to one customer: the caller has to
// tell one of another customer from one that does not exist.
func (s *Store) Agent(ctx context.Context, id uuid.UUID) (Agent, error) {
	return queryRow[Agent](ctx, s, "reading an agent", `
		SELECT `+agentColumns+`
		FROM agents
		WHERE id = $1 AND `+liveByID,
		id)
}

// Agents returns up to limit agents of a customer's that are not deleted and come after the cursor, newest first.
func (s *Store) Agents(ctx context.Context, customerID uuid.UUID, after Cursor, limit int) ([]Agent, error) {
	return queryRows[Agent](ctx, s, "listing agents", `
		SELECT `+agentColumns+`
		FROM agents
		WHERE customer_id = $1 AND `+live+` AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		customerID, after.TmCreate, after.ID, limit)
}

// AgentChange is a change to an agent; what is nil keeps its value.
type AgentChange struct {
	Username *string
	Name     *string
	Detail   *string
}

// UpdateAgent changes a live agent, which is given as the caller was found to be allowed to change it, else returns ErrNotFound.
// It returns ErrUsername, where the username is to be another one, ErrUsernameTaken and ErrChanged.
func (s *Store) UpdateAgent(ctx context.Context, caller Caller, of Agent, change AgentChange) (Agent, error) {
	var key string
	if change.Username != nil && *change.Username != of.Username {
		var err error
		if key, err = s.newUsernameKey(ctx, *change.Username); err != nil {
			return Agent{}, err
		}
	}
	return writeOneAndWait[Agent](ctx, s, caller, caller.on(of.CustomerID, of.ID, of.Permission), changelog.NounAgents, of.ID, "updating an agent", `
		UPDATE agents
		SET username = coalesce($3, username), name = coalesce($4, name), description = coalesce($5, description), tm_update = now(),
		    username_key = coalesce(nullif($6, ''), username_key),
		    username_key_of = CASE WHEN $6 = '' THEN username_key_of ELSE $3 END
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+`
		RETURNING `+agentColumns,
		of.ID, of.CustomerID, change.Username, change.Name, change.Detail, key)
}

// ErrLastAdmin means that a customer would be left without an admin.
var ErrLastAdmin = errors.New("the customer's last admin")

// adminBit is the permission that makes an agent its customer's admin (package auth names it); SQL has it as a literal.
const adminBit = 32

// lastAdmin is the condition that the agent $1 is the last admin of its customer $2.
const lastAdmin = `(
	SELECT coalesce(bool_or(id = $1), false) AND count(*) = 1
	FROM agents
	WHERE customer_id = $2 AND permission & 32 <> 0 AND ` + live + `)`

// SetPermission gives a live agent another permission, everywhere at once. The agent is given as the caller was found to be allowed
// to change it. It returns ErrNotFound, ErrChanged, and ErrLastAdmin where that would leave the customer without an admin.
func (s *Store) SetPermission(ctx context.Context, caller Caller, of Agent, permission int64) (Agent, error) {
	return s.changeAdmin(ctx, "setting an agent's permission", caller, of, permission&adminBit == 0, `
		UPDATE agents
		SET permission = $3, tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+` AND ($3 & 32 <> 0 OR NOT `+lastAdmin+`)
		RETURNING `+agentColumns,
		of.ID, of.CustomerID, permission)
}

// DeleteAgent deletes a live agent together with the keys that are bound to it, whose tokens are void from then on, everywhere. The
// agent is given as the caller was found to be allowed to change it. It returns ErrNotFound, ErrChanged, and ErrLastAdmin where
// that would leave the customer without an admin.
func (s *Store) DeleteAgent(ctx context.Context, caller Caller, of Agent) (Agent, error) {
	return s.changeAdmin(ctx, "deleting an agent", caller, of, true, `
		WITH spared AS (
			SELECT `+lastAdmin+` AS last
		), gone AS (
			UPDATE accesskeys
			SET tm_delete = now(), tm_update = now()
			WHERE agent_id = $1 AND `+ofCustomer("$2")+` AND `+live+` AND NOT (SELECT last FROM spared)
		)
		UPDATE agents
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+` AND NOT (SELECT last FROM spared)
		RETURNING `+agentColumns,
		of.ID, of.CustomerID)
}

// changeAdmin runs a change to one agent, which spares the last admin. Where it ends that agent's being an admin, another one has
// to be left: the customer's lock makes such changes wait for each other, or two admins could remove one another.
func (s *Store) changeAdmin(
	ctx context.Context, doing string, caller Caller, of Agent, ends bool, sql string, args ...any,
) (Agent, error) {
	var agent Agent
	var last bool
	err := s.writeAndWait(ctx, caller, caller.on(of.CustomerID, of.ID, of.Permission), changelog.NounAgents, of.ID, func(b *pgx.Batch) {
		b.Queue(`SELECT `+lastAdmin, of.ID, of.CustomerID).QueryRow(func(row pgx.Row) error { return row.Scan(&last) })
		postgres.QueueOne(b, &agent, sql, args...)
	})
	if errors.Is(err, pgx.ErrNoRows) && ends && last {
		return Agent{}, ErrLastAdmin
	}
	return agent, s.failed(doing, err)
}
