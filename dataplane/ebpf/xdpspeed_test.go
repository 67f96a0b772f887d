package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	xdpRounds  = 9
	xdpPackets = 1 << 20 // of each measurement
	xdpFlows   = 64
	// liveFrames is BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18): what the program
	// sends really leaves by the interface.
	liveFrames = 1 << 1
)

// xdpNet is a node between two wires: what comes in by eth0 for a node port goes
// out by eth1, to a Pod of another node. Both wires end in one namespace.
type xdpNet struct {
	node, wires netns.NsHandle
	mac         [6]byte // of the node's eth0
}

func newXDPNet(b *testing.B) *xdpNet {
	n := &xdpNet{node: newNS(b), wires: newNS(b)}
	veth(b, n.node, "eth0", n.wires, "source")
	veth(b, n.node, "eth1", n.wires, "sink")
	in(b, n.node, func() error {
		errs := []error{sysctl("net/ipv4/ip_forward", "1"),
			addAddr("eth0", nodeIP[0]+"/24", 0), addAddr("eth1", "192.168.78.11/24", 0), addRoute("eth1", podRemote[0]+"/32", "192.168.78.12")}
		for dev, ip := range map[string]string{"eth0": clientIP[0], "eth1": "192.168.78.12"} {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP(ip), State: unix.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}))
			if dev == "eth0" {
				copy(n.mac[:], l.Attrs().HardwareAddr)
			}
		}
		return errors.Join(errs...)
	})
	return n
}

// frames is a program that sends datagrams of 64 bytes with the frame's checksum,
// from one of some ports, by the interface that it is run for. The node changes
// the frame in place, so the program writes all of it every time.
func (n *xdpNet) frames(b *testing.B) *ebpf.Program {
	head := make([]byte, 44)
	copy(head, n.mac[:])
	copy(head[6:], []byte{2, 0, 0, 0, 0, 9})
	binary.BigEndian.PutUint16(head[12:], unix.ETH_P_IP)
	ip := head[14:34]
	copy(ip, []byte{0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP})
	copy(ip[12:], netip.MustParseAddr(clientIP[0]).AsSlice())
	copy(ip[16:], netip.MustParseAddr(nodeIP[0]).AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	binary.BigEndian.PutUint16(head[36:], 30080)
	binary.BigEndian.PutUint16(head[38:], 26) // and no checksum
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, xdpFlows-1),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 60),
		asm.Mov.Imm(asm.R0, 0),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
	}
	for i := 0; i < len(head); i += 4 {
		insns = append(insns, asm.StoreImm(asm.R2, int16(i), int64(int32(binary.NativeEndian.Uint32(head[i:]))), asm.Word))
	}
	insns = append(insns,
		asm.StoreImm(asm.R2, 34, 0x40, asm.Byte), // source ports from 16384
		asm.StoreMem(asm.R2, 35, asm.R7, asm.Byte),
		asm.Mov.Imm(asm.R0, 3), // XDP_TX
		asm.Return().WithSymbol("out"))
	return mustProgram(b, &ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: insns})
}

func mustProgram(b *testing.B, spec *ebpf.ProgramSpec) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		b.Fatalf("%+v", err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// counted is a program that counts a packet in a map and returns an action.
func counted(b *testing.B, kind ebpf.ProgramType, seen *ebpf.Map, action int32) *ebpf.Program {
	return mustProgram(b, &ebpf.ProgramSpec{Type: kind, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, seen.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, action).WithSymbol("out"),
		asm.Return(),
	}})
}

// rate sends packets, and returns how many a second have come to the map, all
// on one core.
func (n *xdpNet) rate(b *testing.B, frames *ebpf.Program, seen *ebpf.Map) (perSecond float64) {
	b.Helper()
	count := func() (sum uint64) {
		var all []uint64
		if err := seen.Lookup(uint32(0), &all); err != nil {
			b.Fatal(err)
		}
		for _, v := range all {
			sum += v
		}
		return sum
	}
	in(b, n.wires, func() error {
		source, err := net.InterfaceByName("source")
		if err != nil {
			return err
		}
		type xdpMD struct{ Data, DataEnd, DataMeta, Ingress, Queue, Egress uint32 }
		before, begun := count(), time.Now()
		_, err = frames.Run(&ebpf.RunOptions{Data: make([]byte, 60), Repeat: xdpPackets, Flags: liveFrames,
			Context: xdpMD{DataEnd: 60, Ingress: uint32(source.Index)}})
		got := count() - before
		perSecond = float64(got) / time.Since(begun).Seconds()
		if err == nil && got < xdpPackets*99/100 {
			err = fmt.Errorf("%d of %d packets have come", got, xdpPackets)
		}
		return err
	})
	return perSecond
}

