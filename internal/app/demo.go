package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"accesskeys/internal/auth"
	"accesskeys/internal/changelog"
	"accesskeys/internal/config"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// The demo credentials of `server dev`. They are published, so they open a Postgres that dev has started itself, on a loopback address, and
// nothing else: elsewhere random ones take their place.
const (
	demoCustomer  = "Demo"
	demoUsername  = "admin@demo.example"
	demoPassword  = "demo-password"
	demoAccessKey = config.DemoAccessKey
	demoDatabase  = "accesskeys"

	// randomExpire is how long a random demo key lives, in seconds; each start that needs one makes a new one.
	randomExpire = 86400
)

// demo is what `server dev` prints.
type demo struct {
	username  string
	password  secret.Value
	accessKey auth.AccessToken
	token     secret.Value
}

// demo makes sure that the demo's customer, admin and key exist and work, whatever was done to them since the last run. Only where
// that is harmless are they the published ones.
func (a *App) demo(ctx context.Context, b config.Bootstrap, harmless bool) (demo, error) {
	if !harmless {
		if err := a.retirePublished(ctx); err != nil {
			return demo{}, err
		}
	}
	fillDemo(&b, harmless)
	done, err := a.bootstrap(ctx, b)
	if err == nil && done.Customer == store.Deleted {
		if _, err = a.store.CreateCustomer(ctx, store.Operator(), store.NewCustomer{Name: b.Customer}); err == nil {
			done, err = a.bootstrap(ctx, b)
		}
	}
	if err != nil {
		return demo{}, err
	}
	d := demo{username: b.Username, password: b.Password, accessKey: b.AccessKey}
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
func fillDemo(b *config.Bootstrap, published bool) {
	if b.Customer == "" {
		b.Customer = demoCustomer
	}
	if b.Username == "" {
		b.Username, b.Password = demoUsername, secret.New(demoPassword)
		if !published {
			b.Password = secret.New(rand.Text())
		}
	}
	if b.AccessKey.Empty() {
		b.AccessKey, _ = auth.ParseAccessToken(demoAccessKey)
		if !published {
			b.AccessKey, b.Expire = auth.NewAccessToken(), randomExpire
		}
	}
}

// retirePublished makes sure that the published credentials, which an earlier run may have left in the database, open nothing any more.
func (a *App) retirePublished(ctx context.Context) error {
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
func (a *App) publishedKey(ctx context.Context) (store.AccessKeyCredential, error) {
	published, _ := auth.ParseAccessToken(demoAccessKey)
	found, err := a.store.Lookup(ctx, store.Lookup{AccessKeys: []store.TokenHash{published.Hash()}}, changelog.Position{}, store.HeadFirst)
	key, there := found.AccessKeys[published.Hash()]
	if err == nil && (!there || key.TmDelete.Before(key.Now) || key.TmExpire.Before(key.Now)) {
		err = store.ErrNotFound
	}
	return key, err
}

// warnOfPublishedKey tells where the published demo key opens the database of a server that is no demo.
func (a *App) warnOfPublishedKey(ctx context.Context) error {
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
func (a *App) demoLogin(ctx context.Context, b config.Bootstrap, done store.Bootstrapped) (secret.Value, error) {
	_, token, err := a.authenticator.Login(ctx, b.Username, b.Password, netip.Addr{})
	if !errors.Is(err, auth.ErrInvalidCredential) {
		return token, err
	}
	hash, err := a.passwords.Hash(ctx, b.Password)
	if err != nil {
		return secret.Value{}, err
	}
	if done.Agent == store.Deleted {
		_, err = a.store.CreateAgent(ctx, store.Operator(), store.NewAgent{
			CustomerID: done.CustomerID, Username: b.Username, PasswordHash: hash,
			Permission: int64(auth.PermissionCustomerAdmin),
		})
	} else {
		_, err = a.store.SetPassword(ctx, store.Operator(), store.Agent{ID: done.AgentID, CustomerID: done.CustomerID}, hash)
	}
	if err != nil {
		return secret.Value{}, err
	}
	_, token, err = a.authenticator.Login(ctx, b.Username, b.Password, netip.Addr{})
	return token, err
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// baseURL is where the program can be reached from this machine.
func (a *App) baseURL() string {
	host, scheme := a.Addr().String(), "http"
	if tcp, ok := a.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
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
