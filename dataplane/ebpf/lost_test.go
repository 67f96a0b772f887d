package ebpf

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// unknownPortCases are P23: packets to an address that only Services have, and
// to none of their ports.
func unknownPortCases() (out []packetCase) {
	for f := range 2 {
		name := famNames[f] + " P23 "
		tcp := frame{flags: syn, seq: 1000, payload: []byte{}}.to(clientIP[f], clientPort, vip[f], 81)
		udp := frame{proto: service.UDP}.to(clientIP[f], clientPort, lbIP[f], 81)
		other := frame{proto: service.UDP}.to(clientIP[f], clientPort, vip[f], 80)
		echo := frame{src: clientIP[f], dst: vip[f], icmp: &icmpError{typ: [2]byte{8, 128}[f]}}
		unreachable := icmpTypes[0].as[f]
		reset := frame{flags: rst | ack, ack: 1001, payload: []byte{}}.to(vip[f], 81, clientIP[f], clientPort)
		data := tcp
		data.flags = ack
		refused := func(what string, in, answer frame) {
			out = append(out, packetCase{name + what, []svc{{name: "s", backends: to(podA, "8080")}}, []step{{dev: "eth0", in: in,
				verdict: verdictRedirect, out: &answer, reason: bpfReasonREASON_UNKNOWN_PORT}}})
		}
		refused("SYN to an unknown port", tcp, reset)
		refused("UDP to an unknown port", udp, frame{src: lbIP[f], dst: clientIP[f], icmp: unreachable.of(udp, 8)})
		refused("another protocol of a port", other, frame{src: vip[f], dst: clientIP[f], icmp: unreachable.of(other, 8)})
		refused("echo request", echo, frame{src: vip[f], dst: clientIP[f], icmp: unreachable.of(echo, 8)})
		lost := frame{src: clientIP[f], dst: vip[f], icmp: unreachable.of(udp, 8)}
		out = append(out,
			packetCase{name + "data to an unknown port passes", both(svc{name: "s"}), []step{{dev: "eth0", in: data, verdict: verdictNext}}},
			packetCase{name + "an error about no flow is dropped", both(svc{name: "s"}), []step{{dev: "eth0", in: lost, verdict: verdictDrop,
				reason: bpfReasonREASON_UNKNOWN_PORT}}})
	}
	return out
}

// sniff calls seen with every IP packet on a thread's device in a namespace,
// going out as well as coming in, until the test ends.
func (n *testNet) sniff(t testing.TB, dev string, seen func(packet []byte)) {
	t.Helper()
	var fd int
	in(t, n.client, func() (err error) {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		proto := networkPort(unix.ETH_P_ALL)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return err
		}
		tv := unix.Timeval{Usec: 50000}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: l.Attrs().Index})
	})
	var end atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for !end.Load() {
			if size, _, err := unix.Recvfrom(fd, buf, 0); err == nil && size >= 20 {
				seen(buf[:size])
			}
		}
	}()
	t.Cleanup(func() {
		end.Store(true)
		<-done
		unix.Close(fd)
	})
}

func addressesOf(packet []byte) (src, dst netip.Addr) {
	if packet[0]>>4 == 4 {
		src, _ = netip.AddrFromSlice(packet[12:16])
		dst, _ = netip.AddrFromSlice(packet[16:20])
	} else if len(packet) >= 40 {
		src, _ = netip.AddrFromSlice(packet[8:24])
		dst, _ = netip.AddrFromSlice(packet[24:40])
	}
	return src, dst
}

// TestP23UnknownPort: the node's default route leads back to who sent the
// packet, so that anything that is not refused comes back.
func TestP23UnknownPort(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(svc{name: "s", backends: to(podA, "8080")}))
	in(t, n.client, func() error { // a router sends back what is not its own
		return sysctl("net/ipv4/ip_forward", "1")
	})
	in(t, n.client, func() error { return sysctl("net/ipv6/conf/all/forwarding", "1") })
	var toVIP, fromVIP atomic.Int64
	n.sniff(t, "eth0", func(p []byte) {
		src, dst := addressesOf(p)
		for f := range 2 {
			if dst.String() == vip[f] {
				toVIP.Add(1)
			}
			if src.String() == vip[f] {
				fromVIP.Add(1)
			}
		}
	})
	time.Sleep(20 * time.Millisecond)
	for f := range 2 {
		for p := range 2 {
			toVIP.Store(0)
			fromVIP.Store(0)
			wantRefused(t, func() error { _, err := ask(n.client, networks[p][f], join(vip[f], "81")); return err })
			time.Sleep(200 * time.Millisecond)
			if toVIP.Load() != 1 || fromVIP.Load() != 1 {
				t.Errorf("%s: %d packets to the address and %d answers, want one each", networks[p][f], toVIP.Load(), fromVIP.Load())
			}
		}
	}
	if got := d.metric(t, bpfReasonREASON_UNKNOWN_PORT); got != 4 {
		t.Errorf("%d refused, want 4", got)
	}
}