// attachXDP attaches a program until the function that it returns is called.
func attachXDP(b *testing.B, ns netns.NsHandle, dev string, p *ebpf.Program) func() {
	b.Helper()
	var l link.Link
	in(b, ns, func() error {
		found, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		for range 100 { // what was there is detached a moment after its end
			l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: found.Index, Flags: link.XDPDriverMode})
			if !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return err
	})
	return func() { l.Close() }
}

// BenchmarkXDP forwards datagrams of 64 bytes from a node port to another node,
// on one core: by tc, where a program that passes all makes the veth hand frames
// over as a driver does, and at XDP. What making the frames costs is measured too,
// with a node that drops them, and is in both.
func BenchmarkXDP(b *testing.B) {
	n := newXDPNet(b)
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer seen.Close()
	frames := n.frames(b)
	drop, dropTC := counted(b, ebpf.XDP, seen, 1), counted(b, ebpf.SchedCLS, seen, 2)
	pass := mustProgram(b, &ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	detach := attachXDP(b, n.wires, "source", pass)
	defer detach()
	serve := func(xdp XDP) func() {
		t := &testNet{node: n.node}
		o := Options{PacketsOnly: true, XDP: xdp, XDPInterfaces: []string{"eth*"}, PinRoot: bpffs(b) + "/nodeproxy"}
		d := t.start(b, o)
		syncAll(b, d, t.table(svc{name: "s", proto: service.UDP, backends: to(podRemote, "8080"), policy: service.PolicyCluster}))
		return func() {
			d.Close()
			in(b, n.node, func() error { return Cleanup(o) })
		}
	}
	ways := map[string]func() float64{
		"frames made and dropped": func() float64 {
			defer attachXDP(b, n.node, "eth0", drop)()
			return n.rate(b, frames, seen)
		},
		"tc": func() float64 {
			defer serve(XDPOff)()
			defer attachXDP(b, n.node, "eth0", pass)()
			defer attachTCX(b, n.wires, "sink", dropTC)()
			return n.rate(b, frames, seen)
		},
		"XDP": func() float64 {
			defer serve(XDPNative)()
			defer attachXDP(b, n.wires, "sink", drop)()
			return n.rate(b, frames, seen)
		},
	}
	names := []string{"frames made and dropped", "tc", "XDP"}
	for b.Loop() {
		got, ratios := map[string][]float64{}, []float64{}
		for range xdpRounds {
			for _, name := range names {
				got[name] = append(got[name], ways[name]())
			}
			last := len(got["tc"]) - 1
			ratios = append(ratios, got["XDP"][last]/got["tc"][last])
		}
		for _, name := range names {
			slices.Sort(got[name])
			b.Logf("%-24s %9.0f packets/s, %4.0f ns each", name, got[name][xdpRounds/2], 1e9/got[name][xdpRounds/2])
		}
		slices.Sort(ratios)
		b.Logf("XDP against tc: %.2f (%.2f to %.2f)", ratios[xdpRounds/2], ratios[0], ratios[xdpRounds-1])
		b.ReportMetric(ratios[xdpRounds/2], "XDP/tc")
	}
}

func attachTCX(b *testing.B, ns netns.NsHandle, dev string, p *ebpf.Program) func() {
	b.Helper()
	var l link.Link
	in(b, ns, func() error {
		found, err := net.InterfaceByName(dev)
		if err == nil {
			l, err = link.AttachTCX(link.TCXOptions{Program: p, Interface: found.Index, Attach: ebpf.AttachTCXIngress})
		}
		return err
	})
	return func() { l.Close() }
}
