package ebpf

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// XDP says whether packets of known flows that come in and go out by uplinks
// are forwarded before the stack has made a buffer for them.
type XDP string

// What of XDP is used: nothing, the driver's own hook, or the stack's imitation,
// which works with every driver and wins nothing. Other programs on an uplink see
// nothing of what is forwarded there, neither at tc nor in netfilter.
const (
	XDPOff     XDP = "off"
	XDPNative  XDP = "native"
	XDPGeneric XDP = "generic"
)

// flags are those of attaching.
func (x XDP) flags() link.XDPAttachFlags {
	if x == XDPGeneric {
		return link.XDPGenericMode
	}
	return link.XDPDriverMode
}

// check refuses what is none of them.
func (x XDP) check() error {
	if x != XDPOff && x != XDPNative && x != XDPGeneric {
		return fmt.Errorf("XDP: %q is none of off, native, generic", string(x))
	}
	return nil
}

// uplinks are the indexes of the interfaces that XDP is for: those of default
// routes, if none are named.
func uplinks(o *Options, links []netlink.Link) (map[int]bool, error) {
	out := map[int]bool{}
	if o.XDP == XDPOff {
		return out, nil
	}
	for _, l := range links {
		out[l.Attrs().Index] = o.XDPInterfaces != nil && selected(o.XDPInterfaces, l.Attrs().Name)
	}
	if o.XDPInterfaces != nil {
		return out, nil
	}
	for _, family := range [2]int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		})
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			out[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	return out, nil
}

func (i *interfaces) xdpPin(index int) string {
	return filepath.Join(i.pins.links, fmt.Sprintf("xdp_%d", index))
}

// accelerate attaches the program at XDP to an uplink, and takes it away from
// what is none. Without it all packets take their way through tc.
func (i *interfaces) accelerate(l netlink.Link, wanted bool) error {
	index := l.Attrs().Index
	unfit := i.o.XDP == XDPNative && l.Type() == "veth" && i.o.XDPInterfaces == nil
	switch {
	case !wanted || unfit:
		has, looked := i.accelerated[index]
		if looked && !has {
			return nil
		}
		i.accelerated[index] = false
		if err := detachPinned(i.xdpPin(index)); err != nil {
			return err
		}
		if wanted {
			return errors.New("XDP: what it sends back by a veth is lost unless the other end has a program at XDP too: " +
				"name the interface if it has; its packets take the way through tc")
		}
		return nil
	case i.accelerated[index] || l.Attrs().EncapType != "ether":
		return nil
	}
	if i.objs.xdp.Uplink == nil {
		if err := i.objs.loadMore(i.o, i.pins, i.features, &i.objs.xdp); err != nil {
			return err
		}
	}
	if err := i.attachXDP(l); err != nil {
		return fmt.Errorf("attach to XDP (%s); its packets take the way through tc: %w", i.o.XDP, err)
	}
	i.accelerated[index] = true
	return nil
}

// unpinPatience bounds how long a hook may be busy with what was there.
const unpinPatience = 500 * time.Millisecond

func (i *interfaces) attachXDP(l netlink.Link) error {
	index, pin := l.Attrs().Index, i.xdpPin(l.Attrs().Index)
	had := l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
	done, err := takeOver(pin, i.objs.xdp.Uplink, func(info *link.Info) bool {
		x := info.XDP()
		return x != nil && x.Ifindex == uint32(index) && i.attachedAs(l)
	})
	if err != nil || done {
		return err
	}
	if err := i.pins.removeOther(filepath.Base(pin)); err != nil {
		return err
	}
	attach := func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: i.objs.xdp.Uplink, Interface: index, Flags: i.o.XDP.flags()})
	}
	made, err := attach()
	// What was unpinned a moment ago, the kernel detaches a moment later.
	for end := time.Now().Add(unpinPatience); had && errors.Is(err, unix.EBUSY) && time.Now().Before(end); time.Sleep(unpinPatience / 50) {
		made, err = attach()
	}
	switch {
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return fmt.Errorf("another program is there: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the driver cannot, use generic or off: %w", err)
	case err != nil:
		return err
	}
	return pinNew(made, pin)
}

// attachedAs reports whether what an interface has at XDP is attached in the
// way that is wanted.
func (i *interfaces) attachedAs(l netlink.Link) bool {
	x := l.Attrs().Xdp
	return x != nil && x.Attached && (x.AttachMode == nl.XDP_ATTACHED_SKB) == (i.o.XDP == XDPGeneric)
}

// haveXDP asks for what the program at XDP needs.
func haveXDP() error {
	return errors.Join(
		features.HaveProgramType(ebpf.XDP),
		features.HaveProgramHelper(ebpf.XDP, asm.FnXdpLoadBytes),
		features.HaveProgramHelper(ebpf.XDP, asm.FnKtimeGetCoarseNs))
}
