package store_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// Contract, section 3: A look-up that fails because the database does is a 503, never a 401; 1: "The token itself is never stored, logged,
// traced, put in an error": every error here is one that Postgres, or the way to it, really gives.
func TestErrorsSayWhatHappenedAndShowNoSecret(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		do   func(*trial) error
		want error
		also error // is in the chain too
	}{
		"a token twice":              {func(r *trial) error { r.created(); return r.create(r.key) }, store.ErrTokenTaken, nil},
		"a token of a deleted key":   {func(r *trial) error { r.created(); r.exec(deleteAll); return r.create(r.key) }, store.ErrTokenTaken, nil},
		"a username twice":           {func(r *trial) error { _ = r.createAgent(); return r.createAgent() }, store.ErrUsernameTaken, nil},
		"a key of no customer":       {func(r *trial) error { r.key.CustomerID = uuid.New(); return r.create(r.key) }, store.ErrNoCustomer, nil},
		"an agent of no customer":    {func(r *trial) error { r.agent.CustomerID = uuid.New(); return r.createAgent() }, store.ErrNoCustomer, nil},
		"a key of no agent":          {func(r *trial) error { id := uuid.New(); r.key.AgentID = &id; return r.create(r.key) }, store.ErrNoAgent, nil},
		"a key of a role unheard of": {func(r *trial) error { r.key.Roles = []string{"root"}; return r.create(r.key) }, store.ErrRejected, nil},
		"an account of no customer":  {func(r *trial) error { r.acme.ID = uuid.New(); return r.createAccount() }, store.ErrNoCustomer, nil},
		"an account's long name":     {func(r *trial) error { return r.createAccount(strings.Repeat("n", 256)) }, store.ErrRejected, nil},
		"a pair of no account":       {func(r *trial) error { return r.createAccountKey(accountOf(r.acme.ID, uuid.New()), "RS256") }, store.ErrNotFound, nil},
		"a pair of no algorithm":     {func(r *trial) error { return r.createAccountKey(r.fixture.createAccount(r.acme), "HS256") }, store.ErrRejected, nil},
		"a pair too many": {func(r *trial) error {
			account := r.fixture.createAccount(r.acme)
			for range store.MaxServiceAccountKeys {
				r.fixture.createAccountKey(account)
			}
			return r.createAccountKey(account, "RS256")
		}, store.ErrTooManyKeys, nil},
		"a last admin": {func(r *trial) error {
			return errorOf(r.store.DeleteAgent(r.t.Context(), operator, r.fixture.createAgent(r.acme, "u")))
		}, store.ErrLastAdmin, nil},
		"a pair's look-up without its table": {func(r *trial) error {
			r.exec(`DROP TABLE service_account_keys`)
			return errorOf(pairByID(r.t.Context(), r.store, uuid.New(), changelog.Position{}))
		}, store.ErrUnavailable, nil},
		"a long name":               {func(r *trial) error { r.key.Name = strings.Repeat("n", 256); return r.create(r.key) }, store.ErrRejected, nil},
		"no lifetime":               {func(r *trial) error { r.key.Expire = 0; return r.create(r.key) }, store.ErrRejected, nil},
		"too long a lifetime":       {func(r *trial) error { r.key.Expire = math.MaxInt64; return r.create(r.key) }, store.ErrRejected, nil},
		"a bad prefix":              {func(r *trial) error { r.key.TokenPrefix = "vb_"; return r.create(r.key) }, store.ErrRejected, nil},
		"a NUL in a key":            {func(r *trial) error { r.key.Detail = "a\x00b"; return r.create(r.key) }, store.ErrRejected, nil},
		"a NUL in an agent's name":  {func(r *trial) error { r.agent.Name = "a\x00b"; return r.createAgent() }, store.ErrRejected, nil},
		"a NUL in a username":       {func(r *trial) error { r.agent.Username = "a\x00b"; return r.createAgent() }, store.ErrUsername, nil},
		"broken UTF-8":              {func(r *trial) error { r.key.Name = "a\xffb"; return r.create(r.key) }, store.ErrRejected, nil},
		"an agent's long name":      {func(r *trial) error { r.agent.Name = strings.Repeat("n", 256); return r.createAgent() }, store.ErrRejected, nil},
		"a permission out of range": {func(r *trial) error { r.agent.Permission = 1 << 16; return r.createAgent() }, store.ErrRejected, nil},
		"no such key":               {func(r *trial) error { return r.lookUp(r.t.Context(), r.store) }, store.ErrNotFound, nil},
		"a missing table":           {func(r *trial) error { r.exec(`DROP TABLE accesskeys`); return r.create(r.key) }, store.ErrUnavailable, nil},
		"a missing column, on a look-up": {func(r *trial) error {
			r.exec(`ALTER TABLE accesskeys DROP COLUMN tm_expire`)
			return r.lookUp(r.t.Context(), r.store)
		}, store.ErrUnavailable, nil},
		"a login without its table": {func(r *trial) error {
			r.exec(`DROP TABLE agents CASCADE`)
			return errorOf(r.store.AgentByUsername(r.t.Context(), "u", netip.Prefix{}))
		}, store.ErrUnavailable, nil},
		"a time-out of the database's": {func(r *trial) error {
			return r.blocked(context.Background(), open(r.t, withSetting(r.t, r.url, "statement_timeout", "50ms")), nil)
		}, store.ErrUnavailable, nil},
		"a lock that is not to be had": {func(r *trial) error {
			return r.blocked(context.Background(), open(r.t, withSetting(r.t, r.url, "lock_timeout", "50ms")), nil)
		}, store.ErrUnavailable, nil},
		"a context that ends": {func(r *trial) error {
			ctx, cancel := context.WithCancel(r.t.Context())
			return r.blocked(ctx, r.store, cancel)
		}, store.ErrUnavailable, context.Canceled},
		"a deadline that passes": {func(r *trial) error {
			ctx, cancel := context.WithTimeout(r.t.Context(), 100*time.Millisecond)
			defer cancel()
			return r.blocked(ctx, r.store, nil)
		}, store.ErrUnavailable, context.DeadlineExceeded},
		"a context that has ended before": {func(r *trial) error {
			ctx, cancel := context.WithCancel(r.t.Context())
			cancel()
			return r.lookUp(ctx, r.store)
		}, store.ErrUnavailable, context.Canceled},
		"a server that shuts down": {func(r *trial) error {
			return r.blocked(r.t.Context(), r.store, func() { r.exec(cutTheStore) })
		}, store.ErrUnavailable, nil},
		"a dead socket": {func(r *trial) error {
			s := open(r.t, deadAddress(r.t, r.password))
			login := store.AgentLogin{Agent: agentOf(r.acme.ID, uuid.New()), PasswordHash: r.agent.PasswordHash}
			return errors.Join(r.lookUp(r.t.Context(), s), s.RenewPasswordHash(r.t.Context(), login, r.agent.PasswordHash))
		}, store.ErrUnavailable, nil},
		"a setting that the server does not know": {func(r *trial) error {
			return open(r.t, withSetting(r.t, r.url, "timezone", "Nowhere")).DB.Ready(r.t.Context())
		}, store.ErrUnavailable, nil},
		"a database that does not exist": {func(r *trial) error {
			nowhere := withSetting(r.t, r.url, "dbname", "nowhere")
			return errors.Join(errorOf(postgres.SchemaVersion(r.t.Context(), nowhere)), open(r.t, nowhere).DB.Ready(r.t.Context()))
		}, store.ErrUnavailable, nil},
	}
	all := []error{
		store.ErrNotFound, store.ErrUnavailable, store.ErrUsernameTaken, store.ErrTokenTaken, store.ErrNoCustomer, store.ErrRejected,
		store.ErrOtherCustomer, store.ErrNoAgent, store.ErrTooManyKeys, store.ErrLastAdmin, store.ErrUsername,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t)
			err := test.do(r)
			for _, sentinel := range all {
				if errors.Is(err, sentinel) != errors.Is(test.want, sentinel) {
					t.Errorf("%q is %q: %v", err, sentinel, errors.Is(err, sentinel))
				}
			}
			errorIf(t, test.also != nil && !errors.Is(err, test.also), "%q is not %q", err, test.also)
			wantEqual(t, "secrets shown", r.secretsIn(err), nil)
		})
	}
}

