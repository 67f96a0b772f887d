package netnstests

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
	"github.com/nodeproxy/nodeproxy/service"
	files "github.com/nodeproxy/nodeproxy/source"
)

// passing is an address that the node has now and then, among those that node
// ports are served on.
var passing = netip.MustParseAddr("192.168.91.1")

// liveAgent is nodeproxy run on the node of a refNet, fed by one manifest file.
type liveAgent struct {
	e       *equality
	objects *objects
	zone    string
	options service.Options // what argv says
	argv    []string
	path    string // of the manifests
	cmd     *exec.Cmd
	log     safeBuffer
	// mirror takes in the same, to tell whether a sync follows.
	mirror *service.Resolver
}

// startAgent starts an agent and waits for its first sync.
func (e *equality) startAgent(t *testing.T, objects *objects) *liveAgent {
	t.Helper()
	l := &liveAgent{e: e, objects: objects, path: filepath.Join(t.TempDir(), "state.yaml"), options: service.Options{
		NodeName: "node-a", LocalhostNodePorts: true, DetectLocalMode: service.DetectClusterCIDR,
		ClusterCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:128::/64")},
		NodePortAddresses: []string{"192.168.0.0/16", "fd00:77::/64"},
	}}
	l.argv = []string{
		labtest.Binary(t), "run", "--source", "file:" + l.path, "--hostname-override", l.options.NodeName, "--instance", e.instance,
		"--cluster-cidr", "10.128.0.0/16,fd00:128::/64", "--nodeport-addresses", strings.Join(l.options.NodePortAddresses, ","),
		"--min-sync-period", "0s", "--sync-period", "1h", // no sync but those that follow a change
	}
	if backend, ok := strings.CutPrefix(e.mode, "iptables-"); ok {
		l.argv = append(l.argv, "--mode", "iptables", "--iptables-backend", backend)
	} else {
		l.argv = append(l.argv, "--mode", "ebpf", "--sockets="+fmt.Sprint(e.mode == ebpfSockets))
		if e.cgroup != "" {
			l.argv = append(l.argv, "--cgroup", e.cgroup)
		}
	}
	l.mirror = service.NewResolver(l.config(t))
	l.write(t)
	l.start(t)
	t.Cleanup(func() {
		l.kill()
		if t.Failed() {
			t.Logf("log of the agent:\n%s", l.log.String())
		}
	})
	return l
}

func (l *liveAgent) start(t *testing.T) {
	t.Helper()
	l.cmd = exec.Command(l.argv[0], l.argv[1:]...)
	l.cmd.Stderr = &l.log
	begun := time.Now()
	l.e.do(t, "node", l.cmd.Start) // by the thread that is there
	l.waitSync(t, begun)
}

// restart kills the agent, changes what it follows, and starts it again.
func (l *liveAgent) restart(t *testing.T) {
	t.Helper()
	l.apply(t)
	var before, after []string
	l.e.do(t, "node", func() error { before = l.e.kernelState(); return nil })
	l.kill()
	l.start(t)
	l.e.do(t, "node", func() error { after = l.e.kernelState(); return nil })
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("step %d: another start of the agent changes the kernel's state (-before +after):\n%s", l.e.step.Load(), diff)
	}
}

func (l *liveAgent) kill() {
	_ = l.cmd.Process.Kill() // it may have ended
	_ = l.cmd.Wait()
}

// config is what the agent works out from its flags, its Node and its
// interfaces.
func (l *liveAgent) config(t *testing.T) (cfg service.Config) {
	t.Helper()
	l.e.do(t, "node", func() error {
		local, err := dataplane.LocalAddresses()
		if err == nil {
			cfg, err = l.options.Config(&service.Node{Name: l.options.NodeName, Zone: l.zone, Addresses: synthLocal[:1]}, local)
		}
		return err
	})
	return cfg
}

// write replaces the manifests, and gives the mirror what a source reads there.
func (l *liveAgent) write(t *testing.T) (changed []service.Name) {
	t.Helper()
	node, err := yaml.Marshal(manifest.Node(l.options.NodeName, l.zone, synthLocal[:1], nil))
	text := fmt.Appendf(node, "---\n%s", synth.YAML(l.objects.changes()))
	if err == nil {
		err = os.WriteFile(l.path+".new", text, 0o644)
	}
	if err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	var all service.Changes
	if err == nil {
		all, _, err = files.Decode(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	all.Complete = true
	changed, _ = l.mirror.Apply(all)
	return changed
}

// apply lets the agent follow the objects and waits until it has, or reports
// that nothing follows from them.
func (l *liveAgent) apply(t *testing.T) bool {
	t.Helper()
	begun := time.Now()
	changed := l.write(t)
	if all := l.mirror.SetConfig(l.config(t)); !all && len(changed) == 0 {
		return false
	}
	l.waitSync(t, begun)
	return true
}

// changeZone gives the Node another zone; [liveAgent.apply] tells the agent.
func (l *liveAgent) changeZone() {
	l.zone = map[string]string{"": "zone-1", "zone-1": "zone-2", "zone-2": ""}[l.zone]
}

// toggleAddress gives the node an address that serves node ports, or takes it,
// and waits until the agent has followed.
func (l *liveAgent) toggleAddress(t *testing.T) {
	t.Helper()
	facts := l.config(t).Facts
	has := facts.IsLocal(passing)
	begun := time.Now()
	l.e.do(t, "node", func() error {
		return onLink("to-outside", passing, map[bool]func(netlink.Link, *netlink.Addr) error{true: netlink.AddrDel, false: netlink.AddrReplace}[has])
	})
	if changed := l.mirror.SetConfig(l.config(t)); !changed {
		t.Error("an address changes nothing")
	}
	l.waitSync(t, begun)
}

// waitSync waits for a sync that ended after a moment.
func (l *liveAgent) waitSync(t *testing.T, after time.Time) {
	t.Helper()
	var s admin.Status
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = admin.Get(t.Context(), admin.Socket(l.e.instance), "/v1/status", nil, &s); err != nil || s.LastSync == nil {
			continue
		}
		if s.LastSync.Error != "" {
			t.Fatalf("step %d: sync failed: %s", l.e.step.Load(), s.LastSync.Error)
		}
		if s.LastSync.At.After(after) {
			return
		}
	}
	t.Fatalf("step %d: no sync follows a change: %+v, %v", l.e.step.Load(), s.LastSync, err)
}
