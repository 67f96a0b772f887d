package source

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

// values warns of what the API server would refuse, or what has no meaning, and
// which would be taken for something else without a word.
func (w *warnings) values(in *v1.Service) {
	spec := &in.Spec
	oneOf(w, "spec.type", spec.Type, v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeExternalName)
	oneOf(w, "spec.externalTrafficPolicy", spec.ExternalTrafficPolicy, v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal)
	if p := spec.InternalTrafficPolicy; p != nil {
		oneOf(w, "spec.internalTrafficPolicy", *p, v1.ServiceInternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyLocal)
	}
	oneOf(w, "spec.sessionAffinity", spec.SessionAffinity, v1.ServiceAffinityNone, v1.ServiceAffinityClientIP)
	if len(in.Status.LoadBalancer.Ingress) > 0 && spec.Type != v1.ServiceTypeLoadBalancer {
		w.add("status.loadBalancer.ingress", "its addresses are served, but spec.type is %s, for which no controller keeps them true: use LoadBalancer", orDefault(spec.Type))
	}
	w.meaningless(in)
	w.repeatedPorts(spec.Ports)
	w.twoOfAFamily("spec.clusterIPs", spec.ClusterIPs)
	if len(spec.ClusterIPs) > 0 && spec.ClusterIP != "" && spec.ClusterIP != spec.ClusterIPs[0] {
		w.add("spec.clusterIP", "%s is not the first of spec.clusterIPs, %s, which is served", spec.ClusterIP, spec.ClusterIPs[0])
	}
	if spec.LoadBalancerIP != "" && len(in.Status.LoadBalancer.Ingress) == 0 {
		w.add("spec.loadBalancerIP", "asks a load balancer for an address, and is none by itself: status.loadBalancer.ingress says what there is")
	}
}

// meaningless warns of fields that count for nothing beside the others of a Service.
func (w *warnings) meaningless(in *v1.Service) {
	spec := &in.Spec
	kind, outer := orDefault(spec.Type), spec.Type == v1.ServiceTypeNodePort || spec.Type == v1.ServiceTypeLoadBalancer
	local := spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
	if local && !outer && len(spec.ExternalIPs) == 0 {
		w.add("spec.externalTrafficPolicy", "Local has no meaning: spec.type is %s, and there are no externalIPs: use NodePort or LoadBalancer", kind)
	}
	if n := spec.HealthCheckNodePort; n < 0 || n > 65535 {
		w.add("spec.healthCheckNodePort", "%d is no port number", n)
	} else if n != 0 && (!local || spec.Type != v1.ServiceTypeLoadBalancer) {
		w.add("spec.healthCheckNodePort", "has no meaning: it needs spec.type LoadBalancer and spec.externalTrafficPolicy Local")
	}
	if len(spec.LoadBalancerSourceRanges) > 0 && len(in.Status.LoadBalancer.Ingress) == 0 && spec.Type != v1.ServiceTypeLoadBalancer {
		w.add("spec.loadBalancerSourceRanges", "has no meaning: spec.type is %s, and these filter what comes to load-balancer addresses", kind)
	}
	if spec.SessionAffinityConfig != nil && spec.SessionAffinity != v1.ServiceAffinityClientIP {
		w.add("spec.sessionAffinityConfig", "has no meaning: spec.sessionAffinity is %s: use ClientIP", cmp.Or(spec.SessionAffinity, v1.ServiceAffinityNone))
	}
	for i, p := range spec.Ports {
		if p.NodePort > 0 && p.NodePort <= 65535 && !outer {
			w.add(fmt.Sprintf("spec.ports[%d].nodePort", i), "%d is served, but spec.type is %s: use NodePort or LoadBalancer", p.NodePort, kind)
		}
	}
	if spec.ClusterIP == v1.ClusterIPNone && len(spec.ExternalIPs) > 0 {
		w.add("spec.externalIPs", "has no meaning: spec.clusterIP is None, and a headless Service is not served")
	}
}

