package netnstests

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP36Weights dials a Service whose endpoints weigh 1 and 3, from outside and
// from a Pod. That shares are exact is tested on rules and maps; this is that
// they arrive.
func TestP36Weights(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("weights"))
		startAgents(t, l)
		for _, from := range []string{"client", "pod-a2"} {
			remote, err := l.Dialer(from)
			if err != nil {
				t.Fatal(err)
			}
			const dials = 1200
			seen := map[string]int{}
			for i := range dials {
				_, to := parseTarget("weights external", i%2 == 1)
				answer, err := remote.Dial(t.Context(), echo.Request{Network: echo.TCP, To: to})
				if err != nil {
					t.Fatal(err)
				}
				seen[answer.Name]++
			}
			// Five times the standard deviation, which is 15.
			if n := seen["pod-b1"]; n < dials*3/4-75 || n > dials*3/4+75 || n+seen["pod-a1"] != dials {
				t.Errorf("%s: %v, want 3 of 4 at pod-b1", from, seen)
			}
		}
	})
}

// TestMaglevIsConsistent checks that both nodes lead a flow to the same
// endpoint, which is what Maglev is for: a router may send it to either.
func TestMaglevIsConsistent(t *testing.T) {
	eachEBPF(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("maglev"))
		startAgents(t, l)
		remote, err := l.Dialer("client")
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for i := range 60 {
			_, to := parseTarget("maglev external", i%2 == 1)
			var names []string
			for _, node := range []string{"node-a", "node-b"} {
				routeBy(t, l, to.Addr(), node)
				from := netip.AddrPortFrom(lab.MustPlace("client").Addr(to.Addr().Is6()), uint16(21000+i))
				answer, err := remote.Dial(t.Context(), echo.Request{Network: echo.UDP, To: to, From: from})
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, answer.Name)
			}
			if names[0] != names[1] {
				t.Errorf("port %d: %s by node-a, %s by node-b", 21000+i, names[0], names[1])
			}
			seen[names[0]] = true
		}
		if len(seen) < len(lab.PlacesOf(lab.Pod)) {
			t.Errorf("only %v were reached", seen)
		}
	})
}

// routeBy has the router lead an address to a node.
func routeBy(t *testing.T, l *lab.Lab, to netip.Addr, node string) {
	t.Helper()
	err := l.Do("router", func() error {
		via := lab.MustPlace(node).Addr(to.Is6())
		return netlink.RouteReplace(&netlink.Route{Dst: ipNet(netip.PrefixFrom(to, to.BitLen())), Gw: via.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
}
