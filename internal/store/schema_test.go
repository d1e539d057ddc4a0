package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"accesskeys/internal/auth"
	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

// row is a row's values by column.
type row map[string]any

// rows of each table that the schema takes; customer and account are some that exist.
func goodRows(customer, account uuid.UUID) map[string]row {
	return map[string]row{
		"customers": {"id": uuid.New(), "name": "n"},
		"agents":    {"id": uuid.New(), "customer_id": customer, "username": "u", "password_hash": "$argon2id$v=19$x"},
		"accesskeys": {
			"id": uuid.New(), "customer_id": customer, "token_sha256": make([]byte, 32), "token_prefix": "vb_12345678",
			"tm_create": time.Unix(1e9, 0), "tm_expire": time.Unix(1e9, 1000),
		},
		"service_accounts":     {"id": uuid.New(), "customer_id": customer},
		"service_account_keys": {"id": uuid.New(), "account_id": account, "algorithm": "RS256", "spki": []byte("public")},
		"signups": {
			"id": uuid.New(), "temp_token_hash": make([]byte, 32), "code_hash": make([]byte, 32), "email": "e@x",
			"name": "n", "known": false, "tm_expire": time.Unix(4e9, 0),
		},
		"changes":        {"position": 7, "entry": uuid.New(), "noun": "agents", "subjects": [][]byte{{1}}},
		"change_head":    {"single": 1, "position": 7, "entry": uuid.New()},
		"instances":      {"id": uuid.New(), "seq": 1, "lease_ms": 2000, "position": 7, "entry": uuid.New()},
		"accesskey_uses": {"accesskey_id": uuid.New(), "tm_last_used": time.Unix(1e9, 0)}, // of no key: it has no foreign key
		"login_networks": {"agent_id": uuid.New(), "network": "192.0.2.0/24", "tm_login": time.Unix(1e9, 0)},
	}
}

// keyOf is the column that tells a table's rows apart.
func keyOf(table string) string {
	switch table {
	case "changes":
		return "position"
	case "change_head":
		return "single"
	case "accesskey_uses":
		return "accesskey_id"
	case "login_networks":
		return "agent_id"
	default:
		return "id"
	}
}

// schemaCase is a row that the schema takes or refuses.
type schemaCase struct {
	table   string
	first   row    // the difference of a row that is there already
	change  row    // the difference of the row in question
	refused string // by this constraint; "" where it is accepted
}

