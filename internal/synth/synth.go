// Package synth makes clusters of any size for tests and benchmarks.
package synth

import (
	"fmt"
	"net/netip"

	"github.com/nodeproxy/nodeproxy/service"
)

// Service returns the i-th of many ClusterIP Services, 10.96.0.0/12 upwards,
// and its EndpointSlice with n ready endpoints on two nodes.
func Service(i, n int) (*service.Service, *service.EndpointSlice) {
	name := service.Name{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("svc-%d", i)}
	svc := &service.Service{
		Name: name, Type: service.TypeClusterIP,
		ClusterIPs: []netip.Addr{v4(10<<24 | 96<<16 | uint32(i) + 1)},
		Ports:      []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}},
	}
	return svc, Slice(svc, i, n)
}

// Slice returns an EndpointSlice for a Service of one port, with n ready
// endpoints; i keeps the endpoints of several Services apart.
func Slice(svc *service.Service, i, n int) *service.EndpointSlice {
	slice := &service.EndpointSlice{
		Name: service.Name{Namespace: svc.Name.Namespace, Name: svc.Name.Name + "-x"}, Service: svc.Name.Name,
	}
	for _, p := range svc.Ports {
		slice.Ports = append(slice.Ports, service.EndpointPort{Name: p.Name, Protocol: p.Protocol, Number: 8080})
	}
	for j := range n {
		node := [2]string{"node-a", "node-b"}[j%2]
		addr := v4(10<<24 | 128<<16 + uint32(i*n+j) + 1)
		slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: addr, Ready: true, Serving: true, NodeName: node})
	}
	return slice
}

// Cluster returns complete changes of n Services with m endpoints each.
func Cluster(n, m int) service.Changes {
	c := service.Changes{Complete: true}
	for i := range n {
		svc, slice := Service(i, m)
		c.Services = append(c.Services, svc)
		c.EndpointSlices = append(c.EndpointSlices, slice)
	}
	return c
}

// Config returns a node's configuration that knows its Pods.
func Config() service.Config {
	cfg, err := service.Options{
		NodeName:     "node-a",
		NodeIPs:      []netip.Addr{netip.MustParseAddr("192.168.77.11"), netip.MustParseAddr("fd00:77::11")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:10:244::/48")},
	}.Config(nil, service.Host{
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.77.11"), netip.MustParseAddr("fd00:77::11")}, Uplinks: []string{"eth0"},
	})
	if err != nil {
		panic(err) // constants above
	}
	return cfg
}

func v4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
