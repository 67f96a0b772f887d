package netnstests

import (
	"bytes"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP10P40RestartUnderTraffic kills agents, stops them and starts them again
// while hundreds of flows are open and more are opened: none may fail, none
// may change its backend, and no conntrack entry may be touched (P10).
func TestP10P40RestartUnderTraffic(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("local-both"), find("affinity"))
		startAgents(t, l)
		var held []heldFlow
		held = append(held, hold(t, l, 40, "client", "web node-a", "web external", "local-both node-b")...)
		held = append(held, hold(t, l, 40, "pod-a1", "web cluster", "affinity cluster")...)
		held = append(held, hold(t, l, 40, "node-b", "web cluster")...)
		entries := map[string]map[string]uint64{}
		for _, node := range []string{"node-a", "node-b"} {
			entries[node] = conntrack(t, l, node)
		}
		streams := []*stream{
			startStream(l, "client", "web node-b", echo.TCP, false), startStream(l, "client", "web external", echo.UDP, true),
			startStream(l, "pod-b2", "web cluster", echo.UDP, false), startStream(l, "pod-a2", "web cluster", echo.TCP, true),
			startStream(l, "node-a", "web cluster", echo.TCP, false),
		}
		for round := range 5 {
			for _, node := range []string{"node-a", "node-b"} {
				end := l.KillAgent
				if round == 4 {
					end = l.StopAgent
				}
				if err := end(node); err != nil {
					t.Fatal(err)
				}
			}
			pingAll(t, held) // nobody is there to help
			startAgents(t, l)
			pingAll(t, held)
		}
		for _, s := range streams {
			s.end(t)
		}
		for node, before := range entries {
			c.checkUntouched(t, before, conntrack(t, l, node))
		}
		t.Logf("%d flows were held", len(held))
	})
}

// TestAgentStops checks the end on SIGTERM, as a service manager sees it, and
// that translation stays; and that one agent is enough.
func TestAgentStops(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		agent, _, err := l.Agent("node-a")
		if err != nil {
			t.Fatal(err)
		}
		out, err := l.Command(t.Context(), "node-a", agent.Argv...).CombinedOutput()
		if lines := bytes.Count(out, []byte("\n")); err == nil || lines != 1 || !bytes.Contains(out, []byte("already")) {
			t.Errorf("second agent: error %v, want one clear line, not:\n%s", err, out)
		}
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		rules := saved(t, l, "node-a")
		if status := runAndTerminate(t, l, "node-a", agent.Argv); status != 0 {
			t.Errorf("exit status after SIGTERM is %d", status)
		}
		if diff := cmp.Diff(rules, saved(t, l, "node-a")); diff != "" {
			t.Errorf("rules after another start and stop (-before +after):\n%s", diff)
		}
		runScenarios(t, l, []scenario{
			{name: "without an agent", from: "client pod-a1", to: "web node-a, web external", want: everyPod, source: masked},
			{name: "refused without an agent", from: "client pod-a1 node-a", to: "empty node-a", want: refused},
		})
	})
}

// runAndTerminate runs an agent until its first sync, ends it with SIGTERM and
// returns its exit status.
func runAndTerminate(t *testing.T, l *lab.Lab, node string, argv []string) int {
	t.Helper()
	cmd := l.Command(t.Context(), node, argv...)
	var log safeBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, log.has("msg=synced"))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // its status is what the caller asks for
	return cmd.ProcessState.ExitCode()
}

// safeBuffer is written by a command and read by a test.
type safeBuffer struct {
	mu  sync.Mutex // guards buf
	buf strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
