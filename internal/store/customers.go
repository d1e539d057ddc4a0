package store

import (
	"context"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
)

// Customer is a tenant: agents and access keys belong to one, and see nothing of the others.
type Customer struct {
	ID       uuid.UUID
	Name     string
	Detail   string
	Email    string
	TmCreate time.Time
	TmUpdate time.Time
	TmDelete time.Time
}

const customerColumns = `id, name, description AS detail, email, tm_create, tm_update, tm_delete`

// NewCustomer is what a caller chooses of a Customer.
type NewCustomer struct {
	Name   string
	Detail string
	Email  string
}

const insertCustomer = `
	INSERT INTO customers (id, name, description, email)
	SELECT $1, $2, $3, $4
	WHERE ` + mayWrite + `
	RETURNING ` + customerColumns

// CreateCustomer stores a customer under a fresh id. It returns ErrChanged.
func (s *Store) CreateCustomer(ctx context.Context, caller Caller, c NewCustomer) (Customer, error) {
	return insertOne[Customer](ctx, s, caller, target{}, "creating a customer", insertCustomer, c.values()...)
}

// values are what insertCustomer takes.
func (c NewCustomer) values() []any { return []any{uuid.New(), c.Name, c.Detail, c.Email} }

// Customer returns a customer that is not deleted, else ErrNotFound.
func (s *Store) Customer(ctx context.Context, id uuid.UUID) (Customer, error) {
	return queryRow[Customer](ctx, s, "reading a customer", `
		SELECT `+customerColumns+`
		FROM customers
		WHERE id = $1 AND `+liveByID,
		id)
}

// Customers returns up to limit customers that are not deleted and come after the cursor, newest first: only the one
// named, or all where only is nil.
func (s *Store) Customers(ctx context.Context, only *uuid.UUID, after Cursor, limit int) ([]Customer, error) {
	return queryRows[Customer](ctx, s, "listing customers", `
		SELECT `+customerColumns+`
		FROM customers
		WHERE `+live+` AND ($1::uuid IS NULL OR id = $1) AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		only, after.TmCreate, after.ID, limit)
}

// CustomerChange is a change to a customer; what is nil keeps its value.
type CustomerChange struct {
	Name   *string
	Detail *string
	Email  *string
}

// UpdateCustomer changes a live customer, else returns ErrNotFound. It returns ErrChanged.
func (s *Store) UpdateCustomer(ctx context.Context, caller Caller, id uuid.UUID, change CustomerChange) (Customer, error) {
	return writeOneAndWait[Customer](ctx, s, caller, target{customerID: id}, changelog.NounCustomers, id, "updating a customer", `
		UPDATE customers
		SET name = coalesce($2, name), description = coalesce($3, description), email = coalesce($4, email), tm_update = now()
		WHERE id = $1 AND `+liveByID+`
		RETURNING `+customerColumns,
		id, change.Name, change.Detail, change.Email)
}

// DeleteCustomer deletes a live customer and with it all that it has, else returns ErrNotFound. Every credential of its
// is void from then on: verification looks at the customer too, so none escapes that is made at the same moment. It returns
// ErrChanged.
func (s *Store) DeleteCustomer(ctx context.Context, caller Caller, id uuid.UUID) (Customer, error) {
	return writeOneAndWait[Customer](ctx, s, caller, target{customerID: id}, changelog.NounCustomers, id, "deleting a customer", `
		WITH account_keys AS (
			UPDATE service_account_keys k
			SET tm_delete = now(), tm_update = now()
			FROM service_accounts a
			WHERE a.id = k.account_id AND a.customer_id = $1 AND k.`+live+`
		), accounts AS (
			UPDATE service_accounts SET tm_delete = now(), tm_update = now() WHERE customer_id = $1 AND `+live+`
		), keys AS (
			UPDATE accesskeys SET tm_delete = now(), tm_update = now() WHERE customer_id = $1 AND `+live+`
		), people AS (
			UPDATE agents SET tm_delete = now(), tm_update = now() WHERE customer_id = $1 AND `+live+`
		)
		UPDATE customers
		SET tm_delete = now(), tm_update = now()
		WHERE id = $1 AND `+liveByID+`
		RETURNING `+customerColumns,
		id)
}
