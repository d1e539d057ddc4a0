package store

import (
	"context"
	"time"

	"github.com/google/uuid"

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

// AgentCredential is what verifying an agent's login token needs: the agent, deleted or not, with its customer's
// tm_delete and the database's time at the reading.
type AgentCredential struct {
	Agent
	CustomerTmDelete time.Time
	Now              time.Time
}

// AgentLogin is what a login needs.
type AgentLogin struct {
	Agent
	PasswordHash secret.Value
	Now          time.Time
}

// CreateAgent stores an agent under a fresh id. It returns ErrUsernameTaken and ErrNoCustomer.
func (s *Store) CreateAgent(ctx context.Context, a NewAgent) (Agent, error) {
	return one[Agent](ctx, s, "creating an agent", `
		INSERT INTO agents (id, customer_id, username, password_hash, name, detail, permission)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		RETURNING `+agentColumns,
		uuid.New(), a.CustomerID, a.Username, a.PasswordHash.Reveal(), a.Name, a.Detail, a.Permission)
}

// AgentCredential returns the agent with this id, a deleted one too, else ErrNotFound. It is not limited to one
// customer: it is read to find out whose token it is.
func (s *Store) AgentCredential(ctx context.Context, id uuid.UUID) (AgentCredential, error) {
	const sql = `
		SELECT a.id, a.customer_id, a.username, a.name, a.detail, a.permission, a.tm_password, a.tm_create, a.tm_update,
		       a.tm_delete, c.tm_delete, now()
		FROM agents a JOIN customers c ON c.id = a.customer_id
		WHERE a.id = $1`
	var a AgentCredential
	err := s.pool.QueryRow(ctx, sql, id).Scan(
		&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate,
		&a.TmDelete, &a.CustomerTmDelete, &a.Now)
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
	err := s.pool.QueryRow(ctx, sql, username).Scan(
		&a.ID, &a.CustomerID, &a.Username, &a.Name, &a.Detail, &a.Permission, &a.TmPassword, &a.TmCreate, &a.TmUpdate,
		&a.TmDelete, &hash, &a.Now)
	a.PasswordHash = secret.New(hash)
	return a, s.failed("reading an agent by username", err)
}

// RenewPasswordHash puts a better hash of the same password in the place of the one that was read. It does nothing
// where the password has been changed since, and leaves tm_password alone: tokens stay good.
func (s *Store) RenewPasswordHash(ctx context.Context, id uuid.UUID, old, renewed secret.Value) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE agents
		SET password_hash = $3
		WHERE id = $1 AND password_hash = $2 AND `+live,
		id, old.Reveal(), renewed.Reveal())
	return s.failed("renewing a password's hash", err)
}

// SetPassword gives a live agent another password; login tokens issued before are void from then on. It returns
// ErrNotFound where there is no such agent.
func (s *Store) SetPassword(ctx context.Context, id uuid.UUID, hash secret.Value) (Agent, error) {
	return one[Agent](ctx, s, "setting a password", `
		UPDATE agents
		SET password_hash = $2, tm_password = now(), tm_update = now()
		WHERE id = $1 AND `+live+`
		RETURNING `+agentColumns,
		id, hash.Reveal())
}

// DeleteAgent deletes a live agent, whose tokens are void from then on, else returns ErrNotFound.
func (s *Store) DeleteAgent(ctx context.Context, id uuid.UUID) (Agent, error) {
	return one[Agent](ctx, s, "deleting an agent", `
		UPDATE agents
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND `+live+`
		RETURNING `+agentColumns,
		id)
}
