package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// selected tells whether patterns choose an interface. The last match decides.
func selected(patterns []string, name string) bool {
	yes := false
	for _, p := range patterns {
		pattern, exclude := strings.CutPrefix(p, "!")
		if ok, _ := path.Match(pattern, name); ok {
			yes = !exclude
		}
	}
	return yes
}

// checkPatterns refuses patterns that could never match.
func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(strings.TrimPrefix(p, "!"), ""); err != nil {
			return fmt.Errorf("interfaces: pattern %q: %w", p, err)
		}
	}
	return nil
}

// interfaces keeps programs on the selected interfaces of a namespace, and the
// interfaces map. All its methods run on threads in that namespace; the owner's
// lock is held.
type interfaces struct {
	o        *Options
	objs     *objects
	pins     pins
	features kernelFeatures
	pods     [2]service.PodDetector
	attached map[int]string // by index; the name it was attached under
	// accelerated tells which of those that were looked at have the program at
	// XDP; refused are not asked again.
	accelerated map[int]bool
	refused     map[int]bool
	waiting     bool // only the map is kept up to date, nothing attached
	ahead       bool // programs of another layout stay behind ours
}

// refresh makes programs and map agree with the interfaces there are. An
// interface that cannot be used is reported, and does not keep others from it.
func (i *interfaces) refresh() error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := masqueradeAddresses()
	if err != nil {
		return err
	}
	fast, err := uplinks(i.o, links)
	if err != nil {
		return err
	}
	chosen, byIndex := i.chosen(links)
	var errs []error
	seen := map[int]bool{}
	for _, l := range chosen {
		a := l.Attrs()
		seen[a.Index] = true
		// The map first: programs look into it.
		err := i.describe(l, byIndex[a.MasterIndex], addrs)
		if err == nil && !i.waiting && i.attached[a.Index] == "" {
			if err = i.attach(l); err == nil {
				i.attached[a.Index] = a.Name
			}
		}
		if err == nil && !i.waiting && !i.refused[a.Index] {
			was := i.accelerated[a.Index]
			if err = i.accelerate(l, fast[a.Index]); err != nil {
				i.refused[a.Index] = !isGone(err)
			}
			if err == nil && was != i.accelerated[a.Index] {
				err = i.describe(l, byIndex[a.MasterIndex], addrs)
			}
		}
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("interface %s: %w", a.Name, err))
		}
	}
	return errors.Join(append(errs, i.forget(seen))...)
}

// chosen are the interfaces that get programs; byIndex has all.
func (i *interfaces) chosen(links []netlink.Link) (out []netlink.Link, byIndex map[int]netlink.Link) {
	bonds := map[int]bool{}
	byIndex = map[int]netlink.Link{}
	for _, l := range links {
		bonds[l.Attrs().Index] = l.Type() == "bond" || l.Type() == "team"
		byIndex[l.Attrs().Index] = l
	}
	for _, l := range links {
		a := l.Attrs()
		if selected(i.o.Interfaces, a.Name) && !bonds[a.MasterIndex] || i.sendsByLoopback(l) {
			out = append(out, l)
		}
	}
	return out, byIndex
}

// sendsByLoopback reports whether an interface is the loopback device, and has to be
// looked at: what the node's own sockets send to its own addresses leaves by it, and
// where no socket program translates them the stack way does.
func (i *interfaces) sendsByLoopback(l netlink.Link) bool {
	return l.Attrs().Index == loIndex && i.o.PacketsOnly && i.features.conntrack
}

// isGone reports that an interface vanished between listing and use.
func isGone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) }

// describe writes what the programs need to know of an interface. What comes
// from Pods behind a bridge is met at its port, before it is the bridge's. master is
// nil without one.
func (i *interfaces) describe(l, master netlink.Link, addrs [2]map[int]netip.Addr) error {
	a := l.Attrs()
	var v bpfInterface
	podFlags := [2]bpfInterfaceFlag{bpfInterfaceFlagINTERFACE_POD4, bpfInterfaceFlagINTERFACE_POD6}
	for _, f := range service.Families {
		d := i.pods[f]
		behind := master != nil && d.Interface == master.Attrs().Name
		if d.Interface != "" && (d.Interface == a.Name || behind) ||
			d.InterfacePrefix != "" && strings.HasPrefix(a.Name, d.InterfacePrefix) {
			v.Flags |= uint32(podFlags[f])
		}
		if addr, ok := addrs[f][a.Index]; ok {
			v.Masquerade[f] = mapAddr(addr)
		}
	}
	copy(v.Mac[:], a.HardwareAddr)
	if master != nil && master.Type() == "bridge" {
		v.Flags |= uint32(bpfInterfaceFlagINTERFACE_PORT)
		copy(v.Mac[:], master.Attrs().HardwareAddr)
	}
	if l.Type() == "veth" && a.NetNsID >= 0 {
		v.Flags |= uint32(bpfInterfaceFlagINTERFACE_PEER)
	}
	if i.accelerated[a.Index] {
		v.Flags |= uint32(bpfInterfaceFlagINTERFACE_XDP)
	}
	// What is as it should be is not written again: a program that reads the
	// old value meanwhile may see its memory used for another one.
	var is bpfInterface
	if err := i.objs.Interfaces.Lookup(uint32(a.Index), &is); err == nil && is == v {
		return nil
	}
	return i.objs.Interfaces.Put(uint32(a.Index), v)
}

