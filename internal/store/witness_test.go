package store_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

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
func (w *fixture) committed(s *store.Store, key store.AccessKey) chan error {
	w.t.Helper()
	returned, before := make(chan error, 1), w.head().Number
	go func() {
		_, err := w.revoking(s, key)
		returned <- err
	}()
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
	returned := w.committed(w.store, key)
	for _, ahead := range []int{0, 1, 1000} {
		w.internal(`UPDATE instances SET position = (SELECT position FROM change_head) + $2, entry = gen_random_uuid() WHERE id = $1`, id, ahead)
		w.stillWaits(returned, "acknowledged by number alone")
	}
	w.acknowledge(id)
	if err := <-returned; err != nil {
		t.Error(err)
	}
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
		wantError(t, name, callersWrites()[name](t.Context(), s, store.Operator(), on), store.ErrUnavailable)
	}
	if after := there.rows(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}
	servertest.Eventually(t, "no connection to that database is kept", func() bool { return s.DB.Stats().Total == 0 })
	if i, err := s.Log.Inspect(t.Context()); err != nil || !i.Elsewhere {
		t.Errorf("inspected as %+v, %v", i, err)
	}
	// An older heartbeat of this server's is what a standby has that was promoted without the newest.
	register := `INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT $1, $2, 1000, position, entry FROM change_head`
	there.internal(register, beats.id, beats.seq-1)
	wantError(t, "with an older heartbeat", callersWrites()["DeleteAgent"](t.Context(), s, store.Operator(), on), store.ErrUnavailable)
	there.internal(`UPDATE instances SET seq = $1`, beats.seq)
	if i, err := s.Log.Inspect(t.Context()); err != nil || i.Elsewhere {
		t.Errorf("inspected as %+v, %v", i, err)
	}
	login := must(s.AgentByUsername(t.Context(), on.agent.Username, netip.Prefix{}))(t)
	if err := s.RenewPasswordHash(t.Context(), login, secret.New(passwordHash+"renewed")); err != nil { // which waits for nobody
		t.Errorf("control: with the heartbeat: %v", err)
	}
	for name, write := range callersWrites() {
		if strings.HasPrefix(name, "Create") {
			if err := write(t.Context(), s, store.Operator(), on); err != nil {
				t.Errorf("%s: %v", name, err)
			}
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
	look := func() error {
		_, err := keyByHash(t.Context(), s, store.TokenHash{}, w.head())
		return err
	}
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
		then   func(w *fixture, beats *heartbeats)
		want   error
	}{
		"no heartbeat after it": {false, func(*fixture, *heartbeats) {}, store.ErrUnavailable},
		"the list emptied":      {false, func(w *fixture, _ *heartbeats) { w.internal(`DELETE FROM instances`) }, store.ErrUnavailable},
		"another one's acknowledgement, and this one's removed": {false, func(w *fixture, beats *heartbeats) {
			w.acknowledge(w.standIn(time.Second))
			w.internal(`DELETE FROM instances WHERE id = $1`, beats.id)
		}, store.ErrUnavailable},
		"a heartbeat that the database has lost": {true, func(w *fixture, beats *heartbeats) {
			beats.beat()
			w.internal(`UPDATE instances SET seq = seq - 1 WHERE id = $1`, beats.id)
		}, store.ErrUnavailable},
		"a heartbeat, and the change is lost": {true, func(w *fixture, beats *heartbeats) {
			beats.beat()
			w.internal(`UPDATE changes SET entry = gen_random_uuid() WHERE position = (SELECT position FROM change_head)`)
		}, store.ErrUnavailable},
		"its heartbeats":                      {false, func(_ *fixture, beats *heartbeats) { beats.beat() }, nil},
		"its heartbeats, and the lease's end": {true, func(_ *fixture, beats *heartbeats) { beats.beat() }, nil},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			looks := &statements{}
			s := openTraced(t, w.url, looks)
			key, beats := w.createKey(w.acme), w.instance(s)
			if test.silent {
				w.standIn(3 * time.Second)
			}
			returned := w.committed(s, key)
			servertest.Eventually(t, "the revocation waits", func() bool { return !test.silent || looks.count(`WHERE c.position = ANY ($1)`) > 0 }) // for what begins now
			test.then(w, beats)
			if err := <-returned; !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// Where a lease has to be waited for, and this server's heartbeats go on meanwhile, the revocation is answered.
func TestRevocationIsAnsweredByTimeWhereHeartbeatsGoOn(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	s := open(t, w.url)
	key, beats := w.createKey(w.acme), w.instance(s)
	w.standIn(time.Second) // which says no more
	returned := w.committed(s, key)
	for {
		select {
		case err := <-returned:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(50 * time.Millisecond):
			beats.beat()
		}
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
	if _, err := tx.Exec(t.Context(), `SELECT FROM instances WHERE id = $1 FOR UPDATE`, beats.id); err != nil {
		t.Fatal(err)
	}
	bounded, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	held, err := beats.feed.Heartbeat(bounded, changelog.Beat{ID: beats.id, Seq: beats.seq + 1, Lease: time.Second, Applied: w.head()})
	if held || !errors.Is(err, changelog.ErrRowLocked) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a heartbeat on a locked row: %v, %v", held, err)
	}
	for name, remove := range map[string]func(context.Context, uuid.UUID, int64) error{"by the pool": s.Log.Unregister, "by the feed": other.feed.Unregister} {
		if err := remove(bounded, beats.id, beats.seq); err != nil {
			t.Errorf("removing it %s: %v", name, err)
		}
	}
	if n := value[int](w, `SELECT count(*) FROM instances`); n != 2 {
		t.Errorf("%d instances are left", n)
	}
	if held, err := beats.feed.Heartbeat(bounded, changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()}); !held || err != nil {
		t.Errorf("under another id: %v, %v", held, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Log.Unregister(t.Context(), beats.id, beats.seq); err != nil || value[int](w, `SELECT count(*) FROM instances`) != 2 { // control
		t.Errorf("removing it in the end: %v", err)
	}
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
		if held != (want == nil) || !errors.Is(err, want) {
			t.Errorf("version %d: a heartbeat: %v, %v", version, held, err)
		}
		held, err = beats.feed.Heartbeat(t.Context(), changelog.Beat{ID: uuid.New(), Seq: 1, Lease: time.Second, Applied: w.head()})
		if held != (want == nil) || !errors.Is(err, want) {
			t.Errorf("version %d: registering: %v, %v", version, held, err)
		}
		if i := must(s.Log.Inspect(t.Context()))(t); i.Outdated != (want != nil) {
			t.Errorf("version %d: inspected as %+v", version, i)
		}
	}
}

// A database that was put back, or replaced, says so: its log went back, or other tables have the names.
func TestLogThatWentBackOrWasReplacedIsSeen(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	since := func(known changelog.Position) changelog.Batch {
		return must(feed.ReadSince(t.Context(), uuid.New(), known))(t)
	}
	start := since(changelog.Position{})
	if start.WentBack || start.Epoch == "" || start.Continues {
		t.Errorf("from nothing: %+v", start)
	}
	w.exec(`UPDATE customers SET name = 'n'`)
	now := since(start.Head)
	if !now.Continues || now.WentBack || now.Epoch != start.Epoch || len(now.Changes) != 1 {
		t.Errorf("after a change: %+v", now)
	}
	if same := must(must(w.store.Log.OpenFeed(t.Context()))(t).ReadSince(t.Context(), uuid.New(), now.Head))(t); same.Epoch != start.Epoch {
		t.Errorf("on another connection the epoch is %s, not %s", same.Epoch, start.Epoch)
	}
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
		if !got.Continues || slices.Contains(epochs, got.Epoch) {
			t.Errorf("with another table %s: %+v", table, got)
		}
		epochs = append(epochs, got.Epoch)
	}
}

// A log that lacks an entry says nothing of what was changed: an instance that reads it has to forget everything.
func TestLogWithAGapDoesNotContinue(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	feed := must(w.store.Log.OpenFeed(t.Context()))(t)
	defer feed.Close()
	known := w.head()
	for range 3 {
		w.exec(`UPDATE customers SET name = name || 'n'`)
	}
	for _, gap := range []bool{false, true} {
		if gap {
			w.internal(`DELETE FROM changes WHERE position = $1`, known.Number+2)
		}
		if news := must(feed.ReadSince(t.Context(), uuid.New(), known))(t); news.Continues == gap || len(news.Changes) != map[bool]int{false: 3}[gap] {
			t.Errorf("with a gap: %t: %+v", gap, news)
		}
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
			on := w.makeTargets(must(s.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "c"}))(t))
			if err := do(t.Context(), s, store.Operator(), on); err != nil {
				t.Errorf("%s: %s: %v", name, write, err)
			}
		}
	}
	w.instance(open(t, w.url)).beat()
}
