package netnstests

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

var loopbacks = [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// TestP24Loopback dials node ports at 127.0.0.1 and ::1 from their node.
func TestP24Loopback(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("single"), find("affinity"), find("empty"), find("local-b"))
		startAgents(t, l)
		for _, ip := range loopbacks {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				at := func(name string) netip.AddrPort { return netip.AddrPortFrom(ip, uint16(30000+find(name).n)) }
				dialUntilAll(t, l, network, at("web"), everyPod)
				dialUntilAll(t, l, network, at("local-b"), "pod-b1") // a node may use every endpoint
				first, err := l.Dial(t.Context(), "node-a", network, at("affinity"))
				for range 8 {
					again, errAgain := l.Dial(t.Context(), "node-a", network, at("affinity"))
					if err != nil || errAgain != nil || again.Name != first.Name {
						t.Errorf("affinity at %s over %s: %v %v, then %v %v", ip, network, first, err, again, errAgain)
					}
				}
				if _, err := l.Dial(t.Context(), "node-a", network, at("empty")); !strings.Contains(fmt.Sprint(err), syscall.ECONNREFUSED.Error()) {
					t.Errorf("no endpoints at %s over %s: %v, want refused", ip, network, err)
				}
			}
		}
		checkLoopbackFollows(t, l)
		checkLoopbackFromOutside(t, l)
		for _, node := range []string{"node-a", "node-b"} {
			if err := l.Do(node, func() error {
				if b, err := os.ReadFile(routeLocalnet); err != nil || string(b) != "0\n" {
					return fmt.Errorf("route_localnet is %q: %w", b, err)
				}
				return nil
			}); err != nil {
				t.Errorf("%s: %v", node, err)
			}
		}
	})
}

// TestP24LoopbackBound dials node ports at loopback addresses by sockets that are bound
// to one: they can reach nothing else, so that no program may translate them.
func TestP24LoopbackBound(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		remote, err := l.Dialer("node-a")
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range loopbacks {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				r := echo.Request{Network: network, To: netip.AddrPortFrom(ip, uint16(30000+find("web").n)), From: netip.AddrPortFrom(ip, 0)}
				eventually(t, patience, func() error {
					answer, err := remote.Dial(t.Context(), r)
					if err == nil && !strings.Contains(everyPod, answer.Name) {
						err = fmt.Errorf("%s over %s: answered by %q", ip, network, answer.Name)
					}
					return err
				})
			}
		}
	})
}

// dialUntilAll dials from node-a until all of the names have answered; each
// must see an address of node-a.
func dialUntilAll(t *testing.T, l *lab.Lab, network echo.Network, to netip.AddrPort, want string) {
	t.Helper()
	left := map[string]bool{}
	for name := range strings.FieldsSeq(want) {
		left[name] = true
	}
	own := []netip.Addr{lab.MustPlace("node-a").IPv4, lab.MustPlace("node-a").IPv6}
	for tries := 0; len(left) > 0 && tries < 100; tries++ {
		answer, err := l.Dial(t.Context(), "node-a", network, to)
		if err != nil || !strings.Contains(want, answer.Name) || !slices.Contains(own, answer.Source.Addr()) {
			t.Errorf("%s over %s: %v, %v; want one of %s", to, network, answer, err, want)
			return
		}
		delete(left, answer.Name)
	}
	if len(left) > 0 {
		t.Errorf("%s over %s: %v never answered", to, network, left)
	}
}

