package store_test

import (
	"context"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// Keyset with a row comparison: 7 buffers at depth 800,000, "an indexed look-up". The statements are caught on their way to the database, so
// that what is explained is what the store sends.
func TestHotQueriesReadTheirIndexAndLittleElse(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	crowd(w)
	traced, catcher := openTraced(t, w.url)
	sent := func(do func() error) statement {
		t.Helper()
		// Look-ups are sent with a reading of the log's head.
		all := slices.DeleteFunc(catcher.sent(t, do), func(s statement) bool { return strings.Contains(s.sql, "FROM change_head") })
		fatalIf(t, len(all) != 1, "%d statements, want 1", len(all))
		return all[0]
	}
	var tests []indexed
	add := func(name, index string, do func() error) { tests = append(tests, indexed{name, sent(do), index, nil}) }
	hash := func(where string, args ...any) store.TokenHash {
		return store.TokenHash(value[[]byte](w, `SELECT token_sha256 FROM accesskeys WHERE `+where+` LIMIT 1`, args...))
	}
	add("the key of a hash", "accesskeys_token_sha256_key", func() error {
		return errorOf(keyByHash(t.Context(), traced, hash(`customer_id = $1`, w.globex.ID), changelog.Position{}))
	})
	add("the user key of a hash", "accesskeys_token_sha256_key", func() error {
		k, err := keyByHash(t.Context(), traced, hash(`agent_id IS NOT NULL ORDER BY id`), changelog.Position{})
		fatalIf(t, k.AgentID == nil, "the key is %+v", k)
		return err
	})
	holder, holding := busiest(w, "accesskeys", "agent_id"), busiest(w, "service_account_keys", "account_id")
	add("the agent of a user key", "agents_pkey", func() error { return errorOf(agentByID(t.Context(), traced, holder, changelog.Position{})) })
	add("the pair of an id", "service_account_keys_pkey", func() error {
		id := value[uuid.UUID](w, `SELECT id FROM service_account_keys ORDER BY id LIMIT 1`)
		return errorOf(pairByID(t.Context(), traced, id, changelog.Position{}))
	})
	add("the agent of a username", "agents_live_username", func() error {
		return errorOf(traced.AgentByUsername(t.Context(), "USER-777", network(1)))
	})
	most := map[string]int{ // buffers
		"the key of a hash": 12, "the agent of a username": 16, "the user key of a hash": 12, "the agent of a user key": 12, "the pair of an id": 12,
	}
	// The statements for a list's first page and for a deep one, of an owner who has much.
	deeper := map[string]int{"a customer's keys": 20, "an agent's keys": 10, "the agents": 10, "the accounts": 10, "the pairs": 10}
	for _, list := range []struct {
		name, table, column, index string
		owner                      uuid.UUID
		page                       func(after store.Cursor) (int, error)
	}{
		{"a customer's keys", "accesskeys", "customer_id", "accesskeys_live_newest", w.acme.ID, func(after store.Cursor) (int, error) {
			return counted(traced.AccessKeys(t.Context(), w.acme.ID, after, 100))
		}},
		{"an agent's keys", "accesskeys", "agent_id", "accesskeys_live_newest_of_agent", holder, func(after store.Cursor) (int, error) {
			return counted(traced.AccessKeysOfAgent(t.Context(), holder, after, 100))
		}},
		{"the agents", "agents", "customer_id", "agents_live_newest", w.acme.ID, func(after store.Cursor) (int, error) {
			return counted(traced.Agents(t.Context(), w.acme.ID, after, 100))
		}},
		{"the accounts", "service_accounts", "customer_id", "service_accounts_live_newest", w.acme.ID, func(after store.Cursor) (int, error) {
			return counted(traced.ServiceAccounts(t.Context(), w.acme.ID, after, 100))
		}},
		{"the pairs", "service_account_keys", "account_id", "service_account_keys_live_newest", holding, func(after store.Cursor) (int, error) {
			return counted(traced.ServiceAccountKeys(t.Context(), holding, after, 100))
		}},
	} {
		var oldest store.Cursor
		noError(t, w.db.QueryRow(t.Context(), `SELECT tm_create, id FROM `+list.table+` WHERE `+list.column+` = $1 AND `+notDeleted+`
			ORDER BY tm_create, id OFFSET (SELECT count(*) / 3 FROM `+list.table+` WHERE `+list.column+` = $1) LIMIT 1`, list.owner).
			Scan(&oldest.TmCreate, &oldest.ID))
		for page, after := range map[string]store.Cursor{", first page": store.Start(), ", deep page": oldest} {
			add(list.name+page, list.index, func() error {
				n, err := list.page(after)
				wantEqual(t, "a page of "+list.table, n, 100)
				return err
			})
		}
	}
	for mode, buffers := range w.readIndexes(tests) {
		for name, more := range deeper {
			most[name+", deep page"] = buffers[name+", first page"] + more
		}
		for name, most := range most {
			errorIf(t, buffers[name] > most, "%s, %s: reads %d buffers, want at most %d", name, mode, buffers[name], most)
		}
		// Control: counting them does tell a good plan for a deep page from a bad one. Most of a good one's are the look-ups of
		// when each key was last used, which the bad one goes without.
		offset := statement{`SELECT id, name FROM accesskeys WHERE customer_id = $1 AND ` + notDeleted + `
			ORDER BY tm_create DESC, id DESC OFFSET $2 LIMIT 100`, []any{w.acme.ID, 15000}}
		got, keyset := w.explain(mode, offset, "").buffers(), buffers["a customer's keys, deep page"]
		errorIf(t, keyset == 0 || got < 3*keyset, "%s: OFFSET reads %d buffers, the keyset %d: the count shows nothing", mode, got, keyset)
	}
}

// counted is how many a list has.
func counted[T any](all []T, err error) (int, error) { return len(all), err }

// indexed is a statement that has to be a look-up in an index, but for the problems that it may have.
type indexed struct {
	name  string
	query statement
	index string
	may   []string
}

// readIndexes tests that the plans are look-ups in the indexes, and that they don't pass without them. It returns how many buffers each
// reads, by mode and name.
func (w *fixture) readIndexes(tests []indexed) map[string]map[string]int {
	w.t.Helper()
	drop := map[string]string{} // read before explain, which deallocates
	for _, test := range tests {
		drop[test.index] = value[string](w, `SELECT coalesce((SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
			FROM pg_constraint WHERE conname = $1 AND contype IN ('p', 'u')), 'DROP INDEX ' || $1)`, test.index)
	}
	buffers := map[string]map[string]int{"force_custom_plan": {}, "force_generic_plan": {}}
	for mode, read := range buffers {
		for _, test := range tests {
			problems := func(plan explained) []string {
				return slices.DeleteFunc(plan.problems(test.index), func(problem string) bool { return slices.Contains(test.may, problem) })
			}
			plan := w.explain(mode, test.query, "")
			for _, problem := range problems(plan) {
				w.t.Errorf("%s, %s: %s in\n%s", test.name, mode, problem, plan.text)
			}
			read[test.name] = plan.buffers()
			if plan := w.explain(mode, test.query, drop[test.index]); len(problems(plan)) == 0 { // the control
				w.t.Errorf("%s, %s: without the index the plan still passes:\n%s", test.name, mode, plan.text)
			}
		}
	}
	return buffers
}

// The tables of a new installation are small and have no statistics. A connection that plans its statements then keeps these plans while
// the tables grow, until autovacuum analyses them. A statement that finds a row by its id must not read a list for it.
func TestStatementsByIDReadOneRowOnTablesWithoutStatistics(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.neverAnalysed()
	traced, catcher := openTraced(t, w.url)
	all, on := map[string][]statement{}, w.makeTargets(w.acme)
	login := must(w.store.AgentByUsername(t.Context(), on.agent.Username, netip.Prefix{}))(t)
	for name, read := range map[string]func() error{
		"Customer":          func() error { return errorOf(traced.Customer(t.Context(), w.acme.ID)) },
		"Agent":             func() error { return errorOf(traced.Agent(t.Context(), on.agent.ID)) },
		"AccessKey":         func() error { return errorOf(traced.AccessKey(t.Context(), on.key.ID)) },
		"ServiceAccount":    func() error { return errorOf(traced.ServiceAccount(t.Context(), on.account.ID)) },
		"AgentByUsername":   func() error { return errorOf(traced.AgentByUsername(t.Context(), on.agent.Username, netip.Prefix{})) },
		"RenewPasswordHash": func() error { return traced.RenewPasswordHash(t.Context(), login, secret.New(passwordHash+"other")) },
	} {
		all[name] = catcher.sent(t, read)
	}
	for name, write := range callersWrites() {
		on := w.makeTargets(must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: name}))(t))
		all[name] = catcher.sent(t, func() error { return write(t.Context(), traced, operator, on) })
	}
	anywhere := func(s string) string { // what a plan could use any index for
		return strings.NewReplacer(` >= '9999-01-01`, ` = '9999-01-01`, `(customer_id = $2) IS TRUE`, `customer_id = $2`).Replace(s)
	}
	misled := map[string]bool{}
	for name, sent := range all {
		for _, s := range sent {
			if !strings.Contains(s.sql, "tm_delete") {
				continue
			}
			found := w.plan("force_generic_plan", s, "").searchedLists()
			errorIf(t, len(found) > 0, "%s searches %v:\n%s", name, found, s.sql)
			for _, index := range w.plan("force_generic_plan", statement{anywhere(s.sql), s.args}, "").searchedLists() {
				misled[index] = true
			}
		}
	}
	// Control: with conditions that any index serves, the planner takes these.
	if got, want := slices.Sorted(maps.Keys(misled)), []string{
		"accesskeys_live_newest", "agents_live_newest", "customers_live_newest", "service_account_keys_live_newest", "service_accounts_live_newest",
	}; !slices.Equal(got, want) {
		t.Errorf("control: the planner takes %v, want %v", got, want)
	}
}

