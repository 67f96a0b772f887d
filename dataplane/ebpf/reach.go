package ebpf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespacePatterns are where network namespaces of the node are found: those of
// processes, as far as this PID namespace goes, and those that container runtimes and
// iproute2 give names to.
var namespacePatterns = []string{"/proc/[0-9]*/ns/net", namesDir + "/*"}

const namesDir = "/run/netns"

// mendNames is what in a Pod's specification lets the agent see Pods' namespaces.
const mendNames = "give the DaemonSet's container the host's " + namesDir + " (volumeMounts: {name: netns, mountPath: " + namesDir +
	", mountPropagation: HostToContainer}), or set hostPID: true and add SYS_PTRACE to its capabilities"

// eachNamespace calls do with one path of each network namespace that this process
// can name.
func eachNamespace(do func(path string)) {
	seen := map[uint64]bool{}
	for _, pattern := range namespacePatterns {
		paths, _ := filepath.Glob(pattern) // the patterns are right
		for _, path := range paths {
			var st unix.Stat_t
			if !isNamespace(path) || unix.Stat(path, &st) != nil || seen[st.Ino] {
				continue // its process has ended, or a name that is being made or removed, or known
			}
			seen[st.Ino] = true
			do(path)
		}
	}
}

// CannotEnd says, in words, why sockets in Pods are not ended when the backend that
// they were translated to is gone, and what in the DaemonSet mends that. It is empty
// if they are, or if they are not to be. It may be called concurrently.
func (d *Dataplane) CannotEnd() string {
	if d.o.Drain || d.o.PacketsOnly || d.o.Terminate == TerminateNone {
		return ""
	}
	if lacks := lacking(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN); lacks != "" {
		return lacks
	}
	linked, missing, err := d.unreached()
	switch {
	case err != nil:
		return fmt.Sprintf("what network namespaces there are is not known: %v", err)
	case missing > 0:
		return fmt.Sprintf("%d of %d network namespaces that interfaces of this node lead to cannot be found: %s", missing, linked, mendNames)
	case linked == 0 && !seesProcesses() && !followsNames():
		return "the agent sees no network namespaces but its own: " + mendNames
	}
	return ""
}

// ExplainRefusal adds to an error of [New] which capabilities the process lacks, and
// where a DaemonSet gives them. Whatever the error is, that comes first: not every
// library below keeps the kernel's error number.
func ExplainRefusal(err error) error {
	if lacks := lacking(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON); lacks != "" {
		return fmt.Errorf("%w: %s", err, lacks)
	}
	return err
}

var capabilityNames = map[int]string{unix.CAP_NET_ADMIN: "NET_ADMIN", unix.CAP_SYS_ADMIN: "SYS_ADMIN", unix.CAP_BPF: "BPF", unix.CAP_PERFMON: "PERFMON"}

// lacking says which of these capabilities this process has not got, and how it gets
// them; "" if none.
func lacking(capabilities ...int) string {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return "" // not known, and tried
	}
	var names []string
	for _, c := range capabilities {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			names = append(names, capabilityNames[c])
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("the agent lacks CAP_%s: add %s to securityContext.capabilities.add of the DaemonSet's container",
		strings.Join(names, " and CAP_"), strings.Join(names, ", "))
}

// unreached counts the network namespaces in which interfaces of this node have
// their peers, as those of Pods have, and how many of these this process cannot
// name. Uplinks do not count: where a node is itself a container, they lead out of it.
func (d *Dataplane) unreached() (linked, missing int, err error) {
	h, err := netlink.NewHandleAt(d.ns)
	if err != nil {
		return 0, 0, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return 0, 0, fmt.Errorf("list interfaces: %w", err)
	}
	out, err := defaultRouteLinks(h)
	if err != nil {
		return 0, 0, err
	}
	peers := map[int]bool{}
	for _, l := range links {
		if a := l.Attrs(); a.NetNsID >= 0 && !out[a.Index] {
			peers[a.NetNsID] = false
		}
	}
	eachNamespace(func(path string) {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return // gone meanwhile
		}
		defer ns.Close()
		if id, err := h.GetNetNsIdByFd(int(ns)); err == nil {
			if _, peer := peers[id]; peer {
				peers[id] = true
			}
		}
	})
	for _, found := range peers {
		linked++
		if !found {
			missing++
		}
	}
	return linked, missing, nil
}

// defaultRouteLinks are the interfaces of default routes, of every table.
func defaultRouteLinks(h *netlink.Handle) (map[int]bool, error) {
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := map[int]bool{}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		out[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			out[hop.LinkIndex] = true
		}
	}
	return out, nil
}

// seesProcesses reports whether other processes' namespaces can be opened, as in the
// host's PID namespace: there the first process is not the agent itself.
func seesProcesses() bool { return os.Getpid() != 1 && isNamespace("/proc/1/ns/net") }

// followsNames reports whether names that the host makes from now on appear here.
func followsNames() bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && namesFollowed(string(data))
}

// namesFollowed finds, in a mountinfo, the directory of names as a mount that gets
// what is mounted on the host: one with peers, or a slave.
func namesFollowed(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		words := strings.Fields(line)
		if len(words) < 7 || words[4] != namesDir && words[4] != filepath.Dir(namesDir) {
			continue
		}
		for _, option := range words[6:max(6, slices.Index(words, "-"))] {
			if strings.HasPrefix(option, "shared:") || strings.HasPrefix(option, "master:") {
				return true
			}
		}
	}
	return false
}
