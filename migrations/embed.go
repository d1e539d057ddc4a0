// Package migrations holds the database's schema as numbered steps, embedded into the binary.
//
// A step that has landed is never edited. Each is a pair, NNNNNN_name.up.sql and NNNNNN_name.down.sql, and runs inside
// a transaction of the caller's: statements that refuse to run in one (CREATE INDEX CONCURRENTLY, VACUUM) have no place
// here.
package migrations

import "embed"

// Files holds every step.
//
//go:embed *.sql
var Files embed.FS
