package authcache_test

import (
	"testing"

	"accesskeys/internal/servertest"
)

// One open transaction on a logged row stops all revocations. Who it is is told, never what it has run; and that it is over.
func TestHolderOfTheLogIsTold(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	r, off := w.run(long), w.run(0)
	release := w.lock(`UPDATE agents SET name = 's3cret-of-a-query' WHERE id = $1`, w.acme.agent.ID)
	pid := value[int64](w, `SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()`)
	for _, r := range []*runner{r, off} {
		servertest.Eventually(t, "it is told", func() bool { return r.Holder() != nil && r.Holder().PID == pid && r.Stats().HeadHeld >= 1 })
		wantError(t, "being ready", r.Ready(within(t)), nil)
		equal(t, "since when is not told", r.Holder().Since.IsZero(), false)
	}
	release()
	for _, r := range []*runner{r, off} {
		const held, over = "a transaction holds the head of the log of changes", "nobody holds the head of the log of changes any more"
		servertest.Eventually(t, "it is over", func() bool {
			return r.Holder() == nil && r.Stats().HeadHeld == 0 && r.logged(over) > 0
		})
		if r.logged(held) != 1 || r.logged(over) != 1 || r.logged("s3cret") != 0 {
			t.Errorf("the log is\n%s", r.log)
		}
	}
}
