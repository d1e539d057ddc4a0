package authcache

import (
	"context"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
)

// registry is the list of instances: over the Feed, or by the pool where there is none.
type registry interface {
	Instances(ctx context.Context) ([]changelog.Registered, error)
	Unregister(ctx context.Context, id uuid.UUID, seq int64) error
}

// reaper watches the other instances, to take those out of the list that have died.
type reaper struct {
	seen map[uuid.UUID]lastSeen
}

// lastSeen is a heartbeat, and when this process saw it first.
type lastSeen struct {
	seq  int64
	from time.Time
}

// reap removes instances without a heartbeat for longer than any lease lasts, by this process's own monotonic clock. It returns how
// many there are.
func (c *reaper) reap(ctx context.Context, list registry, self uuid.UUID) (int, error) {
	registered, err := list.Instances(ctx)
	if err != nil {
		return 0, err
	}
	seen := make(map[uuid.UUID]lastSeen, len(registered))
	for _, other := range registered {
		before, known := c.seen[other.ID]
		switch {
		case other.ID == self:
		case !known || before.seq != other.Seq:
			seen[other.ID] = lastSeen{seq: other.Seq, from: time.Now()}
		case time.Since(before.from) > changelog.LeaseEnd(other.Lease):
			if err := list.Unregister(ctx, other.ID, other.Seq); err != nil {
				return 0, err
			}
			seen[other.ID] = before // somebody may hold its row
		default:
			seen[other.ID] = before
		}
	}
	c.seen = seen
	return len(registered), nil
}
