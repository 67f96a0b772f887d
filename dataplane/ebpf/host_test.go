package ebpf

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// run runs a command in a namespace.
func runIn(n *testNet, command string) error {
	return inNS(n.node, func() error {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return nil
	})
}

// TestBesideTheFirewall: a host that forwards nothing and drops what conntrack
// calls invalid, under each rp_filter, still serves.
func TestBesideTheFirewall(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	for _, iptables := range []string{"iptables", "ip6tables"} {
		err := runIn(n, fmt.Sprintf("%[1]s -P FORWARD DROP && %[1]s -A INPUT -m conntrack --ctstate INVALID -j DROP && "+
			"%[1]s -A FORWARD -m conntrack --ctstate INVALID -j DROP", iptables))
		if err != nil {
			t.Fatal(err)
		}
	}
	// As network plugins do.
	if err := runIn(n, "iptables -A FORWARD -s 10.244.0.0/16 -j ACCEPT && ip6tables -A FORWARD -s fd00:244::/32 -j ACCEPT"); err != nil {
		t.Fatal(err)
	}
	for _, forwarding := range []Forwarding{"", ForwardingAuto, ForwardingFast} {
		d := n.start(t, Options{PacketsOnly: true, Forwarding: forwarding})
		n.serveBesideTheFirewall(t, d)
		d.Close()
	}
}

func (n *testNet) serveBesideTheFirewall(t *testing.T, d *Dataplane) {
	for _, rp := range []string{"0", "1", "2"} {
		in(t, n.node, func() error {
			return errors.Join(sysctl("net/ipv4/conf/all/rp_filter", rp), sysctl("net/ipv4/conf/eth0/rp_filter", rp))
		})
		for _, where := range []struct {
			ips  [2]string
			name string
		}{{podA, "a"}, {podRemote, "remote"}} {
			syncAll(t, d, n.table(both(svc{name: "s", backends: to(where.ips, "8080")})...))
			eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
				a, err := ask(n.client, network, join(nodeIP[f], "30080"))
				wantAnswer(t, a, err, where.name, nodeIP[f])
				a, err = ask(n.podB, network, join(vip[f], "80"))
				wantAnswer(t, a, err, where.name, podB[f])
			})
		}
	}
}

// TestP44ForeignPrograms: programs of others on the same hook, before and after
// ours, see packets that are no service's, and stay.
func TestP44ForeignPrograms(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	counter, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	spec := &ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, counter.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}}
	n.attachForeign(t, spec, 1)
	d := n.start(t, Options{PacketsOnly: true})
	n.attachForeign(t, spec, 60000)
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	count := func() (v uint64) {
		if err := counter.Lookup(uint32(0), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := count()
	if _, err := ask(n.client, "udp4", join(podA[0], "8080")); err != nil {
		t.Error(err)
	}
	if got := count() - before; got < 2 {
		t.Errorf("%d runs of the foreign programs for a packet that is no service's, want 2", got)
	}
	before = count()
	a, err := ask(n.client, "udp4", join(nodeIP[0], "30080"))
	wantAnswer(t, a, err, "a", nodeIP[0])
	if got := count() - before; got < 1 {
		t.Errorf("the foreign program in front did not see the service's packet")
	}
}

// TestBridgedPods puts Pods behind a bridge, as many network plugins do.
func TestBridgedPods(t *testing.T) {
	n := newTestNet(t)
	in(t, n.node, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}); err != nil {
			return err
		}
		return errors.Join(up("cni0"), addAddr("cni0", "10.244.3.1/24", 0), addAddr("cni0", "fd00:244:3::1/64", 0))
	})
	ips := [2][2]string{{"10.244.3.2", "fd00:244:3::2"}, {"10.244.3.3", "fd00:244:3::3"}}
	gw := [2]string{"10.244.3.1", "fd00:244:3::1"}
	x, y := newNS(t), newNS(t)
	veth(t, n.node, "vethx", x, "eth0")
	veth(t, n.node, "vethy", y, "eth0")
	in(t, n.node, func() error {
		return runHere("ip link set vethx master cni0 && ip link set vethy master cni0 && " +
			"ip link set vethx type bridge_slave hairpin on") // as kubelet asks of plugins, for packets that a bridge translates
	})
	in(t, x, func() error {
		return errors.Join(addAddr("eth0", ips[0][0]+"/24", 0), addAddr("eth0", ips[0][1]+"/64", 0),
			addRoute("eth0", anyNet[0], gw[0]), addRoute("eth0", anyNet[1], gw[1]))
	})
	in(t, y, func() error {
		return errors.Join(addAddr("eth0", ips[1][0]+"/24", 0), addAddr("eth0", ips[1][1]+"/64", 0),
			addRoute("eth0", anyNet[0], gw[0]), addRoute("eth0", anyNet[1], gw[1]))
	})
	for f := range 2 {
		for p := range 2 {
			serve(t, x, networks[p][f], join(ips[0][f], "8080"), "x")
		}
	}
	for _, o := range []Options{{PacketsOnly: true}, {PacketsOnly: true, RedirectPeer: true}} {
		d := n.start(t, o)
		syncAll(t, d, n.table(both(svc{name: "s", backends: to(ips[0], "8080")})...))
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			a, err := ask(n.client, network, join(nodeIP[f], "30080"))
			wantAnswer(t, a, err, "x", "")
			a, err = ask(y, network, join(vip[f], "80"))
			wantAnswer(t, a, err, "x", ips[1][f])
			a, err = ask(x, network, join(vip[f], "80")) // hairpin
			wantAnswer(t, a, err, "x", "")
			a, err = ask(n.podA, network, join(vip[f], "80"))
			wantAnswer(t, a, err, "x", podA[f])
		})
		d.Close()
	}
}

