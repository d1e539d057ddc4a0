package store_test

import (
	"errors"
	"fmt"
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

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/migrations"
)

// Contract, section 4: an access key of the customer acts as CustomerAdmin: for a program from before keys had owners and roles every key
// does. So who goes back to it ends the keys that may do less, and a later migration does not revive them.
func TestGoingBackBeforeUserKeysEndsThemAndLimitedKeys(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(k *store.NewAccessKey, alice store.Agent)
		ends   bool
	}{
		"the customer's":                  {func(*store.NewAccessKey, store.Agent) {}, false},
		"an admin account's":              {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{"customer_admin"} }, false},
		"an agent's":                      {func(k *store.NewAccessKey, a store.Agent) { k.AgentID = &a.ID }, true},
		"a viewing account's":             {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{"accesskey_viewer"} }, true},
		"that of an account without role": {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{} }, true},
		"that of all roles but one": {func(k *store.NewAccessKey, _ store.Agent) {
			k.Roles = []string{"accesskey_admin", "accesskey_viewer", "agent_admin", "agent_viewer"}
		}, true},
	}
	setUp := func() *fixture {
		t.Helper()
		w := newFixture(t)
		for name, test := range tests {
			for _, customer := range []store.Customer{w.acme, w.globex} {
				k := newKey(customer, year)
				k.Name = name + " of " + customer.Name
				test.change(&k, w.createAgent(customer, uuid.NewString()))
				must(w.store.CreateAccessKey(t.Context(), operator, k))(t)
			}
		}
		return w
	}
	live := func(w *fixture) []string {
		return value[[]string](w, `SELECT array_agg(name ORDER BY name COLLATE "C") FROM accesskeys WHERE `+notDeleted)
	}
	var want []string
	for name, test := range tests {
		if !test.ends {
			want = append(want, name+" of Acme", name+" of Globex")
		}
	}
	slices.Sort(want)

	w := setUp()
	id := value[uuid.UUID](w, `SELECT id FROM accesskeys WHERE name = 'an agent''s of Acme'`)
	early := must(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, id))(t)
	w.downTo(1, migrations.Files)
	wantEqual(t, "live after the way down", live(w), want)
	w.wantTrue("a key deleted before stays so", `SELECT tm_delete = $2 AND tm_update = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete)
	wantEqual(t, "keys that stay were touched", value[int](w, `SELECT count(*) FROM accesskeys WHERE tm_update <> tm_create AND `+notDeleted), 0)
	w.up()
	wantEqual(t, "live up again", live(w), want)

	// Control: without that statement of the step they all would be their customers' admins.
	const step = "000002_callers.down.sql"
	text := string(must(migrations.Files.ReadFile(step))(t))
	without := regexp.MustCompile(`(?s)UPDATE accesskeys.*?;`).ReplaceAllString(text, "")
	fatalIf(t, without == text, "the step has no such statement")
	steps := copied(t)
	steps[step] = &fstest.MapFile{Data: []byte(without)}
	w = setUp()
	w.downTo(1, steps)
	wantEqual(t, "control: live without the statement", len(live(w)), 2*len(tests))
}

// Migrations up, down, up, step by step: each step down leads to the schema that the steps below it make.
func TestEachStepDownGivesTheSchemaOfTheStepsBelow(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Migrated(t))
	for version := newestStep(t) - 1; version > 0; version-- {
		w.downTo(version, migrations.Files)
		below := fixtureOn(t, pgtest.Empty(t))
		below.migrate(stepsUpTo(t, version))
		wantEqual(t, fmt.Sprintf("the schema of version %d", version), fingerprint(w), fingerprint(below))
	}
}

// Expand, then contract: the program before the callers ran on beside the one after them. What it wrote, it wrote without the columns that
// it did not know, and such a key is its customer's, also after all the steps that came later; keys that exist come through as they were.
func TestKeysFromBeforeStayTheirCustomers(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 3} {
		w := newFixture(t)
		old, k := newKey(w.acme, year), newKey(w.acme, year)
		key := must(w.store.CreateAccessKey(t.Context(), operator, old))(t)
		w.downTo(version, migrations.Files)
		w.exec(`INSERT INTO accesskeys (id, customer_id, name, detail, token_hash, token_prefix, tm_expire)
			VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))`,
			uuid.New(), k.CustomerID, k.Name, k.Detail, k.TokenHash[:], k.TokenPrefix, float64(k.Expire))
		w.up()
		reopened := open(t, w.url)
		got := must(keyByHash(t.Context(), reopened, old.TokenHash, changelog.Position{}))(t)
		wantEqual(t, "the key", got.AccessKey, key)
		wantEqual(t, "its roles", got.Roles, []string{"customer_admin"})
		got = must(keyByHash(t.Context(), reopened, k.TokenHash, changelog.Position{}))(t)
		if got.AgentID != nil || !slices.Equal(got.Roles, []string{"customer_admin"}) || got.Detail != k.Detail {
			t.Errorf("the key of version %d reads as %+v", version, got)
		}
	}
}

// downTo takes back the steps above a version.
func (w *fixture) downTo(version int, steps fs.FS) {
	w.t.Helper()
	for at := newestStep(w.t); at > version; {
		below := must(quietly(w.url, steps).Down(w.t.Context()))(w.t)
		fatalIf(w.t, below >= at, "the step down leads from %d to %d", at, below)
		at = below
	}
}

// stepsUpTo are the steps up to a version.
func stepsUpTo(t *testing.T, version int) fs.FS {
	t.Helper()
	steps := copied(t)
	maps.DeleteFunc(steps, func(name string, _ *fstest.MapFile) bool { return name >= fmt.Sprintf("%06d", version+1) })
	return steps
}

// madeBefore is a database with data as a program of before left it, at a version up to 3.
func madeBefore(t *testing.T, version int) *fixture {
	t.Helper()
	w := fixtureOn(t, pgtest.Empty(t))
	w.migrate(stepsUpTo(t, version))
	w.exec(`ALTER TABLE accesskeys_migrations RENAME TO schema_migrations`)
	w.exec(`INSERT INTO customers (id, name, detail, email) VALUES ('00000000-0000-4000-8000-000000000001', 'Acme', 'of before', 'e@x')`)
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
			before := w.said()
			w.wantVersion(version)
			for round := range 2 {
				wantEqual(t, "the version", w.up(), newestStep(t))
				wantEqual(t, fmt.Sprintf("round %d: the schema", round), shape(fingerprint(w)), shape(fresh))
				wantEqual(t, fmt.Sprintf("round %d: what the rows say", round), w.said(), before)
				s := open(t, w.url)
				if i := must(s.Log.Inspect(t.Context()))(t); len(i.BrokenTriggers) != 0 || i.Outdated {
					t.Errorf("round %d: inspected as %+v", round, i)
				}
				// A server of before may still trust what it has under its lease: it is waited for, and acknowledges nothing.
				waited := must(s.Log.Instances(t.Context()))(t)
				if (len(waited) == 1) != (version == 3) || len(waited) == 1 && (waited[0].Seq != 7 || waited[0].Lease != 2*time.Second) {
					t.Errorf("round %d: waited for are %+v", round, waited)
				}
				w.wantTrue("nobody has acknowledged", `SELECT NOT EXISTS (SELECT FROM instances i JOIN changes c USING (position, entry))`)
				feed := must(s.Log.OpenFeed(t.Context()))(t)
				news := must(feed.ReadSince(t.Context(), uuid.New(), w.head()))(t)
				errorIf(t, !news.Continues, "round %d: the log does not go on: %+v", round, news)
				feed.Close()
				agent := must(s.Agent(t.Context(), uuid.MustParse("00000000-0000-4000-8000-000000000002")))(t)
				wantEqual(t, "the agent's detail", agent.Detail, "agent of before")
				s.Close()
				// Back, and once more.
				for want := newestStep(t) - 1; want >= 3; want-- {
					wantEqual(t, "the version below", w.down(), want)
				}
				w.wantTrue("the way back has schema_migrations",
					`SELECT to_regclass('schema_migrations') IS NOT NULL AND to_regclass('accesskeys_migrations') IS NULL`)
				wantEqual(t, fmt.Sprintf("round %d: what the rows say, back", round), w.said(), before)
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
		wantError(t, "control: "+name, errorOf(tx.Exec(t.Context(), sql)), nil)
		_ = tx.Rollback(t.Context())
	}
	w.up()
	before := w.rows()
	for name, sql := range statements {
		_, err := w.db.Exec(t.Context(), sql)
		pg, is := errors.AsType[*pgconn.PgError](err)
		errorIf(t, !is || pg.Code != "42703" && pg.Code != "42P01", "%s: %v", name, err)
	}
	wantEqual(t, "the rows", w.rows(), before)
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
	w.up()
	w.wantTrue("up again it is deleted", `SELECT NOT `+notDeleted+` FROM accesskeys WHERE id = $1`, made.ID)
}

// Other programs that use golang-migrate may have its table in the same schema: it is not taken for ours, and left alone.
func TestMigrationsOfAnotherProgramAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	w.exec(`CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)`)
	w.exec(`INSERT INTO schema_migrations VALUES (20260101, true)`)
	theirs := func() string {
		return value[string](w, `SELECT string_agg(to_jsonb(m)::text, '') FROM schema_migrations m`)
	}
	before := theirs()
	w.wantVersion(0)
	for range 2 {
		wantEqual(t, "the version", w.up(), newestStep(t))
		wantError(t, "beside it", w.store.DB.Ready(t.Context()), nil)
		for want := newestStep(t) - 1; want >= 0; want-- {
			wantEqual(t, "the version below", w.down(), want)
			w.wantVersion(want)
		}
		wantEqual(t, "theirs", theirs(), before)
	}
	left := value[int](w, `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'`)
	wantEqual(t, "tables left", left, 1)
}

