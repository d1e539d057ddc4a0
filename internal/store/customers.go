package store

import (
	"context"
	"time"

	"github.com/google/uuid"
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

const customerColumns = `id, name, detail, email, tm_create, tm_update, tm_delete`

// NewCustomer is what a caller chooses of a Customer.
type NewCustomer struct {
	Name   string
	Detail string
	Email  string
}

// CreateCustomer stores a customer under a fresh id.
func (s *Store) CreateCustomer(ctx context.Context, c NewCustomer) (Customer, error) {
	return one[Customer](ctx, s, "creating a customer", `
		INSERT INTO customers (id, name, detail, email)
		VALUES ($1, $2, $3, $4)
		RETURNING `+customerColumns,
		uuid.New(), c.Name, c.Detail, c.Email)
}

// Customer returns a customer that is not deleted, else ErrNotFound.
func (s *Store) Customer(ctx context.Context, id uuid.UUID) (Customer, error) {
	return one[Customer](ctx, s, "reading a customer", `
		SELECT `+customerColumns+`
		FROM customers
		WHERE id = $1 AND `+live,
		id)
}

// Customers returns up to limit customers that are not deleted and come after the cursor, newest first: only the one
// named, or all where only is nil.
func (s *Store) Customers(ctx context.Context, only *uuid.UUID, after Cursor, limit int) ([]Customer, error) {
	return many[Customer](ctx, s, "listing customers", `
		SELECT `+customerColumns+`
		FROM customers
		WHERE `+live+` AND ($1::uuid IS NULL OR id = $1) AND (tm_create, id) < ($2, $3)
		ORDER BY tm_create DESC, id DESC
		LIMIT $4`,
		only, after.TmCreate, after.ID, limit)
}
