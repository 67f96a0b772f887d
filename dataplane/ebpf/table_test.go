package ebpf

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// svc describes one Service of tests with packets. All of its kinds of
// frontends are there: port 80 on VIPs, and node port 30080.
type svc struct {
	name     string
	port     uint16 // on VIPs, by default 80
	nodePort uint16 // by default 30080
	proto    service.Protocol
	backends []string // addr:port of either family
	local    []string // those that are on this node
	affinity time.Duration
	ranges   []string // of the LB address
	policy   service.Policy
}

func (n *testNet) table(services ...svc) *service.Table {
	t := &service.Table{Node: n.facts(), Services: map[service.Name]*service.Resolved{}}
	for _, s := range services {
		if s.port == 0 {
			s.port = 80
		}
		if s.nodePort == 0 {
			s.nodePort = 30080
		}
		if s.proto == 0 {
			s.proto = service.TCP
		}
		name := service.Name{Namespace: "default", Name: s.name + s.proto.String()}
		r := &service.Resolved{Name: name}
		for _, f := range service.Families {
			r.Ports = append(r.Ports, s.servicePort(name, f))
		}
		t.Services[name] = r
	}
	return t
}

func (s svc) servicePort(name service.Name, f service.Family) service.ServicePort {
	sp := service.ServicePort{Name: service.PortName{Name: name, Protocol: s.proto}, Family: f, Protocol: s.proto, AffinityTimeout: s.affinity}
	for i, list := range [][]string{s.backends, s.local} {
		for _, e := range list {
			ap := netip.MustParseAddrPort(e)
			if service.FamilyOf(ap.Addr()) == f {
				sp.Backends[i] = append(sp.Backends[i], service.Backend{AddrPort: ap, Local: i == 1})
				sp.Serving = append(sp.Serving, ap)
			}
		}
	}
	cluster, external := s.routes(sp)
	sp.Frontends = []service.Frontend{
		{Kind: service.ClusterIP, Addr: netip.MustParseAddr(vip[f]), Port: s.port, Routes: cluster},
		{Kind: service.LoadBalancer, Addr: netip.MustParseAddr(lbIP[f]), Port: s.port, Routes: external},
		{Kind: service.NodePort, Port: s.nodePort, Routes: external},
	}
	for _, r := range s.ranges {
		if p := netip.MustParsePrefix(r); service.FamilyOf(p.Addr()) == f {
			sp.Frontends[1].Filtered = true
			sp.Frontends[1].SourceRanges = append(sp.Frontends[1].SourceRanges, p)
		}
	}
	return sp
}

// routes are docs/kube-proxy.md, "Policies by source", in short.
func (s svc) routes(sp service.ServicePort) (cluster, external [3]service.Route) {
	to := service.Route{Action: service.Translate}
	masq := service.Route{Action: service.Translate, Masquerade: true}
	if len(sp.Backends[0]) == 0 {
		no := service.Route{Action: service.Reject}
		return [3]service.Route{no, no, no}, [3]service.Route{no, no, no}
	}
	cluster = [3]service.Route{to, masq, masq}
	external = [3]service.Route{masq, masq, masq}
	if s.policy == service.PolicyLocal {
		external = [3]service.Route{to, masq, {Action: service.Translate, List: service.ListLocal}}
		if len(sp.Backends[1]) == 0 {
			external[2] = service.Route{Action: service.Drop}
		}
	}
	return cluster, external
}

func syncAll(t testing.TB, d *Dataplane, table *service.Table) {
	t.Helper()
	if err := d.Sync(context.Background(), table, nil); err != nil {
		t.Fatal(err)
	}
}
