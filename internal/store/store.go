// Package store keeps customers, agents, access keys and service accounts in Postgres. It holds all SQL of theirs, and takes every point
// in time from the database's clock.
//
// Methods return ErrNotFound where there is no such row, an error of this package's own where a constraint refuses, and otherwise an error
// that is ErrUnavailable: the database could not answer, or its answer is not known. Methods whose names say nothing of it return at
// once; those that change or delete what verification reads return when no instance trusts the rows as they were, which may take as long as
// a lease.
package store

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
)

// Store is the nouns of one database. It is safe for concurrent use.
type Store struct {
	DB  *postgres.DB
	Log *changelog.Log

	needsBegin atomic.Bool // transactions have another isolation unless they say which
}

// Open makes a Store over the database at url, as postgres.Open does.
func Open(ctx context.Context, url secret.Value) (*Store, error) {
	db, err := postgres.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	return &Store{DB: db, Log: changelog.New(db)}, nil
}

// Close closes every connection of the pool, after those in use are given back.
func (s *Store) Close() { s.DB.Close() }

// Never is the tm_delete of what has not been deleted (contract, section 1).
func Never() time.Time { return time.Date(9999, time.January, 1, 0, 0, 0, 0, time.UTC) }

// live is the condition for rows that are not deleted. It is a literal, not a parameter, because the partial indexes
// are used only by conditions that repeat theirs.
const live = `tm_delete = '9999-01-01 00:00:00+00'`

// liveByID is live for statements that find a row by its id. No partial index serves it: on a table without statistics the planner
// would take a list's index, and read the whole list.
const liveByID = `tm_delete >= '9999-01-01 00:00:00+00'`

// ofCustomer is the condition that rows found by another column belong to the customer that is the parameter. No index serves it, for
// the same reason.
func ofCustomer(parameter string) string { return `(customer_id = ` + parameter + `) IS TRUE` }

// queryRow runs a statement that gives one row, made into a T by its columns' names.
func queryRow[T any](ctx context.Context, s *Store, doing, sql string, args ...any) (row T, err error) {
	err = s.DB.WithDurableCommit(ctx, func(conn *pgx.Conn) error {
		row, err = postgres.QueryOne[T](ctx, conn, sql, args...)
		return err
	})
	return row, s.failed(doing, err)
}

// queryRows runs a query and makes each row into a T by its columns' names. It never returns a nil slice without an error.
func queryRows[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	rows, err := s.DB.Query(ctx, sql, args...)
	if err != nil {
		return nil, s.failed(doing, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	return all, s.failed(doing, err)
}
