package netnstests

import (
	"strconv"
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
		"no cgroup v2":       {unmountCgroup, "", "no cgroup v2 mount"},
		"the cgroup is gone": {":", "/no/such/cgroup", "/no/such/cgroup"},
		"nowhere to pin":     {"mount -t bpf -o ro none /sys/fs/bpf", "of the node", "/sys/fs/bpf"},
		"all is there":       {":", "of the node", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := column{Mode: lab.ModeIPTables}.up(t, false)
			apply(t, l, find("web"), find("remote"))
			log, _ := startAuto(t, l, c.prepare, c.cgroup)
			s := modeOf(t, l)
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
		})
	}
}

// modeOf asks the agent of node-a.
func modeOf(t *testing.T, l *lab.Lab) (s admin.Status) {
	t.Helper()
	if complaint, err := asked(t, l, &s, "status"); err != nil {
		t.Fatal(err, complaint)
	}
	return s
}

// startAuto starts an agent of node-a with --mode auto, behind a script that changes what
// it finds mounted. It returns its log, and its process id.
func startAuto(t *testing.T, l *lab.Lab, prepare, cgroup string) (log *safeBuffer, pid int) {
	t.Helper()
	args := []string{l.Options().Binary, "run", "--mode", "auto", "--hostname-override", "node-a", "--instance", l.Netns("node-a"), "--sync-period", "1s",
		"--source", "file:" + l.ManifestDir(), "--cluster-cidr", lab.ClusterCIDRs[0].String() + "," + lab.ClusterCIDRs[1].String()}
	if cgroup == "of the node" {
		var err error
		if cgroup, err = l.NodeCgroup("node-a"); err != nil {
			t.Fatal(err)
		}
	}
	if cgroup != "" {
		args = append(args, "--cgroup", cgroup)
	}
	cmd := l.Command(t.Context(), "node-a", append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-ec", prepare + "\nexec \"$@\"", "sh"}, args...)...)
	log = new(safeBuffer)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // how it ended is other tests' matter
	})
	eventually(t, patience, log.has("msg=synced"))
	return log, cmd.Process.Pid
}

// unmountCgroup takes away the mount of cgroup v2.
const unmountCgroup = "umount $(sed -n 's/^\\([^ ]* \\)\\{4\\}\\([^ ]*\\) .* - cgroup2 .*/\\2/p' /proc/self/mountinfo)"

// TestCgroupIsMountedLater: what --mode auto missed at the start comes. The agent says
// that ebpf mode would work now.
func TestCgroupIsMountedLater(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := column{Mode: lab.ModeIPTables}.up(t, false)
	apply(t, l, find("web"))
	dir, err := l.NodeCgroup("node-a")
	if err != nil {
		t.Fatal(err)
	}
	log, pid := startAuto(t, l, unmountCgroup, dir)
	if s := modeOf(t, l); s.Mode != lab.ModeIPTables || strings.Contains(s.ModeReason, "it is there now") {
		t.Fatalf("mode %s, since %q", s.Mode, s.ModeReason)
	}
	root, _, _ := strings.Cut(dir, "/nodeproxy-lab-") // the mount
	inPlace(t, l, "node-a", "nsenter", "-t", strconv.Itoa(pid), "-m", "mount", "-t", "cgroup2", "none", root)
	eventually(t, patience, log.has("the cgroup that ebpf mode needs is there now"))
	if s := modeOf(t, l); s.Mode != lab.ModeIPTables || !strings.Contains(s.ModeReason, "it is there now") {
		t.Errorf("mode %s, since %q", s.Mode, s.ModeReason)
	}
}

// TestCheckTellsTheWay: check says which way packets would take, and because of which
// chain of another program.
func TestCheckTellsTheWay(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := column{Mode: lab.ModeEBPF}.up(t, false)
	dir, err := l.NodeCgroup("node-a")
	if err != nil {
		t.Fatal(err)
	}
	check := func(args ...string) string {
		return inPlace(t, l, "node-a", append([]string{l.Options().Binary, "check", "--cgroup", dir}, args...)...)
	}
	if out := check(); !strings.Contains(out, "forwarding auto: fast: no other program") {
		t.Errorf("without rules of others:\n%s", out)
	}
	inEach(t, l, "node-a", "nft", "-P FORWARD DROP")
	inEach(t, l, "node-a", "legacy", "-t nat -A POSTROUTING -p tcp -j MASQUERADE")
	const way = "stack: other programs' rules have a say: legacy ip nat POSTROUTING, legacy ip6 nat POSTROUTING, nft ip filter FORWARD, nft ip6 filter FORWARD"
	if out := check(); !strings.Contains(out, "forwarding auto: "+way) {
		t.Errorf("beside rules of others:\n%s", out)
	}
	if out := check("-o", "json"); !strings.Contains(out, `"fallback": "`+way+`"`) {
		t.Errorf("for scripts:\n%s", out)
	}
}
