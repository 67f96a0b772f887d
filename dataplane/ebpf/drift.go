package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Verify compares what the kernel holds with what it was last made to hold:
// maps, and the programs on interfaces and cgroup. It may be called beside Sync.
func (d *Dataplane) Verify() ([]view.Difference, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	is, err := d.read()
	if err != nil {
		return nil, err
	}
	out := compareContents(d.planner.kernel, is)
	err = d.inNamespace(func() error {
		for _, hook := range d.lostHooks() {
			out = append(out, view.Difference{Where: "hook", What: hook.name, Problem: view.Missing})
		}
		return nil
	})
	return out, err
}

// Drift is how many differences that somebody else made were repaired since
// New. Safe for concurrent use.
func (d *Dataplane) Drift() uint64 { return d.drift.Load() }

// noteDrift counts what a full sync is about to repair: is has just been read.
// It puts lost programs back, for those are no part of the maps.
func (d *Dataplane) noteDrift(is *contents) uint64 {
	if d.unsure || !d.synced {
		return 0
	}
	d.noteCgroup()
	n := uint64(len(compareContents(d.planner.kernel, is)))
	for _, hook := range d.lostHooks() {
		if err := hook.mend(); errors.Is(err, errCgroupGone) {
			continue // it was said
		} else if err != nil {
			d.o.Logger.Error("programs cannot be put back", "hook", hook.name, "error", err)
			continue
		}
		n++
	}
	return n
}

// loIndex is the index of the loopback device in every network namespace.
const loIndex = 1

// sidesOf are the sides of an interface that get a program.
func sidesOf(index int) []string {
	if index == loIndex {
		return []string{"egress"}
	}
	return []string{"ingress", "egress"}
}

// lostHook is a place at which a program of ours should be, and is not.
type lostHook struct {
	name string
	mend func() error
}

// lostHooks looks at every hook. It runs on a thread in the node's namespace.
func (d *Dataplane) lostHooks() []lostHook {
	if d.o.Drain || d.waiting {
		return nil
	}
	var out []lostHook
	p := pinsOf(&d.o)
	if !d.o.PacketsOnly {
		id, _ := d.cgroupID() // 0: the programs stay where they are
		for _, name := range cgroupHooks {
			if !p.hasCgroup(name, id) {
				out = append(out, lostHook{"cgroup " + name, func() error { return d.mendSockets(p) }})
			}
		}
	}
	for index, name := range d.interfaces.attached {
		for _, side := range sidesOf(index) {
			if d.interfaces.isAttached(index, side) {
				continue
			}
			out = append(out, lostHook{side + " of interface " + name, func() error {
				delete(d.interfaces.attached, index)
				return d.interfaces.refresh()
			}})
		}
	}
	return out
}

// hasCgroup tells whether a socket program of ours is on the cgroup with this id, or
// on any where that is 0.
func (p pins) hasCgroup(hook string, id uint64) bool {
	return isLinked(filepath.Join(p.links, "cgroup_"+hook), func(i *link.Info) bool {
		c := i.Cgroup()
		return c != nil && c.CgroupId != 0 && (id == 0 || c.CgroupId == id)
	})
}

// isAttached tells whether our program is on one side of an interface. One that
// is gone is not missed.
func (i *interfaces) isAttached(index int, side string) bool {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return true
	}
	if i.features.tcx {
		return isLinked(i.pinPath(index, side), func(info *link.Info) bool { t := info.TCX(); return t != nil && t.Ifindex == uint32(index) })
	}
	parent := map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS}[side]
	filters, err := netlink.FilterList(l, parent)
	if err != nil {
		return false
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == filterName(i.o.Instance) {
			return true
		}
	}
	return false
}

// isLinked tells whether a pinned link is there and attached.
func isLinked(path string, attached func(*link.Info) bool) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && attached(info)
}

// compareContents lists where the maps are not as they should be.
func compareContents(want, is *contents) []view.Difference {
	var out []view.Difference
	names := func(id uint32) string {
		if name := want.names[id]; name != "" {
			return name
		}
		return is.nameOf(id)
	}
	compareMaps(&out, mapFrontends, want.frontends, is.frontends, compareFrontends, func(k bpfFrontendKey) string {
		v, ok := want.frontends[k]
		if !ok {
			v = is.frontends[k]
		}
		return fmt.Sprintf("%s/%s of %s", endpoint(k.Addr, k.Port), service.Protocol(k.Proto), names(v.Service))
	})
	compareMaps(&out, mapBackends, want.backends, is.backends, compareBackends, func(k bpfBackendKey) string {
		return fmt.Sprintf("slot %d of %s, generation %d", k.Slot, names(k.Service), k.Generation)
	})
	compareMaps(&out, mapMembers, want.members, is.members, compareMembers, func(k bpfMemberKey) string {
		return fmt.Sprintf("%s of %s", endpoint(k.Addr, k.Port), names(k.Service))
	})
	compareMaps(&out, mapRanges, want.ranges, is.ranges, compareRanges, func(k bpfRangeKey) string {
		return fmt.Sprintf("%s/%d of %s", unmapAddr(k.Addr), k.Prefixlen-32, names(k.Service))
	})
	compareMaps(&out, mapAddresses, want.addresses, is.addresses, compareAddrs, func(k bpfAddr) string { return unmapAddr(k).String() })
	compareMaps(&out, mapPorts, want.ports, is.ports, cmp.Compare, func(k uint32) string { return fmt.Sprint("port ", k) })
	compareMaps(&out, mapServices, want.services, is.services, cmp.Compare, names)
	compareMaps(&out, mapNames, want.names, is.names, cmp.Compare, names)
	if want.node != is.node {
		out = append(out, view.Difference{Where: "map " + mapNode.String(), What: "facts of the node", Problem: view.Different})
	}
	return out
}

func compareMaps[K, V comparable](out *[]view.Difference, m mapID, want, is map[K]V, order func(a, b K) int, what func(K) string) {
	say := func(k K, problem string) {
		*out = append(*out, view.Difference{Where: "map " + m.String(), What: what(k), Problem: problem})
	}
	for _, k := range keysMissing(want, is, order) {
		if got, ok := is[k]; !ok {
			say(k, view.Missing)
		} else {
			say(k, view.Different)
			d := &(*out)[len(*out)-1]
			d.Has, d.Wants = valueText(got), valueText(want[k])
		}
	}
	for _, k := range keysMissing(is, want, order) {
		if _, ok := want[k]; !ok {
			say(k, view.Unwanted)
		}
	}
}

// valueText prints the values that are short enough to be of use.
func valueText(v any) string {
	switch v := v.(type) {
	case bpfBackend:
		return netip.AddrPort.String(endpoint(v.Addr, v.Port))
	case uint32, string:
		return fmt.Sprint(v)
	case bpfFrontend:
		return fmt.Sprintf("service %d generation %d counts %v routes %v", v.Service, v.Generation, v.Count, v.Route)
	}
	return ""
}
