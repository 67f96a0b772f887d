package admin

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

func table(t *testing.T) *service.Table {
	t.Helper()
	r := service.NewResolver(service.Config{NodeName: "n", Facts: service.NodeFacts{
		Pods:      [2]service.PodDetector{{CIDR: netip.MustParsePrefix("10.244.0.0/16")}},
		Local:     [2][]netip.Addr{{netip.MustParseAddr("192.168.0.1")}},
		NodePorts: [2]service.NodePortAddresses{{All: true}},
	}})
	web := service.Name{Namespace: "default", Name: "web"}
	balanced := &service.Service{Name: web, Type: service.TypeLoadBalancer, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:          []service.Port{{Name: "http", Protocol: service.TCP, Port: 80, NodePort: 30080}},
		Ingress:        []service.Ingress{{Addr: netip.MustParseAddr("198.51.100.1")}},
		SourceRanges:   []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		ExternalPolicy: service.PolicyLocal, AffinityTimeout: time.Hour}
	empty := &service.Service{Name: service.Name{Namespace: "default", Name: "empty"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.2")},
		Ports: []service.Port{{Protocol: service.UDP, Port: 53}}}
	idle := &service.Service{Name: service.Name{Namespace: "default", Name: "idle"}, Type: service.TypeNodePort, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.3")},
		Ports: []service.Port{{Protocol: service.TCP, Port: 80, NodePort: 30081}}}
	slice := &service.EndpointSlice{Name: web, Service: "web", Ports: []service.EndpointPort{{Name: "http", Protocol: service.TCP, Number: 8080}},
		Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("10.244.2.7"), Ready: true, Serving: true, NodeName: "other"}}}
	r.Apply(service.Changes{Complete: true, Services: []*service.Service{balanced, empty, idle}, EndpointSlices: []*service.EndpointSlice{slice}})
	return r.Table()
}

// Each outcome that there is, with the words that say why.
func TestExplain(t *testing.T) {
	tb := table(t)
	for name, test := range map[string]struct {
		from, to, protocol, verdict string
		words                       []string
	}{
		"translated":    {"10.244.1.9", "10.96.0.1:80", "TCP", "translate", []string{"a Pod", "ClusterIP 10.96.0.1:80 of Service default/web:http", "the only endpoint on every node", "session affinity", "10.244.2.7:8080, sees the client's own address, next hop on eth0"}},
		"masqueraded":   {"", "10.96.0.1:80", "TCP", "translate", []string{"this node itself", "sees this node as the source"}},
		"local policy":  {"192.0.2.1", "192.168.0.1:30080", "TCP", "drop", []string{"outside", "node port 30080", "policy is Local and no endpoint is on this node (1 are on others)"}},
		"source range":  {"192.0.2.1", "198.51.100.1:80", "TCP", "drop", []string{"outside of loadBalancerSourceRanges [203.0.113.0/24]"}},
		"no endpoints":  {"10.244.1.9", "10.96.0.2:53", "UDP", "reject", []string{"no usable endpoint (no EndpointSlice has its name in the label kubernetes.io/service-name): rejected"}},
		"other port":    {"10.244.1.9", "10.96.0.2:54", "UDP", "reject", []string{"none of its ports"}},
		"no Service":    {"10.244.1.9", "192.0.2.9:80", "TCP", "untouched", []string{"no Service"}},
		"from inside":   {"203.0.113.5", "198.51.100.1:80", "TCP", "drop", []string{"inside of loadBalancerSourceRanges", "policy is Local"}},
		"hairpin words": {"10.244.2.7", "10.96.0.1:80", "TCP", "translate", []string{"sees this node as the source"}},
	} {
		v := Question{}.Values()
		v.Set("from", test.from)
		v.Set("to", test.to)
		v.Set("protocol", test.protocol)
		q, err := ParseQuestion(v)
		if err != nil {
			t.Fatal(err)
		}
		e := Explain(tb, q.Packet(&tb.Node), func(netip.Addr) string { return "on eth0" })
		text := strings.Join(e.Steps, "\n")
		if e.Verdict != test.verdict {
			t.Errorf("%s: %s, want %s:\n%s", name, e.Verdict, test.verdict, text)
		}
		for _, words := range test.words {
			if !strings.Contains(text, words) {
				t.Errorf("%s: no %q in\n%s", name, words, text)
			}
		}
	}
}

