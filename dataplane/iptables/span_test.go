package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// spanTable is a Service with a range of 10,001 ports at two addresses.
func spanTable(tb testing.TB, udp bool) *service.Table {
	tb.Helper()
	svc, slice := synth.Service(1, 2)
	svc.Annotations = map[string]string{"nodeproxy.io/port-range": "10000-20000"}
	svc.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
	if udp {
		svc.Ports[0].Protocol, slice.Ports[0].Protocol = service.UDP, service.UDP
	}
	r := service.NewResolver(synth.Config())
	r.Apply(service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}})
	return r.Table()
}

// A range is one rule for each address, whatever its length.
func TestP37OneRuleForARange(t *testing.T) {
	table := spanTable(t, false)
	found := 0
	for _, chains := range rulesOf(t, table, service.IPv4) {
		for _, rules := range chains {
			for _, r := range rules {
				if strings.Contains(r.Text, "10000:20000 -m") || strings.HasSuffix(r.Text, "10000:20000") {
					found++
				}
			}
		}
	}
	if found != 2 {
		t.Errorf("%d rules compare with the range, want one for each of two addresses", found)
	}
}

// UDP flows to a range are stale by the endpoint's address alone.
func TestP9StaleFlowsOfARange(t *testing.T) {
	table := spanTable(t, true)
	var all []*service.Resolved
	for _, res := range table.Services {
		all = append(all, res)
	}
	addr := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	vip, ep := all[0].Ports[0].Frontends[0].Addr, all[0].Ports[0].Backends[0][0].Addr()
	other := netip.MustParseAddr("10.9.9.9")
	now, gone := expectStale(service.IPv4, &table.Node, nil, all), expectStale(service.IPv4, &table.Node, all, nil)
	for _, c := range []struct {
		about              string
		u                  *staleFlows
		sentTo, answeredBy netip.AddrPort
		stale              bool
	}{
		{"serving endpoint", now, addr(vip, 12345), addr(ep, 12345), false},
		{"another port of it", now, addr(vip, 12345), addr(ep, 12346), true},
		{"endpoint that is gone", now, addr(vip, 12345), addr(other, 12345), true},
		{"never translated", now, addr(vip, 12345), addr(vip, 12345), true},
		{"beside the range", now, addr(vip, 9999), addr(other, 9999), false},
		{"another address", now, addr(other, 12345), addr(other, 12345), false},
		{"the Service is gone", gone, addr(vip, 12345), addr(ep, 12345), true},
	} {
		if got := c.u.stale(all[0].Ports[0].Protocol, netip.MustParseAddr("192.0.2.1"), c.sentTo, c.answeredBy); got != c.stale {
			t.Errorf("%s: stale %v, want %v", c.about, got, c.stale)
		}
	}
}
