package netnstests

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// labCommand runs nodeproxy lab for a lab, and wants an exit code.
func labCommand(t *testing.T, l *lab.Lab, code int, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), l.Options().Binary, append([]string{"lab"}, args...)...)
	out, _ := cmd.CombinedOutput() // its code is what is asked for
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("lab %s: exit code %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	return string(out)
}

// A lab's agents are stopped, started and restarted, in another mode too; status lists the
// Services, also where no agent answers; and what lab exec runs asks the node's agent.
func TestLabCommands(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	apply(t, l, find("web"), find("allow-client"))
	startAgents(t, l)
	name := "--name=" + l.Name()
	want := func(what, text string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %q in\n%s", what, w, text)
			}
		}
	}
	want("status", labCommand(t, l, 0, "status", name), "Services, as node-a serves them", "default/web ", "LoadBalancer", "80/TCP", "node port 30001/TCP", "10.96.0.1", "NAME")
	for _, place := range []string{"node-a", "pod-a1"} {
		want("status at "+place, labCommand(t, l, 0, "exec", place, name, "--", l.Options().Binary, "status"), "instance "+l.Netns("node-a"))
	}
	want("status at client", labCommand(t, l, 3, "exec", "client", name, "--", l.Options().Binary, "status"), "no agent answers", "one does with --instance ")
	want("stop", labCommand(t, l, 0, "agent", "stop", "node-a", name), "node-a: agent: none")
	want("second stop", labCommand(t, l, 1, "agent", "stop", "node-a", name), "no agent runs on node-a")
	want("start", labCommand(t, l, 0, "agent", "start", "node-a", name), "node-a: agent: iptables, PID ")
	want("second start", labCommand(t, l, 1, "agent", "start", "node-a", name), "an agent runs on node-a already", "lab agent restart node-a")
	want("restart in another mode", labCommand(t, l, 0, "agent", "restart", "node-a", "--mode", "ebpf", name), "node-a: agent: ebpf, PID ")
	want("restart in the same", labCommand(t, l, 0, "agent", "restart", "node-a", name), "node-a: agent: ebpf, PID ")
	want("status in ebpf mode", labCommand(t, l, 0, "exec", "node-a", name, "--", l.Options().Binary, "status"), "ebpf")
	f := flow{lab: l, network: "tcp", from: lab.MustPlace("client"), at: "node-a", to: find("web").addr("node-a", 80, false)}
	if _, err := f.dial(t.Context()); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if err := l.KillAgent("node-b"); err != nil {
		t.Fatal(err)
	}
	labCommand(t, l, 0, "agent", "stop", "node-a", name)
	want("status without agents", labCommand(t, l, 0, "status", name), "the manifests have them, since no agent answers", "default/allow-client", "80/TCP")
}

// A lab on a real API server is kept as one: an agent that another process starts reads
// from there, and status names the kubeconfig.
func TestLabUpOnAPIServer(t *testing.T) {
	labtest.RequireRoot(t)
	bin := kubeBinaries(t)
	l := &lab.Lab{}
	name := "np-up-api"
	binary := labtest.Binary(t)
	up := exec.CommandContext(t.Context(), binary, "lab", "up", "--name", name, "--source", "kubernetes", "--kube-bin", bin)
	out, err := up.CombinedOutput()
	t.Cleanup(func() {
		if out, err := exec.Command(binary, "lab", "down", "--name", name).CombinedOutput(); err != nil {
			t.Errorf("lab down: %v: %s", err, out)
		}
	})
	if err != nil || !strings.Contains(string(out), "kubeconfig  ") || !strings.Contains(string(out), "default/web ") {
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	if l, err = lab.Open(name); err != nil {
		t.Fatal(err)
	}
	if out := labCommand(t, l, 0, "agent", "restart", "node-a", "--name", name, "--mode", "ebpf"); !strings.Contains(out, "node-a: agent: ebpf") {
		t.Errorf("restart: %s", out)
	}
	p, _, err := l.Agent("node-a")
	if err != nil || !strings.Contains(strings.Join(p.Argv, " "), "--source kubernetes --kubeconfig ") {
		t.Errorf("the agent was started as %v, %v", p.Argv, err)
	}
}
