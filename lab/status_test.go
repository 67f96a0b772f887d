package lab

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDraw(t *testing.T) {
	got := draw(false, []AgentStatus{
		{Node: "node-a", Mode: "iptables", PID: 4711, Running: true},
		{Node: "node-b", Mode: "ebpf"},
	})
	want := `
                           ┌─ client ─────────────────────────┐
                           │ 192.168.78.10   fd00:78::10      │
                           └────────────────┬─────────────────┘
                           ┌─ router ───────┴─────────────────┐
                           │ 192.168.78.1    fd00:78::1       │
                           │ 192.168.77.1    fd00:77::1       │
                           └────────────────┬─────────────────┘
                     ┌──────────────────────┴──────────────────────┐
┌─ node-a ───────────┴─────────────────────┐  ┌─ node-b ───────────┴─────────────────────┐
│ 192.168.77.11   fd00:77::11              │  │ 192.168.77.12   fd00:77::12              │
│ agent: iptables, PID 4711                │  │ agent: ebpf, has DIED                    │
│                                          │  │                                          │
│ Pods, routed veths:                      │  │ Pods, routed veths:                      │
│ pod-a1  10.244.1.11  fd00:10:244:1::11   │  │ pod-b1  10.244.2.11  fd00:10:244:2::11   │
│ pod-a2  10.244.1.12  fd00:10:244:1::12   │  │ pod-b2  10.244.2.12  fd00:10:244:2::12   │
└──────────────────────────────────────────┘  └──────────────────────────────────────────┘
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("drawing (-want +got):\n%s", diff)
	}
	if got := draw(true, nil); !strings.Contains(got, "Pods, bridge cni0:") {
		t.Errorf("drawing of a bridged lab:\n%s", got)
	}
}

func TestAgentStatus(t *testing.T) {
	if got := (AgentStatus{Node: "node-a"}).String(); got != "agent: none" {
		t.Errorf("no agent: %q", got)
	}
}
