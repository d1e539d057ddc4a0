package authcache_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/store"
)

// What is answered from memory is what the store answers, in every field, for live credentials and for deleted ones.
func TestMemoryGivesWhatTheStoreGives(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	// These are not read, and these no credential has together.
	notRead := []string{"TmLastUsed", "CreatedByType", "CreatedByID"}
	empties := map[string][]string{
		"access key": append(notRead, "ServiceAccount"), "account's access key": append(notRead, "AgentID", "Agent"),
	}
	for _, reader := range w.acme.readers() {
		c := must(reader.store(t.Context(), w.store))(t)
		for name, empty := range emptyFields(reflect.ValueOf(c)) {
			if empty && !slices.Contains(empties[reader.name], name) {
				t.Errorf("%s: %s is empty: it could get lost unseen", reader.name, name)
			}
		}
	}
	for _, sql := range []string{
		`SELECT`, // as made
		`UPDATE accesskeys SET agent_id = NULL, roles = '{agent_viewer,customer_admin}'`,
		`UPDATE accesskeys SET tm_delete = now()`,
		`UPDATE agents SET tm_delete = now()`,
		`UPDATE service_account_keys SET tm_delete = now()`,
		`UPDATE service_accounts SET tm_delete = now()`,
		`UPDATE customers SET tm_delete = now()`,
	} {
		w.exec(sql)
		w.applied(r)
		r.reads(w.acme)
		r.wants(sql, w.acme, everything)
		off.wants(sql+", without a cache", w.acme, "")
	}
}

// emptyFields tells of each field of a credential and of what is in it whether it is the zero value, but for the time of
// its reading.
func emptyFields(v reflect.Value) map[string]bool {
	empty := map[string]bool{}
	for i := range v.NumField() {
		f := v.Field(i)
		if v.Type().Field(i).Name == "Now" {
			continue
		}
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]() {
			for name, zero := range emptyFields(f) {
				empty[name] = zero
			}
		} else {
			empty[v.Type().Field(i).Name] = f.IsZero()
		}
	}
	return empty
}

// A remembered key's "now" is the database's, going on by our clock, and never behind the database's.
func TestRememberedKeysTimeIsTheDatabasesAndNeverLate(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	_, hash := w.newKey(10)
	w.applied(r) // a creation that is applied later has the row read again, at the time of then
	clock := func() time.Time { return value[time.Time](w, `SELECT clock_timestamp()`) }
	for _, ahead := range []time.Duration{0, 0, 9 * time.Second, 19 * time.Second} {
		r.advance(ahead - time.Duration(r.ahead.Load()))
		hits, before := r.Stats().Hits, clock()
		c := must(r.AccessKeyByHash(within(t), hash, nobody))(t)
		if after := clock(); c.Now.Before(before.Add(ahead)) || c.Now.After(after.Add(ahead+5*time.Second)) {
			// The time of a round trip ahead at most; five seconds are a busy machine's.
			t.Errorf("%v later, between %v and %v of the database's, it is said to be %v", ahead, before, after, c.Now)
		}
		equal(t, "it was remembered", r.Stats().Hits > hits || ahead == 0, true)
		equal(t, ahead.String()+" after its creation a key for 10 s is good", c.TmExpire.After(c.Now), ahead < 10*time.Second)
	}
}

// What is remembered as one kind of thing is never found as another, whatever bytes are presented.
func TestWhatIsRememberedIsFoundAsItsOwnKindOnly(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.whole(w.acme)
	ids := map[string]uuid.UUID{
		"customer": w.acme.customer.ID, "agent": w.acme.agent.ID, "account": w.acme.account.ID, "pair": w.acme.pair.ID, "key": w.acme.key.ID,
	}
	hits := r.Stats().Hits
	for name, id := range ids {
		var hash store.TokenHash
		copy(hash[:], id[:])
		r.refused("the "+name+"'s id as a hash", hash)
		if _, err := r.AgentCredential(within(t), id, nobody); name != "agent" && !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the %s's id as an agent's: %v", name, err)
		}
		if _, err := r.ServiceAccountCredential(within(t), id, nobody); name != "pair" && !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the %s's id as a pair's: %v", name, err)
		}
	}
	equal(t, "hits: the agent as an agent, the pair as a pair", r.Stats().Hits-hits, 2)
}

