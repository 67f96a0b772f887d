package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/nodeproxy/nodeproxy/service"
)

// runXDP gives a packet to the program at XDP as if it came by an interface, for this
// host or, with a mac, for another one at the same wire.
func (b *bench) runXDP(t testing.TB, dev string, packet []byte, mac byte) (int, []byte) {
	t.Helper()
	ctx := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(ctx[4:], uint32(len(packet)))
	binary.NativeEndian.PutUint32(ctx[12:], uint32(b.ifindex[dev]))
	verdict, _, out := b.runWith(t, b.d.objs.xdp.Uplink, dev, packet, ctx, mac)
	return verdict, out
}

// readyCounted is READY_COUNTED of bpf/flow_types.h.
const readyCounted = 2

// makeFast makes all halves those of a flow that conntrack owns and lets pass by.
func (b *bench) makeFast(t *testing.T, devs map[bool]string, data frame) {
	t.Helper()
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	for key, f := range b.flows(t) {
		reply := f.Flags&uint8(bpfFlowFlagFLOW_REPLY) != 0
		f.Flags |= uint8(bpfFlowFlagFLOW_STACK)
		f.Id, f.Fast, f.Ready, f.Checked = 7, 7, readyCounted, uint32(now/1e9)
		f.Ifindex, f.Next, f.Ack = uint32(b.ifindex[devs[reply]]), data.seq, data.ack
		if err := b.d.objs.Flows.Put(key, f); err != nil {
			t.Fatal(err)
		}
	}
}

// plainFrames are packets of an open flow that both hooks may forward.
func plainFrames(f frame) map[string]frame {
	f.flags = ack | psh
	out := map[string]frame{"data": f}
	change := func(name string, with func(*frame)) {
		g := f
		with(&g)
		out[name] = g
	}
	change("nothing", func(g *frame) { g.payload = []byte{} })
	change("an odd length", func(g *frame) { g.payload = []byte("odd") })
	change("1,400 bytes", func(g *frame) { g.payload = bytes.Repeat([]byte("ab"), 700) })
	change("a TTL of 2", func(g *frame) { g.ttl = 2 })
	change("TOS", func(g *frame) { g.tos = 0x2e << 2 })
	change("a wrong checksum", func(g *frame) { g.wrongCheck = 0x1111 })
	change("no DF", func(g *frame) { g.noDF = true })
	if f.proto == service.UDP {
		change("a checksum of zero", func(g *frame) { g.zeroCheck = true })
	} else {
		change("TCP options", func(g *frame) { g.tcpOptions = make([]byte, 12) })
	}
	for i := range 64 { // some of these have a checksum near its ends
		change(fmt.Sprint("payload ", i), func(g *frame) { g.payload = binary.BigEndian.AppendUint16(nil, uint16(i*1021)) })
	}
	return out
}

// Packets that are forwarded at XDP are the same, bit for bit, as those that tc forwards:
// of flows that conntrack owns, and of our own. Frames for other hosts are not forwarded.
func TestXDPGivesWhatTCGives(t *testing.T) {
	b := newBench(t, Options{XDP: XDPGeneric, XDPInterfaces: []string{"eth0", "poda"}})
	b.n.serveAll(t)
	for f := range 2 { // so that the neighbours are known
		if _, err := ask(b.n.client, networks[0][f], join(podA[f], "8080")); err != nil {
			t.Fatal(err)
		}
	}
	const passed, sent, redirected = 2, 3, 4
	for _, stack := range []bool{false, true} {
		eachCase(func(f int, proto service.Protocol, name string) {
			forwarded := 0
			for _, policy := range []service.Policy{service.PolicyCluster, service.PolicyLocal} {
				p := makePair(f, proto, "outside", "NodePort", "local", policy)
				if proto != service.TCP && proto != service.UDP {
					return
				}
				syncAll(t, b.d, b.n.table(p.services...))
				for _, reply := range []bool{false, true} {
					in, dev := p.request, p.clientDev
					if reply {
						in, dev = p.reply, p.backendDev
					}
					for what, frame := range plainFrames(in) {
						b.forget(t)
						b.run(t, b.d.objs.Ingress, p.clientDev, p.request.bytes())
						b.run(t, b.d.objs.Ingress, p.backendDev, p.reply.bytes())
						if stack {
							b.makeFast(t, map[bool]string{false: p.clientDev, true: p.backendDev}, frame)
						}
						if verdict, _ := b.runXDP(t, dev, frame.bytes(), 0x55); verdict != passed {
							t.Errorf("%s: %s for another host at XDP: verdict %d", name, what, verdict)
						}
						verdict, atXDP := b.runXDP(t, dev, frame.bytes(), 0)
						if verdict == passed {
							continue
						}
						if verdict != sent && verdict != redirected {
							t.Errorf("%s: %s at XDP: verdict %d", name, what, verdict)
							continue
						}
						forwarded++
						tc, atTC := b.run(t, b.d.objs.Ingress, dev, frame.bytes())
						for try := 0; stack && tc == verdictNext && try < 3; try++ { // a second is over: conntrack was asked
							b.makeFast(t, map[bool]string{false: p.clientDev, true: p.backendDev}, frame)
							tc, atTC = b.run(t, b.d.objs.Ingress, dev, frame.bytes())
						}
						if tc != verdictRedirect || !bytes.Equal(atXDP[12:], atTC[12:]) {
							t.Errorf("%s, reply %t, conntrack's %t: %s: tc says %d\n XDP %x\n  tc %x", name, reply, stack, what, tc, atXDP[12:], atTC[12:])
						}
					}
				}
			}
			t.Logf("%s, conntrack's %t: %d packets are forwarded at both", name, stack, forwarded)
			if forwarded < 200 {
				t.Errorf("%s, conntrack's %t: so few prove nothing", name, stack)
			}
		})
	}
}

// A copy of a half that conntrack owns asks conntrack before it is fast again, and a copy of
// our own goes on as it is.
func TestCopiedHalvesStepBack(t *testing.T) {
	b := newBench(t, Options{})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
	syncAll(t, b.d, b.n.table(p.services...))
	b.run(t, b.d.objs.Ingress, p.clientDev, p.request.bytes())
	b.run(t, b.d.objs.Ingress, p.backendDev, p.reply.bytes())
	own := b.flows(t)
	b.makeFast(t, map[bool]string{false: p.clientDev, true: p.backendDev}, p.request)
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, tracked := range []bool{true, false} {
		larger, err := ebpf.NewMap(spec.Maps[bpfMapFlows])
		if err != nil {
			t.Fatal(err)
		}
		defer larger.Close()
		if !tracked {
			for key, f := range own {
				if err := b.d.objs.Flows.Put(key, f); err != nil {
					t.Fatal(err)
				}
			}
		}
		want, got := b.flows(t), map[bpfTuple]bpfFlow{}
		if err := errors.Join(copyMap(larger, b.d.objs.Flows, visitOf(bpfMapFlows)), readMap(larger, got)); err != nil {
			t.Fatal(err)
		}
		for key, f := range want {
			if tracked {
				f.Fast, f.Ready = 0, 0
			}
			if got[key] != f {
				t.Errorf("conntrack's %t: copied %+v, want %+v", tracked, got[key], f)
			}
		}
		if len(got) != 2 {
			t.Errorf("%d halves are copied, want 2", len(got))
		}
	}
}
