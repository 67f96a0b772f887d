package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	netutils "k8s.io/utils/net"

	"github.com/nodeproxy/nodeproxy/service"
)

// Labels and annotations that the API knows but k8s.io/api has no name for.
const (
	labelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	taintToBeDeleted      = "ToBeDeletedByClusterAutoscaler"
	annotationPrefix      = "nodeproxy.io/"
	annotationWeights     = annotationPrefix + "weights"
)

// warnings are values that were passed over, each with its field.
type warnings []string

func (w *warnings) add(field, format string, args ...any) {
	*w = append(*w, field+": "+fmt.Sprintf(format, args...))
}

// convertService keeps of a Service what a node proxy reads. A value that can
// not be read is left out with a warning, as kube-proxy does.
func convertService(in *v1.Service) (*service.Service, warnings) {
	var w warnings
	out := &service.Service{
		Name:      service.Name{Namespace: in.Namespace, Name: in.Name},
		Created:   in.CreationTimestamp.UTC(),
		ProxyName: in.Labels[labelServiceProxyName],
		Type:      service.Type(in.Spec.Type),
	}
	if n := in.Spec.HealthCheckNodePort; n > 0 && n <= 65535 {
		out.HealthCheckNodePort = uint16(n)
	}
	if _, ok := in.Labels[labelServiceProxyName]; ok && out.ProxyName == "" {
		out.ProxyName = "-" // the label counts, whatever its value
	}
	if out.Type == "" {
		out.Type = service.TypeClusterIP
	}
	clusterIPs := in.Spec.ClusterIPs
	if len(clusterIPs) == 0 && in.Spec.ClusterIP != "" {
		clusterIPs = []string{in.Spec.ClusterIP}
	}
	if in.Spec.ClusterIP != v1.ClusterIPNone {
		out.ClusterIPs = w.serviceAddrs("spec.clusterIPs", clusterIPs)
	}
	out.ExternalIPs = w.serviceAddrs("spec.externalIPs", in.Spec.ExternalIPs)
	out.SourceRanges = w.prefixes("spec.loadBalancerSourceRanges", in.Spec.LoadBalancerSourceRanges)
	for _, ing := range in.Status.LoadBalancer.Ingress {
		if ing.IP == "" {
			continue // a host name is nothing that a packet carries
		}
		for _, a := range w.serviceAddrs("status.loadBalancer.ingress", []string{ing.IP}) {
			proxy := ing.IPMode != nil && *ing.IPMode == v1.LoadBalancerIPModeProxy
			out.Ingress = append(out.Ingress, service.Ingress{Addr: a, Proxy: proxy})
		}
	}
	if p := in.Spec.InternalTrafficPolicy; p != nil && *p == v1.ServiceInternalTrafficPolicyLocal {
		out.InternalPolicy = service.PolicyLocal
	}
	if in.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal {
		out.ExternalPolicy = service.PolicyLocal
	}
	w.values(in)
	out.AffinityTimeout = w.affinityTimeout(&in.Spec)
	for i, p := range in.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		proto, ok := w.protocol(field, p.Protocol)
		if !ok || !w.port(field+".port", p.Port) || p.NodePort != 0 && !w.port(field+".nodePort", p.NodePort) {
			continue
		}
		out.Ports = append(out.Ports, service.Port{
			Name: shared(p.Name), Protocol: proto, Port: uint16(p.Port), NodePort: uint16(p.NodePort),
		})
	}
	for k, v := range in.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[k] = v
		}
	}
	return out, w
}

// maxAffinity is the API's limit of a timeout, in seconds: a day.
const maxAffinity = 86400

func (w *warnings) affinityTimeout(spec *v1.ServiceSpec) time.Duration {
	if spec.SessionAffinity != v1.ServiceAffinityClientIP {
		return 0
	}
	seconds := v1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if given := *c.ClientIP.TimeoutSeconds; given > 0 && given <= maxAffinity {
			seconds = given
		} else {
			w.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d: use 1 to %d; %d is used", given, maxAffinity, seconds)
		}
	}
	return time.Duration(seconds) * time.Second
}

// convertEndpointSlice keeps of an EndpointSlice what a node proxy reads. It
// returns nil for one that is no Service's, or holds names instead of addresses.
func convertEndpointSlice(in *discovery.EndpointSlice) (*service.EndpointSlice, warnings) {
	var w warnings
	owner := in.Labels[discovery.LabelServiceName]
	if owner == "" {
		return nil, nil // nobody's who is asked here
	}
	if w.sliceValues(in); in.AddressType == discovery.AddressTypeFQDN {
		return nil, w
	}
	out := &service.EndpointSlice{
		Name:      service.Name{Namespace: in.Namespace, Name: in.Name},
		Service:   owner,
		ProxyName: in.Labels[labelServiceProxyName],
		Weights:   in.Annotations[annotationWeights],
	}
	_, out.Headless = in.Labels[v1.IsHeadlessService]
	if in.AddressType == discovery.AddressTypeIPv6 {
		out.Family = service.IPv6
	}
	if t, err := time.Parse(time.RFC3339Nano, in.Annotations[v1.EndpointsLastChangeTriggerTime]); err == nil {
		out.LastChange = t.UTC()
	}
	for i, p := range in.Ports {
		field := fmt.Sprintf("ports[%d]", i)
		if p.Port == nil || *p.Port == 0 {
			continue // all ports, which a proxy cannot translate
		}
		var proto v1.Protocol
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		number, ok := w.protocol(field, proto)
		if !ok || !w.port(field+".port", *p.Port) {
			continue
		}
		port := service.EndpointPort{Protocol: number, Number: uint16(*p.Port)}
		if p.Name != nil {
			port.Name = shared(*p.Name)
		}
		out.Ports = append(out.Ports, port)
	}
	for i := range in.Endpoints {
		if ep, ok := convertEndpoint(&in.Endpoints[i], i, out.Family, &w); ok {
			out.Endpoints = append(out.Endpoints, ep)
		}
	}
	return out, w
}

