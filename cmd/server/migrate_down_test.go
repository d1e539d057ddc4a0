package main

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

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
func holding(t *testing.T, row string) (database secret.Value, env map[string]string) {
	t.Helper()
	database = pgtest.Migrated(t)
	sql(t, database, row)
	env = map[string]string{"DATABASE_URL": database.Reveal()}
	for _, version := range []string{"6\n", "5\n", "4\n"} {
		prints(t, env, version, "migrate", "down")
	}
	return database, env
}

// loss is what is said of each step that loses something.
var loss = []string{
	4: "version 4 of the schema would be taken back, and with it is lost: who made each access key; " +
		"access keys that service accounts made are deleted",
	3: "version 3 of the schema would be taken back, and with it is lost: when each access key was used last",
	2: "version 2 of the schema would be taken back, and with it is lost: sign-ups under way and service accounts with their key pairs; " +
		"access keys of agents, and those with fewer rights than an admin, are deleted",
	1: "version 1 of the schema would be taken back, and with it is lost: every customer, agent and access key",
}

// `migrate down` asks where it would lose data. Without a terminal nobody can be asked: it says what would be lost, and changes nothing.
func TestMigrateDownLosesNothingUnlessItIsTold(t *testing.T) {
	t.Parallel()
	for name, insert := range holdings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database, env := holding(t, insert)
			for version := 4; version > 0; version-- {
				if version > 1 || name != "a sign-up" { // which has gone with version 2
					before := schemaOf(t, database)
					p := spawn(t, env, "y\n", "migrate", "down") // an answer that nobody was asked for
					p.fails(2, loss[version]+". Nothing was changed; --yes does it")
					if after := schemaOf(t, database); after != before || versionOf(t, database) != fmt.Sprint(version) {
						t.Errorf("version %s, the schema was\n%s\nand is\n%s", versionOf(t, database), before, after)
					}
				}
				prints(t, env, fmt.Sprintln(version-1), "migrate", "down", "--yes")
			}
		})
	}
}

// Each migration says what is lost without it.
func TestEveryMigrationSaysWhatItsWayBackLoses(t *testing.T) {
	t.Parallel()
	steps := must(fs.Glob(migrations.Files, "*.down.sql"))(t)
	if len(steps) == 0 {
		t.Fatal("there are no steps")
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

// Where a newer program has migrated already, this one, still being replaced, leaves the schema as it is and serves. A step that only the
// newer one knows is not taken back, agreed or not.
func TestNewerSchemaIsServedAndLeftAlone(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	sql(t, database, `UPDATE accesskeys_migrations SET version = 999`)
	p := served(t, database, nil)
	bootstrapWorks(t, p.base())
	ok(t, p.end())
	before := schemaOf(t, database)
	for _, args := range []string{"migrate down", "migrate down --yes"} {
		_, _, err := cli(t, environment(database, nil), "", strings.Fields(args)...)
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
	ok(t, err)
	return strings.TrimSpace(out)
}

// schemaOf describes columns, indexes and constraints.
func schemaOf(t *testing.T, database secret.Value) string {
	t.Helper()
	return sql(t, database, `
		SELECT string_agg(line, E'\n' ORDER BY line) FROM (
			SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
			FROM information_schema.columns WHERE table_schema = 'public'
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
			UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
			FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		) AS l (line)`)
}