// TestP5LostUnderTraffic deletes halves at random while connections run, and
// looks on the client's side for addresses that it must not see.
func TestP5LostUnderTraffic(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	for _, policy := range []service.Policy{service.PolicyCluster, service.PolicyLocal} {
		t.Run(map[service.Policy]string{service.PolicyCluster: "masqueraded", service.PolicyLocal: "source kept"}[policy], func(t *testing.T) {
			syncAll(t, d, n.table(both(svc{name: "s", policy: policy, backends: to(podA, "8080"), local: to(podA, "8080")})...))
			var untranslated, packets atomic.Int64
			n.sniff(t, "eth0", func(p []byte) {
				src, _ := addressesOf(p)
				packets.Add(1)
				if s := src.String(); s == podA[0] || s == podA[1] {
					untranslated.Add(1)
				}
			})
			rebuilt := d.metric(t, bpfReasonREASON_FLOW_REBUILT)
			n.runAndLose(t, d)
			if untranslated.Load() != 0 || packets.Load() < 400 {
				t.Errorf("%d of %d packets have a Pod's source", untranslated.Load(), packets.Load())
			}
			if got := d.metric(t, bpfReasonREASON_FLOW_REBUILT) - rebuilt; got < 100 {
				t.Errorf("only %d halves were made again: the test proves little", got)
			}
		})
	}
}

// runAndLose keeps one connection of each kind busy, asking and streaming, and
// deletes either half of them again and again.
func (n *testNet) runAndLose(t *testing.T, d *Dataplane) {
	var conns []net.Conn
	for f := range 2 {
		for p := range 2 {
			in(t, n.client, func() error {
				c, err := net.DialTimeout(networks[p][f], join(nodeIP[f], "30080"), 2*time.Second)
				if err == nil {
					conns = append(conns, c)
					_, err = exchange(c, 0)
				}
				return err
			})
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 100 {
		for _, c := range conns {
			lost := n.loseOne(t, d, c, rng)
			c.SetDeadline(time.Now().Add(3 * time.Second))
			a, err := exchange(c, 1+rng.IntN(1200))
			if err != nil || a.name != "a" {
				t.Fatalf("round %d, %s to %v: %v %v", round, c.LocalAddr().Network(), c.RemoteAddr(), a, err)
			}
			<-lost
		}
	}
	for _, c := range conns {
		c.Close()
	}
}

// loseOne deletes one half of a connection's flow that has both; now before it
// sends, and now between its question and the answer.
func (n *testNet) loseOne(t *testing.T, d *Dataplane, c net.Conn, rng *rand.Rand) <-chan struct{} {
	done := make(chan struct{})
	all := map[bpfTuple]bpfFlow{}
	if err := readMap(d.objs.Flows, all); err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	forward, delay := rng.IntN(2) == 0, time.Duration(rng.IntN(3))*100*time.Microsecond
	for k, v := range all {
		reply := v.Flags&uint8(bpfFlowFlagFLOW_REPLY) != 0
		own := k.Sport
		if reply {
			own = v.To.Dport
		}
		if _, whole := all[reversed(v.To)]; !whole || own != networkPort(port) || reply == forward {
			continue
		}
		if delay == 0 {
			d.objs.Flows.Delete(k)
			break
		}
		go func() {
			defer close(done)
			time.Sleep(delay)
			d.objs.Flows.Delete(k)
		}()
		return done
	}
	close(done)
	return done
}

// TestP15ClearedFlows: when every flow is gone, an established client gets a
// reset at once, and no silent move to another backend.
func TestP15ClearedFlows(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(svc{name: "s", backends: append(to(podA, "8080"), to(podB, "8080")...)}))
	b := &bench{n: n, d: d}
	for f := range 2 {
		in(t, n.client, func() error {
			c, err := net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 2*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := exchange(c, 0); err != nil {
				return err
			}
			b.forget(t)
			start := time.Now()
			a, err := exchange(c, 0)
			if err == nil || fmt.Sprint(err) == "" || time.Since(start) > 500*time.Millisecond {
				t.Errorf("%s: %v %v after %v, want a reset at once", famNames[f], a, err, time.Since(start))
			}
			return nil
		})
	}
}
