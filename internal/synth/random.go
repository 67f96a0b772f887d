package synth

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// Random makes small clusters in which every field that a node proxy reads
// takes every kind of value sooner or later. Equal seeds make equal clusters.
type Random struct {
	rng *rand.Rand
}

// NewRandom returns a generator.
func NewRandom(seed uint64) *Random {
	return &Random{rand.New(rand.NewPCG(seed, 1))}
}

func (r *Random) chance(p float64) bool { return r.rng.Float64() < p }

func pick[T any](r *Random, of ...T) T { return of[r.rng.IntN(len(of))] }

// addr returns one of n addresses of a network, few enough to meet again.
func (r *Random) addr(f service.Family, third, n int) netip.Addr {
	host := r.rng.IntN(n) + 1
	if f == service.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", third, host))
	}
	return netip.AddrFrom4([4]byte{10, byte(third), byte(host >> 8), byte(host)})
}

// Networks of the addresses that Random hands out, as the second byte of an
// IPv4 address or the second group of an IPv6 one.
const (
	clusterNet, podNet, externalNet = 96, 128, 200
)

// Networks are local by a route at the node of [Random.Config].
var Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("fd00:192::/124")}

// Config returns a configuration for node-a.
func (r *Random) Config() service.Config {
	local := []netip.Addr{netip.MustParseAddr("192.168.77.11"), netip.MustParseAddr("192.168.90.1"),
		netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:77::11"), netip.MustParseAddr("fe80::1")}
	opts := service.Options{
		NodeName: "node-a", MasqueradeAll: r.chance(0.1), LocalhostNodePorts: r.chance(0.5),
		NodePortAddresses: pick(r, nil, nil, []string{"primary"}, []string{"192.168.90.0/24"}, []string{"all"}),
		DetectLocalMode:   pick(r, service.DetectClusterCIDR, service.DetectClusterCIDR, service.DetectInterfaceNamePrefix),
	}
	if r.chance(0.2) {
		opts.ExternalIPCIDRs = []netip.Prefix{netip.MustParsePrefix("10.200.0.0/30"), netip.MustParsePrefix("fd00:200::/126")}
	}
	if opts.DetectLocalMode == service.DetectInterfaceNamePrefix {
		opts.InterfaceNamePrefix = "veth"
	} else if r.chance(0.8) {
		opts.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:128::/64")}
	}
	cfg, err := opts.Config(&service.Node{
		Name: "node-a", Addresses: local[:1], Zone: pick(r, "", "zone-1", "zone-2"),
	}, service.Host{
		Addresses: local, Uplinks: []string{"eth0"},
		Networks: Networks,
	})
	if err != nil {
		panic(err) // the choices above are valid
	}
	return cfg
}

// Cluster returns a complete state of about n Services.
func (r *Random) Cluster(n int) service.Changes {
	c := service.Changes{Complete: true}
	for i := range n {
		svc := r.Service(i)
		c.Services = append(c.Services, svc)
		for j := range r.rng.IntN(4) {
			c.EndpointSlices = append(c.EndpointSlices, r.Slice(svc, j))
		}
	}
	r.rng.Shuffle(len(c.Services), func(i, j int) { c.Services[i], c.Services[j] = c.Services[j], c.Services[i] })
	return c
}

// Service returns a Service whose name is made of i.
func (r *Random) Service(i int) *service.Service {
	svc := &service.Service{
		Name:    service.Name{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)},
		Created: time.Unix(int64(r.rng.IntN(3)), 0).UTC(),
		Type:    pick(r, service.TypeClusterIP, service.TypeNodePort, service.TypeLoadBalancer),
	}
	families := pick(r, []service.Family{service.IPv4}, []service.Family{service.IPv6},
		[]service.Family{service.IPv4, service.IPv6}, []service.Family{service.IPv6, service.IPv4})
	for _, f := range families {
		svc.ClusterIPs = append(svc.ClusterIPs, r.addr(f, clusterNet, 5000))
	}
	for range r.rng.IntN(3) {
		svc.ExternalIPs = append(svc.ExternalIPs, r.addr(pick(r, families...), externalNet, 6))
	}
	if r.chance(0.05) { // perhaps another Service's ClusterIP
		svc.ExternalIPs = append(svc.ExternalIPs, r.addr(pick(r, families...), clusterNet, 5000))
	}
	if r.chance(0.15) {
		svc.Annotations = map[string]string{
			"nodeproxy.io/port-range": pick(r, "70-80", "81-81", "1000-3000", "30000-30020", "90-80"),
		}
	}
	if r.chance(0.1) {
		svc.Annotations = map[string]string{"nodeproxy.io/algorithm": pick(r, "maglev", "random", "best")}
	}
	for range r.rng.IntN(3) {
		svc.Ingress = append(svc.Ingress, service.Ingress{Addr: r.addr(pick(r, families...), externalNet, 6), Proxy: r.chance(0.2)})
	}
	if r.chance(0.3) {
		svc.SourceRanges = pick(r,
			[]netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")},
			[]netip.Prefix{netip.MustParsePrefix("10.128.0.0/24"), netip.MustParsePrefix("192.168.77.0/24")},
			[]netip.Prefix{netip.MustParsePrefix("fd00:128::/120"), netip.MustParsePrefix("203.0.113.4/32")})
	}
	svc.InternalPolicy = pick(r, service.PolicyCluster, service.PolicyCluster, service.PolicyLocal)
	svc.ExternalPolicy = pick(r, service.PolicyCluster, service.PolicyLocal)
	if r.chance(0.2) {
		svc.AffinityTimeout = 10 * time.Second
	}
	if svc.Type == service.TypeLoadBalancer && svc.ExternalPolicy == service.PolicyLocal {
		svc.HealthCheckNodePort = uint16(32000 + i)
	}
	for p := range 1 + r.rng.IntN(2) {
		svc.Ports = append(svc.Ports, service.Port{
			Name: fmt.Sprintf("p%d", p), Protocol: pick(r, service.TCP, service.TCP, service.UDP, service.SCTP),
			Port: uint16(80 + p), NodePort: uint16(pick(r, 0, 30000+r.rng.IntN(50))),
		})
	}
	return svc
}

