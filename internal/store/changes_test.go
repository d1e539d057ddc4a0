package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// entry is a change as it is stored.
type entry struct {
	Position int64
	Entry    uuid.UUID
	Noun     string
	Subjects [][]byte
}

// log is the log of changes, in order.
func (w *fixture) log() []entry {
	w.t.Helper()
	rows := must(w.db.Query(w.t.Context(), `SELECT position, entry, noun, subjects FROM changes ORDER BY position`))(w.t)
	return must(pgx.CollectRows(rows, pgx.RowToStructByPos[entry]))(w.t)
}

func (w *fixture) head() (p changelog.Position) {
	w.t.Helper()
	err := w.db.QueryRow(w.t.Context(), `SELECT position, entry FROM change_head`).Scan(&p.Number, &p.Entry)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// standIn is a row of the list of instances of which nobody takes care but the test.
func (w *fixture) standIn(lease time.Duration) uuid.UUID {
	w.t.Helper()
	id := uuid.New()
	w.internal(`INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT $1, 1, $2, position, entry FROM change_head`,
		id, lease.Milliseconds())
	w.internal(`UPDATE change_head SET lease_ms = (SELECT max(lease_ms) FROM instances)`)
	return id
}

// acknowledge is what an instance does that has applied the whole log.
func (w *fixture) acknowledge(id uuid.UUID) {
	w.t.Helper()
	w.internal(`UPDATE instances SET seq = seq + 1, position = h.position, entry = h.entry FROM change_head h WHERE id = $1`, id)
}

// Every change that the store makes to what verification reads is in the log, each row under its subject, and nothing that adds rows is.
func TestEveryRevocationIsInTheLog(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	touched := map[string][]string{
		"UpdateAccessKey": {"accesskeys"}, "DeleteAccessKey": {"accesskeys"},
		"UpdateAgent": {"agents"}, "SetPassword": {"agents"}, "SetPermission": {"agents"}, "DeleteAgent": {"agents"},
		"UpdateServiceAccount": {"service_accounts"}, "DeleteServiceAccount": {"service_accounts"},
		"DeleteServiceAccountKey": {"service_account_keys"}, "UpdateCustomer": {"customers"}, "DeleteCustomer": nouns(),
	}
	for name, do := range callersWrites() {
		before := w.head().Number
		on := w.makeTargets(must(w.store.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: name}))(t))
		wantEqual(t, "the log after what adds rows", w.head().Number, before)
		subjects := map[string][]byte{
			"accesskeys": value[[]byte](w, `SELECT token_sha256 FROM accesskeys WHERE id = $1`, on.key.ID), "agents": on.agent.ID[:],
			"service_accounts": on.account.ID[:], "service_account_keys": on.pair.ID[:], "customers": on.customer.ID[:],
		}
		want := map[string][][]byte{}
		for _, noun := range touched[name] {
			want[noun] = [][]byte{subjects[noun]}
		}
		wantError(t, name, do(t.Context(), w.store, operator, on), nil)
		got := map[string][][]byte{}
		for _, e := range w.log() {
			if e.Position > before {
				got[e.Noun] = append(got[e.Noun], e.Subjects...)
			}
		}
		wantEqual(t, name+" in the log", got, want)
	}
}

