package netnstests

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// foreign is a program of somebody else, which counts what it sees.
type foreign struct {
	name string
	seen *ebpf.Map
}

func (f foreign) count(t *testing.T) (n uint64) {
	t.Helper()
	if err := f.seen.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// newForeign loads a program that counts and then returns verdict.
func newForeign(t *testing.T, name string, kind ebpf.ProgramType, at ebpf.AttachType, verdict int32) (foreign, *ebpf.Program) {
	t.Helper()
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seen.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, AttachType: at, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, seen.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, verdict).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return foreign{name, seen}, prog
}

// addForeignPrograms attaches programs of somebody else to a node's uplink, in
// both ways there are, and to its cgroup.
func addForeignPrograms(t *testing.T, l *lab.Lab, node, when string) (list []foreign) {
	t.Helper()
	tcx, tcxProg := newForeign(t, when+" tcx", ebpf.SchedCLS, 0, -1)
	filter, filterProg := newForeign(t, when+" filter", ebpf.SchedCLS, 0, -1)
	socket, socketProg := newForeign(t, when+" cgroup", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, 1)
	dir, err := l.NodeCgroup(node)
	if err != nil {
		t.Fatal(err)
	}
	held, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInet4Connect, Program: socketProg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	err = l.Do(node, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		held, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: tcxProg, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		t.Cleanup(func() { held.Close() })
		if err := netlink.QdiscReplace(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index,
			Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}); err != nil && when == "first" {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: dev.Attrs().Index,
			Parent: netlink.HANDLE_MIN_INGRESS, Protocol: 3, Priority: uint16(len(when))},
			Fd: filterProg.FD(), Name: "others", DirectAction: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	return []foreign{tcx, filter, socket}
}

var volatile = regexp.MustCompile(`(?m)(^.*(nf_conntrack_count|random|mtu_expires|tcp_mem|udp_mem|netdev_budget).*$| expires \d+sec|Sent .*$|backlog .*$|fe80::\S+)`)

// hostState is what of a node an agent could leave something in: programs,
// filters, pins, addresses, routes and sysctls.
func hostState(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	state := strings.Join(attachedTo(t, l, node), "\n")
	for _, command := range []string{
		"ip -o addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"tc qdisc show", "tc filter show dev eth0 ingress", "tc filter show dev eth0 egress",
		`sysctl -a -r ^net\.(ipv4|ipv6|core|netfilter)\.`,
	} {
		state += "\n# " + command + "\n" + volatile.ReplaceAllString(inPlace(t, l, node, strings.Fields(command)...), "")
	}
	pins, _ := filepath.Glob(pinDir(l, node) + "*") // the pattern is right
	return state + strings.Join(pins, "\n")
}

// ownedIDs are those of a running agent's maps and programs.
func ownedIDs(t *testing.T, l *lab.Lab, node string, others []string) (maps []ebpf.MapID, programs []ebpf.ProgramID) {
	t.Helper()
	pins, _ := filepath.Glob(filepath.Join(pinDir(l, node), "v*/maps/*")) // the pattern is right
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		maps = append(maps, id)
	}
	for _, p := range attachedTo(t, l, node) {
		if !slices.Contains(others, p) {
			var id ebpf.ProgramID
			if _, err := fmt.Sscan(p[strings.LastIndexByte(p, ' ')+1:], &id); err != nil {
				t.Fatal(err)
			}
			programs = append(programs, id)
		}
	}
	if len(maps) < 10 || len(programs) < 4 {
		t.Fatalf("only %d maps and %d programs of a running agent were found", len(maps), len(programs))
	}
	return maps, programs
}

// TestP43P44CleanupBesideForeignPrograms has programs of others on the same
// hooks, attached first and last: all count while the agent runs and after a
// cleanup, which leaves the node as it was.
func TestP43P44CleanupBesideForeignPrograms(t *testing.T) {
	eachEBPF(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		list := addForeignPrograms(t, l, "node-a", "first")
		before, others := hostState(t, l, "node-a"), attachedTo(t, l, "node-a")
		// The flags of conntrack's settings are kube-proxy's, and stay set as with that.
		startAgents(t, l, "--conntrack-tcp-timeout-established", "0s", "--conntrack-tcp-timeout-close-wait", "0s")
		attached := strings.Join(attachedTo(t, l, "node-a"), ", ")
		if c.Sockets != strings.Contains(attached, "CGroupInet6Connect") {
			t.Errorf("sockets are translated: %v, but attached are %s", c.Sockets, attached)
		}
		maps, programs := ownedIDs(t, l, "node-a", others)
		use := func(when string) {
			counts := map[string]uint64{}
			for _, f := range list {
				counts[f.name] = f.count(t)
			}
			checkAnswers(t, l, "web", everyPod)
			// What is no Service's: every program on the hook sees it.
			_, _ = l.Dial(t.Context(), "client", echo.TCP, netip.AddrPortFrom(lab.MustPlace("node-a").IPv4, 9))
			for _, f := range list {
				if f.count(t) == counts[f.name] {
					t.Errorf("%s: the program attached %s saw nothing", when, f.name)
				}
			}
		}
		use("beside the agent")
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second has nothing to do
			inPlace(t, l, "node-a", l.Options().Binary, "cleanup", "--instance", l.Netns("node-a"))
			if diff := cmp.Diff(before, hostState(t, l, "node-a")); diff != "" {
				t.Errorf("after cleanup (-before +after):\n%s", diff)
			}
		}
		eventually(t, patience, func() error { return allGone(maps, programs) })
		if err := l.StartAgent(t.Context(), "node-a"); err != nil {
			t.Fatal(err)
		}
		list = append(list, addForeignPrograms(t, l, "node-a", "at last")...)
		use("after the agent")
	})
}

// allGone tells whether the kernel has freed maps and programs.
func allGone(maps []ebpf.MapID, programs []ebpf.ProgramID) error {
	for _, id := range maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			return fmt.Errorf("map %d is still there", id)
		}
	}
	for _, id := range programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			return fmt.Errorf("program %d is still there", id)
		}
	}
	return nil
}

// setSysctl writes a file of /proc/sys/net in a place.
func setSysctl(t *testing.T, l *lab.Lab, place, key, value string) {
	t.Helper()
	err := l.Do(place, func() error { return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0) })
	if err != nil {
		t.Fatal(err)
	}
}
