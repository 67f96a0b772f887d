package deploy

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

func helm(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.Command(tool(t, "helm"), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.Stderr, err
	}
	return out, err
}

// render returns what the chart makes for a release.
func render(t *testing.T, release, namespace string, args ...string) []byte {
	t.Helper()
	out, err := helm(t, append([]string{"template", release, "chart", "--namespace", namespace}, args...)...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, out)
	}
	return out
}

// daemonSets returns those among objects, by name.
func daemonSets(objects []runtime.Object) map[string]*appsv1.DaemonSet {
	out := map[string]*appsv1.DaemonSet{}
	for _, o := range objects {
		if ds, ok := o.(*appsv1.DaemonSet); ok {
			out[ds.Name] = ds
		}
	}
	return out
}

// What the chart makes fits together as the manifests do, whatever the values.
func TestChart(t *testing.T) {
	for name, args := range map[string][]string{
		"defaults": nil,
		"values": {"--set", "apiServer.host=192.0.2.1,mode=ebpf,image.tag=v1,maxUnavailable=1,extraArgs={-v=1},imagePullSecrets={a}",
			"--set", "config.clusterCIDR=10.244.0.0/16,config.iptables.masqueradeAll=true,podAnnotations.a=b",
			"--set", "serviceAccount.name=other"},
	} {
		t.Run(name, func(t *testing.T) {
			out := render(t, "release", "somewhere", args...)
			check(t, decode(t, name, out))
			if name == "values" {
				for _, want := range []string{"192.0.2.1", "--mode=ebpf", "nodeproxy:v1", `"-v=1"`, "masqueradeAll: true"} {
					if !strings.Contains(string(out), want) {
						t.Errorf("no %s in\n%s", want, out)
					}
				}
			}
		})
	}
	if out, err := helm(t, "lint", "--strict", "chart"); err != nil {
		t.Errorf("helm lint: %v\n%s", err, out)
	}
}

// kubeadm's ConfigMap is mounted where its config.conf says that its kubeconfig is, and
// no ConfigMap of our own is made.
func TestChartTakesAConfigMap(t *testing.T) {
	objects := decode(t, "chart", render(t, "release", "kube-system", "--set", "existingConfigMap=kube-proxy"))
	pod := daemonSets(objects)["release-nodeproxy"].Spec.Template.Spec
	for _, o := range objects {
		if _, ok := o.(*v1.ConfigMap); ok {
			t.Error("a ConfigMap of our own")
		}
	}
	mounted := slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m v1.VolumeMount) bool {
		return m.Name == "config" && m.MountPath == "/var/lib/kube-proxy"
	})
	named := slices.ContainsFunc(pod.Volumes, func(v v1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == "kube-proxy" })
	if !mounted || !named || !slices.Contains(pod.Containers[0].Args, "--config=/var/lib/kube-proxy/config.conf") {
		t.Errorf("the file is not where it is read: %+v", pod.Containers[0])
	}
}

// No tolerations mean none.
func TestChartWithoutTolerations(t *testing.T) {
	for _, args := range [][]string{nil, {"--set", "cleanup=true"}, {"--set", "canary.enabled=true"}} {
		args = append(args, "--set-json", "tolerations=[]")
		for name, ds := range daemonSets(decode(t, "chart", render(t, "release", "x", args...))) {
			if n := len(ds.Spec.Template.Spec.Tolerations); n > 0 {
				t.Errorf("%s has %d tolerations", name, n)
			}
		}
	}
}

// Two releases, of one name in two namespaces or of two names in one, share no object.
func TestChartReleasesAreApart(t *testing.T) {
	seen := map[string]string{}
	for _, release := range [][2]string{{"a", "one"}, {"a", "two"}, {"b", "one"}, {"nodeproxy", "one"}, {"nodeproxy-canary", "one"}} {
		for _, o := range decode(t, "chart", render(t, release[0], release[1])) {
			m, err := meta.Accessor(o)
			if err != nil {
				t.Fatal(err)
			}
			key := o.GetObjectKind().GroupVersionKind().Kind + " " + m.GetNamespace() + "/" + m.GetName()
			if before, twice := seen[key]; twice {
				t.Errorf("releases %s and %v both have %s", before, release, key)
			}
			seen[key] = release[0] + " in " + release[1]
			if binding, ok := o.(*rbacv1.ClusterRoleBinding); ok && binding.Subjects[0].Namespace != release[1] {
				t.Errorf("%s is bound to an account in %s", key, binding.Subjects[0].Namespace)
			}
		}
	}
}

