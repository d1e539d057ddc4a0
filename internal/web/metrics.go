package web

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the figures of requests. Labels come from fixed sets only, never from what a client sends.
type metrics struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	found     *Found[requestLabels, requestMetrics]
}

func newMetrics(registry prometheus.Registerer, slow slowClients) metrics {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "accesskeys_http_requests_total", Help: "Requests answered.",
		}, []string{"method", "route", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "accesskeys_http_request_duration_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"method", "route"}),
		found: &Found[requestLabels, requestMetrics]{},
	}
	registry.MustRegister(m.requests, m.durations, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "accesskeys_slow_clients_cut_off_total", Help: "Clients that were cut off because they did not read or send in time.",
	}, slow.cutOff))
	return m
}

// requestLabels are those of a request's metrics. There are as many as routes, methods and statuses.
type requestLabels struct {
	method, route string
	code          int
}

// requestMetrics are a request's metrics, found once for its labels.
type requestMetrics struct {
	count    prometheus.Counter
	duration prometheus.Observer
}

func (m metrics) observeRequest(method, route string, code int, took time.Duration) {
	of := m.found.Of(requestLabels{method, route, code}, func(l requestLabels) requestMetrics {
		return requestMetrics{
			count:    m.requests.WithLabelValues(l.method, l.route, strconv.Itoa(l.code)),
			duration: m.durations.WithLabelValues(l.method, l.route),
		}
	})
	of.count.Inc()
	of.duration.Observe(took.Seconds())
}

// Found keeps what was found for labels, so that it is looked for once: a look-up takes neither a lock nor memory. It is for labels of
// which there are few, since it never forgets. The zero value is ready, and may be used concurrently.
type Found[L comparable, T any] struct {
	found atomic.Pointer[map[L]T]
	mu    sync.Mutex
}

// Of is what find returns for the labels.
func (f *Found[L, T]) Of(labels L, find func(L) T) T {
	if found := f.found.Load(); found != nil {
		if of, ok := (*found)[labels]; ok {
			return of
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[L]T{}
	if found := f.found.Load(); found != nil {
		all = maps.Clone(*found)
	}
	all[labels] = find(labels) // anew where somebody else was quicker: it finds the same
	f.found.Store(&all)
	return all[labels]
}