func runHere(command string) error {
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

// TestNodePortAddresses: an address that carries no node ports is left alone.
func TestNodePortAddresses(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	table := n.table(both(svc{name: "s", backends: to(podA, "8080")})...)
	for f := range 2 {
		table.Node.NodePorts[f] = service.NodePortAddresses{}
	}
	syncAll(t, d, table)
	eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
		wantRefused(t, func() error { _, err := ask(n.client, network, join(nodeIP[f], "30080")); return err })
	})
}

// TestProbe: what this kernel is known to have is found.
func TestProbe(t *testing.T) {
	needRoot(t)
	features := Probe()
	if err := Missing(features); err != nil {
		t.Error(err)
	}
	for _, f := range features {
		t.Logf("%-50s present=%v fallback=%q err=%v", f.Name, f.Present, f.Fallback, f.Err)
		if strings.HasPrefix(f.Name, "TCX") && f.Present != kernelAtLeast(t, 6, 6) {
			t.Errorf("TCX present: %v", f.Present)
		}
	}
}

// kernelAtLeast tells whether the kernel is of a release or a later one.
func kernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a > major || a == major && b >= minor
}

// attachForeign puts a program on ingress of eth0 as others do: by TCX where the
// kernel has it, else as a clsact filter of a priority.
func (n *testNet) attachForeign(t testing.TB, spec *ebpf.ProgramSpec, priority uint16) {
	t.Helper()
	foreign, err := ebpf.NewProgram(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	in(t, n.node, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if haveTCX() == nil {
			held, err := link.AttachTCX(link.TCXOptions{Interface: l.Attrs().Index, Program: foreign, Attach: ebpf.AttachTCXIngress})
			if err == nil {
				t.Cleanup(func() { held.Close() })
			}
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: at}); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
				Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority},
			Fd: foreign.FD(), Name: fmt.Sprint("foreign", priority), DirectAction: true})
	})
}

// TestP45SelfTest: an agent below its cgroup sees itself, and one that is
// elsewhere on the tree than it attaches to makes no claim.
func TestP45SelfTest(t *testing.T) {
	n := newTestNet(t)
	root, cg, elsewhere := bpffs(t)+"/nodeproxy", cgroup(t), cgroup(t)
	t.Cleanup(func() {
		if err := inNS(n.node, func() error { return Cleanup(Options{PinRoot: root, CgroupPath: cg}) }); err != nil {
			t.Error(err)
		}
	})
	for _, at := range []string{cg, elsewhere} {
		var out []byte
		in(t, n.node, func() (err error) {
			out, err = clientProcess(t, at, "agent", root, cg).CombinedOutput()
			return err
		})
		if !strings.Contains(string(out), "agent <nil>") {
			t.Errorf("agent in %s: %s", at, out)
		}
	}
}

// TestP22NoLinkLayer sends a SYN through a tun device, which has no Ethernet
// headers, and wants the Pod's answer back on it.
func TestP22NoLinkLayer(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	clients := [2]string{"172.16.0.2", "fd00:172::2"}
	var fd int
	in(t, n.node, func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("tun0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		return errors.Join(up("tun0"), addRoute("tun0", clients[0]+"/32", ""), addRoute("tun0", clients[1]+"/128", ""))
	})
	t.Cleanup(func() { unix.Close(fd) })
	d := n.start(t, Options{PacketsOnly: true})
	for _, where := range [][2]string{podA, podRemote} {
		syncAll(t, d, n.table(svc{name: "s", backends: to(where, "8080")}))
		for f := range 2 {
			syn := frame{flags: syn, payload: []byte{}}.to(clients[f], clientPort, nodeIP[f], 30080)
			if _, err := unix.Write(fd, syn.bytes()[14:]); err != nil {
				t.Fatal(err)
			}
			if !readSynAck(fd, f) {
				t.Errorf("%s, %s: no answer", famNames[f], where[f])
			}
			reset := frame{flags: rst, seq: 1, payload: []byte{}}.to(clients[f], clientPort, nodeIP[f], 30080)
			if _, err := unix.Write(fd, reset.bytes()[14:]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// readSynAck waits for a SYN-ACK of the node port among what the kernel sends.
func readSynAck(fd, f int) bool {
	buf := make([]byte, 2048)
	l4 := [2]int{20, 40}[f]
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		n, err := unix.Read(fd, buf)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		if n >= l4+20 && buf[0]>>4 == [2]byte{4, 6}[f] && buf[l4+13] == syn|ack && int(buf[l4])<<8|int(buf[l4+1]) == 30080 {
			return true
		}
	}
	return false
}
