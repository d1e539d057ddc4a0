package app

import (
	"cmp"
	"context"
	"fmt"

	"accesskeys/internal/auth"
	"accesskeys/internal/config"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// bootstrap makes sure that what the BOOTSTRAP settings name exists.
func (a *App) bootstrap(ctx context.Context, b config.Bootstrap) (store.Bootstrapped, error) {
	wanted := store.Bootstrap{
		Customer:   b.Customer,
		Username:   b.Username,
		Permission: int64(auth.PermissionCustomerAdmin),
	}
	wanted.PasswordHash = func(ctx context.Context) (secret.Value, error) { return a.passwords.Hash(ctx, b.Password) }
	if !b.AccessKey.Empty() {
		wanted.AccessKey = &store.NewAccessKey{
			Name: "bootstrap", TokenHash: b.AccessKey.Hash(), TokenPrefix: b.AccessKey.Prefix(),
			Expire: cmp.Or(b.Expire, store.DefaultExpire),
		}
	}
	done, err := a.store.Bootstrap(ctx, wanted)
	if err != nil {
		return done, fmt.Errorf("BOOTSTRAP_CUSTOMER %q: %w", b.Customer, err)
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
