package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/migrations"
)

// What a database can hold without anything else.
var holdings = map[string]string{
	"a customer":         `INSERT INTO customers (id, name) VALUES (gen_random_uuid(), 'acme')`,
	"a deleted customer": `INSERT INTO customers (id, name, tm_delete) VALUES (gen_random_uuid(), 'acme', now())`,
	"a sign-up": `INSERT INTO signups (id, temp_token_hash, code_hash, email, name, known, tm_expire)
		VALUES (gen_random_uuid(), sha256('t'), sha256('c'), 'a@acme.example', 'acme', false, now())`,
}

// newest is the newest version of the schema.
const newest = "7"

// holding is a database with a row at version 4, the newest that is not taken back without a question. That the steps above it are is
// tested on the way.
func holding(t *testing.T, row string) secret.Value {
	t.Helper()
	database := pgtest.Migrated(t)
	sql(t, database, row)
	for versionOf(t, database) != "4" {
		if out, log, err := cli(t, map[string]string{"DATABASE_URL": database.Reveal()}, "", "migrate", "down"); err != nil {
			t.Fatalf("migrate down: %q: %v\n%s", out, err, log)
		}
	}
	return database
}

const lossOfNewest = "version 4 of the schema would be taken back, and with it is lost: " +
	"who made each access key; access keys that service accounts made are deleted"

// `migrate down` asks where it would lose data. Without a terminal nobody can be asked: it says what would be lost, and changes nothing.
func TestMigrateDownLosesNothingUnlessItIsTold(t *testing.T) {
	t.Parallel()
	for name, insert := range holdings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := holding(t, insert)
			env := map[string]string{"DATABASE_URL": database.Reveal()}
			before := schemaOf(t, database)
			p := spawn(t, env, "y\n", "migrate", "down") // an answer that nobody was asked for
			want := "server: " + lossOfNewest + ". Nothing was changed; --yes does it\n"
			if code := p.code(); code != 2 || p.stdout.String() != "" || p.stderr.String() != want {
				t.Errorf("exit code %d, stdout %q, stderr %q, want %q", code, p.stdout, p.stderr, want)
			}
			if after := schemaOf(t, database); after != before || versionOf(t, database) != "4" {
				t.Errorf("version %s, the schema was\n%s\nand is\n%s", versionOf(t, database), before, after)
			}
			for _, want := range []string{"3\n", "2\n", "1\n", "0\n"} {
				if out, log, err := cli(t, env, "", "migrate", "down", "--yes"); err != nil || out != want {
					t.Fatalf("migrate down --yes: %q, want %q: %v\n%s", out, want, err, log)
				}
			}
		})
	}
}

// A schema that holds nothing is taken back without a question.
func TestMigrateDownDoesNotAskAboutAnEmptySchema(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": pgtest.Migrated(t).Reveal()}
	for _, want := range []string{"6\n", "5\n", "4\n", "3\n", "2\n", "1\n", "0\n", "0\n"} {
		if out, log, err := cli(t, env, "", "migrate", "down"); err != nil || out != want {
			t.Fatalf("migrate down: %q, want %q: %v\n%s", out, want, err, log)
		}
	}
}

// Whichever step is the newest, the refusal names it and what is lost with it.
func TestMigrateDownNamesTheStepAndItsLoss(t *testing.T) {
	t.Parallel()
	database := holding(t, holdings["a customer"])
	env := map[string]string{"DATABASE_URL": database.Reveal()}
	for _, want := range []string{
		"version 4 of the schema would be taken back, and with it is lost: who made each access key; " +
			"access keys that service accounts made are deleted",
		"version 3 of the schema would be taken back, and with it is lost: when each access key was used last",
		"version 2 of the schema would be taken back, and with it is lost: sign-ups under way and service accounts with their key pairs; " +
			"access keys of agents, and those with fewer rights than an admin, are deleted",
		"version 1 of the schema would be taken back, and with it is lost: every customer, agent and access key",
	} {
		_, _, err := cli(t, env, "", "migrate", "down")
		if _, is := errors.AsType[config.UsageError](err); !is || err.Error() != want+". Nothing was changed; --yes does it" {
			t.Errorf("migrate down: %v\nwant %s", err, want)
		}
		if out, log, err := cli(t, env, "", "migrate", "down", "--yes"); err != nil {
			t.Fatalf("migrate down --yes: %q: %v\n%s", out, err, log)
		}
	}
	if out, _, err := cli(t, env, "", "migrate", "down"); out != "0\n" || err != nil {
		t.Errorf("migrate down of nothing: %q, %v", out, err)
	}
}

// Each migration says what is lost without it.
func TestEveryMigrationSaysWhatItsWayBackLoses(t *testing.T) {
	t.Parallel()
	steps, err := fs.Glob(migrations.Files, "*.down.sql")
	if err != nil || len(steps) == 0 {
		t.Fatal(steps, err)
	}
	said := map[string]bool{lostWith(0): true} // which stands for a version that is not known
	for i, step := range steps {
		if !postgres.LosesData(i + 1) {
			continue
		}
		lost := lostWith(i + 1)
		if lost == "" || said[lost] || strings.HasSuffix(lost, ".") {
			t.Errorf("what is lost with %s: %q", step, lost)
		}
		said[lost] = true
	}
}

// A step that only a newer program knows is not taken back, agreed or not.
func TestMigrateDownLeavesANewerSchemaAlone(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	sql(t, database, holdings["a customer"])
	sql(t, database, `UPDATE accesskeys_migrations SET version = 999`)
	before := schemaOf(t, database)
	for _, args := range []string{"migrate down", "migrate down --yes"} {
		_, _, err := cli(t, map[string]string{"DATABASE_URL": database.Reveal()}, "", strings.Fields(args)...)
		if err == nil || !strings.HasPrefix(err.Error(), "migrating the database, which is left as it was: ") {
			t.Errorf("%s: %v", args, err)
		}
	}
	if after := schemaOf(t, database); after != before || versionOf(t, database) != "999" {
		t.Errorf("version %s, the schema was\n%s\nand is\n%s", versionOf(t, database), before, after)
	}
}

func versionOf(t *testing.T, database secret.Value) string {
	t.Helper()
	out, _, err := cli(t, map[string]string{"DATABASE_URL": database.Reveal()}, "", "migrate", "version")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
