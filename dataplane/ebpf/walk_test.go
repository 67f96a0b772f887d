package ebpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// This file leads virtual packets through the contents of maps, as frontend.h,
// backend.h and tc_new.h do, without a kernel.

// find is find_frontend.
func (c *contents) find(dst netip.AddrPort, proto service.Protocol) (bpfFrontend, bool) {
	key := bpfFrontendKey{Addr: mapAddr(dst.Addr()), Port: networkPort(dst.Port()), Proto: uint8(proto)}
	use, spans := c.ports[uint32(dst.Port())], c.ports[0]
	if use&portBit(proto, false) != 0 {
		if fe, ok := c.frontends[key]; ok {
			return fe, true
		}
	}
	if spans&portBit(proto, false) != 0 {
		key := key
		key.Port = 0
		if fe, ok := c.frontends[key]; ok && fe.First <= dst.Port() && dst.Port() <= fe.Last {
			return fe, true
		}
	}
	if use&portBit(proto, true) == 0 || c.addresses[key.Addr]&uint32(bpfAddressFlagADDRESS_NODEPORT) == 0 {
		return bpfFrontend{}, false
	}
	key.Addr = anyAddr(service.FamilyOf(dst.Addr()))
	fe, ok := c.frontends[key]
	return fe, ok
}

// source is source_of; the flags of interfaces stand in the Table's detector.
func (c *contents) source(p service.Packet, pods [2]service.PodDetector) service.Source {
	f := service.FamilyOf(p.Source.Addr())
	byCIDR := [2]bpfNodeFlag{bpfNodeFlagNODE_CIDR4, bpfNodeFlagNODE_CIDR6}[f]
	if c.node.Flags&uint32(byCIDR) != 0 {
		inside := true
		for i, w := range mapAddr(p.Source.Addr()).W {
			inside = inside && (w^c.node.Pods[f].W[i])&c.node.PodsMask[f].W[i] == 0
		}
		if inside {
			return service.FromPod
		}
	} else if p.Interface != "" {
		facts := service.NodeFacts{Pods: pods}
		if facts.SourceOf(p) == service.FromPod {
			return service.FromPod
		}
	}
	if c.addresses[mapAddr(p.Source.Addr())]&uint32(bpfAddressFlagADDRESS_LOCAL) != 0 {
		return service.FromNode
	}
	return service.FromOutside
}

// inRanges is in_ranges.
func (c *contents) inRanges(fe bpfFrontend, src netip.Addr) bool {
	for k := range c.ranges {
		bits := int(k.Prefixlen) - 32
		if k.Service != fe.Service {
			continue
		}
		a, b := mapAddr(src), k.Addr
		mask := maskOf(netip.PrefixFrom(netip.IPv6Unspecified(), bits))
		same := true
		for i := range a.W {
			same = same && (a.W[i]^b.W[i])&mask.W[i] == 0
		}
		if same {
			return true
		}
	}
	return false
}

// walked is what becomes of a packet: an action and, translated, how many slots
// lead to each backend.
type walked struct {
	matched    bool
	action     service.Action
	masquerade bool
	slots      map[netip.AddrPort]int
}

