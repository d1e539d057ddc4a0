package store_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

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

// Where no trigger fires, a change of the store's is logged all the same: as one to everything. Control: without that function none is.
func TestChangeIsLoggedWhereNoTriggerFires(t *testing.T) {
	t.Parallel()
	for way, take := range withoutTriggers() {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			s := take(w)
			logs := func(name string) int64 {
				on := w.makeTargets(must(s.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "c"}))(t))
				before := w.head().Number
				wantError(t, name, callersWrites()[name](t.Context(), s, operator, on), nil)
				return w.head().Number - before
			}
			for _, name := range revisions() {
				wantEqual(t, "entries of "+name, logs(name), 1)
				e := w.log()
				errorIf(t, e[len(e)-1].Subjects != nil, "%s is logged as %+v", name, e[len(e)-1])
			}
			login := must(s.AgentByUsername(t.Context(), w.createAgent(w.globex, "login").Username, netip.Prefix{}))(t)
			before := w.head().Number
			err := s.RenewPasswordHash(t.Context(), login, secret.New(passwordHash+"renewed"))
			errorIf(t, err != nil || w.head().Number != before+1, "renewing a hash: %v, %d entries", err, w.head().Number-before)
			// Control.
			w.exec(`CREATE OR REPLACE FUNCTION ensure_logged(changed text) RETURNS void LANGUAGE sql AS ''`)
			w.exec(`CREATE OR REPLACE FUNCTION log_everything() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
			for _, name := range revisions() {
				wantEqual(t, "control: entries of "+name+" by itself", logs(name), 0)
			}
		})
	}
}

// A write names the customer whose row it is, or the account whose key: what is another's, deleted or nobody's is not found, stays as it is,
// and is not logged, with triggers or without.
func TestWritesReachLiveRowsOfTheirOwnersOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	mine, theirs, gone := w.makeTargets(w.acme), w.makeTargets(w.globex), w.makeTargets(w.acme)
	gone.key = must(w.store.DeleteAccessKey(t.Context(), operator, w.acme.ID, gone.key.ID))(t)
	gone.agent = must(w.store.DeleteAgent(t.Context(), operator, gone.agent))(t)
	gone.pair = must(w.store.DeleteServiceAccountKey(t.Context(), operator, gone.account, gone.pair.ID))(t)
	gone.account = must(w.store.DeleteServiceAccount(t.Context(), operator, w.acme.ID, gone.account.ID))(t)
	lost := must(w.store.DeleteServiceAccountKey(t.Context(), operator, mine.account, w.createAccountKey(mine.account).ID))(t)
	for what, tm := range map[string][3]time.Time{
		"key": {gone.key.TmCreate, gone.key.TmUpdate, gone.key.TmDelete}, "agent": {gone.agent.TmCreate, gone.agent.TmUpdate, gone.agent.TmDelete},
		"account": {gone.account.TmCreate, gone.account.TmUpdate, gone.account.TmDelete}, "pair": {lost.TmCreate, lost.TmUpdate, lost.TmDelete},
	} {
		errorIf(t, !tm[2].Equal(tm[1]) || !tm[2].After(tm[0]), "a deleted %s has tm_create, tm_update and tm_delete %v", what, tm)
	}
	for _, on := range []*targets{&mine, &theirs} { // admins, but not the last ones
		w.createAgent(on.customer, uuid.NewString())
		on.agent = must(w.store.SetPermission(t.Context(), operator, on.agent, 32))(t)
	}
	nobody := store.Customer{ID: uuid.New()}
	before := w.rows()
	for what, on := range map[string]targets{
		"another customer's": {w.acme, agentOf(w.acme.ID, theirs.agent.ID), theirs.key, accountOf(w.acme.ID, theirs.account.ID), theirs.pair},
		"no customer's":      {nobody, agentOf(nobody.ID, mine.agent.ID), mine.key, accountOf(nobody.ID, mine.account.ID), mine.pair},
		"another account's":  {nobody, agentOf(w.acme.ID, uuid.Nil), store.AccessKey{}, accountOf(w.acme.ID, uuid.New()), mine.pair},
		"deleted":            gone,
		"none": {
			nobody, agentOf(w.acme.ID, uuid.New()), store.AccessKey{ID: uuid.New()}, accountOf(w.acme.ID, uuid.New()),
			store.ServiceAccountKey{ID: uuid.New()},
		},
	} {
		for _, s := range []*store.Store{w.store, open(t, withSetting(t, w.url, "session_replication_role", "replica"))} {
			for _, name := range append(revisions(), "CreateServiceAccountKey") {
				if !strings.HasSuffix(name, "Customer") || on.customer == nobody {
					wantError(t, what+": "+name, callersWrites()[name](t.Context(), s, operator, on), store.ErrNotFound)
				}
			}
			for _, permission := range []int64{0, 0xFFFF} {
				wantError(t, what+": SetPermission", errorOf(s.SetPermission(t.Context(), operator, on.agent, permission)), store.ErrNotFound)
			}
		}
	}
	for what, pair := range map[string]uuid.UUID{"another account's": theirs.pair.ID, "a deleted": lost.ID, "no": uuid.New()} {
		err := errorOf(w.store.DeleteServiceAccountKey(t.Context(), operator, mine.account, pair))
		wantError(t, "deleting "+what+" pair", err, store.ErrNotFound)
	}
	err := errorOf(w.store.CreateServiceAccountKey(t.Context(), operator, accountOf(w.acme.ID, mine.agent.ID), "ES256", []byte("public")))
	wantError(t, "a pair for an agent", err, store.ErrNotFound)
	wantEqual(t, "the rows", w.rows(), before)
	for what, on := range map[string]targets{"deleted": gone, "none": {}} {
		wantError(t, "reading a key: "+what, errorOf(w.store.AccessKey(t.Context(), on.key.ID)), store.ErrNotFound)
		wantError(t, "reading an agent: "+what, errorOf(w.store.Agent(t.Context(), on.agent.ID)), store.ErrNotFound)
		wantError(t, "reading an account: "+what, errorOf(w.store.ServiceAccount(t.Context(), on.account.ID)), store.ErrNotFound)
	}
	// What is there is read and listed as it was made.
	for _, on := range []targets{mine, theirs} {
		wantEqual(t, "the agent", must(w.store.Agent(t.Context(), on.agent.ID))(t), on.agent)
		wantEqual(t, "the second agent listed", must(w.store.Agents(t.Context(), on.customer.ID, store.Start(), 100))(t)[1], on.agent)
		wantEqual(t, "the keys", must(w.store.AccessKeys(t.Context(), on.customer.ID, store.Start(), 100))(t), []store.AccessKey{on.key})
		accounts := must(w.store.ServiceAccounts(t.Context(), on.customer.ID, store.Start(), 100))(t)
		wantEqual(t, "the accounts", accounts, []store.ServiceAccount{on.account})
		pairs := must(w.store.ServiceAccountKeys(t.Context(), on.account.ID, store.Start(), 100))(t)
		wantEqual(t, "the pairs", pairs, []store.ServiceAccountKey{on.pair})
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
		tx := w.begin()
		execIn(t, tx, `SET LOCAL session_replication_role = `+role)
		for _, one := range sql {
			execIn(t, tx, one)
		}
		noError(t, tx.Commit(t.Context()))
		log := w.log()
		return log[len(log)-int(w.head().Number-before):]
	}
	for _, noun := range nouns() {
		got := entries("replica", `UPDATE `+noun+` SET tm_update = now()`, `UPDATE `+noun+` SET tm_update = now()`)
		errorIf(t, len(got) != 1 || got[0].Subjects != nil, "rows of %s are logged as %+v", noun, got)
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
	wantEqual(t, "control: entries", len(entries("replica", `UPDATE customers SET tm_update = now()`)), 0)
}

// The functions find their tables whatever the search_path of the session that changes a row.
func TestChangesFromAnotherSearchPathAreLogged(t *testing.T) {
	t.Parallel()
	url := withSetting(t, pgtest.Empty(t), "search_path", "auth")
	w := fixtureOn(t, url)
	w.exec(`CREATE SCHEMA auth`)
	w.up()
	w.populate()
	on := w.makeTargets(w.acme)
	before := w.head().Number
	tx := w.begin()
	execIn(t, tx, `SET LOCAL search_path = public, pg_catalog`)
	for _, noun := range nouns() {
		execIn(t, tx, `UPDATE auth.`+noun+` SET tm_update = now()`)
	}
	execIn(t, tx, `TRUNCATE auth.service_account_keys`)
	noError(t, tx.Commit(t.Context()))
	var logged []string
	for _, e := range w.log() {
		if e.Position > before {
			logged = append(logged, e.Noun)
		}
	}
	wantEqual(t, "the nouns logged", logged, append(nouns(), ""))
	wantError(t, "the store's own", callersWrites()["DeleteAgent"](t.Context(), w.store, operator, on), nil)
	i := must(w.store.Log.Inspect(t.Context()))(t)
	errorIf(t, len(i.BrokenTriggers) != 0 || i.Outdated || i.Elsewhere, "inspected as %+v", i)
	w.exec(`ALTER TABLE auth.agents DISABLE TRIGGER changed`)
	wantEqual(t, "broken triggers", must(w.store.Log.Inspect(t.Context()))(t).BrokenTriggers, []string{"changed on agents"})
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
			w.exec(fmt.Sprintf(sql, table, trigger))
			wantEqual(t, "broken after "+fmt.Sprintf(sql, table, trigger), broken(), []string{trigger + " on " + table})
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

// The log and the list of instances are not changed by hand, whatever triggers fire. A session that says that it is one of us may.
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
			execIn(t, tx, `SET LOCAL session_replication_role = `+role)
			if _, err := tx.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "can't be changed by hand") {
				t.Errorf("%s under %s: %v", name, role, err)
			}
			_ = tx.Rollback(t.Context())
		}
	}
	wantEqual(t, "the rows", w.rows()+fmt.Sprint(w.log()), before)
	for name, sql := range statements { // control
		tx := w.begin()
		execIn(t, tx, `SET LOCAL accesskeys.internal = 'on'`)
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
			heartbeat(t, feed, changelog.Beat{ID: id, Seq: 1, Lease: time.Second, Applied: known})
			w.exec(damage)
			w.exec(`ALTER TABLE changes ENABLE ALWAYS TRIGGER guarded; ALTER TABLE change_head ENABLE ALWAYS TRIGGER guarded;
				ALTER TABLE changes ENABLE ALWAYS TRIGGER guarded_emptying; ALTER TABLE change_head ENABLE ALWAYS TRIGGER guarded_emptying`)
			if what == "head moved back" { // the next number is in use: that is nothing wrong with what is written
				wantError(t, "a revocation", w.revoking(t.Context(), w.store, w.createKey(w.acme)), store.ErrUnavailable)
			}
			for range 2 { // the second time there is nothing to do
				noError(t, feed.Heal(t.Context(), 7*time.Second))
			}
			news, err := feed.ReadSince(t.Context(), id, known)
			if what == "head moved back" { // nothing was lost
				errorIf(t, err != nil || !news.Continues || news.Head != known, "from before: %+v, %v", news, err)
				return
			}
			// Either nothing is known of what was before, or all of it and that everything may have changed.
			forgets := !news.Continues || len(news.Changes) == 1 && news.Changes[0].Subjects == nil
			errorIf(t, err != nil || !forgets || news.Head == known, "from before: %+v, %v", news, err)
			errorIf(t, news.Continues != (what == "head emptied" || what == "head altered"), "from before it continues: %v", news.Continues)
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
			heartbeat(t, feed, changelog.Beat{ID: id, Seq: 3, Lease: time.Second, Applied: news.Head})
			w.exec(`UPDATE customers SET tm_update = now()`)
			if next, err := feed.ReadSince(t.Context(), id, news.Head); err != nil || !next.Continues || len(next.Changes) != 1 {
				t.Errorf("after it: %+v, %v", next, err)
			}
		})
	}
}
