package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/certificate"
	"accesskeys/internal/logging"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

const (
	// shutdownTimeout is how long requests under way have to end after a SIGTERM (contract, section 6).
	shutdownTimeout = 30 * time.Second
	// shutdownLinger is how long open connections are still answered, each with its last answer, before the idle ones are
	// closed: closing one just as its client sends a request would lose that request (golang/go 23829). SHUTDOWN_DELAY counts
	// as part of it.
	shutdownLinger = 500 * time.Millisecond
	// slowWorkWait is how long a login, or a new key pair, waits for its turn before it is refused.
	slowWorkWait = time.Second
	// connectTimeout is how long a start waits for a database that takes no connection; connectPause is between two attempts.
	connectTimeout = 30 * time.Second
	connectPause   = 100 * time.Millisecond

	// Bounds against clients that are slow on purpose. Every request is small, and so is every answer.
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10 // browsers send a proxy cookies of some ten kilobytes
	maxStreams        = 100      // of one HTTP/2 connection at a time
	maxReceived       = 64 << 10 // bytes of bodies that one HTTP/2 connection may send unread: one body at its largest
)

func serve(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("serve")
	cfg, err := inv.parse(flags, given, "DATABASE_URL", "JWT_SECRET")
	if err != nil {
		return err
	}
	log, flush := newLogger(inv.stderr, cfg)
	defer flush()
	inv.warnOfSettings(cfg, log)
	hangups, ignore := inv.hangups()
	defer ignore()
	a, err := newApp(ctx, cfg, log)
	if ctx.Err() != nil {
		if err == nil {
			a.close()
		}
		return nil // asked to stop before it had started
	}
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.warnOfPublishedKey(ctx); err != nil {
		return err
	}
	a.hangups = hangups
	return a.run(ctx)
}

// newLogger makes the program's logger, to be flushed at the end.
func newLogger(w io.Writer, cfg *settings) (log *slog.Logger, flush func()) {
	return logging.New(w, cfg.logLevel, cfg.logFormat == "text")
}

// app is the whole program, wired. A test runs the same one on port 0.
type app struct {
	log           *slog.Logger
	store         *store.Store
	cache         *authcache.Cache
	passwords     *auth.Passwords
	authenticator *auth.Authenticator
	api           *api.Server
	listener      net.Listener
	certificate   *certificate.Files // nil: no TLS
	hangups       <-chan os.Signal   // nil: none comes
	server        *http.Server
	delay         time.Duration // SHUTDOWN_DELAY
	linger        time.Duration // shutdownLinger
	patience      time.Duration // shutdownTimeout
}

