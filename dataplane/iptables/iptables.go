// Package iptables makes netfilter's nat and filter chains say what a
// [service.Table] says.
//
// Only chains that begin with NODEPROXY- are ours, reached by one jump from
// each built-in chain; nothing else is touched. Which backend a new flow gets
// is decided in nat, which sees the first packet of a flow only; conntrack
// translates the rest. Frontends that reject or drop stand in filter, where
// only new flows that were not translated are compared with them.
//
// Both are trees, not lists (see tree.go): the cost of a first packet grows
// with the logarithm of the number of Services. The layers, each pure but the
// last: port.go and pick.go render a ServicePort, ruleset.go keeps a family's
// chains and what changed, restore.go writes a transaction, backend.go runs it.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
	"github.com/nodeproxy/nodeproxy/service"
)

// DefaultMasqueradeBit is kube-proxy's: bit 14, 0x4000.
const DefaultMasqueradeBit = 14

// Options configure the iptables mode.
type Options struct {
	// Backend is auto where it is empty.
	Backend Backend
	// MasqueradeBit is the bit of the packet mark that asks for masquerade, 0 to 31.
	MasqueradeBit int
	// PingServiceIPs answers pings of addresses that only Services have; without
	// it they are refused.
	PingServiceIPs bool
	// Instance is named in the comment of the jumps from built-in chains.
	Instance string
	Log      *slog.Logger
}

// Dataplane is the iptables mode. It implements dataplane.Dataplane and is not
// safe for concurrent use.
type Dataplane struct {
	opts     Options
	backend  Backend
	settings settings
	families [2]*familyRules // nil where the node lacks the family
	warned   map[service.Name]bool
	refused  map[service.Name]leftOut
	repaired atomic.Uint64 // differences
	counts   *counts
}

// manyServices is the number of Services above which comments are put only on
// the rules that lead to a Service, not into its chains as well: the legacy
// back end hands the kernel the whole table at each change, and a comment makes
// a rule twice as large.
const manyServices = 1000

// New probes the node. It writes nothing. It fails if IPv4 cannot be
// programmed; without IPv6 it goes on with IPv4 alone and says so.
func New(ctx context.Context, opts Options) (*Dataplane, error) {
	if opts.MasqueradeBit < 0 || opts.MasqueradeBit > 31 {
		return nil, fmt.Errorf("masquerade bit %d: use 0 to 31", opts.MasqueradeBit)
	}
	d := &Dataplane{opts: opts, backend: opts.Backend, warned: map[service.Name]bool{}, refused: map[service.Name]leftOut{}, counts: newCounts()}
	if d.opts.Log == nil {
		d.opts.Log = slog.New(slog.DiscardHandler)
	}
	if d.backend == "" || d.backend == BackendAuto {
		b, err := Detect(ctx)
		if err != nil {
			return nil, fmt.Errorf("find out which iptables back end the node uses: %w", err)
		}
		d.backend = b
	}
	for _, f := range service.Families {
		k, err := newKernel(ctx, d.backend, f)
		if err == nil {
			_, err = k.saveTable(ctx, "nat")
		}
		switch {
		case err == nil:
			d.families[f] = &familyRules{kernel: k, owned: ours, unsure: true}
		case f == service.IPv4:
			return nil, err
		default:
			d.opts.Log.Warn("IPv6 Services are not served: ip6tables does not work here", "error", err)
		}
	}
	d.settings = settings{
		markBit:     1 << opts.MasqueradeBit,
		dropInvalid: !tcpBeLiberal(),
		randomFully: d.families[service.IPv4].kernel.randomFully,
		owner:       opts.Instance,
		ping:        opts.PingServiceIPs,
	}
	return d, nil
}

// closePatience bounds the clean-up at the end.
const closePatience = 10 * time.Second

// Backend tells which back end is used.
func (d *Dataplane) Backend() Backend { return d.backend }

// Unsupported counts the Services of which this mode does not do a part. It
// belongs to the goroutine that calls Sync.
func (d *Dataplane) Unsupported() int { return len(d.warned) }

// Close implements dataplane.Dataplane. It removes the rules that log packets for watch.
func (d *Dataplane) Close() error {
	if !d.settings.watched {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	return d.setWatched(ctx, false)
}

// tcpBeLiberal reports whether conntrack was told to track TCP segments
// outside the window; INVALID then says little.
func tcpBeLiberal() bool {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	d.warnUnsupported(table, changed)
	err := d.syncFamilies(ctx, d.admitted(table), changed)
	if err == nil || ctx.Err() != nil || errors.Is(err, command.ErrTooLong) {
		return err
	}
	if !d.isolate(ctx, d.admitted(table), changed) {
		return err
	}
	return d.syncFamilies(ctx, d.admitted(table), nil)
}

func (d *Dataplane) syncFamilies(ctx context.Context, table *service.Table, changed []service.Name) error {
	var errs []error
	for f, fam := range d.families {
		if fam == nil {
			continue
		}
		if err := fam.sync(ctx, d, service.Family(f), table, changed); err != nil {
			fam.unsure = true
			errs = append(errs, fmt.Errorf("sync %s: %w", fam.kernel, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Dataplane) forgetStale(ctx context.Context, f service.Family, facts *service.NodeFacts, before, after []*service.Resolved) error {
	flows := expectStale(f, facts, before, after)
	if flows.empty() {
		return nil
	}
	n, err := flows.forget(ctx, f)
	if n > 0 {
		d.opts.Log.Info("deleted stale conntrack entries", "family", f.String(), "entries", n)
	}
	return err
}

// warnUnsupported says, once for each Service, what this mode does not do.
func (d *Dataplane) warnUnsupported(table *service.Table, changed []service.Name) {
	check := func(name service.Name) {
		res := table.Services[name]
		maglev := res != nil && slices.ContainsFunc(res.Ports, func(sp service.ServicePort) bool { return sp.Algorithm == service.Maglev })
		if maglev && !d.warned[name] {
			d.opts.Log.Warn("netfilter cannot choose by maglev: endpoints are chosen at random", "service", name.String())
		}
		if d.warned[name] = maglev; !maglev {
			delete(d.warned, name)
		}
	}
	if changed == nil {
		for name := range d.warned {
			check(name)
		}
		for name := range table.Services {
			check(name)
		}
		return
	}
	for _, name := range changed {
		check(name)
	}
}
