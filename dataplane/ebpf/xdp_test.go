package ebpf

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/nodeproxy/nodeproxy/service"
)

// likeWires gives what the node's links lead to what hardware has: frames with
// finished checksums, and ends that take what XDP sends.
func (n *testNet) likeWires(t testing.TB) {
	t.Helper()
	for _, ns := range []netns.NsHandle{n.client, n.remote, n.podA} {
		in(t, ns, func() error { return ethtool("eth0", ethtoolTxChecksum, false) })
	}
	passAtXDP(t, n.lan, "node")
	passAtXDP(t, n.podA, "eth0")
}

// passAtXDP attaches a program that does nothing.
func passAtXDP(t testing.TB, ns netns.NsHandle, dev string) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	in(t, ns, func() error {
		found, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: found.Index, Flags: link.XDPDriverMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// atXDP is what an interface of the node has there.
func (n *testNet) atXDP(t testing.TB, dev string) (x netlink.LinkXdp) {
	t.Helper()
	in(t, n.node, func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil && l.Attrs().Xdp != nil {
			x = *l.Attrs().Xdp
		}
		return err
	})
	return x
}

// TestXDP sends all kinds of traffic through node ports to another node, with
// the program at XDP in both ways of attaching it: all that is of a known flow
// is forwarded there, and arrives whole.
func TestXDP(t *testing.T) {
	for _, xdp := range []XDP{XDPNative, XDPGeneric} {
		t.Run(string(xdp), func(t *testing.T) {
			n := newTestNet(t)
			n.serveAll(t)
			n.likeWires(t)
			d := n.start(t, Options{PacketsOnly: true, XDP: xdp, XDPInterfaces: []string{"eth0", "poda"}})
			syncAll(t, d, n.table(both(svc{name: "s", backends: to(podRemote, "8080"), policy: service.PolicyCluster})...))
			if x := n.atXDP(t, "eth0"); !x.Attached {
				t.Fatal("nothing is attached")
			}
			forwarded := func() uint64 { return d.metric(t, bpfReasonREASON_FORWARDED_XDP) }
			sums := csumErrors(t, n.client) + csumErrors(t, n.remote)
			for f := range 2 {
				for p, sizes := range [][]int{{10, 1_000_000}, {11, 1200}} {
					for _, size := range sizes {
						before, atTC := forwarded(), d.metric(t, bpfReasonREASON_FORWARDED)
						a, err := askFrom(n.client, networks[p][f], join(nodeIP[f], "30080"), "", size)
						wantAnswer(t, a, err, "remote", nodeIP[f])
						least := uint64(1) // the answer of UDP; the rest are handshakes
						if size > 100_000 {
							least = uint64(size / 1500)
						}
						got := forwarded() - before
						t.Logf("%s, %d bytes: %d packets at XDP, %d at tc", networks[p][f], size, got, d.metric(t, bpfReasonREASON_FORWARDED)-atTC)
						if got < least {
							t.Errorf("%s, %d bytes: %d packets at XDP, want %d", networks[p][f], size, got, least)
						}
					}
				}
			}
			if got := csumErrors(t, n.client) + csumErrors(t, n.remote) - sums; got != 0 {
				t.Errorf("%d wrong checksums", got)
			}
			n.betweenUplinks(t, d)
			n.unfinishedPassXDP(t, d)
			n.localPassesXDP(t, d)
		})
	}
}

// betweenUplinks dials by another interface that has the program: packets are
// redirected from one to the other.
func (n *testNet) betweenUplinks(t *testing.T, d *Dataplane) {
	t.Helper()
	for f := range 2 {
		before := d.metric(t, bpfReasonREASON_FORWARDED_XDP)
		a, err := askFrom(n.podA, networks[0][f], join(lbIP[f], "80"), "", 100_000)
		wantAnswer(t, a, err, "remote", nodeIP[f])
		if got := d.metric(t, bpfReasonREASON_FORWARDED_XDP) - before; got < 60 {
			t.Errorf("%s between interfaces: %d packets at XDP", famNames[f], got)
		}
	}
}

// unfinishedPassXDP sends packets whose checksum hardware would have to finish:
// tc forwards them.
func (n *testNet) unfinishedPassXDP(t *testing.T, d *Dataplane) {
	t.Helper()
	in(t, n.client, func() error { return ethtool("eth0", ethtoolTxChecksum, true) })
	defer in(t, n.client, func() error { return ethtool("eth0", ethtoolTxChecksum, false) })
	sums := csumErrors(t, n.remote)
	for f := range 2 {
		for p := range 2 {
			a, err := askFrom(n.client, networks[p][f], join(nodeIP[f], "30080"), "", 1000)
			wantAnswer(t, a, err, "remote", nodeIP[f])
		}
	}
	if got := csumErrors(t, n.remote) - sums; got != 0 {
		t.Errorf("%d wrong checksums of packets with unfinished ones", got)
	}
}

// localPassesXDP leads the same frontends to a Pod of the node, and a flow that
// is open stays where it is.
func (n *testNet) localPassesXDP(t *testing.T, d *Dataplane) {
	t.Helper()
	var c net.Conn
	in(t, n.client, func() (err error) {
		c, err = net.DialTimeout("tcp4", join(nodeIP[0], "30080"), 2*time.Second)
		return err
	})
	defer c.Close()
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080"), policy: service.PolicyCluster})...))
	if a, err := exchange(c, 100); err != nil || a.name != "remote" {
		t.Errorf("a flow that was open: %+v, %v", a, err)
	}
	for f := range 2 {
		for p := range 2 {
			a, err := askFrom(n.client, networks[p][f], join(nodeIP[f], "30080"), "", 1000)
			wantAnswer(t, a, err, "a", nodeIP[f])
		}
	}
}

// TestXDPComesAndGoes: the program is taken over by the next agent, goes with
// the option, and another's is left where it is.
func TestXDPComesAndGoes(t *testing.T) {
	n := newTestNet(t)
	var log bytes.Buffer
	o := Options{PacketsOnly: true, XDP: XDPNative, XDPInterfaces: []string{"eth0"}, PinRoot: bpffs(t) + "/nodeproxy",
		Logger: slog.New(slog.NewTextHandler(&log, nil))}
	open := func(o Options) {
		t.Helper()
		in(t, n.node, func() error {
			d, err := New(o)
			return errors.Join(err, d.Close())
		})
	}
	open(o)
	first := n.atXDP(t, "eth0")
	open(o)
	if again := n.atXDP(t, "eth0"); !first.Attached || !again.Attached || first.ProgId == again.ProgId || first.AttachMode != again.AttachMode {
		t.Errorf("taken over: %+v after %+v", again, first)
	}
	o.XDP = XDPGeneric
	open(o)
	if again := n.atXDP(t, "eth0"); !again.Attached || again.AttachMode == first.AttachMode {
		t.Errorf("another way of attaching: %+v after %+v", again, first)
	}
	o.XDP, o.XDPInterfaces = XDPNative, nil
	open(o)
	if x := n.atXDP(t, "eth0"); x.Attached || !strings.Contains(log.String(), "name the interface") {
		t.Errorf("a veth that nobody named: %+v, log\n%s", x, log.String())
	}
	o.XDP = XDPGeneric
	open(o)
	if x := n.atXDP(t, "eth0"); !x.Attached {
		t.Error("nothing is attached to the interface of the default route")
	}
	o.XDP = XDPOff
	open(o)
	if x := n.atXDP(t, "eth0"); x.Attached {
		t.Errorf("off: %+v", x)
	}
	passAtXDP(t, n.node, "eth0")
	o.XDPInterfaces = []string{"eth0"}
	foreign := n.atXDP(t, "eth0")
	for _, o.XDP = range []XDP{XDPNative, XDPGeneric, XDPOff} {
		log.Reset()
		open(o)
		if x := n.atXDP(t, "eth0"); x.ProgId != foreign.ProgId {
			t.Errorf("%s: another's program was changed: %+v, was %+v", o.XDP, x, foreign)
		}
		if told := strings.Contains(log.String(), "another program is there"); told != (o.XDP != XDPOff) {
			t.Errorf("%s: log:\n%s", o.XDP, log.String())
		}
	}
	in(t, n.node, func() error { return Cleanup(o) })
	if _, err := os.Stat(o.PinRoot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left: %v", err)
	}
}
