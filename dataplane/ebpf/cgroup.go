package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNoCgroup says that no cgroup v2 hierarchy is mounted.
var ErrNoCgroup = errors.New("no cgroup v2 mount (mount cgroup2, or use --mode iptables)")

// findCgroup returns the mount point of the first cgroup2 mount that shows the whole
// hierarchy, or of the first that shows some of it.
func findCgroup() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup: %w", err)
	}
	defer f.Close()
	some := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		// id parent dev root mountpoint options... - type source options
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if fields[3] == "/" {
			return fields[4], nil
		}
		if some == "" {
			some = fields[4]
		}
	}
	if some == "" {
		return "", ErrNoCgroup
	}
	return some, nil
}

// CgroupFeature is the name of the Feature that [ProbeCgroup] returns.
const CgroupFeature = "cgroup v2 to attach socket programs to"

// ProbeCgroup finds out whether socket programs can be attached at a cgroup, which
// is the first cgroup2 mount where path is empty: it attaches one that lets
// everything pass, and takes it away again. A cgroup may refuse: it is not there,
// a program of somebody else that is alone stands above, or this process may not.
func ProbeCgroup(path string) Feature {
	err := tryCgroup(path)
	return required(CgroupFeature, err)
}

func tryCgroup(path string) error {
	if path == "" {
		var err error
		if path, err = findCgroup(); err != nil {
			return err
		}
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: ebpf.AttachCGroupInet4Connect, Program: prog})
	if err != nil {
		return fmt.Errorf("attach at cgroup %s: %w", path, err)
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("detach from cgroup %s: %w", path, err)
	}
	return nil
}

// ErrNotSeen says that the socket programs do not see the agent's own calls.
var ErrNotSeen = errors.New("socket programs do not see this process: wrong cgroup mount?")

// noService is no id of a port of a Service: EVENT_NO_SERVICE of bpf/stats.h.
const noService = ^uint32(0)

// selfTest makes a socket call that the programs must refuse. It tells nothing,
// and is left out, if the agent itself is not below the cgroup.
func selfTest(path string, objs *objects) error {
	own, err := ownCgroup()
	if errors.Is(err, ErrNoCgroup) {
		return nil // it is a directory that was given, of a mount that is not seen
	}
	if err != nil || own != path && !strings.HasPrefix(own, strings.TrimSuffix(path, "/")+"/") {
		return err
	}
	// TEST-NET-1 and the discard port: nobody's Service, and counted as nobody's.
	addr := netip.MustParseAddrPort("192.0.2.1:9")
	key := bpfFrontendKey{Addr: mapAddr(addr.Addr()), Port: networkPort(addr.Port()), Proto: unix.IPPROTO_UDP}
	no := uint8(bpfRouteROUTE_REJECT)
	var bits uint32
	if err := objs.Ports.Lookup(uint32(addr.Port()), &bits); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	err = errors.Join(
		objs.Frontends.Put(key, bpfFrontend{Service: noService, Route: [3]uint8{no, no, no}}),
		objs.Ports.Put(uint32(addr.Port()), bits|uint32(bpfPortFlagPORT_UDP)))
	_, dialed := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
	err = errors.Join(err, objs.Frontends.Delete(key), objs.Ports.Put(uint32(addr.Port()), bits))
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if !errors.Is(dialed, unix.ECONNREFUSED) {
		return fmt.Errorf("self-test at cgroup %s: %w", path, ErrNotSeen)
	}
	return nil
}

// ownCgroup is the directory of this process in the first cgroup2 mount.
func ownCgroup() (string, error) {
	root, err := findCgroup()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("own cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, rest), nil
		}
	}
	return "", ErrNoCgroup
}

// errCgroupGone says that the cgroup of the socket programs is not to be seen.
var errCgroupGone = errors.New("the cgroup is not there")

// cgroupID is the id of the cgroup to which the socket programs belong. It changes if
// somebody removes the directory and makes it anew.
func (d *Dataplane) cgroupID() (uint64, error) {
	path := d.o.CgroupPath
	if path == "" {
		var err error
		if path, err = findCgroup(); err != nil {
			return 0, err
		}
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(path, &fs), unix.Stat(path, &st)); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("cgroup %s: no cgroup v2 is mounted there", path)
	}
	return st.Ino, nil
}

// noteCgroup says once that the cgroup is not to be seen any more, and once that it is
// again. Programs are attached to the cgroup, not to its mount.
func (d *Dataplane) noteCgroup() {
	if d.o.PacketsOnly || d.o.Drain {
		return
	}
	_, err := d.cgroupID()
	if err != nil && !d.cgroupGone {
		d.o.Logger.Warn("the cgroup of the socket programs is not to be seen any more: if it was only unmounted they go on, but the agent cannot be started again without it", "error", err)
	} else if err == nil && d.cgroupGone {
		d.o.Logger.Info("the cgroup of the socket programs is there again")
	}
	d.cgroupGone = err != nil
}

// mendSockets attaches the socket programs where they were lost.
func (d *Dataplane) mendSockets(p pins) error {
	if d.cgroupGone {
		return errCgroupGone
	}
	return d.attachSockets(p)
}

// detachCgroup ends the translation of sockets by an agent that did it.
func detachCgroup(p pins) error {
	pinned, err := filepath.Glob(filepath.Join(p.links, "cgroup_*"))
	for _, path := range pinned {
		err = errors.Join(err, detachPinned(path))
	}
	if err != nil {
		return fmt.Errorf("detach from cgroup: %w", err)
	}
	return nil
}

// cgroupHooks name the links of the socket programs.
var cgroupHooks = []string{"recvmsg4", "recvmsg6", "getpeername4", "getpeername6", "connect4", "connect6", "sendmsg4", "sendmsg6"}

// attachCgroup attaches the socket programs below a cgroup, or gives the links
// that are pinned the new programs.
func attachCgroup(path string, objs *objects, p pins) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	for _, h := range []struct {
		attach ebpf.AttachType
		prog   *ebpf.Program
		name   string
	}{
		// What turns answers back comes first: nothing may be translated before.
		{ebpf.AttachCGroupUDP4Recvmsg, objs.Recvmsg4, "recvmsg4"},
		{ebpf.AttachCGroupUDP6Recvmsg, objs.Recvmsg6, "recvmsg6"},
		{ebpf.AttachCgroupInet4GetPeername, objs.Getpeername4, "getpeername4"},
		{ebpf.AttachCgroupInet6GetPeername, objs.Getpeername6, "getpeername6"},
		{ebpf.AttachCGroupInet4Connect, objs.Connect4, "connect4"},
		{ebpf.AttachCGroupInet6Connect, objs.Connect6, "connect6"},
		{ebpf.AttachCGroupUDP4Sendmsg, objs.Sendmsg4, "sendmsg4"},
		{ebpf.AttachCGroupUDP6Sendmsg, objs.Sendmsg6, "sendmsg6"},
	} {
		pin := filepath.Join(p.links, "cgroup_"+h.name)
		done, err := takeOver(pin, h.prog, func(i *link.Info) bool {
			c := i.Cgroup()
			return c != nil && c.CgroupId == st.Ino
		})
		if err != nil {
			return err
		}
		if done {
			continue
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: h.attach, Program: h.prog})
		if err != nil {
			return fmt.Errorf("cgroup %s: attach %s: %w", path, h.name, err)
		}
		if err := pinNew(l, pin); err != nil {
			return err
		}
	}
	return nil
}
