package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
)

// ServiceAccount is a program of a customer's, which signs its own tokens.
type ServiceAccount struct {
	ID         uuid.UUID
	CustomerID uuid.UUID
	Name       string
	Detail     string
	Roles      []string // see package auth
	TmCreate   time.Time
	TmUpdate   time.Time
	TmDelete   time.Time
}

const serviceAccountColumns = `id, customer_id, name, description AS detail, roles, tm_create, tm_update, tm_delete`

// NewServiceAccount is what a caller chooses of a ServiceAccount.
type NewServiceAccount struct {
	CustomerID uuid.UUID
	Name       string
	Detail     string
	Roles      []string
}

// CreateServiceAccount stores an account under a fresh id. It returns ErrNoCustomer and ErrChanged.
func (s *Store) CreateServiceAccount(ctx context.Context, caller Caller, a NewServiceAccount) (ServiceAccount, error) {
	account, err := insertOne[ServiceAccount](ctx, s, caller, target{customerID: a.CustomerID}, "creating a service account", `
		INSERT INTO service_accounts (id, customer_id, name, description, roles)
		SELECT $1, $2, $3, $4, $5
		WHERE `+mayWrite+`
		RETURNING `+serviceAccountColumns,
		uuid.New(), a.CustomerID, a.Name, a.Detail, a.Roles)
	if errors.Is(err, ErrNotFound) {
		return ServiceAccount{}, ErrNoCustomer
	}
	return account, err
}

// ServiceAccount returns an account that is not deleted, else ErrNotFound. It is not limited to one customer: the caller
// has to tell one of another customer from one that does not exist.
func (s *Store) ServiceAccount(ctx context.Context, id uuid.UUID) (ServiceAccount, error) {
	return queryRow[ServiceAccount](ctx, s, "reading a service account", `
		SELECT `+serviceAccountColumns+`
		FROM service_accounts
		WHERE id = $1 AND `+liveByID,
		id)
}

// ServiceAccounts returns up to limit accounts of a customer's that are not deleted and come after the cursor, newest
// first.
func (s *Store) ServiceAccounts(ctx context.Context, customerID uuid.UUID, after Cursor, limit int) ([]ServiceAccount, error) {
	return queryRows[ServiceAccount](ctx, s, "listing service accounts", `
		SELECT `+serviceAccountColumns+`
		FROM service_accounts
		WHERE customer_id = $1 AND `+live+` AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		customerID, after.TmCreate, after.ID, limit)
}

// ServiceAccountChange is a change to an account; what is nil keeps its value.
type ServiceAccountChange struct {
	Name   *string
	Detail *string
	Roles  *[]string
}

// UpdateServiceAccount changes a live account of this customer's, else returns ErrNotFound. It returns ErrChanged.
func (s *Store) UpdateServiceAccount(
	ctx context.Context, caller Caller, customerID, id uuid.UUID, change ServiceAccountChange,
) (ServiceAccount, error) {
	return writeOneAndWait[ServiceAccount](ctx, s, caller, target{customerID: customerID}, changelog.NounServiceAccounts, id, "updating a service account", `
		UPDATE service_accounts
		SET name = coalesce($3, name), description = coalesce($4, description), roles = coalesce($5::text[], roles), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+`
		RETURNING `+serviceAccountColumns,
		id, customerID, change.Name, change.Detail, change.Roles)
}

// DeleteServiceAccount deletes a live account of this customer's with the access keys that it made. Its tokens and its key pairs
// are void from then on. It returns ErrNotFound and ErrChanged.
func (s *Store) DeleteServiceAccount(ctx context.Context, caller Caller, customerID, id uuid.UUID) (ServiceAccount, error) {
	return writeOneAndWait[ServiceAccount](ctx, s, caller, target{customerID: customerID}, changelog.NounServiceAccounts, id, "deleting a service account", `
		WITH made AS (
			UPDATE accesskeys
			SET tm_delete = now(), tm_update = now()
			WHERE service_account_id = $1 AND `+ofCustomer("$2")+` AND `+live+`
		)
		UPDATE service_accounts
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND customer_id = $2 AND `+liveByID+`
		RETURNING `+serviceAccountColumns,
		id, customerID)
}

// ServiceAccountKey is the public half of an account's key pair.
type ServiceAccountKey struct {
	ID        uuid.UUID
	AccountID uuid.UUID
	Algorithm string // RS256, ES256 or EdDSA
	PublicKey []byte // SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7) in DER
	TmCreate  time.Time
	TmUpdate  time.Time
	TmDelete  time.Time
}

const serviceAccountKeyColumns = `id, account_id, algorithm, spki AS public_key, tm_create, tm_update, tm_delete`

// MaxServiceAccountKeys is how many live keys an account may have: enough to rotate without a gap.
const MaxServiceAccountKeys = 10

