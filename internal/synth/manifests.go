package synth

import (
	"maps"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/service"
)

// Manifests returns the objects of [Cluster] as the Kubernetes API has them,
// but for ClusterIPs, which begin at 10.97.0.0.
func Manifests(n, m int) []any {
	var c service.Changes
	for i := range n {
		svc, slice := Service(i+1<<16, m)
		c.Services = append(c.Services, svc)
		c.EndpointSlices = append(c.EndpointSlices, slice)
	}
	return Objects(c)
}

// Objects returns the Services and EndpointSlices of changes as the Kubernetes
// API has them, each Service before its slices, and slices of none at the end.
func Objects(c service.Changes) []any {
	var out []any
	slices := map[service.Name][]*service.EndpointSlice{}
	for _, slice := range c.EndpointSlices {
		of := service.Name{Namespace: slice.Name.Namespace, Name: slice.Service}
		slices[of] = append(slices[of], slice)
	}
	for _, svc := range c.Services {
		out = append(out, serviceManifest(svc))
		for _, slice := range slices[svc.Name] {
			out = append(out, sliceManifest(slice))
		}
		delete(slices, svc.Name)
	}
	for _, slice := range c.EndpointSlices {
		if of := (service.Name{Namespace: slice.Name.Namespace, Name: slice.Service}); slices[of] != nil {
			out = append(out, sliceManifest(slice))
		}
	}
	return out
}

// YAML returns [Objects] as a manifest that a file source reads.
func YAML(c service.Changes) string {
	list := struct {
		metav1.TypeMeta `json:",inline"`
		Items           []any `json:"items"`
	}{metav1.TypeMeta{APIVersion: "v1", Kind: "List"}, Objects(c)}
	text, err := yaml.Marshal(list)
	if err != nil {
		return err.Error() // objects of the API can be marshalled
	}
	return string(text)
}

func serviceManifest(in *service.Service) *v1.Service {
	internal, external := v1.ServiceInternalTrafficPolicy(in.InternalPolicy.String()), v1.ServiceExternalTrafficPolicy(in.ExternalPolicy.String())
	out := &v1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: in.Name.Namespace, Name: in.Name.Name, Annotations: maps.Clone(in.Annotations)},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceType(in.Type), InternalTrafficPolicy: &internal, ExternalTrafficPolicy: external,
			HealthCheckNodePort: int32(in.HealthCheckNodePort),
		},
	}
	if !in.Created.IsZero() {
		out.CreationTimestamp = metav1.NewTime(in.Created)
	}
	if in.ProxyName != "" {
		out.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": in.ProxyName}
	}
	for _, a := range in.ClusterIPs {
		out.Spec.ClusterIPs = append(out.Spec.ClusterIPs, a.String())
	}
	if len(in.ClusterIPs) > 0 {
		out.Spec.ClusterIP = out.Spec.ClusterIPs[0]
	}
	for _, a := range in.ExternalIPs {
		out.Spec.ExternalIPs = append(out.Spec.ExternalIPs, a.String())
	}
	for _, r := range in.SourceRanges {
		out.Spec.LoadBalancerSourceRanges = append(out.Spec.LoadBalancerSourceRanges, r.String())
	}
	for _, i := range in.Ingress {
		mode := v1.LoadBalancerIPModeVIP
		if i.Proxy {
			mode = v1.LoadBalancerIPModeProxy
		}
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, v1.LoadBalancerIngress{IP: i.Addr.String(), IPMode: &mode})
	}
	if in.AffinityTimeout > 0 {
		seconds := int32(in.AffinityTimeout.Seconds())
		out.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		out.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	for _, p := range in.Ports {
		out.Spec.Ports = append(out.Spec.Ports, v1.ServicePort{
			Name: p.Name, Protocol: v1.Protocol(p.Protocol.String()), Port: int32(p.Port), NodePort: int32(p.NodePort),
		})
	}
	return out
}

func sliceManifest(in *service.EndpointSlice) *discovery.EndpointSlice {
	out := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: in.Name.Namespace, Name: in.Name.Name,
			Labels: map[string]string{discovery.LabelServiceName: in.Service}},
		AddressType: discovery.AddressType(in.Family.String()),
	}
	if in.Weights != "" {
		out.Annotations = map[string]string{"nodeproxy.io/weights": in.Weights}
	}
	for _, p := range in.Ports {
		number, proto := int32(p.Number), v1.Protocol(p.Protocol.String())
		out.Ports = append(out.Ports, discovery.EndpointPort{Name: &p.Name, Port: &number, Protocol: &proto})
	}
	for _, ep := range in.Endpoints {
		one := discovery.Endpoint{
			Addresses:  []string{ep.Addr.String()},
			Conditions: discovery.EndpointConditions{Ready: &ep.Ready, Serving: &ep.Serving, Terminating: &ep.Terminating},
		}
		if ep.NodeName != "" {
			one.NodeName = &ep.NodeName
		}
		if ep.Zone != "" {
			one.Zone = &ep.Zone
		}
		if ep.Hints != nil {
			one.Hints = &discovery.EndpointHints{}
			for _, z := range ep.Hints.Zones {
				one.Hints.ForZones = append(one.Hints.ForZones, discovery.ForZone{Name: z})
			}
			for _, n := range ep.Hints.Nodes {
				one.Hints.ForNodes = append(one.Hints.ForNodes, discovery.ForNode{Name: n})
			}
		}
		out.Endpoints = append(out.Endpoints, one)
	}
	return out
}
