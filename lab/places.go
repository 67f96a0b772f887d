package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// Kind is what a place of the lab stands for.
type Kind string

// The kinds of places.
const (
	Client Kind = "client" // a machine outside the cluster
	Router Kind = "router" // between the client and the nodes
	Node   Kind = "node"
	Pod    Kind = "pod"
	// ControlPlane is a machine of the nodes' network that an API server can
	// run on. It is no node: no agent is there, and no Pod.
	ControlPlane Kind = "control-plane"
)

// Place is one network namespace of a lab, with its cgroup.
type Place struct {
	Name string // "client", "router", "node-a", "pod-a1", ...
	Kind Kind
	Node string // of a Pod: the node that it runs on
	// IPv4 and IPv6 are the addresses that the others know it by. For the
	// router they are those on the nodes' side.
	IPv4, IPv6 netip.Addr
}

// Addrs returns the place's IPv4 and IPv6 address, in that order.
func (p Place) Addrs() []netip.Addr { return []netip.Addr{p.IPv4, p.IPv6} }

// Addr returns the place's IPv6 address if v6 is true, else its IPv4 one.
func (p Place) Addr(v6 bool) netip.Addr {
	if v6 {
		return p.IPv6
	}
	return p.IPv4
}

// cgroup is the place's directory in the lab's cgroup subtree. A node's own
// processes have one beside those of its Pods, since the node's is the parent
// of all of them.
func (p Place) cgroup() string {
	switch p.Kind {
	case Node:
		return p.Name + "/host"
	case Pod:
		return p.Node + "/" + p.Name
	}
	return p.Name
}

var places = []Place{
	place("client", Client, "", "192.168.78.10", "fd00:78::10"),
	place("router", Router, "", "192.168.77.1", "fd00:77::1"),
	place("control-plane", ControlPlane, "", "192.168.77.10", "fd00:77::10"),
	place("node-a", Node, "", "192.168.77.11", "fd00:77::11"),
	place("node-b", Node, "", "192.168.77.12", "fd00:77::12"),
	place("pod-a1", Pod, "node-a", "10.244.1.11", "fd00:10:244:1::11"),
	place("pod-a2", Pod, "node-a", "10.244.1.12", "fd00:10:244:1::12"),
	place("pod-b1", Pod, "node-b", "10.244.2.11", "fd00:10:244:2::11"),
	place("pod-b2", Pod, "node-b", "10.244.2.12", "fd00:10:244:2::12"),
}

func place(name string, kind Kind, node, ipv4, ipv6 string) Place {
	return Place{name, kind, node, netip.MustParseAddr(ipv4), netip.MustParseAddr(ipv6)}
}

// Places returns every place of a lab: client, router, nodes, Pods.
func Places() []Place { return slices.Clone(places) }

// PlacesOf returns the places of one kind, in the order of [Places].
func PlacesOf(kind Kind) []Place {
	return slices.DeleteFunc(Places(), func(p Place) bool { return p.Kind != kind })
}

// FindPlace returns the place of that name. The error lists the valid names.
func FindPlace(name string) (Place, error) {
	var names []string
	for _, p := range places {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Place{}, fmt.Errorf("unknown place %q: valid are %s", name, strings.Join(names, ", "))
}

// MustPlace is [FindPlace] for names written as literals: it panics.
func MustPlace(name string) Place {
	p, err := FindPlace(name)
	if err != nil {
		panic(err)
	}
	return p
}

// Address ranges of a lab. The router leads LoadBalancerRanges to node-a, and
// nothing but the nodes knows ServiceCIDRs.
var (
	ServiceCIDRs = prefixes("10.96.0.0/16", "fd00:10:96::/112")
	// ClusterCIDRs hold the Pods of all nodes, PodCIDRs those of each.
	ClusterCIDRs = prefixes("10.244.0.0/16", "fd00:10:244::/48")
	PodCIDRs     = map[string][]netip.Prefix{
		"node-a": prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		"node-b": prefixes("10.244.2.0/24", "fd00:10:244:2::/64"),
	}
	LoadBalancerRanges = prefixes("198.51.100.0/24", "fd00:198::/64")
)

// RouterClientSide are the router's addresses on the client's side.
var RouterClientSide = []netip.Addr{
	netip.MustParseAddr("192.168.78.1"), netip.MustParseAddr("fd00:78::1"),
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// Endpoint returns the Pod as a ready endpoint, for manifests. It panics
// where there is no such Pod.
func Endpoint(pod string) manifest.Endpoint {
	p := MustPlace(pod)
	return manifest.Endpoint{Pod: p.Name, Addrs: p.Addrs(), Node: p.Node, Zone: zone(p.Node)}
}

// zone is a node's topology zone: node-a is in zone-a.
func zone(node string) string { return strings.Replace(node, "node", "zone", 1) }
