//go:build stock

// What the machine that develops this cannot do, and stock kernels can: SCTP
// sockets, and links that lose and reorder. make test-vm builds with this tag.

package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// slowness is by how much limits on time are longer here: instructions are
// emulated.
const slowness = 20

// disturb gives what a namespace sends by eth0 a netem qdisc.
func disturb(t *testing.T, ns netns.NsHandle, how netlink.NetemQdiscAttrs) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.QdiscReplace(netlink.NewNetem(
			netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, how))
	})
}

// TestP20Reordered sends datagrams in fragments that overtake each other: each
// is answered, or the node has counted what it did not serve.
func TestP20Reordered(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(svc{name: "s", proto: service.UDP, backends: append(to(podA, "8080"), to(podRemote, "8080")...)}))
	disturb(t, n.client, netlink.NetemQdiscAttrs{Latency: 2000, ReorderProb: 40, ReorderCorr: 0, Gap: 1})
	for f := range 2 {
		answered, lost := 0, 0
		before := d.metric(t, bpfReasonREASON_FRAGMENT_ORPHAN) + d.metric(t, bpfReasonREASON_FRAGMENT_PASSED)
		for range 100 {
			if _, err := askFragments(n.client, networks[1][f], join(nodeIP[f], "30080")); err != nil {
				lost++
			} else {
				answered++
			}
		}
		counted := d.metric(t, bpfReasonREASON_FRAGMENT_ORPHAN) + d.metric(t, bpfReasonREASON_FRAGMENT_PASSED) - before
		t.Logf("%s: %d answered, %d not, %d fragments counted", famNames[f], answered, lost, counted)
		if answered == 0 || uint64(lost) > counted {
			t.Errorf("%s: %d were answered, %d not, but only %d fragments are accounted for", famNames[f], answered, lost, counted)
		}
	}
}

// askFragments sends one datagram of 8 kB and waits a short time for its answer.
func askFragments(ns netns.NsHandle, network, addr string) (got int, err error) {
	err = inNS(ns, func() error {
		c, err := net.Dial(network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write(append(bytes.Repeat([]byte("x"), 8000), '\n')); err != nil {
			return err
		}
		got, err = c.Read(make([]byte, 65536))
		return err
	})
	return got, err
}

// TestLossyLink downloads through a node port over a link that loses and
// reorders: nothing is broken, only slow.
func TestLossyLink(t *testing.T) {
	n := newTestNet(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	n.giveAway(t, want)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(svc{name: "s", backends: to(podA, "8080")}))
	lossy := netlink.NetemQdiscAttrs{Latency: 1000, Loss: 5, ReorderProb: 20, Gap: 1}
	disturb(t, n.client, lossy)
	disturb(t, n.node, lossy)
	for f := range 2 {
		in(t, n.client, func() error {
			c, err := net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 30*time.Second)
			for range 5 { // the neighbour's answers are lost too
				if !errors.Is(err, unix.EHOSTUNREACH) {
					break
				}
				c, err = net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 30*time.Second)
			}
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * time.Minute))
			got, err := io.ReadAll(c)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d", famNames[f], len(got), len(want))
			}
			return err
		})
	}
}

// TestP35SCTP opens associations through a Service, from outside and from a
// Pod. Its port is the endpoints' own: the checksum of SCTP covers it, so no
// packet can be given another.
func TestP35SCTP(t *testing.T) {
	n := newTestNet(t)
	for f := range 2 {
		serveSCTP(t, n.podA, join(podA[f], "8080"), "a")
		serveSCTP(t, n.remote, join(podRemote[f], "8080"), "remote")
	}
	d := n.start(t, Options{PacketsOnly: true})
	for name, where := range map[string][2]string{"a": podA, "remote": podRemote} {
		syncAll(t, d, n.table(svc{name: "s", proto: service.SCTP, port: 8080, nodePort: 8080, backends: to(where, "8080"),
			policy: service.PolicyCluster}))
		for f := range 2 {
			for from, addr := range map[netns.NsHandle]string{n.podB: join(vip[f], "8080"), n.client: join(lbIP[f], "8080")} {
				in(t, from, func() error {
					got, err := askSCTP(addr)
					if err == nil && got != name {
						err = fmt.Errorf("answer %q, want %q", got, name)
					}
					if err != nil {
						return fmt.Errorf("%s: %w", addr, err)
					}
					return nil
				})
			}
		}
	}
}

func sctpSocket(addr string) (fd int, sa unix.Sockaddr, err error) {
	ap := netip.MustParseAddrPort(addr)
	family := unix.AF_INET
	sa = &unix.SockaddrInet4{Port: int(ap.Port())}
	if ap.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = ap.Addr().As4()
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, nil, fmt.Errorf("SCTP socket: %w", err)
	}
	limit := unix.Timeval{Sec: 5}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	return fd, sa, nil
}

// serveSCTP answers each association with a name.
func serveSCTP(t *testing.T, ns netns.NsHandle, addr, name string) {
	t.Helper()
	var fd int
	in(t, ns, func() error {
		var sa unix.Sockaddr
		var err error
		if fd, sa, err = sctpSocket(addr); err != nil {
			return err
		}
		if err := unix.Bind(fd, sa); err != nil {
			return err
		}
		return unix.Listen(fd, 16)
	})
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		defer unix.Close(fd)
		for {
			c, _, err := unix.Accept(fd) // in vain after 5 s
			if err == nil {
				unix.Write(c, []byte(name))
				unix.Close(c)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
}

func askSCTP(addr string) (string, error) {
	fd, sa, err := sctpSocket(addr)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	buf := make([]byte, 64)
	n, err := unix.Read(fd, buf)
	return string(buf[:max(n, 0)]), err
}
