package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// plan is what one place gets in its namespace. It is data, so that the whole
// topology can be read, and tested, in one place without a kernel.
type plan struct {
	sysctls []sysctl
	links   []link    // made here, in this order
	addrs   []address // once all links of all places are up
	routes  []route   // once all addresses are there
}

// sysctl is a file under /proc/sys/net and its content.
type sysctl struct{ key, value string }

// link is a bridge, or, if it has a peer, one end of a veth pair.
type link struct {
	name     string
	peer     string // the place of the other end
	peerName string
	master   string // the bridge, in this place, that it is a port of
	hairpin  bool   // as such a port, it may get back what came in by it
}

type address struct {
	dev    string
	prefix netip.Prefix
}

// route leads dst out of dev, by way of via where that is valid; with no dev,
// it answers that dst is unreachable.
type route struct {
	dst, dev string
	via      string
	src      string // preferred source address, may be empty
}

const (
	default4 = "0.0.0.0/0"
	default6 = "::/0"
	// podGateway6 is the address of every Pod veth's host side. IPv6 answers a
	// solicitation only for an address of that very interface, so the node's
	// own address, which serves as IPv4 gateway, would not do.
	podGateway6 = "fe80::1"
)

// makePlan returns the plan of every place, by name.
func makePlan(bridge bool) map[string]*plan {
	plans := map[string]*plan{}
	for _, p := range places {
		plans[p.Name] = &plan{sysctls: sysctls(p.Kind == Node || p.Kind == Router)}
	}
	planClient(plans["client"])
	planRouter(plans["router"])
	planControlPlane(plans["control-plane"])
	for _, node := range PlacesOf(Node) {
		planNode(plans[node.Name], node)
		for _, pod := range PlacesOf(Pod) {
			if pod.Node != node.Name {
				continue
			}
			if bridge {
				planBridgedPod(plans, pod, node)
			} else {
				planRoutedPod(plans, pod, node)
			}
		}
		if bridge {
			planPodBridge(plans[node.Name], node)
		}
	}
	return plans
}

// sysctls are set before a namespace has any link but lo, so that "default"
// holds for all of them.
func sysctls(forward bool) []sysctl {
	list := []sysctl{
		// Host kernels hand their own defaults down to a new namespace.
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		{"ipv6/conf/all/accept_dad", "0"}, // addresses are usable at once
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/all/accept_ra", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
	}
	if forward {
		list = append(list, sysctl{"ipv4/ip_forward", "1"}, sysctl{"ipv6/conf/all/forwarding", "1"})
	}
	return list
}

func planClient(p *plan) {
	client := MustPlace("client")
	p.addrs = []address{{"eth0", within(client.IPv4, 24)}, {"eth0", within(client.IPv6, 64)}}
	p.routes = []route{
		{dst: default4, dev: "eth0", via: RouterClientSide[0].String()},
		{dst: default6, dev: "eth0", via: RouterClientSide[1].String()},
	}
}

func planRouter(p *plan) {
	router := MustPlace("router")
	p.links = []link{{name: "br0"}, {name: "eth0", peer: "client", peerName: "eth0"}}
	p.addrs = []address{
		{"br0", within(router.IPv4, 24)}, {"br0", within(router.IPv6, 64)},
		{"eth0", within(RouterClientSide[0], 24)}, {"eth0", within(RouterClientSide[1], 64)},
	}
	p.links = append(p.links, link{name: "control-plane", peer: "control-plane", peerName: "eth0", master: "br0"})
	for _, node := range PlacesOf(Node) {
		p.links = append(p.links, link{name: node.Name, peer: node.Name, peerName: "eth0", master: "br0"})
		p.routes = append(p.routes, via(node, "br0", PodCIDRs[node.Name])...)
	}
	p.routes = append(p.routes, via(MustPlace("node-a"), "br0", LoadBalancerRanges)...)
}

func planControlPlane(p *plan) {
	self := MustPlace("control-plane")
	p.addrs = []address{{"eth0", within(self.IPv4, 24)}, {"eth0", within(self.IPv6, 64)}}
	p.routes = via(MustPlace("router"), "eth0", prefixes(default4, default6))
}

