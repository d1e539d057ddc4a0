package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/config"
)

// load reads the settings of an environment.
func load(env map[string]string) (*config.Settings, error) {
	return config.Load(lookup(env), &config.Flags{}, nil)
}

// A wrong setting ends the program at once with one line, which never repeats a secret (docs/contract.md, section 6). internal/config has
// every setting's wrong values.
func TestWrongSettingEndsTheProgramWithOneLine(t *testing.T) {
	t.Parallel()
	takes := map[string]string{}
	for _, s := range config.Table() {
		takes[s.Name] = s.Takes
	}
	for name, value := range map[string]string{"JWT_SECRET": "hunter2", "CACHE_LEASE": "hunter2", "DATABASE_URL": "postgres://u:hunter2@host:port/name"} {
		env := map[string]string{"DATABASE_URL": "postgres://127.0.0.1:1/d", "JWT_SECRET": testSecret, "LISTEN_ADDR": "127.0.0.1:0"}
		env[name] = value
		p := spawn(t, env, "", "serve")
		line := regexp.MustCompile(`^server: ` + name + `: .*: it takes ` + regexp.QuoteMeta(takes[name]) + `\n$`)
		if code := p.code(); code != 2 || p.stdout.String() != "" || !line.MatchString(p.stderr.String()) || strings.Contains(p.stderr.String(), "hunter2") {
			t.Errorf("%s=%q: exit code %d, stdout %q, stderr %q", name, value, code, p.stdout, p.stderr)
		}
	}
	checkLine(t, spawn(t, map[string]string{"DATABASE_URL": "postgres://127.0.0.1:1/d", "JWT_SECRET": testSecret}, "", "serve", "--cache-lease=1h"),
		"CACHE_LEASE: the value is not valid: it takes "+takes["CACHE_LEASE"], "as a flag")
}

// Contract, section 6: `DATABASE_URL` (required but for `dev`), "`JWT_SECRET` (required but for `dev` ...)"; the command line's other
// subcommands sign nothing and need only the first.
func TestMissingSettingEndsTheProgramWithOneLine(t *testing.T) {
	t.Parallel()
	takes := map[string]string{}
	for _, s := range config.Table() {
		takes[s.Name] = s.Takes
	}
	commandLines := [][]string{
		{"serve"}, {"migrate", "up"}, {"migrate", "down"}, {"migrate", "version"}, {"customer", "create", "--name=n"},
		{"agent", "create"}, {"accesskey", "create"},
	}
	for _, args := range commandLines {
		missing := []map[string]string{{"JWT_SECRET": testSecret}, {"JWT_SECRET": testSecret, "DATABASE_URL": ""}}
		name := "DATABASE_URL"
		for i, env := range missing {
			checkLine(t, spawn(t, env, "", args...), name+" is missing: it takes "+takes[name], i)
		}
	}
	for i, env := range []map[string]string{{}, {"JWT_SECRET": ""}} {
		env["DATABASE_URL"] = "postgres://127.0.0.1:1/d"
		checkLine(t, spawn(t, env, "", "serve"), "JWT_SECRET is missing: it takes a secret of at least 32 bytes", i)
	}
}

// checkLine fails the test unless the program ends with code 2 and this line alone.
func checkLine(t *testing.T, p *process, line string, hint any) {
	t.Helper()
	if code := p.code(); code != 2 || p.stdout.String() != "" || p.stderr.String() != "server: "+line+"\n" {
		t.Errorf("%v %v: exit code %d, stdout %q, stderr %q, want %q", p.cmd.Args[1:], hint, code, p.stdout, p.stderr, line)
	}
}

// Off unless SIGNUP=true. The six-digit code goes out by SMTP: so it takes a mail server and a sender. Without SIGNUP it takes neither.
func TestSignupNeedsAMailServerAndASender(t *testing.T) {
	t.Parallel()
	const (
		noServer = "SMTP_URL is missing: SIGNUP=true needs the mail server that sends the codes"
		noSender = "SMTP_FROM: the sender is missing or is not an address: it takes the address that mails come from"
	)
	for i, test := range []struct{ signup, server, from, want string }{
		{"true", "", "", noServer},
		{"true", "", "no-reply@example.com", noServer},
		{"true", "smtp://u:hunter2@127.0.0.1:1", "", noSender},
		{"false", "smtp://u:hunter2@127.0.0.1:1", "", noSender},
	} {
		env := map[string]string{
			"DATABASE_URL": "postgres://127.0.0.1:1/d", "JWT_SECRET": testSecret, "LISTEN_ADDR": "127.0.0.1:0",
			"SIGNUP": test.signup, "SMTP_URL": test.server, "SMTP_FROM": test.from,
		}
		checkLine(t, spawn(t, env, "", "serve"), test.want, i)
	}
}

// A command line can be read by every user of the machine, so no secret has a flag; and one that is tried is not
// repeated.
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
		words := strings.Fields(c.words)
		_, help, err := cli(t, nil, "", append(slices.Clone(words), "--help")...)
		if err != nil {
			t.Fatalf("%s --help: %v", c.words, err)
		}
		for _, s := range config.Table() {
			if listed := strings.Contains(help, "  -"+s.Flag()+" "); listed == s.Secret {
				t.Errorf("%s: secret %v, listed %v in the help of %s", s.Name, s.Secret, listed, c.words)
			}
			if !s.Secret {
				continue
			}
			_, log, err := cli(t, nil, "", append(slices.Clone(words), "--"+s.Flag()+"=hunter2")...)
			if err == nil || strings.Contains(log+err.Error(), "hunter2") || !strings.Contains(err.Error(), s.Flag()) {
				t.Errorf("%s --%s: %v\n%s", c.words, s.Flag(), err, log)
			}
		}
		if strings.Contains(strings.ToLower(help), "-password") {
			t.Errorf("%s has a flag for a password:\n%s", c.words, help)
		}
	}
}
