package admin

import (
	"net/netip"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Loopback is how a node port at a loopback address is served on this node.
type Loopback struct {
	// Sockets means that programs translate the socket when it connects or
	// sends, to whatever loopback address. Otherwise the agent listens at
	// 127.0.0.1 and ::1, and relays.
	Sockets bool
	// Failed is why the agent does not listen though it should; empty if it does.
	Failed string
}

// relayed are the addresses that the agent listens at.
var relayed = [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

// ExplainLoopback is as [Explain], for a destination on loopback: no rule, and no
// program at an interface, sees what is sent there.
func ExplainLoopback(table *service.Table, p service.Packet, served Loopback, hop Hop) Explanation {
	return judgeLoopback(table, p).explain(p, served, hop)
}

// loopbackOutcome is what a Table says of a packet to loopback.
type loopbackOutcome struct {
	service.Outcome
	// off means that node ports do not answer on loopback here; the Outcome is
	// what it would be if they did.
	off bool
	// elsewhere means that the packet does not begin on this node.
	elsewhere bool
}

func judgeLoopback(table *service.Table, p service.Packet) loopbackOutcome {
	as := *table // the facts of the node are its own then, the Services are not
	on := &as.Node.NodePorts[service.FamilyOf(p.Destination.Addr())].Loopback
	off := !*on
	*on = true
	return loopbackOutcome{as.Judge(p), off, !table.Node.IsLocal(p.Source.Addr())}
}

func (o loopbackOutcome) explain(p service.Packet, served Loopback, hop Hop) Explanation {
	e := Explanation{Verdict: "untouched"}
	say := e.say
	say("%s packet from %s to %s", p.Protocol, from(p.Source), p.Destination)
	if o.elsewhere {
		say("loopback is the sender's own: of the Pod itself, or of another host; a packet that came in with this destination would be discarded by the kernel, and no Service is asked")
		return e
	}
	if !o.Matched {
		say("no Service has node port %d over %s: the packet is not touched", p.Destination.Port(), p.Protocol)
		return e
	}
	say("the source is %s", sourceWords[o.Source])
	e.Service = o.Port.Name.String()
	say("%s of Service %s", frontendWords(o.Frontend, p.Destination), e.Service)
	own := relayed[service.FamilyOf(p.Destination.Addr())]
	switch {
	case o.off:
		say("node ports do not answer on loopback here: --iptables-localhost-nodeports=false, or --nodeport-addresses leaves it out: the packet is not touched")
	case !served.Sockets && p.Destination.Addr() != own:
		say("the agent listens at %s alone, no other address of loopback: the packet is not touched; use %s", own, own)
	case o.Route.Action != service.Translate:
		e.refusedOnLoopback(served.Sockets, because(o.Port))
	case served.Sockets:
		e.Verdict = o.Route.Action.String()
		say("the socket programs translate it when the socket connects or sends, before there is a packet")
		e.loopbackBackends(o.Outcome, p, hop)
		say("programs at sockets cannot be run on trial: the kernel was not asked")
	case served.Failed != "":
		say("the agent should listen there and relay, and does not: %s: the packet is not touched", served.Failed)
	default:
		e.Verdict = o.Route.Action.String()
		say("the agent listens there and relays, with a connection of its own to the endpoint, which ends with the agent")
		e.loopbackBackends(o.Outcome, p, hop)
	}
	return e
}

// refusedOnLoopback says why nobody answers.
func (e *Explanation) refusedOnLoopback(sockets bool, because string) {
	e.Verdict = service.Reject.String()
	if sockets {
		e.say("the Service has no usable endpoint%s: the socket programs reject it, at once", because)
		return
	}
	e.say("the Service has no usable endpoint%s: the agent does not listen, and the kernel rejects it, at once, unless a process of the node's own listens there", because)
}

// loopbackBackends lists where it may be led: always with an address of this
// node as the source.
func (e *Explanation) loopbackBackends(o service.Outcome, p service.Packet, hop Hop) {
	e.choice(o)
	if o.Port.AffinityTimeout > 0 {
		e.say("all clients on loopback are one client to it")
	}
	for _, b := range o.Backends {
		e.candidate(b, p, true, hop)
	}
}

// LoopbackRemains explains a packet to loopback where no agent answers, from
// what the kernel holds: rows as a [Kernel] shows them. sockets tells that
// programs at sockets are still in place.
func LoopbackRemains(frontends []view.Frontend, backends []view.Backend, p service.Packet, sockets bool) Explanation {
	e := Explanation{Verdict: "untouched"}
	e.say("%s packet from %s to %s", p.Protocol, from(p.Source), p.Destination)
	f := nodePortOf(frontends, p)
	if f == nil {
		e.say("no Service has node port %d over %s: the packet is not touched", p.Destination.Port(), p.Protocol)
		return e
	}
	e.Service = f.Service
	e.say("node port %d of Service %s", f.Port, f.Service)
	switch {
	case !sockets || p.Protocol == service.SCTP:
		e.say("the agent relays node ports on loopback, and no agent answers: nobody listens, and the packet is not touched")
	case !strings.HasPrefix(f.Node, service.Translate.String()):
		e.refusedOnLoopback(true, "")
	default:
		e.Verdict = service.Translate.String()
		e.say("the socket programs translate it when the socket connects or sends, if node ports answer on loopback here; to one of")
		for _, b := range backends {
			if b.Service == f.Service && b.Protocol == f.Protocol && sameFamily(b.Address, p) && b.List == "cluster" {
				e.Backends = append(e.Backends, Candidate{Address: b.Address, Local: b.Local != nil && *b.Local, Weight: 1, Masquerade: true})
				e.say("  %s, sees this node as the source", b.Address)
			}
		}
	}
	return e
}

func nodePortOf(rows []view.Frontend, p service.Packet) *view.Frontend {
	port, family := p.Destination.Port(), service.FamilyOf(p.Destination.Addr()).String()
	for i := range rows {
		r := &rows[i]
		if r.Kind == service.NodePort.String() && r.Protocol == p.Protocol.String() && r.Family == family && r.Port <= port && port <= max(r.Port, r.LastPort) {
			return r
		}
	}
	return nil
}

func sameFamily(address string, p service.Packet) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && service.FamilyOf(at.Addr()) == service.FamilyOf(p.Destination.Addr())
}