func planNode(p *plan, node Place) {
	router := MustPlace("router")
	p.addrs = []address{{"eth0", within(node.IPv4, 24)}, {"eth0", within(node.IPv6, 64)}}
	p.routes = via(router, "eth0", prefixes(default4, default6))
	for _, other := range PlacesOf(Node) {
		if other.Name != node.Name {
			p.routes = append(p.routes, via(other, "eth0", PodCIDRs[other.Name])...)
		}
	}
}

// planRoutedPod gives the Pod a veth of its own and host routes.
func planRoutedPod(plans map[string]*plan, pod, node Place) {
	host, inside := plans[node.Name], plans[pod.Name]
	if len(host.links) == 0 {
		// Without these a packet to a Pod that is not there would go to the
		// router and back until its TTL is used up.
		for _, cidr := range PodCIDRs[node.Name] {
			host.routes = append(host.routes, route{dst: cidr.String()})
		}
	}
	veth := podVeth(pod)
	host.links = append(host.links, link{name: veth, peer: pod.Name, peerName: "eth0"})
	host.addrs = append(host.addrs, address{veth, within(netip.MustParseAddr(podGateway6), 64)})
	inside.addrs = []address{{"eth0", within(pod.IPv4, 32)}, {"eth0", within(pod.IPv6, 128)}}
	for _, family := range []struct{ pod, node netip.Addr }{{pod.IPv4, node.IPv4}, {pod.IPv6, node.IPv6}} {
		host.routes = append(host.routes,
			route{dst: single(family.pod), dev: veth, src: family.node.String()})
	}
	inside.routes = []route{
		{dst: single(node.IPv4), dev: "eth0"},
		{dst: default4, dev: "eth0", via: node.IPv4.String()},
		{dst: default6, dev: "eth0", via: podGateway6},
	}
}

// planBridgedPod makes the Pod's veth a port of the node's bridge cni0.
func planBridgedPod(plans map[string]*plan, pod, node Place) {
	host, inside := plans[node.Name], plans[pod.Name]
	if len(host.links) == 0 {
		host.links = []link{{name: "cni0"}}
	}
	// With bridge-nf-call-iptables, as Kubernetes asks for, a packet whose
	// destination was translated to a port's Pod never leaves the bridge; a Pod
	// that reaches itself so needs its port to be a hairpin, as CNI's can be.
	host.links = append(host.links,
		link{name: podVeth(pod), peer: pod.Name, peerName: "eth0", master: "cni0", hairpin: true})
	cidrs := PodCIDRs[node.Name]
	inside.addrs = []address{
		{"eth0", within(pod.IPv4, cidrs[0].Bits())}, {"eth0", within(pod.IPv6, cidrs[1].Bits())},
	}
	inside.routes = []route{
		{dst: default4, dev: "eth0", via: bridgeAddr(cidrs[0]).String()},
		{dst: default6, dev: "eth0", via: bridgeAddr(cidrs[1]).String()},
	}
}

func planPodBridge(p *plan, node Place) {
	for _, cidr := range PodCIDRs[node.Name] {
		p.addrs = append(p.addrs, address{"cni0", within(bridgeAddr(cidr), cidr.Bits())})
	}
}

// podVeth is the name of a Pod's veth on its node: "veth-a1".
func podVeth(pod Place) string { return "veth-" + strings.TrimPrefix(pod.Name, "pod-") }

// bridgeAddr is the first address of a Pod CIDR, as CNI bridges have it.
func bridgeAddr(cidr netip.Prefix) netip.Addr { return cidr.Addr().Next() }

func via(gateway Place, dev string, dsts []netip.Prefix) []route {
	var list []route
	for _, dst := range dsts {
		list = append(list, route{dst: dst.String(), dev: dev, via: gateway.Addr(dst.Addr().Is6()).String()})
	}
	return list
}

func within(addr netip.Addr, bits int) netip.Prefix { return netip.PrefixFrom(addr, bits) }

func single(addr netip.Addr) string { return fmt.Sprintf("%s/%d", addr, addr.BitLen()) }
