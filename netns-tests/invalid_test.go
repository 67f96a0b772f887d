package netnstests

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP11Invalid has a Pod send segments that are far outside the window of a
// connection that came through a Service: conntrack calls them INVALID and does
// not translate them. None may reach the client with the Pod's address, which
// it would answer with a reset, and the connection goes on.
func TestP11Invalid(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("local-a"), find("remote"))
		startAgents(t, l)
		held := holdOver(t, l, echo.TCP, 4, "client", "local-a node-a", "local-a external", "remote node-a", "remote node-b")
		seen := watchSources(t, l, "client")
		for _, f := range held {
			pod := netip.AddrPortFrom(lab.MustPlace(f.answer.Name).Addr(f.answer.Source.Addr().Is6()), echo.PortEcho)
			for i := range 5 {
				sendSegment(t, l, f.answer.Name, pod, f.answer.Source, uint32(i+1)<<29, ack)
			}
		}
		pingAll(t, held)
		time.Sleep(100 * time.Millisecond) // for what is on its way still
		pingAll(t, held)
		sources := seen()
		for _, s := range sources {
			if lab.ClusterCIDRs[0].Contains(s) || lab.ClusterCIDRs[1].Contains(s) {
				t.Errorf("the client got a packet of Pod %s itself", s)
			}
		}
		if node := lab.MustPlace("node-a"); !slices.Contains(sources, node.IPv4) || !slices.Contains(sources, node.IPv6) {
			t.Errorf("sources seen: %v, without node-a's: the test proves nothing", sources)
		}
	})
}

// watchSources notes where packets come from that arrive in a place. Calling
// what it returns ends that and tells.
func watchSources(t *testing.T, l *lab.Lab, place string) func() []netip.Addr {
	t.Helper()
	fd := -1
	err := l.Do(place, func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000})
	})
	if err != nil {
		t.Fatal(err)
	}
	stop, sources := make(chan struct{}), make(chan []netip.Addr)
	go func() {
		var list []netip.Addr
		defer func() { unix.Close(fd); sources <- list }()
		buf := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if a, ok := sourceOf(buf[:max(n, 0)]); ok && !slices.Contains(list, a) {
				list = append(list, a)
			}
			select {
			case <-stop:
				if errors.Is(err, unix.EAGAIN) {
					return // and nothing is left to be read
				}
			default:
			}
		}
	}()
	return func() []netip.Addr { close(stop); return <-sources }
}

// sourceOf reads the source address of an IP packet.
func sourceOf(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFromSlice(p[12:16])
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFromSlice(p[8:24])
	}
	return netip.Addr{}, false
}

// sendSegment sends a TCP segment with a sequence number of the caller's choice
// from a place, past its own TCP.
func sendSegment(t *testing.T, l *lab.Lab, place string, from, to netip.AddrPort, seq uint32, flags byte) {
	t.Helper()
	err := l.Do(place, func() error {
		var src, dst unix.Sockaddr = &unix.SockaddrInet6{Addr: from.Addr().As16()}, &unix.SockaddrInet6{Addr: to.Addr().As16()}
		family := unix.AF_INET6
		if to.Addr().Is4() {
			family = unix.AF_INET
			src, dst = &unix.SockaddrInet4{Addr: from.Addr().As4()}, &unix.SockaddrInet4{Addr: to.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, src); err != nil {
			return err
		}
		return unix.Sendto(fd, segment(from, to, seq, flags), 0, dst)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Flags of TCP.
const rst, ack = 0x04, 0x10

// segment builds a TCP segment with some data.
func segment(from, to netip.AddrPort, seq uint32, flags byte) []byte {
	tcp := make([]byte, 20, 24)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], seq)
	tcp[12], tcp[13] = 5<<4, flags // length of the header
	binary.BigEndian.PutUint16(tcp[14:], 1000)
	tcp = append(tcp, "lost"...)
	pseudo := append(append(from.Addr().AsSlice(), to.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], internetSum(append(pseudo, tcp...)))
	return tcp
}
