package netnstests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// kubeProxyDaemonSet is what of kubeadm's the guide touches.
const kubeProxyDaemonSet = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec:
      hostNetwork: true
      nodeSelector: {kubernetes.io/os: linux}
      containers:
      - {name: kube-proxy, image: kube-proxy, command: [kube-proxy]}
`

// kubelets run what DaemonSets want on the nodes of a lab, as their controller and
// kubelets do in a cluster.
type kubelets struct {
	*cluster
	config string               // kube-proxy's
	runs   map[string]*agentPod // by node and DaemonSet
	specs  map[string]string    // that these were started with
}

// selects reports whether a DaemonSet wants a Pod on a node.
func selects(spec *corev1.PodSpec, labels map[string]string) bool {
	for key, value := range spec.NodeSelector {
		if labels[key] != value {
			return false
		}
	}
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil {
		return true
	}
	for _, term := range spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		all := true
		for _, m := range term.MatchExpressions {
			_, has := labels[m.Key]
			all = all && (m.Operator == corev1.NodeSelectorOpExists) == has
		}
		if all {
			return true
		}
	}
	return false
}

// reconcile ends and starts Pods, and returns which DaemonSets have one on each node.
func (k *kubelets) reconcile(t *testing.T) map[string][]string {
	t.Helper()
	var sets appsv1.DaemonSetList
	must(t, json.Unmarshal([]byte(k.mustKubectl(t, "", "-n", "kube-system", "get", "daemonsets", "-o", "json")), &sets))
	var nodes corev1.NodeList
	must(t, json.Unmarshal([]byte(k.mustKubectl(t, "", "get", "nodes", "-o", "json")), &nodes))
	wanted := map[string]*appsv1.DaemonSet{}
	out := map[string][]string{}
	for i := range sets.Items {
		for _, node := range nodes.Items {
			if ds := &sets.Items[i]; selects(&ds.Spec.Template.Spec, node.Labels) {
				wanted[node.Name+" "+ds.Name] = ds
				out[node.Name] = append(out[node.Name], ds.Name)
			}
		}
	}
	spec := func(ds *appsv1.DaemonSet) string {
		text, err := json.Marshal(ds.Spec.Template.Spec.Containers)
		must(t, err)
		return string(text)
	}
	for key, pod := range k.runs {
		if ds := wanted[key]; ds == nil || spec(ds) != k.specs[key] {
			pod.end()
			delete(k.runs, key)
		}
	}
	for key, ds := range wanted {
		if k.runs[key] == nil {
			node, _, _ := strings.Cut(key, " ")
			k.runs[key], k.specs[key] = k.start(t, node, ds), spec(ds)
		}
	}
	return out
}

func (k *kubelets) start(t *testing.T, node string, ds *appsv1.DaemonSet) *agentPod {
	t.Helper()
	if ds.Name == "kube-proxy" {
		name := "kube-proxy-" + node
		_, err := k.Start(node, name, filepath.Join(kubeBinaries(t), "kube-proxy"), "--config", k.config, "--hostname-override", node)
		must(t, err)
		eventually(t, patience, func() error {
			if rules := inPlace(t, k.Lab, node, "iptables-save", "-t", "nat"); !strings.Contains(rules, "KUBE-SVC-") {
				return errors.New("kube-proxy has no rules yet")
			}
			return nil
		})
		return &agentPod{end: func() { must(t, k.Stop(name)) }}
	}
	pod := k.podFromAPI(t, ds.Name)
	command := append(pod.command(k.Options().Binary, node), "--instance="+k.Netns(node))
	if pod.container != &pod.spec.Containers[0] { // it ends by itself
		argv := pod.argv(t, command)
		eventually(t, patience, func() error {
			if out, err := k.Command(t.Context(), node, argv...).CombinedOutput(); err != nil {
				return fmt.Errorf("cleanup: %w\n%s", err, out)
			}
			return nil
		})
		pod.end = func() {}
		return pod
	}
	if _, serves := pod.run(t, k.Lab, node, append(command, "--mode=iptables", "--conntrack-max-per-core=0", "-v=1")); !serves {
		t.Fatalf("the agent on %s has ended", node)
	}
	return pod
}

var fence = regexp.MustCompile("(?s)```sh ?([a-z]*)\n(.*?)```")

// guide returns the commands of docs/migrate-from-kube-proxy.md for one way.
func guide(t *testing.T, way string) (commands []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/migrate-from-kube-proxy.md")
	must(t, err)
	for _, block := range fence.FindAllStringSubmatch(string(text), -1) {
		if block[1] == "" || block[1] == way {
			commands = append(commands, strings.Split(strings.TrimSpace(block[2]), "\n")...)
		}
	}
	if len(commands) < 12 {
		t.Fatalf("%d commands in the guide: %q", len(commands), commands)
	}
	return commands
}

// The guide's commands lead from kube-proxy to nodeproxy node by node, and back, by Helm
// and by manifests, as they stand there: after each, every node has one of the two and
// serves, connections that are open go on, and in the end nothing of nodeproxy is left.
func TestMigrationGuide(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	apply(t, c.Lab, find("web"))
	c.kubeadmConfigMap(t)
	deployed, err := filepath.Abs("../deploy/manifests")
	must(t, err)
	c.mustKubectl(t, "", "delete", "-f", deployed) // a lab has them for its agents
	config := filepath.Join(c.StateDir(), "config.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
clusterCIDR: %s,%s
mode: iptables
conntrack: {maxPerCore: 0}
oomScoreAdj: 0
`, c.api.AdminKubeconfig(), lab.ClusterCIDRs[0], lab.ClusterCIDRs[1]), 0o600))
	c.mustKubectl(t, "", "label", "nodes", "--all", "--overwrite", "kubernetes.io/os=linux")
	for _, way := range []string{"helm", "manifests"} {
		t.Run(way, func(t *testing.T) { (&kubelets{c, config, map[string]*agentPod{}, map[string]string{}}).follow(t, way) })
	}
}

