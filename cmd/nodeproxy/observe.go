package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/health"
	"github.com/nodeproxy/nodeproxy/metrics"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// observer tells the world how the agent is: health, metrics, events.
type observer struct {
	opts    *runOptions
	mode    string
	whyMode atomic.Pointer[string] // of auto: why it is not ebpf
	// awaitsCgroup tells that only a cgroup is missing for ebpf mode, which auto would
	// have taken. The loop's.
	awaitsCgroup bool
	log          *slog.Logger
	metrics      *metrics.Metrics
	syncs        *health.SyncHealth
	proxy        *health.Proxy
	path         *health.DataPath
	checks       *health.ServiceChecks
	firewall     *iptables.HealthPorts // in ebpf mode, once it was needed
	events       *eventWriter
	eligible     atomic.Bool // load balancers may use this node
	needNode     bool        // a node that the source does not know is not eligible
	last         atomic.Pointer[admin.Sync]
	refused      atomic.Pointer[map[service.Name]string]
	syncing      atomic.Pointer[time.Time] // when the sync began that runs now
	started      time.Time

	source    healthySource
	nodeName  string
	dataplane dataplane.Dataplane
}

func newObserver(opts *runOptions, mode, nodeName string, client kubernetes.Interface, log *slog.Logger) *observer {
	o := &observer{
		opts: opts, mode: mode, log: log,
		metrics:  metrics.New(buildOf(mode)),
		syncs:    health.NewSyncHealth(2 * opts.syncPeriod),
		path:     health.NewDataPath(probeLimit),
		events:   newEventWriter(client, nodeName),
		needNode: client != nil,
		started:  time.Now(),
	}
	o.whyMode.Store(new(string))
	o.eligible.Store(!o.needNode)
	o.proxy = &health.Proxy{Syncs: o.syncs, Eligible: o.eligible.Load, Answered: o.metrics.Answered,
		Probe: func() error { return o.path.Err(time.Now()) }}
	o.checks = &health.ServiceChecks{Log: log, Healthy: o.proxy.Healthy, Failed: o.events.healthCheckFailed}
	return o
}