// repeatedPorts warns of ports that the API server would refuse beside each other.
func (w *warnings) repeatedPorts(ports []v1.ServicePort) {
	names, numbers, nodes := map[string]int{}, map[string]int{}, map[string]int{}
	once := func(seen map[string]int, key, field, what string, i int) {
		if first, ok := seen[key]; ok {
			w.add(fmt.Sprintf("spec.ports[%d].%s", i, field), "%s is that of spec.ports[%d] too", what, first)
			return
		}
		seen[key] = i
	}
	for i, p := range ports {
		protocol := cmp.Or(p.Protocol, v1.ProtocolTCP)
		if len(ports) > 1 && p.Name == "" {
			w.add(fmt.Sprintf("spec.ports[%d].name", i), "is missing: with several ports each has a name, by which EndpointSlices are found")
		} else if p.Name != "" {
			once(names, p.Name, "name", fmt.Sprintf("%q", p.Name), i)
		}
		once(numbers, fmt.Sprint(p.Port, protocol), "port", fmt.Sprintf("%d/%s", p.Port, protocol), i)
		if p.NodePort != 0 {
			once(nodes, fmt.Sprint(p.NodePort, protocol), "nodePort", fmt.Sprintf("%d/%s", p.NodePort, protocol), i)
		}
	}
}

// twoOfAFamily warns of addresses or networks of which only the first of each family is
// used.
func (w *warnings) twoOfAFamily(field string, texts []string) {
	var first [2]string
	for _, text := range texts {
		if text == v1.ClusterIPNone {
			continue
		}
		f := 0
		if strings.Contains(text, ":") {
			f = 1
		}
		if first[f] != "" {
			w.add(field, "%s is not used: %s is of the same family, and comes first", text, first[f])
			continue
		}
		first[f] = text
	}
}

// unallocated warns of what an API server would have chosen, and which nobody does where
// objects come from files.
func (w *warnings) unallocated(in *v1.Service) {
	if in.Spec.Type != v1.ServiceTypeNodePort {
		return // load balancers may do without
	}
	for i, p := range in.Spec.Ports {
		if p.NodePort == 0 {
			w.add(fmt.Sprintf("spec.ports[%d].nodePort", i), "is missing: no API server is here to choose one, and the port is not served on nodes")
		}
	}
}

// sliceValues warns of what of an EndpointSlice does not lead to an endpoint.
func (w *warnings) sliceValues(in *discovery.EndpointSlice) {
	switch in.AddressType {
	case discovery.AddressTypeIPv4, discovery.AddressTypeIPv6:
	case discovery.AddressTypeFQDN:
		w.add("addressType", "FQDN: names are not served, only addresses")
		return
	case "":
		w.add("addressType", "is missing: use IPv4 or IPv6; IPv4 is assumed")
	default:
		w.add("addressType", "%q: use IPv4 or IPv6; IPv4 is assumed", in.AddressType)
	}
	if len(in.Ports) == 0 && len(in.Endpoints) > 0 {
		w.add("ports", "is empty: none of its endpoints is served")
	}
	names := map[string]int{}
	for i, p := range in.Ports {
		if p.Port == nil {
			w.add(fmt.Sprintf("ports[%d].port", i), "is missing: it is not served, since a proxy cannot translate to all ports")
		}
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if first, ok := names[name]; ok {
			w.add(fmt.Sprintf("ports[%d].name", i), "%q is that of ports[%d] too", name, first)
			continue
		}
		names[name] = i
	}
}

func orDefault(t v1.ServiceType) v1.ServiceType {
	if t == "" {
		return v1.ServiceTypeClusterIP
	}
	return t
}

// oneOf warns of a value that is not empty and none of those that there are.
func oneOf[T ~string](w *warnings, field string, value T, known ...T) {
	if value == "" || slices.Contains(known, value) {
		return
	}
	var names []string
	for _, k := range known {
		names = append(names, string(k))
	}
	last := len(names) - 1
	w.add(field, "%q: use %s or %s", value, strings.Join(names[:last], ", "), names[last])
}
