package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// The demo credentials of `server dev`. They are published, so they open a Postgres that dev has started itself, on a loopback address, and
// nothing else: elsewhere random ones take their place.
const (
	demoCustomer  = "Demo"
	demoUsername  = "admin@demo.example"
	demoPassword  = "demo-password"
	demoAccessKey = "vb_DemoDemoDemoDemoDemoDemoDemoDemo"
	demoListen    = "127.0.0.1:8080"
	demoDatabase  = "accesskeys"

	// randomExpire is how long a random demo key lives, in seconds; each start that needs one makes a new one.
	randomExpire = 86400
	// takeoverWait is how long another `server dev` on the same folder has to stop: longer than its shutdown may take.
	takeoverWait = shutdownTimeout + 10*time.Second
	takeoverPoll = 50 * time.Millisecond
)

// dev serves on a Postgres of its own, or on DATABASE_URL, with credentials that it prints.
func dev(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("dev")
	dir := flags.String("dir", ".dev", "the folder that keeps the data between runs")
	inner := inv.getenv
	inv.getenv = func(name string) string {
		if value := inner(name); value != "" {
			return value
		}
		return map[string]string{"LISTEN_ADDR": demoListen, "LOG_FORMAT": "text", "SHUTDOWN_DELAY": "0"}[name]
	}
	cfg, err := inv.parse(flags, given)
	if err != nil {
		return err
	}
	cfg.signupLog = true
	log, flush := newLogger(inv.stderr, cfg)
	defer flush()
	inv.warnOfSettings(cfg, log)
	// A terminal that closes ends the demo, and its Postgres with it.
	hangups, ignore := inv.hangups()
	defer ignore()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-hangups:
			stop()
		case <-ctx.Done():
		}
	}()
	folder, err := filepath.Abs(*dir)
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	owned := cfg.databaseURL.Empty()
	if owned {
		if err := inv.forgetLibpq(); err != nil {
			return err
		}
		cluster, err := ownPostgres(ctx, folder, inv.getenv, log)
		if err != nil {
			return err
		}
		defer func() {
			if err := cluster.Close(); err != nil {
				log.Error("stopping Postgres", "error", err.Error())
			}
		}()
		if err := postgres.CreateDatabase(ctx, secret.New(cluster.URL("postgres")), demoDatabase); err != nil {
			return err
		}
		cfg.databaseURL = secret.New(cluster.URL(demoDatabase))
	}
	if cfg.jwtSecret.Empty() {
		if cfg.jwtSecret, err = keptSecret(filepath.Join(folder, "jwt_secret")); err != nil {
			return err
		}
	}
	bootstrap := cfg.bootstrap
	cfg.bootstrap = bootstrapSettings{} // demo does it, and more
	a, err := newApp(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer a.close()
	d, err := a.demo(ctx, bootstrap, owned && isLoopback(a.addr()))
	if err != nil {
		return err
	}
	if err := d.print(inv.stdout, a.baseURL()); err != nil {
		return err
	}
	return a.run(ctx)
}

// forgetLibpq removes libpq's variables (its manual, section 34.15) from the environment, in which the driver reads them: they are about
// other databases than one of our own.
func (inv invocation) forgetLibpq() error {
	for _, variable := range inv.environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("removing %s from the environment: %w", name, err)
			}
		}
	}
	return nil
}

