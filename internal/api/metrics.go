package api

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/buildinfo"
	"accesskeys/internal/store"
)

// metrics are the figures behind /metrics, beside those of package web. Labels come from fixed sets only, never from what a client sends.
type metrics struct {
	registry      *prometheus.Registry
	loginRefusals *prometheus.CounterVec
}

func newMetrics(s *store.Store, r *authcache.Cache, t *auth.TokenCache) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		loginRefusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "accesskeys_login_refusals_total", Help: "Logins that gave no token, by reason.",
		}, []string{"reason"}),
	}
	build := buildinfo.Read()
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "accesskeys_build_info", Help: "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": build.Version, "commit": build.Commit, "go_version": build.Go},
	}, func() float64 { return 1 }), m.loginRefusals, poolCollector{s}, cacheCollector{r, t},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// handler shows the figures. Where they can't be gathered it panics, so that web.Kit.Observe answers as for any other defect.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.PanicOnError})
}

func (m *metrics) observeLoginRefusal(err error) {
	m.loginRefusals.WithLabelValues(problemOf(err).Reason).Inc()
}

// poolCollector reads the pool's figures when they are asked for.
type poolCollector struct{ store *store.Store }

func poolDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("accesskeys_db_pool_"+name, help, nil, nil)
}

// Describe implements prometheus.Collector.
func (c poolCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.store.DB.Stats()
	gauge := func(name, help string, v float64) {
		ch <- prometheus.MustNewConstMetric(poolDesc(name, help), prometheus.GaugeValue, v)
	}
	counter := func(name, help string, v float64) {
		ch <- prometheus.MustNewConstMetric(poolDesc(name, help), prometheus.CounterValue, v)
	}
	gauge("max_connections", "The most connections to the database.", float64(st.Max))
	gauge("connections", "Connections to the database.", float64(st.Total))
	gauge("idle_connections", "Connections that nobody uses.", float64(st.Idle))
	gauge("acquired_connections", "Connections in use.", float64(st.Acquired))
	counter("acquires_total", "Connections handed out.", float64(st.Acquires))
	counter("empty_acquires_total", "Connections that had to be waited for.", float64(st.EmptyAcquires))
	counter("acquire_seconds_total", "Time spent getting connections.", st.AcquireTime.Seconds())
}

// cacheCollector reads the figures of what is remembered when they are asked for.
type cacheCollector struct {
	cache  *authcache.Cache
	tokens *auth.TokenCache
}

// Describe implements prometheus.Collector.
func (c cacheCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c cacheCollector) Collect(ch chan<- prometheus.Metric) {
	st, tokens := c.cache.Stats(), c.tokens.Stats()
	send := func(kind prometheus.ValueType, name, help string, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("accesskeys_"+name, help, nil, nil), kind, v)
	}
	held := 0.0
	if st.Held {
		held = 1
	}
	trouble := 0.0
	if st.Trouble {
		trouble = 1
	}
	send(prometheus.GaugeValue, "database_trouble", "1 while something is wrong with the database that makes the server not ready; /readyz says what.", trouble)
	send(prometheus.GaugeValue, "change_log_held_seconds", "Age of a transaction that holds the head of the log of changes and keeps revocations waiting, 0 where there is none.", st.HeadHeld.Seconds())
	send(prometheus.CounterValue, "unlogged_changes_total", "Rows that were changed without an entry in the log of changes.", float64(st.Unlogged))
	send(prometheus.CounterValue, "aged_rows_total", "Rows that were forgotten because they could not be read again in time.", float64(st.Aged))
	send(prometheus.CounterValue, "lost_commits_total", "Times that the database had lost what it had confirmed.", float64(st.Lost))
	send(prometheus.GaugeValue, "lease_seconds", "CACHE_LEASE; 0 is off.", st.Lease.Seconds())
	send(prometheus.GaugeValue, "lease_held", "1 while credentials may be checked from memory.", held)
	send(prometheus.GaugeValue, "lease_age_seconds", "Time since the lease began; past lease_seconds it has ended.", st.Age.Seconds())
	send(prometheus.GaugeValue, "change_log_position", "The place in the log of changes up to which it is applied.", float64(st.Position))
	send(prometheus.GaugeValue, "change_log_lag_seconds", "Time since the log of changes was last read to its end.", st.Behind.Seconds())
	send(prometheus.GaugeValue, "cache_entries", "Rows and verified tokens in memory.", float64(st.Entries+tokens.Entries))
	send(prometheus.GaugeValue, "cache_bytes", "About what they take.", float64(st.Bytes+tokens.Bytes))
	send(prometheus.CounterValue, "cache_hits_total", "Look-ups answered from memory.", float64(st.Hits))
	send(prometheus.CounterValue, "cache_misses_total", "Look-ups that had to ask the database.", float64(st.Misses))
	send(prometheus.CounterValue, "cache_evictions_total", "Entries dropped for want of room.", float64(st.Evicted+tokens.Evicted))
}
