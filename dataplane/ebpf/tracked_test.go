package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// This file shows what flows that conntrack owns do, with real packets: docs/design/
// flows.md has their states.

var bothWays = []Forwarding{ForwardingFast, ForwardingStack}

// eachWay runs a test on a node that serves a Service at Pod a, on both ways.
func eachWay(t *testing.T, run func(t *testing.T, n *testNet, d *Dataplane)) {
	for _, way := range bothWays {
		t.Run(string(way), func(t *testing.T) {
			n := newTestNet(t)
			n.serveAll(t)
			d := n.start(t, Options{PacketsOnly: true, Forwarding: way})
			syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
			run(t, n, d)
		})
	}
}

// hold keeps a connection open that said hello, from a port of the caller's choice.
func hold(t *testing.T, network, to, from string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 2 * time.Second, Control: reuse}
	if strings.HasPrefix(network, "tcp") {
		d.LocalAddr, _ = net.ResolveTCPAddr(network, from)
	} else {
		d.LocalAddr, _ = net.ResolveUDPAddr(network, from)
	}
	c, err := d.Dial(network, to)
	if err != nil {
		t.Fatalf("dial %s from %s: %v", to, from, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestDirectBesideService: a client uses one source port towards the Service and
// towards its endpoint itself, in both orders. Each gets its own answers.
func TestDirectBesideService(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, _ *Dataplane) {
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			for i, order := range [][2]string{
				{join(vip[f], "80"), join(podA[f], "8080")}, {join(podA[f], "8080"), join(vip[f], "80")},
			} {
				from := join(podB[f], fmt.Sprint(31000+i))
				in(t, n.podB, func() error {
					var conns []net.Conn
					for _, to := range order {
						conns = append(conns, hold(t, network, to, from))
					}
					for range 3 {
						for j, c := range conns {
							if a, err := exchange(c, 0); err != nil || a.name != "a" {
								t.Errorf("%s before %s: connection %d: %v %v", order[0], order[1], j, a, err)
							}
						}
					}
					return nil
				})
			}
		})
	})
}

// conntrackEntries lists the node's entries of TCP to a port.
func (n *testNet) conntrackEntries(t testing.TB, port string) string {
	t.Helper()
	var out []byte
	in(t, n.node, func() (err error) {
		out, err = exec.Command("conntrack", "-L", "-p", "tcp", "--orig-port-dst", port).Output()
		return err
	})
	return string(out)
}

// stream sends on a connection until the fast way is open to it, where there is one.
func stream(t *testing.T, c net.Conn) {
	t.Helper()
	for range 60 {
		if _, err := exchange(c, 2000); err != nil {
			t.Fatalf("exchange: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// fastHalves counts the halves whose packets pass the stack by.
func fastHalves(t *testing.T, d *Dataplane) (fast int) {
	t.Helper()
	flows := map[bpfTuple]bpfFlow{}
	if err := readMap(d.objs.Flows, flows); err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.Fast == f.Id {
			fast++
		}
	}
	return fast
}

// TestForgedSegmentsEndNothing: RST, SYN and FIN with sequence numbers that are not
// the connection's, from the client's address, do not end it, nor shorten the time
// that conntrack has it for.
func TestForgedSegmentsEndNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		for f := range 2 {
			in(t, n.client, func() error {
				c := hold(t, networks[0][f], join(nodeIP[f], "30080"), join(clientIP[f], "41000"))
				stream(t, c)
				if fast := fastHalves(t, d); d.o.Forwarding == ForwardingFast && fast < 2 {
					t.Errorf("%s: %d halves on the fast way", famNames[f], fast)
				}
				for _, flags := range []byte{rst, syn, fin | ack, rst | ack} {
					for seq := uint32(1 << 30); seq != 0; seq += 1 << 30 {
						forged := frame{proto: service.TCP, flags: flags, seq: seq, ack: seq}.to(clientIP[f], 41000, nodeIP[f], 30080)
						if err := n.sendTo(forged); err != nil {
							return err
						}
					}
				}
				time.Sleep(50 * time.Millisecond)
				if got := n.conntrackEntries(t, "30080"); f == 0 && !strings.Contains(got, "ESTABLISHED") {
					t.Errorf("after forged segments conntrack has: %s", got)
				}
				for range 20 {
					if a, err := exchange(c, 2000); err != nil || a.name != "a" {
						t.Errorf("%s: after forged segments: %v %v", famNames[f], a, err)
						break
					}
				}
				return c.Close()
			})
		}
	})
}

