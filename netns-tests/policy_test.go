package netnstests

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// rangeTable is P29: source ranges by way in, kind of source, and whether the
// source is inside. They are for load-balancer addresses, as the API says.
var rangeTable = []scenario{
	{name: "balancer outside allowed", from: "client", to: "allow-client balancer", want: "pod-a1 pod-b1", source: masked},
	{name: "balancer outside denied", from: "client", to: "deny balancer, allow-nodes balancer, allow-pods balancer", want: dropped},
	{name: "balancer pod allowed", from: "pod-a2 pod-b2", to: "allow-pods balancer", want: "pod-a1 pod-b1", source: masked},
	{name: "balancer pod denied", from: "pod-a2 pod-b2", to: "deny balancer, allow-client balancer, allow-nodes balancer", want: dropped},
	{name: "balancer host allowed", from: everyNode, to: "allow-nodes balancer", want: "pod-a1 pod-b1", source: masked},
	{name: "balancer host denied", from: everyNode, to: "deny balancer, allow-client balancer, allow-pods balancer", want: dropped},
	{name: "balancer without endpoints", from: "client pod-a2 node-a", to: "deny-empty balancer", want: dropped},
	{name: "external outside", from: "client", to: "allow-client external, allow-pods external", want: "pod-a1 pod-b1", source: masked},
	{name: "external pod and host", from: "pod-a2 node-b", to: "deny external", want: "pod-a1", source: masked},
	{name: "node port outside", from: "client", to: "allow-pods node-a, allow-nodes node-b", want: "pod-a1 pod-b1", source: masked},
	{name: "node port denied elsewhere", from: "client pod-a2 node-a", to: "deny node-b", want: "pod-a1", source: masked},
	{name: "ClusterIP", from: "pod-a2 pod-b2", to: "deny cluster", want: "pod-a1"},
	{name: "this family denied", from: "client pod-a2 node-b", to: "deny-v4 balancer", want: dropped, only: "v4"},
	{name: "only the other family has ranges", from: "client pod-a2 node-b", to: "deny-v4 balancer", want: "pod-a1", source: masked, only: "v6"},
}

// TestP29SourceRanges runs rangeTable in every column: sockets, packets, rules.
func TestP29SourceRanges(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("allow-client"), find("deny"), find("allow-nodes"), find("allow-pods"), find("deny-empty"), find("deny-v4"))
		startAgents(t, l)
		runScenarios(t, l, rangeTable)
	})
}

// TestP27Affinity checks that every way to a Service knows one client by one
// name: a socket that is translated, a packet to a node port, a load-balancer
// address. Clients are Pods, not nodes; and a restart forgets none.
func TestP27Affinity(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		if err := l.Apply("affinity.yaml", withAffinityTimeout(find("affinity"), 3)...); err != nil {
			t.Fatal(err)
		}
		serveMore(t, l)
		apply(t, l, find("affinity-large"))
		startAgents(t, l)
		differ := false
		{
			s := find("affinity-large")
			names := map[string]string{}
			dialAll := func(step string) {
				t.Helper()
				for _, from := range []string{"pod-a1", "pod-a2", "pod-b1", "pod-b2", "client", "node-a"} {
					own, _ := lab.FindPlace(from)
					at := []string{"cluster", "external", "balancer", own.Node}
					switch own.Kind {
					case lab.Client:
						at = []string{"external", "balancer", "node-a"}
					case lab.Node:
						at = []string{"cluster", "external", "balancer"}
					}
					for _, v6 := range []bool{false, true} {
						for _, network := range []echo.Network{echo.TCP, echo.UDP} {
							for _, a := range at {
								key := fmt.Sprint(from, v6, network)
								answer, err := l.Dial(t.Context(), from, network, s.addr(a, 80, v6))
								if err != nil {
									t.Errorf("%s: %s to %s %s: %v", step, key, s.name, a, err)
								} else if names[key] != "" && names[key] != answer.Name {
									t.Errorf("%s: %s to %s %s: %s answered, and %s before", step, key, s.name, a, answer.Name, names[key])
								}
								names[key] = answer.Name
							}
						}
					}
				}
			}
			dialAll("at first")
			for _, node := range []string{"node-a", "node-b"} {
				if err := l.KillAgent(node); err != nil {
					t.Fatal(err)
				}
			}
			dialAll("without an agent")
			startAgents(t, l)
			dialAll("after a restart")
			// 20 endpoints: that two Pods of a node agree in all of four is one in 160,000.
			for _, key := range []string{"falsetcp", "falseudp", "truetcp", "trueudp"} {
				differ = differ || names["pod-a1"+key] != names["pod-a2"+key]
			}
		}
		if !differ {
			t.Error("two Pods of one node got the same endpoints: they may be one client")
		}
		checkRefreshed(t, l)
	})
}

