package netnstests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// A tenant's Service that wants more than the maps have, and one that a mode cannot take
// as it is written, leave those of others alone: they are served, and followed, and what
// is left out is in status, in the metrics and in the log.
func TestOneTenantLeavesTheOthersAlone(t *testing.T) {
	eachOf(t, func(c column) bool { return c.Name == "iptables-nft" || c.Name == "ebpf" }, func(t *testing.T, c column) {
		args := []string{"--min-sync-period", "100ms"}
		if c.Mode == lab.ModeEBPF {
			args = append(args, "--ebpf-max-backends", "131072", "--ebpf-max-flows", "4096")
		}
		l := c.up(t, false, args...)
		apply(t, l, find("web"))
		write := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(l.ManifestDir(), name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("tenant.yaml", hugeService(140)+badService)
		startAgents(t, l)
		for _, v6 := range []bool{false, true} {
			seen := map[string]bool{}
			for range 400 {
				f := flow{lab: l, network: "tcp", from: lab.MustPlace("client"), at: "node-a", v6: v6, to: find("web").addr("node-a", 80, v6)}
				answer, err := f.dial(t.Context())
				if err != nil {
					t.Fatalf("web beside a tenant: %v", err)
				}
				if seen[answer.Name] = true; len(seen) == 4 {
					break
				}
			}
			if len(seen) != 4 {
				t.Errorf("web beside a tenant: only %v answer", seen)
			}
		}
		var s admin.Status
		eventually(t, patience, func() error {
			if complaint, err := asked(t, l, &s, "status"); err != nil {
				return fmt.Errorf("%w: %s", err, complaint)
			}
			if c.Mode == lab.ModeEBPF && !hasProblem(&s, "tenant/huge", "NotProgrammed", "one Service may have 32768") {
				return fmt.Errorf("status names no Service that is left out: %+v", s.Problems)
			}
			if cond := s.Condition(admin.NothingIgnored); cond.Status != "False" || !strings.Contains(cond.Message, "tenant/") {
				return fmt.Errorf("nothing is ignored: %+v", cond)
			}
			return nil
		})
		if c.Mode == lab.ModeEBPF {
			checkSizes(t, &s)
			metrics := inPlace(t, l, "node-a", "curl", "-s", "http://127.0.0.1:10249/metrics")
			if !strings.Contains(metrics, "\nnodeproxy_services_refused 1\n") {
				t.Errorf("no Service is counted as refused")
			}
			if !strings.Contains(l.AgentLog("node-a"), "Service is left out; all others are programmed") {
				t.Error("the log does not say what is left out")
			}
		}
		if s.Condition(admin.Ready).Status != "True" {
			t.Errorf("the node is not ready: %+v", s.Conditions)
		}
		// What changes of others is followed.
		apply(t, l, svc{find("web").n, "web", pods("pod-b1"), nil}, find("affinity"))
		eventually(t, patience, func() error {
			for range 5 {
				f := flow{lab: l, network: "tcp", from: lab.MustPlace("client"), at: "node-a", to: find("web").addr("node-a", 80, false)}
				if answer, err := f.dial(t.Context()); err != nil || !strings.HasPrefix(answer.Name, "pod-b1") {
					return fmt.Errorf("%v answers, %v", answer, err)
				}
			}
			return nil
		})
		f := flow{lab: l, network: "tcp", from: lab.MustPlace("client"), at: "node-a", to: find("affinity").addr("node-a", 80, false)}
		eventually(t, patience, func() error { _, err := f.dial(t.Context()); return err })
		// A tenant that asks for less is served.
		write("tenant.yaml", hugeService(2))
		eventually(t, patience, func() error {
			out := inPlace(t, l, "node-a", l.Options().Binary, "status", "-o", "json", "--instance", l.Netns("node-a"))
			var now admin.Status
			if err := json.Unmarshal([]byte(out), &now); err != nil || hasProblem(&now, "tenant/huge", "", "") || now.Services != 3 {
				return fmt.Errorf("%v, %d Services, %+v", err, now.Services, now.Problems)
			}
			return nil
		})
	})
}

// A Service of a real API server that a node leaves out is told of where people look: an
// Event on the Service, a metric and a line in status, of each mode. The other Services are
// served and followed, and nothing is said any more once it is gone.
func TestLeftOutServiceOnAPIServer(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	c.mustKubectl(t, "", "create", "namespace", "tenant")
	for _, col := range columns {
		if col.Name == "iptables-nft" || col.Name == "ebpf" {
			t.Run(col.Name, func(t *testing.T) { c.leavesOut(t, col) })
		}
	}
}

func (c *cluster) leavesOut(t *testing.T, col column) {
	text, name, words := hugeService(140), "huge", "one Service may have 32768"
	if col.Mode == lab.ModeIPTables {
		text, name, words = stickyService, "sticky", "recent"
	}
	apply(t, c.Lab, find("web"))
	defer c.agents(t, col, "--ebpf-max-backends", "131072")()
	if col.Mode == lab.ModeIPTables {
		c.withoutRecent(t, "node-a")
	}
	c.mustKubectl(t, text, "apply", "-f", "-")
	refused := func(n int) {
		t.Helper()
		eventually(t, patience, func() error {
			var s admin.Status
			if complaint, err := asked(t, c.Lab, &s, "status"); err != nil {
				return fmt.Errorf("%w: %s", err, complaint)
			}
			if hasProblem(&s, "tenant/"+name, "NotProgrammed", words) != (n > 0) {
				return fmt.Errorf("status, with %d Services left out: %+v", n, s.Problems)
			}
			want := fmt.Sprintf("\nnodeproxy_services_refused %d\n", n)
			if !strings.Contains(inPlace(t, c.Lab, "node-a", "curl", "-s", "http://127.0.0.1:10249/metrics"), want) {
				return fmt.Errorf("no %q among the metrics", want)
			}
			return nil
		})
	}
	refused(1)
	eventually(t, patience, func() error {
		told := c.mustKubectl(t, "", "-n", "tenant", "events", "--types=Warning", "--for", "service/"+name)
		if !strings.Contains(told, "NotProgrammed") || !strings.Contains(told, words) {
			return fmt.Errorf("kubectl events: %s", told)
		}
		return nil
	})
	eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-a", everyPod) })
	apply(t, c.Lab, find("single"))
	eventually(t, patience, func() error { return onNode(t, c.Lab, "single node-a", "pod-a1") })
	c.mustKubectl(t, text, "delete", "-f", "-")
	refused(0)
	must(t, c.Delete("single.yaml"))
}

// withoutRecent starts a node's agent anew where iptables lacks what session affinity is
// made with, as in an image that leaves out extensions.
func (c *cluster) withoutRecent(t *testing.T, node string) {
	t.Helper()
	libraries, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	must(t, err)
	dir := t.TempDir()
	left := 0
	for _, path := range libraries {
		if filepath.Base(path) == "libxt_recent.so" {
			left++
			continue
		}
		must(t, os.Symlink(path, filepath.Join(dir, filepath.Base(path))))
	}
	if left != 1 {
		t.Fatalf("%d libxt_recent.so among %d extensions of iptables", left, len(libraries))
	}
	agent, _, err := c.Agent(node)
	must(t, err)
	must(t, c.StopAgent(node))
	_, err = c.Start(node, agent.Name, append([]string{"env", "XTABLES_LIBDIR=" + dir}, agent.Argv...)...)
	must(t, err)
}

// stickyService has session affinity.
const stickyService = `apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: tenant}
spec:
  clusterIP: 10.96.200.3
  sessionAffinity: ClientIP
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: sticky-1, namespace: tenant, labels: {kubernetes.io/service-name: sticky}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.11], nodeName: node-a}]
ports: [{port: 8080}]
`

// hasProblem reports whether a status tells of a Service, for a reason, in some words.
func hasProblem(s *admin.Status, service, reason, words string) bool {
	for _, p := range s.Problems {
		if p.Service == service && strings.Contains(p.Reason, reason) && strings.Contains(p.Message, words) {
			return true
		}
	}
	return false
}

// checkSizes wants the sizes that the flags asked for, with the memory that they take.
func checkSizes(t *testing.T, s *admin.Status) {
	t.Helper()
	limits := map[string]uint64{"backends": 131072, "flows": 2 * 4096}
	for _, m := range s.Maps {
		if want, ok := limits[m.Name]; ok {
			delete(limits, m.Name)
			if m.Limit != want || m.Memory == 0 {
				t.Errorf("map %s: %d entries, %d bytes; want %d, and memory", m.Name, m.Limit, m.Memory, want)
			}
		}
	}
	if len(limits) > 0 {
		t.Errorf("status is without maps %v: %+v", limits, s.Maps)
	}
}

// hugeService is one of so many ports, with maglev: 4,093 slots each.
func hugeService(ports int) string {
	var service, slice strings.Builder
	for i := range ports {
		fmt.Fprintf(&service, "  - {name: p%d, port: %d}\n", i, 1000+i)
		fmt.Fprintf(&slice, "- {name: p%d, port: 8080}\n", i)
	}
	return "apiVersion: v1\nkind: Service\nmetadata: {name: huge, namespace: tenant, annotations: {nodeproxy.io/algorithm: maglev}}\n" +
		"spec:\n  clusterIP: 10.96.200.1\n  ports:\n" + service.String() + "---\n" +
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: huge-1, namespace: tenant, labels: {kubernetes.io/service-name: huge}}\n" +
		"addressType: IPv4\nendpoints: [{addresses: [10.244.1.11], nodeName: node-a}]\nports:\n" + slice.String() + "---\n"
}

// badService is wrong in whatever way a manifest without an API server before it may be:
// its names are too long and hold what rules are written with, and its numbers are out of range.
var badService = fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: "%s\" -j ACCEPT\nCOMMIT", namespace: tenant}
spec:
  clusterIP: 10.96.200.2
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: -5}}
  ports: [{name: "x\ny", port: 80}, {name: z, port: 99999}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad-1, namespace: tenant, labels: {kubernetes.io/service-name: "%[1]s\" -j ACCEPT\nCOMMIT"}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.11]}, {addresses: [0.0.0.0]}, {addresses: [255.255.255.255]}]
ports: [{name: "x\ny", port: 8080}]
`, strings.Repeat("long", 100))
