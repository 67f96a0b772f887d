package netnstests

import (
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
)

const (
	everyPod  = "pod-a1 pod-a2 pod-b1 pod-b2"
	everyNode = "node-a node-b"
)

// table holds for every column, with Pods behind routed veths and behind a
// bridge. Numbers in brackets are those of pitfalls.
var table = []scenario{
	// Policy Cluster, endpoints on both nodes.
	{name: "pods to a ClusterIP", from: everyPod, to: "web cluster, plain cluster", want: everyPod},
	{name: "nodes to a ClusterIP", from: everyNode, to: "web cluster, plain cluster", want: everyPod, source: masked},
	{name: "client to node ports", from: "client", to: "web node-a, web node-b, web second", want: everyPod, source: masked},
	{name: "client to external addresses", from: "client", to: "web external, web balancer", want: everyPod, source: masked},
	{name: "pods to node ports", from: "pod-a1 pod-b2", to: "web node-a, web node-b, web second", want: everyPod, source: masked},
	{name: "nodes to node ports", from: everyNode, to: "web node-a, web node-b, web second", want: everyPod, source: masked},
	{name: "pods to external addresses", from: "pod-a1 pod-b2", to: "web external, web balancer", want: everyPod, source: masked},
	{name: "nodes to external addresses", from: everyNode, to: "web external, web balancer", want: everyPod, source: masked},

	// One endpoint.
	{name: "across nodes", from: "pod-a1 pod-b2", to: "remote cluster", want: "pod-b1"},
	{name: "across nodes by node ports", from: "client node-a pod-a1", to: "remote node-a, remote node-b", want: "pod-b1", source: masked},
	{name: "host network to remote (P26)", from: "node-a", to: "remote cluster, remote external", want: "pod-b1", source: masked},
	{name: "hairpin (P25)", from: "pod-a1", to: "single cluster", want: "pod-a1"},
	{name: "hairpin by external addresses", from: "pod-a1", to: "single external, single balancer, single node-a, single node-b", want: "pod-a1", source: masked},

	// Backends on the host network (P26).
	{name: "host network backends from pods", from: "pod-a1 pod-b1", to: "hostnet cluster", want: everyNode},
	{name: "host network backends from nodes", from: everyNode, to: "hostnet cluster, hostnet external", want: everyNode, source: masked},
	{name: "host network backends from client", from: "client", to: "hostnet node-a, hostnet node-b, hostnet balancer", want: everyNode, source: masked},

	// No endpoints (P32).
	{name: "no endpoints from inside", from: "pod-a1 node-a pod-b1 node-b",
		to: "empty cluster, empty external, empty balancer, empty node-a, empty node-b", want: refused},
	{name: "no endpoints from client", from: "client", to: "empty node-a, empty node-b, empty external, empty balancer", want: refused},
	{name: "no endpoints with external Local", from: "client pod-a1 node-b", to: "local-empty node-a, local-empty balancer", want: refused},
	{name: "no endpoints with internal Local", from: "pod-a1 node-b", to: "internal-empty cluster", want: refused},
	{name: "not ready is no endpoint", from: "pod-a2 node-a", to: "none-ready cluster, none-ready node-a", want: refused},

	// externalTrafficPolicy Local.
	{name: "external Local from client", from: "client", to: "local-a node-a, local-a second, local-a external, local-a balancer", want: "pod-a1 pod-a2"},
	{name: "external Local elsewhere", from: "client node-a", to: "local-a node-b", want: dropped},
	{name: "external Local short-circuit for pods", from: "pod-b1", to: "local-a external, local-a balancer, local-a node-b, local-a node-a", want: "pod-a1 pod-a2"},
	{name: "external Local short-circuit for a local pod", from: "pod-a1", to: "local-a external, local-a balancer, local-a node-a", want: "pod-a1 pod-a2"},
	{name: "external Local short-circuit for nodes", from: "node-b", to: "local-a external, local-a balancer, local-a node-b", want: "pod-a1 pod-a2", source: masked},
	{name: "external Local from another node", from: "node-b", to: "local-a node-a", want: "pod-a1 pod-a2"},
	{name: "external Local is not for ClusterIPs", from: "pod-b1 pod-b2", to: "local-a cluster", want: "pod-a1 pod-a2"},
	{name: "external Local by node a", from: "client", to: "local-both node-a, local-both external", want: "pod-a1"},
	{name: "external Local by node b", from: "client", to: "local-both node-b", want: "pod-b1"},
	{name: "external Local inside is everywhere", from: "pod-a2 node-a", to: "local-both external, local-both node-a", want: "pod-a1 pod-b1"},

	// internalTrafficPolicy Local.
	{name: "internal Local from pods", from: "pod-a1 pod-a2", to: "internal cluster", want: "pod-a1"},
	{name: "internal Local from the node", from: "node-a", to: "internal cluster", want: "pod-a1", source: masked},
	{name: "internal Local elsewhere", from: "pod-b1 node-b", to: "internal cluster", want: dropped},
	{name: "internal Local is not for node ports", from: "client pod-b1", to: "internal node-b, internal external", want: "pod-a1", source: masked},

	// loadBalancerSourceRanges.
	{name: "ranges allow", from: "client", to: "allow-client balancer", want: "pod-a1 pod-b1", source: masked},
	{name: "ranges deny the rest", from: "pod-a1 pod-b1 node-a", to: "allow-client balancer", want: dropped},
	{name: "ranges deny", from: "client", to: "deny balancer, deny-empty balancer", want: dropped},
	{name: "ranges are not for other frontends", from: "client", to: "deny external, deny node-a, deny node-b", want: "pod-a1", source: masked},
	{name: "ranges are not for ClusterIPs", from: "pod-a2 pod-b1", to: "deny cluster", want: "pod-a1"},
	{name: "ranges before refusals", from: "client", to: "deny-empty external, deny-empty node-a", want: refused},
	{name: "ranges with nodes", from: everyNode, to: "allow-nodes balancer", want: "pod-a1 pod-b1", source: masked},
	{name: "ranges without the client", from: "client pod-a1", to: "allow-nodes balancer", want: dropped},
	{name: "ranges of this family", from: "client", to: "deny-v4 balancer", want: dropped, only: "v4"},
	{name: "ranges of the other family", from: "client", to: "deny-v4 balancer", want: "pod-a1", source: masked, only: "v6"},

	// Affinity, families, ports, many endpoints.
	{name: "affinity from pods", from: "pod-a1 pod-b1", to: "affinity cluster, affinity cluster", want: everyPod, sticky: true},
	{name: "affinity from nodes", from: everyNode, to: "affinity cluster, affinity cluster", want: everyPod, source: masked, sticky: true},
	{name: "affinity is one for all frontends", from: "client", to: "affinity node-a, affinity external, affinity balancer, affinity second", want: everyPod, source: masked, sticky: true},
	{name: "affinity among 20 endpoints", from: "pod-a1 client", to: "affinity-large external, affinity-large balancer", want: everyEndpoint, source: masked, sticky: true},
	{name: "affinity with external Local", from: "client", to: "affinity-local node-a, affinity-local external", want: "pod-a1 pod-a2", sticky: true},
	{name: "affinity with one local endpoint", from: "client", to: "affinity-local node-b", want: "pod-b1", sticky: true},
	{name: "affinity with external Local from pods", from: "pod-b2", to: "affinity-local balancer, affinity-local external", want: "pod-a1 pod-a2 pod-b1", sticky: true},
	{name: "single stack 4", from: "pod-b1", to: "v4-only cluster", want: "pod-a1", only: "v4"},
	{name: "single stack 6", from: "pod-b1", to: "v6-only cluster", want: "pod-a1", only: "v6"},
	{name: "single stack 4 in 6", from: "client", to: "v4-only node-a", want: refused, only: "v6"},
	{name: "single stack 6 in 4", from: "client", to: "v6-only node-a", want: refused, only: "v4"},
	{name: "same port of TCP", from: "pod-a2 pod-b2", to: "ports cluster", want: "pod-a1 pod-b1", only: "tcp"},
	{name: "same port of UDP", from: "pod-a2 pod-b2", to: "ports cluster", want: "pod-a1/7001 pod-b1/7001", only: "udp"},
	{name: "other port of TCP", from: "pod-a2 pod-b2", to: "ports cluster:81", want: "pod-a1/7001 pod-b1/7001", only: "tcp"},
	{name: "other port of UDP", from: "pod-a2 pod-b2", to: "ports cluster:81", want: "pod-a1 pod-b1", only: "udp"},
	{name: "node port of TCP", from: "client", to: "ports node-b", want: "pod-a1 pod-b1", source: masked, only: "tcp"},
	{name: "node port of UDP", from: "client", to: "ports node-b", want: "pod-a1/7001 pod-b1/7001", source: masked, only: "udp"},
	{name: "20 endpoints", from: "pod-a1", to: "large cluster", want: everyEndpoint},
	{name: "20 endpoints by node port", from: "client", to: "large node-b", want: everyEndpoint, source: masked},

	// A range of ports (P37); the port is kept.
	{name: "port range from pods", from: "pod-a2 pod-b2", to: "range cluster:7002", want: "pod-a1/7002 pod-b1/7002"},
	{name: "port range from nodes", from: everyNode, to: "range cluster:7001, range balancer:7001", want: "pod-a1/7001 pod-b1/7001", source: masked},
	{name: "port range from client", from: "client", to: "range external:7004, range balancer:7004", want: "pod-a1/7004 pod-b1/7004", source: masked},
	{name: "port range, its first port", from: "pod-b2 pod-a2", to: "range cluster:7000", want: "pod-a1 pod-b1"},
	{name: "port range, hairpin", from: "pod-a1", to: "range-deny external:7003", want: "pod-a1/7003", source: masked},
	{name: "port range beside a port", from: "pod-a2", to: "range cluster", want: "pod-a1 pod-b1"},
	{name: "beside a port range", from: "pod-a2 client", to: "range external:6999, range external:7005", want: refused},
	{name: "port range without endpoints", from: "pod-a2 node-b client", to: "range-empty external:7001, range-empty balancer:7002", want: refused},
	{name: "port range with external Local", from: "client", to: "range-local external:7002, range-local balancer:7002", want: "pod-a1/7002"},
	{name: "port range with external Local from pods", from: "pod-b2", to: "range-local external:7002", want: "pod-a1/7002 pod-b1/7002"},
	{name: "port range denies", from: "client", to: "range-deny balancer:7002, range-deny balancer", want: dropped},
	{name: "weights", from: "pod-a2 client", to: "weights external", want: "pod-a1 pod-b1", source: masked},
	{name: "maglev", from: "pod-a2", to: "maglev cluster", want: everyPod},
	{name: "maglev from client", from: "client", to: "maglev node-a, maglev external", want: everyPod, source: masked},

	// Conditions and hints of endpoints.
	{name: "terminating when nothing else", from: "pod-a2 pod-b2", to: "terminating cluster", want: "pod-a1 pod-b1"},
	{name: "terminating when nothing else by node port", from: "client", to: "terminating node-a", want: "pod-a1 pod-b1", source: masked},
	{name: "terminating beside ready", from: "pod-a2 pod-b2", to: "one-terminating cluster", want: "pod-a1"},
	{name: "terminating local endpoint", from: "client", to: "local-terminating node-a", want: "pod-a1"},
	{name: "ready local endpoint", from: "client", to: "local-terminating node-b", want: "pod-b1"},
	{name: "ready for the cluster", from: "pod-a2 pod-b2", to: "local-terminating cluster", want: "pod-b1"},
	{name: "ready beside not ready", from: "pod-a2 pod-b2", to: "one-ready cluster", want: "pod-b1"},
	{name: "hints in zone a", from: "pod-a2", to: "hints cluster", want: "pod-a1"},
	{name: "hints in zone b", from: "pod-b2", to: "hints cluster", want: "pod-b1"},
	{name: "hints by node port", from: "client", to: "hints node-b", want: "pod-b1", source: masked},

	// What is not ours stays untouched.
	{name: "port without a Service", from: "pod-a1 node-a", to: "web cluster:99", want: unanswered},
	{name: "mode Proxy is not captured", from: "pod-a1 client", to: "lb-proxy balancer", want: unanswered},
	{name: "mode Proxy has node ports", from: "client", to: "lb-proxy node-a", want: "pod-b1", source: masked},
	{name: "another proxy's", from: "pod-a1 node-a", to: "other-proxy cluster", want: unanswered},
	{name: "another proxy's node port", from: "client", to: "other-proxy node-a", want: refused},
	{name: "no node port for ClusterIP", from: "client", to: "plain node-a", want: refused},
}