// The order of positions is the order of commits, without a gap; what is rolled back leaves no trace.
func TestLogsOrderIsTheOrderOfCommits(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const writers, each = 8, 25
	agents := make([]store.Agent, writers)
	for n := range agents {
		agents[n] = w.createAgent(w.acme, fmt.Sprint("agent ", n))
	}
	// A reader of the log, as an instance is: whatever it sees, nothing may come before that later.
	known := w.head()
	stop := make(chan struct{})
	stopped := started(func() error {
		feed, err := w.store.Log.OpenFeed(context.Background())
		if err != nil {
			return err
		}
		defer feed.Close()
		seen := map[string]int{}
		for last := false; ; {
			news, err := feed.ReadSince(context.Background(), uuid.Nil, known)
			if err != nil {
				return err
			}
			for _, change := range news.Changes {
				if change.Position.Number != known.Number+1 {
					return fmt.Errorf("after %d comes %d", known.Number, change.Position.Number)
				}
				known = change.Position
				seen[string(change.Subjects[0])]++
			}
			if !news.Continues || known != news.Head {
				return fmt.Errorf("after %+v the head is %+v", known, news.Head)
			}
			if last {
				break
			}
			select {
			case <-stop:
				last = true
			default:
			}
		}
		for _, a := range agents {
			if n := seen[string(a.ID[:])]; n != each {
				return fmt.Errorf("%d changes of an agent, want %d", n, each)
			}
		}
		return nil
	})
	errs := atOnce(writers, func(n int) error {
		for i := range 2 * each {
			tx, err := w.db.Begin(t.Context())
			if err != nil {
				return err
			}
			_, err = tx.Exec(t.Context(), `UPDATE agents SET name = $2 WHERE id = $1`, agents[n].ID, fmt.Sprint(i))
			if err == nil && i%2 == 0 {
				err = tx.Commit(t.Context())
			} else {
				err = errors.Join(err, tx.Rollback(t.Context()))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	close(stop)
	wantError(t, "the writers and the reader", errors.Join(append(errs, <-stopped)...), nil)
	entries := map[uuid.UUID]bool{}
	for i, e := range w.log() {
		fatalIf(t, e.Position != int64(i) || entries[e.Entry], "position %d, entry %v at place %d", e.Position, e.Entry, i)
		entries[e.Entry] = true
	}
	if len(entries) != 1+writers*each || w.head().Number != writers*each {
		t.Errorf("%d changes, the head is at %d", len(entries), w.head().Number)
	}
}

func TestLogIsTrimmed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.internal(`SELECT append_change('agents', ARRAY['\x00'::bytea], '{}') FROM generate_series(1, 10050)`)
	log := w.log()
	if len(log) != 10_000 || log[0].Position != 51 || log[len(log)-1].Position != 10_050 {
		t.Errorf("%d changes from %d to %d", len(log), log[0].Position, log[len(log)-1].Position)
	}
	feed := openFeed(t, w.store)
	for i, continues := range map[int]bool{0: true, len(log) - 1: true} {
		news, err := feed.ReadSince(t.Context(), uuid.Nil, changelog.Position{Number: log[i].Position, Entry: log[i].Entry})
		if err != nil || news.Continues != continues || len(news.Changes) != len(log)-1-i {
			t.Errorf("after %d: %v, %d changes, %v", log[i].Position, news.Continues, len(news.Changes), err)
		}
	}
}

// revoking changes a logged row.
func (w *fixture) revoking(ctx context.Context, s *store.Store, key store.AccessKey) error {
	return errorOf(s.UpdateAccessKey(ctx, operator, key.CustomerID, key.ID, store.AccessKeyChange{Name: new(uuid.NewString())}))
}

// A revocation returns at once where there are no instances, and where they have all acknowledged it: not before.
func TestRevocationWaitsForEveryInstance(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	noError(t, w.revoking(t.Context(), w.store, key))
	first, second := w.standIn(time.Hour), w.standIn(time.Hour) // nobody waits for their leases' end
	returned := w.committed(t.Context(), w.store, key)
	w.stillWaits(returned, "with no acknowledgement")
	w.acknowledge(first)
	w.stillWaits(returned, "with one of two")
	w.acknowledge(second)
	noError(t, <-returned)
	// An instance that has gone is not waited for.
	returned = w.committed(t.Context(), w.store, key)
	w.acknowledge(first)
	w.stillWaits(returned, "with one of two, again")
	w.internal(`DELETE FROM instances WHERE id = $1`, second)
	noError(t, <-returned)
}

// A silent instance is waited for until its lease has ended, as are those whose acknowledgement can't be read.
func TestRevocationWaitsForTheLeasesEnd(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	const lease = 300 * time.Millisecond
	id := w.standIn(lease)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, test := range []struct {
		when      string
		meanwhile func()
	}{
		{"a dead instance", func() {}},
		{"another log", func() { // it acknowledges a position, but not this entry
			w.internal(`UPDATE changes SET entry = gen_random_uuid() WHERE position = $1`, w.head().Number)
			w.acknowledge(id)
		}},
		{"a lost database", func() { // the connections are lost between the commit and the acknowledgement, and no more can be had
			w.exec(`UPDATE pg_database SET datallowconn = false WHERE datname = current_database()`)
			w.exec(cutTheStore)
			w.acknowledge(id)
		}},
		{"a client that has gone", cancel},
	} {
		began := time.Now()
		returned := w.committed(ctx, w.store, key)
		test.meanwhile()
		err, took := <-returned, time.Since(began)
		if err != nil || took < changelog.LeaseEnd(lease) || took > patience {
			t.Errorf("%s: after %v, want %v: %v", test.when, took, changelog.LeaseEnd(lease), err)
		}
		w.exec(`UPDATE pg_database SET datallowconn = true WHERE datname = current_database()`)
	}
}

func TestManyRevocationsShareTheLooking(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	traced, catcher := openTraced(t, w.url)
	const many = 30
	keys := make([]store.AccessKey, many)
	for i := range keys {
		keys[i] = w.createKey(w.acme)
	}
	id := w.standIn(time.Hour)
	before := w.head().Number
	var all sync.WaitGroup
	for _, key := range keys {
		all.Go(func() {
			wantError(t, "a revocation", w.revoking(t.Context(), traced, key), nil)
		})
	}
	servertest.Eventually(t, "the changes are committed", func() bool { return w.head().Number == before+many })
	began := time.Now()
	looks := func() int { return catcher.count(`WHERE c.position = ANY ($1)`) }
	from := looks()
	servertest.Eventually(t, "somebody looks", func() bool { return looks() >= from+40 })
	took := time.Since(began)
	w.acknowledge(id)
	all.Wait()
	// One look in 2 ms at most, for all of them together.
	if most := int(took/(2*time.Millisecond)) + 5; 40 > most {
		t.Errorf("40 looks in %v for %d who wait", took, many)
	}
}

// heartbeats are what keeps an instance in the list.
type heartbeats struct {
	w    *fixture
	feed *changelog.Feed
	id   uuid.UUID
	seq  int64
}

func (w *fixture) instance(s *store.Store) *heartbeats {
	w.t.Helper()
	feed := must(s.Log.OpenFeed(w.t.Context()))(w.t)
	w.t.Cleanup(feed.Close)
	b := &heartbeats{w: w, feed: feed, id: uuid.New()}
	b.beat()
	return b
}

// beat acknowledges the whole log.
func (b *heartbeats) beat() {
	b.w.t.Helper()
	if held, err := b.try(b.w.head()); !held || err != nil {
		b.w.t.Fatalf("a heartbeat: %v, %v", held, err)
	}
}

// try is a heartbeat, which the store is told of where it was committed and the Feed's server shows it.
func (b *heartbeats) try(at changelog.Position) (bool, error) {
	b.seq++
	beat := changelog.Beat{ID: b.id, Seq: b.seq, Lease: time.Second, Applied: at}
	held, err := b.feed.Heartbeat(b.w.t.Context(), beat)
	if held && err == nil {
		b.feed.Follows(beat)
	}
	return held, err
}

// committed starts a revocation and returns once it is committed, with where its outcome will be.
func (w *fixture) committed(ctx context.Context, s *store.Store, key store.AccessKey) chan error {
	w.t.Helper()
	before := w.head().Number
	returned := started(func() error { return w.revoking(ctx, s, key) })
	servertest.Eventually(w.t, "the change is committed", func() bool { return w.head().Number == before+1 })
	return returned
}

func (w *fixture) stillWaits(returned chan error, when string) {
	w.t.Helper()
	select {
	case err := <-returned:
		w.t.Fatalf("%s: it has returned (%v)", when, err)
	case <-time.After(100 * time.Millisecond): // many looks
	}
}

// An acknowledgement of the same number in another log doesn't count, nor does one of a number that the log has not come to: it was
// begun anew. Control: with the entry of this log it does.
func TestAcknowledgementOfAnotherLogDoesNotCount(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	key := w.createKey(w.acme)
	id := w.standIn(time.Hour)
	returned := w.committed(t.Context(), w.store, key)
	for _, ahead := range []int{0, 1, 1000} {
		w.internal(`UPDATE instances SET position = (SELECT position FROM change_head) + $2, entry = gen_random_uuid() WHERE id = $1`, id, ahead)
		w.stillWaits(returned, "acknowledged by number alone")
	}
	w.acknowledge(id)
	noError(t, <-returned)
}

// elsewhere is a store whose Feed is on one database and whose pool reaches another, that was the same before: its heartbeats go to the
// first.
func elsewhere(t *testing.T) (here, there *fixture, s *store.Store, beats *heartbeats) {
	t.Helper()
	here = newFixture(t)
	there = fixtureOn(t, pgtest.Migrated(t))
	there.acme = here.acme
	there.exec(`INSERT INTO customers (id, name) VALUES ($1, 'Acme')`, here.acme.ID)
	address := newWay(t, here.url)
	s = open(t, address.url)
	beats = here.instance(s)
	address.lead(t, there.url) // where new connections go
	s.DB.Reset()
	return here, there, s, beats
}

// A write that has to be acknowledged, and reaches another database than this server's heartbeats do, writes nothing. Control: once
// that database shows the heartbeat it writes. What only inserts is looked for where it is, and needs nobody's acknowledgement.
func TestRevisionOnADatabaseWithoutThisServersHeartbeatIsUnavailable(t *testing.T) {
	t.Parallel()
	_, there, s, beats := elsewhere(t)
	on := there.makeTargets(there.acme)
	before := there.rows()
	for _, name := range revisions() {
		wantError(t, name, callersWrites()[name](t.Context(), s, operator, on), store.ErrUnavailable)
	}
	wantEqual(t, "the rows", there.rows(), before)
	servertest.Eventually(t, "no connection to that database is kept", func() bool { return s.DB.Stats().Total == 0 })
	wantEqual(t, "the log is elsewhere", must(s.Log.Inspect(t.Context()))(t).Elsewhere, true)
	// An older heartbeat of this server's is what a standby has that was promoted without the newest.
	register := `INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT $1, $2, 1000, position, entry FROM change_head`
	there.internal(register, beats.id, beats.seq-1)
	wantError(t, "with an older heartbeat", callersWrites()["DeleteAgent"](t.Context(), s, operator, on), store.ErrUnavailable)
	there.internal(`UPDATE instances SET seq = $1`, beats.seq)
	wantEqual(t, "the log is elsewhere", must(s.Log.Inspect(t.Context()))(t).Elsewhere, false)
	login := must(s.AgentByUsername(t.Context(), on.agent.Username, netip.Prefix{}))(t)
	renewing := s.RenewPasswordHash(t.Context(), login, secret.New(passwordHash+"renewed")) // which waits for nobody
	wantError(t, "control: with the heartbeat", renewing, nil)
	for name, write := range callersWrites() {
		if strings.HasPrefix(name, "Create") {
			wantError(t, name, write(t.Context(), s, operator, on), nil)
		}
	}
}

// A credential is looked up only where the database shows the newest heartbeat that this server follows: it may be a standby that was
// promoted without it, and its log the same up to there.
func TestLookupOnADatabaseThatHasLostThisServersHeartbeatIsUnavailable(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	beats := w.instance(s)
	look := func() error { return errorOf(keyByHash(t.Context(), s, store.TokenHash{}, w.head())) }
	wantError(t, "with the heartbeat", look(), store.ErrNotFound)
	w.internal(`UPDATE instances SET seq = seq - 1 WHERE id = $1`, beats.id)
	wantError(t, "without the heartbeat", look(), changelog.ErrOtherLog)
}

// A revocation is answered only where the database that it is on shows a heartbeat of this server's that began after the commit:
// neither acknowledgements of others nor the end of their leases stand for that.
func TestRevocationThatThisServersHeartbeatsDoNotFollowIsUnavailable(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		silent bool // there is another instance, whose lease has to be waited for
		then   func(w *fixture, beats *heartbeats, returned chan error)
		want   error
	}{
		"no heartbeat after it": {false, func(*fixture, *heartbeats, chan error) {}, store.ErrUnavailable},
		"the list emptied":      {false, func(w *fixture, _ *heartbeats, _ chan error) { w.internal(`DELETE FROM instances`) }, store.ErrUnavailable},
		"another one's acknowledgement, and this one's removed": {false, func(w *fixture, beats *heartbeats, _ chan error) {
			w.acknowledge(w.standIn(time.Second))
			w.internal(`DELETE FROM instances WHERE id = $1`, beats.id)
		}, store.ErrUnavailable},
		"a heartbeat that the database has lost": {true, func(w *fixture, beats *heartbeats, _ chan error) {
			beats.beat()
			w.internal(`UPDATE instances SET seq = seq - 1 WHERE id = $1`, beats.id)
		}, store.ErrUnavailable},
		"a heartbeat, and the change is lost": {true, func(w *fixture, beats *heartbeats, _ chan error) {
			beats.beat()
			w.internal(`UPDATE changes SET entry = gen_random_uuid() WHERE position = (SELECT position FROM change_head)`)
		}, store.ErrUnavailable},
		"its heartbeats":                      {false, func(_ *fixture, beats *heartbeats, _ chan error) { beats.beat() }, nil},
		"its heartbeats, and the lease's end": {true, func(_ *fixture, beats *heartbeats, _ chan error) { beats.beat() }, nil},
		"its heartbeats, which go on, and the lease's end": {true, func(w *fixture, beats *heartbeats, returned chan error) {
			servertest.Eventually(w.t, "it is answered", func() bool { beats.beat(); return len(returned) == 1 })
		}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			s, looks := openTraced(t, w.url)
			key, beats := w.createKey(w.acme), w.instance(s)
			if test.silent {
				w.standIn(3 * time.Second)
			}
			returned := w.committed(t.Context(), s, key)
			servertest.Eventually(t, "the revocation waits", func() bool { return !test.silent || looks.count(`WHERE c.position = ANY ($1)`) > 0 }) // for what begins now
			test.then(w, beats, returned)
			wantError(t, "the revocation", <-returned, test.want)
		})
	}
}

// Somebody holds the instance's own row: a session of its own perhaps that hangs. The heartbeat says so and does not wait; nobody
// removes that row, or waits for it, and under another id the instance goes on.
func TestHeartbeatAndRemovalDoNotWaitForALockedRow(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	beats, other := w.instance(s), w.instance(open(t, w.url))
	tx := w.begin()
	execIn(t, tx, `SELECT FROM instances WHERE id = $1 FOR UPDATE`, beats.id)
	bounded, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	held, err := beats.feed.Heartbeat(bounded, changelog.Beat{ID: beats.id, Seq: beats.seq + 1, Lease: time.Second, Applied: w.head()})
	if held || !errors.Is(err, changelog.ErrRowLocked) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a heartbeat on a locked row: %v, %v", held, err)
	}
	for name, remove := range map[string]func(context.Context, uuid.UUID, int64) error{"by the pool": s.Log.Unregister, "by the feed": other.feed.Unregister} {
		wantError(t, "removing it "+name, remove(bounded, beats.id, beats.seq), nil)
	}
	wantEqual(t, "instances left", value[int](w, `SELECT count(*) FROM instances`), 2)
	heartbeat(t, beats.feed, changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()})
	noError(t, tx.Rollback(t.Context()))
	noError(t, s.Log.Unregister(t.Context(), beats.id, beats.seq)) // control
	wantEqual(t, "instances left", value[int](w, `SELECT count(*) FROM instances`), 2)
}

