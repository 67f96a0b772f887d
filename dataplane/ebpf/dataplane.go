package ebpf

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netns"

	"github.com/nodeproxy/nodeproxy/dataplane/netevents"
	"github.com/nodeproxy/nodeproxy/service"
)

// Dataplane is the eBPF mode on one node. It belongs to the network namespace
// of the thread that called [New].
type Dataplane struct {
	o        Options
	features kernelFeatures
	reader   *Reader
	ns       netns.NsHandle
	stop     context.CancelFunc
	done     sync.WaitGroup
	lost     chan struct{} // endpoints were taken away
	live     atomic.Uint64 // halves of flows, as of the collector's last pass
	drift    atomic.Uint64 // differences repaired

	wayNow atomic.Pointer[Way] // way, for who does not hold mu

	// inUse guards the holding: a method that uses it without mu locks inUse for
	// reading, and resize locks inUse for writing, and then mu.
	inUse sync.RWMutex
	holding

	saidTooLittle string // what was last said of maps that cannot grow
	stuck         bool   // they did not, and are not tried again before the next full sync

	settling sync.Mutex // of what follows
	settled  time.Time  // when flows were last taken into the counters for Counts

	accepting sync.Mutex // of what follows; it is held while commands run
	accepted  acceptance

	close  sync.Once
	closed error // what closing came to

	mu         sync.Mutex // of what follows
	planner    *planner
	unsure     bool // the last Sync failed: the mirror may be wrong
	synced     bool // some Sync did not fail: there is a mirror
	way        Way  // that packets take
	othersNAT  bool // another program translates what leaves the node
	cgroupGone bool // and it was said
	waiting    bool // to attach, until the maps are filled: another layout's programs work meanwhile
}

// New loads the programs, takes over what an earlier agent of the instance left
// in the kernel, and attaches to cgroup and interfaces. What is in the maps
// serves on until the first Sync. The calling thread's network namespace is the
// node's; CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed.
//
// On an error, what was taken over goes on as it was.
func New(o Options) (*Dataplane, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := errors.Join(checkPatterns(o.Interfaces), checkPatterns(o.XDPInterfaces), o.XDP.check(), o.Forwarding.check()); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	p := pinsOf(&o)
	if err := p.create(); err != nil {
		return nil, err
	}
	f, err := featuresFor(&o)
	if err != nil {
		return nil, err
	}
	if err := p.removeNext(); err != nil {
		return nil, err
	}
	objs, err := loadObjects(&o, p, f)
	if err != nil {
		return nil, err
	}
	asked := o.Sizes
	o.Sizes = sizesOf(&objs.bpfMaps)
	d := &Dataplane{o: o, features: f, reader: &Reader{o}, planner: newPlanner(o.Sizes.Services), lost: make(chan struct{}, 1)}
	d.planner.limits = limitsOf(o.Sizes)
	d.holding = d.hold(objs, p)
	if err := d.start(p); err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	if smaller := asked.smallerThan(o.Sizes); len(smaller) > 0 {
		o.Logger.Info("maps keep their larger sizes until a clean-up", "maps", strings.Join(smaller, ", "))
	}
	if larger := o.Sizes.atLeast(asked); larger != o.Sizes && !o.Drain {
		if err := d.resize(larger); err != nil {
			o.Logger.Warn("maps keep the sizes that they have", "error", err)
		}
	}
	return d, nil
}

func (d *Dataplane) start(p pins) error {
	if err := d.stopWatch(); err != nil {
		return err
	}
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	d.ns = ns
	if d.waiting = !d.o.Drain && p.hasOtherLayouts(); d.waiting {
		d.interfaces.waiting = true
	} else if !d.o.Drain {
		err = d.attach(p)
	}
	if err == nil {
		err = d.work()
	}
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	return nil
}

// work begins all that goes on beside Sync; pause ends it, and waits for the end.
func (d *Dataplane) work() error {
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	if !d.o.Drain {
		if err := errors.Join(d.watch(ctx), d.serveTracked(ctx)); err != nil {
			d.pause()
			return err
		}
	}
	d.done.Add(1)
	go d.collect(ctx)
	if o := d.o; !o.Drain && !o.PacketsOnly && o.Terminate != TerminateNone {
		d.done.Add(1)
		go d.terminate(ctx)
	}
	return nil
}

