package netnstests

import (
	"strings"
	"syscall"
	"testing"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// TestAutoFallsBack: --mode auto finds a node on which ebpf mode cannot work, at
// the first look or when it is set up. It takes iptables mode, serves, and says why.
func TestAutoFallsBack(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	for name, c := range map[string]struct{ prepare, cgroup, why string }{
		"no cgroup v2":       {"umount $(sed -n 's/^\\([^ ]* \\)\\{4\\}\\([^ ]*\\) .* - cgroup2 .*/\\2/p' /proc/self/mountinfo)", "", "no cgroup v2 mount"},
		"the cgroup is gone": {":", "/no/such/cgroup", "/no/such/cgroup"},
		"nowhere to pin":     {"mount -t bpf -o ro none /sys/fs/bpf", "of the node", "/sys/fs/bpf"},
		"all is there":       {":", "of the node", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := column{Mode: lab.ModeIPTables}.up(t, false)
			apply(t, l, find("web"), find("remote"))
			args := []string{l.Options().Binary, "run", "--mode", "auto", "--hostname-override", "node-a", "--instance", l.Netns("node-a"),
				"--source", "file:" + l.ManifestDir(), "--cluster-cidr", lab.ClusterCIDRs[0].String() + "," + lab.ClusterCIDRs[1].String()}
			if c.cgroup == "of the node" {
				dir, err := l.NodeCgroup("node-a")
				if err != nil {
					t.Fatal(err)
				}
				c.cgroup = dir
			}
			if c.cgroup != "" {
				args = append(args, "--cgroup", c.cgroup)
			}
			cmd := l.Command(t.Context(), "node-a", append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-ec", c.prepare + "\nexec \"$@\"", "sh"}, args...)...)
			var log safeBuffer
			cmd.Stderr = &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, patience, log.has("msg=synced"))
			var s admin.Status
			if complaint, err := asked(t, l, &s, "status"); err != nil {
				t.Fatal(err, complaint)
			}
			want := lab.ModeIPTables
			if c.why == "" {
				want = lab.ModeEBPF
			}
			if s.Mode != want || !strings.Contains(s.ModeReason, c.why) || !strings.Contains(log.String(), "mode auto: "+want) {
				t.Errorf("mode %s, since %q, want %s because of %s; the log:\n%s", s.Mode, s.ModeReason, want, c.why, log.String())
			}
			runScenarios(t, l, []scenario{
				{name: "served", from: "client pod-a1", to: "web node-a", want: everyPod, source: masked},
				{name: "ClusterIP", from: "pod-a1", to: "remote cluster", want: "pod-b1"},
			})
			t.Cleanup(func() {
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
				_ = cmd.Wait() // how it ended is other tests' matter
			})
		})
	}
}
