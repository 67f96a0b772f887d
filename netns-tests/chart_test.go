package netnstests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/deploy"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// helmBinary is helm.
func helmBinary(t *testing.T) string { return tool(t, "helm") }

// tool is a program that `make test` has built; a test that is run alone builds it.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(kubeBinaries(t), name)
	if _, err := os.Stat(path); err != nil {
		if out, err := exec.Command("make", "-C", "..", name, "KUBE_BIN="+kubeBinaries(t)).CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", name, err, out)
		}
	}
	return path
}

// renderChart renders the chart with values, as helm does for an installation.
func renderChart(t *testing.T, args ...string) string {
	t.Helper()
	helm := helmBinary(t)
	argv := append([]string{"template", "release", "../deploy/chart", "--namespace", "kube-system"}, args...)
	cmd := exec.Command(helm, argv...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm %v: %v\n%s", argv, err, failed.String())
	}
	return string(out)
}

// tryKubectl runs kubectl as an administrator, with a text as standard input.
func (c *cluster) tryKubectl(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	argv := append([]string{filepath.Join(kubeBinaries(t), "kubectl"), "--kubeconfig", c.api.AdminKubeconfig()}, args...)
	cmd := c.Command(t.Context(), "control-plane", argv...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mustKubectl runs kubectl, which must work.
func (c *cluster) mustKubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := c.tryKubectl(t, input, args...)
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return out
}

// A real API server takes what the chart renders in each variant, and the plain
// manifests, without an unknown field or a value that it refuses.
func TestChartOnAPIServer(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	crds, err := os.ReadFile("testdata/monitoring-crds.yaml")
	must(t, err)
	c.mustKubectl(t, string(crds), "apply", "-f", "-")
	c.mustKubectl(t, "", "wait", "--for=condition=Established", "--timeout=30s", "crd/podmonitors.monitoring.coreos.com", "crd/prometheusrules.monitoring.coreos.com")
	dryRun := func(text string) (string, error) {
		return c.tryKubectl(t, text, "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-")
	}
	variants := map[string]string{}
	for name, args := range map[string][]string{
		"defaults":  nil,
		"ConfigMap": {"--set", "existingConfigMap=kube-proxy"},
		"values": {"--set", "apiServer.host=192.0.2.1,mode=ebpf,image.tag=v1,maxUnavailable=1,extraArgs={-v=1},imagePullSecrets={a}",
			"--set", "config.clusterCIDR=10.244.0.0/16,podAnnotations.a=b,serviceAccount.name=other,instance=two"},
		"no tolerations":    {"--set-json", "tolerations=[]"},
		"canary":            {"--set", "canary.enabled=true,canary.tag=v2,canary.extraArgs={--xdp=native}"},
		"monitored":         {"--set", "podMonitor.enabled=true,podMonitor.labels.release=prometheus,prometheusRule.enabled=true,grafanaDashboard.enabled=true"},
		"seccomp":           {"--set", "seccompProfile.type=Unconfined"},
		"affinity":          {"--set-json", `affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]}}}`},
		"cleanup":           {"--set", "cleanup=true"},
		"cleanup, seccomp":  {"--set", "cleanup=true,seccompProfile.localhostProfile=mine.json,kubeletDir=/var/lib/k0s/kubelet"},
		"no serviceAccount": {"--set", "serviceAccount.create=false,serviceAccount.name=there"},
	} {
		variants["chart, "+name] = renderChart(t, args...)
	}
	must(t, fs.WalkDir(deploy.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path, "chart/") {
			return err
		}
		data, err := deploy.Files.ReadFile(path)
		variants[path] = string(data)
		return err
	}))
	for name, text := range variants {
		if out, err := dryRun(text); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if len(variants) < 13 {
		t.Errorf("%d variants only", len(variants))
	}
	// What is wrong is noticed.
	for _, replace := range [][2]string{{"hostNetwork:", "hostNetwerk:"}, {"system-node-critical", "System_Node"}, {"port: metrics", "prot: metrics"}, {"alert: NodeproxyDrift", "alrt: NodeproxyDrift"}} {
		text := variants["chart, monitored"]
		if out, err := dryRun(strings.Replace(text, replace[0], replace[1], 1)); err == nil {
			t.Errorf("%s is taken:\n%s", replace[1], out)
		}
	}
}

