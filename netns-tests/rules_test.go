package netnstests

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/lab"
)

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// backends are those of iptables, on each of which a node may have rules.
var backends = []string{"nft", "legacy"}

// savedRules is what the save programs of both back ends and families print on
// a node, without comments and counters. Built-in chains that accept and hold
// no rule are left out: the kernel makes them when somebody looks.
func savedRules(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	var out strings.Builder
	for _, b := range backends {
		for _, tool := range []string{"iptables-" + b, "ip6tables-" + b} {
			text := inPlace(t, l, node, tool+"-save")
			for line := range strings.Lines(text) {
				line = counters.ReplaceAllString(line, "")
				switch {
				case strings.HasPrefix(line, "*"):
					fmt.Fprintf(&out, "%s %s", tool, line)
				case strings.HasPrefix(line, "#"), strings.HasSuffix(line, " ACCEPT \n"), line == "COMMIT\n":
				default:
					out.WriteString(line)
				}
			}
		}
	}
	return withoutEmptyTables(out.String())
}

var emptyTable = regexp.MustCompile(`(?m)^ip6?tables-\w+ \*\w+\n(ip6?tables-|\z)`)

func withoutEmptyTables(text string) string {
	for {
		next := emptyTable.ReplaceAllString(text, "$1")
		if next == text {
			return text
		}
		text = next
	}
}

// foreignRules drops from savedRules what is ours.
func foreignRules(saved string) string {
	var kept []string
	for line := range strings.Lines(saved) {
		if !strings.Contains(line, "NODEPROXY-") && !strings.Contains(line, "NODEPROXYEBPF-") {
			kept = append(kept, line)
		}
	}
	return withoutEmptyTables(strings.Join(kept, ""))
}

// inPlace runs a command and returns what it prints; it must succeed.
func inPlace(t testing.TB, l *lab.Lab, place string, argv ...string) string {
	t.Helper()
	cmd := l.Command(t.Context(), place, argv...)
	var complaint strings.Builder // apart: iptables warns about the other back end in the midst of its output
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s in %s: %v: %s", strings.Join(argv, " "), place, err, complaint.String())
	}
	return string(out)
}

// addForeignRules makes rules as other programs have them, in both back ends
// and families, so that every change to them shows.
func addForeignRules(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	for _, b := range backends {
		for _, tool := range []string{"iptables-" + b, "ip6tables-" + b} {
			for _, rule := range []string{
				"-t nat -N OTHERS", "-t nat -A OTHERS -p tcp --dport 9 -j RETURN",
				"-t nat -A PREROUTING -j OTHERS", "-t nat -A POSTROUTING -m mark --mark 0x1 -j MASQUERADE",
				"-A INPUT -p tcp --dport 22 -j ACCEPT", "-A FORWARD -p tcp --dport 25 -j DROP",
				"-A FORWARD -m conntrack --ctstate INVALID -j DROP", "-t mangle -A FORWARD -p tcp --dport 26 -j ACCEPT",
			} {
				inPlace(t, l, node, append([]string{tool}, strings.Fields(rule)...)...)
			}
		}
	}
}

// damageRules runs a tool on node-a with each of the arguments that "; " parts.
func damageRules(t *testing.T, l *lab.Lab, tool, commands string) error {
	for args := range strings.SplitSeq(commands, "; ") {
		out, err := l.Command(t.Context(), "node-a", append([]string{tool}, strings.Fields(args)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", tool, args, err, out)
		}
	}
	return nil
}

// TestRulesFlushedByOthers breaks rules in every way and waits until they are
// whole again: for the sync period, and what a busy machine adds.
func TestRulesFlushedByOthers(t *testing.T) {
	damage := []string{
		"-t nat -F", "-t filter -F", "-t nat -D PREROUTING 1", "-t nat -D OUTPUT 1", "-t nat -D POSTROUTING 1",
		"-t filter -D FORWARD 1", "-t filter -D INPUT 1", "-t filter -D OUTPUT 1",
		"-t nat -F NODEPROXY-POSTROUTING", "-t nat -F NODEPROXY-SERVICES", "-t nat -D NODEPROXY-POSTROUTING 1",
		"-t nat -I NODEPROXY-SERVICES 1 -j RETURN", "-t nat -F; -t nat -X", "-t filter -F; -t filter -X",
	}
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--sync-period", "1s")
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		want := savedRules(t, l, "node-a")
		if !strings.Contains(want, "NODEPROXY-") {
			t.Fatalf("there are no rules of ours:\n%s", want)
		}
		for _, commands := range damage {
			for _, tool := range []string{"iptables-" + c.Backend, "ip6tables-" + c.Backend} {
				// Again, where the agent repairs between the two commands.
				eventually(t, patience, func() error { return damageRules(t, l, tool, commands) })
			}
			eventually(t, patience, func() error {
				if diff := cmp.Diff(want, savedRules(t, l, "node-a")); diff != "" {
					return fmt.Errorf("%s: not repaired (-want +got):\n%s", commands, diff)
				}
				return nil
			})
		}
		runScenarios(t, l, []scenario{
			{name: "after repair", from: "client", to: "web node-a, web external", want: everyPod, source: masked},
			{name: "closed after repair", from: "client pod-a1", to: "empty external", want: refused},
		})
		if log := l.AgentLog("node-a"); !strings.Contains(log, "rules that another program changed") {
			t.Error("the log tells nothing of the repairs")
		}
	})
}

