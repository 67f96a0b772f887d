package netnstests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
)

// breakage is one thing that another program does to what is ours on node-a.
type breakage struct {
	name string
	do   func(t *testing.T, l *lab.Lab)
	want string // in some difference
}

// pinsOfNode is where the programs and maps of node-a's agent are pinned.
func pinsOfNode(t *testing.T, l *lab.Lab, kind string) string {
	t.Helper()
	found, _ := filepath.Glob("/sys/fs/bpf/nodeproxy/" + l.Netns("node-a") + "/*/" + kind) // the pattern is right
	if len(found) != 1 {
		t.Fatalf("pinned %s: %v", kind, found)
	}
	return found[0]
}

// breakages are those that a column can suffer.
func breakages(c column) []breakage {
	if c.Backend != "" {
		run := func(commands string) func(*testing.T, *lab.Lab) {
			return func(t *testing.T, l *lab.Lab) {
				if err := damageRules(t, l, "iptables-"+c.Backend, commands); err != nil {
					t.Fatal(err)
				}
			}
		}
		return []breakage{
			{"nat is flushed", run("-t nat -F"), "missing"},
			{"a jump is gone", run("-t filter -D FORWARD 1"), "-A FORWARD"},
			{"a rule is gone", run("-t nat -D NODEPROXY-POSTROUTING 1"), "chain NODEPROXY-POSTROUTING: different"},
			{"a chain is added", run("-t nat -N NODEPROXY-STRANGE"), "chain NODEPROXY-STRANGE: unwanted"},
		}
	}
	out := []breakage{
		{"frontends are flushed", func(t *testing.T, l *lab.Lab) { emptyMap(t, l, "frontends") }, "of default/web:echo: missing"},
		{"backends are flushed", func(t *testing.T, l *lab.Lab) { emptyMap(t, l, "backends") }, "map backends"},
		{"programs are detached", func(t *testing.T, l *lab.Lab) { detach(t, l, "tcx_*_ingress") }, "hook: ingress of interface"},
	}
	if c.Sockets {
		out = append(out, breakage{"socket programs are detached", func(t *testing.T, l *lab.Lab) { detach(t, l, "cgroup_*") }, "hook: cgroup connect4"})
	}
	return out
}

func emptyMap(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinsOfNode(t, l, "maps"), name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var key, value []byte
	var keys [][]byte
	for entries := m.Iterate(); entries.Next(&key, &value); {
		keys = append(keys, append([]byte(nil), key...))
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}

// detach removes links by their pins: nobody else holds them.
func detach(t *testing.T, l *lab.Lab, pattern string) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(pinsOfNode(t, l, "links"), pattern)) // as above
	if len(found) == 0 {
		t.Fatal("no links ", pattern)
	}
	for _, path := range found {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerify breaks what the kernel holds in every way, while the next periodic
// comparison is far away: verify must name it, and verify --repair mend it.
func TestVerify(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--sync-period", "1h")
		apply(t, l, find("web"), find("empty"), find("affinity"))
		startAgents(t, l)
		var found []view.Difference
		if complaint, err := asked(t, l, &found, "verify"); err != nil || len(found) > 0 {
			t.Fatalf("nothing is broken yet: %v %s %v", err, complaint, found)
		}
		total := 0
		for _, b := range breakages(c) {
			b.do(t, l)
			complaint, err := asked(t, l, &found, "verify")
			if err == nil || !strings.Contains(fmt.Sprint(found), b.want) {
				t.Errorf("%s: %v %s; found %v", b.name, err, complaint, found)
			}
			total += len(found)
			if complaint, err := asked(t, l, &found, "verify", "--repair"); err != nil || !strings.Contains(complaint, "repaired") {
				t.Errorf("%s: repair: %v %s", b.name, err, complaint)
			}
			if complaint, err := asked(t, l, &found, "verify"); err != nil || len(found) > 0 {
				t.Errorf("%s: after the repair: %v %s %v", b.name, err, complaint, found)
			}
		}
		runScenarios(t, l, []scenario{
			{name: "after repair", from: "client pod-a1", to: "web node-a, web external", want: everyPod, source: masked},
		})
		if n := metricOf(t, l, "nodeproxy_drift_repaired_total"); n < float64(total) {
			t.Errorf("%d differences were repaired, and %v counted", total, n)
		}
	})
}

// TestVerifyWithoutAgent compares what a killed agent left with its source, given
// the flags that it had: nothing differs at first, then what is broken, and what
// the manifests say since. A Pod is found in the same place.
func TestVerifyWithoutAgent(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"), find("affinity"))
		startAgents(t, l)
		agent, _, err := l.Agent("node-a")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.KillAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		var found []view.Difference
		for _, args := range [][]string{{"verify"}, {"verify", "--repair"}, {"explain", "--from", "pod/default/pod-b1", "10.96.0.1:80"}} {
			complaint, err := asked(t, l, &struct{}{}, args...)
			if err == nil || strings.Count(complaint, "\n") != 1 || !strings.Contains(complaint, "no agent answers") || !strings.Contains(complaint, "--source") && !strings.Contains(complaint, "start it") {
				t.Errorf("%v without a source: %v: %s", args, err, complaint)
			}
		}
		verify := append([]string{"verify"}, agent.Argv[2:]...) // as nodeproxy run was called
		if complaint, err := asked(t, l, &found, verify...); err != nil || len(found) > 0 {
			t.Fatalf("nothing is broken yet: %v %s %v", err, complaint, found)
		}
		for _, b := range breakages(c) {
			b.do(t, l)
			if complaint, err := asked(t, l, &found, verify...); err == nil || !strings.Contains(fmt.Sprint(found), b.want) || !strings.Contains(complaint, "first sync") {
				t.Errorf("%s: %v %s; found %v", b.name, err, complaint, found)
			}
			if err := l.StartAgent(t.Context(), "node-a"); err != nil {
				t.Fatal(err)
			}
			if err := l.KillAgent("node-a"); err != nil {
				t.Fatal(err)
			}
		}
		if complaint, err := asked(t, l, &found, verify...); err != nil || len(found) > 0 {
			t.Errorf("after a start of the agent: %v %s %v", err, complaint, found)
		}
		s := find("web")
		s.endpoints = pods("pod-b1")
		apply(t, l, s)
		if complaint, err := asked(t, l, &found, verify...); err == nil || len(found) == 0 {
			t.Errorf("the manifests were changed: %v %s", err, complaint)
		}
		var e admin.Explanation
		want := "TCP packet from " + lab.MustPlace("pod-b1").Addr(false).String()
		complaint, err := asked(t, l, &e, "explain", "--source", "file:"+l.ManifestDir(), "--from", "pod/default/pod-b1", find("web").addr("cluster", 80, false).String())
		if err != nil || !strings.Contains(e.Steps[0], want) {
			t.Errorf("explain: %v %s: no %q in %v", err, complaint, want, e.Steps)
		}
	})
}

// metricOf reads a counter, by its name with labels, from node-a's agent.
func metricOf(t *testing.T, l *lab.Lab, name string) float64 {
	t.Helper()
	text := inPlace(t, l, "node-a", "curl", "-s", "http://127.0.0.1:10249/metrics")
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no metric %s", name)
	}
	n, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