const everyEndpoint = "pod-a1 pod-a1/7001 pod-a1/7002 pod-a1/7003 pod-a1/7004 " +
	"pod-a2 pod-a2/7001 pod-a2/7002 pod-a2/7003 pod-a2/7004 " +
	"pod-b1 pod-b1/7001 pod-b1/7002 pod-b1/7003 pod-b1/7004 " +
	"pod-b2 pod-b2/7001 pod-b2/7002 pod-b2/7003 pod-b2/7004"

// flagTable holds with --masquerade-all and --nodeport-addresses primary.
var flagTable = []scenario{
	{name: "pods to a ClusterIP", from: everyPod, to: "web cluster, plain cluster", want: everyPod, source: masked},
	{name: "nodes to a ClusterIP", from: everyNode, to: "web cluster", want: everyPod, source: masked},
	{name: "hairpin", from: "pod-a1", to: "single cluster", want: "pod-a1", source: masked},
	{name: "internal Local", from: "pod-a2", to: "internal cluster", want: "pod-a1", source: masked},
	{name: "external Local keeps the client", from: "client", to: "local-a node-a, local-a external", want: "pod-a1 pod-a2"},
	{name: "primary address", from: "client pod-a1 node-b", to: "web node-a, web node-b", want: everyPod, source: masked},
	{name: "not the other address", from: "client pod-b1 node-b", to: "web second, empty second", want: refused},
	{name: "external addresses", from: "client", to: "web external, web balancer", want: everyPod, source: masked},
}

