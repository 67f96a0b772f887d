package ebpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeproxy/nodeproxy/service"
)

// send runs a request from some client port and tells what became of it.
func (b *bench) send(t testing.TB, f frame, sport uint16, dev string) (int, []byte) {
	t.Helper()
	f.sport = sport
	return b.run(t, b.d.objs.Ingress, dev, f.bytes())
}

// flows returns the table.
func (b *bench) flows(t testing.TB) map[bpfTuple]bpfFlow {
	t.Helper()
	out := map[bpfTuple]bpfFlow{}
	if err := readMap(b.d.objs.Flows, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// checkPairs wants every half to have its other half.
func (b *bench) checkPairs(t testing.TB) {
	t.Helper()
	flows := b.flows(t)
	for k, v := range flows {
		peer, ok := flows[reversed(v.To)]
		if !ok || peer.To != reversed(k) {
			t.Errorf("%+v has no other half", k)
		}
	}
}

func reversed(t bpfTuple) bpfTuple {
	t.Src, t.Dst, t.Sport, t.Dport = t.Dst, t.Src, t.Dport, t.Sport
	return t
}

// TestP6PortExhaustion: 64 ports serve 64 flows to one backend, the 65th fails
// with its reason, and another backend is not concerned.
func TestP6PortExhaustion(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61063})
	eachCase(func(f int, proto service.Protocol, name string) {
		t.Run(name, func(t *testing.T) {
			b.forget(t)
			p := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
			q := makePair(f, proto, "outside", "NodePort", "remote", service.PolicyCluster)
			q.services[0].name, q.services[0].nodePort, q.services[0].port = "other", 30081, 81
			syncAll(t, b.d, b.n.table(p.services[0], q.services[0]))
			for i := range 64 {
				if v, _ := b.send(t, p.request, 40000+uint16(i), "eth0"); v != verdictRedirect {
					t.Fatalf("flow %d: verdict %d", i+1, v)
				}
			}
			before := b.d.metric(t, bpfReasonREASON_PORTS_EXHAUSTED)
			if v, _ := b.send(t, p.request, 41000, "eth0"); v != verdictDrop {
				t.Errorf("flow 65: verdict %d", v)
			}
			if b.d.metric(t, bpfReasonREASON_PORTS_EXHAUSTED) != before+1 {
				t.Error("not counted")
			}
			other := q.request
			other.dport = 30081
			if v, _ := b.send(t, other, 41001, "eth0"); v != verdictRedirect {
				t.Errorf("flow to another backend: verdict %d", v)
			}
			b.checkPairs(t)
		})
	})
}

// TestP4FullTable: established flows outlive a flood of new ones.
func TestP4FullTable(t *testing.T) {
	b := newBench(t, Options{Sizes: Sizes{Flows: 64}})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyLocal)
	syncAll(t, b.d, b.n.table(p.services...))
	b.forget(t)
	data := p.request
	data.flags = ack
	for i := range 60 {
		port := 40000 + uint16(i)
		b.send(t, p.request, port, "eth0")
		r := p.reply
		r.dport = port
		b.run(t, b.d.objs.Ingress, "poda", r.bytes())
		b.send(t, data, port, "eth0")
	}
	full := b.d.metric(t, bpfReasonREASON_FLOWS_FULL)
	begun := b.d.metric(t, bpfReasonREASON_FLOW_NEW)
	before, err := b.d.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	const flood = 1000
	for i := range flood {
		b.send(t, p.request, 50000+uint16(i), "eth0")
	}
	admitted := b.d.metric(t, bpfReasonREASON_FLOW_NEW) - begun
	if refused := b.d.metric(t, bpfReasonREASON_FLOWS_FULL) - full; refused+admitted != flood || refused < flood/2 {
		after, _ := b.d.Metrics()
		t.Errorf("%d refused and %d admitted of %d; counters before: %v, after: %v", refused, admitted, flood, before, after)
	}
	for i := range 60 {
		if v, _ := b.send(t, data, 40000+uint16(i), "eth0"); v != verdictRedirect {
			t.Errorf("established flow %d: verdict %d", i, v)
		}
	}
	b.checkPairs(t)
}

