package store_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// Recovery without a restart: a demoted primary passes the ping and then refuses writes (25006).
func TestConnectionsToADemotedPrimaryAreDropped(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	on, agent := w.makeTargets(w.acme), w.createAgent(w.acme, "alice")
	// A pool of one: the write after the recovery gets the connection that has refused, if that is still there.
	s := open(t, withSetting(t, w.url, "pool_max_conns", "1"))
	writes := map[string]func() error{
		"renewing a hash": func() error {
			login, err := w.store.AgentByUsername(t.Context(), agent.Username, netip.Prefix{})
			return errors.Join(err, s.RenewPasswordHash(t.Context(), login, login.PasswordHash))
		},
		"bootstrapping": func() error { return errorOf(s.Bootstrap(t.Context(), store.Bootstrap{Customer: uuid.NewString()})) },
	}
	for _, name := range []string{"CreateAccessKey", "UpdateAccessKey", "SetPermission", "CreateServiceAccountKey"} {
		writes[name] = writesTo(t.Context(), s, operator, on)[name]
	}
	for name, write := range writes {
		setReadOnly(w, "on")
		w.exec(cutTheStore)
		servertest.Eventually(t, "the pool has a connection that only reads", func() bool { return s.DB.Ready(t.Context()) == nil })
		wantError(t, name+" on a standby", write(), store.ErrUnavailable)
		setReadOnly(w, "off")
		wantError(t, name+" after the recovery", write(), nil)
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
		execIn(w.t, tx, sql)
	}
	noError(w.t, tx.Commit(w.t.Context()))
}

// Contract, section 5: recovery without a restart: a connection that the server has ended is not given out again.
func TestStoreRecoversFromCutConnections(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	key := must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
	for range 3 {
		must(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{}))(t) // there is a connection to cut
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

// 503 within 5 s: a caller that finds no free connection waits no longer than its context allows.
func TestExhaustedPoolIsUnavailableWithinTheDeadline(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	s := open(t, withSetting(t, w.url, "pool_max_conns", "1"))
	_, release := w.lockKey(key.ID)
	holder := make(chan error, 1)
	go func() { // takes the only connection and waits
		_, err := s.DeleteAccessKey(t.Context(), operator, w.acme.ID, key.ID)
		holder <- err
	}()
	w.untilWaiting()
	stats := s.DB.Stats()
	errorIf(t, stats.Max != 1 || stats.Acquired != 1 || stats.Idle != 0 || stats.Total != 1, "the pool's figures are %+v", stats)
	for name, call := range map[string]func(context.Context) error{
		"a look-up": func(ctx context.Context) error {
			return errorOf(keyByHash(ctx, s, store.TokenHash{}, changelog.Position{}))
		},
		"a list":    func(ctx context.Context) error { return errorOf(s.AccessKeys(ctx, w.acme.ID, store.Start(), 10)) },
		"readiness": s.DB.Ready,
	} {
		endsWithin(t, 4*time.Second, name, func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			wantError(t, name, call(ctx), store.ErrUnavailable)
		})
	}
	release()
	wantError(t, "the one that held the connection", <-holder, nil)
	wantError(t, "a look-up afterwards", errorOf(keyByHash(t.Context(), s, store.TokenHash{}, changelog.Position{})), store.ErrNotFound)
}

func TestReadyIsReachableAndMigrated(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	wantError(t, "without a schema", w.store.DB.Ready(t.Context()), store.ErrUnavailable)
	for range 2 {
		w.up()
		wantError(t, "migrated", w.store.DB.Ready(t.Context()), nil)
		w.down()
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
	silent := secret.New("postgres://u:p@" + silent(t) + "/db?sslmode=disable")
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
