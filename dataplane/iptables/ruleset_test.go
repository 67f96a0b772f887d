package iptables

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// fakeKernel holds chains as iptables-restore leaves them, and refuses what it
// refuses: jumps to chains that do not exist, and deleting one that is used.
type fakeKernel map[string]map[string][]string

func (k fakeKernel) apply(t *testing.T, d delta) {
	t.Helper()
	for table, chains := range map[string]map[string][]string{"nat": d.nat, "filter": d.filter} {
		for name, rules := range chains {
			if rules == nil {
				if _, ok := k[table][name]; !ok {
					t.Fatalf("delete of %s/%s, which does not exist", table, name)
				}
				delete(k[table], name)
			} else {
				k[table][name] = rules
			}
		}
		for name, rules := range k[table] {
			for _, rule := range rules {
				if to := jumpTarget(rule); len(to) > len(chainPrefix) && to[:len(chainPrefix)] == chainPrefix {
					if _, ok := k[table][to]; !ok {
						t.Fatalf("%s/%s jumps to %s, which does not exist", table, name, to)
					}
				}
			}
		}
	}
}

func newFakeKernel() fakeKernel {
	return fakeKernel{"nat": {}, "filter": {}}
}

// Whatever changes in whatever order, the kernel must end up with the chains
// that a fresh agent would write.
func TestPartialUpdatesEqualAFreshStart(t *testing.T) {
	for seed := range uint64(15) {
		gen := synth.NewRandom(seed)
		rng := rand.New(rand.NewPCG(seed, 3))
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(40))
		table := r.Table()
		grown := newRuleset(service.IPv4, &table.Node, testSettings)
		for name, res := range table.Services {
			grown.update(name, res)
		}
		kernel := newFakeKernel()
		kernel.apply(t, grown.flush())
		for step := range 150 {
			var c service.Changes
			for range 1 + rng.IntN(3) {
				svc := gen.Service(rng.IntN(50))
				switch rng.IntN(3) {
				case 0:
					c.Services = append(c.Services, svc)
				case 1:
					c.EndpointSlices = append(c.EndpointSlices, gen.Slice(svc, rng.IntN(3)))
				case 2:
					c.DeletedServices = append(c.DeletedServices, svc.Name)
				}
			}
			changed, _ := r.Apply(c)
			for _, name := range changed {
				grown.update(name, table.Services[name])
			}
			kernel.apply(t, grown.flush())
			settings := testSettings
			settings.watched = rng.IntN(4) == 0 // somebody begins to watch, or ends
			grown.setWatched(settings.watched)
			kernel.apply(t, grown.flush())
			fresh := newRuleset(service.IPv4, &table.Node, settings)
			for name, res := range table.Services {
				fresh.update(name, res)
			}
			want := newFakeKernel()
			want.apply(t, fresh.flush())
			if diff := cmp.Diff(want, kernel); diff != "" {
				t.Fatalf("seed %d, step %d, changed %v (-fresh +grown):\n%s", seed, step, changed, diff)
			}
		}
	}
}

func tableOf(tb testing.TB, services, endpoints int) *service.Table {
	tb.Helper()
	r := service.NewResolver(synth.Config())
	r.Apply(synth.Cluster(services, endpoints))
	return r.Table()
}

// compared returns the rules that a first packet to the i-th Service meets at
// most, until it is translated.
func compared(tb testing.TB, rules walk.Rules, node *service.NodeFacts, i int) int {
	tb.Helper()
	svc, _ := synth.Service(i, 1)
	out, err := rules.Walk(walk.Packet{
		Source:      netip.MustParseAddrPort("10.255.255.9:40000"),
		Destination: netip.AddrPortFrom(svc.ClusterIPs[0], 80), Protocol: 6, Interface: "veth0",
	}, walk.Node{Local: node.IsLocal})
	if err != nil {
		tb.Fatal(err)
	}
	most := 0
	for _, o := range out {
		if !o.Translated {
			tb.Fatalf("Service %d: %+v", i, o)
		}
		most = max(most, o.Compared)
	}
	return most
}

func TestDispatchGrowsWithTheLogarithm(t *testing.T) {
	worst := map[int]int{}
	for _, n := range []int{100, 1000, 10000} {
		table := tableOf(t, n, 1)
		rules := rulesOf(t, table, service.IPv4)
		for i := 0; i < n; i += max(1, n/500) {
			worst[n] = max(worst[n], compared(t, rules, &table.Node, i))
		}
		worst[n] = max(worst[n], compared(t, rules, &table.Node, n-1))
	}
	t.Logf("rules that a first packet meets at most, by number of Services: %v", worst)
	if worst[10000] > 3*worst[100] {
		t.Errorf("%d rules with 10,000 Services, more than 3 times the %d with 100", worst[10000], worst[100])
	}
}

