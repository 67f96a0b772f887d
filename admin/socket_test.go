package admin

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/service"
)

// What a socket's call comes to follows from the Service, the source and the protocol.
func TestSocketCalls(t *testing.T) {
	facts := service.NodeFacts{
		Pods: [2]service.PodDetector{{CIDR: netip.MustParsePrefix("10.244.0.0/16")}}, Local: [2][]netip.Addr{{netip.MustParseAddr("192.168.0.1")}},
		NodePorts: [2]service.NodePortAddresses{{All: true}}}
	r := service.NewResolver(service.Config{NodeName: "n", Facts: facts})
	byInterface := facts
	byInterface.Pods = [2]service.PodDetector{{Interface: "cni0"}}
	all := service.Changes{Complete: true}
	add := func(name, ip string, change func(*service.Service), endpoints ...service.Endpoint) {
		s := &service.Service{Name: service.Name{Namespace: "default", Name: name}, Type: service.TypeLoadBalancer, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)},
			Ports: []service.Port{{Protocol: service.TCP, Port: 80}, {Name: "s", Protocol: service.SCTP, Port: 80}}}
		change(s)
		all.Services = append(all.Services, s)
		all.EndpointSlices = append(all.EndpointSlices, &service.EndpointSlice{Name: s.Name, Service: name, Endpoints: endpoints,
			Ports: []service.EndpointPort{{Protocol: service.TCP, Number: 8080}, {Name: "s", Protocol: service.SCTP, Number: 8080}}})
	}
	far := service.Endpoint{Addr: netip.MustParseAddr("10.244.2.7"), Ready: true, Serving: true, NodeName: "other"}
	add("plain", "10.96.0.1", func(*service.Service) {}, far)
	add("sticky", "10.96.0.2", func(s *service.Service) { s.AffinityTimeout = 1 }, far)
	add("empty", "10.96.0.3", func(*service.Service) {})
	add("local", "10.96.0.4", func(s *service.Service) { s.InternalPolicy = service.PolicyLocal }, far)
	add("outer", "10.96.0.5", func(s *service.Service) { s.Ingress = []service.Ingress{{Addr: netip.MustParseAddr("198.51.100.5")}} }, far)
	add("ranged", "10.96.0.6", func(s *service.Service) {
		s.Ingress = []service.Ingress{{Addr: netip.MustParseAddr("198.51.100.6")}}
		s.ExternalPolicy, s.SourceRanges = service.PolicyLocal, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	}, far)
	r.Apply(all)
	tb := r.Table()
	for name, c := range map[string]struct {
		from, to, protocol string
		elsewhere          bool
		verdict, words     string
	}{
		"a Pod":               {"10.244.1.9", "10.96.0.1:80", "TCP", false, "translate", "put one of these endpoints in the place of 10.96.0.1:80: no packet to that is sent, and the endpoint sees the Pod's own address, also where that is the endpoint itself"},
		"the node":            {"", "10.96.0.1:80", "TCP", false, "translate", "the endpoint sees this node's own address on the way there"},
		"affinity":            {"10.244.1.9", "10.96.0.2:80", "TCP", false, "packets", "leave it to packets, as above: the Service has session affinity"},
		"the node's affinity": {"", "10.96.0.2:80", "TCP", false, "translate", "a socket of this node"},
		"no endpoint":         {"10.244.1.9", "10.96.0.3:80", "TCP", false, "reject", "refuse it (ECONNREFUSED)"},
		"none of this node":   {"10.244.1.9", "10.96.0.4:80", "TCP", false, "packets", "only a packet can be dropped"},
		"masquerade":          {"10.244.1.9", "198.51.100.5:80", "TCP", false, "packets", "has to see this node as the source"},
		"ranges":              {"10.244.1.9", "198.51.100.6:80", "TCP", false, "packets", "source ranges"},
		"out of them":         {"", "198.51.100.6:80", "TCP", false, "packets", "outside of the Service's source ranges"},
		"SCTP":                {"10.244.1.9", "10.96.0.1:80", "SCTP", false, "", ""},
		"another node's Pod":  {"10.244.2.9", "10.96.0.1:80", "TCP", true, "", ""},
		"from outside":        {"203.0.113.9", "198.51.100.5:80", "TCP", false, "", ""},
		"no Service":          {"10.244.1.9", "192.0.2.1:80", "TCP", false, "", ""},
		"another port":        {"10.244.1.9", "10.96.0.1:81", "TCP", false, "", ""},
	} {
		v := Question{}.Values()
		v.Set("from", c.from)
		v.Set("to", c.to)
		v.Set("protocol", c.protocol)
		q, err := ParseQuestion(v)
		if err != nil {
			t.Fatal(err)
		}
		p := q.Packet(&tb.Node)
		hop := Hop(func(netip.Addr) string {
			return map[bool]string{true: "via 192.168.0.2 on eth0", false: "on veth1"}[c.elsewhere]
		})
		e := Explain(tb, p, hop)
		e.takeSocket(judgeSocket(tb.Judge(p), p, isHere(hop, p), &facts), p)
		if c.verdict == "translate" && c.from != "" {
			a := judgeSocket(tb.Judge(p), p, true, &byInterface)
			if a == nil || a.Verdict != verdictPackets || !strings.Contains(a.Reason, "by an interface") {
				t.Errorf("%s, Pods known by their interface: %v", name, a)
			}
		}
		got := ""
		if e.Socket != nil {
			got = e.Socket.Verdict
		}
		if text := strings.Join(e.Steps, "\n"); got != c.verdict || !strings.Contains(text, c.words) || (c.verdict == "") == strings.Contains(text, "a socket of") {
			t.Errorf("%s: %q, want %q and %q in\n%s", name, got, c.verdict, c.words, text)
		}
	}
}