// walk is handle, for the first packet of a flow.
func (c *contents) walk(p service.Packet, pods [2]service.PodDetector) (walked, error) {
	fe, ok := c.find(p.Destination, p.Protocol)
	if !ok {
		flags := c.addresses[mapAddr(p.Destination.Addr())]
		owned := flags&uint32(bpfAddressFlagADDRESS_VIP|bpfAddressFlagADDRESS_LOCAL) == uint32(bpfAddressFlagADDRESS_VIP)
		returns := p.Interface != "" && p.Interface == p.Leaves
		return walked{matched: owned && (flags&uint32(bpfAddressFlagADDRESS_CLUSTER_IP) != 0 || returns), action: service.Reject}, nil
	}
	out := walked{matched: true, action: service.Drop, slots: map[netip.AddrPort]int{}}
	if fe.Flags&uint8(bpfFrontendFlagFRONTEND_FILTERED) != 0 && !c.inRanges(fe, p.Source.Addr()) {
		return out, nil
	}
	route := fe.Route[c.source(p, pods)]
	out.action = service.Action(route & uint8(bpfRouteROUTE_ACTION))
	if out.action != service.Translate {
		return out, nil
	}
	out.masquerade = route&uint8(bpfRouteROUTE_MASQUERADE) != 0
	first, n := uint32(0), fe.Count[0]
	if route&uint8(bpfRouteROUTE_LOCAL) != 0 {
		first, n = fe.Count[0], fe.Count[1]
	}
	for i := range n {
		b, ok := c.backends[bpfBackendKey{Service: fe.Service, Generation: fe.Generation, Slot: first + i}]
		if !ok {
			return out, fmt.Errorf("slot %d of %d is empty", i, n)
		}
		to := service.Backend{AddrPort: netip.AddrPortFrom(unmapAddr(b.Addr), networkPort(b.Port))}.To(p.Destination.Port())
		out.slots[to]++
	}
	return out, nil
}

// checkWalk compares what maps mean for a packet with what the Table says.
func checkWalk(c *contents, table *service.Table, p service.Packet) error {
	got, err := c.walk(p, table.Node.Pods)
	if err != nil {
		return err
	}
	want := table.Judge(p)
	if got.matched != want.Matched || want.Matched && got.action != want.Route.Action {
		return fmt.Errorf("got %+v, want matched %v, %v", got, want.Matched, want.Route.Action)
	}
	if !want.Matched || want.Route.Action != service.Translate {
		return nil
	}
	if got.masquerade != want.Route.Masquerade || len(got.slots) != len(want.Backends) {
		return fmt.Errorf("got %+v, want masquerade %v and backends %v", got, want.Route.Masquerade, want.Backends)
	}
	total, sum := 0, service.Shares(want.Backends)
	for _, n := range got.slots {
		total += n
	}
	for _, b := range want.Backends {
		n := got.slots[b.To(p.Destination.Port())]
		exact := total * b.Shares() / sum
		if n != exact && !(want.Port.Algorithm == service.Maglev && n == exact+1) || n == 0 && total > 0 && exact > 0 {
			return fmt.Errorf("backend %v has %d of %d slots, want %d of %d", b, n, total, b.Shares(), sum)
		}
	}
	return nil
}

// TestMapsMeanWhatTheTableSays walks the contents of maps in the states that
// TestRulesMeanWhatTheTableSays walks the rules of: what both say is what the
// Table says, so the modes are equal. Every other state is reached by changes
// from the one before.
func TestMapsMeanWhatTheTableSays(t *testing.T) {
	states := uint64(2000)
	if testing.Short() {
		states = 100
	}
	packets := 0
	for seed := range states {
		gen := synth.NewRandom(seed)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(1 + int(seed%12)))
		table := r.Table()
		p := newPlanner(65536)
		writes, err := p.planAll(context.Background(), table, [2]netip.Addr{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range writes {
			p.kernel.took(w)
		}
		if seed%2 == 1 {
			changed, _ := r.Apply(gen.Cluster(1 + int(seed%9)))
			if writes, err = p.planChanged(table, changed); err != nil {
				t.Fatal(err)
			}
			for _, w := range writes {
				p.kernel.took(w)
			}
		}
		all := synth.Packets(rand.New(rand.NewPCG(seed, 2)), table)
		for _, packet := range synth.Sample(seed, all, 150) {
			if packet.Destination.Addr().IsLoopback() {
				continue // the socket path's
			}
			if err := checkWalk(p.kernel, table, packet); err != nil {
				t.Fatalf("seed %d: %v from %v (in %q) to %v: %v", seed, packet.Protocol, packet.Source, packet.Interface, packet.Destination, err)
			}
			packets++
		}
	}
	t.Logf("%d packets in %d states", packets, states)
}
