package service

import (
	"net/netip"
	"slices"
)

// Packet is the first packet of a flow, as a Table judges it.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            Protocol
	Interface           string // on which it arrives; empty for a packet of this node
	// Leaves is the interface by which this node would forward the packet if
	// nothing translated it; empty for one that it would not forward, and where
	// that is not known.
	Leaves string
}

// returns reports whether forwarding would send a packet back to where it came
// from.
func (p *Packet) returns() bool { return p.Interface != "" && p.Interface == p.Leaves }

// Outcome is what a Table says of a packet.
type Outcome struct {
	// Matched is false for a packet that is not for any Service: it is not
	// touched, and the other fields say nothing.
	Matched  bool
	Port     *ServicePort // nil, as Frontend, where the address is a Service's but the port is not
	Frontend *Frontend
	Source   Source
	// Blocked means that the source is outside the frontend's ranges.
	Blocked bool
	Route   Route // Drop where Blocked
	// Backends are those that the packet may be sent to, if it is translated.
	Backends []Backend

	node *NodeFacts
}

// Masquerade reports whether the packet reaches a backend with an address of
// this node as source. A backend that is this node itself (host network) sees
// who came from elsewhere as they are: its replies pass here in any case.
func (o *Outcome) Masquerade(p Packet, b Backend) bool {
	if p.Interface != "" && o.node.IsLocal(b.Addr()) {
		return false
	}
	return o.Route.Masquerade || p.Source.Addr() == b.Addr()
}

// Judge tells what a Table makes of a packet. It looks at every Service and is
// meant for explaining and for tests: it is the meaning that both modes have
// to reproduce.
func (t *Table) Judge(p Packet) Outcome {
	family := FamilyOf(p.Destination.Addr())
	var node Outcome
	for _, res := range t.Services {
		for i := range res.Ports {
			sp := &res.Ports[i]
			if sp.Family != family || sp.Protocol != p.Protocol {
				continue
			}
			for j := range sp.Frontends {
				f := &sp.Frontends[j]
				if !f.Has(p.Destination.Port()) {
					continue
				}
				if f.Kind == NodePort && t.Node.carriesNodePorts(p.Destination.Addr()) {
					node = Outcome{Matched: true, Port: sp, Frontend: f}
				} else if f.Kind != NodePort && f.Addr == p.Destination.Addr() {
					return t.judge(Outcome{Matched: true, Port: sp, Frontend: f}, p)
				}
			}
		}
	}
	switch {
	case node.Matched: // Service addresses come first
		return t.judge(node, p)
	case t.refuses(p):
		return Outcome{Matched: true, Source: t.Node.SourceOf(p), Route: Route{Action: Reject}, node: &t.Node}
	}
	return Outcome{}
}

// refuses reports whether a packet that no frontend takes is rejected for its
// destination address. One that some Service has as its ClusterIP exists for
// Services alone, so that nobody answers at other ports. Any other address of a
// Service may be a machine's, whose other ports are nobody's to refuse: there
// only what would go round between this node and its router is rejected
// (pitfall P23). What this node has itself is its own.
func (t *Table) refuses(p Packet) bool {
	addr := p.Destination.Addr()
	if t.Node.IsLocal(addr) {
		return false
	}
	for _, res := range t.Services {
		for i := range res.Ports {
			for j := range res.Ports[i].Frontends {
				f := &res.Ports[i].Frontends[j]
				if f.Kind != NodePort && f.Addr == addr && (!f.Kind.MayBeAMachines() || p.returns()) {
					return true
				}
			}
		}
	}
	return false
}

func (t *Table) judge(o Outcome, p Packet) Outcome {
	o.node = &t.Node
	o.Source = t.Node.SourceOf(p)
	if o.Blocked = o.Frontend.Filtered && !o.Frontend.allows(p.Source.Addr()); o.Blocked {
		o.Route = Route{Action: Drop}
		return o
	}
	o.Route = o.Frontend.Routes[o.Source]
	if o.Route.Action == Translate {
		o.Backends = o.Port.Backends[o.Route.List]
	}
	return o
}

func (f *Frontend) allows(source netip.Addr) bool {
	return inside(f.SourceRanges, source)
}

// SourceOf tells the class of a packet's source.
func (n *NodeFacts) SourceOf(p Packet) Source {
	family := FamilyOf(p.Source.Addr())
	switch d := n.Pods[family]; {
	case d.CIDR.IsValid() && d.CIDR.Contains(p.Source.Addr()),
		d.Interface != "" && p.Interface == d.Interface,
		d.InterfacePrefix != "" && len(p.Interface) >= len(d.InterfacePrefix) &&
			p.Interface[:len(d.InterfacePrefix)] == d.InterfacePrefix:
		return FromPod
	}
	if n.IsLocal(p.Source.Addr()) {
		return FromNode
	}
	return FromOutside
}

// IsLocal reports whether an address is this node's own, loopback included.
func (n *NodeFacts) IsLocal(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	family := FamilyOf(addr)
	return slices.Contains(n.Local[family], addr) || inside(n.LocalNetworks[family], addr)
}

func (n *NodeFacts) carriesNodePorts(addr netip.Addr) bool {
	on := n.NodePorts[FamilyOf(addr)]
	if addr.IsLoopback() {
		return on.Loopback
	}
	if on.All {
		return n.IsLocal(addr)
	}
	return slices.Contains(on.Addrs, addr) || inside(on.Networks, addr)
}
