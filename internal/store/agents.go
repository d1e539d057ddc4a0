package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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

const agentColumns = `id, customer_id, username, name, detail, permission, tm_password, tm_create, tm_update, tm_delete`

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
	Moment
}

// AgentLogin is what a login needs.
type AgentLogin struct {
	Agent
	PasswordHash secret.Value
	Now          time.Time
}

// CreateAgent stores an agent under a fresh id. It returns ErrUsernameTaken and ErrNoCustomer.
func (s *Store) CreateAgent(ctx context.Context, a NewAgent) (Agent, error) {
	// The customer is locked against its deletion, which would overlook an agent that is made at the same moment, and
	// leave its username taken for ever.
	agent, err := one[Agent](ctx, s, "creating an agent", `
		INSERT INTO agents (id, customer_id, username, password_hash, name, detail, permission)
		SELECT $1, c.id, $3, $4, $5, $6, $7
		FROM (SELECT id FROM customers WHERE id = $2 AND `+live+` FOR SHARE) c
		RETURNING `+agentColumns,
		uuid.New(), a.CustomerID, a.Username, a.PasswordHash.Reveal(), a.Name, a.Detail, a.Permission)
	if errors.Is(err, ErrNotFound) {
		return Agent{}, ErrNoCustomer
	}
	return agent, err
}

// AgentCredential returns the agent with this id, a deleted one too, else ErrNotFound. It returns ErrOtherLog where the
// database's log doesn't hold the position known. It is not limited to one customer: it is read to find out whose token it is.
func (s *Store) AgentCredential(ctx context.Context, id uuid.UUID, known Position) (AgentCredential, error) {
	const sql = `
		SELECT a.id, a.customer_id, a.username, a.name, a.detail, a.permission, a.tm_password, a.tm_create, a.tm_update,
		       a.tm_delete, c.tm_delete, now()
		FROM agents a JOIN customers c ON c.id = a.customer_id
		WHERE a.id = $1`
	var a AgentCredential
	var err error
	a.Head, err = s.readKnown(ctx, known, func(row pgx.Row) error {
		return row.Scan(
			&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate,
			&a.TmDelete, &a.CustomerTmDelete, &a.Now)
	}, sql, id)
	return a, s.failed("reading an agent's credential", err)
}

// AgentByUsername returns the live agent of a live customer who has this username in whatever case, else ErrNotFound.
// It is not limited to one customer: usernames are unique over all.
func (s *Store) AgentByUsername(ctx context.Context, username string) (AgentLogin, error) {
	const sql = `
		SELECT a.id, a.customer_id, a.username, a.name, a.detail, a.permission, a.tm_password, a.tm_create, a.tm_update,
		       a.tm_delete, a.password_hash, now()
		FROM agents a JOIN customers c ON c.id = a.customer_id
		WHERE lower(a.username) COLLATE "C" = lower($1)
		  AND a.tm_delete = '9999-01-01 00:00:00+00'
		  AND c.tm_delete = '9999-01-01 00:00:00+00'`
	var a AgentLogin
	var hash string
	err := s.pool().QueryRow(ctx, sql, username).Scan(
		&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate,
		&a.TmDelete, &hash, &a.Now)
	a.PasswordHash = secret.New(hash)
	return a, s.failed("reading an agent by username", err)
}

// RenewPasswordHash puts a better hash of the same password in the place of the one that was read. It does nothing
// where the password has been changed since, and leaves tm_password alone: tokens stay good.
func (s *Store) RenewPasswordHash(ctx context.Context, id uuid.UUID, old, renewed secret.Value) error {
	// Logged as any change is, and waited for by nobody: what verification reads is the same as before.
	err := s.confirmed(ctx, func(conn *pgx.Conn) error {
		return atOnce(ctx, conn, func(b *pgx.Batch) {
			b.Queue(`
				UPDATE agents
				SET password_hash = $3
				WHERE id = $1 AND password_hash = $2 AND `+live,
				id, old.Reveal(), renewed.Reveal())
		})
	})
	return s.failed("renewing a password's hash", err)
}

