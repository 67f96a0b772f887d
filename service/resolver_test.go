package service_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// addresses compare by value in diffs.
var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// web is a Service to start from: one TCP port, ClusterIP 10.96.0.1.
func web(edit ...func(*service.Service)) *service.Service {
	svc := &service.Service{
		Name: service.Name{Namespace: "default", Name: "web"}, Type: service.TypeClusterIP,
		ClusterIPs: []netip.Addr{addr("10.96.0.1")},
		Ports:      []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}},
	}
	for _, e := range edit {
		e(svc)
	}
	return svc
}

// slice makes an EndpointSlice of web with these endpoints, port 8080.
func slice(name string, endpoints ...service.Endpoint) *service.EndpointSlice {
	return &service.EndpointSlice{
		Name: service.Name{Namespace: "default", Name: name}, Service: "web",
		Ports:     []service.EndpointPort{{Name: "http", Protocol: service.TCP, Number: 8080}},
		Endpoints: endpoints,
	}
}

func ready(ip, node string) service.Endpoint {
	return service.Endpoint{Addr: addr(ip), NodeName: node, Ready: true, Serving: true}
}

func resolve(svc *service.Service, slices ...*service.EndpointSlice) *service.Resolved {
	cfg := synth.Config()
	return service.Resolve(&cfg, svc, slices)
}

func backends(res *service.Resolved, list service.List) string {
	if res == nil || len(res.Ports) == 0 {
		return ""
	}
	var out []string
	for _, b := range res.Ports[0].Backends[list] {
		out = append(out, b.String())
	}
	return strings.Join(out, " ")
}

