package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Leftover reports whether an agent of the instance left programs attached.
func Leftover(o Options) (bool, error) {
	if err := o.setDefaults(); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(pinsOf(&o).links)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pins: %w", err)
	}
	return len(entries) > 0, nil
}

// Reply is where the answers of a connection come from and go to, before they
// are translated back.
type Reply struct{ From, To netip.AddrPort }

// Reserve keeps new flows from taking the ports of TCP connections that
// another mode translates and that go on: two at one port of a backend would
// end each other. It holds for as long as [Options.PassUnknown]. It may be
// called beside Sync.
func (d *Dataplane) Reserve(replies []Reply) error {
	d.inUse.RLock()
	defer d.inUse.RUnlock()
	return d.filter.without(func() error { return d.reserve(replies) })
}

func (d *Dataplane) reserve(replies []Reply) error {
	held := bpfFlow{Flags: uint8(bpfFlowFlagFLOW_FOREIGN)}
	for _, r := range replies {
		key := bpfTuple{
			Src: mapAddr(r.From.Addr()), Sport: networkPort(r.From.Port()),
			Dst: mapAddr(r.To.Addr()), Dport: networkPort(r.To.Port()), Proto: unix.IPPROTO_TCP,
		}
		if err := d.objs.Flows.Update(key, held, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("reserve ports of open connections: %w", err)
		}
	}
	return nil
}

// UsesConntrack reports whether the kernel's conntrack owns the TCP and UDP flows of the
// packet path, so that those that another mode began there go on.
func (d *Dataplane) UsesConntrack() bool { return d.features.conntrack }

// Idle reports whether no flow is translated by the packet path any more. Those that
// conntrack owns do not count: they go on without us. It may be called beside Sync.
func (d *Dataplane) Idle() (bool, error) {
	d.inUse.RLock()
	defer d.inUse.RUnlock()
	var key bpfTuple
	var flow bpfFlow
	entries := d.objs.Flows.Iterate()
	for entries.Next(&key, &flow) {
		if flow.Flags&uint8(bpfFlowFlagFLOW_STACK) == 0 {
			return false, nil
		}
	}
	// Another one that deletes may end the walk early, as often as it likes.
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return false, fmt.Errorf("map %s: %w", bpfMapFlows, err)
	} else if err != nil {
		return false, nil
	}
	return true, nil
}