// collect adds what the kernel counts to the metrics.
func (o *observer) collect(dp dataplane.Dataplane) error {
	all := []prometheus.Collector{metrics.Conntrack{Dir: conntrackSysctls}}
	all = append(all, modeCollectors(dp, o.opts.perBackend, o.log)...)
	if d, ok := inner(dp).(interface{ Drift() uint64 }); ok {
		all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "nodeproxy_drift_repaired_total",
			Help: "Differences between the kernel and what it should hold, made by others, that were repaired."},
			func() float64 { return float64(d.Drift()) }))
	}
	reached := func() bool { return o.source == nil || o.source.Health().Problem == "" }
	if err := o.metrics.Follow(o.proxy.Healthy, o.eligible.Load, reached); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	for _, c := range all {
		if err := o.metrics.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// watch fills in the hooks of the loop.
func (o *observer) watch(loop *dataplane.Loop) {
	configure, synced := loop.Configure, loop.Synced
	loop.Configure = func(node *service.Node, host service.Host) (service.Config, error) {
		if node == nil {
			o.eligible.Store(!o.needNode)
		} else {
			o.eligible.Store(!node.Deleting && !node.ClusterAutoscalerTaint)
		}
		return configure(node, host)
	}
	loop.Applied = o.metrics.Applied
	loop.Problem = o.events.notServed
	loop.Queued = func() {
		o.syncs.Queued(time.Now())
		o.metrics.Queued()
	}
	loop.Syncing = func() {
		now := time.Now()
		o.syncing.Store(&now)
	}
	loop.Synced = func(r dataplane.Report) {
		o.syncing.Store(nil)
		last := &admin.Sync{At: time.Now(), Kind: "partial", Duration: r.Duration}
		if r.Full {
			last.Kind = "full"
		}
		if r.Err == nil {
			o.syncs.Synced(time.Now())
		} else {
			last.Error = r.Err.Error()
		}
		o.last.Store(last)
		o.refused.Store(&r.Refused)
		o.checks.Update(r.Table)
		o.openHealthPorts(&r)
		if r.Full {
			o.reviewMode()
		}
		o.metrics.Synced(metrics.Sync{Err: r.Err, Full: r.Full, Changed: r.Services, Duration: r.Duration, Table: r.Table, Refused: len(r.Refused)})
		synced(r)
	}
}

// firewallPatience bounds a write to the host's firewall.
const firewallPatience = 10 * time.Second

// openHealthPorts has the host's firewall accept what checks listens on, where the
// mode does not do that itself. Load balancers ask in vain otherwise, which is no
// reason to stop.
func (o *observer) openHealthPorts(r *dataplane.Report) {
	if o.mode != modeEBPF {
		return
	}
	if o.firewall == nil {
		o.firewall = iptables.NewHealthPorts(o.opts.iptables(o.log))
	}
	ctx, cancel := context.WithTimeout(context.Background(), firewallPatience)
	defer cancel()
	changed := r.Services
	if r.Full {
		changed = nil
	}
	if err := o.firewall.Sync(ctx, r.Table, changed); err != nil {
		o.log.Warn("the host's firewall may keep load balancers from health-check node ports", "error", err)
	}
}

// serve runs the two HTTP servers in the group.
func (o *observer) serve(ctx context.Context, group *errgroup.Group) {
	k := &o.opts.kubeProxy
	servers := []*server{
		{what: "health", addr: k.healthzBindAddress, handler: o.proxy.Handler(),
			failed: o.events.serverFailed("FailedToStartProxierHealthcheck")},
		{what: "metrics", addr: k.metricsBindAddress, handler: o.metricsHandler(), slow: true,
			failed: o.events.serverFailed("FailedToStartMetricServer")},
	}
	for _, s := range servers {
		s.log, s.hardFail = o.log, k.bindAddressHardFail
		if !s.hardFail {
			s.failed = nil // kube-proxy's events are those of a failure that ends it
		}
		group.Go(func() error { return s.run(ctx) })
	}
}

// metricsHandler serves what kube-proxy serves on its metrics port.
func (o *observer) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", o.metrics.Handler())
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			fmt.Fprint(w, body)
		}
	}
	mux.HandleFunc("/healthz", text("ok")) // of the process, as there
	mux.HandleFunc("/proxyMode", text(o.mode))
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"nodeproxy": flagValues(o.opts.flags)}) // a client that is gone
	})
	if o.opts.kubeProxy.profiling {
		addProfiling(mux)
	}
	return mux
}

// flagValues are the options in force.
func flagValues(f *pflag.FlagSet) map[string]string {
	out := map[string]string{}
	if f != nil {
		f.VisitAll(func(flag *pflag.Flag) {
			if _, none := ignoredFlags[flag.Name]; !none {
				out[flag.Name] = flag.Value.String()
			}
		})
	}
	return out
}

// nodeReference is this Node for events: kube-proxy's has the name as UID too.
func nodeReference(name string) *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Node", Name: name, UID: types.UID(name)}
}

// healthySource is a source that tells how it is.
type healthySource interface{ Health() source.Health }

// status is what nodeproxy status shows, but for what the Table says.
func (o *observer) status() admin.Status {
	s := admin.Status{
		Version: versionNumber(), PID: os.Getpid(), Started: o.started, Mode: o.mode, Node: o.nodeName, Instance: o.opts.instance,
		ModeReason: *o.whyMode.Load(), Source: o.opts.source, Healthy: o.proxy.Healthy(), Eligible: o.eligible.Load(), LastSync: o.last.Load(), Syncing: o.syncing.Load(),
	}
	if o.source != nil {
		h := o.source.Health()
		s.SourceProblem, s.Ignored = h.Problem, h.Ignored
	}
	if r := o.refused.Load(); r != nil {
		s.AddRefused(dataplane.ReasonRefused, *r)
	}
	if err := o.path.Err(time.Now()); err != nil {
		s.DataPath = err.Error()
	}
	if d, ok := inner(o.dataplane).(*ebpf.Dataplane); ok {
		uses, err := d.MapUses()
		if err != nil {
			o.log.Warn("status is without maps", "error", err)
		}
		s.Maps = mapRows(uses)
		if way := d.Way(); way.Forwarding != "" {
			s.Forwarding = way.String()
		}
		s.CannotEnd = d.CannotEnd()
	}
	return s
}