func TestQuestionsThatMakeNoSense(t *testing.T) {
	for want, q := range map[string][3]string{
		"use an IP address": {"x", "10.0.0.1:80", "TCP"}, "use ADDRESS:PORT": {"", "10.0.0.1", "TCP"},
		"use TCP, UDP or SCTP": {"", "10.0.0.1:80", "ICMP"}, "one is IPv4 and the other IPv6": {"fd00::1", "10.0.0.1:80", "TCP"},
	} {
		v := Question{}.Values()
		v.Set("from", q[0])
		v.Set("to", q[1])
		v.Set("protocol", q[2])
		if _, err := ParseQuestion(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", q, err, want)
		}
	}
}

// kernel shows one frontend, and cannot read flows.
type kernel struct{}

func (kernel) Services(context.Context) ([]view.Frontend, error) {
	return []view.Frontend{{Pod: "reject"}}, nil
}
func (kernel) Backends(context.Context) ([]view.Backend, error) { return nil, nil }
func (kernel) Explain(context.Context, service.Packet) (view.Answer, error) {
	return view.Answer{How: "the kernel", Verdict: "translate", Backends: []view.AnswerBackend{{Address: "10.244.2.8:8080"}}}, nil
}
func (kernel) Counts(context.Context) ([]view.Count, error) { return nil, nil }
func (kernel) Flows(context.Context) ([]view.Flow, error)   { return nil, errors.New("broken") }
func (kernel) Affinities(context.Context) ([]view.Affinity, error) {
	return nil, nil
}

