package replica

import (
	"context"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// census watches the other replicas, to take those out of the list that have died.
type census struct {
	seen map[uuid.UUID]sighting
}

// sighting is a heartbeat, and when this process saw it first.
type sighting struct {
	seq  int64
	from time.Time
}

// sweep removes replicas without a heartbeat for longer than any lease lasts, by this process's own monotonic clock.
func (c *census) sweep(ctx context.Context, feed *store.Feed, self uuid.UUID) error {
	registered, err := feed.Replicas(ctx)
	if err != nil {
		return err
	}
	seen := make(map[uuid.UUID]sighting, len(registered))
	for _, other := range registered {
		before, known := c.seen[other.ID]
		switch {
		case other.ID == self:
		case !known || before.seq != other.Seq:
			seen[other.ID] = sighting{seq: other.Seq, from: time.Now()}
		case time.Since(before.from) > store.LeaseEnd(other.Lease):
			if err := feed.Unregister(ctx, other.ID, other.Seq); err != nil {
				return err
			}
		default:
			seen[other.ID] = before
		}
	}
	c.seen = seen
	return nil
}
