package netnstests

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
)

// background runs a command of nodeproxy on node-a until the test ends, and
// returns what a pattern finds in what it prints.
func background(t *testing.T, l *lab.Lab, pattern string, args ...string) []string {
	t.Helper()
	argv := append([]string{l.Options().Binary}, args...)
	cmd := l.Command(context.WithoutCancel(t.Context()), "node-a", append(argv, "--instance", l.Netns("node-a"))...) // it is interrupted at the end
	var out, complaint safeBuffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", strings.Join(args, " "), err, complaint.String())
		}
	})
	var found []string
	eventually(t, patience, func() error {
		if found = regexp.MustCompile(pattern).FindStringSubmatch(out.String()); found == nil {
			return fmt.Errorf("%s prints %q: %s", strings.Join(args, " "), out.String(), complaint.String())
		}
		return nil
	})
	return found
}

// TestPortForwardAndProxy leads local ports of a node to endpoints: of a Service
// over TCP and UDP, of a Pod, and of a web page, with an agent and without.
func TestPortForwardAndProxy(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("single"), find("empty"))
		startAgents(t, l)
		for _, args := range [][2]string{{"svc/nothing 80", "no Service default/nothing"}, {"svc/empty 80", "no ready endpoint"}, {"svc/web 81", "has no port 81"}, {"pod/nobody 80", "nobody"}, {"web 80", "use svc/NAME"}} {
			argv := append([]string{l.Options().Binary, "port-forward", "--instance", l.Netns("node-a")}, strings.Fields(args[0])...)
			out, err := l.Command(t.Context(), "node-a", argv...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), args[1]) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("port-forward %s: %v: %s", args[0], err, out)
			}
		}
		const at = `Forwarding from 127\.0\.0\.1:(\d+)/`
		ask := func(network, port string) string {
			return inPlace(t, l, "node-a", "bash", "-c", "exec 3<>/dev/"+network+"/127.0.0.1/"+port+"; echo hello >&3; timeout 10 head -n 1 <&3")
		}
		pod := background(t, l, at+"TCP", "port-forward", "pod/pod-b1", ":7000")[1]
		web := "http://127.0.0.1:" + background(t, l, `serve on 127\.0\.0\.1:(\d+)`, "proxy", "--port", "0")[1] + "/api/v1/namespaces/default/"
		for path, want := range map[string]string{"pods/pod-b1:8080/proxy/json": `"name":"pod-b1`, "services/nothing:80/proxy/": "no Service default/nothing", "services/empty:80/proxy/": "no ready endpoint", "nodes/x/proxy/": "use /api/v1"} {
			if out := inPlace(t, l, "node-a", "curl", "-s", web+path); !strings.Contains(strings.ReplaceAll(out, " ", ""), strings.ReplaceAll(want, " ", "")) {
				t.Errorf("proxy of %s: %s", path, out)
			}
		}
		for _, dead := range []bool{false, true} {
			if dead {
				if err := l.KillAgent("node-a"); err != nil {
					t.Fatal(err)
				}
			}
			tcp := background(t, l, at+"TCP", "port-forward", "svc/single", ":80")[1]
			if out := ask("tcp", tcp); !strings.HasPrefix(out, "pod-a1/") && !strings.HasPrefix(out, "pod-a1 ") {
				t.Errorf("svc/single over TCP: %q", out)
			}
			udp := background(t, l, at+"UDP", "port-forward", "svc/single", ":80/UDP")[1]
			if out := ask("udp", udp); !strings.HasPrefix(out, "pod-a1") || !strings.Contains(out, "hello") {
				t.Errorf("svc/single over UDP: %q", out)
			}
		}
		if out := ask("tcp", pod); !strings.HasPrefix(out, "pod-b1") {
			t.Errorf("pod/pod-b1, begun before the agent ended: %v", out)
		}
		found := background(t, l, at+"TCP", "port-forward", "--source", "file:"+l.ManifestDir(), "pod/pod-b1", ":7000")[1]
		if out := ask("tcp", found); !strings.HasPrefix(out, "pod-b1") {
			t.Errorf("pod/pod-b1, found in manifests: %v", out)
		}
	})
}
