package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
)

// podRange is a range of addresses that pod-b1 has beside its own: a Service
// can so have a thousand endpoints in four Pods.
type podRange struct {
	cidr string
	// detour leads what comes from outside to node-a first and back the same
	// way, as the traffic of a node port is led whose Pod is elsewhere: without
	// a Service, the way has as many hops as with one.
	detour bool
}

var podRanges = []podRange{
	{"10.244.64.0/20", false}, {"fd00:10:244:40::/64", false},
	{"10.244.80.0/24", true}, {"fd00:10:244:50::/64", true},
}

// detourTable is the routing table of what goes back by the detour.
const detourTable = 77

// addPluginRules writes on both nodes what flannel and others write of Pods' traffic.
func addPluginRules(ctx context.Context, l *lab.Lab) error {
	for _, node := range []string{"node-a", "node-b"} {
		for f, command := range []string{"iptables-nft", "ip6tables-nft"} {
			pods := lab.ClusterCIDRs[f].String()
			rule := []string{command, "-w", "5", "-t", "nat", "-A", "POSTROUTING", "-s", pods, "!", "-d", pods, "-j", "MASQUERADE", "--random-fully"}
			if out, err := l.Command(ctx, node, rule...).CombinedOutput(); err != nil {
				return fmt.Errorf("rules of a network plugin on %s: %w: %s", node, err, tail(out))
			}
		}
	}
	return nil
}

// addRoutes leads pod-b1's ranges to it.
func addRoutes(l *lab.Lab) error {
	// Without it, IPv6 does not answer a datagram from an address that is not
	// on a link.
	if err := l.Do("pod-b1", func() error { return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0) }); err != nil {
		return fmt.Errorf("let pod-b1 use its ranges: %w", err)
	}
	for _, r := range podRanges {
		dst := netip.MustParsePrefix(r.cidr)
		six := dst.Addr().Is6()
		address := func(place string) netip.Addr { return lab.MustPlace(place).Addr(six) }
		outside := "node-b"
		if r.detour {
			outside = "node-a"
		}
		for _, step := range []struct {
			place string
			do    func() error
		}{
			{"router", func() error { return addRoute(dst, "br0", address(outside), 0) }},
			{"node-a", func() error { return addRoute(dst, "eth0", address("node-b"), 0) }},
			{"node-b", func() error { return addRoute(dst, "veth-b1", address("pod-b1"), 0) }},
			{"pod-b1", func() error { return addLocal(dst) }},
			{"node-b", func() error {
				if !r.detour {
					return nil
				}
				return addWayBack(dst, address("client"), address("node-a"))
			}},
		} {
			if err := l.Do(step.place, step.do); err != nil {
				return fmt.Errorf("lead %s to pod-b1, on %s: %w", dst, step.place, err)
			}
		}
	}
	return nil
}

func addRoute(dst netip.Prefix, dev string, via netip.Addr, table int) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find link %s: %w", dev, err)
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice(), Table: table})
}

// addLocal makes every address of a range one of this machine's own, without
// an entry for each.
func addLocal(dst netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(dst), Type: unix.RTN_LOCAL,
		Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST})
}

func addWayBack(src netip.Prefix, client, via netip.Addr) error {
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Family = ipNet(src), detourTable, unix.AF_INET
	if src.Addr().Is6() {
		rule.Family = unix.AF_INET6
	}
	if err := netlink.RuleAdd(rule); err != nil {
		return fmt.Errorf("add rule for %s: %w", src, err)
	}
	return addRoute(netip.PrefixFrom(client, client.BitLen()), "eth0", via, detourTable)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