// TestP5LostHalf: either half is made again from the other.
func TestP5LostHalf(t *testing.T) {
	b := newBench(t, Options{})
	eachCase(func(f int, proto service.Protocol, name string) {
		for _, half := range []string{"forward", "reply"} {
			t.Run(name+" "+half, func(t *testing.T) {
				b.forget(t)
				p := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
				syncAll(t, b.d, b.n.table(p.services...))
				b.send(t, p.request, clientPort, "eth0")
				for k, v := range b.flows(t) {
					isReply := v.Flags&uint8(bpfFlowFlagFLOW_REPLY) != 0
					if isReply == (half == "reply") {
						if err := b.d.objs.Flows.Delete(k); err != nil {
							t.Fatal(err)
						}
						continue
					}
					v.Seen = 0 // the next packet is one second later
					if err := b.d.objs.Flows.Put(k, v); err != nil {
						t.Fatal(err)
					}
				}
				dev, packet := "eth0", p.request
				if half == "forward" {
					dev, packet = "poda", p.reply
				}
				if v, _ := b.run(t, b.d.objs.Ingress, dev, packet.bytes()); v != verdictRedirect {
					t.Errorf("verdict %d", v)
				}
				if len(b.flows(t)) != 2 {
					t.Errorf("%d halves", len(b.flows(t)))
				}
				b.checkPairs(t)
			})
		}
	})
}

// TestFinishedFlowsGiveWay: when every port is taken, those of flows that are
// over are used again, and those of live ones are not.
func TestFinishedFlowsGiveWay(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61015})
	eachCase(func(f int, proto service.Protocol, name string) {
		t.Run(name, func(t *testing.T) {
			b.forget(t)
			p := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
			syncAll(t, b.d, b.n.table(p.services...))
			for i := range 16 {
				b.send(t, p.request, 40000+uint16(i), "eth0")
			}
			if v, _ := b.send(t, p.request, 41000, "eth0"); v != verdictDrop {
				t.Errorf("all are live: verdict %d", v)
			}
			for k, v := range b.flows(t) {
				v.Seen = 1 // since long
				if k.Sport != networkPort(40007) && v.To.Dport != networkPort(40007) {
					v.Flags |= uint8(bpfFlowFlagFLOW_LASTING)
				} else {
					v.Tcp |= uint8(bpfFlowTcpTCP_SEEN_FIN)
				}
				if err := b.d.objs.Flows.Put(k, v); err != nil {
					t.Fatal(err)
				}
			}
			if v, _ := b.send(t, p.request, 41000, "eth0"); v != verdictRedirect {
				t.Errorf("one is over: verdict %d", v)
			}
			if v, _ := b.send(t, p.request, 41001, "eth0"); v != verdictDrop {
				t.Errorf("all are live again: verdict %d", v)
			}
			b.checkPairs(t)
		})
	})
}

// TestP8TwoVIPsOneBackend: one client port to two frontends with one backend
// gives two flows that stay apart.
func TestP8TwoVIPsOneBackend(t *testing.T) {
	b := newBench(t, Options{})
	eachCase(func(f int, proto service.Protocol, name string) {
		t.Run(name, func(t *testing.T) {
			b.forget(t)
			p := makePair(f, proto, "pod", "ClusterIP", "local", service.PolicyCluster)
			second := p.services[0]
			second.name, second.port, second.nodePort = "second", 81, 30081
			syncAll(t, b.d, b.n.table(p.services[0], second))
			v1, out1 := b.send(t, p.request, clientPort, "podb")
			other := p.request
			other.dport = 81
			v2, out2 := b.send(t, other, clientPort, "podb")
			if v1 != verdictRedirect || v2 != verdictRedirect {
				t.Fatalf("verdicts %d and %d", v1, v2)
			}
			l4 := [2]int{34, 54}[f]
			if string(out1[l4:l4+2]) == string(out2[l4:l4+2]) {
				t.Error("both have the same source port")
			}
			reply := p.reply
			reply.dport = uint16(out2[l4])<<8 | uint16(out2[l4+1])
			if _, got := b.run(t, b.d.objs.Ingress, "poda", reply.bytes()); int(got[l4])<<8|int(got[l4+1]) != 81 ||
				int(got[l4+2])<<8|int(got[l4+3]) != clientPort {
				t.Errorf("reply of the second flow came out as %x", got[l4:l4+4])
			}
			b.checkPairs(t)
		})
	})
}