// ErrTooManyKeys means that an account has MaxServiceAccountKeys live keys already.
var ErrTooManyKeys = errors.New("the service account has as many keys as it may have")

// CreateServiceAccountKey adds a public key to a live account. It returns ErrNotFound where there is no such account,
// ErrTooManyKeys, and ErrChanged.
func (s *Store) CreateServiceAccountKey(
	ctx context.Context, caller Caller, account ServiceAccount, algorithm string, publicKey []byte,
) (ServiceAccountKey, error) {
	var exists bool
	// The row's lock makes additions to one account wait for each other: two at once could both see room for one.
	lock := func(b *pgx.Batch) {
		b.Queue(`SELECT EXISTS (SELECT FROM service_accounts WHERE id = $1 AND customer_id = $2 AND `+liveByID+` FOR UPDATE)`,
			account.ID, account.CustomerID).QueryRow(func(row pgx.Row) error { return row.Scan(&exists) })
	}
	key, err := insertAfter[ServiceAccountKey](ctx, s, caller, target{customerID: account.CustomerID}, "adding a service account's key", lock, `
		INSERT INTO service_account_keys (id, account_id, algorithm, spki)
		SELECT $1, $2, $3, $4
		WHERE EXISTS (SELECT FROM service_accounts WHERE id = $2 AND customer_id = $6 AND `+liveByID+`)
		  AND (SELECT count(*) FROM service_account_keys WHERE account_id = $2 AND `+live+`) < $5
		RETURNING `+serviceAccountKeyColumns,
		uuid.New(), account.ID, algorithm, publicKey, MaxServiceAccountKeys, account.CustomerID)
	if errors.Is(err, ErrNotFound) && exists {
		return ServiceAccountKey{}, ErrTooManyKeys
	}
	return key, err
}

// ServiceAccountKeys returns up to limit keys of an account's that are not deleted and come after the cursor, newest
// first.
func (s *Store) ServiceAccountKeys(ctx context.Context, accountID uuid.UUID, after Cursor, limit int) ([]ServiceAccountKey, error) {
	return queryRows[ServiceAccountKey](ctx, s, "listing a service account's keys", `
		SELECT `+serviceAccountKeyColumns+`
		FROM service_account_keys
		WHERE account_id = $1 AND `+live+` AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		accountID, after.TmCreate, after.ID, limit)
}

// DeleteServiceAccountKey deletes a live key of this account's, else returns ErrNotFound. It returns ErrChanged.
func (s *Store) DeleteServiceAccountKey(ctx context.Context, caller Caller, account ServiceAccount, id uuid.UUID) (ServiceAccountKey, error) {
	on := target{customerID: account.CustomerID}
	return writeOneAndWait[ServiceAccountKey](ctx, s, caller, on, changelog.NounServiceAccountKeys, id, "deleting a service account's key", `
		UPDATE service_account_keys
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND account_id = (SELECT a.id FROM service_accounts a WHERE a.id = $2 AND a.customer_id = $3) AND `+liveByID+`
		RETURNING `+serviceAccountKeyColumns,
		id, account.ID, account.CustomerID)
}

// ServiceAccountCredential is what verifying a token needs that an account has signed: key and account, deleted or not,
// with the customer's tm_delete.
type ServiceAccountCredential struct {
	Key              ServiceAccountKey
	Account          ServiceAccount
	CustomerTmDelete time.Time
	Now              time.Time // the database's time when this was read
}

const serviceAccountKeysByID = `
	SELECT found.*
	FROM unnest((SELECT $1::uuid[])) AS wanted (id) CROSS JOIN LATERAL (
		SELECT k.id, k.account_id, k.algorithm, k.spki, k.tm_create, k.tm_update, k.tm_delete,
		       a.id, a.customer_id, a.name, a.description, a.roles, a.tm_create, a.tm_update, a.tm_delete,
		       c.tm_delete
		FROM service_account_keys k
		JOIN service_accounts a ON a.id = k.account_id
		JOIN customers c ON c.id = a.customer_id
		WHERE k.id = wanted.id
		LIMIT 1
	) found`

// scanServiceAccountKey reads a row of serviceAccountKeysByID.
func scanServiceAccountKey(row pgx.CollectableRow) (c ServiceAccountCredential, err error) {
	k, a := &c.Key, &c.Account
	err = row.Scan(
		&k.ID, &k.AccountID, &k.Algorithm, &k.PublicKey, &k.TmCreate, &k.TmUpdate, &k.TmDelete,
		&a.ID, &a.CustomerID, &a.Name, &a.Detail, &a.Roles, &a.TmCreate, &a.TmUpdate, &a.TmDelete,
		&c.CustomerTmDelete)
	return c, err
}
