package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// This file builds a small network for tests: an outside client, the node with
// two Pods, and another node, all joined by a bridge. Namespaces have no names,
// so the kernel removes them and all that is in them with their last handle.

// Addresses of the test network, by family.
var (
	clientIP  = [2]string{"192.168.77.100", "fd00:77::100"}
	nodeIP    = [2]string{"192.168.77.11", "fd00:77::11"}
	remoteIP  = [2]string{"192.168.77.12", "fd00:77::12"}
	podA      = [2]string{"10.244.1.2", "fd00:244:1::2"}
	podB      = [2]string{"10.244.1.3", "fd00:244:1::3"}
	podRemote = [2]string{"10.244.2.2", "fd00:244:2::2"}
	vip       = [2]string{"10.96.0.1", "fd00:96::1"}
	lbIP      = [2]string{"198.51.100.1", "fd00:51::1"}
	podNet    = [2]string{"10.244.0.0/16", "fd00:244::/32"}
	gateway   = [2]string{"169.254.1.1", "fe80::1"}
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it loads BPF programs and makes network namespaces")
	}
}

type testNet struct {
	client, node, remote, podA, podB, lan netns.NsHandle
}

// in runs f on a thread in a namespace. The thread is thrown away after.
func in(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	if err := inNS(ns, f); err != nil {
		t.Fatal(err)
	}
}

func inNS(ns netns.NsHandle, f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			errs <- err
			return
		}
		errs <- f()
	}()
	return <-errs
}

func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends in the new namespace
		ns, err := netns.New()
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("new network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.ns.Close() })
	in(t, r.ns, func() error {
		// Addresses are of use at once, without a search for duplicates.
		if err := errors.Join(sysctl("net/ipv6/conf/all/accept_dad", "0"), sysctl("net/ipv6/conf/default/accept_dad", "0")); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return r.ns
}

func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
}

// veth joins two namespaces.
func veth(t testing.TB, a netns.NsHandle, nameA string, b netns.NsHandle, nameB string) {
	t.Helper()
	in(t, a, func() error {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b))}
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("veth %s: %w", nameA, err)
		}
		return up(nameA)
	})
	in(t, b, func() error { return up(nameB) })
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return netlink.LinkSetUp(l)
}

func addAddr(dev, cidr string, scope int) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	a.Scope = scope
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", cidr, dev, err)
	}
	return nil
}

func delAddr(dev, cidr string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrDel(l, a); err != nil {
		return fmt.Errorf("remove address %s from %s: %w", cidr, dev, err)
	}
	return nil
}

func addRoute(dev, dst, via string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	_, to, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: to}
	if via != "" {
		r.Gw = net.ParseIP(via)
		r.Flags = int(netlink.FLAG_ONLINK)
	} else if to.IP.To4() != nil {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %q dev %s: %w", dst, via, dev, err)
	}
	return nil
}

var anyNet = [2]string{"0.0.0.0/0", "::/0"}
var bits = [2]string{"/32", "/128"}
var lanBits = [2]string{"/24", "/64"}

func newTestNet(t testing.TB) *testNet {
	t.Helper()
	needRoot(t)
	n := &testNet{client: newNS(t), node: newNS(t), remote: newNS(t), podA: newNS(t), podB: newNS(t), lan: newNS(t)}
	in(t, n.lan, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}); err != nil {
			return err
		}
		return up("br")
	})
	for name, ns := range map[string]netns.NsHandle{"client": n.client, "node": n.node, "remote": n.remote} {
		veth(t, n.lan, name, ns, "eth0")
		in(t, n.lan, func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			br, err := netlink.LinkByName("br")
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(l, br)
		})
	}
	veth(t, n.node, "poda", n.podA, "eth0")
	veth(t, n.node, "podb", n.podB, "eth0")
	for f := range 2 {
		n.configure(t, f)
	}
	return n
}

func (n *testNet) configure(t testing.TB, f int) {
	in(t, n.client, func() error {
		return errors.Join(addAddr("eth0", clientIP[f]+lanBits[f], 0), addRoute("eth0", anyNet[f], nodeIP[f]))
	})
	in(t, n.remote, func() error {
		return errors.Join(addAddr("eth0", remoteIP[f]+lanBits[f], 0), addAddr("lo", podRemote[f]+bits[f], 0),
			addRoute("eth0", podNet[f], nodeIP[f]))
	})
	in(t, n.node, func() error {
		return errors.Join(
			sysctl("net/ipv4/ip_forward", "1"), sysctl("net/ipv6/conf/all/forwarding", "1"),
			addAddr("eth0", nodeIP[f]+lanBits[f], 0), addRoute("eth0", anyNet[f], clientIP[f]),
			addRoute("eth0", podRemote[f]+bits[f], remoteIP[f]),
			addAddr("poda", gateway[f]+bits[f], int(netlink.SCOPE_LINK)), addAddr("podb", gateway[f]+bits[f], int(netlink.SCOPE_LINK)),
			addRoute("poda", podA[f]+bits[f], ""), addRoute("podb", podB[f]+bits[f], ""))
	})
	for ip, ns := range map[string]netns.NsHandle{podA[f]: n.podA, podB[f]: n.podB} {
		in(t, ns, func() error {
			return errors.Join(addAddr("eth0", ip+bits[f], 0), addRoute("eth0", anyNet[f], gateway[f]))
		})
	}
}

// quietLogger writes to the test's log.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// bpffs mounts a BPF file system for the test alone.
func bpffs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// cgroup makes a cgroup for the test's clients.
func cgroup(t testing.TB) string {
	t.Helper()
	root, err := findCgroup()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "nodeproxy-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 50 { // the last process may still be on its way out
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("remove cgroup: %v", err)
	})
	return dir
}

// start starts the mode in the node's namespace.
func (n *testNet) start(t testing.TB, o Options) *Dataplane {
	t.Helper()
	if o.PinRoot == "" {
		o.PinRoot = bpffs(t) + "/nodeproxy"
	}
	if o.CgroupPath == "" {
		o.CgroupPath = cgroup(t)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(testLog{t}, nil))
	}
	if o.Forwarding == "" {
		o.Forwarding = Forwarding(os.Getenv("NODEPROXY_TEST_FORWARDING"))
		o.untracked = o.Forwarding == ""
	}
	flows := o.Sizes.Flows
	if flows == 0 {
		flows = 4096
	}
	if o.Sizes == (Sizes{Flows: o.Sizes.Flows}) {
		o.Sizes = Sizes{Services: 1024, Frontends: 4096, Backends: 262144, Ranges: 256, Flows: flows, Affinities: 256, Fragments: 256}
	}
	var d *Dataplane
	in(t, n.node, func() (err error) {
		d, err = New(o)
		return err
	})
	t.Cleanup(func() {
		d.Close()
		if err := inNS(n.node, func() error { return Cleanup(o) }); err != nil {
			t.Errorf("cleanup: %v", err)
		}
	})
	return d
}

func (n *testNet) facts() service.NodeFacts {
	var facts service.NodeFacts
	for f := range 2 {
		facts.Local[f] = []netip.Addr{netip.MustParseAddr(nodeIP[f])}
		facts.NodePorts[f] = service.NodePortAddresses{All: true, Loopback: true}
		facts.Pods[f] = service.PodDetector{CIDR: netip.MustParsePrefix(podNet[f])}
	}
	return facts
}