// TestP1P9P14GoneBackend: UDP flows leave a backend that is gone at once, TCP
// connections stay, and a new SYN from the same port chooses anew.
func TestP1P9P14GoneBackend(t *testing.T) {
	b := newBench(t, Options{})
	eachCase(func(f int, proto service.Protocol, name string) {
		t.Run(name, func(t *testing.T) {
			b.forget(t)
			p := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
			syncAll(t, b.d, b.n.table(p.services...))
			b.send(t, p.request, clientPort, "eth0")
			moved := p.services[0]
			moved.backends, moved.local = to(podB, "8080"), to(podB, "8080")
			syncAll(t, b.d, b.n.table(moved))
			data := p.request
			data.flags = ack
			backendOf := func(packet []byte) string { return string(packet[[2]int{30, 38}[f]:][:[2]int{4, 16}[f]]) }
			want := p.translated
			if proto == service.UDP {
				want.dst = podB[f]
			}
			if _, got := b.run(t, b.d.objs.Ingress, "eth0", data.bytes()); backendOf(got) != backendOf(want.bytes()) {
				t.Error("the flow went to the wrong backend")
			}
			want.dst = podB[f]
			if _, got := b.run(t, b.d.objs.Ingress, "eth0", p.request.bytes()); backendOf(got) != backendOf(want.bytes()) {
				t.Error("a new flow from the same port went to the wrong backend")
			}
			b.checkPairs(t)
		})
	})
}

// TestP13Collect looks at the table from the future: silent flows go as pairs,
// each kind in its time.
func TestP13Collect(t *testing.T) {
	b := newBench(t, Options{})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyLocal)
	u := makePair(0, service.UDP, "outside", "NodePort", "local", service.PolicyLocal)
	syncAll(t, b.d, b.n.table(p.services[0], u.services[0]))
	data, end := p.request, p.request
	data.flags, end.flags = ack, rst
	reply := func(f frame, port uint16) {
		f.dport = port
		b.run(t, b.d.objs.Ingress, "poda", f.bytes())
	}
	make := func() (now time.Duration) {
		b.forget(t)
		b.send(t, p.request, 1, "eth0") // opening
		for _, port := range []uint16{2, 3} {
			b.send(t, p.request, port, "eth0")
			reply(p.reply, port)
			b.send(t, data, port, "eth0") // established
		}
		b.send(t, end, 3, "eth0")       // closing
		b.send(t, u.request, 4, "eth0") // UDP without an answer
		b.send(t, u.request, 5, "eth0")
		reply(u.reply, 5)
		for k, v := range b.flows(t) {
			if k.Sport == networkPort(5) && k.Proto == uint8(service.UDP) {
				v.Flags |= uint8(bpfFlowFlagFLOW_LASTING)
				if err := b.d.objs.Flows.Put(k, v); err != nil {
					t.Fatal(err)
				}
			}
			now = max(now, time.Duration(v.Seen))
		}
		return now
	}
	timeouts := b.d.o.Timeouts
	for _, c := range []struct {
		after time.Duration
		left  int
	}{{time.Second, 5}, {31 * time.Second, 3}, {61 * time.Second, 2}, {4 * time.Minute, 1}, {25 * time.Hour, 0}} {
		now := make()
		got, err := runCollect(b.d.objs.Collect, timeouts, now+c.after)
		if err != nil {
			t.Fatal(err)
		}
		if left := len(b.flows(t)); left != 2*c.left || got.Left != uint64(left) {
			t.Errorf("after %v: %d halves left (%+v), want %d", c.after, left, got, 2*c.left)
		}
		b.checkPairs(t)
	}
}