// The same of the condition on the caller. Its plans are a function's, which EXPLAIN doesn't show: it is run before and after the tables
// grow, and what it reads is counted.
func TestConditionOnACallerReadsFewRowsOnTablesWithoutStatistics(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.neverAnalysed()
	kinds := w.callerKinds(value[time.Time](w, `SELECT now() + interval '1 hour'`))
	// A condition that any index serves.
	plain := value[string](w, `SELECT string_agg(replace(pg_get_functiondef(oid), 'tm_delete >=', 'tm_delete ='), E';\n') || ';' FROM pg_proc
		WHERE pronamespace = 'public'::regnamespace AND proname IN ('admit_write', 'admit_accesskey_write')`)
	grown := strings.ReplaceAll(`;
		INSERT INTO customers (id, name) SELECT gen_random_uuid(), 'n' FROM generate_series(1, 2000);
		INSERT INTO agents (id, customer_id, username, password_hash)
			SELECT gen_random_uuid(), '@acme', 'user ' || i, '$argon2id$v=19$x' FROM generate_series(1, 2000) i;
		INSERT INTO accesskeys (id, customer_id, token_sha256, token_prefix, tm_expire)
			SELECT gen_random_uuid(), '@acme', sha256(int8send(i)), 'vb_12345678', '2100-01-01' FROM generate_series(1, 2000) i;
		INSERT INTO service_accounts (id, customer_id) SELECT gen_random_uuid(), '@acme' FROM generate_series(1, 2000)`, "@acme", w.acme.ID.String())
	traced, catcher := openTraced(t, w.url)
	const most = 40 // some four for each of the caller's rows
	misled := false
	for kind, of := range kinds {
		for _, s := range catcher.sent(t, writesTo(t.Context(), traced, of.caller, targets{customer: w.acme})["CreateServiceAccount"]) {
			admission, is := admissionIn(s)
			fatalIf(t, !is, "%s: no condition in %s", kind, s.sql)
			planned := `PREPARE planned AS ` + admission.sql + `; EXECUTE planned` + parameters(t, admission)
			got := w.explain("force_generic_plan", admission, planned+grown).buffers()
			errorIf(t, got > most, "%s: its condition reads %d buffers", kind, got)
			misled = misled || w.explain("force_generic_plan", admission, plain+planned+grown).buffers() > most
		}
	}
	errorIf(t, !misled, "control: a condition that any index serves reads as little")
}

