package ebpf

import (
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestPortsInTimeWait has a backend close every connection first, so that each
// masquerade port is in TIME_WAIT there when its turn comes again. A flow that meets one
// is through with the second SYN.
func TestPortsInTimeWait(t *testing.T) {
	n := newTestNet(t)
	for f := range 2 {
		closeFirst(t, n, f)
	}
	d := n.start(t, Options{PacketsOnly: true, NATPortMin: 61000, NATPortMax: 61015})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podRemote, "8080"), policy: service.PolicyCluster})...))
	for f := range 2 {
		var slowest time.Duration
		for i := range 150 {
			time.Sleep(5 * time.Millisecond) // the 16 ports rest for 50 ms
			begun := time.Now()
			in(t, n.client, func() error {
				c, err := net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 5*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				slowest = max(slowest, time.Since(begun))
				if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
					t.Errorf("connection %d: %q, %v", i, got, err)
				}
				return nil
			})
		}
		t.Logf("%s: the slowest of 150 took %v", famNames[f], slowest)
		if slowest > 1800*time.Millisecond { // Linux sends the third SYN after 3 s, or 2
			t.Errorf("%s: a connection took %v", famNames[f], slowest)
		}
	}
}

// closeFirst serves "bye" on the other node.
func closeFirst(t *testing.T, n *testNet, f int) {
	var l net.Listener
	in(t, n.remote, func() (err error) {
		l, err = net.Listen(networks[0][f], join(podRemote[f], "8080"))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.Write([]byte("bye")) // the client sees what is missing
				c.Close()
			}
		}
	}()
}

// TestTimeWaitKeepsPort: a flow that the backend closed first is kept for as long
// as Linux keeps TIME_WAIT; of others, the backend has nothing left.
func TestTimeWaitKeepsPort(t *testing.T) {
	b := newBench(t, Options{})
	p := makePair(0, service.TCP, "outside", "NodePort", "local", service.PolicyLocal)
	syncAll(t, b.d, b.n.table(p.services...))
	established := func() {
		b.forget(t)
		b.send(t, p.request, clientPort, "eth0")
		b.run(t, b.d.objs.Ingress, "poda", p.reply.bytes())
	}
	client, backend := p.request, p.reply
	client.flags, backend.flags = fin|ack, fin|ack
	byClient := func() { b.send(t, client, clientPort, "eth0") }
	byBackend := func() { b.run(t, b.d.objs.Ingress, "poda", backend.bytes()) }
	for _, c := range []struct {
		name  string
		fins  []func()
		after time.Duration
		left  int
	}{
		{"client first", []func(){byClient, byBackend}, 29 * time.Second, 2},
		{"client first", []func(){byClient, byBackend}, 31 * time.Second, 0},
		{"backend first", []func(){byBackend, byClient}, 61 * time.Second, 2},
		{"backend first", []func(){byBackend, byClient}, 66 * time.Second, 0},
		{"client first and again", []func(){byClient, byBackend, byClient}, 31 * time.Second, 0},
		{"backend first and again", []func(){byBackend, byClient, byBackend}, 61 * time.Second, 2},
	} {
		established()
		for _, send := range c.fins {
			send()
		}
		var now time.Duration
		for _, v := range b.flows(t) {
			now = max(now, time.Duration(v.Seen))
		}
		if _, err := runCollect(b.d.objs.Collect, b.d.o.Timeouts, now+c.after); err != nil {
			t.Fatal(err)
		}
		if left := len(b.flows(t)); left != c.left {
			t.Errorf("%s, after %v: %d halves left, want %d", c.name, c.after, left, c.left)
		}
	}
}

// TestSparePorts: flows get spare ports once the reserved ones are taken, and the
// answers come back from there.
func TestSparePorts(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61003, spareMin: 2000, spareMax: 2003})
	for f := range 2 {
		for _, proto := range []service.Protocol{service.TCP, service.UDP} {
			const room = 8
			b.forget(t)
			p := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
			syncAll(t, b.d, b.n.table(p.services...))
			seen := map[uint16]bool{}
			for i := range uint16(room) {
				v, out := b.send(t, p.request, 40000+i, "eth0")
				if v != verdictRedirect {
					t.Fatalf("%s %s: flow %d: verdict %d", famNames[f], proto, i+1, v)
				}
				l4 := [2]int{34, 54}[f]
				port := uint16(out[l4])<<8 | uint16(out[l4+1])
				seen[port] = true
				if port > 2003 && port < 61000 || port < 2000 {
					t.Errorf("%s %s: port %d", famNames[f], proto, port)
				}
				reply := p.reply
				reply.dport = port
				want := p.replyOut.hop()
				want.dport = 40000 + i
				if _, got := b.run(t, b.d.objs.Ingress, "poda", reply.bytes()); string(got) != string(want.bytes()) {
					t.Errorf("%s %s: the answer to port %d becomes %x, want %x", famNames[f], proto, port, got, want.bytes())
				}
			}
			if len(seen) != room {
				t.Errorf("%s %s: %d ports for %d flows", famNames[f], proto, len(seen), room)
			}
			if v, _ := b.send(t, p.request, 41000, "eth0"); v != verdictDrop {
				t.Errorf("%s %s: with no port left: verdict %d", famNames[f], proto, v)
			}
		}
	}
}

