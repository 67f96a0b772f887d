package netnstests

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// wearLegacyUFW is ufw on a host whose iptables are the older ones.
func wearLegacyUFW(t *testing.T, w *worn) {
	older := *w
	older.column.Backend = "legacy"
	wearUFW(t, &older)
	w.always = older.always
}

// firewalld is what firewalld has in nf_tables when the Pods' network is in the zone
// trusted, as network plugins ask for, and the uplink in public with one port open.
const firewalld = `table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ip saddr {pods4} accept
		ip6 saddr {pods6} accept
		meta l4proto { icmp, ipv6-icmp } accept
		meta l4proto { tcp, udp } th dport {open} accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ip saddr {pods4} accept
		ip6 saddr {pods6} accept
		ip daddr {pods4} accept
		ip6 daddr {pods6} accept
		meta l4proto { icmp, ipv6-icmp } accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}`

func wearFirewalld(t *testing.T, w *worn) {
	rules := strings.NewReplacer("{pods4}", lab.ClusterCIDRs[0].String(), "{pods6}", lab.ClusterCIDRs[1].String(), "{open}", fmt.Sprint(machinePort)).Replace(firewalld)
	inPlace(t, w.Lab, "node-a", "nft", rules)
	serve(t, w.Lab, "node-a", machinePort+1, "node-a")
	eachWay(func(network echo.Network, v6 bool) {
		w.always = append(w.always, w.closed("client", network, netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), machinePort+1)))
	})
}

// moveUplink gives a device of a node the addresses and routes of its uplink.
func moveUplink(t *testing.T, l *lab.Lab, node, to string) {
	t.Helper()
	for f, family := range []string{"-4", "-6"} {
		routes := inPlace(t, l, node, "ip", family, "route", "show", "dev", "eth0")
		addr := netip.PrefixFrom(lab.MustPlace(node).Addr(f == 1), []int{24, 64}[f]).String()
		ip(t, l, node, family+" addr del {a} dev eth0", "{a}", addr)
		ip(t, l, node, family+" addr add {a} dev {to}"+[]string{"", " nodad"}[f], "{a}", addr, "{to}", to)
		for line := range strings.Lines(routes) {
			if !strings.Contains(line, "proto kernel") {
				ip(t, l, node, family+" route replace "+strings.TrimSpace(line)+" dev {to}", "{to}", to)
			}
		}
	}
	podRoutes(t, l, node)
}

// podRoutes adds the routes to a node's own Pods again: they are lost with the address
// that they name as their source.
func podRoutes(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	for _, pod := range lab.PlacesOf(lab.Pod) {
		for _, a := range pod.Addrs() {
			if pod.Node == node {
				ip(t, l, node, "route replace {pod} dev veth-{n} src {a}", "{pod}", a.String(), "{n}", pod.Name[len("pod-"):],
					"{a}", lab.MustPlace(node).Addr(a.Is6()).String())
			}
		}
	}
}

// wearUplinkBridge makes node-a's uplink the port of a bridge that has its addresses, as
// hosts of virtual machines have it, and has a machine at another port: its frames are
// for the router, or for node-b, and none of node-a's business. br_netfilter is off: with
// it, the kernel takes what is translated to another machine behind the bridge for
// something to be bridged, and no bridge sends back by the port that a frame came by.
func wearUplinkBridge(t *testing.T, w *worn) {
	err := w.Do("node-a", func() error {
		uplink, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		snooping := false // as in the lab's own bridges
		attrs := netlink.LinkAttrs{Name: "br0", HardwareAddr: uplink.Attrs().HardwareAddr}
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
	})
	if err != nil {
		t.Fatal(err)
	}
	setBridgeNetfilter(t, w, "0")
	ip(t, w.Lab, "node-a", "link set br0 up")
	moveUplink(t, w.Lab, "node-a", "br0")
	ip(t, w.Lab, "node-a", "link set eth0 master br0")
	machine := newContainer(t, w.Lab, "node-a", "machine")
	machine.join(t, "br0", "192.168.77.150/24", lab.MustPlace("router").IPv4.String(), "fd00:77::150/64", lab.MustPlace("router").IPv6.String())
	eachWay(func(network echo.Network, v6 bool) {
		own := netip.MustParseAddr([]string{"192.168.77.150", "fd00:77::150"}[map[bool]int{true: 1}[v6]])
		for _, other := range []string{"client", "node-a", "node-b"} {
			w.always = append(w.always, w.open(other, network, netip.AddrPortFrom(own, echo.PortEcho), "machine"),
				machine.opens(network, netip.AddrPortFrom(lab.MustPlace(other).Addr(v6), machinePort), own, other))
		}
		for range 6 {
			w.served = append(w.served, machine.opens(network, find("remote").addr("node-b", 80, v6), netip.Addr{}, "pod-b1"),
				machine.opens(network, find("remote").addr("node-a", 80, v6), lab.MustPlace("node-a").Addr(v6), "pod-b1"))
		}
	})
}

