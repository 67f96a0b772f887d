package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// This file compares the programs with [service.Table.Judge]. BPF_PROG_TEST_RUN
// cannot express these, which are left out here:
//
//   - Loopback destinations: no program is on lo, the socket path serves them
//     (TestSocketPath, TestP24Loopback).
//   - The node's own address as source on ingress: a forgery that the programs
//     leave to the stack, which drops it. What the node itself sends is tried at
//     egress.
//   - SCTP to a backend of another port: dropped, as doc.go says under Limits;
//     that it is dropped is checked.

// judged runs first packets of flows through the programs.
type judged struct {
	*bench
	table *service.Table
	sport uint16
	// leaves is, by destination, the interface by which the node would forward.
	leaves map[netip.Addr]string
}

// came is what became of a packet.
type came struct {
	what   string // untouched, translated, reject, drop
	to     netip.AddrPort
	source netip.Addr
}

func newJudged(t *testing.T) *judged {
	b := newBench(t, Options{Sizes: Sizes{Flows: 32768}})
	veth(t, b.n.node, "veth7", b.n.podB, "eth7")
	in(t, b.n.node, func() error {
		l, err := netlink.LinkByName("veth7")
		if err != nil {
			return err
		}
		b.ifindex["veth7"] = l.Attrs().Index
		if err := addAddr("lo", "10.128.0.1/32", 0); err != nil {
			return err
		}
		// Some addresses of Services are behind the interface that Pods' packets come by.
		return errors.Join(addRoute("veth7", "10.128.0.0/16", ""), addRoute("veth7", "10.200.0.0/30", ""), addRoute("veth7", "fd00:200::/126", ""))
	})
	return &judged{bench: b, sport: 1024, leaves: map[netip.Addr]string{}}
}

// routed is a packet with the interface by which this node would forward it, as the
// kernel says. It runs on a thread in the node's namespace.
func (j *judged) routed(p service.Packet) (service.Packet, error) {
	to := p.Destination.Addr()
	name, known := j.leaves[to]
	if !known {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil {
			return p, fmt.Errorf("route to %s: %w", to, err)
		}
		if r := routes[0]; r.Type != unix.RTN_LOCAL {
			l, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return p, err
			}
			name = l.Attrs().Name
		}
		j.leaves[to] = name
	}
	if p.Leaves = name; p.Interface == "" {
		p.Leaves = ""
	}
	return p, nil
}

// take loads a Table into the kernel, and forgets every flow.
func (j *judged) take(t *testing.T, table *service.Table) {
	j.table = table
	j.forget(t)
	syncAll(t, j.d, table)
}

// try sends the first packet of a flow from a new port. It runs on a thread in
// the node's namespace.
func (j *judged) try(p service.Packet) (came, error) {
	if j.sport++; j.sport > 60000 {
		j.sport = 1025
	}
	f := frame{proto: p.Protocol, flags: syn}.to(p.Source.Addr().String(), j.sport, p.Destination.Addr().String(), p.Destination.Port())
	data := f.bytes()
	ctx := make([]byte, 192)
	prog, dev := j.d.objs.Ingress, p.Interface
	if dev == "" {
		prog, dev = j.d.objs.Egress, "eth0"
	}
	binary.NativeEndian.PutUint32(ctx[40:], uint32(j.ifindex[dev]))
	host, err := hardwareAddr(uint32(j.ifindex[dev]))
	if err != nil {
		return came{}, err
	}
	copy(data, host)
	o := &ebpf.RunOptions{Data: data, DataOut: make([]byte, 512), Context: ctx}
	ret, err := prog.Run(o)
	if err != nil {
		return came{}, err
	}
	return read(f, int(int32(ret)), o.DataOut), nil
}

