package service

import (
	"net/netip"
	"testing"
)

// Why a port has no endpoint is said of each way in which that comes about, and nothing
// where it has one.
func TestWhyAPortHasNoEndpoint(t *testing.T) {
	web := Name{Namespace: "default", Name: "web"}
	addr := netip.MustParseAddr("10.244.1.1")
	slice := func(family Family, ports []EndpointPort, endpoints ...Endpoint) *EndpointSlice {
		return &EndpointSlice{Name: web, Service: "web", Family: family, Ports: ports, Endpoints: endpoints}
	}
	http := []EndpointPort{{Name: "http", Protocol: TCP, Number: 8080}}
	ready := Endpoint{Addr: addr, Ready: true, Serving: true}
	for name, c := range map[string]struct {
		slices []*EndpointSlice
		want   string
	}{
		"an endpoint":       {[]*EndpointSlice{slice(IPv4, http, ready)}, ""},
		"one that drains":   {[]*EndpointSlice{slice(IPv4, http, Endpoint{Addr: addr, Serving: true, Terminating: true})}, ""},
		"no slice":          {nil, "no EndpointSlice has its name in the label kubernetes.io/service-name"},
		"an empty slice":    {[]*EndpointSlice{slice(IPv4, http)}, "its EndpointSlices hold no IPv4 endpoint: do Pods match its selector, and are they ready?"},
		"another family":    {[]*EndpointSlice{slice(IPv6, http, ready)}, "its EndpointSlices hold no IPv4 endpoint: do Pods match its selector, and are they ready?"},
		"none is ready":     {[]*EndpointSlice{slice(IPv4, http, Endpoint{Addr: addr}, Endpoint{Addr: addr.Next()})}, "none of its 2 endpoints is ready"},
		"another port name": {[]*EndpointSlice{slice(IPv4, []EndpointPort{{Name: "web", Protocol: TCP, Number: 1}}, ready)}, `its EndpointSlices have no port named "http" over TCP, only "web" over TCP`},
		"another protocol":  {[]*EndpointSlice{slice(IPv4, []EndpointPort{{Name: "http", Protocol: UDP, Number: 1}}, ready)}, `its EndpointSlices have no port named "http" over TCP, only "http" over UDP`},
		"no port":           {[]*EndpointSlice{slice(IPv4, nil, ready)}, "its EndpointSlices name no port"},
	} {
		svc := &Service{Name: web, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []Port{{Name: "http", Protocol: TCP, Port: 80}}}
		if got := Resolve(&Config{NodeName: "n"}, svc, c.slices).Ports[0].NoEndpoint; got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
