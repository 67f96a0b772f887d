package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// fill puts n flows, both halves, of one service into the table.
func (b *bench) fill(tb testing.TB, n int) {
	tb.Helper()
	now, err := monotonic()
	if err != nil {
		tb.Fatal(err)
	}
	var id uint32
	for _, plans := range b.d.planner.plans {
		id = plans[0].id
	}
	for i := range n {
		client := bpfTuple{Src: mapAddr(netip.MustParseAddr("10.200.0.1")), Sport: uint16(i), Proto: uint8(service.TCP), Dst: mapAddr(netip.MustParseAddr(vip[0])), Dport: uint16(i >> 16)}
		forward := bpfFlow{To: client, Service: id, Seen: now, Tcp: uint8(bpfFlowTcpTCP_SEEN_ACK), Packets: 3, Bytes: 300}
		forward.To.Dst = mapAddr(netip.MustParseAddr(podA[0]))
		reply := bpfTuple{Src: forward.To.Dst, Sport: forward.To.Dport, Dst: forward.To.Src, Dport: forward.To.Sport, Proto: client.Proto}
		back := bpfFlow{To: bpfTuple{Src: client.Dst, Sport: client.Dport, Dst: client.Src, Dport: client.Sport, Proto: client.Proto},
			Service: id, Seen: now, Flags: uint8(bpfFlowFlagFLOW_REPLY), Tcp: uint8(bpfFlowTcpTCP_SEEN_ACK), Packets: 2, Bytes: 200}
		for key, f := range map[bpfTuple]bpfFlow{client: forward, reply: back} {
			if err := b.d.objs.Flows.Put(key, f); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// What flows carried is counted once, when somebody asks and when they end, for
// the Service and for its backends alike.
func TestTrafficOfFlows(t *testing.T) {
	b := newBench(t, Options{Sizes: Sizes{Flows: 1024}})
	syncAll(t, b.d, b.n.table(svc{name: "s", backends: to(podA, "8080")}))
	const flows = 100
	b.fill(t, flows)
	check := func(when string) {
		t.Helper()
		b.d.settled = time.Time{}
		rows, err := b.d.Counts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var sum, of [2]uint64
		for _, r := range rows {
			for i := range sum {
				sum[i] += r.Packets[i]*1000 + r.Bytes[i]
			}
			for _, backend := range r.Backends {
				for i := range of {
					of[i] += backend.Packets[i]*1000 + backend.Bytes[i]
				}
			}
		}
		if want := [2]uint64{flows * 3300, flows * 2200}; sum != want || of != want {
			t.Errorf("%s: %v of Services, %v of backends, want %v", when, sum, of, want)
		}
	}
	check("open")
	check("open, again")
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	got, err := runCollect(b.d.objs.Collect, b.d.o.Timeouts, time.Duration(now)+48*time.Hour)
	if err != nil || got.Deleted != 2*flows {
		t.Fatalf("collected %+v: %v", got, err)
	}
	check("ended")
}

// Counters of what is no backend any more go, others stay.
func TestCountersOfGoneBackendsGo(t *testing.T) {
	b := newBench(t, Options{})
	syncAll(t, b.d, b.n.table(svc{name: "s", backends: to(podA, "8080")}))
	for _, port := range []uint16{8080, 9999} {
		key := bpfMemberKey{Addr: mapAddr(netip.MustParseAddr(podA[0])), Port: networkPort(port)}
		for _, plans := range b.d.planner.plans {
			key.Service = plans[0].id
		}
		if err := b.d.objs.BackendCounts.Put(key, bpfBackendStats{Translated: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.d.pruneCounts(); err != nil {
		t.Fatal(err)
	}
	left := map[bpfMemberKey]bpfBackendStats{}
	if err := readMap(b.d.objs.BackendCounts, left); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// BenchmarkSettle is a pass over 100,000 open flows, which is what a look at the
// counters costs: the first time all of them carried something.
func BenchmarkSettle(b *testing.B) {
	k := newBench(b, Options{Sizes: Sizes{Flows: 131072}})
	syncAll(b, k.d, k.n.table(svc{name: "s", backends: to(podA, "8080")}))
	k.fill(b, 100000)
	pass := func() time.Duration {
		start := time.Now()
		if got, err := runCollect(k.d.objs.Collect, k.d.o.Timeouts, 0); err != nil || got.Left != 200000 {
			b.Fatal(got, err)
		}
		return time.Since(start)
	}
	b.Logf("all flows carried something: %v", pass())
	for b.Loop() {
		pass()
	}
}
