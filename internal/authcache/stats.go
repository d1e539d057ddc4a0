package authcache

import "time"

// Stats are figures for the metrics.
type Stats struct {
	Lease    time.Duration // as configured; 0: nothing is remembered
	Age      time.Duration // since the lease began
	Held     bool
	Position int64         // in the log of changes, applied
	Behind   time.Duration // since the log was last read
	Entries  int           // remembered
	Bytes    uint64        // taken by them, about
	Hits     int64
	Misses   int64
	Evicted  int64
	Unlogged int64 // rows that were found to be changed without an entry in the log
	Aged     int64 // rows that were forgotten because they could not be read again in time
	Lost     int64 // times that the database had lost what it had confirmed
	Trouble  bool  // something is wrong with the database, see TroubleError
	// HeadHeld is how long a transaction has held the head of the log, 0 where none has for a second. It is at least a
	// second where that can't be seen.
	HeadHeld time.Duration
}

// Stats returns the figures as they stand.
func (r *Cache) Stats() Stats {
	s := Stats{Lease: r.lease, Trouble: r.trouble.Load() != nil}
	if h := r.Holder(); h != nil {
		s.HeadHeld = max(h.Age, time.Second)
	}
	if r.lease == 0 {
		return s
	}
	k, clock := r.state.Load(), r.clock()
	s.Held, s.Position = clock < k.ends, k.applied.Number
	if k.version > 0 {
		s.Age, s.Behind = clock-k.began, clock-k.read
	}
	s.Entries, s.Bytes = r.rows.EstimatedSize(), r.rows.WeightedSize()
	s.Unlogged, s.Aged, s.Lost = r.unlogged.Load(), r.aged.Load(), r.lostCount.Load()
	s.Hits, s.Misses, s.Evicted = r.hits.Load(), r.misses.Load(), r.evictions.Load()
	return s
}
