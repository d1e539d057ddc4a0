package main

import (
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
)

// Contract, section 6: the list of subcommands; what it does not name, and what is left over, ends the program with code 2.
func TestCommandLineThatIsNotUnderstoodEndsWithCode2(t *testing.T) {
	t.Parallel()
	env := environment(secret.New(nowhere), nil)
	for args, want := range map[string]string{
		"":                                 "a subcommand is missing",
		"run":                              `there is no subcommand "run"`,
		"migrate":                          `there is no subcommand "migrate"`,
		"migrate sideways":                 `there is no subcommand "migrate sideways"`,
		"customer delete":                  `there is no subcommand "customer delete"`,
		"agents create --password hunter2": `there is no subcommand "agents create"`, // and nothing of what may be secret
		"--listen-addr=:0 serve":           `there is no subcommand "--listen-addr=:0 serve"`,
		"serve now":                        `"now" is not expected; a value belongs to a flag`,
		"dev now":                          `"now" is not expected; a value belongs to a flag`,
		"migrate up 3":                     `"3" is not expected; a value belongs to a flag`,
		"customer create acme":             `"acme" is not expected; a value belongs to a flag`,
		"serve --no-such-flag":             "flag provided but not defined: -no-such-flag",
		"serve --dir=/tmp":                 "flag provided but not defined: -dir",
		"accesskey create --expire=soon":   `invalid value "soon" for flag -expire: parse error`,
	} {
		spawn(t, env, "", strings.Fields(args)...).says(2, "(?s:.*usage.*\n)?server: "+want+"\n")
	}
}

// A user who asks for help gets it, on every level, with code 0 and without a setting being looked at.
func TestHelpIsNoError(t *testing.T) {
	t.Parallel()
	all := []string{"--help", "-h", "help", "migrate --help", "customer -h", "agent create --help", "nonsense --help"}
	for _, c := range commands() {
		all = append(all, c.words+" --help", c.words+" -h")
	}
	for _, args := range all {
		p := spawn(t, nil, "", strings.Fields(args)...)
		if code := p.code(); code != 0 || !strings.HasPrefix(p.stdout.String()+p.stderr.String(), "usage") {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, p.stdout, p.stderr)
		}
	}
}

// The help that lists everything lists every subcommand and every setting, with what it takes and its default.
func TestHelpIsComplete(t *testing.T) {
	t.Parallel()
	help, _, err := cli(t, nil, "", "--help")
	ok(t, err)
	for _, c := range commands() {
		if !strings.Contains(help, "  server "+c.words+" "+c.args+"\n        "+c.about+"\n") {
			t.Errorf("there is no %q in\n%s", c.words, help)
		}
	}
	for _, s := range config.Table() {
		want := "  " + s.Name
		if !s.Secret {
			want += ", --" + s.Flag()
		}
		want += "\n        " + s.Takes
		if s.Default != "" {
			want += "; default " + s.Default
		}
		if !strings.Contains(help, want+"\n") {
			t.Errorf("there is no %q in\n%s", want, help)
		}
	}
}

// What is right in itself and fails all the same ends with code 1 and says what failed, a secret never. Nothing is changed by then.
func TestFailureEndsWithCode1(t *testing.T) {
	t.Parallel()
	taken := listener(t).Addr().String()
	empty, inTheWay := pgtest.Empty(t), pgtest.Empty(t)
	sql(t, inTheWay, `CREATE TABLE accesskeys (in_the_way int)`)
	const (
		unavailable = "the database is unavailable.*"
		notMigrated = "the schema is at version 0, this program needs " + newest + ".* [(]server migrate up prepares a database[)]"
		leftAsItWas = ".*migrating the database, which is left as it was: .*"
	)
	for _, test := range []struct {
		args     string
		database secret.Value
		line     string
	}{
		// pgx tries with TLS and without, and tells of both.
		{"serve", secret.New(nowhere), "preparing the database at DATABASE_URL: connecting to the database: " + unavailable},
		{"migrate up", secret.New(nowhere), "connecting to the database: " + unavailable},
		{"customer create --name=n", secret.New(nowhere), "reading the schema's version: " + unavailable},
		{"customer create --name=n", empty, notMigrated},
		{"accesskey create", empty, notMigrated},
		{"serve --listen-addr=" + taken, empty, "LISTEN_ADDR: listen tcp " + taken + ".*"},
		{"serve", inTheWay, leftAsItWas},
		{"migrate up", inTheWay, leftAsItWas},
	} {
		spawn(t, environment(test.database, nil), "", strings.Fields(test.args)...).fails(1, test.line)
	}
	noTables(t, empty)
	if tables := tablesOf(t, inTheWay); tables != "accesskeys" {
		t.Errorf("there are the tables %s", tables)
	}
}