func TestChoiceOfABackendGrowsWithTheLogarithm(t *testing.T) {
	for _, c := range []struct{ endpoints, most int }{{1, 1}, {8, 8}, {9, 5}, {100, 12}, {1000, 16}} {
		table := tableOf(t, 1, c.endpoints)
		rules := rulesOf(t, table, service.IPv4)
		base := tableOf(t, 1, 1)
		fixed := compared(t, rulesOf(t, base, service.IPv4), &base.Node, 0) - 1
		if c.endpoints > inlineBackends {
			fixed++ // the jump into the list's own chain
		}
		if got := compared(t, rules, &table.Node, 0) - fixed; got > c.most {
			t.Errorf("%d endpoints: %d comparisons to choose one, want at most %d", c.endpoints, got, c.most)
		}
	}
}

func TestAffinityAsksEveryListAndThenChooses(t *testing.T) {
	svc, slice := synth.Service(0, 12)
	svc.AffinityTimeout = 10 * 1e9
	r := service.NewResolver(synth.Config())
	r.Apply(service.Changes{Complete: true, Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}})
	rules := rulesOf(t, r.Table(), service.IPv4)
	p := walk.Packet{Source: netip.MustParseAddrPort("10.255.255.9:40000"), Destination: netip.AddrPortFrom(svc.ClusterIPs[0], 80), Protocol: 6, Interface: "veth0"}
	sp := &r.Table().Services[svc.Name].Ports[0]
	for _, b := range sp.Backends[service.ListCluster] {
		list := portChain(chainSep, sp, b.String())
		got, err := rules.Walk(p, walk.Node{Local: r.Table().Node.IsLocal, Remembered: func(name string) bool { return name == list }})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Destination != b.AddrPort {
			t.Errorf("remembered at %v: %+v", b, got)
		}
	}
	got, err := rules.Walk(p, walk.Node{Local: r.Table().Node.IsLocal})
	if err != nil || len(got) != 12 {
		t.Errorf("not remembered: %d outcomes, error %v; want all 12", len(got), err)
	}
}

func TestChangeWritesOnlyItsService(t *testing.T) {
	r := service.NewResolver(synth.Config())
	r.Apply(synth.Cluster(1000, 5))
	rs := newRuleset(service.IPv4, &r.Table().Node, testSettings)
	for name, res := range r.Table().Services {
		rs.update(name, res)
	}
	rs.flush()
	svc, _ := synth.Service(500, 5)
	changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{synth.Slice(svc, 5000, 5)}})
	for _, name := range changed {
		rs.update(name, r.Table().Services[name])
	}
	d := rs.flush()
	sp := &r.Table().Services[svc.Name].Ports[0]
	if got := slices.Collect(maps.Keys(d.nat)); len(got) != 1 || got[0] != portChain(chainSvc, sp) {
		t.Errorf("chains written: %v, want only %s", got, portChain(chainSvc, sp))
	}
	if len(d.filter) > 0 {
		t.Errorf("filter chains written: %v", d.filter)
	}
}

// Allocations of a change must not grow with the number of Services.
func TestChangeAllocations(t *testing.T) {
	perChange := func(n int) float64 {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(n, 5))
		rs := newRuleset(service.IPv4, &r.Table().Node, testSettings)
		for name, res := range r.Table().Services {
			rs.update(name, res)
		}
		rs.flush()
		svc, _ := synth.Service(n/2, 5)
		i := 0
		return testing.AllocsPerRun(50, func() {
			i++
			changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{synth.Slice(svc, n+i, 5)}})
			for _, name := range changed {
				rs.update(name, r.Table().Services[name])
			}
			rs.flush()
		})
	}
	few, many := perChange(100), perChange(10000)
	t.Logf("allocations of one change: %.0f beside 100 Services, %.0f beside 10,000", few, many)
	if many > few*1.1+5 {
		t.Errorf("one change makes %.0f allocations beside 10,000 Services, %.0f beside 100", many, few)
	}
}

func TestBatchesNeverLeadIntoAnUnfinishedChain(t *testing.T) {
	nat := map[string][]string{chainServices: {" -j NODEPROXY-0"}, "NODEPROXY-STALE": nil}
	for i := range 3 * maxBatch {
		nat[hashedName(chainSvc, string(rune(i)))] = []string{" -p tcp -j DNAT --to-destination 10.0.0.1:80"}
	}
	exists := func(chain string) bool { return chain == chainServices || chain == "NODEPROXY-STALE" }
	first, last := batches(nat, exists)
	if len(first) < 4 {
		t.Fatalf("%d transactions for %d chains", len(first), len(nat))
	}
	seen := map[string][]string{}
	for _, chains := range first {
		for name, rules := range chains {
			if exists(name) {
				t.Fatalf("%s, which packets come by, is written before the last transaction", name)
			}
			seen[name] = rules
		}
	}
	maps.Copy(seen, last)
	if diff := cmp.Diff(nat, seen); diff != "" {
		t.Errorf("after all transactions (-want +got):\n%s", diff)
	}
	if len(last) != 2 {
		t.Errorf("the last transaction holds %d chains, want 2", len(last))
	}
}