// detectTable holds in every mode of telling Pods from others. Rows in which a
// node meets Pods of another node unmasqueraded are left to table.
var detectTable = []scenario{
	{name: "pods to a ClusterIP", from: everyPod, to: "web cluster, plain cluster", want: everyPod},
	{name: "nodes to a ClusterIP", from: everyNode, to: "web cluster", want: everyPod, source: masked},
	{name: "hairpin", from: "pod-a1", to: "single cluster, single external", want: "pod-a1", source: masked},
	{name: "client to node ports", from: "client", to: "web node-a, web node-b", want: everyPod, source: masked},
	{name: "external Local from client", from: "client", to: "local-a node-a, local-a external", want: "pod-a1 pod-a2"},
	{name: "external Local short-circuit for pods", from: "pod-b1 pod-b2", to: "local-a external, local-a node-b", want: "pod-a1 pod-a2"},
	{name: "external Local short-circuit for nodes", from: "node-b", to: "local-a external, local-a node-b", want: "pod-a1 pod-a2", source: masked},
	{name: "internal Local", from: "pod-a2", to: "internal cluster", want: "pod-a1"},
	{name: "internal Local elsewhere", from: "pod-b2 node-b", to: "internal cluster", want: dropped},
	{name: "no endpoints", from: "client pod-a1 node-a", to: "empty node-a, empty external", want: refused},
}

