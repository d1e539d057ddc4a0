package store

import (
	"context"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"accesskeys/internal/secret"
)

// Tables are the names that a foreign database must not have.
var Tables = tables

// MigrationLock is the advisory lock of a migration.
const MigrationLock = migrationLock

// MigrateUpWith is MigrateUp with other steps and another bound on the wait for the lock.
func MigrateUpWith(
	ctx context.Context, url secret.Value, log *slog.Logger, steps fs.FS, lockWait time.Duration,
) (int, error) {
	m := newMigrator(url, log)
	m.steps, m.lockWait = steps, lockWait
	return m.up(ctx)
}

// MigrateDownWith is MigrateDown with other steps.
func MigrateDownWith(ctx context.Context, url secret.Value, log *slog.Logger, steps fs.FS) (int, error) {
	m := newMigrator(url, log)
	m.steps = steps
	return m.down(ctx)
}

// Traced is s once more, on a pool of its own that tells the tracer of every statement.
func Traced(ctx context.Context, s *Store, tracer pgx.QueryTracer) (*Store, error) {
	cfg := s.pool().Config()
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	traced := &Store{version: s.version, waiters: newWaiters()}
	traced.current.Store(pool)
	return traced, err
}

// Redirect has the pool of s lead to another database from now on, as an address does that moved. Its ChangeFeeds stay where they are.
func Redirect(s, to *Store) { s.current.Store(to.pool()) }

// Waiting returns how many revocations wait for the instances.
func Waiting(s *Store) int {
	s.waiters.mu.Lock()
	defer s.waiters.mu.Unlock()
	return len(s.waiters.waiting)
}
