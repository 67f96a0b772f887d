package netnstests

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

var dresses = []dress{
	{name: "flannel", wear: wearFlannel},
	{name: "calico", wear: wearCalico},
	{name: "docker", wear: wearDocker},
	{name: "ufw", wear: wearUFW},
	{name: "legacy ufw", wear: wearLegacyUFW},
	{name: "firewalld", wear: wearFirewalld},
	{name: "nodelocaldns", wear: wearNodeLocalDNS},
	{name: "portmap", wear: wearPortmap},
	{name: "keepalived", wear: wearKeepalived},
	{name: "several addresses", wear: wearAddresses},
	{name: "two uplinks", wear: wearTwoUplinks},
	{name: "bridged uplink", wear: wearUplinkBridge},
	{name: "wireguard", wear: wearWireGuard},
	{name: "br_netfilter", bridge: true, wear: func(t *testing.T, w *worn) { setBridgeNetfilter(t, w, "1") }},
	{name: "no br_netfilter", bridge: true, wear: wearNoBridgeNetfilter},
}

// wearFlannel is flannel with vxlan and --ip-masq: Pods of other nodes are behind
// flannel.1, and what leaves the Pods' network is masqueraded at random ports.
func wearFlannel(t *testing.T, w *worn) {
	w.overlay(t)
	for _, node := range []string{"node-a", "node-b"} {
		w.rules(t, node, "-t nat -N FLANNEL-POSTRTG", "-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
			"-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
			"-t nat -A FLANNEL-POSTRTG -s {own-pods} -d {pods} -j RETURN", "-t nat -A FLANNEL-POSTRTG -s {pods} -d {own-pods} -j RETURN",
			"-t nat -A FLANNEL-POSTRTG ! -s {pods} -d {own-pods} -j RETURN",
			"-t nat -A FLANNEL-POSTRTG -s {pods} ! -d {multicast} -j MASQUERADE --random-fully",
			"-t nat -A FLANNEL-POSTRTG ! -s {pods} -d {pods} -j MASQUERADE --random-fully",
			"-N FLANNEL-FWD", "-A FORWARD -j FLANNEL-FWD", "-A FLANNEL-FWD -s {pods} -j ACCEPT", "-A FLANNEL-FWD -d {pods} -j ACCEPT")
	}
}

// overlay puts the Pods of other nodes behind a device whose packets vxlan carries,
// and which takes 50 bytes less than the uplink.
func (w *worn) overlay(t *testing.T) {
	addrs := map[string][2]string{"node-a": {"10.244.1.0", "fd00:10:244:1::f"}, "node-b": {"10.244.2.0", "fd00:10:244:2::f"}}
	for node, other := range map[string]string{"node-a": "node-b", "node-b": "node-a"} {
		for _, command := range []string{
			"link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 local {node} remote {other}",
			"link set flannel.1 up", "addr add {own4}/32 dev flannel.1", "-6 addr add {own6}/128 dev flannel.1 nodad",
			"route replace {pods4} via {other4} dev flannel.1 onlink", "-6 route replace {other6} dev flannel.1",
			"-6 route replace {pods6} via {other6} dev flannel.1 onlink",
		} {
			ip(t, w.Lab, node, command, "{node}", lab.MustPlace(node).IPv4.String(), "{other}", lab.MustPlace(other).IPv4.String(),
				"{own4}", addrs[node][0], "{own6}", addrs[node][1], "{other4}", addrs[other][0], "{other6}", addrs[other][1],
				"{pods4}", lab.PodCIDRs[other][0].String(), "{pods6}", lab.PodCIDRs[other][1].String())
		}
		for _, a := range addrs[node] {
			w.also[node] = append(w.also[node], netip.MustParseAddr(a))
		}
	}
}

// ip runs a command of iproute2 with words replaced.
func ip(t *testing.T, l *lab.Lab, place, command string, words ...string) {
	t.Helper()
	inPlace(t, l, place, append([]string{"ip"}, fields(command, words...)...)...)
}

