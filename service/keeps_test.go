package service_test

import (
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/service"
)

func TestKeeps(t *testing.T) {
	here, away := netip.MustParseAddrPort("10.128.0.1:53"), netip.MustParseAddrPort("10.128.1.1:53")
	sp := service.ServicePort{
		Serving: []netip.AddrPort{here, away}, ServingLocal: []netip.AddrPort{here},
		Backends: [2][]service.Backend{service.ListCluster: {{AddrPort: away}}},
	}
	cluster := service.Route{Action: service.Translate}
	local := service.Route{Action: service.Translate, List: service.ListLocal}
	pod, outside := netip.MustParseAddr("10.128.0.9"), netip.MustParseAddr("203.0.113.1")
	byCIDR := service.NodeFacts{Pods: [2]service.PodDetector{{CIDR: netip.MustParsePrefix("10.128.0.0/16")}}}
	byInterface := service.NodeFacts{Pods: [2]service.PodDetector{{InterfacePrefix: "veth"}}}
	for _, c := range []struct {
		name    string
		facts   *service.NodeFacts
		f       service.Frontend
		source  netip.Addr
		backend netip.AddrPort
		keeps   bool
	}{
		{"an endpoint that serves, though it is not chosen for new flows", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, cluster}}, outside, here, true},
		{"an endpoint that is gone", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, cluster}}, outside, netip.MustParseAddrPort("10.128.9.9:53"), false},
		{"policy Local, elsewhere", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, local}}, outside, away, false},
		{"policy Local, here", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, local}}, outside, here, true},
		{"policy Local is not for Pods", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, local}}, pod, away, true},
		{"an address may be a Pod's where interfaces tell", &byInterface, service.Frontend{Routes: [3]service.Route{cluster, cluster, local}}, outside, away, true},
		{"refused now", &byCIDR, service.Frontend{Routes: [3]service.Route{cluster, cluster, {Action: service.Drop}}}, outside, here, false},
		{"outside of source ranges", &byCIDR, service.Frontend{Filtered: true, Routes: [3]service.Route{cluster, cluster, cluster}}, outside, here, false},
		{"inside", &byCIDR, service.Frontend{Filtered: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
			Routes: [3]service.Route{cluster, cluster, cluster}}, outside, here, true},
	} {
		if got := c.facts.Keeps(&sp, &c.f, c.source, c.backend); got != c.keeps {
			t.Errorf("%s: keeps %v, want %v", c.name, got, c.keeps)
		}
	}
}
