// Package manifest builds the Kubernetes objects that a node proxy reads and
// writes them to files. Builders return the API's own types, so whatever has
// no builder here is set on the result.
package manifest

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Node returns a v1 Node with the addresses as its InternalIPs, first family
// first, and the Pod CIDRs. zone may be empty.
func Node(name, zone string, addrs []netip.Addr, podCIDRs []netip.Prefix) *corev1.Node {
	n := &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{corev1.LabelHostname: name},
		},
	}
	if zone != "" {
		n.Labels[corev1.LabelTopologyZone] = zone
	}
	for _, addr := range addrs {
		n.Status.Addresses = append(n.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
	}
	for _, cidr := range podCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, cidr.String())
	}
	if len(podCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	return n
}

// TCP returns a Service port whose endpoints serve it at target.
func TCP(name string, port, target int32) corev1.ServicePort {
	return servicePort(corev1.ProtocolTCP, name, port, target)
}

// UDP returns a Service port whose endpoints serve it at target.
func UDP(name string, port, target int32) corev1.ServicePort {
	return servicePort(corev1.ProtocolUDP, name, port, target)
}

// SCTP returns a Service port whose endpoints serve it at target.
func SCTP(name string, port, target int32) corev1.ServicePort {
	return servicePort(corev1.ProtocolSCTP, name, port, target)
}

func servicePort(proto corev1.Protocol, name string, port, target int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: proto, Port: port,
		TargetPort: intstr.FromInt32(target)}
}

// WithNodePort returns p with the node port set.
func WithNodePort(p corev1.ServicePort, nodePort int32) corev1.ServicePort {
	p.NodePort = nodePort
	return p
}

// Service returns a Service of the given "namespace/name" (namespace
// "default" where there is no slash). clusterIPs are separated by commas, the
// primary family first, or "None". Its type is NodePort if a port has a node
// port, else ClusterIP. It panics on an address that does not parse, for the
// callers write them as literals.
func Service(name, clusterIPs string, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: objectMeta(name),
	}
	s.Labels = map[string]string{"app": s.Name}
	s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: ports}
	s.Spec.Selector = map[string]string{"app": s.Name}
	for _, p := range ports {
		if p.NodePort != 0 {
			s.Spec.Type = corev1.ServiceTypeNodePort
		}
	}
	s.Spec.ClusterIPs = strings.Split(clusterIPs, ",")
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for _, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, family(netip.MustParseAddr(ip)))
		}
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(s.Spec.IPFamilies) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
	return s
}

func objectMeta(name string) metav1.ObjectMeta {
	namespace, name, ok := strings.Cut(name, "/")
	if !ok {
		namespace, name = "default", namespace
	}
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func family(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// LoadBalancer makes s a Service of type LoadBalancer with the given ingress
// addresses, and returns it.
func LoadBalancer(s *corev1.Service, ingress ...string) *corev1.Service {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, ip := range ingress {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: ip})
	}
	return s
}

// Endpoint is one Pod behind a Service, in one or both families. The zero
// conditions mean ready.
type Endpoint struct {
	Pod         string
	Addrs       []netip.Addr // at most one of each family
	Node, Zone  string       // may be empty
	NotReady    bool
	Terminating bool
	// NotServing is only looked at of one that is not ready: such an endpoint
	// still serves unless this is set.
	NotServing bool
}

// Slices returns one EndpointSlice for each of the Service's families, with
// the endpoints that have an address of it. A slice without endpoints is made
// too, as Kubernetes does.
func Slices(s *corev1.Service, endpoints ...Endpoint) []*discoveryv1.EndpointSlice {
	var slices []*discoveryv1.EndpointSlice
	for _, family := range s.Spec.IPFamilies {
		slices = append(slices, Slice(s, family, endpoints...))
	}
	return slices
}

// Slice returns the EndpointSlice of one family, named after the Service and
// the family ("web-ipv4").
func Slice(s *corev1.Service, fam corev1.IPFamily, endpoints ...Endpoint) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace,
			Name:      s.Name + "-" + strings.ToLower(string(fam)),
			Labels:    map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: discoveryv1.AddressType(fam),
	}
	for _, p := range s.Spec.Ports {
		target := p.TargetPort.IntVal
		slice.Ports = append(slice.Ports,
			discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &target})
	}
	for _, e := range endpoints {
		for _, addr := range e.Addrs {
			if family(addr) == fam {
				slice.Endpoints = append(slice.Endpoints, e.object(addr, s.Namespace))
			}
		}
	}
	return slice
}

func (e Endpoint) object(addr netip.Addr, namespace string) discoveryv1.Endpoint {
	ready := !e.NotReady && !e.Terminating
	serving := ready || !e.NotServing
	object := discoveryv1.Endpoint{
		Addresses: []string{addr.String()},
		Conditions: discoveryv1.EndpointConditions{
			Ready: &ready, Serving: &serving, Terminating: &e.Terminating,
		},
	}
	if e.Pod != "" {
		object.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: e.Pod}
	}
	if e.Node != "" {
		object.NodeName = &e.Node
	}
	if e.Zone != "" {
		object.Zone = &e.Zone
	}
	return object
}

// NewEndpoint returns a ready endpoint. It panics on an address that does not
// parse.
func NewEndpoint(pod, node string, addrs ...string) Endpoint {
	e := Endpoint{Pod: pod, Node: node}
	for _, addr := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(addr))
	}
	return e
}

// WithEndpoints returns the Service and its slices, the objects of one file.
func WithEndpoints(s *corev1.Service, endpoints ...Endpoint) []any {
	objects := []any{s}
	for _, slice := range Slices(s, endpoints...) {
		objects = append(objects, slice)
	}
	return objects
}

// describe names an object in an error.
func describe(object any) string {
	if o, ok := object.(metav1.Object); ok {
		return fmt.Sprintf("%T %s/%s", object, o.GetNamespace(), o.GetName())
	}
	return fmt.Sprintf("%T", object)
}