// neverAnalysed keeps statistics away from the tables.
func (w *fixture) neverAnalysed() {
	w.t.Helper()
	for _, table := range []string{"customers", "agents", "accesskeys", "service_accounts"} {
		w.exec(`ALTER TABLE ` + table + ` SET (autovacuum_enabled = off)`)
	}
}

// admissionIn is the call of admit_write, or of its short form, in a statement.
func admissionIn(s statement) (statement, bool) {
	call := regexp.MustCompile(`admit_\w+\(([^)]*)\)`).FindStringSubmatch(s.sql)
	if call == nil {
		return statement{}, false
	}
	count := strings.Count(call[1], "$")
	sql := call[0]
	for i := range count {
		sql = strings.Replace(sql, fmt.Sprintf("$%d", len(s.args)-count+i+1), fmt.Sprintf("$%d", i+1), 1)
	}
	return statement{`SELECT ` + sql, s.args[len(s.args)-count:]}, true
}

const notDeleted = `tm_delete = '9999-01-01 00:00:00+00'`

// busiest is the owner of the most live rows.
func busiest(w *fixture, table, column string) uuid.UUID {
	w.t.Helper()
	return value[uuid.UUID](w, `SELECT `+column+` FROM `+table+` WHERE `+column+` IS NOT NULL AND `+notDeleted+`
		GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1`)
}

