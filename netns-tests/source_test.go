package netnstests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// has returns a check, for eventually, that the text was written.
func (b *safeBuffer) has(text string) func() error {
	return func() error {
		if log := b.String(); !strings.Contains(log, text) {
			return fmt.Errorf("no %q in the log:\n%s", text, log)
		}
		return nil
	}
}

// TestP39BrokenManifests writes manifests as accidents leave them. None of them
// may change anything; each is reported, and what mends it is taken in (P39).
func TestP39BrokenManifests(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		web := find("web")
		apply(t, l, web, find("single"), find("empty"))
		startAgents(t, l)
		good, err := manifest.Encode(web.objects()...)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(l.ManifestDir(), "web.yaml")
		rules := saved(t, l, "node-a")
		for name, content := range map[string]string{
			"empty": "", "half of it": string(good[:len(good)/2]), "no YAML": "{{{{ not yaml",
			"wrong type": strings.Replace(string(good), "port: 80", "port: eighty", 1), "bytes": "\x00\xff\x00",
		} {
			seen := len(l.AgentLog("node-a"))
			// In place, as a careless program does it; no rename.
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			eventually(t, patience, func() error {
				if log := l.AgentLog("node-a")[seen:]; !strings.Contains(log, "file is ignored") || !strings.Contains(log, "web.yaml") {
					return fmt.Errorf("%s: no complaint in the log:\n%s", name, log)
				}
				return nil
			})
			time.Sleep(200 * time.Millisecond) // two sync periods, in which nothing may happen
			if n := strings.Count(l.AgentLog("node-a")[seen:], "file is ignored"); n != 1 {
				t.Errorf("%s: %d complaints, want one", name, n)
			}
			if diff := cmp.Diff(rules, saved(t, l, "node-a")); diff != "" {
				t.Errorf("%s: rules changed (-before +after):\n%s", name, diff)
			}
			checkAnswers(t, l, "web", everyPod)
		}
		web.endpoints = pods("pod-b1")
		apply(t, l, web)
		eventually(t, patience, func() error { return answers(t, l, "web", "pod-b1") })
	})
}

// answers tells whether exactly these Pods answer for a Service, from a Pod
// and from outside.
func answers(t *testing.T, l *lab.Lab, name, want string) error {
	var errs []error
	for _, from := range []string{"pod-a2", "client"} {
		at := map[string]string{"pod-a2": " cluster", "client": " node-a"}[from]
		for _, network := range []echo.Network{echo.TCP, echo.UDP} {
			f := flow{scenario: scenario{want: want, source: masked}, lab: l, network: network, from: lab.MustPlace(from)}
			if from == "pod-a2" {
				f.source = kept
			}
			f.v6 = network == echo.UDP // each family once
			f.at, f.to = parseTarget(name+at, f.v6)
			if err := f.check(t.Context()); err != nil {
				errs = append(errs, fmt.Errorf("%s -> %s over %s: %w", from, f.to, network, err))
			}
		}
	}
	return errors.Join(errs...)
}

func checkAnswers(t *testing.T, l *lab.Lab, name, want string) {
	t.Helper()
	if err := answers(t, l, name, want); err != nil {
		t.Error(err)
	}
}

// TestP38SourceMissing starts agents that have nothing to read. They must not
// touch what is there (P38), and go on as soon as there is something.
func TestP38SourceMissing(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		startAgents(t, l)
		agent, _, err := l.Agent("node-a")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.KillAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		rules := saved(t, l, "node-a")
		away := l.ManifestDir() + ".away"
		if err := os.Rename(l.ManifestDir(), away); err != nil {
			t.Fatal(err)
		}
		cmd := l.Command(t.Context(), "node-a", agent.Argv...)
		var log safeBuffer
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, log.has("cannot read manifests"))
		time.Sleep(300 * time.Millisecond)
		if diff := cmp.Diff(rules, saved(t, l, "node-a")); diff != "" {
			t.Errorf("rules without a source (-before +after):\n%s", diff)
		}
		checkAnswers(t, l, "web", everyPod)
		if err := os.Rename(away, l.ManifestDir()); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, log.has("msg=synced"))
		if diff := cmp.Diff(rules, saved(t, l, "node-a")); diff != "" {
			t.Errorf("rules once the source is back (-before +after):\n%s", diff)
		}
		// And away again, under the running agent.
		if err := os.Rename(l.ManifestDir(), away); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		checkAnswers(t, l, "web", everyPod)
		if err := errors.Join(os.Rename(away, l.ManifestDir()), cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
}

// TestServiceDeleted checks that the addresses of a Service that is gone are
// not translated any more, and that nothing of it stays.
func TestServiceDeleted(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("single"))
		startAgents(t, l)
		without := map[string]string{}
		for _, node := range []string{"node-a", "node-b"} {
			without[node] = saved(t, l, node)
		}
		for range 2 {
			apply(t, l, find("web"), find("empty"), find("large"), find("affinity"), find("deny"))
			eventually(t, patience, func() error { return answers(t, l, "web", everyPod) })
			for _, name := range []string{"web", "empty", "large", "affinity", "deny"} {
				if err := l.Delete(name + ".yaml"); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, patience, func() error {
				return errors.Join(answers(t, l, "single", "pod-a1"), goneFor(t, l))
			})
			for node, want := range without {
				eventually(t, patience, func() error {
					if diff := cmp.Diff(want, saved(t, l, node)); diff != "" {
						return fmt.Errorf("rules on %s (-before the Services +after):\n%s", node, diff)
					}
					return nil
				})
			}
		}
		runScenarios(t, l, []scenario{
			{name: "deleted", from: "client", to: "web node-a, affinity node-b, empty node-a", want: refused},
			{name: "deleted ClusterIPs", from: "pod-a1 node-b", to: "web cluster, empty cluster, large cluster", want: unanswered},
		})
	})
}

func goneFor(t *testing.T, l *lab.Lab) error {
	f := flow{scenario: scenario{want: unanswered}, lab: l, network: echo.TCP, from: lab.MustPlace("pod-b1")}
	f.at, f.to = parseTarget("web cluster", false)
	return f.check(t.Context())
}
