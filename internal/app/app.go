// Package app wires the program, runs it and shuts it down. The commands serve and dev start it, and tests on port 0.
package app

import (
	"context"
	"errors"
	"fmt"
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
	"accesskeys/internal/config"
	"accesskeys/internal/lastused"
	"accesskeys/internal/mail"
	"accesskeys/internal/postgres"
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
	// tokensPart is the part of CACHE_SIZE for tokens that were verified, of which there are fewer than access keys.
	tokensPart = 8
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

// Serve runs a server until ctx ends. A signal that comes by hangups has it read its certificate again.
func Serve(ctx context.Context, cfg *config.Settings, log *slog.Logger, hangups <-chan os.Signal) error {
	a, err := New(ctx, cfg, log)
	if ctx.Err() != nil {
		if err == nil {
			a.Close()
		}
		return nil // asked to stop before it had started
	}
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.warnOfPublishedKey(ctx); err != nil {
		return err
	}
	return a.Run(ctx, hangups)
}

// App is the whole program, wired.
type App struct {
	log           *slog.Logger
	store         *store.Store
	cache         *authcache.Cache
	tokens        *auth.TokenCache
	lastUsed      *lastused.Buffer
	passwords     *auth.Passwords
	authenticator *auth.Authenticator
	api           *api.Server
	listener      net.Listener
	certificate   *certificate.Files // nil: no TLS
	delay         time.Duration      // SHUTDOWN_DELAY

	// Server answers. Its bounds may be changed before Run.
	Server *http.Server
	// Linger is for how long open connections are answered after a SIGTERM, SHUTDOWN_DELAY included. It may be changed before Run.
	Linger time.Duration
	// ShutdownTimeout is how long requests under way have to end. It may be changed before Run.
	ShutdownTimeout time.Duration
}

// New listens, migrates, bootstraps and wires; Run answers. The caller closes it.
func New(ctx context.Context, cfg *config.Settings, log *slog.Logger) (_ *App, err error) {
	a := &App{log: log}
	mailer, err := mailer(cfg, log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	// First of all, so that an address in use is told before anything is changed.
	if a.listener, err = listen(ctx, cfg); err != nil {
		return nil, err
	}
	if cfg.TLSCertFile != "" {
		if a.certificate, err = certificate.Open(cfg.TLSCertFile, cfg.TLSKeyFile, log); err != nil {
			return nil, config.Usagef("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
		}
	}
	if a.store, err = store.Open(ctx, cfg.DatabaseURL); err != nil {
		return nil, config.Usagef("DATABASE_URL: %w", err)
	}
	// Half of the cores at most do slow work; the rest stays for checking credentials.
	atOnce := max(1, runtime.GOMAXPROCS(0)/2)
	if a.passwords, err = auth.NewPasswords(atOnce, slowWorkWait, auth.DefaultHashCost()); err != nil {
		return nil, err
	}
	keyPairs, err := auth.NewKeyPairs(atOnce, slowWorkWait)
	if err != nil {
		return nil, err
	}
	sessions, err := auth.NewSessions(cfg.JWTSecret, cfg.JWTSecretPrevious)
	if err != nil {
		return nil, err
	}
	if err := retryForConnection(ctx, log, connectTimeout, func() error { return a.prepare(ctx, cfg) }); err != nil {
		return nil, err
	}
	a.cache, err = authcache.New(authcache.Config{
		Store: a.store, Log: log, Lease: cfg.CacheLease, MaxAge: cfg.CacheMaxAge, CacheBytes: cfg.CacheBytes - cfg.CacheBytes/tokensPart,
	})
	if err != nil {
		return nil, err
	}
	if cfg.CacheLease > 0 { // else nothing is remembered
		if a.tokens, err = auth.NewTokenCache(cfg.CacheBytes / tokensPart); err != nil {
			return nil, err
		}
	}
	a.lastUsed = lastused.New(a.store, log)
	a.authenticator = auth.NewAuthenticator(a.store, sessions, a.passwords, log)
	a.api = api.New(api.Config{
		Store: a.store,
		Cache: a.cache,
		Verifier: auth.NewVerifier(auth.VerifierConfig{
			Rows: a.cache, Sessions: sessions, Audience: cfg.Audience, Tokens: a.tokens, LastUsed: a.lastUsed,
		}),
		Tokens:         a.tokens,
		Authenticator:  a.authenticator,
		Passwords:      a.passwords,
		KeyPairs:       keyPairs,
		CustomerTurns:  auth.NewCustomerTurns(slowWorkWait),
		Mailer:         mailer,
		Log:            log,
		MinExpire:      cfg.AccessKeyMinExpire,
		TrustedProxies: cfg.TrustedProxies,
		AuthLimit:      cfg.AuthLimit,
		V1Limit:        cfg.V1Limit,
	})
	a.delay, a.Linger, a.ShutdownTimeout = cfg.ShutdownDelay, shutdownLinger, shutdownTimeout
	a.Server = &http.Server{
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
		a.Server.TLSConfig = a.certificate.Config()
	}
	return a, nil
}

// prepare migrates and bootstraps.
func (a *App) prepare(ctx context.Context, cfg *config.Settings) error {
	if _, err := store.Migrator(cfg.DatabaseURL, a.log).Up(ctx); err != nil {
		return fmt.Errorf("preparing the database at DATABASE_URL: %w", err)
	}
	if cfg.Bootstrap.Customer != "" {
		if _, err := a.bootstrap(ctx, cfg.Bootstrap); err != nil {
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

// Addr is where the program listens.
func (a *App) Addr() net.Addr { return a.listener.Addr() }

// answer answers what comes in by the listener until that is closed.
func (a *App) answer() error {
	if a.certificate != nil {
		return a.Server.ServeTLS(a.listener, "", "")
	}
	return a.Server.Serve(a.listener)
}

// Run answers requests until ctx ends, then lets those under way finish. A signal that comes by hangups, of which nil has none, has it read
// its certificate again.
func (a *App) Run(ctx context.Context, hangups <-chan os.Signal) (err error) {
	// These go on until the last request has been answered.
	following, leave := context.WithCancel(context.WithoutCancel(ctx))
	var background errgroup.Group
	background.Go(func() error { return a.cache.Run(following) })
	background.Go(func() error { return a.lastUsed.Run(following) })
	if a.certificate != nil {
		background.Go(func() error { return a.certificate.Run(following) })
	}
	defer func() {
		leave()
		err = errors.Join(err, background.Wait())
	}()
	served := make(chan error, 1)
	go func() { served <- a.answer() }()
	a.log.Info("listening", "addr", a.Addr().String())
	for running := true; running; {
		select {
		case err := <-served:
			return fmt.Errorf("serving: %w", err)
		case <-hangups:
			a.reload()
		case <-ctx.Done():
			running = false
		}
	}
	a.log.Info("shutting down: draining", "accepting_for", a.delay.String(), "at_most", a.ShutdownTimeout.String())
	// A load balancer has to notice before the first connection is refused, and can do so by /readyz only.
	a.api.Drain()
	time.Sleep(a.delay)
	_ = a.listener.Close() // ends Serve; the connections that are open stay
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		a.log.Warn("the listener had failed", "error", err.Error())
	}
	time.Sleep(a.Linger - a.delay)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.ShutdownTimeout)
	defer cancel()
	err = a.Server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn("some requests did not finish in time and were cut off")
		err = a.Server.Close()
	}
	if err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	a.log.Info("stopped")
	return nil
}

// reload reads again what can be read again: the certificate's files. It is what a SIGHUP does, which ends nothing: the rotation of logs
// sends it too.
func (a *App) reload() {
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

// Close gives everything back. It may be called on an app that is only half made.
func (a *App) Close() {
	if a.listener != nil {
		_ = a.listener.Close() // Run has closed it already
	}
	a.tokens.Close()
	if a.store != nil {
		a.store.Close()
	}
}

// warnOfFailover says what a failover can undo (docs/revocation.md).
func (a *App) warnOfFailover(ctx context.Context) error {
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

// mailer is what sends the codes of sign-ups, nil where there are none.
func mailer(s *config.Settings, log *slog.Logger) (api.Mailer, error) {
	switch {
	case !s.Signup:
		return nil, nil //nolint:nilnil // no mailer is a value of its own here: without one api.New adds no routes for sign-ups
	case !s.SMTPURL.Empty():
		return mail.NewSMTP(s.SMTPURL, s.SMTPFrom)
	case s.SignupLog:
		return mail.NewLog(log), nil
	default:
		return nil, config.Usagef("SMTP_URL is missing: SIGNUP=true needs the mail server that sends the codes")
	}
}