// Contract, section 1: Stored: its SHA-256 (32 raw bytes, unique) and the prefix; 2: "user names match without regard to case"; 4: "name at
// most 255 characters, detail at most 4096": what the program's own checks let slip, the schema refuses.
//
//nolint:tparallel // one row after the other: two transactions with the same names could end in a deadlock
func TestSchemaRefusesWhatBreaksItsPromises(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, account := w.createAgent(w.acme, "acme's"), w.createAccount(w.acme)
	bob, otherAccount := w.createAgent(w.globex, "globex's"), w.createAccount(w.globex)
	id, deleted := uuid.New(), time.Unix(2e9, 0)
	long := func(n int) string { return strings.Repeat("\U0001F511", n) } // characters, not bytes
	roles, other := auth.Roles(), []byte(long(8))                         // the schema takes every role that the permission model has
	tests := []schemaCase{
		{"customers", row{"id": id}, row{"id": id}, "customers_pkey"},
		{"customers", nil, row{"name": ""}, "customers_name_check"},
		{"customers", nil, row{"name": long(256)}, "customers_name_check"},
		{"customers", nil, row{"description": long(4097)}, "customers_detail_check"},
		{"customers", nil, row{"email": long(256)}, "customers_email_check"},
		{"customers", nil, row{"name": long(255), "description": long(4096), "email": long(255)}, ""},
		{"customers", row{"name": "n"}, row{"name": "n"}, ""}, // names of customers need not differ

		{"agents", row{"id": id}, row{"id": id, "username": "other"}, "agents_pkey"},
		{"agents", nil, row{"customer_id": uuid.New()}, "agents_customer_id_fkey"},
		{"agents", nil, row{"username": ""}, "agents_username_check"},
		{"agents", nil, row{"username": long(256)}, "agents_username_check"},
		{"agents", nil, row{"name": long(256)}, "agents_name_check"},
		{"agents", nil, row{"description": long(4097)}, "agents_detail_check"},
		{"agents", nil, row{"username": long(255), "name": long(255), "description": long(4096)}, ""},
		{"agents", nil, row{"password_hash": ""}, "agents_password_hash_check"},
		{"agents", nil, row{"password_hash": "hunter2"}, "agents_password_hash_check"},
		{"agents", nil, row{"password_hash": "$argon2i$v=19$x"}, "agents_password_hash_check"},
		{"agents", nil, row{"password_hash": " $argon2id$v=19$x"}, "agents_password_hash_check"},
		{"agents", nil, row{"password_hash": "$1$x$y"}, "agents_password_hash_check"},
		{"agents", nil, row{"password_hash": "$2a$10$x"}, ""},
		{"agents", nil, row{"password_hash": "$2b$10$x"}, ""},
		{"agents", nil, row{"password_hash": "$2y$10$x"}, ""},
		{"agents", nil, row{"permission": -1}, "agents_permission_check"},
		{"agents", nil, row{"permission": 65536}, "agents_permission_check"},
		{"agents", nil, row{"permission": 0}, ""},
		{"agents", nil, row{"permission": 65535}, ""},
		{"agents", row{"username": "Alice@X"}, row{"username": "Alice@X"}, "agents_live_username"},
		{"agents", row{"username": "Alice@X"}, row{"username": "aLICE@x"}, "agents_live_username"},
		{"agents", row{"username": "Alice"}, row{"username": "alice", "customer_id": w.globex.ID}, "agents_live_username"},
		{"agents", row{"username": "Alice", "tm_delete": deleted}, row{"username": "alice"}, ""},
		{"agents", row{"username": "Alice"}, row{"username": "alice", "tm_delete": deleted}, ""},
		{"agents", row{"username": "a", "tm_delete": deleted}, row{"username": "a", "tm_delete": deleted}, ""},
		{"agents", row{"username": "a", "username_key": "k", "username_key_of": "a"},
			row{"username": "b", "username_key": "k", "username_key_of": "b"}, "agents_live_username_key"},
		{"agents", row{"username": "a", "username_key": "k", "username_key_of": "b"},
			row{"username": "b", "username_key": "k", "username_key_of": "b"}, ""},
		{"agents", row{"username": "a", "username_key": "k", "username_key_of": "a", "tm_delete": deleted},
			row{"username": "b", "username_key": "k", "username_key_of": "b"}, ""},

		{"accesskeys", row{"id": id, "token_sha256": []byte(long(8))}, row{"id": id}, "accesskeys_pkey"},
		{"accesskeys", nil, row{"name": long(256)}, "accesskeys_name_check"},
		{"accesskeys", nil, row{"description": long(4097)}, "accesskeys_detail_check"},
		{"accesskeys", nil, row{"name": long(255), "description": long(4096)}, ""},
		{"accesskeys", nil, row{"token_sha256": []byte{}}, "accesskeys_token_hash_check"},
		{"accesskeys", nil, row{"token_sha256": make([]byte, 31)}, "accesskeys_token_hash_check"},
		{"accesskeys", nil, row{"token_sha256": make([]byte, 33)}, "accesskeys_token_hash_check"},
		{"accesskeys", row{}, row{}, "accesskeys_token_sha256_key"},
		{"accesskeys", row{}, row{"customer_id": w.globex.ID}, "accesskeys_token_sha256_key"},
		{"accesskeys", row{"tm_delete": deleted}, row{}, "accesskeys_token_sha256_key"},
		{"accesskeys", nil, row{"token_prefix": ""}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_1234567"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_123456789"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vc_12345678"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_1234567!"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_1234567é"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_12345678\n"}, "accesskeys_token_prefix_check"},
		{"accesskeys", nil, row{"token_prefix": "vb_aZ09-_-_"}, ""},
		{"accesskeys", nil, row{"tm_expire": time.Unix(1e9, 0)}, "accesskeys_check"},
		{"accesskeys", nil, row{"tm_expire": time.Unix(1e9-1, 0)}, "accesskeys_check"},
		// A key and its agent are of one customer.
		{"accesskeys", nil, row{"agent_id": alice.ID}, ""},
		{"accesskeys", nil, row{"agent_id": bob.ID}, "accesskeys_agent_id_fkey"},
		{"accesskeys", nil, row{"agent_id": alice.ID, "customer_id": w.globex.ID}, "accesskeys_agent_id_fkey"},
		{"accesskeys", nil, row{"agent_id": uuid.New()}, "accesskeys_agent_id_fkey"},
		// The service account that made a key is of the same customer.
		{"accesskeys", nil, row{"created_by_type": "agent", "created_by_id": uuid.New()}, ""},
		{"accesskeys", nil, row{"created_by_type": "accesskey", "created_by_id": uuid.New()}, ""},
		{"accesskeys", nil, row{"created_by_type": "service_account", "created_by_id": uuid.New()}, ""},
		{"accesskeys", nil, row{"service_account_id": account.ID}, ""},
		{"accesskeys", nil, row{"service_account_id": otherAccount.ID}, "accesskeys_service_account_id_fkey"},
		{"accesskeys", nil, row{"service_account_id": uuid.New()}, "accesskeys_service_account_id_fkey"},
		{"accesskeys", nil, row{"roles": roles}, ""},
		{"accesskeys", nil, row{"roles": []string{}}, ""},
		{"accesskeys", nil, row{"roles": []string{"admin"}}, "accesskeys_roles_check"},
		{"accesskeys", nil, row{"roles": []string{"agent_viewer", "Customer_Admin"}}, "accesskeys_roles_check"},
		{"accesskeys", nil, row{"roles": []*string{nil}}, "accesskeys_roles_check"},

		{"service_accounts", row{"id": id}, row{"id": id}, "service_accounts_pkey"},
		{"service_accounts", nil, row{"customer_id": uuid.New()}, "service_accounts_customer_id_fkey"},
		{"service_accounts", nil, row{"name": long(256)}, "service_accounts_name_check"},
		{"service_accounts", nil, row{"description": long(4097)}, "service_accounts_detail_check"},
		{"service_accounts", row{"name": "n"}, row{"name": "n"}, ""}, // names of accounts need not differ
		{"service_accounts", nil, row{"name": long(255), "description": long(4096), "roles": roles}, ""},
		{"service_accounts", nil, row{"roles": []string{"admin"}}, "service_accounts_roles_check"},
		{"service_accounts", nil, row{"roles": []string{"customer_admin", "customer_admin "}}, "service_accounts_roles_check"},
		{"service_accounts", nil, row{"roles": []*string{nil}}, "service_accounts_roles_check"},

		{"service_account_keys", row{"id": id}, row{"id": id, "account_id": otherAccount.ID}, "service_account_keys_pkey"},
		{"service_account_keys", nil, row{"account_id": uuid.New()}, "service_account_keys_account_id_fkey"},
		{"service_account_keys", nil, row{"account_id": alice.ID}, "service_account_keys_account_id_fkey"},
		{"service_account_keys", nil, row{"algorithm": "HS256"}, "service_account_keys_algorithm_check"},
		{"service_account_keys", nil, row{"algorithm": "none"}, "service_account_keys_algorithm_check"},
		{"service_account_keys", nil, row{"algorithm": "rs256"}, "service_account_keys_algorithm_check"},
		{"service_account_keys", nil, row{"algorithm": ""}, "service_account_keys_algorithm_check"},
		{"service_account_keys", nil, row{"spki": make([]byte, 1024)}, ""},
		{"service_account_keys", nil, row{"spki": make([]byte, 1025)}, "service_account_keys_spki_check"},

		{"signups", row{"id": id, "temp_token_hash": other}, row{"id": id}, "signups_pkey"},
		{"signups", row{}, row{}, "signups_temp_token_hash_key"},
		{"signups", row{"temp_token_hash": other}, row{}, ""}, // the same address may ask twice, and draw the same code
		{"signups", nil, row{"temp_token_hash": make([]byte, 31)}, "signups_temp_token_hash_check"},
		{"signups", nil, row{"temp_token_hash": make([]byte, 33)}, "signups_temp_token_hash_check"},
		{"signups", nil, row{"code_hash": make([]byte, 31)}, "signups_code_hash_check"},
		{"signups", nil, row{"code_hash": []byte("123456")}, "signups_code_hash_check"},
		{"signups", nil, row{"email": ""}, "signups_email_check"},
		{"signups", nil, row{"email": long(256)}, "signups_email_check"},
		{"signups", nil, row{"name": ""}, "signups_name_check"},
		{"signups", nil, row{"name": long(256)}, "signups_name_check"},
		{"signups", nil, row{"detail": long(4097)}, "signups_detail_check"},
		{"signups", nil, row{"email": long(255), "name": long(255), "detail": long(4096)}, ""},

		{"changes", row{}, row{}, "changes_pkey"},
		{"changes", row{"position": 8}, row{}, ""},
		{"changes", nil, row{"subjects": nil}, ""},
		{"change_head", nil, row{}, "change_head_pkey"}, // there is one
		{"change_head", nil, row{"single": 2}, "change_head_single_check"},
		{"instances", row{"id": id}, row{"id": id}, "instances_pkey"},
		{"accesskey_uses", row{}, row{}, "accesskey_uses_pkey"},
		{"login_networks", row{"agent_id": id}, row{"agent_id": id}, "login_networks_pkey"},
		{"login_networks", row{"agent_id": id}, row{"agent_id": id, "network": "192.0.3.0/24"}, ""},
	}
	for _, algorithm := range auth.Algorithms() {
		tests = append(tests, schemaCase{"service_account_keys", nil, row{"algorithm": string(algorithm)}, ""})
	}
	constraints := w.constraints()
	// What breaks these breaks the primary key before it: they are there to be referred to, by foreign keys of accesskeys.
	delete(constraints, "agents_customer_id_id_key")
	delete(constraints, "service_accounts_customer_id_id_key")
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s %.60v", test.table, test.change), func(t *testing.T) {
			tx := must(w.db.Begin(t.Context()))(t)
			defer func() { _ = tx.Rollback(context.Background()) }()
			good := goodRows(w.acme.ID, account.ID)[test.table]
			if test.first != nil {
				first := maps.Clone(good)
				if keyOf(test.table) == "id" {
					first["id"] = uuid.New()
				}
				maps.Copy(first, test.first)
				noError(t, insert(t, tx, test.table, first))
			}
			changed := maps.Clone(good)
			maps.Copy(changed, test.change)
			err := insert(t, tx, test.table, changed)
			var refused *pgconn.PgError
			switch {
			case test.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.refused != "" && (!errors.As(err, &refused) || refused.ConstraintName != test.refused):
				t.Errorf("%v, want it to be refused by %s", err, test.refused)
			}
		})
		delete(constraints, test.refused)
	}
	errorIf(t, len(constraints) > 0, "no row shows what these constraints refuse: %v", slices.Sorted(maps.Keys(constraints)))
}

