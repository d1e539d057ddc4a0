package store

import (
	"context"
	"crypto/subtle"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// signupsPerAddress is how many sign-ups of one address can live at once, which bounds the mails that strangers can
	// have sent to it.
	signupsPerAddress = 3
	// signupTries is how many codes may be tried on one sign-up.
	signupTries = 5
	// signupSweep bounds how many expired sign-ups a new one clears away: more than it adds, and never a long statement.
	signupSweep = 100
	// signupLock is the class of the advisory locks under which the sign-ups of one address are counted. The number is
	// arbitrary and must never change.
	signupLock = 0x7375 // "su"
)

// NewSignup is a sign-up as it is asked for.
type NewSignup struct {
	TempTokenHash TokenHash
	CodeHash      TokenHash
	Email         string
	Name          string
	Detail        string
}

// Signup is what became of a NewSignup.
type Signup struct {
	ID uuid.UUID
	// AddressTaken means that a customer has this address already. Such a sign-up can't be completed.
	AddressTaken bool
	// Stored is false where as many of this address live as may be.
	Stored bool
}

// CreateSignup stores a sign-up, which lives for 15 minutes, and clears expired ones away. Addresses match in any case.
func (s *Store) CreateSignup(ctx context.Context, n NewSignup) (Signup, error) {
	done := Signup{ID: uuid.New(), Stored: true}
	err := s.DB.UnderReadCommitted(ctx, func(tx pgx.Tx) error {
		// SKIP LOCKED: one that is just being completed is left for the next time. ANY(ARRAY): with IN the whole table is
		// read to join it.
		if _, err := tx.Exec(ctx, `
			DELETE FROM signups
			WHERE id = ANY (ARRAY (
				SELECT id FROM signups WHERE tm_expire <= now() ORDER BY tm_expire LIMIT $1 FOR UPDATE SKIP LOCKED
			))`, signupSweep); err != nil {
			return err
		}
		if err := lockAddress(ctx, tx, n.Email); err != nil {
			return err
		}
		// A statement of its own, so that it sees what was done under the lock before.
		err := tx.QueryRow(ctx, `
			INSERT INTO signups (id, temp_token_hash, code_hash, email, name, detail, known, tm_expire)
			SELECT $1::uuid, $2::bytea, $3::bytea, $4::text, $5::text, $6::text, `+addressIsKnown("$4")+`, now() + interval '15 minutes'
			WHERE (
				SELECT count(*) FROM signups WHERE lower(email) COLLATE "C" = lower($4) AND tm_expire > now()
			) < $7
			RETURNING known`,
			done.ID, n.TempTokenHash[:], n.CodeHash[:], n.Email, n.Name, n.Detail, signupsPerAddress).Scan(&done.AddressTaken)
		if errors.Is(err, pgx.ErrNoRows) {
			done.Stored = false
			return nil
		}
		return err
	})
	return done, s.failed("creating a sign-up", err)
}

// DropSignup takes a sign-up back whose code could not be sent.
func (s *Store) DropSignup(ctx context.Context, id uuid.UUID) error {
	_, err := s.DB.Exec(ctx, `DELETE FROM signups WHERE id = $1`, id)
	return s.failed("dropping a sign-up", err)
}

// CompleteSignup turns a sign-up into a customer with a first key, whose CustomerID it sets. It returns ErrNoSignup where
// there is none with this temp token, or it has expired, was tried too often or was completed before, or the code is
// another, or a customer has its address by now. A wrong code uses up a try. Of two completions at once, one wins.
func (s *Store) CompleteSignup(ctx context.Context, tempToken, code TokenHash, k NewAccessKey) (Customer, AccessKey, error) {
	var customer Customer
	var key AccessKey
	completed := false
	err := s.DB.UnderReadCommitted(ctx, func(tx pgx.Tx) error {
		var id uuid.UUID
		var wanted []byte
		var known bool
		var c NewCustomer
		// The row stays locked to the end: another completion waits here, and then finds no row.
		err := tx.QueryRow(ctx, `
			UPDATE signups
			SET tries = tries + 1
			WHERE temp_token_hash = $1 AND tm_expire > now() AND tries < $2
			RETURNING id, code_hash, known, email, name, detail`,
			tempToken[:], signupTries).Scan(&id, &wanted, &known, &c.Email, &c.Name, &c.Detail)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil || known || subtle.ConstantTimeCompare(wanted, code[:]) != 1 {
			return err // without one the try is committed
		}
		if err := lockAddress(ctx, tx, c.Email); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT `+addressIsKnown("$1"), c.Email).Scan(&known); err != nil || known {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM signups WHERE id = $1`, id); err != nil {
			return err
		}
		if customer, err = insertIn[Customer](ctx, tx, target{}, insertCustomer, c.values()); err != nil {
			return err
		}
		k.CustomerID = customer.ID
		keyID := uuid.New()
		times, err := insertIn[accessKeyTimes](ctx, tx, target{}, insertAccessKey, k.values(keyID, Operator()))
		if err != nil {
			return err
		}
		key, completed = k.made(keyID, Operator(), times), true
		return nil
	})
	if err == nil && !completed {
		return Customer{}, AccessKey{}, ErrNoSignup
	}
	return customer, key, s.failed("completing a sign-up", err)
}

// lockAddress lets only one transaction at a time decide about an address.
func lockAddress(ctx context.Context, tx pgx.Tx, email string) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext(lower($2)))`, signupLock, email)
	return err
}

// addressIsKnown is the condition that a customer has the address that is the parameter.
func addressIsKnown(parameter string) string {
	return `EXISTS (SELECT FROM customers WHERE lower(email) COLLATE "C" = lower(` + parameter + `) AND ` + live + `)`
}
