package ebpf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/service"
)

// serviceSpec is a Service in short, for tests.
type serviceSpec struct {
	name     string
	vip      string
	nodePort uint16
	cluster  []string // addr:port
	local    []string
	filtered []string // source ranges of an LB frontend at 198.51.100.N, where set
	lb       string
	affinity time.Duration
	proto    service.Protocol
}

func (s serviceSpec) resolve() *service.Resolved {
	name := service.Name{Namespace: "default", Name: s.name}
	proto := s.proto
	if proto == 0 {
		proto = service.TCP
	}
	sp := service.ServicePort{
		Name:     service.PortName{Name: name, Port: "p", Protocol: proto},
		Protocol: proto, AffinityTimeout: s.affinity,
	}
	action := service.Translate
	if len(s.cluster) == 0 {
		action = service.Reject
	}
	if s.vip != "" {
		addr := netip.MustParseAddr(s.vip)
		sp.Family = service.FamilyOf(addr)
		route := service.Route{Action: action}
		masq := route
		masq.Masquerade = action == service.Translate
		sp.Frontends = append(sp.Frontends, service.Frontend{Kind: service.ClusterIP, Addr: addr, Port: 80,
			Routes: [3]service.Route{route, masq, masq}})
	}
	if s.lb != "" {
		masq := service.Route{Action: action, Masquerade: action == service.Translate}
		f := service.Frontend{Kind: service.LoadBalancer, Addr: netip.MustParseAddr(s.lb), Port: 80,
			Routes: [3]service.Route{masq, masq, masq}}
		for _, r := range s.filtered {
			f.Filtered = true
			f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(r))
		}
		sp.Frontends = append(sp.Frontends, f)
	}
	if s.nodePort != 0 {
		masq := service.Route{Action: action, Masquerade: action == service.Translate}
		sp.Frontends = append(sp.Frontends, service.Frontend{Kind: service.NodePort, Port: s.nodePort,
			Routes: [3]service.Route{masq, masq, masq}})
	}
	for _, e := range s.cluster {
		ap := netip.MustParseAddrPort(e)
		local := slices.Contains(s.local, e)
		sp.Backends[service.ListCluster] = append(sp.Backends[service.ListCluster], service.Backend{AddrPort: ap, Local: local})
		if local {
			sp.Backends[service.ListLocal] = append(sp.Backends[service.ListLocal], service.Backend{AddrPort: ap, Local: true})
		}
		sp.Serving = append(sp.Serving, ap)
	}
	return &service.Resolved{Name: name, Ports: []service.ServicePort{sp}}
}

func tableOf(specs ...serviceSpec) *service.Table {
	t := &service.Table{Services: map[service.Name]*service.Resolved{}}
	t.Node.Local[0] = []netip.Addr{netip.MustParseAddr("192.168.77.11")}
	t.Node.NodePorts[0] = service.NodePortAddresses{All: true, Loopback: true}
	for _, s := range specs {
		r := s.resolve()
		t.Services[r.Name] = r
	}
	return t
}

// fakeMaps are maps in memory that can be told to fail.
type fakeMaps struct {
	*contents
	failAt int // refuse this write, counted from 1; 0 for none
	writes int
	after  func()
}

var errRefused = errors.New("refused")

func (f *fakeMaps) write(w write) error {
	f.writes++
	if f.writes == f.failAt {
		return errRefused
	}
	f.took(w)
	if f.after != nil {
		f.after()
	}
	return nil
}

func clone(c *contents) *contents {
	n := newContents()
	copyInto(n.frontends, c.frontends)
	copyInto(n.backends, c.backends)
	copyInto(n.members, c.members)
	copyInto(n.ranges, c.ranges)
	copyInto(n.addresses, c.addresses)
	copyInto(n.ports, c.ports)
	copyInto(n.services, c.services)
	copyInto(n.names, c.names)
	n.node = c.node
	return n
}

func copyInto[K comparable, V any](to, from map[K]V) {
	for k, v := range from {
		to[k] = v
	}
}

// answer is what a packet to a destination meets, as frontend.h finds it.
func (c *contents) answer(dst netip.AddrPort, proto service.Protocol, src service.Source) string {
	use := c.ports[uint32(dst.Port())]
	key := bpfFrontendKey{Addr: mapAddr(dst.Addr()), Port: networkPort(dst.Port()), Proto: uint8(proto)}
	fe, ok := bpfFrontend{}, false
	if use&portBit(proto, false) != 0 {
		fe, ok = c.frontends[key]
	}
	if !ok && use&portBit(proto, true) != 0 && c.addresses[key.Addr]&uint32(bpfAddressFlagADDRESS_NODEPORT) != 0 {
		key.Addr = anyAddr(service.FamilyOf(dst.Addr()))
		fe, ok = c.frontends[key]
	}
	if !ok {
		return "none"
	}
	route := fe.Route[src]
	if action := service.Action(route & uint8(bpfRouteROUTE_ACTION)); action != service.Translate {
		return action.String()
	}
	first, n := uint32(0), fe.Count[0]
	if route&uint8(bpfRouteROUTE_LOCAL) != 0 {
		first, n = fe.Count[0], fe.Count[1]
	}
	var set []string
	for i := range n {
		b, ok := c.backends[bpfBackendKey{Service: fe.Service, Generation: fe.Generation, Slot: first + i}]
		if !ok {
			return "HOLE"
		}
		set = append(set, fmt.Sprintf("%s:%d", unmapAddr(b.Addr), networkPort(b.Port)))
	}
	out := fmt.Sprint(set)
	if fe.Flags&uint8(bpfFrontendFlagFRONTEND_FILTERED) != 0 {
		ranges := 0
		for k := range c.ranges {
			if k.Service == fe.Service {
				ranges++
			}
		}
		if ranges == 0 {
			out += " unreachable"
		}
	}
	return out
}

