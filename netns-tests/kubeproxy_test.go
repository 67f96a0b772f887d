package netnstests

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/lab"
)

// TestP42KubeProxyRules starts agents beside rules that kube-proxy's iptables
// mode left. They refuse, in one line that says what to do, unless they are
// told to remove them; then these go, and nothing else does.
func TestP42KubeProxyRules(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		backend := c.Backend
		if backend == "" {
			backend = "nft"
		}
		addForeignRules(t, l, "node-a")
		before := savedRules(t, l, "node-a")
		for _, tool := range []string{"iptables-", "ip6tables-"} {
			restore(t, l, "node-a", tool+backend+"-restore", "testdata/kube-proxy."+tool+"save")
		}
		beside := savedRules(t, l, "node-a")
		agent := append(append([]string{l.Options().Binary, "run", "--source", "file:" + l.ManifestDir(), "--mode", c.Mode,
			"--hostname-override", "node-a", "--instance", l.Netns("node-a")}, l.Options().AgentArgs...), "-v", "0")
		out, err := l.Command(t.Context(), "node-a", agent...).CombinedOutput()
		text := string(out)
		if err == nil || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("beside kube-proxy's rules: error %v, want one line, not:\n%s", err, text)
		}
		for _, want := range []string{"kube-proxy", "KUBE-", "--cleanup", "--remove-kube-proxy-rules", "iptables-" + backend + " -t nat"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in the refusal: %s", want, text)
			}
		}
		if diff := cmp.Diff(beside, savedRules(t, l, "node-a")); diff != "" {
			t.Errorf("the refusal changed rules (-before +after):\n%s", diff)
		}
		startAgents(t, l, "--remove-kube-proxy-rules")
		eventually(t, patience, func() error {
			if diff := cmp.Diff(before, foreignRules(savedRules(t, l, "node-a"))); diff != "" {
				return errDiff(diff)
			}
			return nil
		})
		checkAnswers(t, l, "web", everyPod)
	})
}

// errDiff is a difference (-before kube-proxy's rules came +now) as an error.
type errDiff string

// Error returns the difference.
func (e errDiff) Error() string { return "rules (-before kube-proxy's came +now):\n" + string(e) }

// restore feeds recorded rules to a restore program in a place.
func restore(t *testing.T, l *lab.Lab, place, tool, path string) {
	t.Helper()
	rules, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	cmd := l.Command(t.Context(), place, tool, "--noflush")
	cmd.Stdin = rules
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s < %s: %v: %s", tool, path, err, out)
	}
}