// wearCalico has the shape of Calico's chains: FORWARD leads to a chain of each
// workload, which drops what no policy allows, and marks what one does. pod-a2
// may be spoken to by pod-a1 alone.
func wearCalico(t *testing.T, w *worn) {
	w.rules(t, "node-a", "-t raw -A PREROUTING -j MARK --set-xmark 0x0/0xf0000",
		"-N cali-tw-a2", "-A cali-tw-a2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A cali-tw-a2 -m conntrack --ctstate INVALID -j DROP",
		"-A cali-tw-a2 -s {pod-a1} -j MARK --set-xmark 0x10000/0x10000", "-A cali-tw-a2 -m mark --mark 0x10000/0x10000 -j RETURN", "-A cali-tw-a2 -j DROP",
		"-N cali-to-wl", "-A cali-to-wl -o veth-a2 -g cali-tw-a2", "-A cali-to-wl -j MARK --set-xmark 0x10000/0x10000",
		"-N cali-from-wl", "-A cali-from-wl -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A cali-from-wl -m conntrack --ctstate INVALID -j DROP",
		"-A cali-from-wl -j MARK --set-xmark 0x10000/0x10000",
		"-N cali-FORWARD", "-A cali-FORWARD -i veth-+ -j cali-from-wl", "-A cali-FORWARD -j MARK --set-xmark 0x0/0x10000", "-A cali-FORWARD -o veth-+ -j cali-to-wl",
		"-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT", "-I FORWARD 1 -j cali-FORWARD",
		"-N cali-OUTPUT", "-A cali-OUTPUT -o veth-+ -j ACCEPT", "-I OUTPUT 1 -j cali-OUTPUT",
		"-t nat -N cali-nat-outgoing", "-t nat -A POSTROUTING -j cali-nat-outgoing",
		"-t nat -A cali-nat-outgoing -s {pods} ! -d {pods} -j MASQUERADE --random-fully")
	eachWay(func(network echo.Network, v6 bool) {
		direct := netip.AddrPortFrom(lab.MustPlace("pod-a2").Addr(v6), echo.PortEcho)
		w.always = append(w.always, w.closed("pod-b1", network, direct), w.closed("client", network, direct), w.open("pod-a1", network, direct, "pod-a2"))
		w.served = append(w.served, w.closed("client", network, guarded.addr("node-a", 80, v6)), w.closed("pod-b1", network, guarded.addr("cluster", 80, v6)),
			w.closed("pod-b1", network, guarded.addr("node-a", 80, v6)), w.closed("client", network, guarded.addr("external", 80, v6)),
			w.closed("node-b", network, guarded.addr("cluster", 80, v6)), w.open("pod-a1", network, guarded.addr("cluster", 80, v6), "pod-a2"))
	})
}