// TestP13OrphanIsCollected: a reply half whose forward half is lost goes too.
func TestP13OrphanIsCollected(t *testing.T) {
	b := newBench(t, Options{})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
	syncAll(t, b.d, b.n.table(p.services...))
	b.send(t, p.request, clientPort, "eth0")
	for k, v := range b.flows(t) {
		if v.Flags&uint8(bpfFlowFlagFLOW_REPLY) == 0 {
			if err := b.d.objs.Flows.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
		}
	}
	// Not with the first pass: its forward half may be on the way.
	for pass := range 2 {
		if left := b.flows(t); len(left) != 1 {
			t.Fatalf("pass %d finds %+v", pass, left)
		}
		if _, err := runCollect(b.d.objs.Collect, b.d.o.Timeouts, 0); err != nil {
			t.Fatal(err)
		}
	}
	if left := b.flows(t); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestP57PassUnknown: while another mode's connections live on, TCP without a
// flow is the stack's.
func TestP57PassUnknown(t *testing.T) {
	b := newBench(t, Options{PassUnknown: true})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
	syncAll(t, b.d, b.n.table(p.services...))
	data := p.request
	data.flags = ack
	if v, _ := b.run(t, b.d.objs.Ingress, "eth0", data.bytes()); v != verdictNext {
		t.Errorf("verdict %d", v)
	}
	if v, _ := b.run(t, b.d.objs.Ingress, "eth0", p.request.bytes()); v != verdictRedirect {
		t.Errorf("new connection: verdict %d", v)
	}
}

// TestP7PortOfASocket: a masquerade port that a process of the host has is not
// taken, whether it talks to the same backend or listens.
func TestP7PortOfASocket(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61001})
	eachCase(func(f int, proto service.Protocol, name string) {
		t.Run(name, func(t *testing.T) {
			b.forget(t)
			p := makePair(f, proto, "outside", "NodePort", "remote", service.PolicyCluster)
			syncAll(t, b.d, b.n.table(p.services...))
			var held io.Closer
			in(t, b.n.node, func() (err error) {
				if proto == service.TCP {
					held, err = net.Listen(networks[0][f], join(nodeIP[f], "61000"))
				} else {
					held, err = net.ListenPacket(networks[1][f], join(nodeIP[f], "61000"))
				}
				return err
			})
			defer held.Close()
			v, out := b.send(t, p.request, 61000, "eth0")
			l4 := [2]int{34, 54}[f]
			if got := int(out[l4])<<8 | int(out[l4+1]); v != verdictRedirect || got != 61001 {
				t.Errorf("verdict %d, port %d", v, got)
			}
			if v, _ := b.send(t, p.request, 40000, "eth0"); v != verdictDrop {
				t.Errorf("with no port left: verdict %d", v)
			}
		})
	})
}

// watchedMaps is the kernel's maps with a look after each write.
type watchedMaps struct {
	writer
	after func()
}

func (w watchedMaps) write(c write) error {
	err := w.writer.write(c)
	w.after()
	return err
}

// TestRealMapsNeverLeaveAHole sends the first packet of a flow after every
// single write to the kernel's maps: it goes to an old backend or a new one.
func TestRealMapsNeverLeaveAHole(t *testing.T) {
	b := newBench(t, Options{})
	sets := [][]string{to(podA, "8080"), append(to(podA, "8080"), to(podB, "8080")...), to(podRemote, "8080"),
		append(append(to(podB, "8080"), to(podRemote, "8080")...), to(podA, "8080")...), to(podB, "8080")}
	kernel := b.d.maps
	for _, full := range []bool{false, true} {
		for i := range sets {
			old, now := sets[i], sets[(i+1)%len(sets)]
			s := svc{name: "s", backends: old}
			b.d.maps = kernel
			syncAll(t, b.d, b.n.table(s))
			s.backends = now
			table := b.n.table(s)
			allowed := strings.Join(append(append([]string{}, old...), now...), " ")
			writes := 0
			b.d.maps = watchedMaps{kernel, func() {
				writes++
				for f := range 2 {
					p := makePair(f, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
					b.forget(t)
					v, out := b.send(t, p.request, clientPort, "eth0")
					at, n := [2]int{30, 38}[f], [2]int{4, 16}[f]
					dst, _ := netip.AddrFromSlice(out[at : at+n])
					if v != verdictRedirect || !strings.Contains(allowed, dst.String()) {
						t.Errorf("set %d, full=%v, after write %d: verdict %d, to %s", i, full, writes, v, dst)
					}
				}
			}}
			var changed []service.Name
			for name := range table.Services {
				changed = append(changed, name)
			}
			if full {
				changed = nil
			}
			if err := b.d.Sync(t.Context(), table, changed); err != nil {
				t.Fatal(err)
			}
			if writes < 4 {
				t.Errorf("only %d writes: the test proves nothing", writes)
			}
		}
	}
}
