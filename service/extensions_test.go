package service_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// annotated gives web an annotation.
func annotated(key, value string) func(*service.Service) {
	return func(s *service.Service) { s.Annotations = map[string]string{"nodeproxy.io/" + key: value} }
}

// reached tells, for TCP from outside, whose port a destination is and where
// packets to it may go. One that nobody takes would be sent back.
func reached(r *service.Resolver, to string) string {
	dst := netip.MustParseAddrPort(to)
	o := r.Table().Judge(service.Packet{Source: netip.MustParseAddrPort("203.0.113.1:1"), Destination: dst,
		Protocol: service.TCP, Interface: "eth0", Leaves: "eth0"})
	switch {
	case !o.Matched:
		return "-"
	case o.Port == nil || o.Route.Action != service.Translate:
		return o.Route.Action.String()
	}
	out := []string{o.Port.Name.String()}
	for _, b := range o.Backends {
		out = append(out, b.To(dst.Port()).String())
	}
	return strings.Join(out, " ")
}

func TestP37PortRange(t *testing.T) {
	r := service.NewResolver(synth.Config())
	svc := web(annotated("port-range", " 70 - 90 "), func(s *service.Service) {
		s.ExternalIPs = []netip.Addr{addr("203.0.113.9")}
	})
	r.Apply(service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice("s", ready("10.244.0.1", ""))}})
	check := func(want map[string]string) {
		t.Helper()
		for to, want := range want {
			if got := reached(r, to); got != want {
				t.Errorf("%s leads to %q, want %q", to, got, want)
			}
		}
	}
	const inRange = "default/web:70:90 10.244.0.1:"
	check(map[string]string{
		"10.96.0.1:69": "reject", "10.96.0.1:70": inRange + "70", "10.96.0.1:90": inRange + "90", "10.96.0.1:91": "reject",
		"10.96.0.1:80":   "default/web:http 10.244.0.1:8080", // a port of its own comes first
		"203.0.113.9:75": inRange + "75", "203.0.113.9:69": "reject",
	})
	if n := len(r.Table().Services[svc.Name].Ports[1].Frontends); n != 2 {
		t.Errorf("the range has %d frontends, want one for each address", n)
	}
	// Another Service's port inside the range stays that Service's.
	other := web(func(s *service.Service) {
		s.Name.Name, s.ClusterIPs, s.ExternalIPs = "other", []netip.Addr{addr("10.96.0.2")}, []netip.Addr{addr("203.0.113.9")}
		s.Ports = []service.Port{{Name: "http", Protocol: service.TCP, Port: 75}}
		s.Created = time.Unix(9, 0)
	})
	changed, _ := r.Apply(service.Changes{Services: []*service.Service{other}})
	if len(changed) != 2 {
		t.Errorf("changed %v, want the range to know of its exception", changed)
	}
	check(map[string]string{"203.0.113.9:75": "reject", "203.0.113.9:76": inRange + "76", "10.96.0.1:75": inRange + "75"})
	// A second range of the same address loses, whether they overlap or not.
	second := web(annotated("port-range", "1000-2000"), func(s *service.Service) {
		s.Name.Name, s.ClusterIPs, s.ExternalIPs = "second", []netip.Addr{addr("10.96.0.3")}, []netip.Addr{addr("203.0.113.9")}
		s.Ports[0].Port, s.Created = 443, time.Unix(10, 0)
	})
	r.Apply(service.Changes{Services: []*service.Service{second}})
	check(map[string]string{"203.0.113.9:76": inRange + "76", "203.0.113.9:1500": "reject", "10.96.0.3:1500": "reject"})
	if p := r.Table().Services[second.Name].Problems; len(p) != 1 || p[0].Reason != "AddressConflict" {
		t.Errorf("problems of the second range: %v", p)
	}
	r.Apply(service.Changes{DeletedServices: []service.Name{other.Name, svc.Name}})
	check(map[string]string{"203.0.113.9:75": "reject", "10.96.0.1:75": "-"})
}

func TestBadAnnotationsAreReported(t *testing.T) {
	for annotation, value := range map[string]string{
		"port-range": "20-10", "port-range ": "", "port-range  ": "0-9", "port-range   ": "1-65536", "port-range    ": "7",
		"algorithm": "best",
	} {
		res := resolve(web(annotated(strings.TrimSpace(annotation), value)), slice("s", ready("10.244.0.1", "")))
		if len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Message, "nodeproxy.io/"+strings.TrimSpace(annotation)) {
			t.Errorf("%s %q: problems %v", annotation, value, res.Problems)
		}
		if len(res.Ports) != 1 || len(res.Ports[0].Backends[service.ListCluster]) != 1 {
			t.Errorf("%s %q: the Service is not served", annotation, value)
		}
	}
	for _, weights := range []string{"{", `{"10.244.0.1": -1}`, `{"10.244.0.1": 101}`, `{"web": 1}`, `["10.244.0.1"]`} {
		s := slice("s", ready("10.244.0.1", ""), ready("10.244.0.2", ""))
		s.Weights = weights
		res := resolve(web(), s)
		if len(res.Problems) != 1 || res.Problems[0].Reason != "InvalidWeights" || backends(res, service.ListCluster) != "10.244.0.1:8080 10.244.0.2:8080" {
			t.Errorf("weights %s: problems %v, backends %v", weights, res.Problems, res.Ports[0].Backends)
		}
	}
}

