package netnstests

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// machinePort is a port of machines, at which no Service has anything.
const machinePort = 6443

// machines are places whose addresses a Service has besides.
var machines = []string{"node-a", "node-b", "client"}

// onMachines gives a Service the addresses of machines: those of the nodes as a
// balancer's, as k3s's ServiceLB does, and the client's as an externalIP.
func onMachines(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	var ingress []string
	for _, node := range lab.PlacesOf(lab.Node) {
		ingress = append(ingress, node.IPv4.String(), node.IPv6.String())
	}
	manifest.LoadBalancer(s, ingress...)
	client := lab.MustPlace("client")
	s.Spec.ExternalIPs = []string{client.IPv4.String(), client.IPv6.String()}
}

// eachWay calls a function with both protocols and families.
func eachWay(do func(network echo.Network, v6 bool)) {
	for _, network := range []echo.Network{echo.TCP, echo.UDP} {
		for _, v6 := range []bool{false, true} {
			do(network, v6)
		}
	}
}

// enoughFaults is how many faults a check looks for: some of them are time-outs.
const enoughFaults = 3

// askEach dials a port of places from places and returns what went wrong, up to
// enoughFaults: one of names has to answer. No names stand for the place that is
// dialled.
func askEach(t *testing.T, l *lab.Lab, from, to []string, port uint16, names ...string) (faults []error) {
	t.Helper()
	eachWay(func(network echo.Network, v6 bool) {
		for _, f := range from {
			for _, at := range to {
				if len(faults) >= enoughFaults {
					return
				}
				want := names
				if len(want) == 0 {
					want = []string{at}
				}
				dst := netip.AddrPortFrom(lab.MustPlace(at).Addr(v6), port)
				answer, err := l.Dial(t.Context(), f, network, dst)
				if err == nil && !slices.Contains(want, answer.Name) {
					err = fmt.Errorf("%q answered, want one of %q", answer.Name, want)
				}
				if err != nil {
					faults = append(faults, fmt.Errorf("%s to %s over %s: %w", f, dst, network, err))
				}
			}
		}
	})
	return faults
}

// TestMachinesAddresses: a Service has addresses that machines have. Only its
// own ports there are its own, also for what crosses a tunnel between the nodes
// (kubernetes #104679, k3s #5000).
func TestMachinesAddresses(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		for _, place := range machines {
			serve(t, l, place, machinePort, place)
		}
		addTunnel(t, l)
		everybody := append(slices.Clone(machines), strings.Fields(everyPod)...)
		if faults := append(askEach(t, l, everybody, machines, machinePort), crossTunnel(l)...); len(faults) > 0 {
			t.Fatalf("without an agent: %v", errors.Join(faults...))
		}
		shared := find("web")
		shared.edit = onMachines
		apply(t, l, shared)
		startAgents(t, l)
		c.judge(t, "ports of machines", slices.Concat(askEach(t, l, everybody, machines, machinePort), crossTunnel(l),
			askEach(t, l, everybody, strings.Fields(everyNode), 80, strings.Fields(everyPod)...),
			askEach(t, l, strings.Fields(everyPod+" "+everyNode), []string{"client"}, 80, strings.Fields(everyPod)...)))
	})
}

// tunnelIPs are the nodes' addresses inside the tunnel.
var tunnelIPs = map[string]string{"node-a": "10.9.9.1", "node-b": "10.9.9.2"}

// addTunnel joins the nodes by vxlan at the port that Linux's overlays use.
func addTunnel(t *testing.T, l *lab.Lab) {
	t.Helper()
	for node, other := range map[string]string{"node-a": "node-b", "node-b": "node-a"} {
		inPlace(t, l, node, "ip", "link", "add", "vx0", "type", "vxlan", "id", "9", "dstport", "8472", "dev", "eth0",
			"local", lab.MustPlace(node).IPv4.String(), "remote", lab.MustPlace(other).IPv4.String())
		inPlace(t, l, node, "ip", "addr", "add", tunnelIPs[node]+"/24", "dev", "vx0")
		inPlace(t, l, node, "ip", "link", "set", "vx0", "up")
	}
}

// crossTunnel pings node-b through the tunnel.
func crossTunnel(l *lab.Lab) []error {
	if err := ping(l, "node-a", netip.MustParseAddr(tunnelIPs["node-b"])); err != nil {
		return []error{fmt.Errorf("through vxlan: %w", err)}
	}
	return nil
}