// Contract, section 3: deleted, malformed, tampered: 401: nothing can vanish from under what depends on it.
func TestOwnersOfCredentialsCannotBeRemoved(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.createKey(w.acme)
	agent := w.createAgent(w.acme, "alice")
	must(w.store.CreateAccessKey(t.Context(), operator, userKey(agent)))(t)
	w.createAgent(w.globex, "glob")
	initech := must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "Initech"}))(t)
	account := w.createAccount(initech)
	w.createAccountKey(account)
	for _, move := range []string{`UPDATE accesskeys SET customer_id = $1 WHERE agent_id = $2`, `UPDATE agents SET customer_id = $1 WHERE id = $2`} {
		if err := refusal(w.db.Exec(t.Context(), move, w.globex.ID, agent.ID)); err.ConstraintName != "accesskeys_agent_id_fkey" {
			t.Errorf("%s: %v, want it refused: a key and its agent are of one customer", move, err)
		}
	}
	for _, test := range []struct {
		table      string
		id         uuid.UUID
		constraint string
	}{
		{"customers", w.acme.ID, "accesskeys_customer_id_fkey"},
		{"customers", w.globex.ID, "agents_customer_id_fkey"},
		{"customers", initech.ID, "service_accounts_customer_id_fkey"},
		{"service_accounts", account.ID, "service_account_keys_account_id_fkey"},
		{"agents", agent.ID, "accesskeys_agent_id_fkey"},
	} {
		for _, sql := range []string{`DELETE FROM ` + test.table + ` WHERE id = $1`, `UPDATE ` + test.table + ` SET id = gen_random_uuid() WHERE id = $1`} {
			if err := refusal(w.db.Exec(t.Context(), sql, test.id)); err.ConstraintName != test.constraint {
				t.Errorf("%s: %v, want it to be refused by %s", sql, err, test.constraint)
			}
		}
	}
}

