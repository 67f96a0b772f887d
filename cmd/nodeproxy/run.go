package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/loopback"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

func newRunCommand() *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node agent until it is told to stop",
		Long: `Run the node agent. It follows its source and keeps the kernel's state in step.
On SIGTERM or SIGINT it stops and leaves translation in place, so that
connections go on while it is replaced; nodeproxy cleanup removes everything.`,
		Example: `  # Services from a directory of manifests, on a node called node-a
  nodeproxy run --source file:/etc/nodeproxy/manifests --node-name node-a \
      --cluster-cidr 10.244.0.0/16 --mode iptables

  # On a node of a cluster, in place of kube-proxy
  nodeproxy run --kubeconfig /var/lib/kube-proxy/kubeconfig.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), &opts) },
	}
	opts.register(cmd.Flags())
	return cmd
}

func run(ctx context.Context, opts *runOptions) error {
	config, err := opts.takeConfig()
	if err != nil {
		return err
	}
	if err := opts.validate(); err != nil {
		return err
	}
	log, err := newLogger(opts.logFormat, opts.verbosity)
	if err != nil {
		return err
	}
	node, err := opts.node()
	if err != nil {
		return err
	}
	if done, err := opts.onlyThis(ctx, log); done || err != nil {
		return err
	}
	if err := requireRoot("nodeproxy run"); err != nil {
		return err
	}
	defer endInTime(ctx, log)()
	src, client, err := opts.openSource(node.NodeName, log)
	if err != nil {
		return err
	}
	lock, err := lockNode(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	noConntrack := opts.prepareProcess(log)
	listed := listen(ctx, src)
	defer listed.stop()
	taken, err := opts.openMode(ctx, log)
	if err != nil {
		return err
	}
	dp, mode := taken.Dataplane, taken.mode
	defer dp.Close()
	log.Info("starting", "version", versionText(), "mode", mode,
		"node", node.NodeName, "source", opts.source, "instance", opts.instance)
	if notes := append(config.notes, ignored(opts.flags)...); len(notes) > 0 {
		log.Warn("what does not apply to nodeproxy is passed over", "options", joined(notes))
	}
	warnOfSockets(dp, log)
	a := &agent{opts: opts, log: log, dataplane: dp, source: listed, node: node, config: config, inPlace: taken.finish, noConntrack: noConntrack,
		observer: newObserver(opts, mode, node.NodeName, client, log)}
	a.observer.nodeName, a.observer.dataplane, a.observer.source, a.observer.awaitsCgroup = node.NodeName, dp, src, taken.awaitsCgroup
	a.observer.whyMode.Store(&taken.why)
	a.pods = &podFinder{client: client, manifests: strings.TrimPrefix(opts.source, filePrefix), maxManifest: opts.maxManifest}
	if err := a.observer.collect(dp); err != nil {
		return err
	}
	err = a.drive(ctx)
	if err == nil {
		log.Info("stopped; translation stays in place")
	}
	return err
}

// warnOfSockets says at the start what ebpf mode cannot do here for want of rights.
func warnOfSockets(dp dataplane.Dataplane, log *slog.Logger) {
	d, ok := inner(dp).(*ebpf.Dataplane)
	if !ok {
		return
	}
	if why := d.CannotEnd(); why != "" {
		log.Warn("sockets in Pods are not ended when their backend is gone", "since", why)
	}
}

// changeSource is where Services come from.
type changeSource interface {
	Run(ctx context.Context, emit func(service.Changes)) error
	healthySource
}

// listening is a source at work. It lists while the dataplane is set up: the one
// waits for the API server, and the other for the kernel's verifier.
type listening struct {
	changes chan service.Changes // not buffered: what is not taken waits at the source
	ended   chan error           // what the source's Run returned
	stop    context.CancelFunc
}

func listen(ctx context.Context, src changeSource) *listening {
	ctx, stop := context.WithCancel(ctx)
	l := &listening{changes: make(chan service.Changes), ended: make(chan error, 1), stop: stop}
	go func() {
		l.ended <- src.Run(ctx, func(c service.Changes) {
			select {
			case l.changes <- c:
			case <-ctx.Done():
			}
		})
	}()
	return l
}

// run waits for the end of the source, which ctx brings about.
func (l *listening) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, l.stop)()
	return <-l.ended
}

// agent is what nodeproxy run is made of.
type agent struct {
	opts      *runOptions
	log       *slog.Logger
	dataplane dataplane.Dataplane
	source    *listening
	node      service.Options
	config    *kubeProxyConfig
	observer  *observer
	inPlace   func(context.Context) // runs beside the loop after the first sync
	pods      *podFinder
	// noConntrack tells that its sysctls are to be set once it is there.
	noConntrack bool
}

// drive joins the source to the dataplane until ctx ends.
func (a *agent) drive(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	defer a.observer.checks.Close()
	synced := false
	loop := &dataplane.Loop{
		Dataplane: a.dataplane,
		Configure: a.node.Config, NodeName: a.node.NodeName,
		MinSyncPeriod: a.opts.minSyncPeriod, SyncPeriod: a.opts.syncPeriod, Log: a.log,
		Synced: func(r dataplane.Report) {
			if r.Err == nil && !synced {
				synced = true
				a.log.Info("synced", "services", r.Table.Served(), "unsupported", unsupported(a.dataplane), "duration", r.Duration)
				group.Go(func() error { saveMemory(); return nil }) // a whole collection: not where changes wait
				group.Go(func() error { a.inPlace(ctx); return nil })
				group.Go(func() error { a.observer.probe(ctx); return nil })
			}
		},
	}
	a.observer.watch(loop)
	inspect := make(chan func(*service.Table))
	loop.Inspect = inspect
	repair := make(chan func(error))
	loop.Repair = repair
	socket := &admin.Server{Path: admin.Socket(a.opts.instance), Status: a.observer.status, Inspect: inspect,
		Kernel:  kernelOf(a.dataplane, func() (service.NodeFacts, bool) { return nodeFacts(ctx, inspect) }),
		Verify:  func(ctx context.Context) ([]view.Difference, error) { return verify(ctx, a.dataplane) },
		Watch:   watchOf(a.dataplane, func(do func()) error { return onLoop(ctx, inspect, func(*service.Table) { do() }) }),
		NextHop: nextHop, Leaves: leaves, Loopback: loopbackOf(a.dataplane), Sockets: socketsOf(a.dataplane),
		Pod:    a.pods.find,
		Repair: func(ctx context.Context) error { return askRepair(ctx, repair) }}
	group.Go(func() error { return a.ask(ctx, socket) })
	a.observer.serve(ctx, group)
	group.Go(func() error { return a.observer.events.run(ctx) })
	group.Go(func() error {
		a.opts.kubeProxy.conntrack.follow(ctx, conntrackSysctls, a.noConntrack, a.log)
		return nil
	})
	if path := a.opts.kubeProxy.config; path != "" {
		group.Go(func() error { return watchConfig(ctx, path, a.config.data, a.log) })
	}
	hosts := make(chan service.Host)
	group.Go(func() error { return loop.Run(ctx, a.source.changes, hosts) })
	group.Go(func() error { return dataplane.WatchHost(ctx, a.log, hosts) })
	group.Go(func() error { return a.source.run(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// ask serves the operator's questions. Without a socket the agent goes on.
func (a *agent) ask(ctx context.Context, socket *admin.Server) error {
	if err := socket.Run(ctx); err != nil {
		a.log.Error("nodeproxy status and the like cannot ask this agent", "error", err)
	}
	return nil
}

// kernelOf shows what a mode has in the kernel.
func kernelOf(dp dataplane.Dataplane, node func() (service.NodeFacts, bool)) admin.Kernel {
	switch d := inner(dp).(type) {
	case *ebpf.Dataplane:
		return agentKernel{d.Reader(), d}
	case *iptables.Dataplane:
		r := d.Reader()
		r.Node = node
		return agentKernel{r, d}
	}
	return nil
}

// loopbackOf tells how node ports on loopback are served.
func loopbackOf(dp dataplane.Dataplane) func(service.Packet) admin.Loopback {
	sockets := socketsOf(dp)
	return func(p service.Packet) admin.Loopback {
		l, ok := dp.(*loopback.Dataplane)
		// What the relay takes beside the programs is bound to a loopback address.
		if !ok || sockets != nil && p.Protocol != service.SCTP && sockets() {
			return admin.Loopback{Sockets: true}
		}
		relays, failed := l.Relays(service.FamilyOf(p.Destination.Addr()), p.Protocol, p.Destination.Port())
		return admin.Loopback{Sockets: !relays, Failed: failed}
	}
}

// socketsOf tells whether programs at sockets translate in a mode; it is nil for a mode
// that has none.
func socketsOf(dp dataplane.Dataplane) func() bool {
	if d, ok := inner(dp).(*ebpf.Dataplane); ok {
		return func() bool { return d.Reader().Sockets() }
	}
	return nil
}

// watchOf tells what happens in a mode, or is nil. owner runs a function where
// the mode is synced.
func watchOf(dp dataplane.Dataplane, owner func(func()) error) func(context.Context, func(), func(view.Event)) error {
	switch d := inner(dp).(type) {
	case *ebpf.Dataplane:
		return d.Reader().Watch
	case *iptables.Dataplane:
		return func(ctx context.Context, ready func(), emit func(view.Event)) error {
			return d.Watch(ctx, owner, ready, emit)
		}
	}
	return nil
}

// agentKernel counts as the agent does: it remembers what went before.
type agentKernel struct {
	admin.Kernel
	counter counter
}

// Counts implements [admin.Kernel].
func (k agentKernel) Counts(ctx context.Context) ([]view.Count, error) { return k.counter.Counts(ctx) }

// nodeFacts asks the loop for the facts of the node.
func nodeFacts(ctx context.Context, inspect chan<- func(*service.Table)) (facts service.NodeFacts, ok bool) {
	_ = onLoop(ctx, inspect, func(t *service.Table) { // if it has ended, there are none
		if ok = t != nil; ok {
			facts = t.Node
		}
	})
	return facts, ok
}

// onLoop runs a function on the loop's goroutine, unless ctx ends before.
func onLoop(ctx context.Context, inspect chan<- func(*service.Table), do func(*service.Table)) error {
	done := make(chan struct{})
	select {
	case inspect <- func(t *service.Table) { do(t); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unsupported counts the Services of which a mode does not do a part.
func unsupported(dp dataplane.Dataplane) int {
	if d, ok := dp.(interface{ Unsupported() int }); ok {
		return d.Unsupported()
	}
	return 0
}

// saveMemory gives back what only a start needed. From now on an agent allocates
// little, so that the garbage collector may run more often for less of it;
// GOGC, where it is set, has the last word.
func saveMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	debug.FreeOSMemory()
}