// checkRefreshed uses a Service of 3 s timeout every second for longer than
// that: use renews the claim.
func checkRefreshed(t *testing.T, l *lab.Lab) {
	t.Helper()
	var first string
	for i := range 6 {
		answer, err := l.Dial(t.Context(), "pod-a1", echo.TCP, find("affinity").addr("cluster", 80, false))
		if first == "" {
			first = answer.Name
		}
		if err != nil || answer.Name != first {
			t.Errorf("after %d s: %v", i, errors.Join(err, fmt.Errorf("%s answered, want %s", answer.Name, first)))
		}
		time.Sleep(time.Second)
	}
}

// TestP34ZoneChanges changes the label of a node's zone while the agent runs:
// hints lead to the endpoint of the new zone, and without a zone to all.
func TestP34ZoneChanges(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("hints"))
		startAgents(t, l)
		for _, step := range []struct{ like, want string }{
			{"node-a", "pod-a1"}, {"node-b", "pod-b1"}, {"", "pod-a1 pod-b1"}, {"node-a", "pod-a1"},
		} {
			nodes := lab.NodeObjects()
			for _, n := range nodes {
				node := n.(*corev1.Node)
				if node.Name != "node-a" {
					continue
				}
				delete(node.Labels, corev1.LabelTopologyZone)
				for _, other := range lab.NodeObjects() {
					if o := other.(*corev1.Node); o.Name == step.like {
						node.Labels[corev1.LabelTopologyZone] = o.Labels[corev1.LabelTopologyZone]
					}
				}
			}
			if err := l.Apply("nodes.yaml", nodes...); err != nil {
				t.Fatal(err)
			}
			for _, at := range []string{"pod-a2 hints cluster", "node-a hints cluster", "client hints node-a"} {
				words := strings.SplitN(at, " ", 2)
				f := flow{scenario: scenario{want: step.want, source: masked}, lab: l, network: echo.TCP, from: lab.MustPlace(words[0])}
				if words[0] == "pod-a2" {
					f.source = kept
				}
				f.at, f.to = parseTarget(words[1], false)
				eventually(t, patience, func() error { return f.check(t.Context()) })
			}
		}
	})
}

// TestP27AffinityOverModeChange restarts agents in the other mode and back:
// clients stay with their endpoints.
func TestP27AffinityOverModeChange(t *testing.T) {
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--drain-poll", "200ms")
		serveMore(t, l)
		apply(t, l, find("affinity-large"))
		startAgents(t, l)
		s, names := find("affinity-large"), map[string]string{}
		dialAll := func(step string) {
			t.Helper()
			for _, from := range []string{"pod-a1", "pod-a2", "pod-b1", "client", "node-a"} {
				for _, v6 := range []bool{false, true} {
					for _, network := range []echo.Network{echo.TCP, echo.UDP} {
						key := fmt.Sprint(from, v6, network)
						answer, err := l.Dial(t.Context(), from, network, s.addr("external", 80, v6))
						if err != nil {
							t.Errorf("%s: %s: %v", step, key, err)
						} else if names[key] != "" && names[key] != answer.Name {
							t.Errorf("%s: %s: %s answered, and %s before", step, key, answer.Name, names[key])
						}
						names[key] = answer.Name
					}
				}
			}
		}
		dialAll("at first")
		for _, mode := range []string{lab.ModeEBPF, lab.ModeIPTables} {
			for _, node := range lab.PlacesOf(lab.Node) {
				if err := l.StopAgent(node.Name); err != nil {
					t.Fatal(err)
				}
				if err := l.StartAgent(t.Context(), node.Name, "--mode", mode); err != nil {
					t.Fatal(err)
				}
			}
			dialAll("in mode " + mode)
		}
	})
}