// ownPostgres starts Postgres on the folder's data. Another `server dev` there is asked to stop first: what is left of a
// run that was killed, or was forgotten in another window, must not keep the next one from starting.
func ownPostgres(ctx context.Context, folder string, getenv func(string) string, log *slog.Logger) (*privatepg.Server, error) {
	deadline := time.Now().Add(takeoverWait)
	asked := 0
	for {
		cluster, err := privatepg.Start(ctx, privatepg.Config{Dir: filepath.Join(folder, "postgres"), Logger: log, Getenv: getenv})
		inUse, held := errors.AsType[*privatepg.InUseError](err)
		if !held || time.Now().After(deadline) {
			return cluster, err
		}
		if inUse.PID > 0 && inUse.PID != asked && inUse.PID != os.Getpid() {
			log.Warn("taking over from another `server dev` on this folder, which is asked to stop", "pid", inUse.PID)
			asked = inUse.PID
			_ = syscall.Kill(inUse.PID, syscall.SIGTERM) // it may have gone by itself
		}
		select {
		case <-time.After(takeoverPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keptSecret returns the secret in the file, made at the first run: with it, logins survive a restart.
func keptSecret(path string) (secret.Value, error) {
	kept, err := os.ReadFile(path)
	if err == nil && len(kept) >= auth.MinSecretLength {
		return secret.New(string(kept)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return secret.Value{}, fmt.Errorf("reading the demo's JWT secret: %w", err)
	}
	made := rand.Text() + rand.Text()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return secret.Value{}, fmt.Errorf("making the demo's folder: %w", err)
	}
	if err := os.WriteFile(path, []byte(made), 0o600); err != nil {
		return secret.Value{}, fmt.Errorf("keeping the demo's JWT secret: %w", err)
	}
	return secret.New(made), nil
}

// demo is what `server dev` prints.
type demo struct {
	username  string
	password  secret.Value
	accessKey auth.AccessToken
	token     secret.Value
}

// demo makes sure that the demo's customer, admin and key exist and work, whatever was done to them since the last run. Only where
// that is harmless are they the published ones.
func (a *app) demo(ctx context.Context, b bootstrapSettings, harmless bool) (demo, error) {
	if !harmless {
		if err := a.retirePublished(ctx); err != nil {
			return demo{}, err
		}
	}
	fillDemo(&b, harmless)
	done, err := a.bootstrap(ctx, b)
	if err == nil && done.Customer == store.Deleted {
		if _, err = a.store.CreateCustomer(ctx, store.Operator(), store.NewCustomer{Name: b.customer}); err == nil {
			done, err = a.bootstrap(ctx, b)
		}
	}
	if err != nil {
		return demo{}, err
	}
	d := demo{username: b.username, password: b.password, accessKey: b.accessKey}
	if d.token, err = a.demoLogin(ctx, b, done); err != nil {
		return demo{}, err
	}
	if done.AccessKey == store.Deleted || done.AccessKey == store.Expired {
		d.accessKey = auth.NewAccessToken()
		_, err = a.store.CreateAccessKey(ctx, store.Operator(), store.NewAccessKey{
			CustomerID: done.CustomerID, Name: "demo", TokenHash: d.accessKey.Hash(), TokenPrefix: d.accessKey.Prefix(),
			Expire: randomExpire,
		})
	}
	return d, err
}

// fillDemo completes what the BOOTSTRAP settings leave open.
func fillDemo(b *bootstrapSettings, published bool) {
	if b.customer == "" {
		b.customer = demoCustomer
	}
	if b.username == "" {
		b.username, b.password = demoUsername, secret.New(demoPassword)
		if !published {
			b.password = secret.New(rand.Text())
		}
	}
	if b.accessKey.Empty() {
		b.accessKey, _ = auth.ParseAccessToken(demoAccessKey)
		if !published {
			b.accessKey, b.expire = auth.NewAccessToken(), randomExpire
		}
	}
}

// retirePublished makes sure that the published credentials, which an earlier run may have left in the database, open nothing any more.
func (a *app) retirePublished(ctx context.Context) error {
	key, err := a.publishedKey(ctx)
	if err == nil {
		a.log.Warn("the published demo key opened this database; it is deleted now", "customer_id", key.CustomerID)
		_, err = a.store.DeleteAccessKey(ctx, store.Operator(), key.CustomerID, key.ID)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	agent, _, err := a.authenticator.Login(ctx, demoUsername, secret.New(demoPassword), netip.Addr{})
	if errors.Is(err, auth.ErrInvalidCredential) {
		return nil
	}
	if err != nil {
		return err
	}
	a.log.Warn("the published demo password opened this database; it is changed now", "customer_id", agent.CustomerID)
	hash, err := a.passwords.Hash(ctx, secret.New(rand.Text()))
	if err != nil {
		return err
	}
	_, err = a.store.SetPassword(ctx, store.Operator(), agent, hash)
	return err
}

// publishedKey is the published demo key where the database has it and it is live, else store.ErrNotFound.
func (a *app) publishedKey(ctx context.Context) (store.AccessKeyCredential, error) {
	published, _ := auth.ParseAccessToken(demoAccessKey)
	found, err := a.store.Lookup(ctx, store.Lookup{AccessKeys: []store.TokenHash{published.Hash()}}, changelog.Position{}, store.HeadFirst)
	key, there := found.AccessKeys[published.Hash()]
	if err == nil && (!there || key.TmDelete.Before(key.Now) || key.TmExpire.Before(key.Now)) {
		err = store.ErrNotFound
	}
	return key, err
}

// warnOfPublishedKey tells where the published demo key opens the database of a server that is no demo.
func (a *app) warnOfPublishedKey(ctx context.Context) error {
	key, err := a.publishedKey(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		a.log.Warn("the published demo key opens this database: delete it", "customer_id", key.CustomerID, "accesskey_id", key.ID)
	}
	return err
}

// demoLogin logs the demo's admin in, after giving it the printed password back where it has another.
func (a *app) demoLogin(ctx context.Context, b bootstrapSettings, done store.Bootstrapped) (secret.Value, error) {
	_, token, err := a.authenticator.Login(ctx, b.username, b.password, netip.Addr{})
	if !errors.Is(err, auth.ErrInvalidCredential) {
		return token, err
	}
	hash, err := a.passwords.Hash(ctx, b.password)
	if err != nil {
		return secret.Value{}, err
	}
	if done.Agent == store.Deleted {
		_, err = a.store.CreateAgent(ctx, store.Operator(), store.NewAgent{
			CustomerID: done.CustomerID, Username: b.username, PasswordHash: hash,
			Permission: int64(auth.PermissionCustomerAdmin),
		})
	} else {
		_, err = a.store.SetPassword(ctx, store.Operator(), store.Agent{ID: done.AgentID, CustomerID: done.CustomerID}, hash)
	}
	if err != nil {
		return secret.Value{}, err
	}
	_, token, err = a.authenticator.Login(ctx, b.username, b.password, netip.Addr{})
	return token, err
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// baseURL is where the program can be reached from this machine.
func (a *app) baseURL() string {
	host, scheme := a.addr().String(), "http"
	if tcp, ok := a.addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		host = fmt.Sprintf("127.0.0.1:%d", tcp.Port)
	}
	if a.certificate != nil {
		scheme = "https"
	}
	return scheme + "://" + host
}

func (d demo) print(w io.Writer, base string) error {
	lines := []string{
		"Base URL:    " + base,
		"Username:    " + d.username,
		"Password:    " + d.password.Reveal(),
		"Access key:  " + d.accessKey.Reveal(),
		"",
		"Try:",
		"  curl '" + base + "/v1.0/me?token=" + d.token.Reveal() + "'",
		"  curl '" + base + "/v1.0/accesskeys?accesskey=" + d.accessKey.Reveal() + "'",
		"",
		"Ctrl-C stops it. The data stays for the next run.",
		"",
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}
