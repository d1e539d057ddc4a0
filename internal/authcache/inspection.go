package authcache

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
)

// noteHolder keeps who holds the head of the log, and says so when that changes. One whose age can't be seen must be found twice.
func (r *Cache) noteHolder(now, last *changelog.Holder) {
	if now != nil && now.Since.IsZero() && (last == nil || last.PID != now.PID) {
		now = nil
	}
	before := r.holder.Swap(now)
	switch {
	case now != nil && (before == nil || before.PID != now.PID || !before.Since.Equal(now.Since)):
		r.log.Warn("a transaction holds the head of the log of changes: until it ends nothing can be revoked",
			"pid", now.PID, "application_name", now.Application, "since", now.Since.UTC())
	case now == nil && before != nil:
		r.log.Info("nobody holds the head of the log of changes any more", "pid", before.PID)
	}
}

// Holder is the transaction that keeps revocations waiting, nil where there is none.
func (r *Cache) Holder() *changelog.Holder { return r.holder.Load() }

// inspectionPause is how often it is looked at what people can have changed in the database.
const inspectionPause = time.Second

// TroubleError is what is wrong with the database, in words for the operator. A server with one is not ready.
type TroubleError struct {
	what     string
	outdated bool
}

// Error implements error.
func (t *TroubleError) Error() string { return t.what }

// runInspections looks at what people can have changed until ctx ends. Without a lease it also takes the place of the rounds that remove
// instances which have died.
func (r *Cache) runInspections(ctx context.Context) error {
	tick := time.NewTicker(inspectionPause)
	defer tick.Stop()
	var others reaper
	var before changelog.Inspection
	for {
		r.inspect(ctx, &before)
		if r.lease == 0 {
			sweeping, cancel := context.WithTimeout(ctx, roundTimeout)
			_, _ = others.reap(sweeping, r.store.Log, uuid.Nil) // it is tried again
			cancel()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// inspect keeps what is wrong, if anything, and says so when that changes. A database that can't be asked changes nothing.
func (r *Cache) inspect(ctx context.Context, last *changelog.Inspection) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	found, err := r.store.Log.Inspect(ctx)
	if err != nil {
		return
	}
	var wrong []string
	if found.Outdated {
		wrong = append(wrong, "The database's schema needs a newer version of this program.")
	}
	if len(found.BrokenTriggers) > 0 {
		wrong = append(wrong, "Triggers of the database are missing or disabled, so that changes by hand may be noticed late: "+
			strings.Join(found.BrokenTriggers, ", ")+".")
	}
	// Twice in a row: the list loses an instance that was paused, and gets it back with the next heartbeat.
	elsewhere := found.Elsewhere && last.Elsewhere
	r.noteHolder(found.Holder, last.Holder)
	*last = found
	if elsewhere {
		wrong = append(wrong, "Connections to the database lead to another one than the one that this server hears of changes from, "+
			"which is still there: nothing can be revoked until that is cut off (fenced).")
	}
	before := r.trouble.Load()
	if len(wrong) == 0 {
		r.trouble.Store(nil)
		if before != nil {
			r.log.Info("nothing is wrong with the database any more")
		}
		return
	}
	now := &TroubleError{what: strings.Join(wrong, " "), outdated: found.Outdated}
	r.trouble.Store(now)
	if before == nil || before.what != now.what {
		r.log.Error("something is wrong with the database", "what", now.what)
	}
}
