// Package flows holds packet flows that kube-proxy's own tests state, restated
// as data: a state of the cluster, packets, and what must become of them. Every
// mode has to reproduce them.
package flows

import (
	_ "embed" // the data
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/service"
)

//go:embed testdata/flows.yaml
var data []byte

// Case is one state of a cluster, and flows through it.
type Case struct {
	ID           string
	IPFamily     string
	Backends     []string
	Settings     Settings
	Node         *Node
	Services     []Service
	EndpointSets []EndpointSet
	Flows        []Flow
}

// Settings are a case's overrides of the defaults.
type Settings struct {
	NodePortAddresses  *[]string
	LocalhostNodePorts *bool
}

// Node is the node of a case.
type Node struct {
	Name string
	Zone string
}

// Service is a Service of a case; see the schema at the head of the data.
type Service struct {
	Name                     string
	Type                     string
	ClusterIP                string
	ExternalIPs              []string
	LoadBalancerSourceRanges []string
	LoadBalancerIngress      []struct{ IP, IPMode string }
	InternalTrafficPolicy    string
	ExternalTrafficPolicy    string
	HealthCheckNodePort      int32
	Ports                    []Port
}

// Port is a port of a Service, or of an EndpointSet.
type Port struct {
	Name, Protocol string
	Port, NodePort int32
}

// EndpointSet is the endpoints of a Service.
type EndpointSet struct {
	Service   string
	Ports     []Port
	Endpoints []struct {
		IP                          string
		Node                        *string
		Ready, Serving, Terminating bool
		ZoneHints, NodeHints        []string
	}
}

// Flow is a packet and what must become of it.
type Flow struct {
	ID, Name    string
	Backends    []string
	Source      struct{ Kind, IP string }
	Destination struct {
		IP   string
		Port uint16
	}
	Protocol   string
	Expected   Expected
	Masquerade bool
}

// Expected is a set of backends, or one of the words REJECT, DROP, ACCEPT and NONE.
type Expected struct {
	Word     string
	Backends []string
}

// UnmarshalJSON reads a word or a list.
func (e *Expected) UnmarshalJSON(b []byte) error {
	if strings.HasPrefix(string(b), "[") {
		return json.Unmarshal(b, &e.Backends)
	}
	return json.Unmarshal(b, &e.Word)
}

// Differences are the flows in which nodeproxy means to differ from what is
// stated, with the reason; docs/semantics.md has the rule. Where kube-proxy's
// two modes state different things, what the other one does is here.
var Differences = map[string]string{
	"nodeports-iptables-5/4": "node ports answer on ::1 as they do on 127.0.0.1",
	"clusterip-general/8":    "an unknown port of a Service's address is refused, as in nftables mode (clusterip-general/9)",
	"clusterip-general/10":   "an unknown port of a Service's address is refused, as in nftables mode (clusterip-general/11)",
	"clusterip-general/12":   "an address that no Service has is not touched, as in iptables mode: which networks are Services' is not known",
	"topology-11/1":          "kube-proxy before 1.35 with a feature gate off; node hints always count",
}

// Addresses on the interfaces of every case's node.
var LocalAddresses = parseAddrs("127.0.0.1", "::1", "192.168.0.2", "192.168.1.2", "192.168.99.11", "2001:db8::1", "2001:db8:1::2")

// Load returns every case.
func Load() ([]Case, error) {
	var all struct{ Cases []Case }
	if err := yaml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("decode flows.yaml: %w", err)
	}
	return all.Cases, nil
}

// Holds reports whether a flow must become here what is stated.
func (f *Flow) Holds() bool { return Differences[f.ID] == "" }

// Options returns the settings of the case's node.
func (c *Case) Options() service.Options {
	opts := service.Options{
		NodeName:           "test-node",
		NodeIPs:            parseAddrs("192.168.0.2", "2001:db8::1"),
		ClusterCIDRs:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:10::/64")},
		LocalhostNodePorts: c.Settings.LocalhostNodePorts == nil || *c.Settings.LocalhostNodePorts,
	}
	if !slices.Contains(c.Backends, "iptables") { // the defaults of nftables mode
		opts.NodePortAddresses, opts.LocalhostNodePorts = []string{"192.168.0.2/32", "2001:db8::1/128"}, false
	}
	if c.Settings.NodePortAddresses != nil {
		opts.NodePortAddresses = *c.Settings.NodePortAddresses
	}
	if c.Node != nil {
		opts.NodeName = c.Node.Name
	}
	return opts
}

