package ebpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Forwarding says which way new flows of the packet path take through the node.
type Forwarding string

// On both ways the kernel's conntrack owns the flow. On the stack way all packets go
// through the stack: routing, netfilter and everybody's rules see them as they see
// those of kube-proxy. On the fast way plain packets of established flows pass it by,
// where nobody's rule is asked. Auto takes the fast way while no other program has rules in the hooks
// that it passes by.
const (
	ForwardingAuto  Forwarding = "auto"
	ForwardingFast  Forwarding = "fast"
	ForwardingStack Forwarding = "stack"
)

func (f Forwarding) check() error {
	switch f {
	case ForwardingAuto, ForwardingFast, ForwardingStack:
		return nil
	}
	return fmt.Errorf("forwarding: %q is none of auto, fast, stack", string(f))
}

// Way is which way new flows take, and why.
type Way struct {
	Forwarding Forwarding `json:"forwarding"` // ForwardingFast or ForwardingStack
	// Reason is why, in words: a setting, what the kernel lacks, or the chains
	// that the fast way would pass by.
	Reason string `json:"reason"`
}

// chooseWay decides between the two ways. foreign are the chains of others in the
// hooks that the fast way passes by.
func chooseWay(asked Forwarding, foreign []string) Way {
	switch {
	case asked != ForwardingAuto:
		return Way{asked, "as set"}
	case len(foreign) > 0:
		return Way{ForwardingStack, "other programs' rules have a say: " + summary(foreign)}
	}
	return Way{ForwardingFast, "no other program has rules that it would pass by"}
}

// summary names a few of many, sorted.
func summary(names []string) string {
	const most = 4
	names = slices.Sorted(slices.Values(names))
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// ProbeWay finds out which way packets would take in the calling thread's network
// namespace as it is now. It changes nothing.
func ProbeWay(ctx context.Context, asked Forwarding) (Way, error) {
	o, err := lookForOthers(ctx)
	if err != nil {
		return Way{}, err
	}
	return chooseWay(asked, o.chains), nil
}

// String is a Way as status, check and the log tell it.
func (w Way) String() string { return fmt.Sprintf("%s: %s", w.Forwarding, w.Reason) }

// Way returns which way packets take at present; zero before the first sync. Safe for
// concurrent use: it waits for no sync.
func (d *Dataplane) Way() Way {
	if way := d.wayNow.Load(); way != nil {
		return *way
	}
	return Way{}
}

// lookAround looks for what others have in netfilter, and has Service flows accepted there.
// Its commands may take long. It runs without d.mu, so that status does not wait for them.
// nil where nothing of netfilter matters.
func (d *Dataplane) lookAround(ctx context.Context) (*others, error) {
	if !d.features.conntrack {
		return nil, nil
	}
	var o others
	err := d.inNamespace(func() (err error) {
		if o, err = lookForOthers(ctx); err != nil {
			return err
		}
		// Without it Services work, but for hosts that drop what is forwarded.
		if err := d.accept(ctx, &o); err != nil {
			d.o.Logger.Warn("netfilter", "error", err)
		}
		return nil
	})
	return &o, err
}

// accept has Service flows accepted where o was found. It runs commands.
func (d *Dataplane) accept(ctx context.Context, o *others) error {
	d.accepting.Lock()
	defer d.accepting.Unlock()
	return d.accepted.ensure(ctx, o.older)
}

// lookForWay chooses the way by what [Dataplane.lookAround] has found, and puts our hooks
// back if somebody took them away. With nil the way stays. It runs in the node's network
// namespace with d.mu held, and reports whether something is different. The programs
// follow with the next write of the node's facts.
func (d *Dataplane) lookForWay(o *others) (changed bool, err error) {
	if !d.features.conntrack {
		d.setWay(Way{ForwardingFast, "the kernel lacks " + conntrackFunctions})
		return false, nil
	}
	repaired, err := ensureHooks(d.o.Instance)
	if err != nil {
		return false, err
	}
	if repaired && d.way != (Way{}) {
		d.drift.Add(1)
		d.o.Logger.Warn("another program removed our nftables table; it is there again", "table", hooksTable(d.o.Instance))
	}
	if o == nil {
		return repaired, nil
	}
	was, nat := d.way, d.othersNAT
	d.setWay(chooseWay(d.o.Forwarding, o.chains))
	d.othersNAT = o.nat
	if was != d.way {
		d.o.Logger.Info("forwarding", "way", string(d.way.Forwarding), "reason", d.way.Reason)
	}
	return repaired || was != d.way || nat != d.othersNAT, nil
}

// setWay notes the way for the programs and for readers. d.mu is held.
func (d *Dataplane) setWay(way Way) {
	d.way = way
	d.wayNow.Store(&way)
}

// followNetfilter looks again whenever somebody changes nf_tables, iptables-nft among
// them; the older tables tell nobody, and are looked at with each full sync. It runs
// in the node's network namespace until ctx ends.
func (d *Dataplane) followNetfilter(ctx context.Context, changes *nl.NetlinkSocket) {
	stop := context.AfterFunc(ctx, changes.Close) // ends Receive
	defer stop()
	for {
		_, _, err := changes.Receive()
		if ctx.Err() != nil {
			return
		}
		// A lost message says that there were many; any other error would come at once
		// again.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			d.o.Logger.Error("follow nf_tables: changes of others are noticed at full syncs only", "error", err)
			return
		}
		select { // a change is often one of many
		case <-ctx.Done():
			return
		case <-time.After(netfilterPause):
		}
		if err := d.followWay(ctx); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("look at netfilter", "error", err)
		}
	}
}

// netfilterPause is how long changes of nf_tables are gathered.
const netfilterPause = 50 * time.Millisecond

// followWay has the programs take the way that is right now. Like
// [Dataplane.lookAround] it runs commands without d.mu.
func (d *Dataplane) followWay(ctx context.Context) error {
	o, err := lookForOthers(ctx)
	if err != nil {
		return err
	}
	changed, err := d.takeWay(&o)
	if err != nil || !changed {
		return err
	}
	return d.accept(ctx, &o)
}

// takeWay tells the programs the way that is right by what was found, and reports
// whether something is different.
func (d *Dataplane) takeWay(o *others) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.synced || d.unsure {
		return false, nil // a full sync is to come
	}
	changed, err := d.lookForWay(o)
	if err != nil || !changed {
		return false, err
	}
	node := &d.planner.kernel.node
	flags := bpfNodeFlag(node.Flags)&^(bpfNodeFlagNODE_STACK|bpfNodeFlagNODE_PASS_UNKNOWN|bpfNodeFlagNODE_OTHERS_NAT) | d.modes()
	if node.Flags != uint32(flags) {
		node.Flags = uint32(flags)
		if err := d.objs.Node.Put(uint32(0), *node); err != nil {
			return true, fmt.Errorf("map %s: %w", bpfMapNode, err)
		}
	}
	return true, nil
}

// modes are the flags of the node's facts that follow from how the mode is run.
func (d *Dataplane) modes() bpfNodeFlag {
	var modes bpfNodeFlag
	if d.o.PassUnknown || d.waiting {
		modes |= bpfNodeFlagNODE_PASS_UNKNOWN
	}
	if d.way.Forwarding == ForwardingStack {
		modes |= bpfNodeFlagNODE_STACK
	}
	if d.othersNAT {
		modes |= bpfNodeFlagNODE_OTHERS_NAT
	}
	return modes
}
