package postgres

import (
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// UUID is an id in the driver's own type, for statements that are run all the time: an id of ours it would write out as text and read
// again. It knows the type in every mode, also where poolers let it ask the server for none.
func UUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// UUIDs is UUID for each of them.
func UUIDs(ids []uuid.UUID) []pgtype.UUID {
	all := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		all[i] = UUID(id)
	}
	return all
}

// NullableUUID is UUID, null for the nil UUID.
func NullableUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: id != uuid.Nil} }
