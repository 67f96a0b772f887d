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

// udpFlows tells which conntrack entries of UDP lead where no endpoint is any
// more, or where a policy does not lead any more. Netfilter looks at rules for
// the first packet of a flow only, and a UDP flow that goes on sending never
// ends: without this its packets would be black-holed for as long (pitfall P9).
type udpFlows struct {
	facts     *service.NodeFacts
	addresses map[netip.AddrPort]udpFrontend
	ports     map[uint16]udpFrontend // node ports
	spans     []udpFrontend          // ranges of ports
}

// udpFrontend is a frontend; of is nil if it is gone.
type udpFrontend struct {
	*service.Frontend
	of *service.ServicePort
}

// expectUDP collects the UDP frontends of Services, before and after a change.
// What a frontend that is gone led to is stale, whatever it was.
func expectUDP(family service.Family, facts *service.NodeFacts, before, after []*service.Resolved) *udpFlows {
	u := &udpFlows{
		facts:     facts,
		addresses: map[netip.AddrPort]udpFrontend{},
		ports:     map[uint16]udpFrontend{},
	}
	u.add(family, before, true)
	u.add(family, after, false)
	return u
}

func (u *udpFlows) add(family service.Family, all []*service.Resolved, gone bool) {
	for _, res := range all {
		if res == nil {
			continue
		}
		for i := range res.Ports {
			sp := &res.Ports[i]
			if sp.Family != family || sp.Protocol != service.UDP {
				continue
			}
			for j := range sp.Frontends {
				f := udpFrontend{&sp.Frontends[j], sp}
				if gone {
					f.of = nil
				}
				switch {
				case f.LastPort != 0:
					u.spans = append(u.spans, f)
				case f.Kind == service.NodePort:
					u.ports[f.Port] = f
				default:
					u.addresses[netip.AddrPortFrom(f.Addr, f.Port)] = f
				}
			}
		}
	}
}

func (u *udpFlows) empty() bool { return len(u.addresses)+len(u.ports)+len(u.spans) == 0 }

// stale tells whether a flow that was sent to a destination and is answered by
// another has to be forgotten. One that was never translated, because there was
// no endpoint when it began, is answered by its destination itself.
func (u *udpFlows) stale(source netip.Addr, sentTo, answeredBy netip.AddrPort) bool {
	f, ok := u.addresses[sentTo]
	if !ok {
		if u.facts.IsLocal(sentTo.Addr()) {
			f, ok = u.ports[sentTo.Port()]
		}
	}
	for i := len(u.spans) - 1; i >= 0 && !ok; i-- { // what is to be comes last
		if s := u.spans[i]; s.Addr == sentTo.Addr() && s.Has(sentTo.Port()) {
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
func (u *udpFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != uint8(service.UDP) {
		return false
	}
	return u.stale(addrPort(f.Forward.SrcIP, 0).Addr(), addrPort(f.Forward.DstIP, f.Forward.DstPort), addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort))
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// dumpTries bounds how often a dump of conntrack entries that changed under
// our hands is begun again.
const dumpTries = 3

// forget deletes the stale entries and returns how many there were.
func (u *udpFlows) forget(ctx context.Context, family service.Family) (uint, error) {
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
		return deleted, fmt.Errorf("delete stale %s UDP conntrack entries: %w", family, err)
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
