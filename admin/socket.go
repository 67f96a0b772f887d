package admin

import (
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// SocketAnswer is what the programs at sockets do when a socket of the source connects
// or sends to the destination, which is before there is a packet.
type SocketAnswer struct {
	// Verdict is translate, reject, or packets: those are left to decide.
	Verdict string `json:"verdict"`
	// Reason is why packets decide; empty otherwise.
	Reason string `json:"reason,omitempty"`
}

// verdictPackets means that the programs at sockets leave a call alone.
const verdictPackets = "packets"

// judgeSocket tells what a socket's call comes to. It is nil where no socket of the
// source meets such programs here, or none of them knows the destination: a Pod has to be
// one of this node, which here says.
func judgeSocket(o service.Outcome, p service.Packet, here bool, node *service.NodeFacts) *SocketAnswer {
	pod := p.Interface != ""
	if !o.Matched || o.Frontend == nil || p.Protocol == service.SCTP || pod && (o.Source != service.FromPod || !here) {
		return nil
	}
	leave := func(why string) *SocketAnswer { return &SocketAnswer{verdictPackets, why} }
	switch route := o.Frontend.Routes[o.Source]; {
	case o.Blocked:
		return leave("the source is outside of the Service's source ranges")
	case pod && route.Action == service.Translate && route.Masquerade:
		return leave("the endpoint has to see this node as the source")
	case pod && !node.Pods[o.Port.Family].CIDR.IsValid() && route != o.Frontend.Routes[service.FromOutside]:
		return leave("Pods are told from others by an interface of the node, and a socket has none yet")
	case pod && o.Frontend.Filtered:
		return leave("the Service has source ranges, and a socket has no source yet")
	case pod && o.Port.AffinityTimeout > 0:
		return leave("the Service has session affinity, and a socket has no source yet")
	case route.Action == service.Drop:
		return leave("only a packet can be dropped")
	default:
		return &SocketAnswer{Verdict: route.Action.String()}
	}
}

// takeSocket adds what a socket's call comes to.
func (e *Explanation) takeSocket(a *SocketAnswer, p service.Packet) {
	if a == nil {
		return
	}
	e.Socket = a
	whose, seen := "this node", "this node's own address on the way there"
	if p.Interface != "" {
		whose, seen = "this Pod", "the Pod's own address, also where that is the endpoint itself"
	}
	e.say("a socket of %s that connects or sends there:", whose)
	switch a.Verdict {
	case verdictPackets:
		e.say("  the programs at sockets leave it to packets, as above: %s", a.Reason)
	case service.Reject.String():
		e.say("  the programs at sockets refuse it (ECONNREFUSED): no packet is sent")
	default:
		e.say("  the programs at sockets put one of these endpoints in the place of %s: no packet to that is sent, and the endpoint sees %s", p.Destination, seen)
	}
}

// isHere reports whether an address is reached without a gateway, as Pods of this node
// are.
func isHere(hop Hop, p service.Packet) bool {
	return hop != nil && strings.HasPrefix(hop(p.Source.Addr()), "on ")
}
