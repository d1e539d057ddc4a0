package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrNotFound means that there is no such row, or only a deleted one.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable means that the database could not answer, or that the outcome of a write is not known.
	ErrUnavailable = errors.New("the database is unavailable")
	// ErrNoConnection means that the database has no connection to spare, or takes none while it starts: it is worth asking again.
	// It is an ErrUnavailable.
	ErrNoConnection = fmt.Errorf("%w: it takes no connection now", ErrUnavailable)
	// ErrLeftBehind means that the database that a connection leads to is not the one that revocations are written to any more. It is an
	// ErrUnavailable.
	ErrLeftBehind = fmt.Errorf("%w: it is not the one that revocations are written to", ErrUnavailable)
	// ErrRejected means that the database took the statement and refused its data: our checks let through what the
	// schema forbids, which is a defect of this program.
	ErrRejected = errors.New("the database rejected the data")
)

// Codes of Postgres (appendix A of its manual) that are told apart here.
const (
	codeReadOnly = "25006"
	codeTooMany  = "53300" // too_many_connections
	codeNotNow   = "57P03" // cannot_connect_now
	classData    = "22"    // data exceptions
	classChecks  = "23"    // integrity constraints
)

// internalTables are those by which the instances agree.
var internalTables = []string{"changes", "change_head", "instances"}

// ConstraintError is a row that a constraint of the schema refuses. It is an ErrRejected.
type ConstraintError struct{ Constraint string }

// Error names the constraint.
func (e *ConstraintError) Error() string {
	return ErrRejected.Error() + " (constraint " + e.Constraint + ")"
}

// Is makes it an ErrRejected.
func (*ConstraintError) Is(target error) bool { return target == ErrRejected }

// refusal is an ErrUnavailable that doesn't pass by itself. Its text says what is wrong.
type refusal string

func (r refusal) Error() string { return string(r) }

// Is makes it an ErrUnavailable.
func (refusal) Is(target error) bool { return target == ErrUnavailable }

// refusals are those that a person has to do something about, by their codes.
var refusals = map[string]refusal{
	"28P01": "the database refuses the password",
	"28000": "the database refuses the user",
	"3D000": "there is no such database",
	"42501": "the database's role lacks a right",
	"53100": "the database's disk is full",
	"53200": "the database is out of memory",
}

// Failed is Translate for errors of the pool's connections.
func (db *DB) Failed(doing string, err error) error {
	if SQLState(err) == codeReadOnly || errors.Is(err, ErrLeftBehind) {
		db.Reset()
	}
	return Translate(doing, err)
}

// Reset closes the pool's connections as they are given back. A primary that has become a standby answers pings and refuses writes, and one
// that was left behind has another log: their connections must not be used again.
func (db *DB) Reset() { db.pool().Reset() }

// Translate turns an error of the driver into one of this package's, and nil into nil.
func Translate(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	var pg *pgconn.PgError
	var connecting *pgconn.ConnectError // the server refuses us, for a setting in the address for example, not our data
	if errors.As(err, &pg) && !errors.As(err, &connecting) {
		switch {
		case strings.HasPrefix(pg.Code, classChecks) && slices.Contains(internalTables, pg.TableName):
			// Somebody has changed the log by hand. The data of this statement is as it should be.
		case strings.HasPrefix(pg.Code, classChecks):
			return fmt.Errorf("%s: %w", doing, &ConstraintError{Constraint: pg.ConstraintName})
		case strings.HasPrefix(pg.Code, classData):
			return fmt.Errorf("%s: %w: %w", doing, ErrRejected, err)
		}
	}
	if code := SQLState(err); code == codeTooMany || code == codeNotNow {
		return fmt.Errorf("%s: %w: %w", doing, ErrNoConnection, err)
	}
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if because, known := refusals[SQLState(err)]; known {
		return fmt.Errorf("%s: %w: %w", doing, because, err)
	}
	// Everything else, a lost connection, a time-out, a server that shuts down, a missing table, is a database that
	// can't be used at the moment. Failing closed here is what keeps a broken store from reading as "no such key".
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

// SQLState is the code of Postgres in an error (appendix A of its manual), "" where it has none.
func SQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