func (d *Dataplane) pause() {
	d.stop()
	d.done.Wait()
}

func (d *Dataplane) attach(p pins) error {
	if !d.o.PacketsOnly {
		if err := d.attachSockets(p); err != nil {
			return err
		}
	} else if err := detachCgroup(p); err != nil {
		return err
	}
	// One strange device shall not keep the others from being served.
	if err := d.interfaces.refresh(); err != nil && len(d.interfaces.attached) == 0 {
		return err
	} else if err != nil {
		d.o.Logger.Warn("interfaces", "error", err)
	}
	return nil
}

// attachSockets attaches the socket programs, and looks whether they see.
func (d *Dataplane) attachSockets(p pins) error {
	path := d.o.CgroupPath
	if path == "" {
		var err error
		if path, err = findCgroup(); err != nil {
			return err
		}
	}
	if err := attachCgroup(path, d.objs, p); err != nil {
		return err
	}
	return selfTest(path, d.objs)
}

// upgrade attaches the programs once their maps are filled, takes over the flows
// of another layout, and ends that one. Its programs stand behind ours until
// then, and get what ours do not know: a flow that began while they were copied.
func (d *Dataplane) upgrade(ctx context.Context, table *service.Table) error {
	p := pinsOf(&d.o)
	copyFlows := func() error { return p.copyFlows(d.objs) }
	if err := d.filter.without(copyFlows); err != nil {
		return err
	}
	d.interfaces.waiting, d.interfaces.ahead = false, true
	if err := d.inNamespace(func() error { return d.attach(p) }); err != nil {
		return err
	}
	if err := d.filter.without(copyFlows); err != nil {
		return err
	}
	if err := d.inNamespace(d.interfaces.succeed); err != nil {
		return err
	}
	if err := p.removeOtherLayouts(); err != nil {
		return err
	}
	d.waiting = false
	writes, _, err := d.planFull(ctx, table, nil) // without passing on what is not known
	if err != nil {
		return err
	}
	return d.planner.carryOut(ctx, d.maps, writes)
}

// watch follows interfaces and addresses as they come and go.
func (d *Dataplane) watch(ctx context.Context) error {
	follower := &netevents.Follower{Namespace: &d.ns, Log: d.o.Logger}
	links, err := follower.Links(ctx)
	if err != nil {
		return err
	}
	addrs, err := follower.Addresses(ctx)
	if err != nil {
		return err
	}
	d.done.Add(1)
	go d.follow(ctx, links, addrs)
	return nil
}

// follow runs on a thread of its own in the node's namespace, where indexes of
// interfaces mean what they should. The thread ends with it.
func (d *Dataplane) follow(ctx context.Context, links, addrs <-chan struct{}) {
	defer d.done.Done()
	runtime.LockOSThread()
	if err := netns.Set(d.ns); err != nil {
		d.o.Logger.Error("enter the node's network namespace", "error", err)
		return
	}
	// Updates come in bursts, which are one here; look at everything, now and then
	// unasked.
	resync := time.NewTicker(30 * time.Second)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-links:
		case <-addrs:
		case <-resync.C:
		}
		d.mu.Lock()
		if err := d.interfaces.refresh(); err != nil {
			d.o.Logger.Warn("interfaces", "error", err)
		}
		d.mu.Unlock()
	}
}

func (d *Dataplane) collect(ctx context.Context) {
	defer d.done.Done()
	c := &collector{objs: d.objs, t: d.o.Timeouts, entries: uint64(d.objs.Flows.MaxEntries()), filter: d.filter, drain: d.o.Drain}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-prune.C:
			if err := d.pruneCounts(); err != nil {
				d.o.Logger.Warn("counters of backends", "error", err)
			}
		case now := <-tick.C:
			if err := c.tick(now); err != nil {
				d.o.Logger.Warn("flows", "error", err)
			}
			d.live.Store(c.live)
		}
	}
}