// The chart's Pod serves a node with kubeadm's ConfigMap of kube-proxy as it is, the
// token of its own ServiceAccount and no more rights than the chart gives it. Its
// readiness probe passes. The chart's cleanup Pod then leaves nothing, and only fails
// while the agent runs.
func TestChartServesWithKubeadmsConfigMap(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	apply(t, c.Lab, find("web"))
	c.kubeadmConfigMap(t)
	node := "node-a"
	values := []string{"--set", "existingConfigMap=kube-proxy,mode=iptables,instance=" + c.Netns(node) + ",extraArgs={-v=1,--conntrack-max-per-core=0}"}
	c.mustKubectl(t, renderChart(t, values...), "apply", "-f", "-")
	pod := c.podFromAPI(t, "release-nodeproxy")
	if _, serves := pod.run(t, c.Lab, node, pod.command(c.Options().Binary, node)); !serves {
		t.Fatal("the agent has ended")
	}
	eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-a", everyPod) })
	probe := append([]string{c.Options().Binary}, pod.container.ReadinessProbe.Exec.Command[1:]...)
	eventually(t, patience, func() error {
		out, err := c.Command(t.Context(), node, probe...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("readiness probe: %w\n%s", err, out)
		}
		return nil
	})

	c.mustKubectl(t, renderChart(t, append(values, "--set", "cleanup=true")...), "apply", "-f", "-")
	cleaner := c.podFromAPI(t, "release-nodeproxy-cleanup")
	argv := cleaner.argv(t, cleaner.command(c.Options().Binary, node))
	out, err := c.Command(t.Context(), node, argv...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "an agent runs in this network namespace already") {
		t.Errorf("cleanup beside an agent: %v\n%s", err, out)
	}
	pod.end()
	out, err = c.Command(t.Context(), node, argv...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "removed") {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	if rules := inPlace(t, c.Lab, node, "iptables-save"); strings.Contains(rules, "NODEPROXY") {
		t.Errorf("cleanup leaves\n%s", rules)
	}
}

// kubeadmConfigMap makes kubeadm's ConfigMap of kube-proxy.
func (c *cluster) kubeadmConfigMap(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, replace := range map[string][2]string{
		"config.conf":     {"10.244.0.0/16,fd00:10:244::/48", lab.ClusterCIDRs[0].String() + "," + lab.ClusterCIDRs[1].String()},
		"kubeconfig.conf": {"SERVER", c.api.Config.Host},
	} {
		data, err := os.ReadFile("testdata/kubeadm-" + name)
		must(t, err)
		if !bytes.Contains(data, []byte(replace[0])) {
			t.Fatalf("no %s in %s", replace[0], name)
		}
		must(t, os.WriteFile(filepath.Join(dir, name), bytes.ReplaceAll(data, []byte(replace[0]), []byte(replace[1])), 0o644))
	}
	c.mustKubectl(t, "", "-n", "kube-system", "create", "configmap", "kube-proxy", "--from-file="+dir)
}

// podFromAPI is the Pod of a DaemonSet as the API server has it, with the files that a
// kubelet would write: the ConfigMap's, and those of its ServiceAccount.
func (c *cluster) podFromAPI(t *testing.T, name string) *agentPod {
	t.Helper()
	var ds appsv1.DaemonSet
	must(t, yaml.Unmarshal([]byte(c.mustKubectl(t, "", "-n", "kube-system", "get", "daemonset", name, "-o", "yaml")), &ds))
	p := podOf(t, &ds)
	for _, v := range p.spec.Volumes {
		if v.ConfigMap == nil {
			continue
		}
		var m struct{ Data map[string]string }
		must(t, json.Unmarshal([]byte(c.mustKubectl(t, "", "-n", "kube-system", "get", "configmap", v.ConfigMap.Name, "-o", "json")), &m))
		dir := t.TempDir()
		for file, text := range m.Data {
			must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
		}
		for _, mount := range p.container.VolumeMounts {
			if mount.Name == v.Name {
				p.dirs[mount.MountPath] = dir
			}
		}
	}
	if mounted := p.spec.AutomountServiceAccountToken; mounted == nil || *mounted {
		dir := t.TempDir()
		token := c.mustKubectl(t, "", "-n", "kube-system", "create", "token", p.spec.ServiceAccountName)
		must(t, errors.Join(os.WriteFile(filepath.Join(dir, "token"), []byte(strings.TrimSpace(token)), 0o600),
			os.WriteFile(filepath.Join(dir, "ca.crt"), c.api.Config.CAData, 0o644)))
		p.dirs["/var/run/secrets/kubernetes.io/serviceaccount"] = dir
	}
	return p
}
