package main

import (
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
)

// Values that are taken and hardly meant are told at the start, by the setting's name and never by its value.
func TestOddSettingsAreWarnedOf(t *testing.T) {
	t.Parallel()
	for setting, env := range map[string]map[string]string{
		"JWT_SECRET has 5 different characters only":                     {"JWT_SECRET": strings.Repeat("abcde", 7)},
		"JWT_SECRET_PREVIOUS is the same":                                {"JWT_SECRET_PREVIOUS": testSecret},
		"CACHE_SIZE is 16777215 MiB":                                     {"CACHE_SIZE": "16777215"},
		"BOOTSTRAP_ACCESSKEY is the published demo key":                  {"BOOTSTRAP_ACCESSKEY": config.DemoAccessKey},
		`"variable":"RATE_LIMIT_AUTH_RSP","meant":"RATE_LIMIT_AUTH_RPS"`: {"RATE_LIMIT_AUTH_RSP": "hunter2"},
		`"variable":"RATE_LIMIT_V1_RPS_","meant":"RATE_LIMIT_V1_RPS"`:    {"RATE_LIMIT_V1_RPS_": "hunter2"},
		`"variable":"TRUSTED_PROXIE","meant":"TRUSTED_PROXIES"`:          {"TRUSTED_PROXIE": "hunter2"},
		`"variable":"trusted-proxies","meant":"TRUSTED_PROXIES"`:         {"trusted-proxies": "hunter2"},
		`"variable":"DATABSE_URL","meant":"DATABASE_URL"`:                {"DATABSE_URL": "hunter2"},
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			p := launch(t, environment(pgtest.Migrated(t), env), "serve")
			p.base()
			log := p.stderr.String()
			if !strings.Contains(log, setting) || strings.Count(log, `"level":"WARN"`) > 2 || strings.Contains(log, "hunter2") {
				t.Errorf("the log is\n%s", log)
			}
		})
	}
}

// What is as it should be, and other programs' variables, are no reason for a warning.
func TestGoodSettingsAreNotWarnedOf(t *testing.T) {
	t.Parallel()
	p := launch(t, environment(pgtest.Migrated(t), map[string]string{
		"JWT_SECRET_PREVIOUS": "previous-" + testSecret, "CACHE_SIZE": "1", "PATH": "/bin", "LOG": "x", "LISTEN": "x", "PGPASSWORD": "x", "HOSTNAME": "x",
		"SMTP_HOST": "x", "CACHE_DIR": "x", "DATABASE": "x", "RATE_LIMIT": "1", "SSL_CERT_FILE": "x",
	}), "serve")
	p.base()
	if log := p.stderr.String(); strings.Contains(log, `"level":"WARN"`) {
		t.Errorf("the log is\n%s", log)
	}
}

// A command looks at the settings that it uses: a certificate that is of no concern to it may be missing.
func TestCommandChecksTheSettingsThatItUses(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"DATABASE_URL": pgtest.Migrated(t).Reveal(), "TLS_CERT_FILE": "/no/such/file", "JWT_SECRET": "short", "CACHE_SIZE": "x", "SIGNUP": "x",
		"ACCESSKEY_MIN_EXPIRE": "3600",
	}
	_, customer := printed(t, env, "", "customer", "create", "--name", "n")
	id := customer["id"].(string)
	printed(t, env, "", "accesskey", "create", "--customer", id, "--expire", "3600")
	_, _, err := cli(t, env, "", "accesskey", "create", "--customer", id, "--expire", "3599")
	if err == nil || err.Error() != "--expire: it takes a whole number of seconds from 3600 to 3153600000" {
		t.Errorf("below ACCESSKEY_MIN_EXPIRE: %v", err)
	}
	for name, value := range map[string]string{"LOG_LEVEL": "x", "ACCESSKEY_MIN_EXPIRE": "0", "DATABASE_URL": "x"} {
		wrong := map[string]string{"DATABASE_URL": env["DATABASE_URL"], name: value}
		if _, _, err := cli(t, wrong, "", "accesskey", "create", "--customer", id); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	if _, _, err := cli(t, env, "", "serve"); err == nil || !strings.HasPrefix(err.Error(), "TLS_CERT_FILE: ") {
		t.Errorf("serve: %v", err)
	}
}

// A server that is started with a database which the published demo key opens says so.
func TestPublishedKeyInADatabaseIsToldOf(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	launch(t, environment(database, map[string]string{"BOOTSTRAP_ACCESSKEY": config.DemoAccessKey}), "serve").base()
	const warning = "the published demo key opens this database: delete it"
	p := launch(t, environment(database, nil), "serve")
	p.base()
	if log := p.stderr.String(); strings.Count(log, warning) != 1 {
		t.Errorf("the log is\n%s", log)
	}
	sql(t, database, `UPDATE accesskeys SET tm_delete = now() WHERE token_prefix = 'vb_DemoDemo'`)
	p = launch(t, environment(database, nil), "serve")
	p.base()
	if log := p.stderr.String(); strings.Contains(log, warning) {
		t.Errorf("once it is deleted, the log is\n%s", log)
	}
}

// What a database that refuses us says reaches the operator: each has another remedy.
func TestRefusalsOfTheDatabaseAreTold(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	sql(t, database, `DO $$ BEGIN CREATE ROLE accesskeys_stranger LOGIN PASSWORD 'p'; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$`)
	address := database.Reveal()
	for name, c := range map[string]struct{ url, want string }{
		"no such database": {withParam(address, "dbname", "no_such_database"), "there is no such database"},
		"no right":         {withParam(address, "user", "accesskeys_stranger"), "the database's role lacks a right"},
	} {
		_, _, err := cli(t, map[string]string{"DATABASE_URL": c.url}, "", "customer", "create", "--name", "n")
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "unavailable") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// withParam is an address with another parameter, which counts before what the address has in its other parts.
func withParam(address, name, value string) string {
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	return address + separator + name + "=" + value
}

// A secret of one letter is long, and no secret.
func TestSecretOfOneLetterIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"JWT_SECRET", "JWT_SECRET_PREVIOUS"} {
		for _, value := range []string{strings.Repeat("a", 32), strings.Repeat("0", 64), strings.Repeat("ab", 16), strings.Repeat("a", 40) + "b", strings.Repeat(" ", 32)} {
			_, _, err := cli(t, environment(pgtest.Migrated(t), map[string]string{name: value}), "", "serve")
			if err == nil || !strings.HasPrefix(err.Error(), name+": the value is one or two characters again and again") {
				t.Errorf("%s=%q: %v", name, value, err)
			}
		}
	}
}