func TestScenarios(t *testing.T) {
	eachColumnAndWay(t, func(t *testing.T, c column) {
		runScenarios(t, c.scenarioLab(t, false), table)
	})
	t.Cleanup(func() { t.Logf("%d flows judged so far, in all columns", checks.Load()) })
}

func TestScenariosBridged(t *testing.T) {
	eachColumnAndWay(t, func(t *testing.T, c column) {
		runScenarios(t, c.scenarioLab(t, true), table)
	})
}

func TestScenariosFlags(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		runScenarios(t, c.scenarioLab(t, false, "--masquerade-all", "--nodeport-addresses", "primary"), flagTable)
	})
}

func TestScenariosDetectLocal(t *testing.T) {
	for name, args := range map[string][]string{
		"NodeCIDR":            nil,
		"InterfaceNamePrefix": {"--pod-interface-name-prefix", "veth-"},
		"BridgeInterface":     {"--pod-bridge-interface", "cni0"},
	} {
		t.Run(name, func(t *testing.T) {
			eachColumn(t, func(t *testing.T, c column) {
				args := append([]string{"--detect-local-mode", name}, args...)
				runScenarios(t, c.scenarioLab(t, name == "BridgeInterface", args...), detectTable)
			})
		})
	}
}

// scenarioLab is a lab with all Services and agents.
func (c column) scenarioLab(t *testing.T, bridge bool, args ...string) *lab.Lab {
	t.Helper()
	l := c.up(t, bridge, args...)
	serveMore(t, l)
	addSecondAddrs(t, l)
	apply(t, l, services...)
	startAgents(t, l)
	return l
}
