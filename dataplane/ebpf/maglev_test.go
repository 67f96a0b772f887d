package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/service"
)

// weighed makes backends 10.244.1.1 upwards with these weights.
func weighed(weights ...uint16) []service.Backend {
	var out []service.Backend
	for i, w := range weights {
		ap := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, byte(i + 1)}), 8080)
		out = append(out, service.Backend{AddrPort: ap, Weight: w})
	}
	return out
}

func slotCounts(table []int, n int) []int {
	out := make([]int, n)
	for _, b := range table {
		out[b]++
	}
	return out
}

// Weights are exact, but for the slots that do not come out even.
func TestP36MaglevSlots(t *testing.T) {
	for _, weights := range [][]uint16{{1}, {1, 3}, {0, 0, 0}, {100, 1}, {5, 7, 1, 1, 1}, make([]uint16, 200)} {
		backends := weighed(weights...)
		sum := service.Shares(backends)
		for i, got := range slotCounts(maglevTable(backends), len(backends)) {
			exact := maglevSlots * backends[i].Shares() / sum
			if got != exact && got != exact+1 {
				t.Errorf("weights %v: backend %d has %d slots, want %d or one more", weights, i, got, exact)
			}
		}
	}
}

// When a backend goes, the others keep nearly all of their slots; and when one
// comes, it takes little more than its share.
func TestP36MaglevKeepsSlots(t *testing.T) {
	all := weighed(make([]uint16, 50)...)
	before := maglevTable(all)
	without := append(append([]service.Backend{}, all[:20]...), all[21:]...)
	after := maglevTable(without)
	moved, freed := 0, 0
	for i, b := range before {
		switch {
		case b == 20:
			freed++
		case all[b] != without[after[i]]:
			moved++
		}
	}
	if limit := maglevSlots / 20; moved > limit {
		t.Errorf("%d of %d slots moved besides the %d of the backend that went, want %d at most", moved, maglevSlots, freed, limit)
	}
	t.Logf("%d slots freed, %d others moved (%.1f %%)", freed, moved, 100*float64(moved)/maglevSlots)
}

// Only slots that change are written, in place, and the frontend is not.
func TestMaglevIsWrittenAsADelta(t *testing.T) {
	table := func(backends []service.Backend) *service.Table {
		name := service.Name{Namespace: "default", Name: "web"}
		sp := service.ServicePort{Name: service.PortName{Name: name, Protocol: service.TCP}, Protocol: service.TCP,
			Algorithm: service.Maglev, Backends: [2][]service.Backend{backends}}
		route := service.Route{}
		sp.Frontends = []service.Frontend{{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Routes: [3]service.Route{route, route, route}}}
		return &service.Table{Services: map[service.Name]*service.Resolved{name: {Name: name, Ports: []service.ServicePort{sp}}}}
	}
	p := newPlanner(16)
	sync := func(backends []service.Backend) map[mapID]int {
		t.Helper()
		table := table(backends)
		writes, err := p.planChanged(table, []service.Name{{Namespace: "default", Name: "web"}})
		if err != nil {
			t.Fatal(err)
		}
		n := map[mapID]int{}
		for _, w := range writes {
			n[w.m]++
			p.kernel.took(w)
			for i := range uint32(maglevSlots) { // after every write, every slot has some backend
				if _, ok := p.kernel.backends[bpfBackendKey{Slot: i}]; !ok && len(p.kernel.frontends) > 0 && w.m == mapFrontends {
					t.Fatalf("slot %d is empty", i)
				}
			}
		}
		return n
	}
	if n := sync(weighed(make([]uint16, 20)...)); n[mapBackends] != maglevSlots || n[mapFrontends] != 1 {
		t.Errorf("at first: writes %v", n)
	}
	n := sync(weighed(make([]uint16, 19)...))
	if n[mapFrontends] != 0 || n[mapBackends] > maglevSlots/10 || n[mapBackends] < maglevSlots/20 {
		t.Errorf("one backend of 20 went: %d slots and %d frontends written", n[mapBackends], n[mapFrontends])
	}
	if n := sync(weighed(make([]uint16, 19)...)); len(n) > 0 {
		t.Errorf("no change: writes %v", n)
	}
}

// TestP36Spread begins 100,000 flows through the programs and tests the spread
// with chi-square: equal weights, weights 1:3, and a Maglev table.
func TestP36Spread(t *testing.T) {
	j := newJudged(t)
	const flows = 100_000
	for _, c := range []struct {
		name      string
		algorithm service.Algorithm
		weights   []uint16
	}{
		{"10 equal", service.Random, make([]uint16, 10)},
		{"1 to 3", service.Random, []uint16{1, 3}},
		{"10 equal by maglev", service.Maglev, make([]uint16, 10)},
		{"1 to 3 by maglev", service.Maglev, []uint16{1, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			backends := weighed(c.weights...)
			table := j.n.table(svc{name: "spread"})
			for _, res := range table.Services {
				sp := &res.Ports[0]
				sp.Algorithm, sp.Backends[service.ListCluster] = c.algorithm, backends
				for i := range sp.Frontends {
					sp.Frontends[i].Routes = [3]service.Route{}
				}
			}
			// Chance alone fails one try in a hundred.
			var chi float64
			for try := 0; try < 3 && (try == 0 || chi > chiSquare99[len(backends)-1]); try++ {
				chi = chiSquare(t, backends, j.spread(t, table, len(backends), flows), flows)
			}
			if limit := chiSquare99[len(backends)-1]; chi > limit {
				t.Errorf("chi-square %.1f is above %.1f", chi, limit)
			}
		})
	}
}

// spread begins flows from many clients and counts them by backend.
func (j *judged) spread(t *testing.T, table *service.Table, backends, flows int) []int {
	t.Helper()
	seen := make([]int, backends)
	interrupted := slowness / 4 // see probeProgram: of stock kernels only
	p := service.Packet{Protocol: service.TCP, Interface: "eth0", Destination: netip.MustParseAddrPort(vip[0] + ":80")}
	for begun := 0; begun < flows; {
		j.take(t, table) // forgets all flows
		in(t, j.n.node, func() error {
			for range 20_000 {
				host := begun / 200
				p.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(host >> 8), byte(host)}), 1)
				got, err := j.try(p)
				if err != nil {
					return fmt.Errorf("flow %d: %w", begun, err)
				}
				if got.what != "translated" && interrupted > 0 {
					interrupted--
					continue
				}
				if got.what != "translated" {
					m, err := j.d.Metrics()
					return errors.Join(err, fmt.Errorf("flow %d: %v; packets by reason: %v", begun, got, m))
				}
				seen[got.to.Addr().As4()[3]-1]++
				begun++
			}
			return nil
		})
	}
	return seen
}

// chiSquare99 is the 99 % quantile of the chi-square distribution, by degrees
// of freedom.
var chiSquare99 = map[int]float64{1: 6.635, 9: 21.666}

// chiSquare compares a spread with weights; none may be off by two percent.
func chiSquare(t *testing.T, backends []service.Backend, seen []int, flows int) float64 {
	t.Helper()
	sum, chi := service.Shares(backends), 0.0
	for i, b := range backends {
		want := float64(flows) * float64(b.Shares()) / float64(sum)
		d := float64(seen[i]) - want
		chi += d * d / want
		if d > 0.02*float64(flows) || d < -0.02*float64(flows) {
			t.Errorf("backend %d got %d of %d flows, want %.0f", i, seen[i], flows, want)
		}
	}
	t.Logf("chi-square %.2f: %v", chi, seen)
	return chi
}
