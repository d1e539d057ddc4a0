package authcache_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/authcache"
	"accesskeys/internal/store"
)

// lastUsed is when a key was last used, as it is stored; nil for never.
func (w *world) lastUsed(id uuid.UUID) *time.Time {
	w.t.Helper()
	return value[*time.Time](w, `SELECT (SELECT tm_last_used FROM accesskey_uses WHERE accesskey_id = $1)`, id)
}

// A use is written down as what the database's clock said, from memory or not; a key that nobody has used has none.
func TestUsesAreWrittenDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, off := w.run(long), w.run(0)
	other, hash := w.newKey(3600)
	use := func(r *runner, hash store.TokenHash, later time.Duration) time.Time {
		t.Helper()
		c := must(r.AccessKeyByHash(within(t), hash, nobody))(t)
		c.Now = c.Now.Add(later)
		r.Used(c)
		return c.Now.Truncate(time.Microsecond) // as it is stored
	}
	stored := func(when string, id uuid.UUID, want time.Time) {
		t.Helper()
		if at := w.lastUsed(id); at == nil || !at.Equal(want) {
			t.Errorf("%s: %v is stored, want %v", when, at, want)
		}
	}
	r.reads(w.acme)
	first := use(r, w.acme.hash, 0)
	r.Flush(t.Context())
	stored("a use", w.acme.key.ID, first)
	if at := w.lastUsed(other.ID); at != nil {
		t.Errorf("a key that nobody has used: %v", at)
	}
	// Uses of a remembered key that follow each other closely are not all noted. With the time between two writes that makes
	// less than a minute.
	use(r, w.acme.hash, 24*time.Second)
	if n := r.Uses(); n != 0 {
		t.Errorf("%d uses are noted of a key that was used just before", n)
	}
	second := use(r, w.acme.hash, 26*time.Second)
	r.Flush(t.Context())
	stored("a later use", w.acme.key.ID, second)
	// Of two instances the later use counts, whichever writes last.
	use(off, w.acme.hash, 0)
	off.Flush(t.Context())
	stored("an earlier use, written later", w.acme.key.ID, second)
	third := use(off, hash, 0)
	off.Flush(t.Context())
	stored("a use without a cache", other.ID, third)
	// What an instance without memory notes first may be the later one.
	fourth := use(off, hash, time.Second)
	use(off, hash, 0)
	off.Flush(t.Context())
	stored("two uses in one write", other.ID, fourth)
}

// A use is written down while the instance runs: after a while, or as soon as there are many.
func TestUsesAreWrittenDownMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stored := 0
	for name, test := range map[string]struct {
		every time.Duration
		uses  int
	}{"few": {50 * time.Millisecond, 1}, "many": {time.Hour, authcache.UsesBatch}} {
		r := w.newCache(0)
		r.SetFlushEvery(test.every)
		r.start()
		for range test.uses {
			r.Use(uuid.New(), time.Unix(1e9, 0))
		}
		stored += test.uses
		until(t, name+" uses are written down", func() bool { return value[int](w, `SELECT count(*) FROM accesskey_uses`) == stored })
	}
	if authcache.UsesFlush > 30*time.Second { // "up to a minute behind", with the time between two that are noted
		t.Errorf("uses are written down every %v", authcache.UsesFlush)
	}
}

// What is known of uses at the end is written down.
func TestUsesAreWrittenDownAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, lease := range []time.Duration{long, 0} {
		r := w.run(lease)
		key, hash := w.newKey(3600)
		r.Used(must(r.AccessKeyByHash(within(t), hash, nobody))(t))
		if at := w.lastUsed(key.ID); at != nil {
			t.Errorf("stored already: %v", at)
		}
		r.stop()
		if at := w.lastUsed(key.ID); at == nil {
			t.Error("a use was lost at the end")
		}
	}
}

// A database that is away fails no request, loses no use, and lets nothing grow without a bound.
func TestUsesWaitForTheDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run(0)
	key, hash := w.newKey(3600)
	c := must(r.AccessKeyByHash(within(t), hash, nobody))(t)
	back := w.away()
	r.Used(c)
	r.Flush(t.Context())
	if n := r.Uses(); n != 1 {
		t.Errorf("%d uses are kept, want 1", n)
	}
	if !strings.Contains(r.log.String(), "flushing last-used times failed") {
		t.Errorf("logged: %s", r.log)
	}
	back()
	until(t, "the use is written down", func() bool { // not at once, where connections of before are still tried
		r.Flush(t.Context())
		return r.Uses() == 0
	})
	if at := w.lastUsed(key.ID); at == nil {
		t.Error("the use is lost")
	}
}

// More keys than are kept, with nobody to take them.
func TestUsesThatAreKeptHaveABound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.newCache(0)
	var id uuid.UUID
	for i := range 510_000 {
		id[15], id[14], id[13] = byte(i), byte(i>>8), byte(i>>16)
		r.Use(id, time.Unix(1e9, 0))
	}
	if n := r.Uses(); n != 500_000 {
		t.Errorf("%d uses are kept", n)
	}
	// What has been noted may still become later.
	r.Use(uuid.UUID{}, time.Unix(2e9, 0))
	if n := r.Uses(); n != 500_000 {
		t.Errorf("%d uses are kept", n)
	}
}

// Two instances that write the same keys at the same time don't lock each other out: they do so in one order.
func TestInstancesWriteTheSameUsesWithoutADeadlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const keys, rounds = 3000, 10
	ids := make([]uuid.UUID, keys)
	for i := range ids {
		ids[i] = uuid.New()
	}
	var both sync.WaitGroup
	for n := range 2 {
		s := w.open()
		both.Go(func() {
			for round := range rounds {
				uses := make([]store.Use, keys)
				for i := range uses { // in two orders
					id := ids[i]
					if n == 1 {
						id = ids[keys-1-i]
					}
					uses[i] = store.Use{AccessKeyID: id, TmLastUsed: time.Unix(int64(1e9+round*2+n), 0)}
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				if err := s.RecordUses(ctx, uses); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	both.Wait()
	if n := value[int](w, `SELECT count(*) FROM accesskey_uses WHERE tm_last_used = $1`, time.Unix(1e9+2*rounds-1, 0)); n != keys {
		t.Errorf("%d of %d keys have the latest use", n, keys)
	}
}
