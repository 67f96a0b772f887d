package netnstests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// equalityStates is how many random clusters real packets are sent through, in
// each mode. That they all do what the Table says makes the modes equal.
const equalityStates = 60

// synthLocal are the addresses of the node in random clusters, see
// synth.Random.Config.
var synthLocal = []netip.Addr{netip.MustParseAddr("192.168.77.11"), netip.MustParseAddr("192.168.90.1"),
	netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:77::11")}

// TestModesAreEqual sends real packets through random clusters. A failure shows
// the least state that fails, as manifests, with the seed.
func TestModesAreEqual(t *testing.T) { // its columns keep all CPUs busy: nothing else beside
	var ran, explained atomic.Int64
	t.Cleanup(func() { // when all modes have ended
		t.Logf("%d random packets were explained and sent", explained.Load())
		if all := ran.Load() == int64(len(refModes)); all && !t.Failed() && explained.Load() < leastProven {
			t.Errorf("only %d random packets were explained and sent, want %d at least", explained.Load(), leastProven)
		}
	})
	for _, mode := range refModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ran.Add(1)
			e := newEquality(t, mode)
			for seed := range uint64(equalityStates) {
				gen := synth.NewRandom(1000 + seed)
				cfg, state := e.config(gen.Config()), gen.Cluster(1+int(seed%10))
				p, err := e.try(t, seed, cfg, state, nil)
				if err == nil {
					continue
				}
				small := synth.Shrink(state, func(c service.Changes) bool {
					_, err := e.try(t, seed, cfg, c, []service.Packet{p})
					return err != nil
				})
				t.Fatalf("seed %d: %v from %v (on %q) to %v: %v\nnode: %+v\n%s", seed, p.Protocol, p.Source, p.Interface, p.Destination,
					err, cfg, synth.YAML(small))
			}
			t.Logf("%d packets in %d states, of them %v; %d explained", e.sent, equalityStates, e.seen, e.asked)
			explained.Add(int64(e.asked)) // each was sent, or the test has failed
			if e.asked < e.sent/(2*explainEach[mode]) {
				t.Errorf("only %d of %d packets were explained", e.asked, e.sent)
			}
			if e.sent < 18*equalityStates || len(e.seen) != 3 {
				t.Errorf("too few packets: %d, %v", e.sent, e.seen)
			}
		})
	}
}

// equality is one mode in a namespace of its own.
type equality struct {
	*refNet
	dp    dataplane.Dataplane
	sent  int
	seen  map[string]int
	asked int          // explanations
	step  atomic.Int64 // of a test of transitions
}

func newEquality(t *testing.T, mode string) *equality {
	t.Helper()
	e := &equality{refNet: newRefNet(t, mode, synthLocal)}
	e.do(t, "node", addSynthNetworks)
	e.dp = e.open(t)
	return e
}

// addSynthNetworks makes networks local as clouds do that hand packets for a
// balancer's address to the node as they are.
func addSynthNetworks() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, n := range synth.Networks {
		dst := &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())}
		err = errors.Join(err, netlink.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL,
			Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}))
	}
	return err
}

// config fits a random node into the namespaces: addresses that the links have
// besides, and the names of interfaces.
func (e *equality) config(cfg service.Config) service.Config {
	for f := range cfg.Facts.Local {
		local := slices.DeleteFunc(slices.Clone(cfg.Facts.Local[f]), netip.Addr.IsLinkLocalUnicast)
		cfg.Facts.Local[f] = append(local, refGateway[f])
		slices.SortFunc(cfg.Facts.Local[f], netip.Addr.Compare)
		if cfg.Facts.Pods[f].InterfacePrefix != "" {
			cfg.Facts.Pods[f].InterfacePrefix = "to-po"
		}
	}
	return cfg
}

// try brings the node into a state and sends packets; without any, a sample of
// them. It returns the one that fails.
func (e *equality) try(t *testing.T, seed uint64, cfg service.Config, state service.Changes, packets []service.Packet) (service.Packet, error) {
	t.Helper()
	r := service.NewResolver(cfg)
	r.Apply(state)
	table := r.Table()
	if packets == nil {
		packets = synth.Sample(seed, synth.Packets(rand.New(rand.NewPCG(seed, 2)), table), 60)
	}
	at := e.placeState(t, state, packets)
	e.do(t, "node", func() error { return e.dp.Sync(context.Background(), table, nil) })
	e.serveState(t, state, at)
	timeouts := 0
	for _, p := range packets {
		from := at[p.Source.Addr()]
		if p.Interface = "to-" + from; from == "node" {
			p.Interface = ""
		}
		want := table.Judge(p)
		if e.beyond(table, from, p, &want) || want.Matched && want.Route.Action == service.Drop && timeouts >= 3 {
			continue
		}
		if want.Matched && want.Route.Action == service.Drop {
			timeouts++
		}
		if err := e.explained(t, table, p); err != nil {
			return p, err
		}
		if err := e.check(from, p, &want); err != nil {
			return p, err
		}
	}
	return service.Packet{}, nil
}

// explainEach is which packets are explained too: loading a copy of the programs
// takes some tenths of a second.
var explainEach = map[string]int{"iptables-nft": 2, "iptables-legacy": 2, ebpfSockets: 6, ebpfPackets: 6}