// destinations are those that the states below have.
var destinations = []string{"10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80", "[fd00:96::1]:80",
	"198.51.100.1:80", "192.168.77.11:30080", "192.168.77.11:30081"}

func answers(c *contents) map[string]string {
	out := map[string]string{}
	for _, d := range destinations {
		for _, src := range []service.Source{service.FromPod, service.FromOutside} {
			out[d+" from "+src.String()] = c.answer(netip.MustParseAddrPort(d), service.TCP, src)
		}
	}
	return out
}

// states are the tables that transitions lead between.
func states() []*service.Table {
	pods := func(from, n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("10.244.1.%d:8080", from+i))
		}
		return out
	}
	return []*service.Table{
		tableOf(),
		tableOf(serviceSpec{name: "a", vip: "10.96.0.1", cluster: pods(1, 3), local: pods(2, 1)}),
		tableOf(serviceSpec{name: "a", vip: "10.96.0.1", nodePort: 30080, cluster: pods(1, 5), local: pods(2, 2)}),
		tableOf(serviceSpec{name: "a", vip: "10.96.0.1", nodePort: 30080, cluster: pods(4, 2)},
			serviceSpec{name: "b", vip: "10.96.0.2", lb: "198.51.100.1", filtered: []string{"203.0.113.0/24"}, cluster: pods(1, 2)}),
		tableOf(serviceSpec{name: "a", vip: "10.96.0.2", cluster: pods(4, 2)},
			serviceSpec{name: "b", vip: "10.96.0.1", nodePort: 30080, lb: "198.51.100.1", filtered: []string{"192.0.2.0/24"}, cluster: pods(7, 3)}),
		tableOf(serviceSpec{name: "a", vip: "10.96.0.1", nodePort: 30081},
			serviceSpec{name: "c", vip: "fd00:96::1", cluster: []string{"[fd00:244::1]:8080"}, affinity: time.Minute}),
		tableOf(serviceSpec{name: "c", vip: "10.96.0.3", cluster: pods(1, 1), local: pods(1, 1), affinity: time.Hour}),
	}
}

func changes(from, to *service.Table) []service.Name {
	var names []service.Name
	for n := range from.Services {
		names = append(names, n)
	}
	for n := range to.Services {
		names = append(names, n)
	}
	return names
}

func fullSync(t *testing.T, p *planner, f *fakeMaps, table *service.Table) error {
	t.Helper()
	p.kernel = clone(f.contents)
	writes, err := p.planAll(context.Background(), table, [2]netip.Addr{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p.carryOut(context.Background(), f, writes)
}

// TestTransitionsNeverLeaveAHole walks every pair of states, looks at every
// destination after each single write, and wants the old answer or the new one.
func TestTransitionsNeverLeaveAHole(t *testing.T) {
	all := states()
	for i, from := range all {
		for j, to := range all {
			for _, full := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d to %d full=%v", i, j, full), func(t *testing.T) {
					walk(t, from, to, full)
				})
			}
		}
	}
}

