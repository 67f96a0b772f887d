package labtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Traces lists everything that a lab makes and that has a name outside of it,
// sorted: network namespaces, mounts, cgroups with their processes, files, BPF
// pins, and links outside of its namespaces. Labs of other test binaries, which
// come and go, are left out.
func Traces() ([]string, error) {
	var list []string
	for _, pattern := range []string{
		"/run/netns/np-*", "/run/nodeproxy-lab", "/run/nodeproxy-lab/*",
		"/sys/fs/cgroup/nodeproxy-lab-*", "/sys/fs/cgroup/unified/nodeproxy-lab-*",
		"/sys/fs/bpf/nodeproxy/*", "/run/nodeproxy/np-*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "np-") || strings.Contains(line, "nodeproxy") {
			list = append(list, "mount "+line)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		name := link.Attrs().Name
		for _, ours := range []string{"br0", "cni0", "veth-", "node-"} {
			if strings.HasPrefix(name, ours) {
				list = append(list, "link "+name)
			}
		}
	}
	processes, err := ownProcesses()
	if err != nil {
		return nil, err
	}
	list = append(list, processes...)
	list = slices.DeleteFunc(list, foreign)
	slices.Sort(list)
	return list, nil
}

// ownLabs is in the name of every lab that [Name] has named.
func ownLabs() string { return fmt.Sprintf("t%d-", os.Getpid()) }

// foreign reports whether a trace is that of another process's lab.
func foreign(trace string) bool {
	ofLab := strings.Contains(trace, "/np-") || strings.Contains(trace, "nodeproxy-lab")
	return ofLab && !strings.Contains(trace, ownLabs())
}

// ownProcesses lists the processes that run in a lab of this test binary.
// Those that have ended and that init has yet to reap do not count.
func ownProcesses() ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), "nodeproxy-lab-"+ownLabs()) {
			continue // it has just ended, or is not ours
		}
		if stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat")); err == nil && !strings.Contains(string(stat), ") Z ") {
			list = append(list, fmt.Sprintf("process %s in %s", filepath.Base(filepath.Dir(file)), strings.TrimSpace(string(data))))
		}
	}
	return list, nil
}
