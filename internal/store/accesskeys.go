package store

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
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
	TmLastUsed  *time.Time // nil for never; up to a minute behind
}

const (
	accessKeyOwnColumns = `id, customer_id, agent_id, name, detail, token_prefix, tm_expire, tm_create, tm_update, tm_delete`
	accessKeyColumns    = accessKeyOwnColumns +
		`, (SELECT u.tm_last_used FROM accesskey_uses u WHERE u.accesskey_id = accesskeys.id) AS tm_last_used`
)

// NewAccessKey is what a caller chooses of an AccessKey.
type NewAccessKey struct {
	CustomerID  uuid.UUID
	AgentID     *uuid.UUID
	Roles       []string // of a customer-wide key; nil means the customer's admin
	Name        string
	Detail      string
	TokenHash   TokenHash
	TokenPrefix string
	Expire      int64 // seconds from its creation
}

// AccessKeyCredential is what verifying a presented key needs, next to the AgentCredential of one that is bound to an agent:
// the key, deleted and expired ones too, with its customer's tm_delete. TmLastUsed is not read.
type AccessKeyCredential struct {
	AccessKey
	Roles            []string
	CustomerTmDelete time.Time
	Moment
}

const insertAccessKey = `
	INSERT INTO accesskeys (id, customer_id, agent_id, roles, name, detail, token_hash, token_prefix, tm_expire)
	VALUES ($1, $2, $3, coalesce($4::text[], '{customer_admin}'), $5, $6, $7, $8, now() + make_interval(secs => $9))
	RETURNING ` + accessKeyOwnColumns + `, NULL::timestamptz AS tm_last_used`

// CreateAccessKey stores a key under a fresh id. It returns ErrTokenTaken and ErrNoCustomer, and ErrNoAgent where the
// customer has no such agent.
func (s *Store) CreateAccessKey(ctx context.Context, k NewAccessKey) (AccessKey, error) {
	return one[AccessKey](ctx, s, "creating an access key", insertAccessKey, k.values()...)
}

// values are what insertAccessKey takes.
func (k NewAccessKey) values() []any {
	var agentID pgtype.UUID // null
	if k.AgentID != nil {
		agentID = quick(*k.AgentID)
	}
	return []any{
		quick(uuid.New()), quick(k.CustomerID), agentID, k.Roles, k.Name, k.Detail, k.TokenHash[:], k.TokenPrefix, float64(k.Expire),
	}
}

// AccessKeyByHash returns the key with this hash, deleted and expired ones too, else ErrNotFound. It returns ErrOtherLog where
// the database's log doesn't hold the position known. It is not limited to one customer: it is read to find out whose
// key it is.
func (s *Store) AccessKeyByHash(ctx context.Context, hash TokenHash, known Position) (AccessKeyCredential, error) {
	const sql = `
		SELECT k.id, k.customer_id, k.agent_id, k.name, k.detail, k.token_prefix, k.tm_expire, k.tm_create, k.tm_update,
		       k.tm_delete, k.roles, c.tm_delete, now()
		FROM accesskeys k JOIN customers c ON c.id = k.customer_id
		WHERE k.token_hash = $1`
	var k AccessKeyCredential
	var err error
	k.Head, err = s.readKnown(ctx, known, func(row pgx.Row) error {
		return row.Scan(
			&k.ID, &k.CustomerID, &k.AgentID, &k.Name, &k.Detail, &k.TokenPrefix, &k.TmExpire, &k.TmCreate, &k.TmUpdate,
			&k.TmDelete, &k.Roles, &k.CustomerTmDelete, &k.Now)
	}, sql, hash[:])
	return k, s.failed("reading an access key by its hash", err)
}

// AccessKey returns a key that is not deleted, else ErrNotFound. It is not limited to one customer: the caller has to
// tell a key of another customer from one that does not exist (contract, section 4).
func (s *Store) AccessKey(ctx context.Context, id uuid.UUID) (AccessKey, error) {
	return one[AccessKey](ctx, s, "reading an access key", `
		SELECT `+accessKeyColumns+`
		FROM accesskeys
		WHERE id = $1 AND `+live,
		id)
}

// AccessKeys returns up to limit keys of a customer's that are not deleted and come after the cursor, newest first.
func (s *Store) AccessKeys(ctx context.Context, customerID uuid.UUID, after Cursor, limit int) ([]AccessKey, error) {
	return many[AccessKey](ctx, s, "listing access keys", `
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
	return many[AccessKey](ctx, s, "listing an agent's access keys", `
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

// UpdateAccessKey changes a live key of this customer's, everywhere at once, else returns ErrNotFound.
func (s *Store) UpdateAccessKey(ctx context.Context, customerID, id uuid.UUID, change AccessKeyChange) (AccessKey, error) {
	return reviseOne[AccessKey](ctx, s, "updating an access key", `
		UPDATE accesskeys
		SET name = coalesce($3, name), detail = coalesce($4, detail), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+live+`
		RETURNING `+accessKeyColumns,
		id, customerID, change.Name, change.Detail)
}

// DeleteAccessKey deletes a live key of this customer's, everywhere at once: when it returns, no replica accepts the key. It
// returns ErrNotFound where there is none: of two deletions at once one wins.
func (s *Store) DeleteAccessKey(ctx context.Context, customerID, id uuid.UUID) (AccessKey, error) {
	return reviseOne[AccessKey](ctx, s, "deleting an access key", `
		UPDATE accesskeys
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+live+`
		RETURNING `+accessKeyColumns,
		id, customerID)
}
