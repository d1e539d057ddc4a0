package api_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/authcache"
	"accesskeys/internal/lastused"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

// stoppable is another server, whose instance writes down what it knows of uses when it is stopped.
func (h *harness) stoppable(lease time.Duration) (other *harness, stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	other = h.onDatabase(h.database, func(other *harness) {
		other.log = &servertest.Log{}
		var err error
		other.rows, err = authcache.New(authcache.Config{Store: other.store, Log: slog.New(slog.DiscardHandler), Lease: lease, CacheBytes: 16 << 20})
		if err != nil {
			h.t.Fatal(err)
		}
		other.lastUsed = lastused.New(other.store, slog.New(slog.DiscardHandler))
		go func() { stopped <- errors.Join(other.rows.Run(ctx), other.lastUsed.Run(ctx)) }()
	})
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-stopped; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(stop)
	other.waitReady()
	return other, stop
}

// A key shows when it was last used: null for never, and otherwise when a request with it was last accepted, whatever the
// request was answered. What was refused is no use.
func TestKeyShowsWhenItWasLastUsed(t *testing.T) {
	t.Parallel()
	for name, lease := range map[string]time.Duration{"with a cache": 2 * time.Second, "without": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			other, stop := h.stoppable(lease)
			used, usedToken := h.newKey(h.acme.customer, 3600)
			unused, _ := h.newKey(h.acme.customer, 3600)
			denied, deniedToken := h.newKey(h.acme.customer, 3600)
			expired, expiredToken := h.newKey(h.acme.customer, 3600)
			h.exec(`UPDATE accesskeys SET tm_create = now() - interval '2 hours', tm_expire = now() - interval '1 hour' WHERE id = $1`, expired.ID)
			before := h.clock()
			other.accepts(usedToken, usedToken, usedToken)
			other.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), deniedToken).refuses(http.StatusForbidden, "PERMISSION_DENIED")
			after := h.clock()
			other.rejects(expiredToken, usedToken+"x")
			stop()
			shown := map[string]any{}
			for _, key := range h.get("/v1.0/accesskeys", h.acme.adminJWT).items() {
				shown[key["id"].(string)] = key["tm_last_used"]
			}
			for _, k := range []store.AccessKey{used, denied, unused, expired, h.acme.key} {
				path := "/v1.0/accesskeys/" + k.ID.String()
				got := h.get(path, h.acme.adminJWT).wants(http.StatusOK).json()["tm_last_used"]
				if listed, ok := shown[k.ID.String()]; !ok || listed != got {
					t.Errorf("alone it was used at %v, in the list at %v", got, listed)
				}
				if k.ID != used.ID && k.ID != denied.ID {
					if got != nil {
						t.Errorf("a key that was not used: at %v", got)
					}
					continue
				}
				// From memory the time may be that of a round trip ahead.
				if at := parseTime(t, got); at.Before(before) || at.After(after.Add(time.Second)) {
					t.Errorf("used between %v and %v, it says at %v", before, after, at)
				}
				for _, changed := range []response{h.put(path, h.acme.adminJWT, `{"name":"other"}`), h.delete(path, h.acme.adminJWT)} {
					equalJSON(t, changed.wants(http.StatusOK).json()["tm_last_used"], got)
				}
			}
			if n := h.text(`SELECT count(*) FROM accesskey_uses`); n != "2" {
				t.Errorf("uses of %s keys are stored, want 2", n)
			}
		})
	}
}

// clock is the database's time.
func (h *harness) clock() time.Time {
	h.t.Helper()
	return parseTime(h.t, h.text(`SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`))
}

// The metrics tell what is remembered, and whether and since when it may be trusted.
func TestMetricsTellOfTheCacheAndTheLease(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.accepts(slices.Repeat([]string{h.acme.token}, 5)...)
	h.accepts(h.acme.adminJWT)
	h.exec(`UPDATE agents SET description = 'x' WHERE id = $1`, h.acme.plain.ID)
	on := h.figures()
	for name, bounds := range map[string][2]float64{
		"lease_seconds":          {2, 2},
		"lease_held":             {1, 1},
		"lease_age_seconds":      {0, 2},
		"change_log_position":    {1, 1},
		"change_log_lag_seconds": {0, 2},
		"cache_entries":          {4, 6}, // the key and its customer, the agent and the token; the customer once more
		"cache_bytes":            {1000, 10000},
		"cache_hits_total":       {4, 4},
		"cache_misses_total":     {2, 2},
		"cache_evictions_total":  {0, 0},
	} {
		if got, ok := on["accesskeys_"+name]; !ok || got < bounds[0] || got > bounds[1] {
			t.Errorf("%s is %v, %v, want from %v to %v", name, got, ok, bounds[0], bounds[1])
		}
	}
	off := h.uncached()
	off.accepts(h.acme.token)
	for name, got := range off.figures() {
		if (strings.HasPrefix(name, "accesskeys_lease_") || strings.HasPrefix(name, "accesskeys_cache_")) && got != 0 {
			t.Errorf("without a cache %s is %v", name, got)
		}
	}
}

// figures are the metrics without labels.
func (h *harness) figures() map[string]float64 {
	h.t.Helper()
	figures := map[string]float64{}
	for line := range strings.Lines(string(h.get("/metrics", "").wants(http.StatusOK).raw)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil && !strings.Contains(name, "{") {
			figures[name] = value
		}
	}
	return figures
}