// The socket is root's alone, one that was left is replaced, and nothing of it
// stays.
func TestServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	if err := Get(t.Context(), path, "/v1/status", nil, &Status{}); !errors.Is(err, ErrNoAgent) {
		t.Errorf("without an agent: %v", err)
	}
	inspect := make(chan func(*service.Table))
	ctx, cancel := context.WithCancel(t.Context())
	var tb *service.Table
	go func() {
		for fn := range inspect {
			fn(tb)
		}
	}()
	defer close(inspect)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- (&Server{Path: path, Inspect: inspect, Kernel: kernel{}, Status: func() Status { return Status{Mode: "ebpf"} }}).Run(ctx)
	}()
	var s Status
	for deadline := time.Now().Add(5 * time.Second); Get(t.Context(), path, "/v1/status", nil, &s) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no answer")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := Get(t.Context(), path, "/v1/explain", Question{To: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: service.TCP}.Values(), &Explanation{}); err == nil || !strings.Contains(err.Error(), "nothing was listed yet") {
		t.Errorf("before the first list: %v", err)
	}
	tb = table(t)
	if err := Get(t.Context(), path, "/v1/status", nil, &s); err != nil || s.Mode != "ebpf" || s.Services != 3 || s.Backends != 1 {
		t.Errorf("status %+v: %v", s, err)
	}
	var frontends []view.Frontend
	if err := Get(t.Context(), path, PathServices, nil, &frontends); err != nil || len(frontends) != 1 || frontends[0].Pod != "reject" {
		t.Errorf("services %+v: %v", frontends, err)
	}
	if err := Get(t.Context(), path, PathFlows, nil, &[]view.Flow{}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("flows that cannot be read: %v", err)
	}
	var e Explanation // the kernel leads to an endpoint that there should not be
	q := Question{From: netip.MustParseAddr("10.244.1.9"), To: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: service.TCP}
	if err := Get(t.Context(), path, "/v1/explain", q.Values(), &e); err != nil || !strings.Contains(e.Differs, "may select 10.244.2.8:8080") || !strings.Contains(strings.Join(e.Steps, " "), "MISMATCH") {
		t.Errorf("explain %+v: %v", e, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

// What is sent to loopback: the agent relays it, or programs at sockets
// translate it, and everything that can be in the way is named.
func TestExplainLoopback(t *testing.T) {
	socket, relay := Loopback{Sockets: true}, Loopback{}
	for name, test := range map[string]struct {
		from, to string
		served   Loopback
		off      bool
		verdict  string
		words    []string
	}{
		"relayed":         {"", "127.0.0.1:30080", relay, false, "translate", []string{"TCP packet from 127.0.0.1", "node port 30080 of Service default/web:http", "the agent listens there and relays", "the only endpoint on every node", "all clients on loopback are one client", "10.244.2.7:8080, sees this node as the source, next hop on eth0"}},
		"at the socket":   {"", "127.0.0.2:30080", socket, false, "translate", []string{"the socket programs translate it", "10.244.2.7:8080", "the kernel was not asked"}},
		"not 127.0.0.1":   {"", "127.0.0.2:30080", relay, false, "untouched", []string{"the agent listens at 127.0.0.1 alone"}},
		"turned off":      {"", "127.0.0.1:30080", relay, true, "untouched", []string{"default/web:http", "--iptables-localhost-nodeports=false"}},
		"port is taken":   {"", "127.0.0.1:30080", Loopback{Failed: "address already in use"}, false, "untouched", []string{"default/web:http", "does not: address already in use"}},
		"no such port":    {"", "127.0.0.1:30099", relay, false, "untouched", []string{"no Service has node port 30099 over TCP"}},
		"of a Pod":        {"10.244.1.9", "127.0.0.1:30080", relay, false, "untouched", []string{"of the Pod itself"}},
		"refused":         {"", "127.0.0.1:30081", relay, false, "reject", []string{"default/idle", "the agent does not listen"}},
		"socket refused":  {"", "127.0.0.1:30081", socket, false, "reject", []string{"default/idle", "the socket programs reject it"}},
		"from itself":     {"192.168.0.1", "127.0.0.1:30080", relay, false, "translate", []string{"TCP packet from 192.168.0.1"}},
		"of IPv6, no one": {"", "[::1]:30080", relay, false, "untouched", []string{"from ::1 to [::1]:30080", "no Service"}},
	} {
		tb := table(t)
		tb.Node.NodePorts[service.IPv4].Loopback = !test.off
		v := Question{}.Values()
		v.Set("from", test.from)
		v.Set("to", test.to)
		v.Set("protocol", "TCP")
		q, err := ParseQuestion(v)
		if err != nil {
			t.Fatal(err)
		}
		e := ExplainLoopback(tb, q.Packet(&tb.Node), test.served, func(netip.Addr) string { return "on eth0" })
		text := strings.Join(e.Steps, "\n")
		if e.Verdict != test.verdict || (e.Verdict == "translate") != (len(e.Backends) > 0) {
			t.Errorf("%s: %s to %v, want %s:\n%s", name, e.Verdict, e.Backends, test.verdict, text)
		}
		for _, words := range test.words {
			if !strings.Contains(text, words) {
				t.Errorf("%s: no %q in\n%s", name, words, text)
			}
		}
		if tb.Node.NodePorts[service.IPv4].Loopback == test.off {
			t.Errorf("%s: the Table was changed", name)
		}
	}
}

// The same of what an agent left.
func TestExplainLoopbackRemains(t *testing.T) {
	frontends := []view.Frontend{
		{Service: "default/web:http", Protocol: "TCP", Kind: "NodePort", Family: "IPv4", Port: 30080, Node: "translate to 1, masqueraded"},
		{Service: "default/idle", Protocol: "TCP", Kind: "NodePort", Family: "IPv4", Port: 30081, Node: "reject"},
	}
	backends := []view.Backend{
		{Service: "default/web:http", Protocol: "TCP", Address: "10.244.2.7:8080", List: "cluster"},
		{Service: "default/web:http", Protocol: "TCP", Address: "[fd00::7]:8080", List: "cluster"},
	}
	for name, test := range map[string]struct {
		to      string
		sockets bool
		verdict string
		words   string
	}{
		"at the socket":  {"127.0.0.1:30080", true, "translate", "10.244.2.7:8080"},
		"socket refused": {"127.0.0.1:30081", true, "reject", "default/idle"},
		"relay is gone":  {"127.0.0.1:30080", false, "untouched", "no agent answers: nobody listens"},
		"no such port":   {"127.0.0.1:30082", false, "untouched", "no Service has node port 30082"},
		"other family":   {"[::1]:30080", true, "untouched", "no Service has node port 30080"},
	} {
		p := Question{To: netip.MustParseAddrPort(test.to), Protocol: service.TCP}.Packet(&service.NodeFacts{})
		e := LoopbackRemains(frontends, backends, p, test.sockets)
		if text := strings.Join(e.Steps, "\n"); e.Verdict != test.verdict || !strings.Contains(text, test.words) || strings.Contains(text, "fd00") {
			t.Errorf("%s: %s, want %s with %q:\n%s", name, e.Verdict, test.verdict, test.words, text)
		}
	}
}