// explained asks the kernel's own rules or programs what would become of a
// packet, and wants what the Table says (P53); check then wants it of real ones.
func (e *equality) explained(t *testing.T, table *service.Table, p service.Packet) error {
	t.Helper()
	if e.sent%explainEach[e.mode] != 0 || p.Destination.Addr().IsLoopback() {
		return nil
	}
	e.asked++
	var a view.Answer
	e.do(t, "node", func() (err error) {
		switch d := e.dp.(type) {
		case *iptables.Dataplane:
			r := d.Reader()
			r.Node = func() (service.NodeFacts, bool) { return table.Node, true }
			a, err = r.Explain(t.Context(), p)
		case *ebpf.Dataplane:
			a, err = d.Reader().Explain(t.Context(), p)
		}
		return err
	})
	if x := admin.ExplainWith(table, p, a); x.Differs != "" {
		return fmt.Errorf("explained as\n%s", strings.Join(x.Steps, "\n"))
	}
	return nil
}

// placeState tells where each address is, and puts it there.
func (e *equality) placeState(t *testing.T, state service.Changes, packets []service.Packet) map[netip.Addr]string {
	t.Helper()
	at := map[netip.Addr]string{}
	for _, p := range packets {
		at[p.Source.Addr()] = "outside"
		if strings.HasPrefix(p.Interface, "veth") {
			at[p.Source.Addr()] = "pods"
		}
	}
	for _, a := range addrsOf(state) {
		at[a] = "endpoints"
	}
	for a := range at {
		if slices.Contains(synthLocal, a) || a.IsLinkLocalUnicast() {
			at[a] = "node"
		}
	}
	put := map[netip.Addr]string{}
	for a, place := range at {
		if place != "node" {
			put[a] = place
		}
	}
	e.put(t, put)
	return at
}

// serveState answers at every endpoint; where a range of ports is, at a few of
// them only, so packets to others are not sent.
func (e *equality) serveState(t *testing.T, state service.Changes, at map[netip.Addr]string) {
	t.Helper()
	seen := map[string]bool{}
	for _, s := range state.EndpointSlices {
		for _, port := range s.Ports {
			for _, ep := range s.Endpoints {
				to := netip.AddrPortFrom(ep.Addr, port.Number)
				if key := fmt.Sprint(to, port.Protocol); port.Protocol != service.SCTP && !seen[key] {
					seen[key] = true
					e.do(t, at[ep.Addr], func() error { return e.listen(to, port.Protocol) })
				}
			}
		}
	}
}

// beyond are packets that cannot be sent here, or whose backend has nobody to
// answer. All of them are walked in TestRulesMeanWhatTheTableSays and
// TestMapsMeanWhatTheTableSays.
func (e *equality) beyond(table *service.Table, from string, p service.Packet, want *service.Outcome) bool {
	node := func(a netip.Addr) bool { return table.Node.IsLocal(a) }
	switch {
	case p.Protocol == service.SCTP, !want.Matched, p.Source.Addr().IsLinkLocalUnicast(), p.Destination.Addr().IsLinkLocalUnicast():
		return true
	case want.Frontend != nil && want.Frontend.LastPort != 0 && want.Route.Action == service.Translate:
		return true // nobody serves all of its ports
	case e.mode == ebpfSockets && from == "endpoints" && table.Node.Pods[0].InterfacePrefix != "":
		return true // by their interface no Pods, by their sockets they are
	case e.mode == ebpfPackets && from == "node":
		// To its own addresses over lo, or by a backend on itself: see limits.
		return node(p.Destination.Addr()) || slices.ContainsFunc(want.Backends, func(b service.Backend) bool { return node(b.Addr()) })
	}
	// A host does not take packets from its own address off a wire.
	return from == "endpoints" && slices.ContainsFunc(want.Backends, func(b service.Backend) bool {
		return !node(b.Addr()) && !want.Masquerade(p, b)
	})
}

// check begins flows, enough to see every backend where that is few, and wants
// what the Table says.
func (e *equality) check(from string, p service.Packet, want *service.Outcome) error {
	e.sent++
	if e.seen == nil {
		e.seen = map[string]int{}
	}
	e.seen[want.Route.Action.String()]++
	if want.Route.Action != service.Translate {
		limit := silence
		if want.Route.Action == service.Reject {
			limit = answerTimeout
		}
		got, err := e.dial(from, p, limit)
		if from == "node" && p.Protocol == service.UDP && errors.Is(err, syscall.EPERM) {
			return nil // what the node's own filter does to its own datagrams
		}
		return mustFail(map[service.Action]string{service.Reject: "REJECT", service.Drop: "DROP"}[want.Route.Action], got, err)
	}
	left := map[netip.AddrPort]bool{}
	for _, b := range want.Backends {
		left[b.AddrPort] = true
	}
	all := want.Port.AffinityTimeout == 0 && service.Shares(want.Backends) <= 6
	for tries := 0; tries == 0 || all && len(left) > 0; tries++ {
		if tries > 25*service.Shares(want.Backends) {
			return fmt.Errorf("after %d tries %v were not reached", tries, left)
		}
		got, err := e.dial(from, p, answerTimeout)
		if err != nil {
			return fmt.Errorf("want one of %v: %w", want.Backends, err)
		}
		i := slices.IndexFunc(want.Backends, func(b service.Backend) bool { return b.AddrPort == got.backend })
		if i < 0 {
			return fmt.Errorf("reached %v, want one of %v", got.backend, want.Backends)
		}
		delete(left, got.backend)
		masqueraded := got.source.Addr() != p.Source.Addr()
		if from == "node" { // its sources are all its own
			continue
		}
		if masqueraded != want.Masquerade(p, want.Backends[i]) {
			return fmt.Errorf("%v saw source %v, want masquerade %v", got.backend, got.source, !masqueraded)
		}
	}
	return nil
}