// TestTimeWaitOutlivesClientPort: a client that uses its port again leaves the
// masquerade port of the old connection to nobody else while the backend may be in
// TIME_WAIT there; when the client closed first, nothing stays.
func TestTimeWaitOutlivesClientPort(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61001})
	for f := range 2 {
		for _, first := range []string{"backend", "client"} {
			t.Run(famNames[f]+" "+first, func(t *testing.T) {
				b.forget(t)
				p := makePair(f, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
				syncAll(t, b.d, b.n.table(p.services...))
				dial := func() (port uint16, verdict int) {
					v, out := b.send(t, p.request, clientPort, "eth0")
					l4 := [2]int{34, 54}[f]
					return uint16(out[l4])<<8 | uint16(out[l4+1]), v
				}
				port, _ := dial()
				backend, client := p.reply, p.request
				backend.dport = port
				b.run(t, b.d.objs.Ingress, "poda", backend.bytes())
				backend.flags, client.flags = fin|ack, fin|ack
				fins := []func(){
					func() { b.run(t, b.d.objs.Ingress, "poda", backend.bytes()) },
					func() { b.send(t, client, clientPort, "eth0") },
				}
				if first == "client" {
					slices.Reverse(fins)
				}
				for _, send := range fins {
					send()
				}
				again, v := dial()
				if v != verdictRedirect {
					t.Fatalf("the second connection: verdict %d", v)
				}
				halves := len(b.flows(t))
				if first == "client" && halves != 2 {
					t.Errorf("%d halves, want those of the new flow", halves)
				}
				if first == "backend" && halves != 3 && again != port {
					t.Errorf("%d halves, want the old reply half too", halves)
				}
				for k, v := range b.flows(t) {
					if k.Sport == networkPort(clientPort) && v.Tcp != 0 {
						t.Errorf("the new flow has flags %#x", v.Tcp)
					}
					if k.Dport == networkPort(again) && v.Tcp != 0 {
						t.Errorf("its reply half has flags %#x", v.Tcp)
					}
				}
				var now time.Duration
				for _, v := range b.flows(t) {
					now = max(now, time.Duration(v.Seen))
				}
				if _, err := runCollect(b.d.objs.Collect, b.d.o.Timeouts, now+3*time.Minute); err != nil {
					t.Fatal(err)
				}
				if left := b.flows(t); len(left) != 0 {
					t.Errorf("left: %+v", left)
				}
			})
		}
	}
}

// TestAnsweredQuestionsGiveWay: with all masquerade ports taken, a question by UDP
// gets that of one which was answered a quarter of a second ago, and not that of one
// that still waits or of an exchange that goes on.
func TestAnsweredQuestionsGiveWay(t *testing.T) {
	b := newBench(t, Options{NATPortMin: 61000, NATPortMax: 61002})
	for f := range 2 {
		b.forget(t)
		p := makePair(f, service.UDP, "outside", "NodePort", "local", service.PolicyCluster)
		syncAll(t, b.d, b.n.table(p.services...))
		ask := func(client uint16) (port uint16, verdict int) {
			v, out := b.send(t, p.request, client, "eth0")
			l4 := [2]int{34, 54}[f]
			return uint16(out[l4])<<8 | uint16(out[l4+1]), v
		}
		answer := func(port uint16) {
			reply := p.reply
			reply.dport = port
			b.run(t, b.d.objs.Ingress, "poda", reply.bytes())
		}
		answered, _ := ask(1)
		answer(answered)
		ask(2) // waits
		more, _ := ask(3)
		answer(more)
		ask(3) // goes on
		if _, v := ask(4); v != verdictDrop {
			t.Errorf("%s: at once: verdict %d", famNames[f], v)
		}
		time.Sleep(300 * time.Millisecond)
		if got, v := ask(4); v != verdictRedirect || got != answered {
			t.Errorf("%s: after 300 ms: verdict %d, port %d, want %d", famNames[f], v, got, answered)
		}
		if _, v := ask(5); v != verdictDrop {
			t.Errorf("%s: once more: verdict %d", famNames[f], v)
		}
		b.checkPairs(t)
	}
}