// Control of the above: the driver's own error tells the secrets in its detail, and secretsIn finds them there.
func TestDriversOwnErrorsDoTellSecrets(t *testing.T) {
	t.Parallel()
	r := newTrial(t)
	r.created()
	for name, test := range map[string]struct {
		sql  string
		args []any
	}{
		"the token's hash": {
			`INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire) VALUES ($1, $2, $3, 'vb_12345678', 'infinity')`,
			[]any{uuid.New(), r.acme.ID, r.key.TokenHash[:]},
		},
		"the password's hash": {
			`INSERT INTO agents (id, customer_id, username, password_hash, permission) VALUES ($1, $2, 'u', $3, -1)`,
			[]any{uuid.New(), r.acme.ID, r.agent.PasswordHash.Reveal()},
		},
	} {
		_, err := r.db.Exec(t.Context(), test.sql, test.args...)
		var pg *pgconn.PgError
		fatalIf(t, !errors.As(err, &pg), "%s: %v", name, err)
		if shown := r.secretsIn(fmt.Errorf("%w %s", err, pg.Detail)); !slices.Contains(shown, name) {
			t.Errorf("%s is not found in %q %q", name, err, pg.Detail)
		}
	}
	if shown := r.secretsIn(errors.New(deadAddress(t, r.password).Reveal())); !slices.Contains(shown, "the database's password") {
		t.Error("the database's password is not found in its address")
	}
}

