package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
)

// load reads the settings of an environment.
func load(env map[string]string) (*config.Settings, error) {
	return config.Load(lookup(env), &config.Flags{}, nil)
}

// A wrong or missing setting ends the program at once with one line, which never repeats a secret (docs/contract.md, section 6).
// internal/config has every setting's wrong values.
func TestWrongSettingEndsTheProgramWithOneLine(t *testing.T) {
	t.Parallel()
	takes := map[string]string{}
	for _, s := range config.Table() {
		takes[s.Name] = ": it takes " + regexp.QuoteMeta(s.Takes)
	}
	const (
		server   = "smtp://u:hunter2@127.0.0.1:1"
		noServer = "SMTP_URL is missing: SIGNUP=true needs the mail server that sends the codes"
		noSender = "SMTP_FROM: the sender is missing or is not an address: it takes the address that mails come from"
	)
	type test struct {
		args string
		env  map[string]string
		line string
	}
	tests := []test{
		{"serve", map[string]string{"JWT_SECRET": "hunter2"}, "JWT_SECRET: .*" + takes["JWT_SECRET"]},
		{"serve", map[string]string{"CACHE_LEASE": "hunter2"}, "CACHE_LEASE: .*" + takes["CACHE_LEASE"]},
		{"serve", map[string]string{"DATABASE_URL": "postgres://u:hunter2@host:port/name"}, "DATABASE_URL: .*" + takes["DATABASE_URL"]},
		{"serve --cache-lease=1h", nil, "CACHE_LEASE: the value is not valid" + takes["CACHE_LEASE"]},
		{"serve", map[string]string{"JWT_SECRET": ""}, "JWT_SECRET is missing: it takes a secret of at least 32 bytes"},
		// The code of a sign-up goes out by SMTP, so it takes a mail server and a sender. Without SIGNUP it takes neither.
		{"serve", map[string]string{"SIGNUP": "true"}, noServer},
		{"serve", map[string]string{"SIGNUP": "true", "SMTP_FROM": "no-reply@example.com"}, noServer},
		{"serve", map[string]string{"SIGNUP": "true", "SMTP_URL": server}, noSender},
		{"serve", map[string]string{"SIGNUP": "false", "SMTP_URL": server}, noSender},
	}
	for _, args := range []string{
		"serve", "migrate up", "migrate down", "migrate version", "customer create --name=n", "agent create", "accesskey create",
	} {
		tests = append(tests, test{args, map[string]string{"DATABASE_URL": ""}, "DATABASE_URL is missing" + takes["DATABASE_URL"]})
	}
	for _, test := range tests {
		spawn(t, environment(secret.New(nowhere), test.env), "", strings.Fields(test.args)...).fails(2, test.line)
	}
}

// A secret of one letter is long, and no secret.
func TestSecretOfOneLetterIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"JWT_SECRET", "JWT_SECRET_PREVIOUS"} {
		for _, value := range []string{strings.Repeat("a", 32), strings.Repeat("0", 64), strings.Repeat("ab", 16), strings.Repeat("a", 40) + "b", strings.Repeat(" ", 32)} {
			_, err := load(map[string]string{name: value})
			if err == nil || !strings.HasPrefix(err.Error(), name+": the value is one or two characters again and again") {
				t.Errorf("%s=%q: %v", name, value, err)
			}
		}
	}
}

// A command line can be read by every user of the machine, so no secret has a flag; and one that is tried is not repeated.
func TestSecretsHaveNoFlag(t *testing.T) {
	t.Parallel()
	var secrets []string
	for _, s := range config.Table() {
		if s.Secret {
			secrets = append(secrets, s.Name)
		}
	}
	want := []string{"DATABASE_URL", "JWT_SECRET", "JWT_SECRET_PREVIOUS", "SMTP_URL", "BOOTSTRAP_PASSWORD", "BOOTSTRAP_ACCESSKEY"}
	if !slices.Equal(secrets, want) {
		t.Errorf("secret are %v, want %v", secrets, want)
	}
	for _, c := range commands() {
		with := func(flag string) (log string, err error) {
			_, log, err = cli(t, nil, "", append(strings.Fields(c.words), flag)...)
			return log, err
		}
		help := must(with("--help"))(t)
		if strings.Contains(strings.ToLower(help), "-password") {
			t.Errorf("%s has a flag for a password:\n%s", c.words, help)
		}
		for _, s := range config.Table() {
			if listed := strings.Contains(help, "  -"+s.Flag()+" "); listed == s.Secret {
				t.Errorf("%s: secret %v, listed %v in the help of %s", s.Name, s.Secret, listed, c.words)
			}
			if !s.Secret {
				continue
			}
			if log, err := with("--" + s.Flag() + "=hunter2"); err == nil || strings.Contains(log+err.Error(), "hunter2") || !strings.Contains(err.Error(), s.Flag()) {
				t.Errorf("%s --%s: %v\n%s", c.words, s.Flag(), err, log)
			}
		}
	}
}

