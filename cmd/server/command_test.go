package main

import (
	"net"
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
)

// Contract, section 6: the list of subcommands; what it does not name, and what is left over, ends the program with code 2.
func TestCommandLineThatIsNotUnderstoodEndsWithCode2(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": "postgres://127.0.0.1:1/d", "JWT_SECRET": testSecret}
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
		p := spawn(t, env, "", strings.Fields(args)...)
		if code := p.code(); code != 2 || p.stdout.String() != "" || !strings.HasSuffix(p.stderr.String(), "server: "+want+"\n") {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, p.stdout, p.stderr)
		}
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
	if err != nil {
		t.Fatal(err)
	}
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

// What is right in itself and fails all the same ends with code 1 and says what failed, a secret never.
func TestFailureEndsWithCode1(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	empty := pgtest.Empty(t)
	const away = "postgres://u:hunter2@127.0.0.1:1/d" // pgx tries with TLS and without, and tells of both
	for name, test := range map[string]struct {
		args, listen, database, want string
	}{
		"serve, unreachable":      {"serve", "127.0.0.1:0", away, "server: preparing the database at DATABASE_URL: connecting to the database: the database is unavailable"},
		"migrate, unreachable":    {"migrate up", "", away, "server: connecting to the database: the database is unavailable"},
		"customer, unreachable":   {"customer create --name=n", "", away, "server: reading the schema's version: the database is unavailable"},
		"customer, not migrated":  {"customer create --name=n", "", empty.Reveal(), "server: the schema is at version 0, this program needs " + newest},
		"accesskey, not migrated": {"accesskey create", "", empty.Reveal(), "server: the schema is at version 0, this program needs " + newest},
		"address in use":          {"serve", taken.Addr().String(), empty.Reveal(), "server: LISTEN_ADDR: listen tcp " + taken.Addr().String()},
	} {
		env := map[string]string{"DATABASE_URL": test.database, "LISTEN_ADDR": test.listen, "JWT_SECRET": testSecret}
		p := spawn(t, env, "", strings.Fields(test.args)...)
		if code := p.code(); code != 1 || p.stdout.String() != "" || !strings.HasPrefix(p.stderr.String(), test.want) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", name, code, p.stdout, p.stderr)
		}
		if strings.Contains(p.stderr.String(), "hunter2") || strings.Count(p.stderr.String(), "\n") != 1 {
			t.Errorf("%s: stderr %q", name, p.stderr)
		}
	}
	if tables := sql(t, empty, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); tables != "0" {
		t.Errorf("%s tables were made by what failed", tables)
	}
}
