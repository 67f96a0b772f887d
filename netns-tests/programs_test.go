package netnstests

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
)

// pinDir is where a node's agent in eBPF mode pins what it owns.
func pinDir(l *lab.Lab, node string) string {
	return filepath.Join("/sys/fs/bpf/nodeproxy", l.Netns(node))
}

// layoutDir is the one below pinDir whose name is the version of the maps'
// layout. There is none where the mode is another, or ended.
func layoutDir(l *lab.Lab, node string) string {
	dirs, _ := filepath.Glob(filepath.Join(pinDir(l, node), "v*")) // the pattern is right
	if len(dirs) == 0 {
		return filepath.Join(pinDir(l, node), "none")
	}
	return dirs[0]
}

// cgroupHooks are the hooks of sockets.
var cgroupHooks = []ebpf.AttachType{
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
}

// attachedTo lists the programs at a node's interfaces and at its cgroup, as
// "eth0 TCXIngress 17", in the order in which they run.
func attachedTo(t *testing.T, l *lab.Lab, node string) []string {
	t.Helper()
	var list []string
	query := func(where string, target int, hooks ...ebpf.AttachType) error {
		for _, hook := range hooks {
			result, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: hook})
			if err != nil {
				return fmt.Errorf("query %v at %s: %w", hook, where, err)
			}
			for _, p := range result.Programs {
				list = append(list, fmt.Sprintf("%s %v %d", where, hook, p.ID))
			}
		}
		return nil
	}
	err := l.Do(node, func() error {
		links, err := netlink.LinkList()
		for _, dev := range links {
			err = errors.Join(err, query(dev.Attrs().Name, dev.Attrs().Index, ebpf.AttachTCXIngress, ebpf.AttachTCXEgress))
		}
		return err
	})
	path, pathErr := l.NodeCgroup(node)
	dir, openErr := os.Open(path)
	if err := errors.Join(err, pathErr, openErr); err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := query("cgroup", int(dir.Fd()), cgroupHooks...); err != nil {
		t.Fatal(err)
	}
	return list
}

// syncedMaps are the maps that the agent alone writes.
var syncedMaps = []string{"frontends", "backends", "members", "addresses", "source_ranges", "interfaces"}

// savedMaps is what the maps of a node's agent say, and which links it has.
// Links live as long as they attach something; programs are replaced in them.
func savedMaps(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	var out strings.Builder
	for _, name := range syncedMaps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(layoutDir(l, node), "maps", name), &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, fs.ErrNotExist) {
			continue // the mode is another, or ended
		}
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		var key, value []byte
		entries := m.Iterate()
		for entries.Next(&key, &value) {
			lines = append(lines, fmt.Sprintf("%s %s: %s\n", name, hex.EncodeToString(key), hex.EncodeToString(value)))
		}
		if err := errors.Join(entries.Err(), m.Close()); err != nil {
			t.Fatalf("read map %s: %v", name, err)
		}
		slices.Sort(lines)
		out.WriteString(strings.Join(lines, ""))
	}
	pins, _ := filepath.Glob(filepath.Join(layoutDir(l, node), "links/*")) // the pattern is right
	for _, pin := range pins {
		held, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := held.Info()
		if err := errors.Join(err, held.Close()); err != nil {
			t.Fatalf("read link %s: %v", pin, err)
		}
		fmt.Fprintf(&out, "link %s: %d\n", filepath.Base(pin), info.ID)
	}
	return out.String()
}

// saved is what a node's agent has programmed, in whatever mode.
func saved(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	return savedRules(t, l, node) + savedMaps(t, l, node)
}