// Sync implements [dataplane.Dataplane]. It is safe beside the programs and the
// goroutines of d, not beside itself. Maps without room for the table grow, if they may.
func (d *Dataplane) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	if changed == nil {
		d.stuck = false
	}
	for {
		larger, err := d.sync(ctx, table, changed)
		if err != nil || larger == nil {
			return err
		}
		if err := d.resize(*larger); err != nil { // the others are served
			d.o.Logger.Warn("maps do not grow", "error", err)
			d.stuck = true
		}
		changed = nil
	}
}

// sync is Sync with the maps that there are. It writes nothing if larger ones are to be
// had first, and returns their sizes: what is served goes on meanwhile.
func (d *Dataplane) sync(ctx context.Context, table *service.Table, changed []service.Name) (larger *Sizes, err error) {
	d.mu.Lock()
	full := changed == nil || d.unsure
	d.mu.Unlock()
	var others *others
	if full {
		if others, err = d.lookAround(ctx); err != nil {
			return nil, fmt.Errorf("ebpf: sync: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var writes []write
	var drifted uint64
	if full || d.unsure {
		writes, drifted, err = d.planFull(ctx, table, others)
	} else {
		writes, err = d.planner.planChanged(table, changed)
	}
	d.unsure = true
	if err == nil {
		if larger, err = d.larger(); larger != nil {
			return larger, nil
		}
	}
	if err == nil {
		err = d.planner.carryOut(ctx, d.maps, writes)
	}
	if err == nil && d.waiting {
		err = d.upgrade(ctx, table)
	}
	if err != nil {
		return nil, fmt.Errorf("ebpf: sync: %w", err)
	}
	d.unsure, d.synced = false, true
	if drifted > 0 {
		d.drift.Add(drifted)
		d.o.Logger.Warn("repaired what another program changed in maps or detached", "differences", drifted)
	}
	if losesEndpoints(writes) || d.planner.rerouted || changed == nil {
		select {
		case d.lost <- struct{}{}:
		default: // it is about to look anyway
		}
	}
	return nil, nil
}

// planFull reads the kernel and plans the way from there. It also returns how
// many differences somebody else had made. others is what [Dataplane.lookAround] found.
func (d *Dataplane) planFull(ctx context.Context, table *service.Table, others *others) ([]write, uint64, error) {
	is, err := d.read()
	if err != nil {
		return nil, 0, err
	}
	var writes []write
	var drifted uint64
	err = d.inNamespace(func() error {
		drifted = d.noteDrift(is)
		d.planner.kernel = is
		if d.interfaces != nil {
			d.interfaces.pods = table.Node.Pods
			if err := d.interfaces.refresh(); err != nil {
				d.o.Logger.Warn("interfaces", "error", err)
			}
		}
		if _, err := d.lookForWay(others); err != nil {
			return err
		}
		writes, err = d.planner.planAll(ctx, table, primaryAddresses(), d.modes())
		return err
	})
	return writes, drifted, err
}

// SetPassUnknown changes [Options.PassUnknown]. It takes effect with the next
// Sync, which becomes a full one.
func (d *Dataplane) SetPassUnknown(pass bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.o.PassUnknown = pass
	d.unsure = true
}

// inNamespace runs f on a thread in the node's namespace.
func (d *Dataplane) inNamespace(f func() error) error {
	errs := make(chan error)
	go func() {
		// Not unlocked: the thread is in a namespace of its own and ends here.
		runtime.LockOSThread()
		if err := netns.Set(d.ns); err != nil {
			errs <- fmt.Errorf("enter the node's network namespace: %w", err)
			return
		}
		errs <- f()
	}()
	return <-errs
}

// Close stops following interfaces and collecting flows, and releases what the
// process holds. Programs and maps stay, pinned, and go on translating.
// Closing twice is no error.
func (d *Dataplane) Close() error {
	d.close.Do(func() {
		d.pause()
		d.closed = errors.Join(d.ns.Close(), d.objs.Close())
	})
	return d.closed
}