// crowd makes 20,000 agents, 4,000 of acme's, and 50,000 keys, 20,000 of acme's and 2,000 of one agent's, among 1,000
// customers, and of service accounts and their keys as many; some are deleted, some share a tm_create, and most keys have
// been used.
func crowd(w *fixture) {
	w.t.Helper()
	w.exec(`INSERT INTO customers (id, name) SELECT gen_random_uuid(), 'customer ' || i FROM generate_series(1, 998) i`)
	const times = `(SELECT i, timestamptz '2026-01-01 00:00:00+00' + (i / 7) * interval '1 s' AS at,
		CASE WHEN i % 11 = 0 THEN timestamptz '2026-06-01 00:00:00+00' ELSE '9999-01-01 00:00:00+00' END AS gone
		FROM generate_series(1, 20000) i) AS times`
	w.exec(`
		WITH c AS (SELECT array_agg(id) AS ids FROM customers)
		INSERT INTO agents (id, customer_id, username, password_hash, tm_create, tm_delete)
		SELECT md5('agent ' || i)::uuid, CASE WHEN i % 5 = 0 THEN $1 ELSE ids[1 + i % 1000] END, 'User-' || i, '$argon2id$v=19$x', at, gone
		FROM c, `+times, w.acme.ID)
	w.exec(`
		WITH c AS (SELECT array_agg(id) AS ids FROM customers)
		INSERT INTO service_accounts (id, customer_id, tm_create, tm_delete)
		SELECT md5('account ' || i)::uuid, CASE WHEN i % 5 = 0 THEN $1 ELSE ids[1 + i % 1000] END, at, gone
		FROM c, `+times, w.acme.ID)
	w.exec(`
		INSERT INTO service_account_keys (id, account_id, algorithm, spki, tm_create, tm_delete)
		SELECT gen_random_uuid(), md5('account ' || CASE WHEN i % 5 = 0 THEN 5 ELSE i END)::uuid, 'ES256', 'public', at, gone
		FROM ` + times)
	w.exec(`
		WITH c AS (SELECT array_agg(id) AS ids FROM customers)
		INSERT INTO accesskeys (id, customer_id, agent_id, name, token_sha256, token_prefix, tm_create, tm_update, tm_expire, tm_delete)
		SELECT gen_random_uuid(), CASE WHEN i % 5 < 2 THEN $1 WHEN i % 5 = 2 THEN $2 ELSE ids[1 + i % 1000] END,
		       CASE WHEN i % 25 = 0 THEN md5('agent 5')::uuid WHEN i % 5 = 0 THEN md5('agent ' || 5 * (1 + i / 5 % 4000))::uuid END, 'key ' || i,
		       sha256(int8send(i)), 'vb_12345678', at, at, at + interval '1 year',
		       CASE WHEN i % 11 = 0 THEN at + interval '1 day' ELSE '9999-01-01 00:00:00+00' END
		FROM c, (SELECT i, timestamptz '2026-01-01 00:00:00+00' + (i / 7) * interval '1 s' AS at FROM generate_series(1, 50000) i) k`,
		w.acme.ID, w.globex.ID)
	w.exec(`INSERT INTO accesskey_uses (accesskey_id, tm_last_used) SELECT id, tm_create + interval '1 hour' FROM accesskeys WHERE name NOT LIKE '%3'`)
	w.exec(`INSERT INTO login_networks SELECT id, '10.0.1.0/24', now() FROM agents`)
	w.exec(`VACUUM ANALYZE`)
}