// Slice returns the j-th EndpointSlice of a Service.
func (r *Random) Slice(svc *service.Service, j int) *service.EndpointSlice {
	slice := &service.EndpointSlice{
		Name:    service.Name{Namespace: svc.Name.Namespace, Name: fmt.Sprintf("%s-%d", svc.Name.Name, j)},
		Service: svc.Name.Name,
		Family:  service.FamilyOf(pick(r, svc.ClusterIPs...)),
	}
	for _, p := range svc.Ports {
		slice.Ports = append(slice.Ports, service.EndpointPort{Name: p.Name, Protocol: p.Protocol, Number: uint16(8080 + j%2)})
	}
	hints := r.chance(0.3)
	weights := map[string]int{}
	for range pick(r, 0, 1, 2, 3, 3, 12) {
		ep := service.Endpoint{
			Addr: r.addr(slice.Family, podNet, 60), NodeName: pick(r, "node-a", "node-b", ""),
			Ready: r.chance(0.7), Serving: r.chance(0.8), Terminating: r.chance(0.3),
		}
		zones, nodes := []string(nil), []string(nil)
		if hints && r.chance(0.9) {
			zones = pick(r, []string{"zone-1"}, []string{"zone-2"}, []string{"zone-1", "zone-2"})
		}
		if hints && r.chance(0.5) {
			nodes = pick(r, []string{"node-a"}, []string{"node-b"})
		}
		if zones != nil || nodes != nil {
			ep.Hints = &service.Hints{Zones: zones, Nodes: nodes}
		}
		slice.Endpoints = append(slice.Endpoints, ep)
		weights[ep.Addr.String()] = pick(r, 0, 1, 2, 3, 10)
	}
	if r.chance(0.2) {
		text, err := json.Marshal(weights)
		if err != nil {
			panic(err) // a map of numbers
		}
		slice.Weights = string(text)
	}
	return slice
}