// withProtocol gives a packet another protocol number.
func withProtocol(packet []byte, proto service.Protocol) []byte {
	ip := packet[14:]
	if ip[0]>>4 == 6 {
		ip[6] = byte(proto)
		return packet
	}
	ip[9], ip[10], ip[11] = byte(proto), 0, 0
	binary.BigEndian.PutUint16(ip[10:], ipChecksum(ip[:20]))
	return packet
}

func (n *testNet) sendTo(f frame) error { return n.sendBytes(f.bytes()) }

// sendBytes puts a frame from the client on the wire, for the node.
func (n *testNet) sendBytes(packet []byte) error {
	host, err := n.hostAddr()
	if err != nil {
		return err
	}
	return inNS(n.client, func() error { return sendFrame(packet, host) })
}

// TestConntrackSeesTheEnd: a connection that was on the fast way, and is closed or
// reset, does not stay established in conntrack.
func TestConntrackSeesTheEnd(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		for _, how := range []string{"closed", "reset"} {
			in(t, n.client, func() error {
				c := hold(t, "tcp4", join(nodeIP[0], "30080"), join(clientIP[0], "0"))
				stream(t, c)
				if how == "reset" {
					if err := c.(*net.TCPConn).SetLinger(0); err != nil {
						return err
					}
				}
				return c.Close()
			})
			ended := func() bool {
				for line := range strings.Lines(n.conntrackEntries(t, "30080")) {
					var proto string
					var number, left int
					if _, err := fmt.Sscan(line, &proto, &number, &left); err == nil && strings.Contains(line, "ESTABLISHED") && left > 60 {
						return false
					}
				}
				return true
			}
			eventually(t, how+": conntrack knows of the end", ended)
			if fast := fastHalves(t, d); fast > 0 {
				t.Errorf("%s: %d halves are on the fast way still", how, fast)
			}
		}
	})
}

func eventually(t *testing.T, what string, is func() bool) { within(t, 5*time.Second, what, is) }

func within(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Errorf("not within %s: %s", limit, what)
}

// TestDeletedEntryEndsTheFastWay: what an operator deletes with conntrack -D is over,
// also on the fast way, and the next connection is served.
func TestDeletedEntryEndsTheFastWay(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true, Forwarding: ForwardingFast})
	syncAll(t, d, n.table(svc{name: "s", proto: service.TCP, backends: to(podA, "8080")}))
	in(t, n.client, func() error {
		c := hold(t, "tcp4", join(nodeIP[0], "30080"), join(clientIP[0], "0"))
		stream(t, c)
		if err := runIn(n, "conntrack -D -p tcp --orig-port-dst 30080"); err != nil {
			return err
		}
		var err error
		for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			_, err = exchange(c, 100)
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the connection that was deleted: %v, want a reset", err)
		}
		a, err := askHere("tcp4", join(nodeIP[0], "30080"), "", 0)
		wantAnswer(t, a, err, "a", nodeIP[0])
		return nil
	})
}

