package netnstests

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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

// agentProcess is nodeproxy run on the node of a refNet, fed by one manifest file.
type agentProcess struct {
	net  *refNet
	path string // of the manifests
	argv []string
	cmd  *exec.Cmd
	log  safeBuffer
}

// newAgentProcess prepares an agent with these settings, which is not started.
func newAgentProcess(t *testing.T, n *refNet, o service.Options) *agentProcess {
	t.Helper()
	p := &agentProcess{net: n, path: filepath.Join(t.TempDir(), "state.yaml")}
	p.argv = []string{
		labtest.Binary(t), "run", "--source", "file:" + p.path, "--hostname-override", o.NodeName, "--instance", n.instance,
		"--nodeport-addresses", strings.Join(o.NodePortAddresses, ","), fmt.Sprint("--iptables-localhost-nodeports=", o.LocalhostNodePorts),
		"--min-sync-period", "0s", "--sync-period", "1h", // no sync but those that follow a change
	}
	for _, c := range o.ClusterCIDRs {
		p.argv = append(p.argv, "--cluster-cidr", c.String())
	}
	for _, ip := range o.NodeIPs {
		p.argv = append(p.argv, "--node-ip", ip.String())
	}
	if backend, ok := strings.CutPrefix(n.mode, "iptables-"); ok {
		p.argv = append(p.argv, "--mode", "iptables", "--iptables-backend", backend)
	} else {
		p.argv = append(p.argv, "--mode", "ebpf", fmt.Sprint("--sockets=", n.mode == ebpfSockets))
	}
	if n.cgroup != "" {
		p.argv = append(p.argv, "--cgroup", n.cgroup)
	}
	t.Cleanup(func() {
		if p.stop(); t.Failed() {
			t.Logf("log of the agent:\n%s", p.log.String())
		}
	})
	return p
}

// start starts the agent and waits for its first sync.
func (p *agentProcess) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	p.cmd.Stderr = &p.log
	begun := time.Now()
	p.net.do(t, "node", p.cmd.Start) // by the thread that is there
	p.waitSync(t, begun)
}

// stop ends the agent as a service manager does: nothing of it stays but what
// it has in the kernel.
func (p *agentProcess) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = p.cmd.Wait()
	p.cmd = nil
}

func (p *agentProcess) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// waitSync waits for a sync that ended after a moment.
func (p *agentProcess) waitSync(t *testing.T, after time.Time) {
	t.Helper()
	var s admin.Status
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = admin.Get(t.Context(), admin.Socket(p.net.instance), "/v1/status", nil, &s); err != nil || s.LastSync == nil {
			continue
		}
		if s.LastSync.Error != "" {
			t.Fatalf("sync failed: %s", s.LastSync.Error)
		}
		if s.LastSync.At.After(after) {
			return
		}
	}
	t.Fatalf("no sync follows a change: %+v, %v", s.LastSync, err)
}

// liveAgent is an agent whose manifests, Node and addresses change.
type liveAgent struct {
	*agentProcess
	e       *equality
	objects *objects
	zone    string
	options service.Options // what argv says
	// mirror takes in the same, to tell whether a sync follows.
	mirror *service.Resolver
}

// startAgent starts an agent and waits for its first sync.
func (e *equality) startAgent(t *testing.T, objects *objects) *liveAgent {
	t.Helper()
	l := &liveAgent{e: e, objects: objects, options: service.Options{
		NodeName: "node-a", LocalhostNodePorts: true, DetectLocalMode: service.DetectClusterCIDR,
		ClusterCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:128::/64")},
		NodePortAddresses: []string{"192.168.0.0/16", "fd00:77::/64"},
	}}
	l.agentProcess = newAgentProcess(t, e.refNet, l.options)
	l.mirror = service.NewResolver(l.config(t))
	l.write(t)
	l.start(t)
	return l
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

// config is what the agent works out from its flags, its Node and its
// interfaces.
func (l *liveAgent) config(t *testing.T) (cfg service.Config) {
	t.Helper()
	l.e.do(t, "node", func() error {
		local, err := dataplane.ReadHost()
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
		// As a file that was finished a while ago: one that is younger is believed a
		// second later where it says that an object is gone.
		finished := time.Now().Add(-2 * time.Second)
		err = errors.Join(os.Chtimes(l.path+".new", finished, finished), os.Rename(l.path+".new", l.path))
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
