package store_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// Contract, section 5: The database away: 503 ... and recovery without a restart. A demoted primary passes the ping and then refuses
// writes (25006).
func TestConnectionsToADemotedPrimaryAreDropped(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key, agent, account := w.createKey(w.acme), w.createAgent(w.acme, "alice"), w.createAccount(w.acme)
	// A pool of one: the write after the recovery gets the connection that has refused, if that is still there.
	s := open(t, withSetting(t, w.url, "pool_max_conns", "1"))
	for name, write := range map[string]func() error{
		"creating": func() error {
			_, err := s.CreateAccessKey(t.Context(), store.Operator(), newKey(w.acme, year))
			return err
		},
		"updating": func() error {
			_, err := s.UpdateAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID, store.AccessKeyChange{})
			return err
		},
		"renewing a hash": func() error {
			login, err := w.store.AgentByUsername(t.Context(), agent.Username, netip.Prefix{})
			return errors.Join(err, s.RenewPasswordHash(t.Context(), login, login.PasswordHash))
		},
		"setting a permission": func() error {
			_, err := s.SetPermission(t.Context(), store.Operator(), agent, 32)
			return err
		},
		"adding a pair": func() error {
			_, err := s.CreateServiceAccountKey(t.Context(), store.Operator(), account, "ES256", []byte("public"))
			return err
		},
		"bootstrapping": func() error {
			_, err := s.Bootstrap(t.Context(), store.Bootstrap{Customer: uuid.NewString()})
			return err
		},
	} {
		setReadOnly(w, "on")
		w.exec(cutTheStore)
		servertest.Eventually(t, "the pool has a connection that only reads", func() bool { return s.DB.Ready(t.Context()) == nil })
		wantError(t, name+" on a standby", write(), store.ErrUnavailable)
		setReadOnly(w, "off")
		if err := write(); err != nil {
			t.Errorf("%s after the recovery: %v", name, err)
		}
	}
}

// setReadOnly makes the database of connections to come one that refuses writes, or again one that takes them.
func setReadOnly(w *fixture, to string) {
	w.t.Helper()
	tx := must(w.db.Begin(w.t.Context()))(w.t) // whatever the test's own connection has become
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, sql := range []string{
		`SET TRANSACTION READ WRITE`,
		`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = ` + to + `', current_database()); END $$`,
	} {
		if _, err := tx.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := tx.Commit(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// Contract, section 5: recovery without a restart: a connection that the server has ended is not given out again.
func TestStoreRecoversFromCutConnections(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	key := must(w.store.CreateAccessKey(t.Context(), store.Operator(), k))(t)
	for range 3 {
		if _, err := keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}); err != nil { // there is a connection to cut
			t.Fatal(err)
		}
		w.exec(cutTheStore)
		servertest.Eventually(t, "the store answers again", func() bool {
			got, err := keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{})
			if err != nil {
				wantError(t, "meanwhile", err, store.ErrUnavailable)
			}
			return err == nil && got.AccessKey == key
		})
	}
}

// Contract, section 5: 503 SERVICE_UNAVAILABLE with Retry-After within 5 s: who finds no free connection waits no longer than its context
// lets it.
func TestExhaustedPoolIsUnavailableWithinTheDeadline(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	s := open(t, withSetting(t, w.url, "pool_max_conns", "1"))
	_, release := w.lockKey(key.ID)
	holder := make(chan error, 1)
	go func() { // takes the only connection and waits
		_, err := s.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, key.ID)
		holder <- err
	}()
	w.untilWaiting()
	if stats := s.DB.Stats(); stats.Max != 1 || stats.Acquired != 1 || stats.Idle != 0 || stats.Total != 1 {
		t.Errorf("the pool's figures are %+v", stats)
	}
	for name, call := range map[string]func(context.Context) error{
		"a look-up": func(ctx context.Context) error {
			_, err := keyByHash(ctx, s, store.TokenHash{}, changelog.Position{})
			return err
		},
		"a list": func(ctx context.Context) error {
			_, err := s.AccessKeys(ctx, w.acme.ID, store.Start(), 10)
			return err
		},
		"readiness": s.DB.Ready,
	} {
		endsWithin(t, 4*time.Second, name, func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			wantError(t, name, call(ctx), store.ErrUnavailable)
		})
	}
	release()
	if err := <-holder; err != nil {
		t.Errorf("the one that held the connection: %v", err)
	}
	_, err := keyByHash(t.Context(), s, store.TokenHash{}, changelog.Position{})
	wantError(t, "a look-up afterwards", err, store.ErrNotFound)
}

// Contract, section 5: /readyz (it can serve: database reachable and migrated).
func TestReadyIsReachableAndMigrated(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	wantError(t, "without a schema", w.store.DB.Ready(t.Context()), store.ErrUnavailable)
	for range 2 {
		if _, err := store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.store.DB.Ready(t.Context()); err != nil {
			t.Errorf("migrated: %v", err)
		}
		if _, err := store.Migrator(w.url, slog.New(slog.DiscardHandler)).Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantError(t, "taken back", w.store.DB.Ready(t.Context()), store.ErrUnavailable)
	}
	away := open(t, deadAddress(t, "p"))
	endsWithin(t, 5*time.Second, "noticing an absent database", func() {
		wantError(t, "away", away.DB.Ready(t.Context()), store.ErrUnavailable)
	})
}

// Contract, section 5: 503 ... within 5 s: a network that swallows everything is given up on, and DATABASE_URL may say when.
func TestSilentNetworkIsGivenUpOn(t *testing.T) {
	t.Parallel()
	silent := silentAddress(t)
	for name, address := range map[string]struct {
		timeout string
		most    time.Duration
	}{
		"by default":      {"", 5 * time.Second},
		"as the URL says": {"1", 2500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := silent
			if address.timeout != "" {
				url = withSetting(t, silent, "connect_timeout", address.timeout)
			}
			endsWithin(t, address.most, name, func() {
				wantError(t, name, open(t, url).DB.Ready(t.Context()), store.ErrUnavailable)
			})
		})
	}
}
