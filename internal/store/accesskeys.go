package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
)

// TokenHash is the SHA-256 of an access key's token, the only form in which a token is stored.
type TokenHash [sha256.Size]byte

// AccessKey is a key of a customer's, without its token.
type AccessKey struct {
	ID          uuid.UUID
	CustomerID  uuid.UUID
	AgentID     *uuid.UUID // whom it is bound to; nil for a customer-wide key
	Name        string
	Detail      string
	TokenPrefix string // the first 11 characters of the token
	TmExpire    time.Time
	TmCreate    time.Time
	TmUpdate    time.Time
	TmDelete    time.Time
	// Who made it, an agent, accesskey or service_account; nil for keys of before, and for those that nobody with a credential made.
	CreatedByType *string
	CreatedByID   *uuid.UUID
	TmLastUsed    *time.Time // nil for never; up to a minute behind
}

const accessKeyColumns = `id, customer_id, agent_id, name, description AS detail, token_prefix, tm_expire, tm_create, tm_update, tm_delete,
	created_by_type, created_by_id, (SELECT u.tm_last_used FROM accesskey_uses u WHERE u.accesskey_id = accesskeys.id) AS tm_last_used`

// NewAccessKey is what a caller chooses of an AccessKey.
type NewAccessKey struct {
	CustomerID uuid.UUID
	AgentID    *uuid.UUID
	// AgentPermission is what the agent had when the caller was found to be allowed to bind a key to it.
	AgentPermission int64
	Roles           []string // of a customer-wide key; nil means the customer's admin
	Name            string
	Detail          string
	TokenHash       TokenHash
	TokenPrefix     string
	Expire          int64 // seconds from its creation
}

// AccessKeyCredential is what verifying a presented key needs: the key, deleted and expired ones too, and what it rests on, deleted
// or not. TmLastUsed and who made it are not read.
type AccessKeyCredential struct {
	AccessKey
	Roles            []string
	CustomerTmDelete time.Time
	// Agent is the one that the key is bound to, nil for none.
	Agent *Agent
	// ServiceAccount is the one that made the key, itself or by another key: the key ends with it, and has at most its rights. Nil
	// for none.
	ServiceAccount *ServiceAccount
	Now            time.Time // the database's time when this was read
}

// insertAccessKey returns what only the database knows: each column more costs every creation.
const insertAccessKey = `
	INSERT INTO accesskeys (id, customer_id, agent_id, roles, name, description, token_sha256, token_prefix, tm_expire,
		created_by_type, created_by_id, service_account_id)
	SELECT $1, $2, $3, coalesce($4::text[], '{customer_admin}'), $5, $6, $7, $8, now() + make_interval(secs => $9), $10, $11, $12
	WHERE ` + mayWrite + `
	RETURNING tm_create, tm_expire`

// accessKeyTimes is a row that insertAccessKey returns.
type accessKeyTimes struct {
	TmCreate time.Time
	TmExpire time.Time
}

// CreateAccessKey stores a key under a fresh id. It returns ErrTokenTaken and ErrNoCustomer, ErrNoAgent where the customer has
// no such agent, and ErrChanged.
func (s *Store) CreateAccessKey(ctx context.Context, caller Caller, k NewAccessKey) (AccessKey, error) {
	on := target{customerID: k.CustomerID}
	if k.AgentID != nil {
		on = caller.on(k.CustomerID, *k.AgentID, k.AgentPermission)
	}
	id := uuid.New()
	times, err := insertOne[accessKeyTimes](ctx, s, caller, on, "creating an access key", insertAccessKey, k.values(id, caller)...)
	switch {
	case errors.Is(err, ErrNotFound):
		return AccessKey{}, ErrNoCustomer
	case err != nil:
		return AccessKey{}, err
	}
	return k.made(id, caller, times), nil
}

// values are what insertAccessKey takes.
func (k NewAccessKey) values(id uuid.UUID, caller Caller) []any {
	var agentID pgtype.UUID // null
	if k.AgentID != nil {
		agentID = postgres.UUID(*k.AgentID)
	}
	return []any{
		postgres.UUID(id), postgres.UUID(k.CustomerID), agentID, k.Roles, k.Name, k.Detail, k.TokenHash[:], k.TokenPrefix, float64(k.Expire),
		pgtype.Text{String: caller.creator.Type, Valid: caller.creator.Type != ""}, postgres.NullableUUID(caller.creator.ID), caller.serviceAccountID(),
	}
}

// made is the key that was stored with the values of k.
func (k NewAccessKey) made(id uuid.UUID, caller Caller, times accessKeyTimes) AccessKey {
	made := AccessKey{
		ID: id, CustomerID: k.CustomerID, AgentID: k.AgentID, Name: k.Name, Detail: k.Detail, TokenPrefix: k.TokenPrefix,
		TmExpire: times.TmExpire, TmCreate: times.TmCreate, TmUpdate: times.TmCreate, TmDelete: Never().In(times.TmCreate.Location()),
	}
	if by := caller.creator; by.Type != "" {
		made.CreatedByType, made.CreatedByID = &by.Type, &by.ID
	}
	return made
}

// One hash at a time, for the planner: it takes a parameter's array for one of many, and would read whole tables to join them.
const accessKeysByHash = `
	SELECT found.*
	FROM unnest((SELECT $1::bytea[])) AS wanted (hash) CROSS JOIN LATERAL (
		SELECT encode(k.token_sha256, 'hex'), k.id, k.customer_id, k.agent_id, k.name, k.description, k.token_prefix, k.tm_expire, k.tm_create, k.tm_update,
		       k.tm_delete, k.roles, c.tm_delete,
		       a.id, a.customer_id, a.username, a.name, a.description, a.permission, a.tm_password, a.tm_create, a.tm_update, a.tm_delete,
		       s.id, s.customer_id, s.name, s.description, s.roles, s.tm_create, s.tm_update, s.tm_delete
		FROM accesskeys k
		JOIN customers c ON c.id = k.customer_id
		LEFT JOIN agents a ON a.id = k.agent_id
		LEFT JOIN service_accounts s ON s.id = k.service_account_id
		WHERE k.token_sha256 = wanted.hash
		LIMIT 1
	) found`