// A program that the schema shuts out neither reads the log nor says that it lives.
func TestOutdatedProgramGetsNoFurther(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	beats := w.instance(s)
	newest := newestStep(t)
	for version, want := range map[int]error{newest: nil, newest + 1: changelog.ErrOutdated} {
		w.internal(`UPDATE change_head SET oldest_version = $1`, version)
		_, err := beats.feed.ReadSince(t.Context(), beats.id, w.head())
		if !errors.Is(err, want) || want != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("version %d: reading the log: %v", version, err)
		}
		held, err := beats.try(w.head())
		errorIf(t, held != (want == nil) || !errors.Is(err, want), "version %d: a heartbeat: %v, %v", version, held, err)
		held, err = beats.feed.Heartbeat(t.Context(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()})
		errorIf(t, held != (want == nil) || !errors.Is(err, want), "version %d: registering: %v, %v", version, held, err)
		wantEqual(t, "the program is outdated", must(s.Log.Inspect(t.Context()))(t).Outdated, want != nil)
	}
}

// A database that was put back, or replaced, says so: its log went back, or other tables have the names.
func TestLogThatWentBackOrWasReplacedIsSeen(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	feed := openFeed(t, w.store)
	since := func(known changelog.Position) changelog.Batch {
		return must(feed.ReadSince(t.Context(), uuid.New(), known))(t)
	}
	start := since(changelog.Position{})
	errorIf(t, start.WentBack || start.Epoch == "" || start.Continues, "from nothing: %+v", start)
	w.exec(`UPDATE customers SET name = 'n'`)
	now := since(start.Head)
	errorIf(t, !now.Continues || now.WentBack || now.Epoch != start.Epoch || len(now.Changes) != 1, "after a change: %+v", now)
	wantEqual(t, "the epoch on another connection", must(openFeed(t, w.store).ReadSince(t.Context(), uuid.New(), now.Head))(t).Epoch, start.Epoch)
	for name, known := range map[string]changelog.Position{
		"a number that was not reached": {Number: now.Head.Number + 1, Entry: uuid.New()}, "another entry": {Number: now.Head.Number, Entry: uuid.New()},
	} {
		if got := since(known); got.Continues || !got.WentBack || got.Epoch != start.Epoch {
			t.Errorf("%s: %+v", name, got)
		}
	}
	epochs := []string{start.Epoch}
	for _, table := range append(nouns(), "changes", "change_head", "instances") {
		// As pg_restore --clean makes it anew.
		w.exec(`ALTER TABLE ` + table + ` RENAME TO before; CREATE TABLE ` + table + ` (LIKE before INCLUDING ALL);
			BEGIN; SET LOCAL accesskeys.internal = 'on'; INSERT INTO ` + table + ` SELECT * FROM before; COMMIT; DROP TABLE before CASCADE`)
		got := since(now.Head)
		errorIf(t, !got.Continues || slices.Contains(epochs, got.Epoch), "with another table %s: %+v", table, got)
		epochs = append(epochs, got.Epoch)
	}
}

