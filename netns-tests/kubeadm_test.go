package netnstests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// kubernetesVersion is that of the tools in bin/kube; see netns-tests/kube/go.mod.
const kubernetesVersion = "v1.37.2"

// kubeadmHost is the root file system of a control-plane node, as far as kubeadm reads it.
type kubeadmHost struct {
	*cluster
	root string
}

// newKubeadmHost makes node-a a control-plane node of kubeadm's in the API server: with
// kubeadm's own ConfigMaps, uploaded by kubeadm, and the mirror Pod of an API server.
func newKubeadmHost(t *testing.T, c *cluster) *kubeadmHost {
	t.Helper()
	h := &kubeadmHost{c, t.TempDir()}
	etc := filepath.Join(h.root, "etc", "kubernetes")
	must(t, os.MkdirAll(etc, 0o755))
	admin, err := clientcmd.LoadFromFile(c.api.AdminKubeconfig())
	must(t, err)
	must(t, clientcmd.WriteToFile(*admin, filepath.Join(etc, "admin.conf")))
	for _, user := range admin.AuthInfos {
		user.Impersonate = "system:node:node-a"
	}
	must(t, clientcmd.WriteToFile(*admin, filepath.Join(etc, "kubelet.conf")))
	endpoint := strings.TrimPrefix(c.api.Config.Host, "https://")
	address, port, _ := strings.Cut(endpoint, ":")
	must(t, os.WriteFile(filepath.Join(h.root, "kubeadm.yaml"), fmt.Appendf(nil, `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %s, bindPort: %s}
nodeRegistration: {name: node-a, criSocket: "unix:///run/containerd/containerd.sock"}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %s
controlPlaneEndpoint: %s
networking: {podSubnet: "%s,%s", serviceSubnet: "10.96.0.0/16,fd00:10:96::/112"}
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
`, address, port, kubernetesVersion, endpoint, lab.ClusterCIDRs[0], lab.ClusterCIDRs[1]), 0o644))
	c.mustKubectl(t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: kube-apiserver-node-a
  namespace: kube-system
  labels: {component: kube-apiserver, tier: control-plane}
  annotations: {kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: "%s"}
spec: {nodeName: node-a, containers: [{name: kube-apiserver, image: "registry.k8s.io/kube-apiserver:%s"}]}
`, endpoint, kubernetesVersion), "apply", "-f", "-")
	h.kubeadm(t, "init", "phase", "upload-config", "all", "--config", "/kubeadm.yaml")
	return h
}

// kubeadm runs it on the control-plane node.
func (h *kubeadmHost) kubeadm(t *testing.T, args ...string) string {
	t.Helper()
	argv := append([]string{filepath.Join(kubeBinaries(t), "kubeadm"), "--rootfs", h.root}, args...)
	out, err := h.Command(t.Context(), "control-plane", argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubeadm %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// upgradeAddon is what kubeadm upgrade apply does to kube-proxy.
func (h *kubeadmHost) upgradeAddon(t *testing.T, args ...string) string {
	t.Helper()
	return h.kubeadm(t, append([]string{"upgrade", "apply", "phase", "addon", "kube-proxy", kubernetesVersion}, args...)...)
}

// sparesNodes reports whether kube-proxy's DaemonSet leaves out the nodes that have been
// given to nodeproxy.
func (h *kubeadmHost) sparesNodes(t *testing.T) bool {
	t.Helper()
	var ds appsv1.DaemonSet
	must(t, json.Unmarshal([]byte(h.mustKubectl(t, "", "-n", "kube-system", "get", "daemonset", "kube-proxy", "-o", "json")), &ds))
	return !selects(&ds.Spec.Template.Spec, map[string]string{"kubernetes.io/os": "linux", "nodeproxy.io/proxy": "nodeproxy"})
}

// kubeadm writes kube-proxy's DaemonSet and ConfigMap as the guide says, and an upgrade
// takes the guide's patch away again, unless it is given it, or is told that kube-proxy is
// no longer kubeadm's. nodeproxy's own DaemonSet is left alone.
func TestKubeadmUpgrade(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	h := newKubeadmHost(t, c)
	h.kubeadm(t, "init", "phase", "addon", "kube-proxy", "--config", "/kubeadm.yaml")
	patches, err := filepath.Abs("../deploy/kubeadm/patches")
	must(t, err)
	must(t, os.CopyFS(filepath.Join(h.root, "patches"), os.DirFS(patches)))
	patch := func() {
		t.Helper()
		file := filepath.Join(patches, "kubeproxydaemonset+strategic.yaml")
		c.mustKubectl(t, "", "-n", "kube-system", "patch", "daemonset", "kube-proxy", "--patch-file", file)
	}
	if h.sparesNodes(t) {
		t.Error("kube-proxy leaves nodes out before it is told to")
	}
	patch()
	if !h.sparesNodes(t) {
		t.Error("with the patch, kube-proxy takes nodeproxy's nodes")
	}
	ours := c.mustKubectl(t, "", "-n", "kube-system", "get", "daemonset", "nodeproxy", "-o", "json")

	// The file that nodeproxy reads too stays as its owner wrote it.
	config := func() string {
		return c.mustKubectl(t, "", "-n", "kube-system", "get", "configmap", "kube-proxy", "-o", "jsonpath={.data}")
	}
	changed := strings.Replace(config(), "mode: iptables", "mode: nftables", 1)
	c.mustKubectl(t, "", "-n", "kube-system", "patch", "configmap", "kube-proxy", "--type=merge", "-p", `{"data":`+changed+`}`)

	h.upgradeAddon(t)
	if h.sparesNodes(t) {
		t.Error("an upgrade keeps the patch by itself: the guide says that it does not")
	}
	if got := config(); got != changed {
		t.Errorf("an upgrade changes kube-proxy's ConfigMap to\n%s\nfrom\n%s", got, changed)
	}
	if out := h.upgradeAddon(t, "--patches", "/patches"); !h.sparesNodes(t) {
		t.Errorf("an upgrade with --patches loses the patch:\n%s", out)
	}

	// kubeadm is told that kube-proxy is not its own any more: it may even be gone.
	disabled := c.mustKubectl(t, "", "-n", "kube-system", "get", "configmap", "kubeadm-config", "-o", "jsonpath={.data.ClusterConfiguration}")
	text, err := json.Marshal(map[string]any{"data": map[string]string{"ClusterConfiguration": strings.Replace(disabled, "proxy: {}", "proxy:\n  disabled: true", 1)}})
	must(t, err)
	c.mustKubectl(t, "", "-n", "kube-system", "patch", "configmap", "kubeadm-config", "--type=merge", "-p", string(text))
	c.mustKubectl(t, "", "-n", "kube-system", "delete", "daemonset", "kube-proxy")
	if out := h.upgradeAddon(t); !strings.Contains(out, "The addon is disabled") {
		t.Errorf("kubeadm says\n%s", out)
	}
	if out, err := c.tryKubectl(t, "", "-n", "kube-system", "get", "daemonset", "kube-proxy"); err == nil {
		t.Errorf("an upgrade brings kube-proxy back:\n%s", out)
	}
	if now := c.mustKubectl(t, "", "-n", "kube-system", "get", "daemonset", "nodeproxy", "-o", "json"); now != ours {
		t.Errorf("nodeproxy's DaemonSet was changed to\n%s", now)
	}
}