// refusal is Postgres's error, empty where there is none.
func refusal(_ pgconn.CommandTag, err error) *pgconn.PgError {
	if refused, is := errors.AsType[*pgconn.PgError](err); is {
		return refused
	}
	return &pgconn.PgError{}
}

// No foreign key leads from an access key to its customer. A key of a customer that isn't there is refused, and writes nothing.
func TestKeyWithoutItsCustomerIsNone(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(store.Customer{ID: uuid.New()}, year)
	wantError(t, "creating it", errorOf(w.store.CreateAccessKey(t.Context(), operator, k)), store.ErrNoCustomer)
	w.exec(`INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire)
		VALUES (gen_random_uuid(), $1, $2, 'vb_12345678', '2100-01-01')`, k.CustomerID, k.TokenHash[:])
	wantError(t, "looking it up", errorOf(keyByHash(t.Context(), w.store, k.TokenHash, changelog.Position{})), store.ErrNotFound)
	id := value[uuid.UUID](w, `SELECT id FROM accesskeys WHERE token_sha256 = $1`, k.TokenHash[:])
	caller := store.AccessKeyCaller(store.AccessKeyCredential{
		AccessKey: store.AccessKey{ID: id, CustomerID: k.CustomerID}, Roles: []string{"customer_admin"},
	})
	on := w.makeTargets(w.globex)
	before := w.rows()
	for name, write := range callersWrites() {
		wantError(t, name, write(t.Context(), w.store, caller, on), store.ErrChanged)
	}
	wantEqual(t, "the rows", w.rows(), before)
}

