package service

import "net/netip"

// Packet is the first packet of a flow, as a Table judges it.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            Protocol
	Interface           string // on which it arrives; empty for a packet of this node
}

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
	// Backends are those that the packet may be led to, if it is translated.
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
	case t.owns(p.Destination.Addr()):
		return Outcome{Matched: true, Source: t.Node.SourceOf(p), Route: Route{Action: Reject}, node: &t.Node}
	}
	return Outcome{}
}

// owns reports whether an address exists for Services alone: it is some
// frontend's, and no interface of this node has it. What no frontend there
// takes is rejected, or it would go round between this node and its router.
func (t *Table) owns(addr netip.Addr) bool {
	if t.Node.IsLocal(addr) {
		return false
	}
	for _, res := range t.Services {
		for i := range res.Ports {
			for j := range res.Ports[i].Frontends {
				if f := &res.Ports[i].Frontends[j]; f.Kind != NodePort && f.Addr == addr {
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
	for _, r := range f.SourceRanges {
		if r.Contains(source) {
			return true
		}
	}
	return false
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
	for _, a := range n.Local[FamilyOf(addr)] {
		if a == addr {
			return true
		}
	}
	return false
}

func (n *NodeFacts) carriesNodePorts(addr netip.Addr) bool {
	on := n.NodePorts[FamilyOf(addr)]
	if addr.IsLoopback() {
		return on.Loopback
	}
	if on.All {
		return n.IsLocal(addr)
	}
	for _, a := range on.Addrs {
		if a == addr {
			return true
		}
	}
	return false
}
