// Package metrics holds what nodeproxy counts and measures, for Prometheus:
// under kube-proxy's names where it means the same (docs/kube-proxy.md,
// "Metrics"), so that its dashboards and alerts go on working, and under names
// that begin with nodeproxy_ where kube-proxy has none.
package metrics

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nodeproxy/nodeproxy/service"
)

// Metrics are the counters of one agent. Its methods are called by the
// goroutine that drives the dataplane, except Answered and Handler, which are
// safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	start    time.Time

	syncs, fullSyncs, partialSyncs *prometheus.HistogramVec
	lastQueued, lastSync           *prometheus.GaugeVec
	programming                    *prometheus.HistogramVec
	endpointsPending, svcsPending  prometheus.Gauge
	endpointsTotal, svcsTotal      prometheus.Counter
	noLocal                        *prometheus.GaugeVec
	healthz, livez                 *prometheus.CounterVec
	failures                       *prometheus.CounterVec
	services, endpoints            prometheus.Gauge
	problems                       *prometheus.GaugeVec
	refused                        prometheus.Gauge

	triggers []time.Time // of slices that wait for a sync
	seen     map[service.Name]contribution
	sums     contribution
}

const (
	kubeProxy = "kubeproxy"
	ours      = "nodeproxy"
	byFamily  = "ip_family"
)

// Build is what an agent was made of, and the mode that it runs in.
type Build struct{ Version, Revision, GoVersion, Mode string }

// New returns metrics in a registry of their own, with those of the process.
func New(b Build) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), start: time.Now(), seen: map[service.Name]contribution{}}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	durations := prometheus.ExponentialBuckets(0.001, 2, 15)
	m.syncs = m.histogram("sync_proxy_rules_duration_seconds", "Duration of each sync with the kernel.", durations)
	m.fullSyncs = m.histogram("sync_full_proxy_rules_duration_seconds", "Duration of full syncs, which compare everything.", durations)
	m.partialSyncs = m.histogram("sync_partial_proxy_rules_duration_seconds", "Duration of partial syncs, which write what has changed.", durations)
	m.programming = m.histogram("network_programming_duration_seconds",
		"Time from the change of an EndpointSlice, as its controller noted it, to the sync that took it in.", programmingBuckets())
	m.lastQueued = m.gauge(kubeProxy, "sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was last asked for.", byFamily)
	m.lastSync = m.gauge(kubeProxy, "sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded.", byFamily)
	m.endpointsPending = m.gauge(kubeProxy, "sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that wait for a sync.").WithLabelValues()
	m.svcsPending = m.gauge(kubeProxy, "sync_proxy_rules_service_changes_pending", "Changes of Services that wait for a sync.").WithLabelValues()
	m.endpointsTotal = m.counter(kubeProxy, "sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices seen.").WithLabelValues()
	m.svcsTotal = m.counter(kubeProxy, "sync_proxy_rules_service_changes_total", "Changes of Services seen.").WithLabelValues()
	m.noLocal = m.gauge(kubeProxy, "sync_proxy_rules_no_local_endpoints_total",
		"Ports of Services with a Local policy that have endpoints, but none here.", byFamily, "traffic_policy")
	m.healthz = m.counter(kubeProxy, "proxy_healthz_total", "Answers of /healthz.", "code")
	m.livez = m.counter(kubeProxy, "proxy_livez_total", "Answers of /livez.", "code")
	m.failures = m.counter(ours, "sync_failures_total", "Syncs that failed, and are tried again.", "kind")
	m.services = m.gauge(ours, "services", "Services that this node translates.").WithLabelValues()
	m.endpoints = m.gauge(ours, "backends", "Backends that this node may lead flows to, counted for each port of a Service.").WithLabelValues()
	m.problems = m.gauge(ours, "service_problems", "Parts of Services that are not served as written.", "reason")
	m.refused = m.gauge(ours, "services_refused", "Services that do not fit or that the kernel refuses; all others are programmed.").WithLabelValues()
	for _, kind := range []string{"full", "partial"} { // there from the start, so that the first failure is an increase
		m.failures.WithLabelValues(kind)
	}
	for _, vec := range []*prometheus.CounterVec{m.healthz, m.livez} {
		for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
			vec.WithLabelValues(strconv.Itoa(code))
		}
	}
	for _, reason := range service.ProblemReasons {
		m.problems.WithLabelValues(reason)
	}
	m.gauge(ours, "build_info", "Always 1; labelled with version, commit, Go version and mode.", "version", "revision", "goversion", "mode").
		WithLabelValues(b.Version, b.Revision, b.GoVersion, b.Mode).Set(1)
	eachFamily(func(f string) { // there from the start, so that a rate can be taken
		for _, h := range []*prometheus.HistogramVec{m.syncs, m.fullSyncs, m.partialSyncs, m.programming} {
			h.WithLabelValues(f)
		}
	})
	return m
}