// besideKubeProxy starts kube-proxy on nodes that are nodeproxy's, as an upgrade by
// kubeadm does without the guide's patch, and does what the guide says then.
func (k *kubelets) besideKubeProxy(t *testing.T) {
	t.Helper()
	serve := func() {
		t.Helper()
		for _, p := range lab.PlacesOf(lab.Node) {
			eventually(t, patience, func() error { return onNode(t, k.Lab, "web "+p.Name, everyPod) })
		}
	}
	k.mustKubectl(t, "", "-n", "kube-system", "patch", "daemonset", "kube-proxy", "--type=merge", "-p", `{"spec":{"template":{"spec":{"affinity":null}}}}`)
	if on := k.reconcile(t); len(on["node-a"]) != 2 || len(on["node-b"]) != 2 {
		t.Fatalf("not both on every node: %v", on)
	}
	serve()
	k.mustKubectl(t, "", "-n", "kube-system", "patch", "daemonset", "kube-proxy", "--patch-file", "../deploy/kubeadm/patches/kubeproxydaemonset+strategic.yaml")
	k.reconcile(t)
	serve()
	for key, pod := range k.runs { // kubectl rollout restart daemonset/nodeproxy
		pod.end()
		delete(k.runs, key)
	}
	k.reconcile(t)
	serve()
	for _, p := range lab.PlacesOf(lab.Node) {
		eventually(t, patience, func() error {
			if rules := inPlace(t, k.Lab, p.Name, "iptables-save"); strings.Contains(rules, "KUBE-SVC-") {
				return errors.New("rules of kube-proxy's are left on " + p.Name)
			}
			return nil
		})
	}
}

func (k *kubelets) follow(t *testing.T, way string) {
	t.Cleanup(func() {
		for _, pod := range k.runs {
			pod.end()
		}
	})
	path := "PATH=" + filepath.Dir(helmBinary(t)) + ":" + os.Getenv("PATH")
	k.mustKubectl(t, kubeProxyDaemonSet, "apply", "-f", "-")
	k.reconcile(t)
	eventually(t, patience, func() error { return answers(t, k.Lab, "web", everyPod) })
	for _, p := range lab.PlacesOf(lab.Node) {
		for _, v6 := range []bool{false, true} { // each node takes in each family's endpoints at its own time
			f := nodePortFlow(k.Lab, "web "+p.Name, everyPod, v6)
			eventually(t, patience, func() error { return f.check(t.Context()) })
		}
	}
	held := holdOver(t, k.Lab, echo.TCP, 10, "client", "web node-a", "web node-b")
	seen := map[string]bool{}
	for _, command := range guide(t, way) {
		if strings.Contains(command, "rollout status") || strings.Contains(command, " exec ") {
			continue // of kubelets: reconcile waits, and an agent is asked below
		}
		began := time.Now()
		cmd := k.Command(t.Context(), "control-plane", "sh", "-c", "cd .. && "+command)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+k.api.AdminKubeconfig(), path, "HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		on := k.reconcile(t)
		for _, p := range lab.PlacesOf(lab.Node) {
			agents := strings.ReplaceAll(strings.Join(on[p.Name], " "), " nodeproxy-cleanup", "")
			if agents != "kube-proxy" && agents != "nodeproxy" {
				t.Fatalf("after %q, %s has %q", command, p.Name, agents)
			}
			seen[p.Name+" "+agents] = true
			eventually(t, patience, func() error { return onNode(t, k.Lab, "web "+p.Name, everyPod) })
		}
		if way == "manifests" && strings.Contains(command, "label nodes --all nodeproxy.io/proxy=nodeproxy") {
			k.besideKubeProxy(t)
		}
		seen[fmt.Sprint(on)] = true
		t.Logf("%5.1fs %v after %.100s", time.Since(began).Seconds(), on, command)
	}
	pingAll(t, held)
	for _, p := range lab.PlacesOf(lab.Node) {
		if !seen[p.Name+" nodeproxy"] {
			t.Errorf("%s was never nodeproxy's", p.Name)
		}
		if rules := inPlace(t, k.Lab, p.Name, "iptables-save"); strings.Contains(rules, "NODEPROXY") {
			t.Errorf("%s still has rules of nodeproxy's", p.Name)
		}
	}
	if !seen["map[node-a:[kube-proxy nodeproxy] node-b:[kube-proxy]]"] && !seen["map[node-a:[nodeproxy] node-b:[kube-proxy]]"] {
		t.Errorf("no canary: %v", seen)
	}
	for _, name := range []string{"daemonset/nodeproxy", "daemonset/nodeproxy-cleanup", "serviceaccount/nodeproxy"} {
		if out, err := k.tryKubectl(t, "", "-n", "kube-system", "get", name); err == nil {
			t.Errorf("%s is still there:\n%s", name, out)
		}
	}
}