// A node runs the canary if it has the label, else the other, and never both; the two
// select different Pods.
func TestChartCanary(t *testing.T) {
	sets := daemonSets(decode(t, "chart", render(t, "release", "x", "--set",
		"canary.enabled=true,canary.nodeLabel=example.com/canary,canary.tag=v2,canary.mode=ebpf,mode=iptables,image.tag=v1,extraArgs={-v=1},canary.extraArgs={--xdp=native}")))
	want := map[string]struct {
		operator v1.NodeSelectorOperator
		image    string
		args     []string
	}{
		"release-nodeproxy":        {v1.NodeSelectorOpDoesNotExist, "nodeproxy:v1", []string{"--mode=iptables", "-v=1"}},
		"release-nodeproxy-canary": {v1.NodeSelectorOpExists, "nodeproxy:v2", []string{"--mode=ebpf", "-v=1", "--xdp=native"}},
	}
	if len(sets) != len(want) {
		t.Fatalf("%d DaemonSets", len(sets))
	}
	for name, w := range want {
		pod := sets[name].Spec.Template.Spec
		where := pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
		if len(where) != 1 || len(where[0].MatchExpressions) != 1 || where[0].MatchExpressions[0].Key != "example.com/canary" ||
			where[0].MatchExpressions[0].Operator != w.operator {
			t.Errorf("%s runs on %+v", name, where)
		}
		if pod.Containers[0].Image != w.image {
			t.Errorf("%s runs %s", name, pod.Containers[0].Image)
		}
		for _, arg := range w.args {
			if !slices.Contains(pod.Containers[0].Args, arg) {
				t.Errorf("%s has no %s", name, arg)
			}
		}
	}
	if a, b := sets["release-nodeproxy"].Spec.Selector.MatchLabels, sets["release-nodeproxy-canary"].Spec.Selector.MatchLabels; a["app.kubernetes.io/component"] == b["app.kubernetes.io/component"] {
		t.Errorf("both select %v", a)
	}
}

// With cleanup there is no agent, and nothing else that would stay.
func TestChartCleanup(t *testing.T) {
	objects := decode(t, "chart", render(t, "release", "x", "--set", "cleanup=true,nodeSelector.some=where,canary.enabled=true,podMonitor.enabled=true,prometheusRule.enabled=true,grafanaDashboard.enabled=true"))
	ds := daemonSets(objects)["release-nodeproxy-cleanup"]
	if len(objects) != 1 || ds == nil {
		t.Fatalf("%d objects, not a DaemonSet alone", len(objects))
	}
	if s := ds.Spec.Template.Spec.NodeSelector; len(s) != 1 || s["kubernetes.io/os"] != "linux" {
		t.Errorf("it cleans nodes with %v only: agents may have been elsewhere", s)
	}
	checkProfile(t, &ds.Spec.Template.Spec)
	c := ds.Spec.Template.Spec.InitContainers[1]
	if !slices.Equal(c.Args, []string{"cleanup"}) || c.SecurityContext.Privileged != nil || !ds.Spec.Template.Spec.HostNetwork {
		t.Errorf("cleanup runs %+v", c)
	}
}

// Under another profile than the program's own, nothing is written onto the node, and
// kubelets with a directory of their own find theirs there.
func TestChartSeccompProfile(t *testing.T) {
	for _, set := range []string{"seccompProfile.type=Unconfined", "seccompProfile.type=RuntimeDefault", "seccompProfile.localhostProfile=profiles/mine.json"} {
		for _, cleanup := range []string{"false", "true"} {
			for name, ds := range daemonSets(decode(t, "chart", render(t, "release", "x", "--set", set+",cleanup="+cleanup))) {
				pod := ds.Spec.Template.Spec
				if strings.Contains(pod.String(), "seccomp-profile") || slices.ContainsFunc(pod.Volumes, func(v v1.Volume) bool { return v.Name == "seccomp" }) {
					t.Errorf("%s, %s: the program's own profile is installed", set, name)
				}
				c := slices.Concat(pod.InitContainers, pod.Containers)[0]
				if p := c.SecurityContext.SeccompProfile; (p.LocalhostProfile != nil) != (p.Type == v1.SeccompProfileTypeLocalhost) || !strings.HasSuffix(set, string(p.Type)) && !strings.HasSuffix(set, "mine.json") {
					t.Errorf("%s, %s: %+v", set, name, p)
				}
			}
		}
	}
	out := string(render(t, "release", "x", "--set", "kubeletDir=/var/lib/k0s/kubelet"))
	if !strings.Contains(out, "hostPath: {path: /var/lib/k0s/kubelet/seccomp,") || strings.Contains(out, "{path: /var/lib/kubelet") {
		t.Errorf("the kubelet's directory is not asked for:\n%s", out)
	}
}

// An image's digest comes before its tag.
func TestChartDigest(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	ds := daemonSets(decode(t, "chart", render(t, "release", "x", "--set", "image.digest="+digest+",image.tag=v1")))["release-nodeproxy"]
	if got := ds.Spec.Template.Spec.Containers[0].Image; got != "nodeproxy@"+digest {
		t.Errorf("image %s", got)
	}
}

// What is mistyped is refused with its name, in place of being passed over.
func TestChartRefusesWrongValues(t *testing.T) {
	for _, bad := range []struct{ set, named string }{
		{"mode=nft", "/mode"}, {"moed=ebpf", "moed"}, {"image.tga=v1", "tga"}, {"tolerations=none", "/tolerations"},
		{"canary.enabled=maybe", "/canary/enabled"}, {"canary.label=x", "label"}, {"maxUnavailable=0", "/maxUnavailable"},
		{"maxUnavailable=half", "/maxUnavailable"}, {"extraArgs={v}", "/extraArgs/0"}, {"config.kind=X", "/config"},
		{"image.digest=sha256:12", "/image/digest"}, {"podMonitor.interval=soon", "/podMonitor/interval"},
		{"healthPort=99999", "/healthPort"}, {"apiServer.port=https", "/apiServer/port"}, {"seccompProfile.type=none", "/seccompProfile"},
		{"kubeletDir=somewhere", "/kubeletDir"},
	} {
		out, err := helm(t, "template", "release", "chart", "--set", bad.set)
		if err == nil || !strings.Contains(string(out), bad.named) {
			t.Errorf("%s: %v\n%s", bad.set, err, out)
		}
	}
}