// TestFlushedRuleset: somebody removes all tables of nf_tables. Ours is there again
// at once, and what is open goes on.
func TestFlushedRuleset(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		in(t, n.client, func() error {
			c := hold(t, "tcp4", join(nodeIP[0], "30080"), join(clientIP[0], "0"))
			if _, err := exchange(c, 0); err != nil {
				return err
			}
			for _, family := range []string{"ip", "ip6"} {
				if err := runIn(n, "nft delete table "+family+" nodeproxy"); err != nil {
					return err
				}
			}
			eventually(t, "our table is there again", func() bool { return runIn(n, "nft list chain ip6 nodeproxy nat-prerouting") == nil })
			if a, err := exchange(c, 0); err != nil || a.name != "a" {
				t.Errorf("the open connection: %v %v", a, err)
			}
			a, err := askHere("tcp4", join(nodeIP[0], "30080"), "", 0)
			wantAnswer(t, a, err, "a", nodeIP[0])
			return nil
		})
		if d.Drift() == 0 {
			t.Error("the repair was not counted")
		}
	})
}

// TestAutoFollowsForeignRules: a rule in FORWARD sends all packets through the stack,
// where it is obeyed; without it, plain ones pass by again. What is open goes on.
func TestAutoFollowsForeignRules(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true, Forwarding: ForwardingAuto})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	want := func(way Forwarding) {
		t.Helper()
		eventually(t, "the way is "+string(way), func() bool { return d.Way().Forwarding == way })
	}
	in(t, n.client, func() error {
		c := hold(t, "tcp4", join(nodeIP[0], "30080"), join(clientIP[0], "0"))
		stream(t, c)
		want(ForwardingFast)
		if err := runIn(n, "nft add table inet strict && nft add chain inet strict f '{ type filter hook forward priority 0; }' && nft add rule inet strict f ip saddr 10.244.1.3 drop"); err != nil {
			return err
		}
		want(ForwardingStack)
		if _, err := ask(n.podB, "tcp4", join(vip[0], "80")); err == nil {
			t.Error("what the rule forbids was answered")
		}
		stream(t, c)
		if err := runIn(n, "nft delete table inet strict"); err != nil {
			return err
		}
		want(ForwardingFast)
		stream(t, c)
		return nil
	})
	a, err := ask(n.podB, "tcp4", join(vip[0], "80"))
	wantAnswer(t, a, err, "a", podB[0])
}

// TestFramesForOthers: frames that a switch floods to this node, for another one's
// hardware address, are not touched.
func TestFramesForOthers(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		seen := make(chan struct{}, 16)
		n.sniff(t, "eth0", func(p []byte) {
			if src, _ := addressesOf(p); src.String() == lbIP[0] {
				seen <- struct{}{}
			}
		})
		for _, flags := range []byte{syn, ack} {
			packet := frame{proto: service.TCP, flags: flags}.to(clientIP[0], 45000, lbIP[0], 80)
			data := packet.bytes()
			copy(data, []byte{2, 0, 0, 0, 0, 99})
			in(t, n.client, func() error {
				l, err := net.InterfaceByName("eth0")
				if err != nil {
					return err
				}
				fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, data, 0, &unix.SockaddrLinklayer{Ifindex: l.Index})
			})
		}
		select {
		case <-seen:
			t.Error("a frame for another host was answered")
		case <-time.After(100 * time.Millisecond):
		}
		if got := n.conntrackEntries(t, "80"); got != "" {
			t.Errorf("conntrack has %s", got)
		}
	})
}

// TestMartians: packets from where nobody can be are dropped and counted.
func TestMartians(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		sources := [2][]string{{"0.0.0.1", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", vip[0]}, {"::1", "ff02::1", vip[1]}}
		for f := range 2 {
			for _, source := range sources[f] {
				before := d.metric(t, bpfReasonREASON_MARTIAN)
				if err := n.sendTo(frame{proto: service.UDP}.to(source, 45000, nodeIP[f], 30080)); err != nil {
					t.Fatal(err)
				}
				eventually(t, source+" is counted", func() bool { return d.metric(t, bpfReasonREASON_MARTIAN) > before })
			}
		}
	})
}

