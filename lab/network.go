package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// buildNetwork makes the namespaces and everything in them. Each kind of
// thing is made everywhere before the next kind, since a veth needs both
// namespaces, an address a link that is up at both ends, a route an address.
func (l *Lab) buildNetwork(ctx context.Context) error {
	plans := makePlan(l.opts.Bridge)
	steps := []func(Place, *plan) error{
		l.makeNamespace, l.makeLinks, l.raiseLinks, l.addAddresses, l.addRoutes,
	}
	for _, step := range steps {
		for _, p := range places {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("build network: %w", context.Cause(ctx))
			}
			if err := step(p, plans[p.Name]); err != nil {
				return fmt.Errorf("build network of %s: %w", p.Name, err)
			}
		}
	}
	return nil
}

// checkBridge returns what a bridged lab lacks. Without br_netfilter what two
// Pods of one bridge send each other passes by iptables, so that the replies
// would go out untranslated; Kubernetes asks nodes to have it as well.
func (o Options) checkBridge() error {
	if !o.Bridge || o.Mode != ModeIPTables {
		return nil
	}
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		return fmt.Errorf("in iptables mode, Pods behind a bridge need br_netfilter (run `modprobe br_netfilter`): %w", err)
	}
	return nil
}

func (l *Lab) makeNamespace(p Place, plan *plan) error {
	if err := createNetns(l.Netns(p.Name)); err != nil {
		return err
	}
	return l.Do(p.Name, func() error {
		for _, s := range plan.sysctls {
			if err := writeSysctl(s.key, s.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeSysctl sets a value of the calling thread's network namespace.
func writeSysctl(key, value string) error {
	path := filepath.Join("/proc/sys/net", key)
	err := os.WriteFile(path, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set sysctl %s: %w (the lab is dual-stack and needs a kernel with IPv6)", key, err)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	return nil
}

func (l *Lab) makeLinks(p Place, plan *plan) error {
	return l.Do(p.Name, func() error {
		for _, link := range plan.links {
			if err := l.makeLink(link); err != nil {
				return fmt.Errorf("create link %s: %w", link.name, err)
			}
		}
		return nil
	})
}

// makeLink makes a veth's far end in its own namespace from the start, so
// that nothing ever shows up in the machine's.
func (l *Lab) makeLink(link link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link.name
	if link.peer == "" {
		snooping := false // the first neighbour solicitation must not wait for a querier
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
	}
	peer, err := netns.GetFromName(l.Netns(link.peer))
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", link.peer, err)
	}
	defer peer.Close()
	veth := netlink.NewVeth(attrs)
	veth.PeerName = link.peerName
	veth.PeerNamespace = netlink.NsFd(peer)
	if err := netlink.LinkAdd(veth); err != nil || link.master == "" {
		return err
	}
	bridge, err := netlink.LinkByName(link.master)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", link.master, err)
	}
	if err := netlink.LinkSetMaster(veth, bridge); err != nil || !link.hairpin {
		return err
	}
	return netlink.LinkSetHairpin(veth, true)
}

func (l *Lab) raiseLinks(p Place, _ *plan) error {
	return l.Do(p.Name, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		for _, link := range links {
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("set link %s up: %w", link.Attrs().Name, err)
			}
		}
		return nil
	})
}

func (l *Lab) addAddresses(p Place, plan *plan) error {
	return l.Do(p.Name, func() error {
		for _, a := range plan.addrs {
			if err := addAddress(a); err != nil {
				return fmt.Errorf("add address %s to %s: %w", a.prefix, a.dev, err)
			}
		}
		return nil
	})
}

func addAddress(a address) error {
	link, err := netlink.LinkByName(a.dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(a.prefix)}
	if a.prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(link, addr)
}

func (l *Lab) addRoutes(p Place, plan *plan) error {
	return l.Do(p.Name, func() error {
		for _, r := range plan.routes {
			if err := addRoute(r); err != nil {
				return fmt.Errorf("add route to %s: %w", r.dst, err)
			}
		}
		return nil
	})
}

func addRoute(r route) error {
	dst := netip.MustParsePrefix(r.dst)
	nl := &netlink.Route{Dst: ipNet(dst), Src: net.ParseIP(r.src), Gw: net.ParseIP(r.via)}
	switch {
	case r.dev == "":
		nl.Type = unix.RTN_UNREACHABLE
		return netlink.RouteAdd(nl)
	case r.via == "" && dst.Addr().Is4():
		nl.Scope = netlink.SCOPE_LINK
	}
	link, err := netlink.LinkByName(r.dev)
	if err != nil {
		return err
	}
	nl.LinkIndex = link.Attrs().Index
	return netlink.RouteAdd(nl)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// SetMTU sets the largest IP packet, in bytes (1280 to 1500, 1500 at first),
// that the router sends on towards the nodes. It answers larger ones with
// ICMP, as a router before a narrow link does; what the nodes send is not
// affected.
func (l *Lab) SetMTU(bytes int) error {
	return l.Do("router", func() error {
		link, err := netlink.LinkByName("br0")
		if err == nil {
			// The bridge's own, not its ports': a veth throws away, in silence,
			// what arrives larger than its MTU.
			err = netlink.LinkSetMTU(link, bytes)
		}
		if err != nil {
			return fmt.Errorf("set MTU of the router's br0: %w", err)
		}
		return nil
	})
}

// SetClientMTU is [Lab.SetMTU] for what the router sends towards the client,
// so that the nodes are the ones told that their packets are too big.
func (l *Lab) SetClientMTU(bytes int) error {
	return l.Do("router", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("set MTU towards the client: %w", err)
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list the router's routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
				continue
			}
			// Of the route, not of the link, for the reason given in SetMTU.
			r.MTU = bytes
			if err := netlink.RouteReplace(&r); err != nil {
				return fmt.Errorf("set MTU of route %s: %w", r.Dst, err)
			}
		}
		return nil
	})
}