// What the program says about a wrong address does not show the password in it, however it is written.
func TestWrongAddressIsRefusedWithoutShowingIt(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"postgres://user:canary@host:port/db", "postgres://user:cana/canary@host/db", "postgres://user:canary%zz@host/db",
		"postgres://user:can canary@host/db", "user:canary@host/db", "user=u password=canary port=x", "user=u password = canary port=x",
		`user=u password=a\ canary port=x`, "user=u password='canary port=x", "PASSWORD=canary port=x", "canary",
		"postgres://host/db?password=canary&connect_timeout=x", "postgres://host/db?sslmode=canary",
	} {
		_, opening := store.Open(t.Context(), secret.New(address))
		_, migrating := store.Migrator(secret.New(address), slog.New(slog.DiscardHandler)).Up(t.Context())
		for _, err := range []error{opening, migrating} {
			if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "canary") {
				t.Errorf("%s: %v, want a refusal that does not show it", address, err)
			}
		}
	}
}

const (
	deleteAll = `UPDATE accesskeys SET tm_delete = now()`
	// cutTheStore ends the store's connections as a server that shuts down does.
	cutTheStore = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'accesskeys'`
)

// trial is a fixture with a key and an agent to be stored, whose secrets no error may show.
type trial struct {
	*fixture
	key      store.NewAccessKey
	agent    store.NewAgent
	password string // of the database's address
}

func newTrial(t *testing.T) *trial {
	t.Helper()
	address := pgtest.Migrated(t)
	password := "canary-" + rand.Text()
	if u, err := url.Parse(address.Reveal()); err == nil && u.User != nil {
		password, _ = u.User.Password() // the server checks it
	} else {
		address = withSetting(t, address, "password", password)
	}
	r := &trial{fixture: fixtureOn(t, address), password: password}
	r.populate()
	r.key, r.agent = newKey(r.acme, year), newAgent(r.acme, "u")
	r.agent.PasswordHash = secret.New("$argon2id$v=19$" + rand.Text())
	return r
}

func (r *trial) create(k store.NewAccessKey) error {
	return errorOf(r.store.CreateAccessKey(r.t.Context(), operator, k))
}

// lookUp looks the key up.
func (r *trial) lookUp(ctx context.Context, s *store.Store) error {
	return errorOf(keyByHash(ctx, s, r.key.TokenHash, changelog.Position{}))
}

// created stores the key.
func (r *trial) created() {
	r.t.Helper()
	noError(r.t, r.create(r.key))
}

func (r *trial) createAgent() error {
	return errorOf(r.store.CreateAgent(r.t.Context(), operator, r.agent))
}

// createAccount stores a service account of acme's, under a name where one is given.
func (r *trial) createAccount(name ...string) error {
	account := store.NewServiceAccount{CustomerID: r.acme.ID, Name: strings.Join(name, ""), Roles: []string{}}
	return errorOf(r.store.CreateServiceAccount(r.t.Context(), operator, account))
}

func (r *trial) createAccountKey(account store.ServiceAccount, algorithm string) error {
	return errorOf(r.store.CreateServiceAccountKey(r.t.Context(), operator, account, algorithm, []byte("public")))
}

// blocked is the error of a deletion that waits for a lock until something happens: by itself, or by interrupt.
func (r *trial) blocked(ctx context.Context, s *store.Store, interrupt func()) error {
	r.t.Helper()
	key := r.createKey(r.acme)
	_, release := r.lockKey(key.ID)
	defer release()
	failed := started(func() error { return errorOf(s.DeleteAccessKey(ctx, operator, r.acme.ID, key.ID)) })
	if interrupt != nil {
		r.untilWaiting()
		interrupt()
	}
	select {
	case err := <-failed:
		return err
	case <-time.After(patience):
		r.t.Fatal("the deletion does not end")
		return nil
	}
}

// secretsIn are the secrets that an error shows, in whatever way it is printed.
func (r *trial) secretsIn(err error) (shown []string) {
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Error("failed", "error", err)
	text := fmt.Sprintf("%v %+v %#v %q %s", err, err, err, err, log.String())
	hash, password := r.key.TokenHash[:], r.agent.PasswordHash.Reveal()
	for name, spellings := range map[string][]string{
		"the token's hash":        {fmt.Sprintf("%x", hash), fmt.Sprintf("%v", hash), string(hash), base64.StdEncoding.EncodeToString(hash)},
		"the password's hash":     {password, strings.TrimPrefix(password, "$argon2id$v=19$")},
		"the database's password": {r.password, url.QueryEscape(r.password)},
	} {
		if slices.ContainsFunc(spellings, func(s string) bool { return s != "" && strings.Contains(text, s) }) {
			shown = append(shown, name)
		}
	}
	slices.Sort(shown)
	return shown
}

// deadAddress is one where nobody listens any more.
func deadAddress(t *testing.T, password string) secret.Value {
	t.Helper()
	listener := must((&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	defer func() { _ = listener.Close() }()
	return secret.New("postgres://u:" + url.QueryEscape(password) + "@" + listener.Addr().String() + "/db?sslmode=disable")
}
