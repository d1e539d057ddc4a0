package store_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/migrations"
)

// stepsUpTo are the steps up to a version.
func stepsUpTo(t *testing.T, version int) fs.FS {
	t.Helper()
	steps := copied(t)
	maps.DeleteFunc(steps, func(name string, _ *fstest.MapFile) bool {
		return name[:6] > strings.Repeat("0", 5)+string(rune('0'+version))
	})
	return steps
}

// madeBefore is a database with data as a program of before left it, at a version up to 3.
func madeBefore(t *testing.T, version int) *fixture {
	t.Helper()
	w := fixtureOn(t, pgtest.Empty(t))
	must(migrator(w.url, slog.New(slog.DiscardHandler), stepsUpTo(t, version), patience).Up(t.Context()))(t)
	w.exec(`ALTER TABLE accesskeys_migrations RENAME TO schema_migrations`)
	const customers = `INSERT INTO customers (id, name, detail, email) VALUES ('00000000-0000-4000-8000-000000000001', 'Acme', 'of before', 'e@x')`
	w.exec(customers)
	w.exec(`INSERT INTO agents (id, customer_id, username, password_hash, name, detail, permission)
		SELECT '00000000-0000-4000-8000-000000000002', id, 'alice', '$2a$10$x', 'n', 'agent of before', 32 FROM customers`)
	w.exec(`INSERT INTO accesskeys (id, customer_id, name, detail, token_hash, token_prefix, tm_expire)
		SELECT '00000000-0000-4000-8000-000000000003', id, 'k', 'key of before', sha256('k'), 'vb_12345678', '2100-01-01' FROM customers`)
	if version > 1 {
		w.exec(`INSERT INTO accesskeys (id, customer_id, agent_id, roles, token_hash, token_prefix, tm_expire, tm_delete)
			SELECT '00000000-0000-4000-8000-000000000004', customer_id, id, '{agent_viewer}', sha256('u'), 'vb_12345678', '2100-01-01', now() FROM agents`)
		w.exec(`INSERT INTO service_accounts (id, customer_id, name, detail, roles)
			SELECT '00000000-0000-4000-8000-000000000005', id, 's', 'account of before', '{customer_admin}' FROM customers`)
		w.exec(`INSERT INTO service_account_keys (id, account_id, algorithm, public_key)
			SELECT '00000000-0000-4000-8000-000000000006', id, 'ES256', 'public' FROM service_accounts`)
		w.exec(`INSERT INTO signups (id, temp_token_hash, code_hash, email, name, known, tm_expire)
			VALUES (gen_random_uuid(), sha256('t'), sha256('c'), 'new@x', 'n', false, '2100-01-01')`)
	}
	if version > 2 {
		w.exec(`INSERT INTO replicas (id, seq, lease_ms, position) VALUES (gen_random_uuid(), 7, 2000, 0)`)
		w.exec(`INSERT INTO accesskey_uses (accesskey_id, tm_last_used) SELECT id, now() FROM accesskeys WHERE name = 'k'`)
		w.exec(`UPDATE agents SET name = 'changed'`) // which is in the log
	}
	return w
}

