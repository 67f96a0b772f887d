package bench

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeproxy/nodeproxy/bench/load"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

const (
	// maxServices is how many Services the address plan has room for.
	maxServices = 200000
	portIPerf   = 5202 // of servers of our own, beside the lab's
	portIPerf2  = 5001
	// churned is how many Services beside the used one change during a churn.
	churned = 20
)

// endpointCounts are the sizes of Services that can be used.
var endpointCounts = []int{1, 10, 100, 1000}

// used is a Service that work goes through.
type used struct {
	endpoints int
	position  string
}

// usedBy returns the Services that a group of steps needs.
func usedBy(g Group) []used {
	var out []used
	seen := map[used]bool{}
	for _, s := range g.Data {
		u := used{s.Endpoints, s.Position}
		if s.Column != Bare && !seen[u] {
			seen[u] = true
			out = append(out, u)
		}
	}
	return out
}

// index tells used Services apart: in addresses and node ports.
func (u used) index() int {
	i := 0
	for j, n := range endpointCounts {
		if n == u.endpoints {
			i = j
		}
	}
	if u.position == Last {
		i += len(endpointCounts)
	}
	return i
}

func (u used) nodePort() int32 { return 31000 + 10*int32(u.index()) }

func (u used) clusterIP(family int) netip.Addr {
	base := firstServices[v6(family)]
	if u.position == Last {
		base = lastServices[v6(family)]
	}
	return plus(base, u.index())
}

func (u used) externalIP(family int) netip.Addr { return plus(externalIPs[v6(family)], u.index()) }

// Addresses, IPv4 first. Services are in the order of their addresses and of
// their names: used ones at the start, fillers, used ones at the end.
var (
	firstServices = addrs("10.96.0.100", "fd00:10:96::100")
	fillers       = addrs("10.97.0.0", "fd00:10:96::1:0")
	lastServices  = addrs("10.111.255.100", "fd00:10:96::ff:100")
	changed       = addrs("10.111.255.200", "fd00:10:96::ff:200")
	externalIPs   = addrs("198.51.100.100", "fd00:198::100")
	// Endpoints of fillers answer nobody.
	fillerPods = addrs("10.128.0.0", "fd00:10:128::")
	// pods and detourPods are addresses of pod-b1 beside its own; see routes.go.
	pods       = addrs("10.244.64.1", "fd00:10:244:40::1")
	detourPods = addrs("10.244.80.1", "fd00:10:244:50::1")
	// serviceCIDRs hold all of the Services'.
	serviceCIDRs = []string{"10.96.0.0/12", "fd00:10:96::/96"}
)

func addrs(v4, v6 string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// v6 is the index of a family's address.
func v6(family int) int {
	if family == 6 {
		return 1
	}
	return 0
}

// plus returns the n-th address after a; n is less than 2^24.
func plus(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	out, _ := netip.AddrFromSlice(b) // has the length of an address
	return out
}

// objects returns all Services of a group, in the order of their names, with
// their EndpointSlices, but for those that change during the run.
func objects(g Group, o Options) []any {
	var first, last []any
	services := usedBy(g)
	for _, u := range services {
		if u.position == First {
			first = append(first, usedObjects(u, g.Family)...)
		} else {
			last = append(last, usedObjects(u, g.Family)...)
		}
	}
	out := first
	beside := len(services)
	if len(g.Control) > 0 {
		beside += 1 + churned
	}
	for i := range max(0, g.Services-beside) {
		out = append(out, filler(i, g.Family, o.FillerEndpoints)...)
	}
	return append(out, last...)
}

func usedObjects(u used, family int) []any {
	tcp, udp := manifest.TCP("connect", load.PortConnect, load.PortConnect), manifest.UDP("datagram", load.PortConnect, load.PortConnect)
	ports := []corev1.ServicePort{manifest.WithNodePort(tcp, u.nodePort()), manifest.WithNodePort(udp, u.nodePort()),
		manifest.WithNodePort(manifest.TCP("request", load.PortRequest, load.PortRequest), u.nodePort()+3)}
	if u.endpoints == 1 {
		tcp, udp := manifest.TCP("iperf", portIPerf, portIPerf), manifest.UDP("iperf-udp", portIPerf, portIPerf)
		ports = append(ports, manifest.WithNodePort(tcp, u.nodePort()+1), manifest.WithNodePort(udp, u.nodePort()+1),
			manifest.WithNodePort(manifest.TCP("iperf2", portIPerf2, portIPerf2), u.nodePort()+2))
	}
	name := map[string]string{First: "a-first", Last: "z-last"}[u.position]
	svc := manifest.Service(fmt.Sprintf("%s-%d", name, u.endpoints), u.clusterIP(family).String(), ports...)
	svc.Spec.ExternalIPs = []string{u.externalIP(family).String()}
	var endpoints []manifest.Endpoint
	for i := range u.endpoints {
		endpoints = append(endpoints, manifest.NewEndpoint("", "node-b", plus(pods[v6(family)], i).String()))
	}
	return manifest.WithEndpoints(svc, endpoints...)
}

// filler is the i-th Service that nobody uses.
func filler(i, family, endpoints int) []any {
	svc := manifest.Service(fmt.Sprintf("filler-%06d", i), plus(fillers[v6(family)], i).String(), manifest.TCP("http", 80, 8080))
	return manifest.WithEndpoints(svc, fillerEndpoints(i, family, endpoints)...)
}

func fillerEndpoints(i, family, n int) []manifest.Endpoint {
	var out []manifest.Endpoint
	for j := range n {
		node := [2]string{"node-a", "node-b"}[j%2]
		out = append(out, manifest.NewEndpoint("", node, plus(fillerPods[v6(family)], i*n+j+1).String()))
	}
	return out
}

// changing is a Service that changes during the run: the last one, which is
// probed, of index -1, or one of those that change beside it.
func changing(i int, endpoints ...manifest.Endpoint) []any {
	if i < 0 {
		return manifest.WithEndpoints(manifest.Service("zz-changing", changed[0].String(), manifest.TCP("echo", echo.PortEcho, echo.PortEcho)), endpoints...)
	}
	svc := manifest.Service(fmt.Sprintf("y-churned-%02d", i), plus(changed[0], i+1).String(), manifest.TCP("http", 80, 8080))
	return manifest.WithEndpoints(svc, endpoints...)
}

// target returns who dials what for a step.
func target(k Key) (from string, to netip.AddrPort) {
	port, offset := uint16(load.PortConnect), int32(0)
	switch {
	case k.Work == WorkRequest:
		port, offset = load.PortRequest, 3
	case k.Work == WorkIPerf2:
		port, offset = portIPerf2, 2
	case isIPerf(k.Work):
		port, offset = portIPerf, 1
	}
	from = "client"
	if k.Path == PathCluster {
		from = "pod-a1"
	}
	if k.Column == Bare {
		addr := pods[v6(k.Family)]
		if k.Path == PathNodePortRemote || k.Path == PathExternal {
			addr = detourPods[v6(k.Family)]
		}
		return from, netip.AddrPortFrom(addr, port)
	}
	u := used{k.Endpoints, k.Position}
	node := "node-b"
	switch k.Path {
	case PathCluster:
		return from, netip.AddrPortFrom(u.clusterIP(k.Family), port)
	case PathExternal:
		return from, netip.AddrPortFrom(u.externalIP(k.Family), port)
	case PathNodePortRemote:
		node = "node-a"
	}
	return from, netip.AddrPortFrom(lab.MustPlace(node).Addr(k.Family == 6), uint16(u.nodePort()+offset))
}
