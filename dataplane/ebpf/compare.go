package ebpf

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Compare tells in what the kernel does not hold what an agent with r's options
// would make of a Table: maps, and the programs on interfaces and cgroup. It is
// for where no agent runs, and changes nothing. It runs in the node's network
// namespace.
func (r *Reader) Compare(ctx context.Context, table *service.Table) ([]view.Difference, error) {
	is, err := r.contents()
	if err != nil {
		return nil, err
	}
	want, err := r.wanted(ctx, table)
	if err != nil {
		return nil, err
	}
	lost, err := r.lostHooks()
	if err != nil {
		return nil, err
	}
	out := compareContents(want, is)
	for _, name := range lost {
		out = append(out, view.Difference{Where: "hook", What: name, Problem: view.Missing})
	}
	return out, nil
}

// wanted is what an agent that starts now would write, under the ids and
// generations that the kernel has.
func (r *Reader) wanted(ctx context.Context, table *service.Table) (*contents, error) {
	services, err := r.open(mapServices.String())
	if err != nil {
		return nil, err
	}
	defer services.Close()
	p := newPlanner(services.MaxEntries())
	if p.limits, err = r.limits(); err != nil {
		return nil, err
	}
	if p.kernel, err = r.contents(); err != nil {
		return nil, err
	}
	writes, err := p.planAll(ctx, table, primaryAddresses(), bpfNodeFlag(p.kernel.node.Flags)&(bpfNodeFlagNODE_STACK|bpfNodeFlagNODE_OTHERS_NAT))
	if err != nil {
		return nil, err
	}
	for _, w := range writes {
		if w.m != mapServices { // an epoch only says that something else was changed
			p.kernel.took(w)
		}
	}
	return p.kernel, nil
}

// lostHooks names the places where a program of ours should be, and is not.
func (r *Reader) lostHooks() ([]string, error) {
	var out []string
	p := pinsOf(&r.o)
	for _, name := range cgroupHooks {
		if !r.o.PacketsOnly && !p.hasCgroup(name, 0) {
			out = append(out, "cgroup "+name)
		}
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	i := &interfaces{o: &r.o, pins: p, features: probeFeatures(&r.o)}
	chosen, _ := i.chosen(links)
	for _, l := range chosen {
		for _, side := range sidesOf(l.Attrs().Index) {
			if !i.isAttached(l.Attrs().Index, side) {
				out = append(out, side+" of interface "+l.Attrs().Name)
			}
		}
	}
	return out, nil
}