// docs/kube-proxy.md, "Objects that count".
func TestWhichObjectsAreUsed(t *testing.T) {
	one := slice("s", ready("10.244.0.1", "node-a"))
	with := func(edit func(*service.EndpointSlice)) *service.EndpointSlice {
		s := *one
		s.Ports = slices.Clone(one.Ports)
		edit(&s)
		return &s
	}
	for _, c := range []struct {
		name   string
		svc    *service.Service
		slices []*service.EndpointSlice
		want   string // backends; "-" for a Service that is not translated
	}{
		{"plain", web(), []*service.EndpointSlice{one}, "10.244.0.1:8080"},
		{"headless", web(func(s *service.Service) { s.ClusterIPs = nil }), []*service.EndpointSlice{one}, "-"},
		{"ExternalName with a clusterIP", web(func(s *service.Service) { s.Type = service.TypeExternalName }), []*service.EndpointSlice{one}, "-"},
		{"another proxy's Service", web(func(s *service.Service) { s.ProxyName = "other" }), []*service.EndpointSlice{one}, "-"},
		{"another proxy's slice", web(), []*service.EndpointSlice{with(func(s *service.EndpointSlice) { s.ProxyName = "other" })}, ""},
		{"headless slice", web(), []*service.EndpointSlice{with(func(s *service.EndpointSlice) { s.Headless = true })}, ""},
		{"slice of the other family", web(), []*service.EndpointSlice{with(func(s *service.EndpointSlice) { s.Family = service.IPv6 })}, ""},
		{"port of another name", web(), []*service.EndpointSlice{with(func(s *service.EndpointSlice) { s.Ports[0].Name = "other" })}, ""},
		{"port of another protocol", web(), []*service.EndpointSlice{with(func(s *service.EndpointSlice) { s.Ports[0].Protocol = service.UDP })}, ""},
		{"same endpoint in two slices", web(), []*service.EndpointSlice{one, slice("t", ready("10.244.0.1", ""))}, "10.244.0.1:8080"},
		{"sorted as text", web(), []*service.EndpointSlice{slice("s", ready("10.244.0.9", ""), ready("10.244.0.10", ""))}, "10.244.0.10:8080 10.244.0.9:8080"},
		{"serving but neither ready nor terminating", web(), []*service.EndpointSlice{slice("s", service.Endpoint{Addr: addr("10.244.0.1"), Serving: true})}, ""},
		{"only terminating ones left", web(), []*service.EndpointSlice{slice("s", service.Endpoint{Addr: addr("10.244.0.1"), Serving: true, Terminating: true})}, "10.244.0.1:8080"},
		{"ready before terminating", web(), []*service.EndpointSlice{slice("s", ready("10.244.0.2", ""), service.Endpoint{Addr: addr("10.244.0.1"), Serving: true, Terminating: true})}, "10.244.0.2:8080"},
	} {
		res := resolve(c.svc, c.slices...)
		got := backends(res, service.ListCluster)
		if res == nil {
			got = "-"
		}
		if got != c.want {
			t.Errorf("%s: backends %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLocalCopyOfAnEndpointWins(t *testing.T) {
	for _, order := range [][]*service.EndpointSlice{
		{slice("a", ready("10.244.0.1", "node-a")), slice("b", ready("10.244.0.1", "node-b"))},
		{slice("b", ready("10.244.0.1", "node-b")), slice("a", ready("10.244.0.1", "node-a"))},
	} {
		if res := resolve(web(), order...); !res.Ports[0].Backends[service.ListCluster][0].Local {
			t.Error("the copy on another node won")
		}
	}
}

func TestSamePortNumberForEachProtocol(t *testing.T) {
	svc := web(func(s *service.Service) {
		s.Ports = nil
		for _, p := range service.Protocols {
			s.Ports = append(s.Ports, service.Port{Name: p.String(), Protocol: p, Port: 53})
		}
	})
	if res := resolve(svc); len(res.Ports) != 3 {
		t.Errorf("%d ports, want one for each protocol", len(res.Ports))
	}
}

// Section 4: hints.
func TestHints(t *testing.T) {
	hinted := func(ip string, zones, nodes []string) service.Endpoint {
		ep := ready(ip, "node-b")
		ep.Hints = &service.Hints{Zones: zones, Nodes: nodes}
		return ep
	}
	z := func(names ...string) []string { return names }
	notReady := func(ip string) service.Endpoint { return service.Endpoint{Addr: addr(ip)} }
	for _, c := range []struct {
		name, zone string
		endpoints  []service.Endpoint
		want       string
	}{
		{"zone of all", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", z("z2"), nil)}, "10.0.0.1:8080"},
		{"for several zones", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1", "z2"), nil), hinted("10.0.0.2", z("z2", "z1"), nil)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"one without a hint", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", nil, nil)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"none for this zone", "z3", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", z("z2"), nil)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"node without a zone", "", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", z(""), nil)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"node hints first", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1"), z("node-b")), hinted("10.0.0.2", z("z2"), z("node-a"))}, "10.0.0.2:8080"},
		{"node hints incomplete", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", z("z2"), z("node-a"))}, "10.0.0.1:8080"},
		{"unready ones do not count", "z1", []service.Endpoint{hinted("10.0.0.1", z("z1"), nil), hinted("10.0.0.2", z("z2"), nil), notReady("10.0.0.3")}, "10.0.0.1:8080"},
	} {
		cfg := synth.Config()
		cfg.Zone = c.zone
		if got := backends(service.Resolve(&cfg, web(), []*service.EndpointSlice{slice("s", c.endpoints...)}), service.ListCluster); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestHintsNeverNarrowTheLocalList(t *testing.T) {
	cfg := synth.Config()
	cfg.Zone = "z1"
	local := ready("10.244.0.1", "node-a")
	local.Hints = &service.Hints{Zones: []string{"z2"}}
	remote := ready("10.244.0.2", "node-b")
	remote.Hints = &service.Hints{Zones: []string{"z1"}}
	svc := web(func(s *service.Service) { s.InternalPolicy = service.PolicyLocal })
	if got := backends(service.Resolve(&cfg, svc, []*service.EndpointSlice{slice("s", local, remote)}), service.ListLocal); got != "10.244.0.1:8080" {
		t.Errorf("local list %q", got)
	}
}

// Section 7: source ranges.
func TestSourceRanges(t *testing.T) {
	lb := func(ranges ...string) *service.Resolved {
		return resolve(web(func(s *service.Service) {
			s.Type = service.TypeLoadBalancer
			s.Ingress = []service.Ingress{{Addr: addr("198.51.100.1")}}
			for _, r := range ranges {
				s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r))
			}
		}), slice("s", ready("10.244.0.1", "node-a")))
	}
	for _, c := range []struct {
		ranges   []string
		filtered bool
		want     string
	}{
		{nil, false, "[]"},
		{[]string{"203.0.113.7/24"}, true, "[203.0.113.0/24]"},
		{[]string{"fd00::/8"}, false, "[]"}, // the other family's alone filter nothing
		{[]string{"0.0.0.0/0"}, false, "[]"},
		{[]string{"192.168.77.0/24"}, true, "[192.168.77.0/24 198.51.100.1/32]"}, // the node is inside
	} {
		res := lb(c.ranges...)
		f := res.Ports[0].Frontends[1]
		if f.Kind != service.LoadBalancer || f.Filtered != c.filtered || "["+join(f.SourceRanges)+"]" != c.want {
			t.Errorf("%v: %+v, want filtered %v, ranges %s", c.ranges, f, c.filtered, c.want)
		}
		if res.Ports[0].Frontends[0].Filtered {
			t.Errorf("%v: the ClusterIP is filtered", c.ranges)
		}
	}
}

func join(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}

// Section 11: what a health-check node port counts.
func TestHealthCheckCountsDistinctReadyLocalAddresses(t *testing.T) {
	svc := web(func(s *service.Service) {
		s.Type, s.ExternalPolicy, s.HealthCheckNodePort = service.TypeLoadBalancer, service.PolicyLocal, 32000
		s.Ports = append(s.Ports, service.Port{Name: "other", Protocol: service.TCP, Port: 81})
	})
	two := slice("s", ready("10.244.0.1", "node-a"), ready("10.244.0.2", "node-a"), ready("10.244.0.3", "node-b"),
		service.Endpoint{Addr: addr("10.244.0.4"), NodeName: "node-a", Serving: true, Terminating: true})
	two.Ports = append(two.Ports, service.EndpointPort{Name: "other", Protocol: service.TCP, Number: 8081})
	res := resolve(svc, two)
	if res.HealthCheck == nil || res.HealthCheck.Port != 32000 || res.HealthCheck.LocalEndpoints[service.IPv4] != 2 {
		t.Errorf("health check %+v, want 2 local endpoints", res.HealthCheck)
	}
	svc.ExternalPolicy = service.PolicyCluster
	if resolve(svc, two).HealthCheck != nil {
		t.Error("a health check without the Local policy")
	}
}

func TestDangerousExternalIPsAreRefused(t *testing.T) {
	svc := web(func(s *service.Service) {
		for _, a := range []string{"127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "10.128.3.4", "203.0.113.9"} {
			s.ExternalIPs = append(s.ExternalIPs, addr(a))
		}
	})
	res := resolve(svc, slice("s", ready("10.244.0.1", "")))
	if len(res.Problems) != 5 {
		t.Errorf("problems %v, want 5", res.Problems)
	}
	if n := len(res.Ports[0].Frontends); n != 2 || res.Ports[0].Frontends[1].Addr != addr("203.0.113.9") {
		t.Errorf("frontends %+v, want the ClusterIP and 203.0.113.9", res.Ports[0].Frontends)
	}
}

// An address that means something to every machine is no Service's, of whatever
// kind; the rest of the Service is served.
func TestAddressesOfEverybodyAreRefused(t *testing.T) {
	svc := web(func(s *service.Service) {
		s.ClusterIPs = []netip.Addr{addr("127.0.0.53"), addr("fe80::53")}
		s.ExternalIPs = []netip.Addr{addr("203.0.113.9"), addr("255.255.255.255"), addr("::ffff:10.1.1.1")}
		s.Ports[0].NodePort = 30080
		for _, a := range []string{"127.0.0.1", "::1", "169.254.169.254", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "198.51.100.7", "2001:db8::7"} {
			s.Ingress = append(s.Ingress, service.Ingress{Addr: addr(a)})
		}
		s.Ingress = append(s.Ingress, service.Ingress{Addr: addr("127.0.0.2"), Proxy: true}) // not ours to judge
	})
	res := resolve(svc, slice("s", ready("10.244.0.1", "")))
	reasons := map[string]int{}
	for _, p := range res.Problems {
		reasons[p.Reason]++
	}
	if diff := cmp.Diff(map[string]int{"ClusterIPRefused": 2, "ExternalIPRefused": 2, "LoadBalancerIPRefused": 7}, reasons); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	var served []string
	for _, sp := range res.Ports {
		for _, f := range sp.Frontends {
			served = append(served, f.Kind.String()+" "+f.Addr.String())
		}
	}
	want := []string{"ExternalIP 203.0.113.9", "LoadBalancer 198.51.100.7", "NodePort invalid IP", "LoadBalancer 2001:db8::7", "NodePort invalid IP"}
	if diff := cmp.Diff(want, served); diff != "" {
		t.Errorf("frontends (-want +got):\n%s", diff)
	}
}

// Of an address that may be a machine's, a Service has its own ports alone; a
// ClusterIP is a Service's at every port.
func TestOtherPortsOfAMachine(t *testing.T) {
	svc := web(func(s *service.Service) {
		s.ExternalIPs = []netip.Addr{addr("192.168.77.12")}
		s.Ingress = []service.Ingress{{Addr: addr("192.168.77.13")}}
	})
	r := service.NewResolver(synth.Config())
	r.Apply(service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice("s", ready("10.244.0.1", ""))}})
	for _, c := range []struct {
		to, in, leaves string
		refused        bool
	}{
		{"192.168.77.12:6443", "", "", false},
		{"192.168.77.13:6443", "veth0", "eth0", false},
		{"192.168.77.13:6443", "eth0", "", false},
		{"192.168.77.12:6443", "eth0", "eth1", false},
		{"192.168.77.12:6443", "eth0", "eth0", true}, // it would come back
		{"192.168.77.13:6443", "eth0", "eth0", true},
		{"10.96.0.1:6443", "", "", true},
		{"10.96.0.1:6443", "veth0", "eth0", true},
	} {
		o := r.Table().Judge(service.Packet{Source: netip.MustParseAddrPort("10.255.255.9:40000"),
			Destination: netip.MustParseAddrPort(c.to), Protocol: service.TCP, Interface: c.in, Leaves: c.leaves})
		if o.Matched != c.refused || o.Matched && o.Route.Action != service.Reject {
			t.Errorf("%s from %q, on to %q: %+v, want refused %v", c.to, c.in, c.leaves, o, c.refused)
		}
	}
}

// What a route makes local is the node's own, by networks too.
func TestLocalNetworks(t *testing.T) {
	host := service.Host{Addresses: machine, Networks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	for _, c := range []struct {
		on      []string
		carries map[string]bool
	}{
		{nil, map[string]bool{"203.0.113.9": true, "203.0.114.9": false}},
		{[]string{"203.0.0.0/16"}, map[string]bool{"203.0.113.9": true, "192.168.0.2": false}},
		{[]string{"203.0.113.8/29"}, map[string]bool{"203.0.113.9": true, "203.0.113.99": false}},
	} {
		cfg, err := service.Options{NodePortAddresses: c.on}.Config(nil, host)
		if err != nil {
			t.Fatal(err)
		}
		r := service.NewResolver(cfg)
		r.Apply(service.Changes{Services: []*service.Service{web(func(s *service.Service) { s.Ports[0].NodePort = 30080 })},
			EndpointSlices: []*service.EndpointSlice{slice("s", ready("10.244.0.1", ""))}})
		for to, want := range c.carries {
			o := r.Table().Judge(service.Packet{Source: netip.MustParseAddrPort("198.51.100.1:1"),
				Destination: netip.AddrPortFrom(addr(to), 30080), Protocol: service.TCP, Interface: "eth0"})
			if o.Matched != want {
				t.Errorf("--nodeport-addresses %v: node port at %s: %v, want %v", c.on, to, o.Matched, want)
			}
		}
	}
}

func TestConflictsHaveAStableWinner(t *testing.T) {
	claim := func(name string, created int64, edit func(*service.Service)) *service.Service {
		return web(edit, func(s *service.Service) {
			s.Name.Name, s.Created = name, time.Unix(created, 0)
			if name != "web" {
				s.ClusterIPs = []netip.Addr{addr("10.96.1." + map[string]string{"a": "1", "b": "2", "c": "3"}[name])}
			}
		})
	}
	external := func(ip string) func(*service.Service) {
		return func(s *service.Service) { s.ExternalIPs = []netip.Addr{addr(ip)} }
	}
	owner := func(t *testing.T, r *service.Resolver, dst string) string {
		t.Helper()
		o := r.Table().Judge(service.Packet{Source: netip.MustParseAddrPort("203.0.113.1:1"),
			Destination: netip.MustParseAddrPort(dst), Protocol: service.TCP, Interface: "eth0"})
		if !o.Matched {
			return ""
		}
		return o.Port.Name.Name.Name
	}
	a, b := claim("a", 2, external("203.0.113.9")), claim("b", 1, external("203.0.113.9"))
	thief := claim("c", 0, external("10.96.0.1"))
	all := []*service.Service{a, b, web(), thief}
	for range 10 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		r := service.NewResolver(synth.Config())
		for _, svc := range all {
			r.Apply(service.Changes{Services: []*service.Service{svc}})
		}
		if got := owner(t, r, "203.0.113.9:80"); got != "b" {
			t.Fatalf("shared externalIP belongs to %q, want the older Service b", got)
		}
		if got := owner(t, r, "10.96.0.1:80"); got != "web" {
			t.Fatalf("ClusterIP was taken over by %q", got)
		}
		if p := r.Table().Services[a.Name].Problems; len(p) != 1 || !strings.Contains(p[0].Message, "default/b") {
			t.Fatalf("the loser is not told who owns its address: %v", p)
		}
		changed, _ := r.Apply(service.Changes{DeletedServices: []service.Name{b.Name}})
		if got := owner(t, r, "203.0.113.9:80"); got != "a" || !slices.Contains(changed, a.Name) {
			t.Fatalf("after the owner is gone: owner %q, changed %v", got, changed)
		}
	}
}

// Whatever the order in which objects come, and in however many pieces, the
// Table is the same.
func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(15) {
		gen := synth.NewRandom(seed)
		cfg := gen.Config()
		c := gen.Cluster(30)
		whole := service.NewResolver(cfg)
		whole.Apply(c)
		rng := rand.New(rand.NewPCG(seed, 9))
		var pieces []service.Changes
		for _, s := range c.Services {
			pieces = append(pieces, service.Changes{Services: []*service.Service{s}})
		}
		for _, s := range c.EndpointSlices {
			pieces = append(pieces, service.Changes{EndpointSlices: []*service.EndpointSlice{s}})
		}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		grown := service.NewResolver(cfg)
		for _, p := range pieces {
			grown.Apply(p)
		}
		if diff := cmp.Diff(whole.Table(), grown.Table(), byValue); diff != "" {
			t.Fatalf("seed %d (-at once +in pieces):\n%s", seed, diff)
		}
	}
}

// Only Services that differ may be named as changed, and all of them.
func TestApplyNamesExactlyWhatChanged(t *testing.T) {
	for seed := range uint64(4) {
		gen := synth.NewRandom(seed)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(20))
		for step := range 100 {
			before := map[service.Name]*service.Resolved{}
			for name, res := range r.Table().Services {
				before[name] = res
			}
			svc := gen.Service(step % 25)
			var changed []service.Name
			switch step % 3 {
			case 0:
				changed, _ = r.Apply(service.Changes{Services: []*service.Service{svc}})
			case 1:
				changed, _ = r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{gen.Slice(svc, 0)}})
			case 2:
				changed, _ = r.Apply(service.Changes{DeletedServices: []service.Name{svc.Name}})
			}
			for name, res := range r.Table().Services {
				if differs := !cmp.Equal(before[name], res, byValue); differs != slices.Contains(changed, name) {
					t.Fatalf("seed %d step %d: %s differs %v, named as changed %v", seed, step, name, differs, !differs)
				}
			}
			for name := range before {
				if r.Table().Services[name] == nil && !slices.Contains(changed, name) {
					t.Fatalf("seed %d step %d: %s is gone, but not named", seed, step, name)
				}
			}
		}
	}
}

func TestCompleteChangesReplaceEverything(t *testing.T) {
	r := service.NewResolver(synth.Config())
	r.Apply(synth.Cluster(10, 2))
	changed, _ := r.Apply(synth.Cluster(10, 2))
	if len(changed) != 0 {
		t.Errorf("the same objects again changed %v", changed)
	}
	changed, _ = r.Apply(synth.Cluster(7, 2))
	if len(changed) != 3 || len(r.Table().Services) != 7 {
		t.Errorf("changed %v, %d Services left; want 3 gone, 7 left", changed, len(r.Table().Services))
	}
}

func TestAnUpdateThatMattersToNobodyChangesNothing(t *testing.T) {
	r := service.NewResolver(synth.Config())
	s := slice("s", ready("10.244.0.1", ""))
	r.Apply(service.Changes{Complete: true, Services: []*service.Service{web()}, EndpointSlices: []*service.EndpointSlice{s}})
	again := *s
	again.LastChange = time.Unix(99, 0)
	if changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{&again}}); len(changed) > 0 {
		t.Errorf("changed %v", changed)
	}
}