func TestWeights(t *testing.T) {
	for _, c := range []struct{ weights, want string }{
		{"", "1/0 2/0 3/0"},
		{`{"10.244.0.1": 3}`, "1/3 2/1 3/1"},
		{`{"10.244.0.1": 20, "10.244.0.2": 10, "10.244.0.3": 30}`, "1/2 2/1 3/3"},
		{`{"10.244.0.1": 7, "10.244.0.2": 7, "10.244.0.3": 7}`, "1/0 2/0 3/0"},
		{`{"10.244.0.2": 0}`, "1/0 3/0"}, // takes no new flows
		{`{"10.244.0.1": 0, "10.244.0.2": 0, "10.244.0.3": 0}`, "1/0 2/0 3/0"},
	} {
		s := slice("s", ready("10.244.0.1", ""), ready("10.244.0.2", ""), ready("10.244.0.3", ""))
		s.Weights = c.weights
		res := resolve(web(), s)
		var got []string
		for _, b := range res.Ports[0].Backends[service.ListCluster] {
			got = append(got, fmt.Sprintf("%s/%d", strings.TrimPrefix(b.Addr().String(), "10.244.0."), b.Weight))
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: endpoint/weight %s, want %s", c.weights, text, c.want)
		}
		if n := len(res.Ports[0].Serving); n != 3 {
			t.Errorf("%s: %d endpoints keep their flows, want 3", c.weights, n)
		}
	}
}

// A ClusterIP is nobody else's to give, at no port (CVE-2020-8554).
func TestExternalIPsAreNoClusterIPs(t *testing.T) {
	thief := web(func(s *service.Service) {
		s.Name.Name, s.ClusterIPs, s.ExternalIPs = "thief", []netip.Addr{addr("10.96.0.2")}, []netip.Addr{addr("10.96.0.1")}
		s.Ingress = []service.Ingress{{Addr: addr("10.96.0.1")}}
		s.Ports = []service.Port{{Name: "http", Protocol: service.TCP, Port: 443}}
	})
	r := service.NewResolver(synth.Config())
	apply := func(c service.Changes) []service.Name { changed, _ := r.Apply(c); return changed }
	apply(service.Changes{Services: []*service.Service{thief},
		EndpointSlices: []*service.EndpointSlice{{Name: service.Name{Namespace: "default", Name: "t"}, Service: "thief",
			Ports: []service.EndpointPort{{Name: "http", Protocol: service.TCP, Number: 9}}, Endpoints: []service.Endpoint{ready("10.244.0.9", "")}}}})
	if got := reached(r, "10.96.0.1:443"); got != "default/thief:http 10.244.0.9:9" {
		t.Fatalf("nobody's ClusterIP: %s", got)
	}
	changed := apply(service.Changes{Services: []*service.Service{web()}})
	if got := reached(r, "10.96.0.1:443"); got != "reject" || len(changed) != 2 {
		t.Errorf("web's ClusterIP: %s, changed %v", got, changed)
	}
	p := r.Table().Services[thief.Name].Problems
	if len(p) == 0 || p[0].Reason != "ExternalIPRefused" || !strings.Contains(p[0].Message, "ClusterIP of Service default/web") {
		t.Errorf("problems %v", p)
	}
	apply(service.Changes{DeletedServices: []service.Name{web().Name}})
	if got := reached(r, "10.96.0.1:443"); got != "default/thief:http 10.244.0.9:9" {
		t.Errorf("given free again: %s", got)
	}
}

func TestExternalIPCIDRs(t *testing.T) {
	cfg := synth.Config()
	cfg.ExternalIPs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}
	svc := web(func(s *service.Service) { s.ExternalIPs = []netip.Addr{addr("203.0.113.9"), addr("203.0.113.77")} })
	res := service.Resolve(&cfg, svc, nil)
	if n := len(res.Ports[0].Frontends); n != 2 || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Message, "203.0.113.77 is outside --external-ip-cidrs") {
		t.Errorf("%d frontends, problems %v", n, res.Problems)
	}
}