// scanAccessKey reads a row of accessKeysByHash.
func scanAccessKey(row pgx.CollectableRow) (hash TokenHash, k AccessKeyCredential, err error) {
	var sum string // a bytea in text depends on bytea_output
	var a struct {
		id, customerID                           *uuid.UUID
		username, name, detail                   *string
		permission                               *int64
		tmPassword, tmCreate, tmUpdate, tmDelete *time.Time
	}
	var s struct {
		id, customerID               *uuid.UUID
		name, detail                 *string
		roles                        []string
		tmCreate, tmUpdate, tmDelete *time.Time
	}
	err = row.Scan(
		&sum, &k.ID, &k.CustomerID, &k.AgentID, &k.Name, &k.Detail, &k.TokenPrefix, &k.TmExpire, &k.TmCreate, &k.TmUpdate, &k.TmDelete,
		&k.Roles, &k.CustomerTmDelete,
		&a.id, &a.customerID, &a.username, &a.name, &a.detail, &a.permission, &a.tmPassword, &a.tmCreate, &a.tmUpdate, &a.tmDelete,
		&s.id, &s.customerID, &s.name, &s.detail, &s.roles, &s.tmCreate, &s.tmUpdate, &s.tmDelete)
	if err == nil && len(sum) == hex.EncodedLen(len(hash)) { // as the schema promises
		_, err = hex.Decode(hash[:], []byte(sum))
	}
	if err != nil {
		return hash, k, err
	}
	if a.id != nil {
		k.Agent = &Agent{
			ID: *a.id, CustomerID: *a.customerID, Username: *a.username, Name: *a.name, Detail: *a.detail, Permission: *a.permission,
			TmPassword: *a.tmPassword, TmCreate: *a.tmCreate, TmUpdate: *a.tmUpdate, TmDelete: *a.tmDelete,
		}
	}
	if s.id != nil {
		k.ServiceAccount = &ServiceAccount{
			ID: *s.id, CustomerID: *s.customerID, Name: *s.name, Detail: *s.detail, Roles: s.roles,
			TmCreate: *s.tmCreate, TmUpdate: *s.tmUpdate, TmDelete: *s.tmDelete,
		}
	}
	return hash, k, nil
}

// AccessKey returns a key that is not deleted, else ErrNotFound. It is not limited to one customer: the caller has to
// tell a key of another customer from one that does not exist (contract, section 4).
func (s *Store) AccessKey(ctx context.Context, id uuid.UUID) (AccessKey, error) {
	return queryRow[AccessKey](ctx, s, "reading an access key", `
		SELECT `+accessKeyColumns+`
		FROM accesskeys
		WHERE id = $1 AND `+liveByID,
		id)
}

// AccessKeys returns up to limit keys of a customer's that are not deleted and come after the cursor, newest first.
func (s *Store) AccessKeys(ctx context.Context, customerID uuid.UUID, after Cursor, limit int) ([]AccessKey, error) {
	return queryRows[AccessKey](ctx, s, "listing access keys", `
		SELECT `+accessKeyColumns+`
		FROM accesskeys
		WHERE customer_id = $1 AND `+live+` AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		customerID, after.TmCreate, after.ID, limit)
}

// AccessKeysOfAgent returns up to limit keys that are bound to an agent, are not deleted and come after the cursor, newest
// first.
func (s *Store) AccessKeysOfAgent(ctx context.Context, agentID uuid.UUID, after Cursor, limit int) ([]AccessKey, error) {
	return queryRows[AccessKey](ctx, s, "listing an agent's access keys", `
		SELECT `+accessKeyColumns+`
		FROM accesskeys
		WHERE agent_id = $1 AND `+live+` AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		agentID, after.TmCreate, after.ID, limit)
}

// AccessKeyChange is a change to a key; what is nil keeps its value.
type AccessKeyChange struct {
	Name   *string
	Detail *string
}

// UpdateAccessKey changes a live key of this customer's, everywhere at once, else returns ErrNotFound. It returns ErrChanged.
func (s *Store) UpdateAccessKey(ctx context.Context, caller Caller, customerID, id uuid.UUID, change AccessKeyChange) (AccessKey, error) {
	return writeOneAndWait[AccessKey](ctx, s, caller, target{customerID: customerID}, changelog.NounAccessKeys, id, "updating an access key", `
		UPDATE accesskeys
		SET name = coalesce($3, name), description = coalesce($4, description), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+`
		RETURNING `+accessKeyColumns,
		id, customerID, change.Name, change.Detail)
}

// DeleteAccessKey deletes a live key of this customer's, everywhere at once: when it returns, no instance accepts the key, and
// nothing that the key had under way is written. It returns ErrNotFound where there is none, so that of two deletions at once one
// wins, and ErrChanged.
func (s *Store) DeleteAccessKey(ctx context.Context, caller Caller, customerID, id uuid.UUID) (AccessKey, error) {
	return writeOneAndWait[AccessKey](ctx, s, caller, target{customerID: customerID}, changelog.NounAccessKeys, id, "deleting an access key", `
		UPDATE accesskeys
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+`
		RETURNING `+accessKeyColumns,
		id, customerID)
}
