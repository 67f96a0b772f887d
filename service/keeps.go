package service

import (
	"net/netip"
	"slices"
)

// Keeps tells whether a flow from a source that a frontend sent to a backend is
// left alone: the endpoint serves, on any node or, where the policy is Local, on
// this one, and the source may still enter. It is for flows without an end that
// anybody would see, UDP: what is kept from TCP is a matter of its connections.
// Readiness, hints and weights are for new flows only.
//
// backend has port 0 where the port that was dialled is kept. Where Pods are told
// by interfaces, an address alone does not tell whether it is a Pod's: then
// either class may keep the flow.
func (n *NodeFacts) Keeps(sp *ServicePort, f *Frontend, source netip.Addr, backend netip.AddrPort) bool {
	if f.Filtered && !f.allows(source) {
		return false
	}
	classes := []Source{n.SourceOf(Packet{Source: netip.AddrPortFrom(source, 0)})}
	if d := n.Pods[FamilyOf(source)]; d.Enabled() && !d.CIDR.IsValid() && classes[0] == FromOutside {
		classes = append(classes, FromPod)
	}
	return slices.ContainsFunc(classes, func(s Source) bool {
		r := f.Routes[s]
		serving := sp.Serving
		if r.List == ListLocal {
			serving = sp.ServingLocal
		}
		return r.Action == Translate && (slices.Contains(serving, backend) ||
			slices.ContainsFunc(sp.Backends[r.List], func(b Backend) bool { return b.AddrPort == backend }))
	})
}
