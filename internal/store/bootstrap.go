package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/secret"
)

// bootstrapLock is the advisory lock under which Bootstrap looks and creates, so that many servers which start at once
// create each thing once. The number is arbitrary and must never change.
const bootstrapLock = 0x61636b62 // "ackb"

// Bootstrap names a customer, and where they are set an admin and a key of its, that should exist.
type Bootstrap struct {
	Customer string
	Username string
	// PasswordHash is called only where the admin has to be created: hashing is slow on purpose.
	PasswordHash func(context.Context) (secret.Value, error)
	Permission   int64
	AccessKey    *NewAccessKey // its CustomerID is set by Bootstrap
}

// Presence is what Bootstrap found or did.
type Presence string

// What Bootstrap can find or do. It creates what has never been there; what somebody deleted stays deleted, because a
// restart must not undo a revocation, and a password that somebody changed stays changed.
const (
	NotAsked Presence = ""
	Existed  Presence = "existed"
	Created  Presence = "created"
	Deleted  Presence = "deleted"
	Expired  Presence = "expired"
)

// Bootstrapped is the outcome of Bootstrap.
type Bootstrapped struct {
	CustomerID uuid.UUID
	Customer   Presence
	AgentID    uuid.UUID
	Agent      Presence
	AccessKey  Presence
}

// ErrOtherCustomer means that a bootstrap's admin or key exists, but belongs to another customer.
var ErrOtherCustomer = errors.New("it belongs to another customer")

// Bootstrap makes sure that what b names exists. It may be called at every start and by many servers at once. It
// returns ErrOtherCustomer where the username or the key is already another customer's, unless it was deleted there, and ErrUsername
// where an agent was to be created by a name that is none.
func (s *Store) Bootstrap(ctx context.Context, b Bootstrap) (Bootstrapped, error) {
	var done Bootstrapped
	// Who has waited for the lock must see what the one before it did.
	err := s.DB.UnderReadCommitted(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, bootstrapLock); err != nil {
			return err
		}
		if err := bootstrapCustomer(ctx, tx, b, &done); err != nil || done.Customer == Deleted {
			return err
		}
		if err := bootstrapAgent(ctx, tx, b, &done); err != nil {
			return err
		}
		return bootstrapAccessKey(ctx, tx, b, &done)
	})
	if errors.Is(err, ErrOtherCustomer) || errors.Is(err, ErrUsername) {
		return Bootstrapped{}, err
	}
	return done, s.failed("bootstrapping", err)
}

func bootstrapCustomer(ctx context.Context, tx pgx.Tx, b Bootstrap, done *Bootstrapped) error {
	var deleted bool
	err := tx.QueryRow(ctx, `
		SELECT id, NOT (`+live+`)
		FROM customers
		WHERE name = $1
		ORDER BY NOT (`+live+`), tm_create, id
		LIMIT 1`, b.Customer).Scan(&done.CustomerID, &deleted)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		var made Customer
		made, err = insertIn[Customer](ctx, tx, target{}, insertCustomer, NewCustomer{Name: b.Customer}.values())
		done.CustomerID, done.Customer = made.ID, Created
	case deleted:
		done.Customer = Deleted
	default:
		done.Customer = Existed
	}
	return err
}

func bootstrapAgent(ctx context.Context, tx pgx.Tx, b Bootstrap, done *Bootstrapped) error {
	if b.Username == "" {
		return nil
	}
	key, keyErr := usernameKey(b.Username)
	var owner uuid.UUID
	var deleted bool
	// A live agent of any customer counts, as does a deleted one of this customer's.
	err := tx.QueryRow(ctx, `
		SELECT id, customer_id, NOT (`+live+`)
		FROM agents
		WHERE (lower(username) COLLATE "C" = lower($1) OR username_key = $3 AND username_key_of = username)
		      AND (`+live+` OR customer_id = $2)
		ORDER BY NOT (`+live+`), tm_create, id
		LIMIT 1`, b.Username, done.CustomerID, key).Scan(&done.AgentID, &owner, &deleted)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		if keyErr != nil {
			return fmt.Errorf("creating the agent: %w", keyErr)
		}
		hash, err := b.PasswordHash(ctx)
		if err != nil {
			return err
		}
		agent := NewAgent{CustomerID: done.CustomerID, Username: b.Username, PasswordHash: hash, Permission: b.Permission}
		made, err := insertIn[Agent](ctx, tx, target{customerID: done.CustomerID}, insertAgent, agent.values(key))
		done.AgentID, done.Agent = made.ID, Created
		return err
	case err != nil:
		return err
	case owner != done.CustomerID:
		return fmt.Errorf("the username is taken: %w", ErrOtherCustomer)
	case deleted:
		done.Agent = Deleted
	default:
		done.Agent = Existed
	}
	return nil
}

func bootstrapAccessKey(ctx context.Context, tx pgx.Tx, b Bootstrap, done *Bootstrapped) error {
	k := b.AccessKey
	if k == nil {
		return nil
	}
	var owner uuid.UUID
	var deleted, expired bool
	err := tx.QueryRow(ctx, `
		SELECT customer_id, NOT (`+live+`), tm_expire <= now()
		FROM accesskeys
		WHERE token_sha256 = $1`, k.TokenHash[:]).Scan(&owner, &deleted, &expired)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		made := *k
		made.CustomerID, done.AccessKey = done.CustomerID, Created
		_, err = insertIn[accessKeyTimes](ctx, tx, target{customerID: done.CustomerID}, insertAccessKey, made.values(uuid.New(), Operator()))
		return err
	case err != nil:
		return err
	case deleted:
		done.AccessKey = Deleted
	case owner != done.CustomerID:
		return fmt.Errorf("the access key exists: %w", ErrOtherCustomer)
	case expired:
		done.AccessKey = Expired
	default:
		done.AccessKey = Existed
	}
	return nil
}