// newApp listens, migrates, bootstraps and wires; run answers. The caller closes it.
func newApp(ctx context.Context, cfg *settings, log *slog.Logger) (_ *app, err error) {
	a := &app{log: log}
	mailer, err := cfg.mailer(log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	// First of all, so that an address in use is told before anything is changed.
	if a.listener, err = cfg.listen(ctx); err != nil {
		return nil, err
	}
	if cfg.tlsCertFile != "" {
		if a.certificate, err = certificate.Open(cfg.tlsCertFile, cfg.tlsKeyFile, log); err != nil {
			return nil, usagef("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
		}
	}
	if a.store, err = store.Open(ctx, cfg.databaseURL); err != nil {
		return nil, usagef("DATABASE_URL: %w", err)
	}
	// Half of the cores at most do slow work; the rest stays for checking credentials.
	atOnce := max(1, runtime.GOMAXPROCS(0)/2)
	if a.passwords, err = auth.NewPasswords(atOnce, slowWorkWait); err != nil {
		return nil, err
	}
	keyPairs, err := auth.NewKeyPairs(atOnce, slowWorkWait)
	if err != nil {
		return nil, err
	}
	sessions, err := auth.NewSessions(cfg.jwtSecret, cfg.jwtSecretPrevious)
	if err != nil {
		return nil, err
	}
	if err := retryForConnection(ctx, log, connectTimeout, func() error { return a.prepare(ctx, cfg) }); err != nil {
		return nil, err
	}
	a.cache, err = authcache.New(authcache.Config{
		Store: a.store, Log: log, Lease: cfg.cacheLease, MaxAge: cfg.cacheMaxAge, CacheBytes: cfg.cacheBytes,
	})
	if err != nil {
		return nil, err
	}
	a.authenticator = auth.NewAuthenticator(a.store, sessions, a.passwords, log)
	a.api = api.New(api.Config{
		Store:          a.store,
		Cache:          a.cache,
		Verifier:       auth.NewVerifier(a.cache, sessions, cfg.audience),
		Authenticator:  a.authenticator,
		Passwords:      a.passwords,
		KeyPairs:       keyPairs,
		CustomerTurns:  auth.NewCustomerTurns(slowWorkWait),
		Mailer:         mailer,
		Log:            log,
		MinExpire:      cfg.accessKeyMinExpire,
		TrustedProxies: cfg.trustedProxies,
		AuthLimit:      cfg.authLimit,
		V1Limit:        cfg.v1Limit,
	})
	a.delay, a.linger, a.patience = cfg.shutdownDelay, shutdownLinger, shutdownTimeout
	a.server = &http.Server{
		Handler:           a.api,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: maxReceived,
			MaxReceiveBufferPerStream:     maxReceived,
			WriteByteTimeout:              readHeaderTimeout,
		},
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is a request as any other
	}
	if a.certificate != nil {
		a.server.TLSConfig = a.certificate.Config()
	}
	return a, nil
}

// prepare migrates and bootstraps.
func (a *app) prepare(ctx context.Context, cfg *settings) error {
	if _, err := store.Migrator(cfg.databaseURL, a.log).Up(ctx); err != nil {
		return fmt.Errorf("preparing the database at DATABASE_URL: %w", err)
	}
	if cfg.bootstrap.customer != "" {
		if _, err := a.bootstrap(ctx, cfg.bootstrap); err != nil {
			return err
		}
	}
	return a.warnOfFailover(ctx)
}

// retryForConnection calls do until it ends otherwise than with postgres.ErrNoConnection, for as long as patience lasts. Servers that are
// flooded can hold all that the database has for a moment: a start that gave up then would be no help to them.
func retryForConnection(ctx context.Context, log *slog.Logger, patience time.Duration, do func() error) error {
	ended := time.After(patience)
	for attempt := 1; ; attempt++ {
		err := do()
		if !errors.Is(err, postgres.ErrNoConnection) {
			return err
		}
		if attempt == 1 {
			log.Warn("the database takes no connection now; trying again", "at_most", patience.String(), "error", err.Error())
		}
		select {
		case <-time.After(connectPause):
		case <-ended:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// addr is where the program listens.
func (a *app) addr() net.Addr { return a.listener.Addr() }

// answer answers what comes in by the listener until that is closed.
func (a *app) answer() error {
	if a.certificate != nil {
		return a.server.ServeTLS(a.listener, "", "")
	}
	return a.server.Serve(a.listener)
}

// run answers requests until ctx ends, then lets those under way finish.
func (a *app) run(ctx context.Context) (err error) {
	// These go on until the last request has been answered.
	following, leave := context.WithCancel(context.WithoutCancel(ctx))
	var background errgroup.Group
	background.Go(func() error { return a.cache.Run(following) })
	if a.certificate != nil {
		background.Go(func() error { return a.certificate.Run(following) })
	}
	defer func() {
		leave()
		err = errors.Join(err, background.Wait())
	}()
	served := make(chan error, 1)
	go func() { served <- a.answer() }()
	a.log.Info("listening", "addr", a.addr().String())
	for running := true; running; {
		select {
		case err := <-served:
			return fmt.Errorf("serving: %w", err)
		case <-a.hangups:
			a.reload()
		case <-ctx.Done():
			running = false
		}
	}
	a.log.Info("shutting down: draining", "accepting_for", a.delay.String(), "at_most", a.patience.String())
	// Whoever balances the load has to notice before the first connection is refused, and can do so by /readyz only.
	a.api.Drain()
	time.Sleep(a.delay)
	_ = a.listener.Close() // ends Serve; the connections that are open stay
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		a.log.Warn("the listener had failed", "error", err.Error())
	}
	time.Sleep(a.linger - a.delay)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.patience)
	defer cancel()
	err = a.server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn("some requests did not finish in time and were cut off")
		err = a.server.Close()
	}
	if err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	a.log.Info("stopped")
	return nil
}

// reload reads again what can be read again: the certificate's files. It is what a SIGHUP does, which ends nothing: the rotation of logs
// sends it too.
func (a *app) reload() {
	if a.certificate == nil {
		a.log.Info("SIGHUP: there is nothing to read again; other settings need a restart")
		return
	}
	if err := a.certificate.Reload(); err != nil {
		a.log.Error("SIGHUP: the TLS certificate can't be used; the one before stays", "error", err.Error())
		return
	}
	a.log.Info("SIGHUP: the TLS certificate was read again; other settings need a restart")
}

// close gives everything back. It may be called on an app that is only half made.
func (a *app) close() {
	if a.listener != nil {
		_ = a.listener.Close() // run has closed it already
	}
	if a.store != nil {
		a.store.Close()
	}
}

// warnOfFailover says what a failover can undo (docs/revocation.md).
func (a *app) warnOfFailover(ctx context.Context) error {
	d, err := a.store.DB.Durability(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("the database at DATABASE_URL: %w", err)
	case d.Waits:
	case d.Standbys > 0:
		a.log.Warn("replication is asynchronous: a failover can undo what was committed last, a revocation too",
			"standbys", d.Standbys)
	default:
		a.log.Info("no synchronous standby: if this database is ever failed over or restored, what was committed last can be undone, a revocation too")
	}
	return nil
}

// bootstrap makes sure that what the BOOTSTRAP settings name exists.
func (a *app) bootstrap(ctx context.Context, b bootstrapSettings) (store.Bootstrapped, error) {
	wanted := store.Bootstrap{
		Customer:   b.customer,
		Username:   b.username,
		Permission: int64(auth.PermissionCustomerAdmin),
	}
	wanted.PasswordHash = func(ctx context.Context) (secret.Value, error) { return a.passwords.Hash(ctx, b.password) }
	if !b.accessKey.Empty() {
		wanted.AccessKey = &store.NewAccessKey{
			Name: "bootstrap", TokenHash: b.accessKey.Hash(), TokenPrefix: b.accessKey.Prefix(),
			Expire: cmp.Or(b.expire, store.DefaultExpire),
		}
	}
	done, err := a.store.Bootstrap(ctx, wanted)
	if err != nil {
		return done, fmt.Errorf("BOOTSTRAP_CUSTOMER %q: %w", b.customer, err)
	}
	for _, made := range []struct {
		setting  string
		presence store.Presence
	}{{"BOOTSTRAP_CUSTOMER", done.Customer}, {"BOOTSTRAP_USERNAME", done.Agent}, {"BOOTSTRAP_ACCESSKEY", done.AccessKey}} {
		switch made.presence {
		case store.Created:
			a.log.Info("bootstrap: created", "setting", made.setting, "customer_id", done.CustomerID)
		case store.Deleted, store.Expired:
			a.log.Warn("bootstrap: skipped, deleted or expired earlier", "setting", made.setting, "found", made.presence,
				"customer_id", done.CustomerID)
		case store.Existed, store.NotAsked:
		}
	}
	return done, nil
}
