package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/text/secure/precis"

	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
)

// ErrUsername means that a text can't become a username.
var ErrUsername = errors.New("a username has letters, digits and printable characters of ASCII, in parts with one space between them " +
	"that are written in one direction each (RFC 8265)")

// CheckUsername returns an ErrUsername where the text can't become a username: it is to be made of parts of the UsernameCaseMapped
// profile with single spaces between them (RFC 8265, sections 3.3 and 3.5).
func CheckUsername(username string) error {
	_, err := usernameKey(username)
	return err
}

// usernameKey is the form in which usernames are compared: two of one key are one username. It returns ErrUsername.
func usernameKey(username string) (string, error) {
	parts := strings.Split(username, " ")
	for i, part := range parts {
		prepared, err := precis.UsernameCaseMapped.String(part)
		if err != nil || prepared == "" {
			return "", ErrUsername
		}
		parts[i] = prepared
	}
	return strings.Join(parts, " "), nil
}

// newUsernameKey is the key of a username that an agent is to get. It returns ErrUsername.
func (s *Store) newUsernameKey(ctx context.Context, username string) (string, error) {
	key, err := usernameKey(username)
	if err != nil {
		return "", err
	}
	// A server of an older schema may have made agents since this one started.
	err = s.failed("filling in the keys of usernames", keyUsernames(ctx, s.DB))
	if errors.Is(err, ErrUsernameTaken) { // by an agent that was made meanwhile
		err = nil
	}
	return key, err
}

// formerUsernameKey is the key of a username from before there were rules. One that breaks them has the key of what people see of it: nobody
// else may be called that.
func formerUsernameKey(username string) (string, error) {
	if key, err := usernameKey(username); err == nil {
		return key, nil
	}
	seen := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.In(r, unicode.C):
			return -1
		default:
			return r
		}
	}, username)
	return usernameKey(strings.Join(strings.Fields(seen), " "))
}

// usernameKeysVersion is the version of the schema from which on agents have keys of their usernames.
const usernameKeysVersion = 7

// Migrator migrates the schema at url, and gives agents the keys of their usernames that they lack.
func Migrator(url secret.Value, log *slog.Logger) postgres.Migrator {
	return postgres.Migrator{URL: url, Log: log, After: func(ctx context.Context, tx pgx.Tx, version int) error {
		if version < usernameKeysVersion {
			return nil
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return keyUsernames(ctx, tx) })
		err = failed("filling in the keys of usernames", err)
		if errors.Is(err, ErrUsernameTaken) { // another server has given a new agent one of them meanwhile
			log.Warn("the keys of usernames are filled in at the next start", "error", err.Error())
			return nil
		}
		return err
	}}
}

// keyUsernames gives the agents their keys that have none: those from before there were keys, and those that a server of an older
// schema has made or renamed since. Where several have one key it is the one's whose username is as it should be, else the oldest one's.
// The others log in by their usernames as they are. Its error is the driver's.
func keyUsernames(ctx context.Context, q postgres.Querier) error {
	rows, err := q.Query(ctx, `
		SELECT id, username
		FROM agents
		WHERE `+live+` AND username_key_of IS DISTINCT FROM username
		ORDER BY tm_create, id`)
	if err != nil {
		return err
	}
	type agent = struct {
		ID       uuid.UUID
		Username string
	}
	agents, err := pgx.CollectRows(rows, pgx.RowToStructByPos[agent])
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	var ids []uuid.UUID
	var keys, usernames []string
	for _, keyOf := range []func(string) (string, error){usernameKey, formerUsernameKey} {
		for _, a := range agents {
			key, err := keyOf(a.Username)
			if err != nil || taken[key] {
				continue
			}
			taken[key] = true
			ids, keys, usernames = append(ids, a.ID), append(keys, key), append(usernames, a.Username)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err = q.Exec(ctx, `
		UPDATE agents a
		SET username_key = k.key, username_key_of = k.username
		FROM unnest($1::uuid[], $2::text[], $3::text[]) AS k (id, key, username)
		WHERE a.id = k.id AND a.username = k.username AND a.`+live+` AND NOT EXISTS (
			SELECT FROM agents o
			WHERE o.username_key COLLATE "C" = k.key AND o.username_key_of = o.username AND o.`+live+`
		)`, ids, keys, usernames)
	return err
}