// A log that lacks an entry says nothing of what was changed: an instance that reads it has to forget everything.
func TestLogWithAGapDoesNotContinue(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	feed := openFeed(t, w.store)
	known := w.head()
	for range 3 {
		w.exec(`UPDATE customers SET name = name || 'n'`)
	}
	for _, gap := range []bool{false, true} {
		if gap {
			w.internal(`DELETE FROM changes WHERE position = $1`, known.Number+2)
		}
		news := must(feed.ReadSince(t.Context(), uuid.New(), known))(t)
		errorIf(t, news.Continues == gap || len(news.Changes) != map[bool]int{false: 3}[gap], "with a gap: %t: %+v", gap, news)
	}
}

// A warning of somebody else's is not taken for that of a commit which was not confirmed.
func TestOtherWarningsDoNotMakeACommitUnconfirmed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE WARNING 'an audit trigger has something to say' USING ERRCODE = '01000'; RETURN NULL; END $$`)
	for _, table := range append(nouns(), "changes", "instances") {
		w.exec(`CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION warn()`)
	}
	for name, s := range map[string]*store.Store{"plain": open(t, w.url), "error": open(t, withSetting(t, w.url, "client_min_messages", "error"))} {
		for write, do := range callersWrites() {
			on := w.makeTargets(must(s.CreateCustomer(t.Context(), operator, store.NewCustomer{Name: "c"}))(t))
			wantError(t, name+": "+write, do(t.Context(), s, operator, on), nil)
		}
	}
	w.instance(open(t, w.url)).beat()
}