// A database with tables of other programs by our names is refused with one line, and left as it is.
func TestTablesOfAnotherProgramAreLeftAlone(t *testing.T) {
	t.Parallel()

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
		err := errorOf(quietly(w.url, migrations.Files).Up(t.Context()))
		wantError(t, sql, err, postgres.ErrForeign)
		errorIf(t, err != nil && strings.Contains(err.Error(), "\n"), "%s: %v", sql, err)
		wantEqual(t, sql, fingerprint(w), before)
	}
	// Control: in a schema of its own it has room beside them.
	w := fixtureOn(t, pgtest.Empty(t))
	w.exec(`CREATE TABLE customers (id int)`)
	w.exec(`CREATE SCHEMA keys`)
	must(quietly(withSetting(t, w.url, "search_path", "keys"), migrations.Files).Up(t.Context()))(t)
}

// All names that the migrations use are looked for.
func TestEveryTableIsKnownAsOurs(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Migrated(t))
	ours := value[[]string](w, `SELECT array_agg(tablename::text ORDER BY tablename) FROM pg_tables
		WHERE schemaname = 'public' AND tablename <> 'accesskeys_migrations'`)
	for _, name := range ours {
		errorIf(t, !slices.Contains(postgres.Tables, name), "%s is not looked for", name)
	}
}

func TestDatabaseThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	name := "latin_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	w.exec(`CREATE DATABASE ` + name + ` ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	defer w.exec(`DROP DATABASE ` + name + ` WITH (FORCE)`)
	_, err := store.Migrator(secret.New(w.url.Reveal()+"&dbname="+name), slog.New(slog.DiscardHandler)).Up(t.Context())
	wantError(t, "LATIN1", err, postgres.ErrEncoding)
}