// TestOtherProtocolsEndHere: what no Service can serve, at a Service's address, is
// dropped here, instead of going to and fro between node and router.
func TestOtherProtocolsEndHere(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		for _, proto := range []service.Protocol{47, 50, 4, 253} {
			for _, at := range []string{vip[0], lbIP[0], vip[1], lbIP[1]} {
				f := 0
				if strings.Contains(at, ":") {
					f = 1
				}
				before := d.metric(t, bpfReasonREASON_UNKNOWN_PROTOCOL)
				if err := n.sendBytes(withProtocol(frame{proto: service.UDP}.to(clientIP[f], 1, at, 1).bytes(), proto)); err != nil {
					t.Fatal(err)
				}
				eventually(t, fmt.Sprintf("protocol %d to %s is counted", proto, at), func() bool { return d.metric(t, bpfReasonREASON_UNKNOWN_PROTOCOL) > before })
			}
		}
	})
}

// TestDatagramsAreCut: what may be cut, and has to be on its way to the backend, is
// cut, and arrives.
func TestDatagramsAreCut(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, _ *Dataplane) {
		in(t, n.podA, func() error { return runHere("ip link set eth0 mtu 1300") })
		in(t, n.node, func() error { return runHere("ip link set poda mtu 1300") })
		mayCut := func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			})
		}
		for _, size := range []int{1400, 4000, 16000} {
			for range 5 {
				in(t, n.client, func() error {
					d := net.Dialer{Control: mayCut}
					c, err := d.Dial("udp4", join(nodeIP[0], "30080"))
					if err != nil {
						return err
					}
					defer c.Close()
					if a, err := exchange(c, size); err != nil || a.name != "a" {
						t.Errorf("%d bytes: %v %v", size, a, err)
					}
					return nil
				})
			}
		}
	})
}

// TestUnreachableBackendIsTold: a route that says unreachable is an error at once.
func TestUnreachableBackendIsTold(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		in(t, n.node, func() error {
			return runHere("ip route add unreachable 10.244.9.9/32 && ip -6 route add unreachable fd00:244:9::9/128")
		})
		syncAll(t, d, n.table(svc{name: "s", proto: service.TCP, backends: to([2]string{"10.244.9.9", "fd00:244:9::9"}, "8080")}))
		for f := range 2 {
			start := time.Now()
			_, err := ask(n.client, networks[0][f], join(nodeIP[f], "30080"))
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EACCES) || time.Since(start) > 1500*time.Millisecond {
				t.Errorf("%s: %v after %s", famNames[f], err, time.Since(start))
			}
		}
	})
}

// TestNodeReachesItself: where no socket program helps, a process of the node reaches
// node ports at the node's own addresses, and endpoints in the node's own network.
func TestNodeReachesItself(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		for _, rp := range []string{"0", "1", "2"} {
			in(t, n.node, func() error { return sysctl("net/ipv4/conf/all/rp_filter", rp) })
			for _, where := range []struct {
				ips        [2]string
				port, name string
			}{{podA, "8080", "a"}, {podRemote, "8080", "remote"}, {nodeIP, "9090", "host"}} {
				syncAll(t, d, n.table(both(svc{name: "s", backends: to(where.ips, where.port)})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					for _, at := range []string{join(nodeIP[f], "30080"), join(vip[f], "80")} {
						a, err := ask(n.node, network, at)
						wantAnswer(t, a, err, where.name, "")
					}
				})
			}
		}
	})
}

// TestBulkOnBothWays: a megabyte arrives as it was sent, by a link of small MTU too,
// and is counted for the Service.
func TestBulkOnBothWays(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, way := range bothWays {
		t.Run(string(way), func(t *testing.T) {
			n := newTestNet(t)
			n.giveAway(t, want)
			d := n.start(t, Options{PacketsOnly: true, Forwarding: way})
			syncAll(t, d, n.table(svc{name: "s", proto: service.TCP, backends: to(podA, "8080")}))
			for f := range 2 {
				in(t, n.client, func() error {
					c, err := net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 2*time.Second)
					if err != nil {
						return err
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(5 * time.Second))
					got, err := io.ReadAll(c)
					if !bytes.Equal(got, want) {
						t.Errorf("%s: %d bytes of %d", famNames[f], len(got), len(want))
					}
					return err
				})
			}
		})
	}
}
