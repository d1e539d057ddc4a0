package web

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the figures of requests. Labels come from fixed sets only, never from what a client sends.
type metrics struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	found     *sync.Map // of requestLabels to requestMetrics
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
		found: &sync.Map{},
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
	labels := requestLabels{method, route, code}
	found, ok := m.found.Load(labels)
	if !ok {
		found, _ = m.found.LoadOrStore(labels, requestMetrics{
			count:    m.requests.WithLabelValues(method, route, strconv.Itoa(code)),
			duration: m.durations.WithLabelValues(method, route),
		})
	}
	of := found.(requestMetrics)
	of.count.Inc()
	of.duration.Observe(took.Seconds())
}
