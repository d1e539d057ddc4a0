package authcache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

const (
	// proofPause is the least time between two rounds that are made for proofs alone, and proofPausePerInstance what it is at least for
	// each instance: together they commit no more often than a database bears beside its work, whatever strangers present.
	proofPause            = 50 * time.Millisecond
	proofPausePerInstance = 5 * time.Millisecond
	// proofBatch is how many credentials one statement looks up.
	proofBatch = 1_000
)

// proofs are the refusals that wait to be proven.
//
// A row that isn't found proves nothing: the database that was read may have been failed over, and the credential made since on
// another one. So the look-up is made again after a heartbeat was committed that was begun after the request: on the connection,
// and the server, that the heartbeat was committed on. All who wait share it; none holds a connection meanwhile.
type proofs struct {
	mu      sync.Mutex
	waiting []*lookupRequest
	last    time.Duration // when the last round for them began, in boot time
}

// prove returns a look-up of the credential that is proven. It returns store.ErrUnavailable where there can be none.
func (r *Cache) prove(ctx context.Context, k key) lookupResult {
	request := &lookupRequest{key: k, done: make(chan lookupResult, 1)}
	r.proofs.mu.Lock()
	if len(r.proofs.waiting) >= lookupsMax {
		r.proofs.mu.Unlock()
		return lookupResult{err: fmt.Errorf("too many refusals wait to be proven: %w", store.ErrUnavailable)}
	}
	r.proofs.waiting = append(r.proofs.waiting, request)
	first := len(r.proofs.waiting) == 1
	r.proofs.mu.Unlock()
	if first {
		r.interruptPause()
	}
	select {
	case got := <-request.done:
		return got
	case <-ctx.Done():
		request.gone.Store(true)
		return lookupResult{err: fmt.Errorf("proving a refusal: %w: %w", store.ErrUnavailable, ctx.Err())}
	}
}

// due returns how long it is until a round should be made for those who wait, and whether anybody does.
func (p *proofs) due(clock time.Duration, instances int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pause := max(proofPause, time.Duration(instances)*proofPausePerInstance)
	return max(0, p.last+pause-clock), len(p.waiting) > 0
}

// take returns those who wait for the round that begins now.
func (p *proofs) take(clock time.Duration) []*lookupRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.waiting
	p.waiting = nil
	if len(taken) > 0 {
		p.last = clock
	}
	return taken
}

func (p *proofs) fail(requests []*lookupRequest, err error) {
	for _, request := range requests {
		request.done <- lookupResult{err: err}
	}
}

// answerProofs looks up what requests ask for that waited before the newest heartbeat was begun. The lease is from that heartbeat, and
// nothing is applied meanwhile, since only the caller does that.
//
// It returns an error where the connection is of no more use.
func (r *Cache) answerProofs(ctx context.Context, feed *changelog.Feed, requests []*lookupRequest) (broken error) {
	for batch := range slices.Chunk(requests, proofBatch) {
		got := lookupResult{known: r.state.Load(), err: broken}
		if broken == nil {
			at := r.clock()
			got.found, broken = store.LookupByFeed(ctx, feed, lookupOf(batch), got.known.applied, *r.id.Load())
			_, held := got.known.leaseHeldAt(r.clock())
			switch {
			case broken != nil:
				got.err = broken
			case got.found.Seq != r.beats:
				got.err = fmt.Errorf("%w: the server that was read has not seen this heartbeat", store.ErrUnavailable)
			case !held:
				got.err = fmt.Errorf("%w: proving a refusal took longer than a lease", store.ErrUnavailable)
			default:
				got.proven = true
				r.storeIfCurrent(got.known, got.found, at)
			}
		}
		for _, request := range batch {
			request.done <- got
		}
	}
	return broken
}