// said is what verification and lists read of each row, in an order.
func (w *fixture) said() string {
	w.t.Helper()
	description := "detail"
	if value[bool](w, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'customers'::regclass AND attname = 'description')`) {
		description = "description"
	}
	return value[string](w, `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT concat_ws(' ', 'customer', id, name, `+description+`, email, tm_create, tm_update, tm_delete) AS line FROM customers UNION ALL
		SELECT concat_ws(' ', 'agent', id, customer_id, username, password_hash, name, `+description+`, permission, tm_password, tm_delete) FROM agents UNION ALL
		SELECT concat_ws(' ', 'key', id, customer_id, name, `+description+`, token_prefix, tm_expire, tm_update, tm_delete) FROM accesskeys
	) lines`)
}

// A database of every earlier version with data in it becomes one of the newest schema, whole; what was in it says the same, and it can
// be gone back from step by step, and up again.
func TestDatabaseOfAnEarlierVersionUpgradesWhole(t *testing.T) {
	t.Parallel()
	number := regexp.MustCompile(`(?m)^(column \S+) \d+ `) // counts columns that have gone
	shape := func(fingerprint string) string {
		return strings.Join(slices.DeleteFunc(strings.Split(number.ReplaceAllString(fingerprint, "$1 "), "\n"), func(line string) bool {
			return strings.HasPrefix(line, "row customers") || line == ""
		}), "\n")
	}
	fresh := fingerprint(fixtureOn(t, pgtest.Migrated(t)))
	for version := 1; version <= 3; version++ {
		t.Run(string(rune('0'+version)), func(t *testing.T) {
			t.Parallel()
			w := madeBefore(t, version)
			before, log := w.said(), slog.New(slog.DiscardHandler)
			if got := must(postgres.SchemaVersion(t.Context(), w.url))(t); got != version {
				t.Fatalf("it is taken for version %d", got)
			}
			for round := range 2 {
				if got := must(store.Migrator(w.url, log).Up(t.Context()))(t); got != newestStep(t) {
					t.Fatalf("upgraded to %d", got)
				}
				if got := shape(fingerprint(w)); got != shape(fresh) {
					t.Errorf("round %d: the schema is\n%s\ninstead of\n%s", round, got, shape(fresh))
				}
				if after := w.said(); after != before {
					t.Errorf("round %d: the rows said\n%s\nand say\n%s", round, before, after)
				}
				s := open(t, w.url)
				if i := must(s.Log.Inspect(t.Context()))(t); len(i.BrokenTriggers) != 0 || i.Outdated {
					t.Errorf("round %d: inspected as %+v", round, i)
				}
				// A server of before may still trust what it has under its lease: it is waited for, and acknowledges nothing.
				waited := must(s.Log.Instances(t.Context()))(t)
				if (len(waited) == 1) != (version == 3) || len(waited) == 1 && (waited[0].Seq != 7 || waited[0].Lease != 2*time.Second) {
					t.Errorf("round %d: waited for are %+v", round, waited)
				}
				if value[bool](w, `SELECT EXISTS (SELECT FROM instances i JOIN changes c USING (position, entry))`) {
					t.Errorf("round %d: it is taken to have acknowledged", round)
				}
				feed := must(s.Log.OpenFeed(t.Context()))(t)
				if news := must(feed.ReadSince(t.Context(), uuid.New(), w.head()))(t); !news.Continues {
					t.Errorf("round %d: the log does not go on: %+v", round, news)
				}
				feed.Close()
				if got := must(s.Agent(t.Context(), uuid.MustParse("00000000-0000-4000-8000-000000000002")))(t); got.Detail != "agent of before" {
					t.Errorf("round %d: the agent is %+v", round, got)
				}
				s.Close()
				// Back, and once more.
				for want := newestStep(t) - 1; want >= 3; want-- {
					if got := must(store.Migrator(w.url, log).Down(t.Context()))(t); got != want {
						t.Fatalf("one step down leads to %d, want %d", got, want)
					}
				}
				if !value[bool](w, `SELECT to_regclass('schema_migrations') IS NOT NULL AND to_regclass('accesskeys_migrations') IS NULL`) {
					t.Error("who goes back finds no schema_migrations")
				}
				if after := w.said(); after != before {
					t.Errorf("round %d: back the rows said\n%s\nand say\n%s", round, before, after)
				}
			}
		})
	}
}

// A program of before is shut out of the newest schema: its statements find no column, its heartbeats no table, its start no version.
func TestProgramsOfBeforeAreShutOut(t *testing.T) {
	t.Parallel()
	statements := map[string]string{
		"looking a key up":     `SELECT id, customer_id, agent_id, roles, tm_expire, tm_delete FROM accesskeys WHERE token_hash = sha256('k')`,
		"looking an agent up":  `SELECT a.id, a.customer_id, a.username, a.name, a.detail, a.permission FROM agents a`,
		"deleting a key":       `UPDATE accesskeys SET tm_delete = now() WHERE name = 'k' RETURNING id, detail`,
		"deleting a customer":  `UPDATE customers SET tm_delete = now() RETURNING id, detail`,
		"changing an account":  `UPDATE service_accounts SET roles = '{}' RETURNING id, detail`,
		"a key":                `INSERT INTO accesskeys (id, customer_id, token_hash, token_prefix, tm_expire) SELECT gen_random_uuid(), id, sha256('n'), 'vb_12345678', '2100-01-01' FROM customers`,
		"a heartbeat":          `UPDATE replicas SET seq = seq + 1`,
		"its list of servers":  `SELECT position <= coalesce((SELECT min(position) FROM replicas), position) FROM change_head`,
		"its schema's version": `SELECT max(version) FROM schema_migrations`,
	}
	w := madeBefore(t, 3)
	for name, sql := range statements { // control
		tx := w.begin()
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Errorf("control: %s: %v", name, err)
		}
		_ = tx.Rollback(t.Context())
	}
	must(store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	before := w.rows()
	for name, sql := range statements {
		_, err := w.db.Exec(t.Context(), sql)
		if pg, is := errors.AsType[*pgconn.PgError](err); !is || pg.Code != "42703" && pg.Code != "42P01" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := w.rows(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
}

// Who goes back ends the keys that service accounts made: for programs of before nothing would bound them.
func TestGoingBackEndsTheKeysOfServiceAccounts(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	kinds := w.callerKinds(time.Time{})
	made := w.credential(newKey(w.acme, year), kinds["a service account"].caller)
	live := func() int { return value[int](w, `SELECT count(*) FROM accesskeys WHERE `+notDeleted) }
	before := live()
	w.downTo(3, migrations.Files)
	if ended := before - live(); ended != 3 || value[bool](w, `SELECT `+notDeleted+` FROM accesskeys WHERE id = $1`, made.ID) {
		t.Errorf("%d keys have ended, want the three of accounts", ended)
	}
	must(store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	if value[bool](w, `SELECT `+notDeleted+` FROM accesskeys WHERE id = $1`, made.ID) {
		t.Error("up again it lives")
	}
}

// Other programs that use golang-migrate may have its table in the same schema: it is not taken for ours, and left alone, all the way up
// and down.
func TestMigrationsOfAnotherProgramAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	w.exec(`CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)`)
	w.exec(`INSERT INTO schema_migrations VALUES (20260101, true)`)
	log := slog.New(slog.DiscardHandler)
	theirs := func() string {
		return value[string](w, `SELECT string_agg(to_jsonb(m)::text, '') FROM schema_migrations m`)
	}
	before := theirs()
	if got := must(postgres.SchemaVersion(t.Context(), w.url))(t); got != 0 {
		t.Errorf("it is taken for version %d of ours", got)
	}
	for range 2 {
		if got := must(store.Migrator(w.url, log).Up(t.Context()))(t); got != newestStep(t) {
			t.Fatalf("migrated to %d", got)
		}
		if err := w.store.DB.Ready(t.Context()); err != nil {
			t.Errorf("beside it: %v", err)
		}
		for want := newestStep(t) - 1; want >= 0; want-- {
			if got := must(store.Migrator(w.url, log).Down(t.Context()))(t); got != want {
				t.Fatalf("down to %d, want %d", got, want)
			}
			if got := must(postgres.SchemaVersion(t.Context(), w.url))(t); got != want {
				t.Fatalf("back at %d, want %d", got, want)
			}
		}
		if after := theirs(); after != before {
			t.Errorf("theirs was %s and is %s", before, after)
		}
	}
	if left := value[int](w, `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'`); left != 1 {
		t.Errorf("%d tables are left", left)
	}
}