// wearTwoUplinks gives node-a a second uplink, for whose address a rule has a table of
// its own. Node ports answer at both addresses. rp_filter is loose, for what
// TestSecondUplinkStrict says.
func wearTwoUplinks(t *testing.T, w *worn) {
	addSecondUplink(t, w.Lab, "2")
	eachWay(func(network echo.Network, v6 bool) {
		at := uplinkAddrs[map[bool]int{true: 1}[v6]]
		if network == echo.TCP {
			serveAt(t, w.Lab, "node-a", netip.AddrPortFrom(at, machinePort+1), "node-a")
		}
		w.always = append(w.always, w.open("client", network, netip.AddrPortFrom(at, machinePort+1), "node-a"))
		for _, name := range []string{"remote", "single"} {
			w.served = append(w.served, w.open("client", network, netip.AddrPortFrom(at, uint16(30000+find(name).n)), "pod-a1", "pod-b1"))
		}
	})
}

// uplinkAddrs are those of node-a on the uplink that addUplink adds.
var uplinkAddrs = [2]netip.Addr{netip.MustParseAddr("192.168.79.11"), netip.MustParseAddr("fd00:79::11")}

// addSecondUplink has a rule lead what node-a sends from its second address out by the
// second uplink. The client is behind the router, as the main table knows it, and dials
// the second address by that uplink.
func addSecondUplink(t *testing.T, l *lab.Lab, rpFilter string) {
	t.Helper()
	addUplink(t, l)
	for f, family := range []string{"-4", "-6"} {
		second, gateway := uplinkAddrs[f].String(), []string{"192.168.79.10", "fd00:79::10"}[f]
		ip(t, l, "node-a", family+" rule add from {second} table 79", "{second}", second)
		ip(t, l, "node-a", family+" route add default via {gateway} dev eth1 table 79", "{gateway}", gateway)
		ip(t, l, "client", family+" route replace {second} dev eth1 src {client}", "{second}", second, "{client}", lab.MustPlace("client").Addr(f == 1).String())
	}
	for _, dev := range []string{"all", "eth0", "eth1"} {
		setSysctl(t, l, "node-a", "ipv4/conf/"+dev+"/rp_filter", rpFilter)
	}
}

// TestSecondUplinkStrict: with rp_filter 1, a node port at the address of the second
// uplink. The kernel checks the reverse path after the destination is translated. The
// rule for the second address does not match the Pod's, so the check fails. kube-proxy has
// the same fault.
func TestSecondUplinkStrict(t *testing.T) {
	eachEBPF(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		addSecondUplink(t, l, "1")
		apply(t, l, find("remote"), find("single"))
		startAgents(t, l)
		w := &worn{Lab: l, column: c}
		for _, network := range []echo.Network{echo.TCP, echo.UDP} {
			for _, name := range []string{"remote", "single"} {
				w.served = append(w.served, w.open("client", network, netip.AddrPortFrom(uplinkAddrs[0], uint16(30000+find(name).n)), "pod-a1", "pod-b1"))
			}
		}
		c.judge(t, "second uplink with rp_filter 1", w.hold(t, w.served))
	})
}
