package store_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// nouns are the tables whose changes are logged.
func nouns() []string {
	return []string{"accesskeys", "agents", "customers", "service_accounts", "service_account_keys"}
}

// revisions are the writes that change what may be remembered.
func revisions() (names []string) {
	for name := range callersWrites() {
		if !strings.HasPrefix(name, "Create") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// withoutTriggers are ways in which no statement trigger fires.
func withoutTriggers() map[string]func(*fixture) *store.Store {
	ways := map[string]func(*fixture) *store.Store{
		"a setting of the address": func(w *fixture) *store.Store {
			return open(w.t, withSetting(w.t, w.url, "session_replication_role", "replica"))
		},
		"a setting of the database": func(w *fixture) *store.Store {
			w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica', current_database()); END $$`)
			return open(w.t, w.url)
		},
	}
	for _, which := range []string{"ALL", "USER"} {
		ways["disabled triggers, "+which] = func(w *fixture) *store.Store {
			for _, noun := range nouns() {
				w.exec(`ALTER TABLE ` + noun + ` DISABLE TRIGGER ` + which)
			}
			return open(w.t, w.url)
		}
	}
	return ways
}

// Where no trigger fires, a change that the store makes is in the log all the same: as one to everything. Control: without that
// function of the schema none is.
func TestChangeIsLoggedWhereNoTriggerFires(t *testing.T) {
	t.Parallel()
	for way, take := range withoutTriggers() {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			s := take(w)
			logs := func(name string) int64 {
				on := w.makeTargets(must(s.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "c"}))(t))
				before := w.head().Number
				if err := callersWrites()[name](t.Context(), s, store.Operator(), on); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				return w.head().Number - before
			}
			for _, name := range revisions() {
				if n := logs(name); n != 1 {
					t.Errorf("%s has %d entries, want one", name, n)
				}
				if e := w.log(); e[len(e)-1].Subjects != nil {
					t.Errorf("%s is logged as %+v", name, e[len(e)-1])
				}
			}
			login := must(s.AgentByUsername(t.Context(), w.createAgent(w.globex, "login").Username, netip.Prefix{}))(t)
			before := w.head().Number
			if err := s.RenewPasswordHash(t.Context(), login, secret.New(passwordHash+"renewed")); err != nil || w.head().Number != before+1 {
				t.Errorf("renewing a hash: %v, %d entries", err, w.head().Number-before)
			}
			// Control.
			w.exec(`CREATE OR REPLACE FUNCTION ensure_logged(changed text) RETURNS void LANGUAGE sql AS ''`)
			w.exec(`CREATE OR REPLACE FUNCTION log_everything() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
			for _, name := range revisions() {
				if n := logs(name); n != 0 {
					t.Errorf("control: %s has %d entries by itself", name, n)
				}
			}
		})
	}
}

// What is refused, or finds nothing to change, is not logged, with triggers or without.
func TestWhatChangesNothingIsNotLogged(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	plain := w.store
	replica := open(t, withSetting(t, w.url, "session_replication_role", "replica"))
	nothing := targets{
		customer: store.Customer{ID: uuid.New()}, agent: agentOf(w.acme.ID, uuid.New()), key: store.AccessKey{ID: uuid.New()},
		account: accountOf(w.acme.ID, uuid.New()), pair: store.ServiceAccountKey{ID: uuid.New()},
	}
	before := w.rows()
	for _, s := range []*store.Store{plain, replica} {
		for _, name := range revisions() {
			wantError(t, name, callersWrites()[name](t.Context(), s, store.Operator(), nothing), store.ErrNotFound)
		}
	}
	if after := w.rows(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
}

// Rows that an apply worker of logical replication changes, or somebody with triggers for replication alone, are in the log: one entry
// a transaction, however many there are. TRUNCATE is, whatever triggers fire.
func TestChangesOfAnApplyWorkerAreLoggedOnceATransaction(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire)
		SELECT gen_random_uuid(), $1, sha256(int8send(i)), 'vb_12345678', now() + interval '1 day' FROM generate_series(1, 3000) i`, w.acme.ID)
	account := w.createAccount(w.acme)
	w.createAccountKey(account)
	w.createAgent(w.acme, "alice")
	entries := func(role string, sql ...string) []entry {
		t.Helper()
		before := w.head().Number
		err := pgx.BeginFunc(t.Context(), w.db, func(tx pgx.Tx) error {
			for _, one := range append([]string{`SET LOCAL session_replication_role = ` + role}, sql...) {
				if _, err := tx.Exec(t.Context(), one); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		log := w.log()
		return log[len(log)-int(w.head().Number-before):]
	}
	for _, noun := range nouns() {
		got := entries("replica", `UPDATE `+noun+` SET tm_update = now()`, `UPDATE `+noun+` SET tm_update = now()`)
		if len(got) != 1 || got[0].Subjects != nil {
			t.Errorf("rows of %s are logged as %+v", noun, got)
		}
		if got := entries("origin", `UPDATE `+noun+` SET tm_update = now()`); len(got) != 1 || got[0].Noun != noun {
			t.Errorf("rows of %s without replication are logged as %+v", noun, got)
		}
	}
	if got := entries("replica", `DELETE FROM accesskeys`, `DELETE FROM service_account_keys`, `UPDATE agents SET name = 'n'`); len(got) != 1 || got[0].Subjects != nil {
		t.Errorf("rows that go are logged as %+v", got)
	}
	for _, role := range []string{"origin", "replica", "local"} {
		for _, noun := range nouns() {
			if got := entries(role, `TRUNCATE `+noun+` CASCADE`); len(got) != 1 || got[0].Subjects != nil {
				t.Errorf("TRUNCATE of %s under %s is logged as %+v", noun, role, got)
			}
		}
	}
	// Control: what has no trigger that fires is not logged.
	w.populate()
	w.exec(`ALTER TABLE customers DISABLE TRIGGER applied`)
	if got := entries("replica", `UPDATE customers SET tm_update = now()`); len(got) != 0 {
		t.Errorf("control: logged as %+v", got)
	}
}

// The functions find their tables whatever the search_path of the session that changes a row.
func TestChangesFromAnotherSearchPathAreLogged(t *testing.T) {
	t.Parallel()
	url := withSetting(t, pgtest.Empty(t), "search_path", "auth")
	w := fixtureOn(t, url)
	w.exec(`CREATE SCHEMA auth`)
	must(store.Migrator(url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	w.populate()
	on := w.makeTargets(w.acme)
	before := w.head().Number
	err := pgx.BeginFunc(t.Context(), w.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL search_path = public, pg_catalog`); err != nil {
			return err
		}
		for _, noun := range nouns() {
			if _, err := tx.Exec(t.Context(), `UPDATE auth.`+noun+` SET tm_update = now()`); err != nil {
				return err
			}
		}
		_, err := tx.Exec(t.Context(), `TRUNCATE auth.service_account_keys`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var logged []string
	for _, e := range w.log() {
		if e.Position > before {
			logged = append(logged, e.Noun)
		}
	}
	if want := append(nouns(), ""); !slices.Equal(logged, want) {
		t.Errorf("logged are %q, want %q", logged, want)
	}
	if err := callersWrites()["DeleteAgent"](t.Context(), w.store, store.Operator(), on); err != nil {
		t.Errorf("the store's own: %v", err)
	}
	if i := must(w.store.Log.Inspect(t.Context()))(t); len(i.BrokenTriggers) != 0 || i.Outdated || i.Elsewhere {
		t.Errorf("inspected as %+v", i)
	}
	w.exec(`ALTER TABLE auth.agents DISABLE TRIGGER changed`)
	if i := must(w.store.Log.Inspect(t.Context()))(t); !slices.Equal(i.BrokenTriggers, []string{"changed on agents"}) {
		t.Errorf("inspected as %+v", i)
	}
}

// Inspect names each trigger that is missing, or does not fire when it should, and nothing when all is well.
func TestInspectionNamesTriggersThatDoNotFire(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	broken := func() []string { return must(w.store.Log.Inspect(t.Context()))(t).BrokenTriggers }
	if got := broken(); len(got) != 0 {
		t.Errorf("of a fresh schema %q are broken", got)
	}
	wanted := map[string]string{"changed": "O", "removed": "O", "applied": "R", "emptied": "A"}
	check := func(table, trigger string, states ...string) {
		t.Helper()
		for _, sql := range states {
			tx := w.begin()
			if _, err := tx.Exec(t.Context(), fmt.Sprintf(sql, table, trigger)); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := broken(), []string{trigger + " on " + table}; !slices.Equal(got, want) {
				t.Errorf("after %s: %q are broken, want %q", fmt.Sprintf(sql, table, trigger), got, want)
			}
		}
	}
	const disable, replica, enable = `ALTER TABLE %s DISABLE TRIGGER %s`, `ALTER TABLE %s ENABLE REPLICA TRIGGER %s`, `ALTER TABLE %s ENABLE TRIGGER %s`
	for _, noun := range nouns() {
		for trigger, state := range wanted {
			back := map[string]string{"O": enable, "R": replica, "A": `ALTER TABLE %s ENABLE ALWAYS TRIGGER %s`}[state]
			check(noun, trigger, disable)
			switch state {
			case "O":
				check(noun, trigger, replica)
			case "R":
				check(noun, trigger, enable)
			case "A":
				check(noun, trigger, replica, enable)
			}
			w.exec(fmt.Sprintf(back, noun, trigger))
			if got := broken(); len(got) != 0 {
				t.Errorf("with %s on %s back, %q are broken", trigger, noun, got)
			}
		}
	}
	for _, table := range []string{"changes", "change_head", "instances"} {
		for _, trigger := range []string{"guarded", "guarded_emptying"} {
			check(table, trigger, disable, replica, enable, `DROP TRIGGER %[2]s ON %[1]s`)
			w.exec(fmt.Sprintf(`CREATE TRIGGER %s BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION guard_internals();
				ALTER TABLE %[2]s ENABLE ALWAYS TRIGGER %[1]s`, trigger, table))
		}
	}
}

// The log and the list of instances are not changed by hand, whatever triggers fire. A session that says that it is one of us may; so does the
// store, all the time.
func TestInternalTablesCannotBeChangedByHand(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.standIn(time.Hour)
	w.createAgent(w.acme, "alice")
	w.exec(`UPDATE agents SET name = 'n'`)
	before := w.rows() + fmt.Sprint(w.log())
	statements := map[string]string{
		"inserting a change": `INSERT INTO changes (position, entry, noun) VALUES (100, gen_random_uuid(), '')`, "changing one": `UPDATE changes SET noun = ''`,
		"deleting changes": `DELETE FROM changes`, "emptying them": `TRUNCATE changes`,
		"moving the head": `UPDATE change_head SET position = 0`, "deleting it": `DELETE FROM change_head`, "emptying it": `TRUNCATE change_head`,
		"another head": `INSERT INTO change_head (position, entry) VALUES (0, gen_random_uuid())`,
		"registering":  `INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT gen_random_uuid(), 1, 1, position, entry FROM change_head`,
		"a heartbeat":  `UPDATE instances SET seq = seq + 1`, "removing instances": `DELETE FROM instances`, "emptying the list": `TRUNCATE instances`,
		"all of them": `TRUNCATE changes, change_head, instances`,
	}
	for _, role := range []string{"origin", "replica", "local"} {
		for name, sql := range statements {
			tx := w.begin()
			if _, err := tx.Exec(t.Context(), `SET LOCAL session_replication_role = `+role); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "can't be changed by hand") {
				t.Errorf("%s under %s: %v", name, role, err)
			}
			_ = tx.Rollback(t.Context())
		}
	}
	if after := w.rows() + fmt.Sprint(w.log()); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
	for name, sql := range statements { // control
		tx := w.begin()
		if _, err := tx.Exec(t.Context(), `SET LOCAL accesskeys.internal = 'on'`); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), sql); err != nil && name != "another head" {
			t.Errorf("control: %s: %v", name, err)
		}
		_ = tx.Rollback(t.Context())
	}
}

// A log that somebody has damaged is made whole, and goes on: nobody's position from before counts any more, none is used again for
// another change while it may be remembered, and each change counts up from there.
func TestDamagedLogIsHealed(t *testing.T) {
	t.Parallel()
	const empty = `ALTER TABLE changes DISABLE TRIGGER USER; ALTER TABLE change_head DISABLE TRIGGER USER; `
	for what, damage := range map[string]string{
		"changes emptied":      empty + `TRUNCATE changes`,
		"head emptied":         empty + `TRUNCATE change_head`,
		"both emptied":         empty + `TRUNCATE changes, change_head`,
		"head altered":         empty + `UPDATE change_head SET entry = gen_random_uuid()`,
		"head moved back":      empty + `UPDATE change_head SET position = position - 2`,
		"newest entry deleted": empty + `DELETE FROM changes WHERE position = (SELECT max(position) FROM changes)`,
		"newest entry altered": empty + `UPDATE changes SET entry = gen_random_uuid() WHERE position = (SELECT max(position) FROM changes)`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			for range 5 {
				w.exec(`UPDATE customers SET tm_update = now()`)
			}
			feed := must(w.store.Log.OpenFeed(t.Context()))(t)
			defer feed.Close()
			id, known := uuid.New(), w.head()
			if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: id, Seq: 1, Lease: time.Second, Applied: known}); !held || err != nil {
				t.Fatalf("a heartbeat: %v, %v", held, err)
			}
			w.exec(damage)
			w.exec(`ALTER TABLE changes ENABLE ALWAYS TRIGGER guarded; ALTER TABLE change_head ENABLE ALWAYS TRIGGER guarded;
				ALTER TABLE changes ENABLE ALWAYS TRIGGER guarded_emptying; ALTER TABLE change_head ENABLE ALWAYS TRIGGER guarded_emptying`)
			if what == "head moved back" { // the next number is in use: that is nothing wrong with what is written
				_, err := w.revoking(w.store, w.createKey(w.acme))
				wantError(t, "a revocation", err, store.ErrUnavailable)
			}
			for range 2 { // the second time there is nothing to do
				if err := feed.Heal(t.Context(), 7*time.Second); err != nil {
					t.Fatalf("healing: %v", err)
				}
			}
			news, err := feed.ReadSince(t.Context(), id, known)
			if what == "head moved back" { // nothing was lost
				if err != nil || !news.Continues || news.Head != known {
					t.Errorf("from before: %+v, %v", news, err)
				}
				return
			}
			// Either nothing is known of what was before, or all of it and that everything may have changed.
			if forgets := !news.Continues || len(news.Changes) == 1 && news.Changes[0].Subjects == nil; err != nil || !forgets || news.Head == known {
				t.Errorf("from before: %+v, %v", news, err)
			}
			if news.Continues != (what == "head emptied" || what == "head altered") {
				t.Errorf("from before it continues: %v", news.Continues)
			}
			if news.WentBack != strings.Contains(what, "newest entry altered") || news.Head.Number <= known.Number {
				t.Errorf("the log went back: %v", news.WentBack)
			}
			if log := w.log(); log[len(log)-1].Position != news.Head.Number || log[len(log)-1].Entry != news.Head.Entry || log[len(log)-1].Subjects != nil {
				t.Errorf("the head is %+v, and the newest entry %+v", news.Head, log[len(log)-1])
			}
			if strings.Contains(what, "head emptied") && value[int64](w, `SELECT lease_ms FROM change_head`) != 7000 {
				t.Error("the longest lease is lost")
			}
			if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: id, Seq: 2, Lease: time.Second, Applied: known}); held != news.Continues || err != nil {
				t.Errorf("a heartbeat at the position from before: %v, %v", held, err)
			}
			if held, err := feed.Heartbeat(t.Context(), changelog.Beat{ID: id, Seq: 3, Lease: time.Second, Applied: news.Head}); !held || err != nil {
				t.Errorf("a heartbeat at the new one: %v, %v", held, err)
			}
			w.exec(`UPDATE customers SET tm_update = now()`)
			if next, err := feed.ReadSince(t.Context(), id, news.Head); err != nil || !next.Continues || len(next.Changes) != 1 {
				t.Errorf("after it: %+v, %v", next, err)
			}
		})
	}
}