// Contract, section 1: It is stored as such in Postgres too (timestamptz, not null); issue 3: "agent_id (null for customer-wide)", and
// beside it only a change's subjects, null for more than can be named, and who made a key, null for nobody; a username's key, which agents
// of older servers don't have.
func TestNoColumnTakesNullAndEveryTimeIsTimestamptz(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := w.createAccount(w.acme)
	rows := must(w.db.Query(t.Context(), `
		SELECT relname, attname, format_type(atttypid, atttypmod)
		FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
		WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
		  AND relname <> 'accesskeys_migrations'`))(t)
	type column struct{ Table, Name, Type string }
	columns := must(pgx.CollectRows(rows, pgx.RowToStructByPos[column]))(t)
	mayBeNull := map[string]bool{
		"accesskeys.agent_id": true, "accesskeys.service_account_id": true, "accesskeys.created_by_type": true, "accesskeys.created_by_id": true,
		"changes.subjects": true, "agents.username_key": true, "agents.username_key_of": true,
	}
	times := map[string]int{}
	for _, c := range columns {
		refused := w.refusesNull(c.Table, c.Name, account.ID)
		errorIf(t, refused == mayBeNull[c.Table+"."+c.Name], "%s.%s refuses NULL: %v", c.Table, c.Name, refused)
		if strings.HasPrefix(c.Name, "tm_") {
			times[c.Table]++
			errorIf(t, c.Type != "timestamp with time zone", "%s.%s is a %s", c.Table, c.Name, c.Type)
		}
	}
	if want := map[string]int{
		"customers": 3, "agents": 4, "accesskeys": 4, "service_accounts": 3, "service_account_keys": 3, "signups": 2,
		"instances": 1, "accesskey_uses": 1, "login_networks": 1,
	}; !maps.Equal(times, want) {
		t.Errorf("the tables have %v points in time, want %v", times, want)
	}
}

// refusesNull reports whether a row that is good but for a NULL in this column is refused for it.
func (w *fixture) refusesNull(table, column string, account uuid.UUID) bool {
	w.t.Helper()
	values := goodRows(w.acme.ID, account)[table]
	fatalIf(w.t, values == nil, "goodRows has none for %s", table)
	values[column] = nil
	tx := must(w.db.Begin(w.t.Context()))(w.t)
	defer func() { _ = tx.Rollback(context.Background()) }()
	err := insert(w.t, tx, table, values)
	var refused *pgconn.PgError
	if err != nil && (!errors.As(err, &refused) || refused.Code != "23502" || refused.ColumnName != column) {
		w.t.Fatalf("%s.%s: %v", table, column, err)
	}
	return err != nil
}

// Contract, section 1: the sentinel: not deleted; "At creation tm_update equals tm_create"; "one clock, the database's".
func TestDefaultsAreTheSentinelAndNow(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := w.createAccount(w.acme)
	tx := w.begin() // within one, now() stands still
	good := goodRows(w.acme.ID, account.ID)
	// Rows of the others are removed, not deleted.
	for _, table := range []string{"customers", "agents", "accesskeys", "service_accounts", "service_account_keys"} {
		values := good[table]
		delete(values, "tm_create")
		if table == "accesskeys" {
			values["tm_expire"] = time.Unix(4e9, 0)
		}
		noError(t, insert(t, tx, table, values))
		var now, create, update, deletion time.Time
		err := tx.QueryRow(t.Context(), `SELECT now(), tm_create, tm_update, tm_delete FROM `+table+` WHERE id = $1`, values["id"]).
			Scan(&now, &create, &update, &deletion)
		noError(t, err)
		if !create.Equal(now) || !update.Equal(now) || !deletion.Equal(store.Never()) {
			t.Errorf("%s: at %v a row has tm_create %v, tm_update %v, tm_delete %v", table, now, create, update, deletion)
		}
	}
	var password, now time.Time
	noError(t, tx.QueryRow(t.Context(), `SELECT tm_password, now() FROM agents`).Scan(&password, &now))
	errorIf(t, !password.Equal(now), "at %v an agent has tm_password %v", now, password)
}

