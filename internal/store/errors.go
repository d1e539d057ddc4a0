package store

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
	// ErrUsernameTaken means that a live agent has this username, in whatever spelling.
	ErrUsernameTaken = errors.New("the username is taken")
	// ErrTokenTaken means that there is a key with this token already, live or deleted.
	ErrTokenTaken = errors.New("the access key exists already")
	// ErrNoCustomer means that a new row names a customer that does not exist.
	ErrNoCustomer = errors.New("there is no such customer")
	// ErrNoAgent means that a new row names an agent that its customer does not have.
	ErrNoAgent = errors.New("the customer has no such agent")
	// ErrNoSignup means that there is no sign-up that these secrets complete.
	ErrNoSignup = errors.New("there is no such sign-up")
	// ErrRejected means that the database took the statement and refused its data: our checks let through what the
	// schema forbids, which is a defect of this program.
	ErrRejected = errors.New("the database rejected the data")
)

// Codes of Postgres (appendix A of its manual) that are told apart here.
const (
	codeReadOnly      = "25006"
	codeDeadlock      = "40P01"
	codeSerialization = "40001"
	codeTooMany       = "53300" // too_many_connections
	codeNotNow        = "57P03" // cannot_connect_now
	classData         = "22"    // data exceptions
	classChecks       = "23"    // integrity constraints
)

// internalTables are those by which the instances agree.
var internalTables = []string{"changes", "change_head", "instances"}

// constraintError maps the constraints that a caller can run into to what they mean.
func constraintError(name string) error {
	switch name {
	case "agents_live_username", "agents_live_username_key":
		return ErrUsernameTaken
	case "accesskeys_token_sha256_key":
		return ErrTokenTaken
	case "agents_customer_id_fkey":
		return ErrNoCustomer
	case "accesskeys_agent_id_fkey":
		return ErrNoAgent
	case "service_accounts_customer_id_fkey":
		return ErrNoCustomer
	default:
		return ErrRejected
	}
}

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

// failed turns an error of the driver into one of this package's, and nil into nil. No other function reads the
// driver's errors.
func (s *Store) failed(doing string, err error) error {
	if sqlState(err) == codeReadOnly || errors.Is(err, ErrOtherLog) {
		// A primary that has become a standby answers pings and refuses writes, and one that was left behind has another log:
		// their connections must not be used again.
		s.pool().Reset()
	}
	return translate(doing, err)
}

func translate(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	if errors.Is(err, ErrChanged) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	var pg *pgconn.PgError
	var connecting *pgconn.ConnectError // the server refuses us, for a setting in the address for example, not our data
	if errors.As(err, &pg) && !errors.As(err, &connecting) {
		switch {
		case strings.HasPrefix(pg.Code, classChecks) && slices.Contains(internalTables, pg.TableName):
			// Somebody has changed the log by hand. The data of this statement is as it should be.
		case strings.HasPrefix(pg.Code, classChecks):
			return fmt.Errorf("%s: %w (constraint %s)", doing, constraintError(pg.ConstraintName), pg.ConstraintName)
		case strings.HasPrefix(pg.Code, classData):
			return fmt.Errorf("%s: %w: %w", doing, ErrRejected, err)
		}
	}
	if code := sqlState(err); code == codeTooMany || code == codeNotNow {
		return fmt.Errorf("%s: %w: %w", doing, ErrNoConnection, err)
	}
	if because, known := refusals[sqlState(err)]; known {
		return fmt.Errorf("%s: %w: %w", doing, because, err)
	}
	// Everything else, a lost connection, a time-out, a server that shuts down, a missing table, is a database that
	// can't be used at the moment. Failing closed here is what keeps a broken store from reading as "no such key".
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
