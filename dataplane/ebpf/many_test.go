package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestP13ManyFlows collects half of 500,000 flows while packets of the others
// go by: one pass ends what is over, nothing else, and takes a second at most.
func TestP13ManyFlows(t *testing.T) {
	const flows = 500_000
	b := newBench(t, Options{Sizes: Sizes{Flows: flows * 7 / 5}, Timeouts: Timeouts{Established: 5 * time.Second, Opening: 5 * time.Second}})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyLocal)
	syncAll(t, b.d, b.n.table(p.services...))
	data := p.request
	data.flags = ack
	b.send(t, p.request, clientPort, "eth0")
	reply := p.reply
	reply.dport = clientPort
	b.run(t, b.d.objs.Ingress, "poda", reply.bytes())
	verdict, _ := b.send(t, data, clientPort, "eth0")
	fillFlows(t, b, flows)
	b.send(t, data, clientPort, "eth0") // filling took a while
	stop, lost := make(chan struct{}), make(chan int)
	go func() { // the first flow is one of the living
		n := 0
		for {
			select {
			case <-stop:
				lost <- n
				return
			default:
			}
			if got, _ := b.send(t, data, clientPort, "eth0"); got != verdict {
				n++
			}
		}
	}()
	start := time.Now()
	got, err := runCollect(b.d.objs.Collect, b.d.o.Timeouts, 0)
	took := time.Since(start)
	close(stop)
	if n := <-lost; n > 0 || err != nil {
		t.Errorf("%d packets of a living flow were not forwarded; error %v", n, err)
	}
	t.Logf("a pass over %d flows of which %d were over: %s", flows, got.Deleted/2, took)
	if got.Left != flows+2 { // the agent's own pass may have been there before
		t.Errorf("%+v, want %d halves left", got, flows+2)
	}
	if limit := slowness * time.Second; took > limit {
		t.Errorf("the pass took %s, want %s", took, limit)
	}
	if fresh := b.d.metric(t, bpfReasonREASON_FLOW_NEW); fresh != 1 {
		t.Errorf("%d flows were begun, want 1", fresh)
	}
}

// fillFlows makes n flows of the one that is there; every second one was last
// seen too long ago.
func fillFlows(t *testing.T, b *bench, n int) {
	t.Helper()
	var keys []bpfTuple
	var values []bpfFlow
	flush := func() {
		if _, err := b.d.objs.Flows.BatchUpdate(keys, values, nil); err != nil {
			t.Fatal(err)
		}
		keys, values = keys[:0], values[:0]
	}
	template := b.flows(t)
	if len(template) != 2 {
		t.Fatalf("%d halves, want those of one flow", len(template))
	}
	for i := range n {
		client := mapAddr(netip.AddrFrom4([4]byte{100, 64 + byte(i>>16), byte(i >> 8), byte(i)}))
		for k, v := range template {
			if v.Flags&uint8(bpfFlowFlagFLOW_REPLY) == 0 {
				k.Src, v.To.Src = client, client
			} else {
				k.Dst, v.To.Dst = client, client
			}
			if i%2 == 0 {
				v.Seen -= uint64(8 * time.Second) // no more: a VM has only just booted
			} else {
				v.Seen += uint64(time.Hour)
			}
			keys, values = append(keys, k), append(values, v)
		}
		if len(keys) >= 10_000 {
			flush()
		}
	}
	if len(keys) > 0 {
		flush()
	}
}

const (
	manySockets = 200_000 // opened and closed
	heldSockets = 50      // to each of two Services
)

// TestP2ManySockets opens and closes many sockets to a Service before one
// backend goes: exactly those that are connected with it are ended, and one that
// is not connected, though it was answered from there, goes on.
func TestP2ManySockets(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	cg := cgroup(t)
	d := n.start(t, Options{CgroupPath: cg})
	staying := both(svc{name: "staying", backends: to(podRemote, "8080"), port: 81, nodePort: 30081})
	syncAll(t, d, n.table(append(staying, both(svc{name: "going", backends: to(podA, "8080")})...)...))
	said := n.saying(t, cg, "udp4", join(vip[0], "80")+","+join(vip[0], "81"), "many")
	if got := <-said; got != "connected" {
		t.Fatal(got)
	}
	syncAll(t, d, n.table(append(staying, both(svc{name: "going", backends: to(podB, "8080")})...)...))
	want := fmt.Sprintf("%d of %d ended, 0 of %d others, not connected: b after a", heldSockets, heldSockets, heldSockets)
	if got := <-said; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// holdMany is the client of TestP2ManySockets: addrs are the Service whose
// backend will go, and one whose does not.
func holdMany(addrs string) {
	going, staying, _ := strings.Cut(addrs, ",")
	for range manySockets / slowness {
		c, err := net.Dial("udp4", going)
		if err != nil {
			fmt.Println(err)
			return
		}
		c.Close()
	}
	loose, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		fmt.Println(err)
		return
	}
	first := askLoose(loose, going)
	var ended [2]atomic.Int64
	for i, addr := range []string{going, staying} {
		for range heldSockets {
			c, err := net.Dial("udp4", addr)
			if err == nil {
				_, err = exchange(c, 0)
			}
			if err != nil {
				fmt.Println(err)
				return
			}
			c.SetDeadline(time.Time{})
			go func() {
				if _, err := c.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNABORTED) {
					ended[i].Add(1)
				}
			}()
		}
	}
	fmt.Println("connected")
	for range 50 * slowness {
		if ended[0].Load() == heldSockets {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // for those that should not be
	fmt.Printf("%d of %d ended, %d of %d others, not connected: %s after %s\n", ended[0].Load(), heldSockets, ended[1].Load(), heldSockets,
		askLoose(loose, going), first)
}

// askLoose returns who answers a socket that is not connected.
func askLoose(c net.PacketConn, addr string) string {
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return err.Error()
	}
	buf := make([]byte, 256)
	c.SetDeadline(time.Now().Add(slowness * time.Second))
	if _, err := c.WriteTo([]byte("x"), to); err != nil {
		return err.Error()
	}
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		return err.Error()
	}
	name, _, _ := strings.Cut(string(buf[:n]), " ")
	return name
}