// checkLoopbackFollows changes the endpoints: a UDP client follows, and an
// open TCP connection stays.
func checkLoopbackFollows(t *testing.T, l *lab.Lab) {
	t.Helper()
	s := find("single")
	remote, err := l.Dialer("node-a")
	if err != nil {
		t.Fatal(err)
	}
	var held []heldFlow
	senders := map[string]*fixedSender{}
	for i, ip := range loopbacks {
		to := netip.AddrPortFrom(ip, uint16(30000+s.n))
		f := heldFlow{text: to.String()}
		if f.conn, err = remote.Open(t.Context(), echo.Request{Network: echo.TCP, To: to}); err == nil {
			f.answer, err = f.conn.Ping(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		held = append(held, f)
		senders[to.String()] = startFixedSender(t, l, "node-a", to, uint16(20900+i))
	}
	follow := &followers{senders: senders, others: held}
	follow.expect(t, "loopback, at first", "pod-a1")
	s.endpoints = pods("pod-b1")
	apply(t, l, s)
	follow.expect(t, "loopback, endpoint replaced", "pod-b1")
	s.endpoints = nil
	apply(t, l, s)
	follow.expect(t, "loopback, no endpoint", "")
	s.endpoints = pods("pod-a1")
	apply(t, l, s)
	follow.expect(t, "loopback, endpoint again", "pod-a1")
}

// checkLoopbackFromOutside sends datagrams for 127.0.0.1 and ::1 to node-a from
// its network: none may reach what listens there, ours or another's
// (CVE-2020-8558).
func checkLoopbackFromOutside(t *testing.T, l *lab.Lab) {
	t.Helper()
	const otherPort = 45999
	for i, ip := range loopbacks {
		fd := -1
		if err := l.Do("node-a", func() (err error) {
			family := []int{unix.AF_INET, unix.AF_INET6}[i]
			if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if ip.Is4() {
				return unix.Bind(fd, &unix.SockaddrInet4{Port: otherPort, Addr: ip.As4()})
			}
			return unix.Bind(fd, &unix.SockaddrInet6{Port: otherPort, Addr: ip.As16()})
		}); err != nil {
			t.Fatal(err)
		}
		tv := unix.NsecToTimeval(int64(dropTimeout))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			t.Fatal(err)
		}
		before := served(t, l, "pod-b1")
		for _, port := range []uint16{otherPort, uint16(30000 + find("local-b").n)} {
			sendToNode(t, l, datagram(lab.MustPlace("router").Addr(ip.Is6()), ip, port))
		}
		buf := make([]byte, 64)
		if n, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
			t.Errorf("a packet from outside reached a socket at %s: %q", ip, buf[:n])
		}
		unix.Close(fd)
		if after := served(t, l, "pod-b1"); after != before {
			t.Errorf("packets from outside for %s reached an endpoint: %d datagrams", ip, after-before)
		}
		// That the count can tell.
		if _, err := l.Dial(t.Context(), "node-a", echo.UDP, netip.AddrPortFrom(ip, uint16(30000+find("local-b").n))); err != nil {
			t.Error(err)
		}
		if after := served(t, l, "pod-b1"); after == before {
			t.Error("datagrams are not counted")
		}
	}
}

// served returns how many datagrams sockets of a Pod received.
func served(t *testing.T, l *lab.Lab, pod string) (n uint64) {
	t.Helper()
	err := l.Do(pod, func() error {
		for file, name := range map[string]string{"snmp": "Udp:", "snmp6": "Udp6InDatagrams"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if words := strings.Fields(line); len(words) > 1 && words[0] == name && words[1] != "InDatagrams" {
					var v uint64
					if _, err := fmt.Sscan(words[1], &v); err != nil {
						return err
					}
					n += v
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sendToNode puts a packet on the wire from router to node-a.
func sendToNode(t *testing.T, l *lab.Lab, packet []byte) {
	t.Helper()
	var mac []byte
	err := l.Do("node-a", func() error {
		dev, err := netlink.LinkByName("eth0")
		if err == nil {
			mac = dev.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = l.Do("router", func() error {
		dev, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		proto := uint16(unix.ETH_P_IP)
		if packet[0]>>4 == 6 {
			proto = unix.ETH_P_IPV6
		}
		to := &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: dev.Attrs().Index, Halen: 6}
		copy(to.Addr[:], mac)
		return unix.Sendto(fd, packet, 0, to)
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
}

// datagram builds an IP packet with a UDP datagram from port 40000.
func datagram(src, dst netip.Addr, port uint16) []byte {
	udp := make([]byte, 8, 16)
	binary.BigEndian.PutUint16(udp, 40000)
	binary.BigEndian.PutUint16(udp[2:], port)
	udp = append(udp, "outside\n"...)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, unix.IPPROTO_UDP, 0, byte(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], internetSum(append(pseudo, udp...)))
	if dst.Is6() {
		head := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}
		return append(append(append(head, src.AsSlice()...), dst.AsSlice()...), udp...)
	}
	head := append([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, append(src.AsSlice(), dst.AsSlice()...)...)
	binary.BigEndian.PutUint16(head[10:], internetSum(head))
	return append(head, udp...)
}

// internetSum is the checksum of RFC 1071.
func internetSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
