package slowclient_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"accesskeys/internal/slowclient"
)

// conn is an answer's writer whose client reads nothing: what waits for it ends at a deadline.
type conn struct {
	http.ResponseWriter
	once  sync.Once
	ended chan struct{}
}

func (c *conn) SetWriteDeadline(time.Time) error {
	c.once.Do(func() { close(c.ended) })
	return nil
}

func (*conn) SetReadDeadline(time.Time) error { return nil }

func (c *conn) block() (int, error) {
	<-c.ended
	return 0, errors.New("cut off")
}

type request struct {
	slowclient.Share
	conn *conn
}

func begin(b *slowclient.Budget) *request {
	r := &request{conn: &conn{ResponseWriter: httptest.NewRecorder(), ended: make(chan struct{})}}
	r.Begin(b, r.conn)
	return r
}

// stuck is a request of an owner's that has memory, and whose client makes no progress. In the end it is cut off.
func stuck(t *testing.T, b *slowclient.Budget, owner any, bytes int64) *request {
	t.Helper()
	r := begin(b)
	if _, err := r.Take(t.Context(), owner, bytes); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer r.End()
		_, _ = r.Wait(r.conn.block)
	}()
	synctest.Wait()
	return r
}

// untilAllAreCutOff is the end of a test with stuck requests.
func untilAllAreCutOff() { time.Sleep(time.Minute) }

func (r *request) isCutOff() bool {
	select {
	case <-r.conn.ended:
		return true
	default:
		return false
	}
}

// A client without progress is cut off after ten seconds, or after 200 ms where somebody waits for its memory.
func TestClientWithoutProgressIsCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer untilAllAreCutOff()
		b := slowclient.NewBudget(100)
		alone := stuck(t, b, "a", 100)
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if alone.isCutOff() {
			t.Error("after 9 s")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !alone.isCutOff() || b.CutOff() != 1 {
			t.Error("not after 11 s")
		}
		first := stuck(t, b, "a", 100)
		second := begin(b)
		started := time.Now()
		if _, err := second.Take(t.Context(), "a", 60); err != nil || !first.isCutOff() {
			t.Errorf("its memory was waited for: %v", err)
		}
		if took := time.Since(started); took < 200*time.Millisecond || took > 300*time.Millisecond {
			t.Errorf("after %v", took)
		}
		second.End()
	})
}

// A client that reads a little is not cut off while nobody waits, however long it takes.
func TestProgressKeepsAClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := slowclient.NewBudget(100)
		r := begin(b)
		if _, err := r.Take(t.Context(), "a", 100); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_, _ = r.Wait(func() (int, error) { time.Sleep(5 * time.Second); return 1, nil })
		}
		r.End()
		if r.isCutOff() || b.CutOff() != 0 {
			t.Error("it was cut off")
		}
	})
}

// Memory is taken from the owner who has most, and given to the one who has least: an owner who attacks costs others nothing.
func TestOwnerWhoHoldsMostPays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer untilAllAreCutOff()
		b := slowclient.NewBudget(100)
		victim := stuck(t, b, "victim", 10) // its client is the slowest
		var attackers []*request
		for range 9 {
			attackers = append(attackers, stuck(t, b, "attacker", 10))
		}
		var order []string
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, owner := range []string{"attacker", "attacker", "good", "attacker"} {
			all.Go(func() {
				r := begin(b)
				if _, err := r.Take(t.Context(), owner, 10); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, owner)
				mu.Unlock()
				r.End()
			})
			synctest.Wait()
		}
		all.Wait()
		if order[0] != "good" {
			t.Errorf("served: %v", order)
		}
		if victim.isCutOff() {
			t.Error("the victim's client was cut off")
		}
		if !slices.ContainsFunc(attackers, (*request).isCutOff) {
			t.Error("no attacker's client was cut off")
		}
	})
}

// Too many waiting requests take memory as well: the owner with most is refused. One who holds less goes on waiting.
func TestTooManyWaitingRequestsAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := slowclient.NewBudget(10)
		holder := begin(b)
		if _, err := holder.Take(t.Context(), "attacker", 10); err != nil { // it works, and waits for no client
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waits := func(owner string) chan error {
			ended := make(chan error, 1)
			go func() {
				r := begin(b)
				_, err := r.Take(ctx, owner, 10)
				r.End()
				ended <- err
			}()
			synctest.Wait()
			return ended
		}
		good := waits("good")
		var ended []chan error
		for range 1001 {
			ended = append(ended, waits("attacker"))
		}
		refused := 0
		for _, c := range ended {
			select {
			case err := <-c:
				if !errors.Is(err, slowclient.ErrCrowded) {
					t.Error(err)
				}
				refused++
			default:
			}
		}
		if refused != 2 {
			t.Errorf("%d of 1002 are refused", refused)
		}
		holder.End()
		if err := <-good; err != nil {
			t.Errorf("the other owner: %v", err)
		}
		cancel()
		synctest.Wait()
		whole := begin(b)
		if _, err := whole.Take(t.Context(), "x", 10); err != nil {
			t.Errorf("all was given back, but: %v", err)
		}
		whole.End()
	})
}