// SetPassword gives a live agent another password; login tokens issued before are void from then on. It returns
// ErrNotFound where there is no such agent.
func (s *Store) SetPassword(ctx context.Context, id uuid.UUID, hash secret.Value) (Agent, error) {
	return reviseOne[Agent](ctx, s, "setting a password", `
		UPDATE agents
		SET password_hash = $2, tm_password = now(), tm_update = now()
		WHERE id = $1 AND `+live+`
		RETURNING `+agentColumns,
		id, hash.Reveal())
}

// Agent returns an agent that is not deleted, else ErrNotFound. It is not limited to one customer: the caller has to
// tell one of another customer from one that does not exist.
func (s *Store) Agent(ctx context.Context, id uuid.UUID) (Agent, error) {
	return one[Agent](ctx, s, "reading an agent", `
		SELECT `+agentColumns+`
		FROM agents
		WHERE id = $1 AND `+live,
		id)
}

// Agents returns up to limit agents of a customer's that are not deleted and come after the cursor, newest first.
func (s *Store) Agents(ctx context.Context, customerID uuid.UUID, after Cursor, limit int) ([]Agent, error) {
	return many[Agent](ctx, s, "listing agents", `
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

// UpdateAgent changes a live agent of this customer's, else returns ErrNotFound. It returns ErrUsernameTaken.
func (s *Store) UpdateAgent(ctx context.Context, customerID, id uuid.UUID, change AgentChange) (Agent, error) {
	return reviseOne[Agent](ctx, s, "updating an agent", `
		UPDATE agents
		SET username = coalesce($3, username), name = coalesce($4, name), detail = coalesce($5, detail), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+live+`
		RETURNING `+agentColumns,
		id, customerID, change.Username, change.Name, change.Detail)
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

// SetPermission gives a live agent of this customer's another permission, everywhere at once, else returns ErrNotFound;
// ErrLastAdmin where that would leave the customer without an admin.
func (s *Store) SetPermission(ctx context.Context, customerID, id uuid.UUID, permission int64) (Agent, error) {
	return s.changeAdmin(ctx, "setting an agent's permission", customerID, id, permission&adminBit == 0, `
		UPDATE agents
		SET permission = $3, tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+live+` AND ($3 & 32 <> 0 OR NOT `+lastAdmin+`)
		RETURNING `+agentColumns,
		id, customerID, permission)
}

// DeleteAgent deletes a live agent of this customer's together with the keys that are bound to it, whose tokens are void
// from then on, everywhere; else it returns ErrNotFound, or ErrLastAdmin where that would leave the customer without an
// admin.
func (s *Store) DeleteAgent(ctx context.Context, customerID, id uuid.UUID) (Agent, error) {
	return s.changeAdmin(ctx, "deleting an agent", customerID, id, true, `
		WITH spared AS (
			SELECT `+lastAdmin+` AS last
		), gone AS (
			UPDATE accesskeys
			SET tm_delete = now(), tm_update = now()
			WHERE agent_id = $1 AND customer_id = $2 AND `+live+` AND NOT (SELECT last FROM spared)
		)
		UPDATE agents
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+live+` AND NOT (SELECT last FROM spared)
		RETURNING `+agentColumns,
		id, customerID)
}

// changeAdmin runs a change to one agent, which spares the last admin. Where it ends that agent's being an admin, another one has
// to be left: such changes to one customer wait for each other, or two admins could remove one another.
func (s *Store) changeAdmin(
	ctx context.Context, doing string, customerID, id uuid.UUID, ends bool, sql string, args ...any,
) (Agent, error) {
	var agent Agent
	var last bool
	err := s.revise(ctx, func(b *pgx.Batch) {
		b.Queue(`SELECT FROM customers WHERE id = $1 FOR UPDATE`, customerID)
		b.Queue(`SELECT `+lastAdmin, id, customerID).QueryRow(func(row pgx.Row) error { return row.Scan(&last) })
		queueOne(b, &agent, sql, args...)
	})
	if errors.Is(err, pgx.ErrNoRows) && ends && last {
		return Agent{}, ErrLastAdmin
	}
	return agent, s.failed(doing, err)
}