// A database with tables of other programs by our names is refused with one line, and left as it is.
func TestTablesOfAnotherProgramAreLeftAlone(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for _, sql := range []string{
		`CREATE TABLE customers (id int)`, `CREATE TABLE instances (id int)`, `CREATE VIEW agents AS SELECT 1`, `CREATE SEQUENCE changes`,
		`CREATE TABLE accesskeys (id int); CREATE TABLE customers (id int); CREATE TABLE agents (id int);
		 CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL); INSERT INTO schema_migrations VALUES (3, false)`,
	} {
		w := fixtureOn(t, pgtest.Empty(t))
		for statement := range strings.SplitSeq(sql, ";") {
			w.exec(statement)
		}
		before := fingerprint(w)
		_, err := store.Migrator(w.url, log).Up(t.Context())
		wantError(t, sql, err, postgres.ErrForeign)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", sql, err)
		}
		if after := fingerprint(w); after != before {
			t.Errorf("%s: the schema was\n%s\nand is\n%s", sql, before, after)
		}
	}
	// Control: in a schema of its own it has room beside them.
	w := fixtureOn(t, pgtest.Empty(t))
	w.exec(`CREATE TABLE customers (id int)`)
	w.exec(`CREATE SCHEMA keys`)
	must(store.Migrator(withSetting(t, w.url, "search_path", "keys"), log).Up(t.Context()))(t)
}

// All names that the migrations use are looked for.
func TestEveryTableIsKnownAsOurs(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Migrated(t))
	ours := value[[]string](w, `SELECT array_agg(tablename::text ORDER BY tablename) FROM pg_tables
		WHERE schemaname = 'public' AND tablename <> 'accesskeys_migrations'`)
	for _, name := range ours {
		if !slices.Contains(postgres.Tables, name) {
			t.Errorf("%s is not looked for", name)
		}
	}
}

// A database that can't hold every text is refused.
func TestDatabaseThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	name := "latin_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	w.exec(`CREATE DATABASE ` + name + ` ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	defer w.exec(`DROP DATABASE ` + name + ` WITH (FORCE)`)
	_, err := store.Migrator(secret.New(w.url.Reveal()+"&dbname="+name), slog.New(slog.DiscardHandler)).Up(t.Context())
	wantError(t, "LATIN1", err, postgres.ErrEncoding)
}