// whole repeats a dump until nothing changed during it: what is missing in half
// a list must not be taken for gone.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for tries := 0; ; tries++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 10 {
			return out, err
		}
	}
}

// masqueradeAddresses are, by family and index, the first address of each
// interface that others can reach.
func masqueradeAddresses() (out [2]map[int]netip.Addr, err error) {
	const unusable = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for f, family := range [2]int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
		if err != nil {
			return out, fmt.Errorf("list addresses: %w", err)
		}
		out[f] = map[int]netip.Addr{}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			ip = ip.Unmap()
			if _, ok := out[f][a.LinkIndex]; !ok && ip.IsGlobalUnicast() && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unusable == 0 {
				out[f][a.LinkIndex] = ip
			}
		}
	}
	return out, nil
}

// forget drops what belongs to interfaces that are gone or not selected now.
func (i *interfaces) forget(seen map[int]bool) error {
	var errs []error
	known := map[uint32]bpfInterface{}
	if err := readMap(i.objs.Interfaces, known); err != nil {
		errs = append(errs, err)
	}
	for index := range known {
		if !seen[int(index)] {
			errs = append(errs, i.detach(int(index)))
			if err := i.objs.Interfaces.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("map %s: %w", bpfMapInterfaces, err))
			}
			delete(i.attached, int(index))
			delete(i.accelerated, int(index))
			delete(i.refused, int(index))
		}
	}
	return errors.Join(errs...)
}

func (i *interfaces) detach(index int) error {
	var errs []error
	for _, pin := range [...]string{i.pinPath(index, "ingress"), i.pinPath(index, "egress"), i.xdpPin(index)} {
		errs = append(errs, detachPinned(pin))
	}
	if l, err := netlink.LinkByIndex(index); err == nil {
		errs = append(errs, removeFiltersOf(l, i.o.Instance))
	}
	return errors.Join(errs...)
}

func (i *interfaces) pinPath(index int, side string) string {
	return filepath.Join(i.pins.links, fmt.Sprintf("tcx_%d_%s", index, side))
}

// attach puts both programs on an interface. Egress comes first: it turns
// replies back that a translated request will cause.
func (i *interfaces) attach(l netlink.Link) error {
	in, out := i.objs.Ingress, i.objs.Egress
	if encap := l.Attrs().EncapType; encap != "ether" && encap != "loopback" { // which has the same header
		if i.objs.l3.Ingress == nil {
			if err := i.objs.loadMore(i.o, i.pins, i.features, &i.objs.l3); err != nil {
				return err
			}
		}
		in, out = i.objs.l3.Ingress, i.objs.l3.Egress
	}
	sent := i.sendsByLoopback(l) // what arrives there was looked at when it was sent
	if !i.features.tcx {
		err := attachFilter(l, netlink.HANDLE_MIN_EGRESS, out, i.o.Instance, i.ahead)
		if sent {
			return err
		}
		return errors.Join(err, attachFilter(l, netlink.HANDLE_MIN_INGRESS, in, i.o.Instance, i.ahead))
	}
	if err := i.attachTCX(l, out, ebpf.AttachTCXEgress, "egress"); err != nil {
		return err
	}
	if !sent {
		if err := i.attachTCX(l, in, ebpf.AttachTCXIngress, "ingress"); err != nil {
			return err
		}
	}
	// Of an agent that had to do without TCX; replaced without a gap.
	return removeFiltersOf(l, i.o.Instance)
}

// succeed ends the time in which programs of another layout stay behind ours; what
// is attached by links goes with these.
func (i *interfaces) succeed() error {
	i.ahead = false
	if i.features.tcx {
		return nil
	}
	var errs []error
	var none netlink.LinkNotFoundError
	for index := range i.attached {
		l, err := netlink.LinkByIndex(index)
		if err == nil {
			err = i.attach(l)
		}
		if err != nil && !isGone(err) && !errors.As(err, &none) {
			errs = append(errs, fmt.Errorf("interface %d: %w", index, err))
		}
	}
	return errors.Join(errs...)
}

func (i *interfaces) attachTCX(l netlink.Link, prog *ebpf.Program, at ebpf.AttachType, side string) error {
	index := l.Attrs().Index
	pin := i.pinPath(index, side)
	done, err := takeOver(pin, prog, func(info *link.Info) bool {
		t := info.TCX()
		return t != nil && t.Ifindex == uint32(index)
	})
	if err != nil || done {
		return err
	}
	opts := link.TCXOptions{Interface: index, Program: prog, Attach: at}
	if old := i.pins.otherLink(filepath.Base(pin)); old != nil {
		defer old.Close()
		opts.Anchor = link.BeforeLink(old)
	}
	made, err := link.AttachTCX(opts)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", side, err)
	}
	return pinNew(made, pin)
}

// primaryAddresses asks routing for the addresses by which the node reaches the
// world; the zero Addr where it does not.
func primaryAddresses() [2]netip.Addr {
	var out [2]netip.Addr
	for f, to := range [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		if src, ok := netip.AddrFromSlice(routes[0].Src); ok {
			out[f] = src.Unmap()
		}
	}
	return out
}
