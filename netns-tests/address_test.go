package netnstests

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestLoopbackIngressIsNotTaken: a balancer wrote loopback addresses into a
// status, as minikube's did (minikube #23061). What listens there is asked, and
// the Service is served at its other addresses.
func TestLoopbackIngressIsNotTaken(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		broken := find("web")
		broken.edit = func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
			for _, ip := range []string{"127.0.0.1", "::1"} {
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
			}
		}
		apply(t, l, broken)
		startAgents(t, l)
		for _, to := range []string{"127.0.0.1:80", "[::1]:80"} {
			answer, err := l.Dial(t.Context(), "node-a", echo.TCP, netip.MustParseAddrPort(to))
			if err == nil {
				t.Errorf("%s answered at %s, where nobody listens", answer.Name, to)
			}
		}
		checkAnswers(t, l, "web", everyPod)
		runScenarios(t, l, []scenario{
			{name: "the other addresses", from: "client pod-a1", to: "web balancer, web external, web node-a", want: everyPod, source: masked},
		})
		if log := l.AgentLog("node-a"); strings.Count(log, "LoadBalancerIPRefused") != 2 {
			t.Errorf("the agent does not say once of each address that it is refused:\n%s", log)
		}
	})
}

// routedAddrs are local to node-a by a route alone: a network and an address of
// each family.
var routedAddrs = map[string]netip.Addr{
	"203.0.113.0/28": netip.MustParseAddr("203.0.113.5"), "203.0.114.7/32": netip.MustParseAddr("203.0.114.7"),
	"fd00:203::/124": netip.MustParseAddr("fd00:203::5"), "fd00:204::7/128": netip.MustParseAddr("fd00:204::7"),
}

// TestLocalByARouteAlone: node ports are served at addresses that no interface
// has (cilium #24481), also when the route comes and goes while the agent runs.
func TestLocalByARouteAlone(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		startAgents(t, l)
		for dst, addr := range routedAddrs {
			routeBy(t, l, addr, "node-a")
			inPlace(t, l, "node-a", "ip", "route", "add", "local", dst, "dev", "lo")
		}
		for _, addr := range routedAddrs {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				for _, from := range []string{"client", "pod-b1", "node-b"} {
					eventually(t, patience, func() error {
						_, err := l.Dial(t.Context(), from, network, netip.AddrPortFrom(addr, 30001))
						return err
					})
				}
			}
		}
		if !c.Sockets && c.Mode == lab.ModeEBPF {
			return // what a node sends to itself passes no program
		}
		for dst, addr := range routedAddrs {
			to := netip.AddrPortFrom(addr, 30001)
			eventually(t, patience, func() error {
				_, err := l.Dial(t.Context(), "node-a", echo.TCP, to)
				return err
			})
			inPlace(t, l, "node-a", "ip", "route", "del", "local", dst, "dev", "lo")
			eventually(t, patience, func() error {
				if answer, err := l.Dial(t.Context(), "client", echo.TCP, to); err == nil {
					return fmt.Errorf("%s answered at %s, which is not local any more", answer.Name, to)
				}
				return nil
			})
		}
	})
}