// Every change to a row makes just what depends on it be forgotten, by any client and statement.
func TestAChangeIsForgottenOnEveryInstance(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	instances := []*runner{w.run(long), w.run(long)}
	const key, agent, pair, made = "access key", "agent", "service account's key", "account's access key"
	for _, change := range []struct {
		name, sql string
		id        any
		acme      string // what is still remembered
		globex    string
	}{
		{"no row", `UPDATE agents SET name = 'x' WHERE id = $1`, uuid.New(), everything, everything},
		{"no row that is read", `UPDATE signups SET tries = 1 WHERE id = $1`, w.acme.key.ID, everything, everything},
		{"key changed", `UPDATE accesskeys SET name = 'other' WHERE id = $1`, w.acme.key.ID, agent + ", " + pair + ", " + made, everything},
		{"key deleted", `UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, w.acme.key.ID, agent + ", " + pair + ", " + made, everything},
		{"account's key changed", `UPDATE accesskeys SET name = 'other' WHERE id = $1`, w.acme.made.ID, key + ", " + agent + ", " + pair, everything},
		{"agent changed", `UPDATE agents SET permission = 16 WHERE id = $1`, w.acme.agent.ID, pair + ", " + made, everything},
		{"account changed", `UPDATE service_accounts SET roles = '{}' WHERE id = $1`, w.acme.account.ID, key + ", " + agent, everything},
		{"pair changed", `UPDATE service_account_keys SET spki = 'other' WHERE id = $1`, w.acme.pair.ID, key + ", " + agent + ", " + made, everything},
		{"customer changed", `UPDATE customers SET tm_delete = '2030-01-01' WHERE id = $1`, w.acme.customer.ID, "", everything},
		{"customer merged", `MERGE INTO customers c USING (SELECT $1::uuid AS id) s ON c.id = s.id WHEN MATCHED THEN UPDATE SET tm_delete = '2031-01-01'`,
			w.acme.customer.ID, "", everything},
		{"customer upserted", `INSERT INTO customers (id, name) VALUES ($1, 'acme') ON CONFLICT (id) DO UPDATE SET tm_delete = '2032-01-01'`,
			w.acme.customer.ID, "", everything},
		{"every row of a table", `UPDATE agents SET description = 'other' WHERE id <> $1`, uuid.New(), pair + ", " + made, pair + ", " + made},
		{"two tables at once", `WITH k AS (UPDATE accesskeys SET description = 'other' WHERE customer_id = $1)
			UPDATE agents SET name = 'other' WHERE customer_id = $1`,
			w.acme.customer.ID, pair, everything},
		{"a noun of tomorrow", `SELECT append_change('gadgets', ARRAY[uuid_send($1)], '{}')`, uuid.New(), "", ""},
		{"a subject that is none", `SELECT append_change('agents', ARRAY[substr(uuid_send($1), 2)], '{}')`, uuid.New(), "", ""},
		{"more than can be named", `SELECT append_change('agents', NULL, NULL) WHERE $1::uuid IS NOT NULL`, uuid.New(), "", ""},
	} {
		for _, r := range instances {
			r.whole(w.acme)
			r.whole(w.globex)
		}
		w.internally(change.sql, change.id) // as the triggers, for those that append to the log themselves
		for _, r := range instances {
			w.applied(r)
			r.wants(change.name, w.acme, change.acme)
			r.wants(change.name, w.globex, change.globex)
		}
	}
	// Rows that are removed, not only marked. What isn't there is not remembered either.
	for _, removal := range []struct {
		sql          string
		acme, globex string
	}{
		{`DELETE FROM accesskeys WHERE id = '` + w.acme.key.ID.String() + `'`, "agent, service account's key, account's access key", everything},
		{`DELETE FROM service_account_keys WHERE id = '` + w.acme.pair.ID.String() + `'`, "agent, account's access key", everything},
		{`DELETE FROM agents WHERE id = '` + w.acme.agent.ID.String() + `'`, "account's access key", everything},
		{`DELETE FROM accesskeys WHERE id = '` + w.acme.made.ID.String() + `'`, "", everything},
		{`TRUNCATE accesskeys`, "", ""},
		{`TRUNCATE agents CASCADE`, "", ""},
		{`TRUNCATE service_account_keys`, "", ""},
	} {
		for _, r := range instances {
			r.reads(w.globex)
		}
		w.exec(removal.sql)
		for _, r := range instances {
			w.applied(r)
			r.wants(removal.sql, w.acme, removal.acme)
			r.wants(removal.sql, w.globex, removal.globex)
		}
	}
	// Each by a trigger of its own, not only by that of a table which refers to it.
	for _, table := range loggedTables {
		before := value[int64](w, `SELECT position FROM change_head`)
		var disable, enable strings.Builder
		for _, other := range loggedTables {
			if other != table {
				disable.WriteString(`ALTER TABLE ` + other + ` DISABLE TRIGGER emptied;`)
				enable.WriteString(`ALTER TABLE ` + other + ` ENABLE ALWAYS TRIGGER emptied;`)
			}
		}
		w.between(disable.String(), enable.String(), `TRUNCATE `+table+` CASCADE`)
		inLog := value[bool](w, `SELECT EXISTS (SELECT FROM changes WHERE position > $1 AND subjects IS NULL)`, before)
		equal(t, "TRUNCATE "+table+" is in the log", inLog, true)
	}
}

// A statement may change more rows than a change names.
func TestAStatementOverManyRowsIsForgotten(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	w.exec(`INSERT INTO agents (id, customer_id, username, password_hash)
		SELECT gen_random_uuid(), $1, 'agent ' || i, '$argon2id$v=19$x' FROM generate_series(1, 1500) i`, w.globex.customer.ID)
	for _, rows := range []int{998, 1200} { // and the two that are read
		r.whole(w.acme)
		w.exec(`UPDATE agents SET name = name || '.' WHERE id IN
			(SELECT id FROM agents ORDER BY (username IN ('acme', 'globex')) DESC, username LIMIT $1)`, rows+2)
		w.applied(r)
		// Up to 1000 rows are named, and nothing else is forgotten; past that, all is.
		remembered := "service account's key, account's access key"
		if rows > 1000 {
			remembered = ""
		}
		r.wants("after", w.acme, remembered)
		equal(t, "the rows are named", value[bool](w, `SELECT subjects IS NOT NULL FROM changes ORDER BY position DESC LIMIT 1`), rows < 1000)
	}
}

// No fill after invalidate: what was read before a change was applied is not remembered after it, and is nobody's answer.
func TestAReadingThatAChangeOvertookIsNotRemembered(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, held := w.held(long, 1)
	read := r.ask(within(t), w.acme.hash)
	<-held.stopped // it has the row as it was
	w.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, w.acme.key.ID)
	w.applied(r)
	held.let()
	if got := <-read; got.err != nil || got.TmDelete.Equal(store.Never()) || held.begun.Load() != 2 {
		t.Errorf("by %d look-ups the key is deleted at %v, %v", held.begun.Load(), got.TmDelete, got.err)
	}
	r.wants("after the change", w.acme, "access key, agent") // as the second look-up had them
}

// Requests that miss at the same time share look-ups, and the first of them may go away, while they wait or while the look-up is under way.
func TestOneLookUpServesAllWhoAskAtOnce(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, held := w.held(long, authcache.LookupsAtOnce+1)
	held.fill(r, newHash())
	type asked struct {
		first  <-chan answer
		leave  func()
		others [10]<-chan answer
	}
	ask := func(hash store.TokenHash, before int) (a asked) {
		ctx, leave := context.WithCancel(t.Context())
		a.first, a.leave = r.ask(ctx, hash), leave
		r.waiting(before + 1)
		for i := range a.others {
			a.others[i] = r.ask(within(t), hash)
		}
		r.waiting(before + 1 + len(a.others))
		return a
	}
	waiting := ask(w.acme.hash, 0)
	underWay := ask(w.acme.madeHash, 1+len(waiting.others))
	waiting.leave()
	left := []answer{<-waiting.first}
	for range authcache.LookupsAtOnce {
		held.release <- struct{}{}
	}
	<-held.stopped // the look-up of all
	underWay.leave()
	left = append(left, <-underWay.first)
	held.let()
	for _, got := range left {
		if !errors.Is(got.err, store.ErrUnavailable) || !errors.Is(got.err, context.Canceled) {
			t.Errorf("who went away: %v", got.err)
		}
	}
	for _, stayed := range append(waiting.others[:], underWay.others[:]...) {
		wantError(t, "who stayed", (<-stayed).err, nil)
	}
	equal(t, "look-ups for all who asked at once", held.begun.Load()-authcache.LookupsAtOnce, 1)
}

// A request gets no look-up that was under way before it: not after a change was applied; not after a key was created that a client has
// presented before; and not the time that was, since a key may have expired in between.
func TestALookUpUnderWayIsNotShared(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	created := newHash()
	var now time.Time
	for name, test := range map[string]struct {
		hash    store.TokenHash
		happens func(r *runner)
		is      func(after answer) bool
	}{
		"a change": {w.acme.hash, func(r *runner) {
			w.exec(`UPDATE accesskeys SET name = 'changed' WHERE id = $1`, w.acme.key.ID)
			w.applied(r)
		}, func(after answer) bool { return after.Name == "changed" }},
		"a creation": {created, func(*runner) { w.keyFor(created, 3600) }, func(answer) bool { return true }},
		"time": {
			w.globex.hash, func(*runner) { now = value[time.Time](w, `SELECT clock_timestamp()`) },
			func(after answer) bool { return !after.Now.Before(now) },
		},
	} {
		r, held := w.held(long, authcache.LookupsAtOnce)
		first := held.fill(r, test.hash)
		test.happens(r)
		second := r.ask(within(t), test.hash)
		r.waiting(1)
		held.let()
		// Who asked before a creation is told what a proof finds, and that is made after it.
		before, after := <-first, <-second
		if before.err != nil || name == "a change" && !test.is(before) {
			t.Errorf("%s: who asked before it: %+v", name, before)
		}
		if after.err != nil || !test.is(after) {
			t.Errorf("%s: who asked after it: %+v", name, after)
		}
		r.stop()
	}
}

// What was found in memory counts only where nothing has been applied since: a row that was found while no lease was held may
// have been revoked long ago, and that a round applies the revocation and renews the lease doesn't make it good.
func TestALookUpThatAChangeOvertookDoesNotCount(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r := w.run(long)
	r.reads(w.acme)
	c, err := r.AccessKeyByHashAfter(within(t), w.acme.hash, func() {
		w.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id = $1`, w.acme.key.ID)
		w.applied(r)
	})
	if err != nil || c.TmDelete.Equal(store.Never()) {
		t.Errorf("deleted at %v, %v", c.TmDelete, err)
	}
}

// Uses of a remembered key that follow each other closely are not all noted; of one that is not remembered each is.
func TestUsesOfARememberedKeyAreNotedApart(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const apart = 25 * time.Second
	for lease, want := range map[time.Duration][]bool{long: {true, false, true}, 0: {true, true, true}} {
		r := w.run(lease)
		r.reads(w.acme)
		for i, later := range []time.Duration{0, apart - time.Second, apart + time.Second} {
			c := must(r.AccessKeyByHash(within(t), w.acme.hash, nobody))(t)
			c.Now = c.Now.Add(later)
			equal(t, fmt.Sprintf("lease %v, %v after the first use", lease, later), c.NoteUse(apart), want[i])
		}
	}
}