// Values that are taken and hardly meant are told at the start, by the setting's name and never by its value.
func TestOddSettingsAreWarnedOf(t *testing.T) {
	t.Parallel()
	p := served(t, pgtest.Migrated(t), map[string]string{
		"JWT_SECRET": strings.Repeat("abcde", 7), "JWT_SECRET_PREVIOUS": strings.Repeat("abcde", 7), "CACHE_SIZE": "16777215",
		"BOOTSTRAP_ACCESSKEY": config.DemoAccessKey, "RATE_LIMIT_AUTH_RSP": "hunter2", "RATE_LIMIT_V1_RPS_": "hunter2", "TRUSTED_PROXIE": "hunter2",
		"trusted-proxies": "hunter2", "DATABSE_URL": "hunter2",
	})
	p.base()
	told := []string{
		"JWT_SECRET has 5 different characters only", "JWT_SECRET_PREVIOUS is the same", "CACHE_SIZE is 16777215 MiB",
		"BOOTSTRAP_ACCESSKEY is the published demo key", "the published demo key opens this database",
		`"variable":"RATE_LIMIT_AUTH_RSP","meant":"RATE_LIMIT_AUTH_RPS"`, `"variable":"RATE_LIMIT_V1_RPS_","meant":"RATE_LIMIT_V1_RPS"`,
		`"variable":"TRUSTED_PROXIE","meant":"TRUSTED_PROXIES"`, `"variable":"trusted-proxies","meant":"TRUSTED_PROXIES"`,
		`"variable":"DATABSE_URL","meant":"DATABASE_URL"`,
	}
	warnings := warningsOf(p)
	for _, want := range told {
		if strings.Count(strings.Join(warnings, ""), want) != 1 {
			t.Errorf("it does not warn once that %s", want)
		}
	}
	if len(warnings) != len(told) || strings.Contains(p.stderr.String(), "hunter2") {
		t.Errorf("the log warns: %q", warnings)
	}
}

// What is as it should be, and other programs' variables, are no reason for a warning.
func TestGoodSettingsAreNotWarnedOf(t *testing.T) {
	t.Parallel()
	p := served(t, pgtest.Migrated(t), map[string]string{
		"JWT_SECRET_PREVIOUS": "previous-" + testSecret, "CACHE_SIZE": "1", "PATH": "/bin", "LOG": "x", "LISTEN": "x", "PGPASSWORD": "x", "HOSTNAME": "x",
		"SMTP_HOST": "x", "CACHE_DIR": "x", "DATABASE": "x", "RATE_LIMIT": "1", "SSL_CERT_FILE": "x",
	})
	p.base()
	if warnings := warningsOf(p); len(warnings) > 0 {
		t.Errorf("the log warns: %q", warnings)
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
	served(t, database, map[string]string{"BOOTSTRAP_ACCESSKEY": config.DemoAccessKey}).base()
	for _, times := range []int{1, 0} {
		p := served(t, database, nil)
		p.base()
		if got := strings.Count(p.stderr.String(), "the published demo key opens this database: delete it"); got != times {
			t.Errorf("it is told %d times, want %d", got, times)
		}
		sql(t, database, `UPDATE accesskeys SET tm_delete = now() WHERE token_prefix = 'vb_DemoDemo'`)
	}
}

// What a database that refuses us says reaches the operator: each has another remedy.
func TestRefusalsOfTheDatabaseAreTold(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	sql(t, database, `DO $$ BEGIN CREATE ROLE accesskeys_stranger LOGIN PASSWORD 'p'; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$`)
	for param, want := range map[string]string{
		"dbname=no_such_database": "there is no such database", "user=accesskeys_stranger": "the database's role lacks a right",
	} {
		separator := map[bool]string{true: "&", false: "?"}[strings.Contains(database.Reveal(), "?")]
		env := map[string]string{"DATABASE_URL": database.Reveal() + separator + param}
		if _, _, err := cli(t, env, "", "customer", "create", "--name", "n"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "unavailable") {
			t.Errorf("%s: %v", param, err)
		}
	}
}