func convertEndpoint(in *discovery.Endpoint, i int, family service.Family, w *warnings) (service.Endpoint, bool) {
	field := fmt.Sprintf("endpoints[%d].addresses", i)
	if len(in.Addresses) == 0 {
		w.add(field, "has no address")
		return service.Endpoint{}, false
	}
	addrs := w.addrs(field, in.Addresses[:1])
	if len(addrs) == 0 {
		return service.Endpoint{}, false
	}
	if service.FamilyOf(addrs[0]) != family {
		w.add(field, "%s is no %s address, as addressType says", addrs[0], family)
		return service.Endpoint{}, false
	}
	is := func(b *bool, unset bool) bool {
		if b == nil {
			return unset
		}
		return *b
	}
	out := service.Endpoint{
		Addr:        addrs[0],
		Ready:       is(in.Conditions.Ready, true),
		Serving:     is(in.Conditions.Serving, true),
		Terminating: is(in.Conditions.Terminating, false),
	}
	if in.NodeName != nil {
		out.NodeName = shared(*in.NodeName)
	}
	if in.Zone != nil {
		out.Zone = shared(*in.Zone)
	}
	if in.Hints != nil && len(in.Hints.ForZones)+len(in.Hints.ForNodes) > 0 {
		out.Hints = &service.Hints{}
		for _, z := range in.Hints.ForZones {
			out.Hints.Zones = append(out.Hints.Zones, shared(z.Name))
		}
		for _, n := range in.Hints.ForNodes {
			out.Hints.Nodes = append(out.Hints.Nodes, shared(n.Name))
		}
	}
	return out, true
}

// shared returns one and the same string for equal ones: names of Nodes, zones
// and ports are the same in very many objects.
func shared(s string) string { return unique.Make(s).Value() }

// convertNode keeps of a Node what a node proxy reads.
func convertNode(in *v1.Node) (*service.Node, warnings) {
	var w warnings
	out := &service.Node{
		Name:     in.Name,
		Zone:     in.Labels[v1.LabelTopologyZone],
		Deleting: in.DeletionTimestamp != nil,
	}
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, a := range in.Status.Addresses {
			if a.Type == kind {
				out.Addresses = append(out.Addresses, w.addrs("status.addresses", []string{a.Address})...)
			}
		}
	}
	cidrs := in.Spec.PodCIDRs
	if len(cidrs) == 0 && in.Spec.PodCIDR != "" {
		cidrs = []string{in.Spec.PodCIDR}
	}
	out.PodCIDRs = w.prefixes("spec.podCIDRs", cidrs)
	w.twoOfAFamily("spec.podCIDRs", cidrs)
	for _, t := range in.Spec.Taints {
		out.ClusterAutoscalerTaint = out.ClusterAutoscalerTaint || t.Key == taintToBeDeleted
	}
	return out, w
}

// addrs reads addresses as kube-proxy does: leading zeros are decimal.
func (w *warnings) addrs(field string, in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(strings.TrimSpace(s)))
		if !ok {
			w.add(field, "%q is no IP address", s)
			continue
		}
		out = append(out, a.Unmap())
	}
	return out
}

// serviceAddrs reads addresses that a Service claims. One that is written as an
// IPv4 address mapped into IPv6 stays so, since it is not served.
func (w *warnings) serviceAddrs(field string, in []string) []netip.Addr {
	out := w.addrs(field, in)
	if len(out) != len(in) {
		in = slices.DeleteFunc(slices.Clone(in), func(s string) bool { return netutils.ParseIPSloppy(strings.TrimSpace(s)) == nil })
	}
	for i, s := range in {
		if out[i].Is4() && strings.Contains(s, ":") {
			out[i] = netip.AddrFrom16(out[i].As16())
		}
	}
	return out
}

func (w *warnings) prefixes(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		_, n, err := netutils.ParseCIDRSloppy(strings.TrimSpace(s))
		if err != nil {
			w.add(field, "%q is no CIDR", s)
			continue
		}
		a, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(a.Unmap(), bits))
	}
	return out
}

func (w *warnings) protocol(field string, p v1.Protocol) (service.Protocol, bool) {
	switch p {
	case v1.ProtocolTCP, "":
		return service.TCP, true
	case v1.ProtocolUDP:
		return service.UDP, true
	case v1.ProtocolSCTP:
		return service.SCTP, true
	}
	w.add(field+".protocol", "%q is none of TCP, UDP and SCTP", p)
	return 0, false
}

func (w *warnings) port(field string, n int32) bool {
	if n < 1 || n > 65535 {
		w.add(field, "%d is no port number", n)
		return false
	}
	return true
}
