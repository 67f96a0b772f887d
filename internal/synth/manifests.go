package synth

import (
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeproxy/nodeproxy/service"
)

// Manifests returns the objects of [Cluster] as the Kubernetes API has them,
// but for ClusterIPs, which begin at 10.97.0.0.
func Manifests(n, m int) []any {
	var out []any
	for i := range n {
		svc, slice := Service(i+1<<16, m)
		out = append(out, serviceManifest(svc), sliceManifest(slice))
	}
	return out
}

func serviceManifest(in *service.Service) *v1.Service {
	out := &v1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: in.Name.Namespace, Name: in.Name.Name},
		Spec:       v1.ServiceSpec{Type: v1.ServiceType(in.Type), ClusterIP: in.ClusterIPs[0].String()},
	}
	for _, p := range in.Ports {
		out.Spec.Ports = append(out.Spec.Ports, v1.ServicePort{Name: p.Name, Protocol: v1.Protocol(p.Protocol.String()), Port: int32(p.Port)})
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
	for _, p := range in.Ports {
		number, proto := int32(p.Number), v1.Protocol(p.Protocol.String())
		out.Ports = append(out.Ports, discovery.EndpointPort{Name: &p.Name, Port: &number, Protocol: &proto})
	}
	for _, ep := range in.Endpoints {
		out.Endpoints = append(out.Endpoints, discovery.Endpoint{Addresses: []string{ep.Addr.String()}, NodeName: &ep.NodeName})
	}
	return out
}
