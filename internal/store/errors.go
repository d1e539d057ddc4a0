package store

import (
	"errors"
	"fmt"

	"accesskeys/internal/postgres"
)

var (
	// ErrNotFound means that there is no such row, or only a deleted one.
	ErrNotFound = postgres.ErrNotFound
	// ErrUnavailable means that the database could not answer, or that the outcome of a write is not known.
	ErrUnavailable = postgres.ErrUnavailable
	// ErrRejected means that the database took the statement and refused its data: our checks let through what the schema forbids, which
	// is a defect of this program.
	ErrRejected = postgres.ErrRejected
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
)

// constraintError maps the constraints that a caller can run into to what they mean, and others to nil.
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
		return nil
	}
}

// failed turns an error of the driver into one of this package's, and nil into nil.
func (s *Store) failed(doing string, err error) error {
	return meaning(doing, err, s.DB.Failed)
}

// failed is Store.failed for errors of other connections than the pool's.
func failed(doing string, err error) error { return meaning(doing, err, postgres.Translate) }

func meaning(doing string, err error, translate func(string, error) error) error {
	if errors.Is(err, ErrChanged) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err = translate(doing, err)
	var refused *postgres.ConstraintError
	if errors.As(err, &refused) {
		if known := constraintError(refused.Constraint); known != nil {
			return fmt.Errorf("%s: %w (constraint %s)", doing, known, refused.Constraint)
		}
	}
	return err
}
