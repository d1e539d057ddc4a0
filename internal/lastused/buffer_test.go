package lastused

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// newBuffer makes a Buffer on a database of its own.
func newBuffer(t *testing.T) (*Buffer, *servertest.Log, secret.Value) {
	t.Helper()
	url, log := pgtest.Migrated(t), &servertest.Log{}
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return New(s, log.Logger()), log, url
}

// value reads one value by SQL of the test's own.
func value[T any](t *testing.T, url secret.Value, sql string, args ...any) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// storedUse is when a key was last used, as it is stored; nil for never.
func storedUse(t *testing.T, url secret.Value, id uuid.UUID) *time.Time {
	t.Helper()
	return value[*time.Time](t, url, `SELECT (SELECT tm_last_used FROM accesskey_uses WHERE accesskey_id = $1)`, id)
}

func TestLatestUseIsStored(t *testing.T) {
	t.Parallel()
	b, _, url := newBuffer(t)
	id, first := uuid.New(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	if at := storedUse(t, url, id); at != nil {
		t.Errorf("before any use %v is stored", at)
	}
	for _, test := range []struct {
		when  string
		noted []time.Duration // after first
		want  time.Duration
	}{
		{"a use", []time.Duration{0}, 0},
		{"two uses, the later first", []time.Duration{time.Minute, time.Second}, time.Minute},
		{"an earlier use, written later", []time.Duration{0}, time.Minute},
		{"a later use", []time.Duration{time.Hour}, time.Hour},
	} {
		for _, after := range test.noted {
			b.Note(id, first.Add(after))
		}
		b.Flush(t.Context())
		if at := storedUse(t, url, id); at == nil || !at.Equal(first.Add(test.want)) {
			t.Errorf("%s: %v is stored, want %v", test.when, at, first.Add(test.want))
		}
	}
}

// Uses are written while the buffer runs, after a while or as soon as there are many, and what is left at the end.
func TestUsesAreWrittenMeanwhileAndAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		every time.Duration
		uses  int
		waits bool // until they are written, before the end
	}{
		"few": {50 * time.Millisecond, 1, true}, "many": {time.Hour, batch, true}, "at the end": {time.Hour, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _, url := newBuffer(t)
			b.every = test.every
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- b.Run(ctx) }()
			for range test.uses {
				b.Note(uuid.New(), time.Unix(1e9, 0))
			}
			stored := func() int { return value[int](t, url, `SELECT count(*) FROM accesskey_uses`) }
			if test.waits {
				servertest.Eventually(t, "all uses are written", func() bool { return stored() == test.uses })
			}
			stop()
			if err := <-ended; err != nil || stored() != test.uses {
				t.Errorf("at the end %d of %d uses are written, %v", stored(), test.uses, err)
			}
		})
	}
	// docs/contract.md, section 4: up to a minute behind.
	if Apart+flushEvery+flushTimeout > time.Minute {
		t.Errorf("a use is stored up to %v late", Apart+flushEvery+flushTimeout)
	}
}

// A database that is unavailable loses no use.
func TestUsesWaitForTheDatabase(t *testing.T) {
	t.Parallel()
	b, log, url := newBuffer(t)
	write, id := b.write, uuid.New()
	b.write = func(context.Context, []store.Use) error { return store.ErrUnavailable }
	b.Note(id, time.Unix(1e9, 0))
	b.Flush(t.Context())
	if n := b.count.Load(); n != 1 || !strings.Contains(log.String(), "flushing last-used times failed") {
		t.Errorf("%d uses are kept, want 1; logged: %s", n, log)
	}
	b.write = write
	b.Flush(t.Context())
	if at := storedUse(t, url, id); at == nil || b.count.Load() != 0 {
		t.Errorf("%v is stored, %d uses are kept", at, b.count.Load())
	}
}

// What is kept has a bound.
func TestBufferIsBounded(t *testing.T) {
	t.Parallel()
	b := New(nil, slog.New(slog.DiscardHandler))
	var id uuid.UUID
	for i := range most + 10_000 {
		id[15], id[14], id[13] = byte(i), byte(i>>8), byte(i>>16)
		b.Note(id, time.Unix(1e9, 0))
	}
	b.Note(uuid.UUID{}, time.Unix(2e9, 0)) // one that is known
	if n := b.count.Load(); n != most {
		t.Errorf("%d uses are kept", n)
	}
}