func walk(t *testing.T, from, to *service.Table, full bool) {
	ctx := context.Background()
	f := &fakeMaps{contents: newContents()}
	p := newPlanner(64)
	if err := fullSync(t, p, f, from); err != nil {
		t.Fatal(err)
	}
	old := answers(f.contents)
	want := expected(t, to)
	var seen []map[string]string
	f.after = func() { seen = append(seen, answers(f.contents)) }
	var err error
	if full {
		err = fullSync(t, p, f, to)
	} else {
		var writes []write
		writes, err = p.planChanged(to, changes(from, to))
		if err == nil {
			err = p.carryOut(ctx, f, writes)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for n, got := range seen {
		for d, a := range got {
			if a != old[d] && a != want[d] {
				t.Errorf("after write %d, %s: %s; want %s or %s", n+1, d, a, old[d], want[d])
			}
		}
	}
	if diff := cmp.Diff(want, answers(f.contents)); diff != "" {
		t.Error(diff)
	}
	checkNothingLeft(t, f, to)
}

// expected is what a table means when it is written to empty maps.
func expected(t *testing.T, table *service.Table) map[string]string {
	f := &fakeMaps{contents: newContents()}
	if err := fullSync(t, newPlanner(64), f, table); err != nil {
		t.Fatal(err)
	}
	return answers(f.contents)
}

// checkNothingLeft wants as many entries as empty maps get from the table.
func checkNothingLeft(t *testing.T, f *fakeMaps, table *service.Table) {
	t.Helper()
	fresh := &fakeMaps{contents: newContents()}
	if err := fullSync(t, newPlanner(64), fresh, table); err != nil {
		t.Fatal(err)
	}
	sizes := func(c *contents) [7]int {
		return [7]int{len(c.frontends), len(c.backends), len(c.members), len(c.ranges), len(c.addresses), len(c.ports), len(c.names)}
	}
	if got, want := sizes(f.contents), sizes(fresh.contents); got != want {
		t.Errorf("frontends, backends, members, ranges, addresses, ports, names: %v, want %v", got, want)
	}
}

// TestFailAtEveryWrite refuses the n-th write for each n; a full sync must then
// reach the state, again without a hole on the way.
func TestFailAtEveryWrite(t *testing.T) {
	all := states()
	for i, from := range all {
		for j, to := range all {
			for n := 1; ; n++ {
				if !failOnce(t, from, to, n) {
					break
				}
				if t.Failed() {
					t.Fatalf("states %d to %d, write %d refused", i, j, n)
				}
			}
		}
	}
}

func failOnce(t *testing.T, from, to *service.Table, n int) bool {
	ctx := context.Background()
	f := &fakeMaps{contents: newContents()}
	p := newPlanner(64)
	if err := fullSync(t, p, f, from); err != nil {
		t.Fatal(err)
	}
	old, want := answers(f.contents), expected(t, to)
	f.writes, f.failAt = 0, n
	f.after = func() {
		for d, a := range answers(f.contents) {
			if a != old[d] && a != want[d] {
				t.Errorf("%s: %s; want %s or %s", d, a, old[d], want[d])
			}
		}
	}
	writes, err := p.planChanged(to, changes(from, to))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.carryOut(ctx, f, writes); err == nil {
		return false // fewer than n writes
	} else if !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	f.failAt = 0
	if err := fullSync(t, p, f, to); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, f, to)
	return true
}

// TestRandomWalk goes through many states with syncs of every kind, failing and
// restarting now and then.
func TestRandomWalk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := states()
	f := &fakeMaps{contents: newContents()}
	p := newPlanner(64)
	at := all[0]
	if err := fullSync(t, p, f, at); err != nil {
		t.Fatal(err)
	}
	broken := false
	for range 2000 {
		to := all[rng.IntN(len(all))]
		f.writes, f.failAt = 0, 0
		if rng.IntN(4) == 0 {
			f.failAt = 1 + rng.IntN(20)
		}
		if rng.IntN(5) == 0 {
			p, broken = newPlanner(64), true // a restart
		}
		var err error
		if broken {
			err = fullSync(t, p, f, to)
		} else {
			var writes []write
			if writes, err = p.planChanged(to, changes(at, to)); err == nil {
				err = p.carryOut(context.Background(), f, writes)
			}
		}
		broken = err != nil
		if !broken {
			if diff := cmp.Diff(expected(t, to), answers(f.contents)); diff != "" {
				t.Fatal(diff)
			}
			checkNothingLeft(t, f, to)
		}
		at = to
	}
}

// TestUnchangedWritesNothing: a resync of what is there is free of writes, and
// a restart keeps ids and generations.
func TestUnchangedWritesNothing(t *testing.T) {
	for i, table := range states() {
		f := &fakeMaps{contents: newContents()}
		if err := fullSync(t, newPlanner(64), f, table); err != nil {
			t.Fatal(err)
		}
		f.writes = 0
		if err := fullSync(t, newPlanner(64), f, table); err != nil {
			t.Fatal(err)
		}
		if f.writes != 0 {
			t.Errorf("state %d: %d writes", i, f.writes)
		}
	}
}

// TestWorkIsProportional: one endpoint among many Services costs few writes.
func TestWorkIsProportional(t *testing.T) {
	var specs []serviceSpec
	for i := range 1000 {
		specs = append(specs, serviceSpec{name: fmt.Sprint("s", i), vip: fmt.Sprintf("10.96.%d.%d", i/250, i%250),
			cluster: []string{"10.244.1.1:1", "10.244.1.2:1", "10.244.1.3:1", "10.244.1.4:1", "10.244.1.5:1"}})
	}
	table := tableOf(specs...)
	f := &fakeMaps{contents: newContents()}
	p := newPlanner(2048)
	if err := fullSync(t, p, f, table); err != nil {
		t.Fatal(err)
	}
	specs[7].cluster = specs[7].cluster[:4]
	r := specs[7].resolve()
	table.Services[r.Name] = r
	f.writes = 0
	writes, err := p.planChanged(table, []service.Name{r.Name})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.carryOut(context.Background(), f, writes); err != nil {
		t.Fatal(err)
	}
	if f.writes > 15 {
		t.Errorf("%d writes for one endpoint", f.writes)
	}
}
