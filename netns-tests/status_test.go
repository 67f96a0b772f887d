package netnstests

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// statusOf runs nodeproxy status beside the agent of node-a.
func statusOf(t *testing.T, l *lab.Lab, args ...string) (out string, code int) {
	t.Helper()
	argv := append([]string{l.Options().Binary, "status", "--instance", l.Netns("node-a")}, args...)
	text, err := l.Command(t.Context(), "node-a", argv...).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return string(text), code
}

// conditionsOf returns the conditions that are not true, by type.
func conditionsOf(t *testing.T, l *lab.Lab) (untrue map[string]admin.Condition, code int) {
	t.Helper()
	out, code := statusOf(t, l, "-o", "json")
	var s admin.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, code // no agent answers yet, which is said in words
	}
	untrue = map[string]admin.Condition{}
	for _, c := range s.Conditions {
		if c.Status != "True" {
			untrue[c.Type] = c
		}
	}
	return untrue, code
}

// Status names each trouble, and its exit code says whether the node serves: 0 if it
// does, 1 if not, 3 without an agent. --wait waits for the first.
func TestStatusNamesTrouble(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	apply(t, l, find("web"))
	startAgents(t, l)
	agent, _, err := l.Agent("node-a")
	if err != nil {
		t.Fatal(err)
	}
	if out, code := statusOf(t, l, "--wait", "20s"); code != 0 || !strings.Contains(out, "healthy") || strings.Contains(out, "UNHEALTHY") {
		t.Fatalf("exit code %d of a node that is ready:\n%s", code, out)
	}

	bad := filepath.Join(l.ManifestDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("kind: [\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		untrue, code := conditionsOf(t, l)
		if c := untrue[admin.NothingIgnored]; code != 0 || len(untrue) != 1 || !strings.Contains(c.Message, "bad.yaml: document 1") {
			return errors.New("a bad manifest: " + c.Message)
		}
		return nil
	})

	if err := errors.Join(os.Remove(bad), l.StopAgent("node-a")); err != nil {
		t.Fatal(err)
	}
	away := l.ManifestDir() + ".away"
	if err := os.Rename(l.ManifestDir(), away); err != nil {
		t.Fatal(err)
	}
	cmd := l.Command(t.Context(), "node-a", agent.Argv...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		untrue, code := conditionsOf(t, l)
		if code != 1 || untrue[admin.Ready].Reason != "NothingListed" || !strings.Contains(untrue[admin.SourceReached].Message, "which does not exist; no Service is served until then") {
			return errors.New("a path that is not there: " + untrue[admin.SourceReached].Message)
		}
		return nil
	})
	if err := os.Rename(away, l.ManifestDir()); err != nil {
		t.Fatal(err)
	}
	if out, code := statusOf(t, l, "--wait", "20s"); code != 0 {
		t.Errorf("exit code %d after the path is back:\n%s", code, out)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if out, code := statusOf(t, l); code != 3 || !strings.Contains(out, "none answers") {
		t.Errorf("exit code %d without an agent:\n%s", code, out)
	}
	out, err := l.Command(t.Context(), "node-a", l.Options().Binary, "cleanup", "--instance", l.Netns("node-a")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "removed") || !strings.Contains(string(out), "iptables-nft -t nat") {
		t.Errorf("cleanup: %v:\n%s", err, out)
	}
	out, err = l.Command(t.Context(), "node-a", l.Options().Binary, "cleanup", "--instance", l.Netns("node-a")).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "nothing to remove\n") {
		t.Errorf("second cleanup: %v:\n%s", err, out)
	}
	if out, code := statusOf(t, l); code != 3 || strings.Count(out, "\n") != 1 {
		t.Errorf("exit code %d with nothing in the kernel:\n%s", code, out)
	}

	// --wait ends when it is over, and when the node is ready, whichever comes first.
	begin := time.Now()
	if out, code := statusOf(t, l, "--wait", "1s"); code != 3 || time.Since(begin) < 800*time.Millisecond {
		t.Errorf("exit code %d after %v without an agent:\n%s", code, time.Since(begin), out)
	}
	started := make(chan error, 1)
	go func() { started <- l.StartAgent(t.Context(), "node-a") }()
	out2, code := statusOf(t, l, "--wait", "60s")
	if err := <-started; err != nil || code != 0 || !strings.Contains(out2, "healthy") {
		t.Errorf("exit code %d of a wait for an agent that starts, %v:\n%s", code, err, out2)
	}
	// A Service of which nothing can be served does not count, and is named.
	none := "{apiVersion: v1, kind: Service, metadata: {name: none}, spec: {clusterIP: 10.96.200.9, ports: [{port: 80, protocol: ICMP}]}}\n"
	if err := os.WriteFile(filepath.Join(l.ManifestDir(), "none.yaml"), []byte(none), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		text, code := statusOf(t, l)
		if code != 0 || !strings.Contains(text, "1, with ") || !strings.Contains(text, "default/none: NoPorts: ") || !strings.Contains(text, `"ICMP" is none of TCP, UDP and SCTP`) {
			return errors.New(text)
		}
		return nil
	})
}