func (m *Metrics) histogram(name, help string, buckets []float64) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: kubeProxy, Name: name, Help: help, Buckets: buckets}, []string{byFamily})
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) gauge(namespace, name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) counter(namespace, name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

// programmingBuckets are kube-proxy's: 0.25, 0.5, 1 to 59 by 1, 60 to 115 by
// 5, 120 to 300 by 30.
func programmingBuckets() []float64 {
	out := []float64{0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

// eachFamily does what concerns both: one sync serves them together.
func eachFamily(do func(family string)) {
	for _, f := range service.Families {
		do(f.String())
	}
}

// Follow adds gauges of 1 or 0 that are asked for when somebody reads the metrics.
func (m *Metrics) Follow(healthy, eligible, sourceReached func() bool) error {
	var errs []error
	for _, g := range []struct {
		name, help string
		is         func() bool
	}{
		{"healthy", "1 if the agent is well, as /livez says, else 0.", healthy},
		{"eligible", "1 if load balancers may use this node, else 0.", eligible},
		{"source_reached", "1 if the source of Services can be read now, else 0.", sourceReached},
	} {
		errs = append(errs, m.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ours, Name: g.name, Help: g.help}, func() float64 {
			if g.is() {
				return 1
			}
			return 0
		})))
	}
	return errors.Join(errs...)
}

// Register adds a collector, such as that of a mode.
func (m *Metrics) Register(c prometheus.Collector) error { return m.registry.Register(c) }

// Handler serves all metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Answered counts an answer of /healthz or /livez.
func (m *Metrics) Answered(path string, code int) {
	vec := m.healthz
	if path == "/livez" {
		vec = m.livez
	}
	vec.WithLabelValues(strconv.Itoa(code)).Inc()
}

// Applied takes in a batch that the next sync will bring to the kernel.
func (m *Metrics) Applied(c service.Changes) {
	slices, services := len(c.EndpointSlices)+len(c.DeletedEndpointSlices), len(c.Services)+len(c.DeletedServices)
	m.endpointsTotal.Add(float64(slices))
	m.svcsTotal.Add(float64(services))
	m.endpointsPending.Add(float64(slices))
	m.svcsPending.Add(float64(services))
	for _, s := range c.EndpointSlices {
		if s.LastChange.After(m.start) { // of earlier ones, nobody here is to blame
			m.triggers = append(m.triggers, s.LastChange)
		}
	}
}

// Queued notes that a sync was asked for.
func (m *Metrics) Queued() {
	now := float64(time.Now().UnixNano()) / 1e9
	eachFamily(func(f string) { m.lastQueued.WithLabelValues(f).Set(now) })
}

// Sync is how one went.
type Sync struct {
	Err      error
	Full     bool
	Changed  []service.Name // of a partial one
	Duration time.Duration
	Table    *service.Table
	Refused  int // Services that the mode left out
}

// Synced notes how a sync went.
func (m *Metrics) Synced(s Sync) {
	m.count(s)
	m.refused.Set(float64(s.Refused))
	kind, vec := "partial", m.partialSyncs
	if s.Full {
		kind, vec = "full", m.fullSyncs
	}
	if s.Err != nil {
		m.failures.WithLabelValues(kind).Inc()
		return
	}
	now := time.Now()
	eachFamily(func(f string) {
		m.syncs.WithLabelValues(f).Observe(s.Duration.Seconds())
		vec.WithLabelValues(f).Observe(s.Duration.Seconds())
		m.lastSync.WithLabelValues(f).Set(float64(now.UnixNano()) / 1e9)
		for _, t := range m.triggers {
			m.programming.WithLabelValues(f).Observe(now.Sub(t).Seconds())
		}
	})
	m.triggers = nil
	m.endpointsPending.Set(0)
	m.svcsPending.Set(0)
}
