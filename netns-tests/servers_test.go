package netnstests

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// serveMore has Pods serve on the extra ports too, and nodes as Pods on the
// host network do.
func serveMore(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, p := range lab.PlacesOf(lab.Pod) {
		for i := range extraPorts {
			serve(t, l, p.Name, firstExtraPort+i, fmt.Sprintf("%s/%d", p.Name, firstExtraPort+i))
		}
	}
	for _, p := range lab.PlacesOf(lab.Node) {
		serve(t, l, p.Name, echo.PortEcho, p.Name)
	}
}

// serve answers in a place as echo.Serve does, on one port, until the test
// ends. The sockets stay in the namespace in which they were made.
func serve(t *testing.T, l *lab.Lab, place string, port int, name string) {
	t.Helper()
	var tcp net.Listener
	var udp []net.PacketConn
	err := l.Do(place, func() (err error) {
		if tcp, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port)); err != nil {
			return err
		}
		// One for each address: answers have to come from where the
		// question went.
		for _, addr := range lab.MustPlace(place).Addrs() {
			conn, err := net.ListenPacket("udp", netip.AddrPortFrom(addr, uint16(port)).String())
			if err != nil {
				return err
			}
			udp = append(udp, conn)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	go serveTCP(tcp, name)
	for _, conn := range udp {
		t.Cleanup(func() { conn.Close() })
		go serveUDP(conn, name)
	}
}

func serveTCP(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed at the end of the test
		}
		go func() {
			defer conn.Close()
			source := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
			_, _ = fmt.Fprintf(conn, "%s %s\n", name, unmapped(source))
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func serveUDP(conn net.PacketConn, name string) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return // closed at the end of the test
		}
		source := unmapped(from.(*net.UDPAddr).AddrPort())
		_, _ = conn.WriteTo(fmt.Appendf(nil, "%s %s %s", name, source, buf[:n]), from)
	}
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// addSecondAddrs gives node-a its second addresses. They are never chosen as
// source: the one as secondary of its subnet, the other as deprecated.
func addSecondAddrs(t *testing.T, l *lab.Lab) {
	t.Helper()
	err := l.Do("node-a", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for i, bits := range []int{24, 64} {
			addr := &netlink.Addr{IPNet: &net.IPNet{
				IP: secondAddrs[i].AsSlice(), Mask: net.CIDRMask(bits, secondAddrs[i].BitLen())}}
			if secondAddrs[i].Is6() {
				addr.Flags, addr.PreferedLft, addr.ValidLft = unix.IFA_F_NODAD, 0, int(24*time.Hour/time.Second)
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