// read tells what a verdict and the packet that came out mean.
func read(f frame, verdict int, out []byte) came {
	at, size, l4, proto := 14+12, 4, 14+20, out[14+9]
	if !f.is4() {
		at, size, l4, proto = 14+8, 16, 14+40, out[14+6]
	}
	if verdict == verdictDrop {
		return came{what: "drop"}
	}
	src, _ := netip.AddrFromSlice(out[at : at+size])
	dst, _ := netip.AddrFromSlice(out[at+size : at+2*size])
	to := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(out[l4+2:]))
	back := dst.String() == f.src && src.String() == f.dst
	switch {
	case verdict == verdictRedirect && back && (proto == 1 && out[l4] == 3 && out[l4+1] == 3 ||
		proto == 58 && out[l4] == 1 && out[l4+1] == 4 || proto == 6 && out[l4+13] == rst|ack):
		return came{what: "reject"}
	case verdict == verdictNext && to == netip.AddrPortFrom(netip.MustParseAddr(f.dst), f.dport) && src.String() == f.src:
		return came{what: "untouched"}
	case verdict == verdictNext || verdict == verdictRedirect:
		return came{"translated", to, src}
	}
	return came{what: fmt.Sprint("verdict ", verdict)}
}

// compare wants what the Table says of a packet. all asks for enough tries to
// see every backend.
func (j *judged) compare(p service.Packet, want service.Outcome, all bool) error {
	what := "untouched"
	if want.Matched {
		what = map[service.Action]string{service.Translate: "translated", service.Reject: "reject", service.Drop: "drop"}[want.Route.Action]
	}
	if all && want.Port != nil && want.Port.Algorithm == service.Maglev && want.Port.AffinityTimeout > 0 {
		all = false // one client is sent to one backend, also once it is forgotten
	}
	left := map[netip.AddrPort]bool{}
	for _, b := range want.Backends {
		left[b.To(p.Destination.Port())] = true
	}
	for tries := 0; tries == 0 || all && len(left) > 0; tries++ {
		if tries > 60*service.Shares(want.Backends) {
			return fmt.Errorf("after %d tries these were not reached: %v", tries, left)
		}
		got, err := j.try(p)
		if err == nil && got.what == "drop" && what == "reject" { // many at once are not answered
			if err = forgetAll[bpfAddr, uint64](j.d.objs.AnswerTimes); err == nil {
				got, err = j.try(p)
			}
		}
		if err != nil {
			return err
		}
		if p.Protocol == service.SCTP && got.what == "drop" && what == "translated" &&
			slices.ContainsFunc(want.Backends, func(b service.Backend) bool { return b.Port() != p.Destination.Port() && b.Port() != 0 }) {
			return nil // the limit on SCTP
		}
		if got.what != what {
			return fmt.Errorf("got %v, want %s", got, what)
		}
		if what != "translated" {
			return nil
		}
		i := slices.IndexFunc(want.Backends, func(b service.Backend) bool { return b.To(p.Destination.Port()) == got.to })
		if i < 0 {
			return fmt.Errorf("sent to %v, not one of %v", got.to, want.Backends)
		}
		delete(left, got.to)
		if err := j.checkSource(p, got, want.Masquerade(p, want.Backends[i])); err != nil {
			return err
		}
		if want.Port.AffinityTimeout != 0 {
			if err := j.forgetClients(); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSource wants the client's source, or one of the node's. Interfaces have
// addresses here that not every Table knows.
func (j *judged) checkSource(p service.Packet, got came, masquerade bool) error {
	own := j.table.Node.IsLocal(got.source) || got.source.String() == nodeIP[service.FamilyOf(got.source)]
	if masquerade && !own || !masquerade && got.source != p.Source.Addr() {
		return fmt.Errorf("backend %v sees %v, want masquerade %v", got.to, got.source, masquerade)
	}
	return nil
}

func (j *judged) forgetClients() error {
	return forgetAll[bpfAffinityKey, bpfAffinity](j.d.objs.Affinities)
}

// forgetAll empties a map.
func forgetAll[K comparable, V any](m *ebpf.Map) error {
	known := map[K]V{}
	if err := readMap(m, known); err != nil {
		return err
	}
	for k := range known {
		if err := m.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// beyond tells whether a packet is one of those that the head of this file lists.
func beyond(table *service.Table, p service.Packet) bool {
	return p.Destination.Addr().IsLoopback() || p.Interface != "" && table.Node.IsLocal(p.Source.Addr())
}

// TestProgramsMeanWhatTheTableSays: any packet, in any cluster.
func TestProgramsMeanWhatTheTableSays(t *testing.T) {
	states := uint64(60)
	if testing.Short() {
		states = 10
	}
	j := newJudged(t)
	packets, skipped := 0, 0
	seen := map[service.Action]int{}
	for seed := range states {
		gen := synth.NewRandom(seed)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(1 + int(seed%30)))
		j.take(t, r.Table())
		covered := map[string]bool{}
		in(t, j.n.node, func() error {
			for _, p := range synth.Packets(rand.New(rand.NewPCG(seed, 2)), j.table) {
				if beyond(j.table, p) {
					skipped++
					continue
				}
				p, err := j.routed(p)
				if err != nil {
					return err
				}
				want := j.table.Judge(p)
				about := fmt.Sprint(p.Destination, p.Protocol, want.Source)
				if err := j.compare(p, want, !covered[about]); err != nil {
					t.Errorf("seed %d: %v from %v (in %q) to %v: %v", seed, p.Protocol, p.Source, p.Interface, p.Destination, err)
				}
				covered[about] = true
				if want.Matched {
					seen[want.Route.Action]++
				}
				packets++
			}
			return nil
		})
		if t.Failed() {
			return
		}
	}
	if packets < int(states)*100 || len(seen) != 3 {
		t.Errorf("only %d packets were tried: %v", packets, seen)
	}
	t.Logf("%d packets in %d states, %d left out; by action %v", packets, states, skipped, seen)
}

// TestFlowsOfTheReference: the flows that kube-proxy's own tests state.
func TestFlowsOfTheReference(t *testing.T) {
	cases, err := flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	j := newJudged(t)
	checked, beyondReach := 0, 0
	for _, c := range cases {
		manifests, err := c.Manifests()
		if err != nil {
			t.Fatal(err)
		}
		changes, _, err := source.Decode(manifests)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := c.Config()
		if err != nil {
			t.Fatal(err)
		}
		r := service.NewResolver(cfg)
		r.Apply(changes)
		j.take(t, r.Table())
		in(t, j.n.node, func() error {
			for _, f := range c.Flows {
				p := f.Packet()
				if !f.Holds() {
					continue
				}
				if beyond(j.table, p) {
					beyondReach++
					continue
				}
				p, err := j.routed(p)
				if err != nil {
					return err
				}
				checked++
				if err := j.asStated(&f, p); err != nil {
					t.Errorf("%v: %v", &f, err)
				}
			}
			return nil
		})
	}
	if checked < 150 {
		t.Errorf("only %d flows were checked", checked)
	}
	t.Logf("%d flows, %d to loopback", checked, beyondReach)
}

// asStated wants of a packet what the reference states, and the Table.
func (j *judged) asStated(f *flows.Flow, p service.Packet) error {
	want := j.table.Judge(p)
	if err := j.compare(p, want, true); err != nil {
		return err
	}
	if len(f.Expected.Backends) == 0 {
		got, err := j.try(p)
		word := map[string]string{"REJECT": "reject", "DROP": "drop", "ACCEPT": "untouched", "NONE": "untouched"}[f.Expected.Word]
		if err == nil && got.what != word {
			err = fmt.Errorf("got %v, stated %s", got, f.Expected.Word)
		}
		return err
	}
	var backends []string
	for _, b := range want.Backends {
		backends = append(backends, b.String())
		if want.Masquerade(p, b) != f.Masquerade {
			return fmt.Errorf("backend %v: stated masquerade %v", b, f.Masquerade)
		}
	}
	if stated := slices.Sorted(slices.Values(f.Expected.Backends)); !slices.Equal(slices.Sorted(slices.Values(backends)), stated) {
		return fmt.Errorf("got %v, stated %v", backends, stated)
	}
	return nil
}
