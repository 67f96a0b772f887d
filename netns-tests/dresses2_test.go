package netnstests

import (
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// wearAddresses puts another address before node-a's own on its uplink, which the
// rest of the network does not know, and a macvlan child of the uplink beside it:
// a source has to be the one that the route gives, and the child's packets are
// not the node's.
func wearAddresses(t *testing.T, w *worn) {
	for _, command := range []string{
		"addr del {a}/24 dev eth0", "addr add 172.31.0.11/24 dev eth0", "addr add {a}/24 dev eth0", "-6 addr add fd00:31::11/64 dev eth0 nodad preferred_lft 0",
		"route replace default via {router}", "route replace {pods} via {b}",
	} {
		ip(t, w.Lab, "node-a", command, "{a}", lab.MustPlace("node-a").IPv4.String(), "{b}", lab.MustPlace("node-b").IPv4.String(),
			"{router}", lab.MustPlace("router").IPv4.String(), "{pods}", lab.PodCIDRs["node-b"][0].String())
	}
	podRoutes(t, w.Lab, "node-a")
	// To a Pod of the node itself, by an interface without an address, MASQUERADE
	// takes the node's first address.
	w.also["node-a"] = []netip.Addr{netip.MustParseAddr("172.31.0.11")}
	w.childOfUplink(t, "macvlan", "macvlan mode bridge")
}

// childOfUplink has a container share node-a's uplink by a device of this kind, past
// the node's stack: its packets are not the node's.
func (w *worn) childOfUplink(t *testing.T, name, kind string) {
	t.Helper()
	box := newContainer(t, w.Lab, "node-a", name)
	ip(t, w.Lab, "node-a", "link add child0 link eth0 type "+kind)
	ip(t, w.Lab, "node-a", "link set child0 netns {pid}", "{pid}", box.pid)
	box.address(t, "child0", "192.168.77.150/24", lab.MustPlace("router").IPv4.String(), "fd00:77::150/64", lab.MustPlace("router").IPv6.String())
	eachWay(func(network echo.Network, v6 bool) {
		w.always = append(w.always, box.opens(network, netip.AddrPortFrom(lab.MustPlace("node-b").Addr(v6), machinePort), netip.Addr{}, "node-b"))
		for range 6 {
			w.served = append(w.served, box.opens(network, find("remote").addr("node-b", 80, v6), netip.Addr{}, "pod-b1"))
		}
	})
}

// wearWireGuard has a tunnel that takes what has no other way, but for its own
// packets, which bear its mark, as wg-quick sets it up. The mark holds kube-proxy's
// bit.
func wearWireGuard(t *testing.T, w *worn) {
	ip(t, w.Lab, "node-a", "tuntap add wg0 mode tun")
	ip(t, w.Lab, "node-a", "link set wg0 up")
	for _, family := range []string{"-4", "-6"} {
		client, router := "192.168.78.0/24", lab.MustPlace("router").IPv4.String()
		if family == "-6" {
			client, router = "fd00:78::/64", lab.MustPlace("router").IPv6.String()
		}
		for _, command := range []string{"route add {client} via {router}", "route add default dev wg0 table 51820",
			"rule add not fwmark 0xca6c table 51820", "rule add table main suppress_prefixlength 0"} {
			ip(t, w.Lab, "node-a", family+" "+command, "{client}", client, "{router}", router)
		}
	}
	w.rules(t, "node-a", "-t mangle -A OUTPUT -p tcp --dport 6443 -j MARK --set-mark 0xca6c", "-t mangle -A OUTPUT -p udp --dport 6443 -j MARK --set-mark 0xca6c")
}

func setBridgeNetfilter(t *testing.T, w *worn, value string) {
	for _, node := range []string{"node-a", "node-b"} {
		for _, key := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			setSysctl(t, w.Lab, node, "bridge/"+key, value)
		}
	}
}

// wearNoBridgeNetfilter does without what Kubernetes asks of nodes: then Pods of
// one bridge reach each other by Services in ebpf mode only. All other ways work.
func wearNoBridgeNetfilter(t *testing.T, w *worn) {
	setBridgeNetfilter(t, w, "0")
	w.rows = nil
	for _, row := range neighbourRows {
		switch row.name {
		case "across nodes", "pods to node ports", "hairpin":
		default:
			w.rows = append(w.rows, row)
		}
	}
}
