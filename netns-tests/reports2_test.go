package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// TestFloodedFrames: the switch does not know node-b's port, and floods frames for node-b
// to node-a too (cilium #18843). They are none of node-a's business, though they are for
// a balancer's address that node-a serves as well.
func TestFloodedFrames(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		const connections = 20 // over each protocol and family
		l := c.up(t, false)
		remote := find("remote")
		apply(t, l, remote)
		startAgents(t, l)
		for _, v6 := range []bool{false, true} {
			routeBy(t, l, remote.addr("balancer", 80, v6).Addr(), "node-b")
		}
		var nodeB netlink.Link
		err := l.Do("node-b", func() (err error) { nodeB, err = netlink.LinkByName("eth0"); return err })
		if err == nil {
			err = l.Do("router", func() error { return forgetPort(nodeB) })
		}
		if err != nil {
			t.Fatal(err)
		}
		before := received(t, l)
		eachWay(func(network echo.Network, v6 bool) {
			to := remote.addr("balancer", 80, v6)
			for i := range connections {
				answer, err := l.Dial(t.Context(), "client", network, to)
				if err != nil || answer.Name != "pod-b1" || answer.Source.Addr() != lab.MustPlace("node-b").Addr(v6) {
					t.Errorf("%d of %d to %s over %s: %v, %v", i+1, connections, to, network, answer, err)
				}
			}
		})
		if flooded := received(t, l) - before; flooded < 4*connections {
			t.Errorf("only %d frames came to node-a, which shows nothing", flooded)
		}
	})
}

// forgetPort has the router's bridge forget behind which port a device is, for good.
func forgetPort(dev netlink.Link) error {
	port, err := netlink.LinkByName("node-b")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetLearning(port, false); err != nil {
		return err
	}
	err = netlink.NeighDel(&netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: dev.Attrs().HardwareAddr})
	if errors.Is(err, unix.ENOENT) {
		return nil // it was not learnt yet
	}
	return err
}

// received is how many frames node-a has got by its uplink.
func received(t *testing.T, l *lab.Lab) (n uint64) {
	t.Helper()
	err := l.Do("node-a", func() error {
		dev, err := netlink.LinkByName("eth0")
		if err == nil {
			n = dev.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// afterReset is how long a connection is silent after a segment that claims to reset it:
// longer than conntrack, and what else keeps a closed connection, does so.
const afterReset = 13 * time.Second

// TestForgedReset: a reset with a sequence number that nobody is at ends no connection,
// also where data come long after (calico's pull request 9692).
func TestForgedReset(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"), find("single"))
		startAgents(t, l)
		remote, err := l.Dialer("client")
		if err != nil {
			t.Fatal(err)
		}
		var flows []heldFlow
		for i, target := range []string{"remote node-a", "single node-a", "remote external"} {
			for _, v6 := range []bool{false, true} {
				_, to := parseTarget(target, v6)
				from := netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), uint16(24000+i))
				f := heldFlow{text: fmt.Sprintf("client -> %s (%s)", target, to)}
				if f.conn, err = remote.Open(t.Context(), echo.Request{Network: echo.TCP, To: to, From: from}); err != nil {
					t.Fatalf("%s: %v", f.text, err)
				}
				for range 20 { // in ebpf mode it is on the fast way then
					if f.answer, err = f.conn.Ping(t.Context()); err != nil {
						t.Fatalf("%s: %v", f.text, err)
					}
					time.Sleep(20 * time.Millisecond)
				}
				for seq := uint32(1 << 28); seq != 0; seq += 1 << 28 {
					sendSegment(t, l, "client", from, to, seq, rst)
				}
				flows = append(flows, f)
			}
		}
		pingAll(t, flows)
		time.Sleep(afterReset)
		pingAll(t, flows)
	})
}

// TestNodeIsDown: the machine that the backend is on does not answer any more. Who dials
// is told once the neighbour's failure is known.
func TestNodeIsDown(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		ip(t, l, "node-b", "link set eth0 down")
		for _, family := range []string{"-4", "-6"} {
			ip(t, l, "node-a", family+" neigh flush dev eth0")
		}
		for _, v6 := range []bool{false, true} {
			for from, at := range map[string]string{"pod-a1": "cluster", "client": "node-a"} {
				to := find("remote").addr(at, 80, v6)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				_, err := l.Dial(ctx, from, echo.TCP, to)
				cancel()
				if !errors.Is(err, syscall.EHOSTUNREACH) {
					t.Errorf("%s to %s: %v, want it unreachable", from, to, err)
				}
			}
		}
	})
}

// lookedAt is when an agent has got round to an interface that came after a thousand.
const lookedAt = 3 * time.Minute

// TestManyInterfaces: a Pod comes to a node that has more interfaces than some fixed
// number (babeld #83, and containers' bridges).
func TestManyInterfaces(t *testing.T) {
	// Each interface costs the kernel two waits under a lock that all labs share: so this
	// runs alone, and in one column, that in which packets are looked at.
	labtest.RequireRoot(t)
	c := columns[slices.IndexFunc(columns, func(c column) bool { return c.Mode == lab.ModeEBPF && !c.Sockets })]
	l := c.up(t, false)
	apply(t, l, find("remote"))
	startAgents(t, l)
	var batch strings.Builder
	for i := range 1060 {
		fmt.Fprintf(&batch, "link add name many%d type bridge\n", i)
	}
	cmd := l.Command(t.Context(), "node-a", "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	late := newContainer(t, l, "node-a", "late")
	ip(t, l, "node-a", "link add cni9 type bridge mcast_snooping 0")
	ip(t, l, "node-a", "addr add 10.244.1.65/26 dev cni9")
	ip(t, l, "node-a", "-6 addr add fd00:10:244:1:9::1/80 dev cni9 nodad")
	ip(t, l, "node-a", "link set cni9 up")
	late.join(t, "cni9", "10.244.1.77/26", "10.244.1.65", "fd00:10:244:1:9::77/80", "fd00:10:244:1:9::1")
	eachWay(func(network echo.Network, v6 bool) {
		own := netip.MustParseAddr([]string{"10.244.1.77", "fd00:10:244:1:9::77"}[map[bool]int{true: 1}[v6]])
		dial := late.opens(network, find("remote").addr("cluster", 80, v6), own, "pod-b1")
		eventually(t, lookedAt, func() error { return dial.holds(t.Context()) })
		for range 4 {
			if err := dial.holds(t.Context()); err != nil {
				t.Errorf("%s: %v", dial.about, err)
			}
		}
	})
}
