package store

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"accesskeys/internal/postgres"
)

// Use says when an access key was last used.
type Use struct {
	AccessKeyID uuid.UUID
	TmLastUsed  time.Time
}

// RecordUses stores them, in one statement. A later time that is stored already stays.
func (s *Store) RecordUses(ctx context.Context, uses []Use) error {
	// In one order everywhere: two instances that store the same keys in two orders would lock each other out.
	slices.SortFunc(uses, func(a, b Use) int { return bytes.Compare(a.AccessKeyID[:], b.AccessKeyID[:]) })
	ids, times := make([]pgtype.UUID, len(uses)), make([]time.Time, len(uses))
	for i, use := range uses {
		ids[i], times[i] = postgres.UUID(use.AccessKeyID), use.TmLastUsed
	}
	err := s.DB.UnderReadCommitted(ctx, func(tx pgx.Tx) error {
		// Nothing is lost with the last of them that is worth a wait for the disk.
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit TO off`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO accesskey_uses AS stored (accesskey_id, tm_last_used)
			SELECT * FROM unnest($1::uuid[], $2::timestamptz[])
			ON CONFLICT (accesskey_id) DO UPDATE
			SET tm_last_used = excluded.tm_last_used
			WHERE stored.tm_last_used < excluded.tm_last_used`, ids, times)
		return err
	})
	return s.failed("recording when keys were used", err)
}