// wearDocker is docker with a container that publishes a port: its FORWARD drops
// what nobody accepts, and the container is no Pod.
func wearDocker(t *testing.T, w *worn) {
	box := newContainer(t, w.Lab, "node-a", "container")
	ip(t, w.Lab, "node-a", "link add docker0 type bridge")
	ip(t, w.Lab, "node-a", "addr add 172.17.0.1/16 dev docker0")
	ip(t, w.Lab, "node-a", "-6 addr add fd00:17::1/64 dev docker0 nodad")
	ip(t, w.Lab, "node-a", "link set docker0 up")
	w.also["node-a"] = []netip.Addr{netip.MustParseAddr("fd00:17::1")} // to Pods of the node itself, MASQUERADE takes any
	box.join(t, "docker0", "172.17.0.2/16", "172.17.0.1", "fd00:17::2/64", "fd00:17::1")
	for f, tool := range tools(w.column.backendOf()) {
		network, to := []string{"172.17.0.0/16", "fd00:17::/64"}[f], []string{"172.17.0.2", "fd00:17::2"}[f]
		dnat := []string{"172.17.0.2:7000", "[fd00:17::2]:7000"}[f]
		for _, rule := range []string{
			"-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
			"-t nat -A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER", "-t nat -A POSTROUTING -s {net} ! -o docker0 -j MASQUERADE",
			"-t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination {dnat}",
			"-P FORWARD DROP", "-N DOCKER", "-A FORWARD -o docker0 -j DOCKER", "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "-A DOCKER -d {to} ! -i docker0 -o docker0 -p tcp --dport 7000 -j ACCEPT",
			"-A FORWARD -s {pods} -j ACCEPT", "-A FORWARD -d {pods} -j ACCEPT", // as network plugins add
		} {
			inPlace(t, w.Lab, "node-a", append([]string{tool}, fields(rule, "{net}", network, "{to}", to, "{dnat}", dnat, "{pods}", lab.ClusterCIDRs[f].String(),
				"{loopback}", []string{"127.0.0.0/8", "::1/128"}[f])...)...)
		}
	}
	for _, v6 := range []bool{false, true} {
		published := netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), 8080)
		w.always = append(w.always, w.open("client", echo.TCP, published, "container"), w.open("node-b", echo.TCP, published, "container"),
			box.opens(echo.TCP, netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), machinePort), lab.MustPlace("node-a").Addr(v6), "client"))
		for _, network := range []echo.Network{echo.TCP, echo.UDP} {
			for range 6 {
				w.served = append(w.served, box.opens(network, find("remote").addr("cluster", 80, v6), lab.MustPlace("node-a").Addr(v6), "pod-b1"))
			}
		}
	}
}

// wearUFW is a host firewall that drops by default, on the way in and through,
// and what conntrack calls invalid; some ports are open, and Pods may pass.
func wearUFW(t *testing.T, w *worn) {
	w.rules(t, "node-a", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"-A INPUT -m conntrack --ctstate INVALID -j DROP", "-A INPUT -p {icmp} -j ACCEPT",
		fmt.Sprintf("-A INPUT -p tcp --dport %d -j ACCEPT", machinePort), fmt.Sprintf("-A INPUT -p udp --dport %d -j ACCEPT", machinePort), "-P INPUT DROP",
		"-A FORWARD -m conntrack --ctstate INVALID -j DROP", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"-A FORWARD -p {icmp} -j ACCEPT", "-A FORWARD -s {pods} -j ACCEPT", "-A FORWARD -d {pods} -j ACCEPT", "-P FORWARD DROP")
	serve(t, w.Lab, "node-a", machinePort+1, "node-a")
	eachWay(func(network echo.Network, v6 bool) {
		w.always = append(w.always, w.closed("client", network, netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), machinePort+1)),
			w.closed("pod-b1", network, netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), machinePort+1)))
	})
}

// wearNodeLocalDNS is the cache that has the cluster DNS's ClusterIP on a device
// of the node, where nothing is tracked: Pods of the node and the node itself ask
// it, Pods elsewhere the endpoints.
func wearNodeLocalDNS(t *testing.T, w *worn) {
	dns := svc{41, "dns", pods("pod-b2"), clusterIPOnly}
	w.services = append(w.services, dns)
	ip(t, w.Lab, "node-a", "link add nodelocaldns type bridge")
	for f, tool := range tools(w.column.backendOf()) {
		at := dns.addr("cluster", 80, f == 1)
		w.also["node-a"] = append(w.also["node-a"], at.Addr()) // to Pods of the node itself, MASQUERADE takes any
		ip(t, w.Lab, "node-a", "addr add {a} dev nodelocaldns", "{a}", netip.PrefixFrom(at.Addr(), at.Addr().BitLen()).String())
		for _, p := range []string{"tcp", "udp"} {
			for _, rule := range []string{
				"-t raw -A PREROUTING -d {a} -p {p} --dport 80 -j NOTRACK", "-t raw -A OUTPUT -s {a} -p {p} --sport 80 -j NOTRACK",
				"-t raw -A OUTPUT -d {a} -p {p} --dport 80 -j NOTRACK", "-A INPUT -d {a} -p {p} --dport 80 -j ACCEPT", "-A OUTPUT -s {a} -p {p} --sport 80 -j ACCEPT",
			} {
				inPlace(t, w.Lab, "node-a", append([]string{tool}, fields(rule, "{a}", at.Addr().String(), "{p}", p)...)...)
			}
		}
	}
	ip(t, w.Lab, "node-a", "link set nodelocaldns up")
	eachWay(func(network echo.Network, v6 bool) {
		at := dns.addr("cluster", 80, v6)
		if network == echo.TCP {
			serveAt(t, w.Lab, "node-a", at, "cache")
		}
		w.always = append(w.always, w.open("pod-a1", network, at, "cache"), w.open("pod-a2", network, at, "cache"), w.open("node-a", network, at, "cache"))
		w.served = append(w.served, w.open("pod-b1", network, at, "pod-b2"), w.open("node-b", network, at, "pod-b2"))
	})
}