// TestCleanup checks that cleanup leaves the rules as they were before, those
// of others in place, and that it refuses while an agent runs.
func TestCleanup(t *testing.T) {
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		addForeignRules(t, l, "node-a")
		before := savedRules(t, l, "node-a")
		apply(t, l, services...)
		startAgents(t, l)
		if diff := cmp.Diff(before, foreignRules(savedRules(t, l, "node-a"))); diff != "" {
			t.Errorf("rules of others while the agent runs (-before +now):\n%s", diff)
		}
		cleanup := func(args ...string) (string, error) {
			argv := append([]string{l.Options().Binary, "cleanup"}, args...)
			out, err := l.Command(t.Context(), "node-a", argv...).CombinedOutput()
			return string(out), err
		}
		running := savedRules(t, l, "node-a")
		for _, instance := range []string{l.Netns("node-a"), "other"} { // the lab's agents have the namespace's name
			out, err := cleanup("--instance", instance)
			if err == nil || !strings.Contains(out, "already") || savedRules(t, l, "node-a") != running {
				t.Errorf("cleanup of instance %s beside an agent: %v, %s; want a refusal that changes nothing", instance, err, out)
			}
		}
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second has nothing to do
			if out, err := cleanup(); err != nil {
				t.Errorf("cleanup: %v: %s", err, out)
			}
			if diff := cmp.Diff(before, savedRules(t, l, "node-a")); diff != "" {
				t.Errorf("after cleanup (-before +after):\n%s", diff)
			}
		}
	})
}

// TestHostFirewall checks what is promised beside a host that drops forwarded
// packets: replies pass, and flows that are masqueraded, whatever rp_filter says.
// The host's rules stay first or last as they were.
func TestHostFirewall(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		for _, early := range []bool{true, false} {
			t.Run(fmt.Sprintf("before-the-agent=%v", early), func(t *testing.T) {
				l := c.up(t, false)
				if early {
					dropForwarded(t, l, c)
				}
				apply(t, l, find("web"), find("remote"), find("empty"), find("local-a"))
				startAgents(t, l)
				if !early {
					dropForwarded(t, l, c)
				}
				runBehindFirewall(t, l)
				if early && c.Mode == "ebpf" { // netfilter's modes do not look at rp_filter
					for _, value := range []string{"0", "1", "2"} {
						t.Run("rp_filter="+value, func(t *testing.T) {
							for _, dev := range []string{"all", "eth0"} {
								setSysctl(t, l, "node-a", "ipv4/conf/"+dev+"/rp_filter", value)
							}
							runBehindFirewall(t, l)
						})
					}
				}
			})
		}
	})
}

// dropForwarded has node-a drop what it forwards, and what conntrack calls invalid.
func dropForwarded(t *testing.T, l *lab.Lab, c column) {
	t.Helper()
	backend := c.Backend
	if backend == "" {
		backend = "nft"
	}
	for _, tool := range []string{"iptables-" + backend, "ip6tables-" + backend} {
		for _, chain := range []string{"INPUT", "FORWARD"} {
			inPlace(t, l, "node-a", tool, "-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
		}
		inPlace(t, l, "node-a", tool, "-P", "FORWARD", "DROP")
	}
	// ebpf mode follows: from now on the stack has a say, and our chain is there.
	if c.Mode == "ebpf" && l.AgentLog("node-a") != "" {
		eventually(t, patience, func() error {
			if out := savedRules(t, l, "node-a"); strings.Count(out, "-A FORWARD -j NODEPROXYEBPF-FORWARD") < 2 {
				return fmt.Errorf("Service flows are not accepted in FORWARD:\n%s", out)
			}
			return nil
		})
	}
}

func runBehindFirewall(t *testing.T, l *lab.Lab) {
	t.Helper()
	runScenarios(t, l, []scenario{
		{name: "refused", from: "client pod-a1", to: "empty node-a, empty external", want: refused},
		{name: "from the node", from: "node-a", to: "web cluster", want: everyPod, source: masked},
		{name: "not masqueraded", from: "client", to: "local-a node-a", want: dropped},
		{name: "masqueraded", from: "client", to: "web node-a, web external", want: everyPod, source: masked},
		{name: "masqueraded to afar", from: "client pod-a1", to: "remote balancer, remote node-a", want: "pod-b1", source: masked},
	})
}

// patience is how long what must happen soon may take on a machine that is
// busy: legacy's lock, for one, is the whole machine's.
const patience = 15 * time.Second

// eventually waits until check returns nil, for a while.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("not within %s: %v", within, err)
			return
		}
	}
}

// apply writes the manifests of Services.
func apply(t testing.TB, l *lab.Lab, list ...svc) {
	t.Helper()
	for _, s := range list {
		if err := l.Apply(s.name+".yaml", s.objects()...); err != nil {
			t.Fatal(err)
		}
	}
}
