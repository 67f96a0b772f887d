package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/nodeproxy/nodeproxy/service"
)

// staleFlows tells which conntrack entries lead where no endpoint is any more, or
// where a policy does not lead any more. Netfilter looks at rules for the first
// packet of a flow only, and a UDP flow that goes on sending never ends: without
// this its packets would be black-holed for as long (pitfall P9). Of TCP it is
// asked about attempts that came to nothing before there was a Service: a client
// that dials again from the same port would be led where they were.
type staleFlows struct {
	facts     *service.NodeFacts
	addresses map[at]changedFrontend
	ports     map[at]changedFrontend // node ports, without an address
	spans     []changedFrontend      // ranges of ports
}

// at is a destination of one protocol.
type at struct {
	protocol service.Protocol
	netip.AddrPort
}

// changedFrontend is a frontend; of is nil if it is gone.
type changedFrontend struct {
	*service.Frontend
	protocol service.Protocol
	of       *service.ServicePort
}

func (f *changedFrontend) at() at { return at{f.protocol, netip.AddrPortFrom(f.Addr, f.Port)} }

// expectStale collects the UDP frontends of Services, before and after a change,
// and those of TCP that translate for the first time. All flows of a UDP
// frontend that is gone are stale.
func expectStale(family service.Family, facts *service.NodeFacts, before, after []*service.Resolved) *staleFlows {
	u := &staleFlows{facts: facts, addresses: map[at]changedFrontend{}, ports: map[at]changedFrontend{}}
	open := map[at]bool{}
	eachChanged(family, before, func(f changedFrontend) {
		switch f.protocol {
		case service.UDP:
			f.of = nil
			u.add(f)
		case service.TCP:
			open[f.at()] = open[f.at()] || translates(f.Frontend)
		}
	})
	eachChanged(family, after, func(f changedFrontend) {
		if f.protocol == service.UDP || f.protocol == service.TCP && translates(f.Frontend) && !open[f.at()] {
			u.add(f)
		}
	})
	return u
}

func eachChanged(family service.Family, all []*service.Resolved, do func(changedFrontend)) {
	for _, res := range all {
		if res == nil {
			continue
		}
		for i := range res.Ports {
			sp := &res.Ports[i]
			for j := range sp.Frontends {
				if sp.Family == family {
					do(changedFrontend{&sp.Frontends[j], sp.Protocol, sp})
				}
			}
		}
	}
}

func translates(f *service.Frontend) bool {
	return anyRoute(f, true, func(r service.Route) bool { return r.Action == service.Translate })
}

func (u *staleFlows) add(f changedFrontend) {
	switch {
	case f.LastPort != 0:
		u.spans = append(u.spans, f)
	case f.Kind == service.NodePort:
		u.ports[f.at()] = f
	default:
		u.addresses[f.at()] = f
	}
}

func (u *staleFlows) empty() bool { return len(u.addresses)+len(u.ports)+len(u.spans) == 0 }

// stale tells whether a flow that was sent to a destination and is answered by
// another has to be forgotten. One that was never translated, because there was
// no endpoint when it began, is answered by its destination itself.
func (u *staleFlows) stale(protocol service.Protocol, source netip.Addr, sentTo, answeredBy netip.AddrPort) bool {
	f, ok := u.addresses[at{protocol, sentTo}]
	if !ok && u.facts.IsLocal(sentTo.Addr()) {
		f, ok = u.ports[at{protocol, netip.AddrPortFrom(netip.Addr{}, sentTo.Port())}]
	}
	for i := len(u.spans) - 1; i >= 0 && !ok; i-- { // what is to be comes last
		if s := u.spans[i]; s.protocol == protocol && s.Addr == sentTo.Addr() && s.Has(sentTo.Port()) {
			f, ok = s, true
			answeredBy = atNoPort(answeredBy, sentTo.Port())
		}
	}
	return ok && (f.of == nil || !u.facts.Keeps(f.of, f.Frontend, source, answeredBy))
}

// atNoPort is how a range lists an endpoint that answers from the port that was
// dialled.
func atNoPort(a netip.AddrPort, port uint16) netip.AddrPort {
	if a.Port() != port {
		return a
	}
	return netip.AddrPortFrom(a.Addr(), 0)
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (u *staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	protocol := service.Protocol(f.Forward.Protocol)
	if protocol != service.UDP && (protocol != service.TCP || !cameToNothing(f)) {
		return false
	}
	return u.stale(protocol, addrPort(f.Forward.SrcIP, 0).Addr(), addrPort(f.Forward.DstIP, f.Forward.DstPort), addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort))
}

// cameToNothing tells whether an entry of TCP is that of a SYN without an answer,
// or with a reset for one: no connection is lost with it.
func cameToNothing(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && (tcp.State == nl.TCP_CONNTRACK_SYN_SENT || tcp.State == nl.TCP_CONNTRACK_CLOSE)
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// dumpTries bounds how often a dump of conntrack entries that changed under
// our hands is begun again.
const dumpTries = 3

// forget deletes the stale entries and returns how many there were.
func (u *staleFlows) forget(ctx context.Context, family service.Family) (uint, error) {
	inet := netlink.InetFamily(netlink.FAMILY_V4)
	if family == service.IPv6 {
		inet = netlink.FAMILY_V6
	}
	var deleted uint
	var err error
	for range dumpTries {
		var n uint
		n, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet, u)
		deleted += n
		if !errors.Is(err, netlink.ErrDumpInterrupted) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return deleted, fmt.Errorf("delete stale %s conntrack entries: %w", family, err)
	}
	return deleted, nil
}

// Translated is a flow whose destination was rewritten, by where its answers
// come from and go to.
type Translated struct {
	Protocol uint8 // unix.IPPROTO_*
	From, To netip.AddrPort
}

// TranslatedFlows lists the conntrack entries of both families whose
// destination was rewritten, by us or by anybody, and which are not over.
func TranslatedFlows() ([]Translated, error) {
	var out []Translated
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list conntrack entries: %w", err)
		}
		for _, f := range flows {
			r := f.Reverse
			if over(f) || f.Forward.DstIP.Equal(r.SrcIP) && f.Forward.DstPort == r.SrcPort {
				continue
			}
			from, _ := netip.AddrFromSlice(r.SrcIP) // both are addresses: the kernel says so
			to, _ := netip.AddrFromSlice(r.DstIP)
			out = append(out, Translated{
				Protocol: r.Protocol, From: netip.AddrPortFrom(from.Unmap(), r.SrcPort), To: netip.AddrPortFrom(to.Unmap(), r.DstPort),
			})
		}
	}
	return out, nil
}

// over tells whether a TCP connection has ended at both sides; its entry stays
// for minutes.
func over(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && (tcp.State == nl.TCP_CONNTRACK_TIME_WAIT || tcp.State == nl.TCP_CONNTRACK_CLOSE)
}