// hostPort is a port of portmap's, inside of the range from which ebpf mode took
// masquerade ports.
const hostPort = 62000

// wearPortmap is the portmap plugin, which leads a port of the node to pod-a2.
func wearPortmap(t *testing.T, w *worn) {
	w.rules(t, "node-a", "-t nat -N CNI-HOSTPORT-MASQ", "-t nat -A POSTROUTING -j CNI-HOSTPORT-MASQ", "-t nat -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
		"-t nat -N CNI-HOSTPORT-DNAT", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
		"-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT")
	for f, tool := range tools(w.column.backendOf()) {
		to := netip.AddrPortFrom(lab.MustPlace("pod-a2").Addr(f == 1), echo.PortEcho)
		for _, p := range []string{"tcp", "udp"} {
			for _, rule := range []string{"-A CNI-HOSTPORT-DNAT -p {p} --dport {port} -s {pods} -j MARK --set-xmark 0x2000/0x2000",
				"-A CNI-HOSTPORT-DNAT -p {p} --dport {port} -j DNAT --to-destination {to}"} {
				inPlace(t, w.Lab, "node-a", append([]string{tool, "-t", "nat"}, fields(rule, "{p}", p, "{port}", fmt.Sprint(hostPort), "{to}", to.String(),
					"{pods}", lab.ClusterCIDRs[f].String())...)...)
			}
		}
	}
	eachWay(func(network echo.Network, v6 bool) {
		for _, from := range []string{"client", "node-b", "pod-b1", "pod-a1"} {
			w.always = append(w.always, w.open(from, network, netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), hostPort), "pod-a2"))
		}
	})
}

// wearKeepalived has addresses that move between nodes, as keepalived's do, and
// those of nodes themselves, as a Service's: they stay machines'.
func wearKeepalived(t *testing.T, w *worn) {
	floating := []netip.Addr{netip.MustParseAddr("192.168.77.200"), netip.MustParseAddr("fd00:77::200")}
	ip(t, w.Lab, "node-b", "addr add 192.168.77.200/24 dev eth0")
	ip(t, w.Lab, "node-b", "-6 addr add fd00:77::200/64 dev eth0 nodad preferred_lft 0")
	shared := svc{42, "shared", pods("pod-a1", "pod-b1"), func(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
		onMachines(s, slices)
		manifest.LoadBalancer(s, floating[0].String(), floating[1].String(), lab.MustPlace("node-a").IPv4.String(), lab.MustPlace("node-a").IPv6.String())
	}}
	w.services = append(w.services, shared)
	eachWay(func(network echo.Network, v6 bool) {
		at := floating[map[bool]int{true: 1}[v6]]
		if network == echo.TCP {
			serveAt(t, w.Lab, "node-b", netip.AddrPortFrom(at, machinePort+1), "floating")
		}
		for _, from := range []string{"client", "node-a", "node-b", "pod-a1", "pod-b1"} {
			w.always = append(w.always, w.open(from, network, netip.AddrPortFrom(at, machinePort+1), "floating"))
			w.served = append(w.served, w.open(from, network, netip.AddrPortFrom(at, 80), "pod-a1", "pod-b1"),
				w.open(from, network, netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), 80), "pod-a1", "pod-b1"))
		}
	})
}
