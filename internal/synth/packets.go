package synth

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// Packets returns packets from every kind of source to every frontend, and
// some to none.
func Packets(rng *rand.Rand, table *service.Table) []service.Packet {
	sources := [2][]netip.Addr{
		addrs("10.128.0.9", "10.128.0.200", "10.128.7.7", "203.0.113.3", "203.0.113.77", "192.168.77.99"),
		addrs("fd00:128::9", "fd00:128::1:9", "2001:db8::5"),
	}
	var out []service.Packet
	add := func(to netip.AddrPort, proto service.Protocol, more ...netip.Addr) {
		f := service.FamilyOf(to.Addr())
		for _, src := range append(more, sources[f]...) {
			// What comes by the uplink is sent on by another interface, or back.
			in, leaves := "eth0", []string{"eth0", "eth1"}[len(out)%2]
			if pods.Contains(src) || pods6.Contains(src) {
				in, leaves = "veth7", "eth0"
			}
			out = append(out, service.Packet{Source: netip.AddrPortFrom(src, 40000), Destination: to, Protocol: proto, Interface: in, Leaves: leaves})
		}
		for _, src := range table.Node.Local[f] {
			out = append(out, service.Packet{Source: netip.AddrPortFrom(src, 40000), Destination: to, Protocol: proto})
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(table.Services), service.Name.Compare) {
		for _, sp := range table.Services[name].Ports {
			for _, fe := range sp.Frontends {
				to := []netip.Addr{fe.Addr}
				if fe.Kind == service.NodePort {
					to = localOf(table, sp.Family)
				}
				var backend []netip.Addr
				if all := sp.Backends[service.ListCluster]; len(all) > 0 {
					backend = append(backend, all[rng.IntN(len(all))].Addr())
				}
				for _, a := range to {
					for _, port := range portsOf(rng, &fe) {
						add(netip.AddrPortFrom(a, port), sp.Protocol, backend...)
					}
				}
			}
		}
	}
	for _, f := range service.Families { // ports that nobody has
		for _, to := range strangers(table, f) {
			for _, proto := range []service.Protocol{service.TCP, service.UDP} {
				add(netip.AddrPortFrom(to, 9), proto)
			}
		}
	}
	add(netip.MustParseAddrPort("10.96.255.255:80"), service.TCP)
	add(netip.MustParseAddrPort("192.168.77.11:22"), service.TCP)
	add(netip.MustParseAddrPort("[fd00:96::ffff]:80"), service.UDP)
	return out
}

// portsOf are a frontend's port, or some of a range: its ends and those beside
// them, one inside, and one that is another's.
func portsOf(rng *rand.Rand, fe *service.Frontend) []uint16 {
	if fe.LastPort == 0 {
		return []uint16{fe.Port}
	}
	out := []uint16{fe.Port, fe.LastPort, fe.Port - 1, fe.LastPort + 1, fe.Port + uint16(rng.IntN(int(fe.LastPort-fe.Port)+1))}
	return append(out, fe.Except[:min(1, len(fe.Except))]...)
}

var pods, pods6 = netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:128::/64")

func addrs(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range text {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// strangers are some addresses whose unknown ports are worth a try: a frontend's
// of each kind, and the node's own.
func strangers(table *service.Table, f service.Family) []netip.Addr {
	seen := map[service.Kind]bool{}
	out := localOf(table, f)
	for _, name := range slices.SortedFunc(maps.Keys(table.Services), service.Name.Compare) {
		for _, sp := range table.Services[name].Ports {
			for _, fe := range sp.Frontends {
				if sp.Family == f && fe.Kind != service.NodePort && !seen[fe.Kind] {
					seen[fe.Kind] = true
					out = append(out, fe.Addr)
				}
			}
		}
	}
	return out
}

// localOf are the node's addresses, and one of each network that is local.
func localOf(table *service.Table, f service.Family) []netip.Addr {
	out := slices.Clone(table.Node.Local[f])
	for _, n := range table.Node.LocalNetworks[f] {
		out = append(out, n.Addr().Next())
	}
	return out
}
