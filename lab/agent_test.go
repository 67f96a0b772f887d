package lab_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// TestAgents starts agents, dials through what they have made, kills one and
// stops the other: what they made stays.
func TestAgents(t *testing.T) {
	before := traces(t)
	l := labtest.Up(t, lab.Options{})
	if err := l.StartAgents(t.Context(), "--v=1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-a"); err == nil {
		t.Error("a second agent started on node-a")
	}
	if _, mode, err := l.Agent("node-b"); mode != lab.ModeIPTables || err != nil {
		t.Errorf("agent of node-b: mode %q, error %v", mode, err)
	}
	checkNodePorts(t, l)
	if err := errors.Join(l.KillAgent("node-a"), l.StopAgent("node-b")); err != nil {
		t.Error(err)
	}
	if log := l.AgentLog("node-b"); !strings.Contains(log, "stopped") {
		t.Errorf("log of an agent that was stopped:\n%s", log)
	}
	checkNodePorts(t, l)
	if err := l.StartAgents(t.Context()); err != nil {
		t.Error(err)
	}
	checkNodePorts(t, l)
	if !strings.Contains(l.Status(), "agent: iptables, PID ") {
		t.Errorf("status shows no agent:\n%s", l.Status())
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	checkTraces(t, before)
}

func checkNodePorts(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, node := range lab.PlacesOf(lab.Node) {
		for _, addr := range node.Addrs() {
			to := netip.AddrPortFrom(addr, 30070)
			if _, err := l.Dial(t.Context(), "client", echo.TCP, to); err != nil {
				t.Errorf("client -> %s: %v", to, err)
			}
		}
	}
}

// TestDemo runs the tour. It checks itself.
func TestDemo(t *testing.T) {
	labtest.RequireRoot(t)
	before := traces(t)
	var out bytes.Buffer
	begin := time.Now()
	err := lab.Demo(t.Context(), lab.DemoOptions{
		Lab: lab.Options{Name: labtest.Name(), Binary: labtest.Binary(t)},
		Out: &out, Throughput: time.Second,
	})
	if err != nil {
		t.Errorf("%v; its story:\n%s", err, &out)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colours, which were not asked for")
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	checkTraces(t, before)
}

// TestDemoInterrupted checks that the lab of a demo goes with it.
func TestDemoInterrupted(t *testing.T) {
	labtest.RequireRoot(t)
	before := traces(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var out bytes.Buffer
	err := lab.Demo(ctx, lab.DemoOptions{Lab: lab.Options{Name: labtest.Name(), Binary: labtest.Binary(t)}, Out: &out})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Demo: %v, want the deadline's error", err)
	}
	checkTraces(t, before)
}

// TestCommandLine checks the one-line errors and the exit status.
func TestCommandLine(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	name := l.Name()
	for _, test := range []struct {
		want string
		code int
		args []string
	}{
		{`unknown place "moon": valid are client`, 1, []string{"exec", "--name", name, "moon", "--", "true"}},
		{"", 5, []string{"exec", "--name", name, "pod-a1", "--", "sh", "-c", "exit 5"}},
		{"", 0, []string{"exec", "--name", name, "pod-a1", "true"}},
		{"exists already; `nodeproxy lab down --name " + name + "` removes it", 1, []string{"up", "--name", name}},
		{`unknown mode "wish": valid are iptables, ebpf`, 1, []string{"up", "--mode", "wish"}},
		{"invalid lab name", 1, []string{"up", "--name", "NOT_VALID"}},
		{`there is no lab "no-such"`, 1, []string{"status", "--name", "no-such"}},
		{`there is no lab "no-such"`, 1, []string{"down", "--name", "no-such"}},
		{"pod-b2  10.244.2.12", 0, []string{"status", "--name", name}},
	} {
		output, err := exec.Command(labtest.Binary(t), append([]string{"lab"}, test.args...)...).CombinedOutput()
		checkOutput(t, strings.Join(test.args, " "), string(output), err, test.want, test.code)
	}
	nobody := exec.Command(labtest.Binary(t), "lab", "up")
	nobody.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := nobody.CombinedOutput()
	checkOutput(t, "lab up as nobody", string(output), err, "needs root", 1)
}

func checkOutput(t *testing.T, what, output string, err error, want string, code int) {
	t.Helper()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if got != code || !strings.Contains(output, want) {
		t.Errorf("%s: exit status %d, want %d; output %q, want %q in it", what, got, code, output, want)
	}
	if code == 1 && strings.Count(output, "\n") != 1 {
		t.Errorf("%s: not one line: %q", what, output)
	}
}