// Contract, section 1: `"" where none was given`; issue 3: a key that says nothing else is its customer's admin, an account that says
// nothing may do nothing, and a sign-up has not been tried.
func TestDefaultsAreWhatNobodyHasToAskFor(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	account := w.createAccount(w.acme)
	tx := w.begin()
	execIn(t, tx, `SET LOCAL accesskeys.internal = 'on'`)
	execIn(t, tx, `DELETE FROM change_head`) // it has its one row
	const times = `- 'tm_create' - 'tm_update' - 'tm_delete' - 'tm_expire' - 'tm_password' - 'tm_heartbeat'`
	defaults := map[string]string{
		"customers": `{"email": "", "description": ""}`,
		"agents":    `{"name": "", "permission": 0, "description": "", "username_key": null, "username_key_of": null}`,
		"accesskeys": `{"name": "", "roles": ["customer_admin"], "agent_id": null, "description": "", "created_by_id": null, ` +
			`"created_by_type": null, "service_account_id": null}`,
		"service_accounts":     `{"name": "", "roles": [], "description": ""}`,
		"service_account_keys": `{}`,
		"signups":              `{"tries": 0, "detail": ""}`,
		"changes":              `{}`,
		"change_head":          `{"lease_ms": 0, "oldest_version": 4}`,
		"instances":            `{}`,
		"accesskey_uses":       `{}`,
		"login_networks":       `{}`,
	}
	for table, values := range goodRows(w.acme.ID, account.ID) {
		noError(t, insert(t, tx, table, values))
		var left string
		err := tx.QueryRow(t.Context(), `SELECT (to_jsonb(t) - $2::text[] `+times+`)::text FROM `+table+` t WHERE `+keyOf(table)+` = $1`,
			values[keyOf(table)], slices.Collect(maps.Keys(values))).Scan(&left)
		noError(t, err)
		errorIf(t, left != defaults[table], "%s: by default %s, want %s", table, left, defaults[table])
	}
	// A sign-up is timed by the database too, and so is a heartbeat.
	var create, beat, now time.Time
	err := tx.QueryRow(t.Context(), `SELECT s.tm_create, r.tm_heartbeat, now() FROM signups s, instances r`).Scan(&create, &beat, &now)
	if err != nil || !create.Equal(now) || !beat.Equal(now) {
		t.Errorf("at %v a sign-up has tm_create %v, and an instance tm_heartbeat %v (%v)", now, create, beat, err)
	}
}

// insert inserts a row in a savepoint, so that a refusal leaves the transaction usable.
func insert(t *testing.T, tx pgx.Tx, table string, values row) error {
	t.Helper()
	var columns, marks []string
	var args []any
	for column, value := range values {
		args = append(args, value)
		columns, marks = append(columns, column), append(marks, fmt.Sprintf("$%d", len(args)))
	}
	return pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL accesskeys.internal = 'on'`); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s (%s) VALUES (%s)`,
			table, strings.Join(columns, ", "), strings.Join(marks, ", ")), args...)
		return err
	})
}

// constraints are the names of all that a row can violate, NOT NULL aside.
func (w *fixture) constraints() map[string]bool {
	w.t.Helper()
	rows := must(w.db.Query(w.t.Context(), `
		SELECT conname::text FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
		WHERE contype IN ('c', 'f', 'u', 'p', 'x') AND connamespace = 'public'::regnamespace AND relname <> 'accesskeys_migrations'
		UNION
		SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
		WHERE indisunique AND relnamespace = 'public'::regnamespace AND relname <> 'accesskeys_migrations_pkey'`))(w.t)
	all := map[string]bool{}
	for _, name := range must(pgx.CollectRows(rows, pgx.RowTo[string]))(w.t) {
		all[name] = true
	}
	fatalIf(w.t, len(all) == 0, "there are no constraints")
	return all
}