// Config returns the configuration of the case's node, which may have more
// addresses.
func (c *Case) Config(more ...netip.Addr) (service.Config, error) {
	node := &service.Node{}
	if c.Node != nil {
		node.Zone = c.Node.Zone
	}
	return c.Options().Config(node, service.Host{Addresses: append(slices.Clone(LocalAddresses), more...), Uplinks: []string{"eth0"}})
}

// Manifests returns the case's objects as a List that a file source reads.
func (c *Case) Manifests() ([]byte, error) {
	list := struct {
		metav1.TypeMeta `json:",inline"`
		Items           []any `json:"items"`
	}{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}, Items: []any{}}
	for _, s := range c.Services {
		list.Items = append(list.Items, s.manifest())
	}
	for _, e := range c.EndpointSets {
		list.Items = append(list.Items, e.manifest(c.IPFamily))
	}
	return yaml.Marshal(list)
}

func (s *Service) manifest() *v1.Service {
	namespace, name, _ := strings.Cut(s.Name, "/")
	out := &v1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceType(s.Type), ClusterIP: s.ClusterIP,
			ExternalIPs: s.ExternalIPs, LoadBalancerSourceRanges: s.LoadBalancerSourceRanges,
			ExternalTrafficPolicy: v1.ServiceExternalTrafficPolicy(s.ExternalTrafficPolicy),
			HealthCheckNodePort:   s.HealthCheckNodePort,
		},
	}
	if s.InternalTrafficPolicy != "" {
		policy := v1.ServiceInternalTrafficPolicy(s.InternalTrafficPolicy)
		out.Spec.InternalTrafficPolicy = &policy
	}
	for _, in := range s.LoadBalancerIngress {
		ingress := v1.LoadBalancerIngress{IP: in.IP}
		if in.IPMode != "" {
			mode := v1.LoadBalancerIPMode(in.IPMode)
			ingress.IPMode = &mode
		}
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, ingress)
	}
	for _, p := range s.Ports {
		out.Spec.Ports = append(out.Spec.Ports, v1.ServicePort{
			Name: p.Name, Protocol: v1.Protocol(p.Protocol), Port: p.Port, NodePort: p.NodePort,
		})
	}
	return out
}

func (e *EndpointSet) manifest(family string) *discovery.EndpointSlice {
	namespace, name, _ := strings.Cut(e.Service, "/")
	out := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "-slice",
			Labels: map[string]string{discovery.LabelServiceName: name}},
		AddressType: discovery.AddressType(family),
	}
	for _, p := range e.Ports {
		proto := v1.Protocol(p.Protocol)
		out.Ports = append(out.Ports, discovery.EndpointPort{Name: &p.Name, Protocol: &proto, Port: &p.Port})
	}
	for _, ep := range e.Endpoints {
		one := discovery.Endpoint{
			Addresses: []string{ep.IP}, NodeName: ep.Node,
			Conditions: discovery.EndpointConditions{Ready: &ep.Ready, Serving: &ep.Serving, Terminating: &ep.Terminating},
		}
		if len(ep.ZoneHints)+len(ep.NodeHints) > 0 {
			one.Hints = &discovery.EndpointHints{}
		}
		for _, z := range ep.ZoneHints {
			one.Hints.ForZones = append(one.Hints.ForZones, discovery.ForZone{Name: z})
		}
		for _, n := range ep.NodeHints {
			one.Hints.ForNodes = append(one.Hints.ForNodes, discovery.ForNode{Name: n})
		}
		out.Endpoints = append(out.Endpoints, one)
	}
	return out
}

// Packet returns the flow's first packet.
func (f *Flow) Packet() service.Packet {
	p := service.Packet{
		Source:      netip.AddrPortFrom(netip.MustParseAddr(f.Source.IP), 40000),
		Destination: netip.AddrPortFrom(netip.MustParseAddr(f.Destination.IP), f.Destination.Port),
		Protocol:    map[string]service.Protocol{"TCP": service.TCP, "UDP": service.UDP, "SCTP": service.SCTP}[f.Protocol],
		Interface:   "eth0",
	}
	if f.Source.Kind == "node" || f.Source.Kind == "localhost" {
		p.Interface = ""
	}
	return p
}

// String names a flow as failures show it.
func (f *Flow) String() string {
	return fmt.Sprintf("%s (%s): %s %s to %s", f.ID, f.Name, f.Source.Kind, f.Source.IP,
		f.Protocol+" "+f.Destination.IP+":"+strconv.Itoa(int(f.Destination.Port)))
}

func parseAddrs(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range text {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