// statement is one that the store has sent.
type statement struct {
	sql  string
	args []any
}

// statements is a pgx.QueryTracer, and a pgx.BatchTracer, that keeps what it sees.
type statements struct {
	mu  sync.Mutex
	all []statement
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, statement{q.SQL, q.Args})
	return ctx
}

// count is how many have this in them.
func (s *statements) count(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if strings.Contains(one.sql, part) {
			n++
		}
	}
	return n
}

// sent are those that this sends.
func (s *statements) sent(t *testing.T, do func() error) []statement {
	t.Helper()
	s.all = nil
	noError(t, do())
	return s.all
}

// with is the first that has this in it.
func (s *statements) with(t *testing.T, part string) statement {
	t.Helper()
	i := slices.IndexFunc(s.all, func(one statement) bool { return strings.Contains(one.sql, part) })
	fatalIf(t, i < 0, "no statement with %s among %v", part, s.all)
	return s.all[i]
}

func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s *statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchQueryData) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, statement{q.SQL, q.Args})
}

func (*statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// explained is what EXPLAIN tells of a statement that it has run.
type explained struct {
	text string
	root planNode
}

type planNode struct {
	Type    string     `json:"Node Type"`
	Index   string     `json:"Index Name"`
	Filter  string     `json:"Filter"`
	Cond    string     `json:"Index Cond"`
	Dropped float64    `json:"Rows Removed by Filter"`
	Hit     int        `json:"Shared Hit Blocks"`
	Read    int        `json:"Shared Read Blocks"`
	Plans   []planNode `json:"Plans"`
}

// explain runs a statement as a prepared one, as the store does, after a change to the schema that it takes back.
func (w *fixture) explain(mode string, s statement, change string) explained {
	w.t.Helper()
	return w.explainWith(`ANALYZE, BUFFERS, `, mode, s, change)
}

// plan is explain, but the statement is not run.
func (w *fixture) plan(mode string, s statement, change string) explained {
	w.t.Helper()
	return w.explainWith(``, mode, s, change)
}

func (w *fixture) explainWith(options, mode string, s statement, change string) explained {
	w.t.Helper()
	tx := must(w.db.Begin(w.t.Context()))(w.t)
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, sql := range []string{
		`DEALLOCATE ALL`, `SET LOCAL plan_cache_mode = ` + mode, `SET LOCAL jit = off`, change, `PREPARE hot AS ` + s.sql,
	} {
		execIn(w.t, tx, sql, pgx.QueryExecModeSimpleProtocol)
	}
	var text string
	err := tx.QueryRow(w.t.Context(), `EXPLAIN (`+options+`FORMAT JSON) EXECUTE hot`+parameters(w.t, s),
		pgx.QueryExecModeSimpleProtocol).Scan(&text)
	if err != nil {
		w.t.Fatal(err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(text), &plans); err != nil || len(plans) != 1 {
		w.t.Fatalf("%v: %s", err, text)
	}
	return explained{text, plans[0].Plan}
}

// parameters are a statement's for EXECUTE.
func parameters(t *testing.T, s statement) string {
	t.Helper()
	if len(s.args) == 0 {
		return ""
	}
	literals := make([]string, len(s.args))
	for i, arg := range s.args {
		literals[i] = literal(t, arg)
	}
	return ` (` + strings.Join(literals, ", ") + `)`
}

func literal(t *testing.T, arg any) string {
	t.Helper()
	if v, is := arg.(driver.Valuer); is {
		arg = must(v.Value())(t)
	}
	switch v := reflect.ValueOf(arg); v.Kind() {
	case reflect.Invalid:
		return `NULL`
	case reflect.Pointer, reflect.Slice:
		if v.IsNil() {
			return `NULL`
		}
		if v.Kind() == reflect.Pointer {
			return literal(t, v.Elem().Interface())
		}
	default:
	}
	switch v := arg.(type) {
	case []string:
		return `'{` + strings.Join(v, ",") + `}'`
	case []byte:
		return `'\x` + hex.EncodeToString(v) + `'`
	case time.Time:
		return v.UTC().Format(`'2006-01-02 15:04:05.000000+00'`)
	case [][]byte: // of hashes
		elements := make([]string, len(v))
		for i := range v {
			elements[i] = `"\\x` + hex.EncodeToString(v[i]) + `"`
		}
		return `'{` + strings.Join(elements, ",") + `}'`
	case []pgtype.UUID:
		elements := make([]string, len(v))
		for i := range v {
			elements[i] = uuid.UUID(v[i].Bytes).String()
		}
		return `'{` + strings.Join(elements, ",") + `}'`
	case netip.Prefix:
		if !v.IsValid() {
			return `NULL`
		}
		return literal(t, v.String())
	case uuid.UUID, string, int, int32, int64, float64, bool:
		return fmt.Sprintf(`'%v'`, v)
	default:
		t.Fatalf("no literal for a %T", arg)
		return ""
	}
}

// problems are the reasons why a plan is not the look-up in an index that it should be.
func (e explained) problems(index string) (found []string) {
	used := false
	var walk func(planNode)
	walk = func(n planNode) {
		used = used || n.Index == index
		if slices.Contains([]string{"Seq Scan", "Sort", "Incremental Sort", "Gather", "Hash Join"}, n.Type) {
			found = append(found, "a "+n.Type)
		}
		if n.Dropped > 0 {
			found = append(found, "rows that the index does not keep out")
		}
		for _, child := range n.Plans {
			walk(child)
		}
	}
	walk(e.root)
	if !used {
		found = append(found, "no use of "+index)
	}
	return found
}

// searchedLists are the lists' indexes that a plan reads to find a row by its id, or rows by another column.
func (e explained) searchedLists() (found []string) {
	byID := regexp.MustCompile(`\b(id|agent_id|service_account_id) = `)
	var walk func(planNode)
	walk = func(n planNode) {
		if strings.HasSuffix(n.Index, "_live_newest") && byID.MatchString(n.Filter+n.Cond) {
			found = append(found, n.Index)
		}
		for _, child := range n.Plans {
			walk(child)
		}
	}
	walk(e.root)
	return found
}

func (e explained) buffers() int { return e.root.Hit + e.root.Read }
