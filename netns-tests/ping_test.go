package netnstests

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
)

var errNoEcho = errors.New("no answer")

// ping sends an echo request from a place and waits for its answer, which must
// come from the address that was asked. An answer that is an error is
// ECONNREFUSED.
func ping(l *lab.Lab, from string, to netip.Addr) error {
	return l.Do(from, func() error {
		network, all, kind, proto := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), 1
		if to.Is6() {
			network, all, kind, proto = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, 58
		}
		c, err := icmp.ListenPacket(network, all)
		if err != nil {
			return err
		}
		defer c.Close()
		id := int(time.Now().UnixNano() & 0xffff)
		m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("nodeproxy")}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(dropTimeout)); err != nil {
			return err
		}
		return readEcho(c, proto, id, to)
	})
}

func readEcho(c *icmp.PacketConn, proto, id int, to netip.Addr) error {
	for buf := make([]byte, 1500); ; {
		n, peer, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errNoEcho
		}
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			return err
		}
		switch body := m.Body.(type) {
		case *icmp.DstUnreach:
			return syscall.ECONNREFUSED
		case *icmp.Echo:
			if m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply || body.ID != id {
				continue
			}
			if got, _ := netip.AddrFromSlice(peer.(*net.IPAddr).IP); got.Unmap() != to || string(body.Data) != "nodeproxy" {
				return fmt.Errorf("answer %q from %s, want it from %s", body.Data, got, to)
			}
			return nil
		}
	}
}

// TestP23PingServiceIPs pings every kind of address of a Service: refused by
// default, answered with --ping-service-ips, whether there are endpoints or not.
func TestP23PingServiceIPs(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"))
		check := func(want error) {
			t.Helper()
			for _, from := range []string{"client", "pod-a1", "pod-b2", "node-a", "node-b"} {
				for _, name := range []string{"web", "empty"} {
					for _, at := range []string{"cluster", "external", "balancer"} {
						for _, v6 := range []bool{false, true} {
							to := find(name).addr(at, 80, v6).Addr()
							if from == "client" && at == "cluster" {
								routeBy(t, l, to, "node-a")
							}
							if (from == "node-a" || from == "pod-a1") && at != "cluster" {
								continue // may be a machine's: the router is asked, which asks node-a again
							}
							if err := ping(l, from, to); !errors.Is(err, want) && !(want != nil && errors.Is(err, syscall.EPERM)) {
								t.Errorf("ping from %s to %s: %v, want %v", from, to, err, want)
							}
						}
					}
				}
			}
		}
		startAgents(t, l)
		check(syscall.ECONNREFUSED)
		for _, node := range []string{"node-a", "node-b"} {
			if err := l.StopAgent(node); err != nil {
				t.Fatal(err)
			}
		}
		startAgents(t, l, "--ping-service-ips")
		check(nil)
		// A Service's address is all that answers: its node is asked as ever.
		if err := ping(l, "client", lab.MustPlace("node-a").IPv4); err != nil {
			t.Errorf("ping of node-a: %v", err)
		}
		if err := ping(l, "client", netip.MustParseAddr("10.96.99.99")); err == nil {
			t.Error("an address that no Service has answers")
		}
		if err := l.Delete("web.yaml"); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() error {
			if err := ping(l, "pod-a1", find("web").addr("cluster", 80, false).Addr()); err == nil {
				return errors.New("the address of a Service that is gone answers")
			}
			return nil
		})
	})
}

// TestP23UnknownPortOnce sends to a port that no Service has, at a Service's
// address, while the node's default route leads back to the sender: one
// packet goes in and one refusal comes out.
func TestP23UnknownPortOnce(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		startAgents(t, l)
		for _, v6 := range []bool{false, true} {
			to := find("web").addr("external", 99, v6)
			fd := sniffer(t, l, "node-a")
			err := l.Do("client", func() error {
				conn, err := net.Dial("udp", to.String())
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte("unknown"))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			asked, refusals := 0, 0
			for _, p := range sniffed(fd, dropTimeout) {
				proto, dst, port := summary(p)
				switch {
				case proto == unix.IPPROTO_UDP && dst == to.Addr() && port == to.Port():
					asked++
				case (proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6) && dst == lab.MustPlace("client").Addr(v6):
					refusals++
				}
			}
			if asked != 1 || refusals != 1 {
				t.Errorf("%s: the packet passed node-a's interface %d times and %d refusals did, want one of each", to, asked, refusals)
			}
		}
	})
}

// sniffer opens a socket that gets every packet of a place's eth0.
func sniffer(t *testing.T, l *lab.Lab, place string) int {
	t.Helper()
	fd := -1
	err := l.Do(place, func() (err error) {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: dev.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// sniffed returns the IP packets that came until none came for a while.
func sniffed(fd int, quiet time.Duration) (packets [][]byte) {
	end := time.Now().Add(quiet)
	for time.Now().Before(end) {
		tv := unix.NsecToTimeval(int64(time.Until(end)) + 1000)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return packets
		}
		buf := make([]byte, 2048)
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == nil {
			packets = append(packets, buf[:n])
		}
	}
	return packets
}

// summary returns what tells packets apart.
func summary(p []byte) (proto int, dst netip.Addr, port uint16) {
	if len(p) < 44 && (len(p) < 24 || p[0]>>4 != 4) {
		return 0, netip.Addr{}, 0
	}
	if p[0]>>4 == 4 {
		dst, _ = netip.AddrFromSlice(p[16:20])
		return int(p[9]), dst, uint16(p[22])<<8 | uint16(p[23])
	}
	dst, _ = netip.AddrFromSlice(p[24:40])
	return int(p[6]), dst, uint16(p[42])<<8 | uint16(p[43])
}
