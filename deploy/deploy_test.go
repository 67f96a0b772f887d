package deploy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/nodeproxy/nodeproxy/deploy/seccomp"
)

// decode reads manifests into the API's types; a field that the API does not
// know is an error.
func decode(t *testing.T, name string, data []byte) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	docs := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data)))
	var out []runtime.Object
	for {
		buf := make([]byte, 1<<20)
		n, err := docs.Read(buf)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(buf[:n])) == 0 {
			continue
		}
		obj, _, err := decoder.Decode(buf[:n], nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, buf[:n])
		}
		out = append(out, obj)
	}
}

// manifests are those of the directory, all together.
func manifests(t *testing.T) (out []runtime.Object) {
	t.Helper()
	files, err := filepath.Glob("manifests/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, decode(t, f, data)...)
	}
	return out
}

// check looks at what must fit together.
func check(t *testing.T, objects []runtime.Object) {
	t.Helper()
	var account, configMap string
	var ds *appsv1.DaemonSet
	var binding *rbacv1.ClusterRoleBinding
	var role *rbacv1.ClusterRole
	for _, o := range objects {
		switch o := o.(type) {
		case *v1.ServiceAccount:
			account = o.Namespace + "/" + o.Name
		case *v1.ConfigMap:
			configMap = o.Name
		case *appsv1.DaemonSet:
			ds = o
		case *rbacv1.ClusterRoleBinding:
			binding = o
		case *rbacv1.ClusterRole:
			role = o
		}
	}
	if ds == nil || binding == nil || role == nil || account == "" || configMap == "" {
		t.Fatalf("something is missing among %d objects", len(objects))
	}
	pod := ds.Spec.Template.Spec
	if got := ds.Namespace + "/" + pod.ServiceAccountName; got != account || binding.RoleRef.Name != role.Name ||
		binding.Subjects[0].Namespace+"/"+binding.Subjects[0].Name != account {
		t.Errorf("DaemonSet of %s, ServiceAccount %s, binding %+v", got, account, binding)
	}
	for key, value := range ds.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[key] != value {
			t.Errorf("the selector wants %s=%s of Pods that have %v", key, value, ds.Spec.Template.Labels)
		}
	}
	for _, r := range role.Rules {
		for _, verb := range r.Verbs {
			if verb == "*" || !slices.Contains(r.Resources, "events") && !slices.Contains([]string{"list", "watch"}, verb) {
				t.Errorf("may %s %v", verb, r.Resources)
			}
		}
	}
	c := pod.Containers[0]
	if !pod.HostNetwork || c.SecurityContext.Privileged != nil || !slices.Contains(c.SecurityContext.Capabilities.Drop, "ALL") {
		t.Errorf("host network %v, security context %+v", pod.HostNetwork, c.SecurityContext)
	}
	volumes := map[string]v1.Volume{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
		if v.ConfigMap != nil && v.ConfigMap.Name != configMap {
			t.Errorf("the configuration is in %s, and the ConfigMap is %s", v.ConfigMap.Name, configMap)
		}
	}
	if c.LivenessProbe == nil || c.ReadinessProbe == nil {
		t.Error("a probe is missing")
	}
	checkProfile(t, &pod)
	for _, m := range slices.Concat(pod.InitContainers[0].VolumeMounts, c.VolumeMounts) {
		if _, ok := volumes[m.Name]; !ok {
			t.Errorf("no volume %s", m.Name)
		}
		delete(volumes, m.Name)
	}
	if len(volumes) > 0 {
		t.Errorf("volumes that nothing mounts: %v", volumes)
	}
}

// checkProfile wants what needs capabilities to run under the profile that a container
// before it has written where a kubelet looks, and all others under the runtime's own.
func checkProfile(t *testing.T, pod *v1.PodSpec) {
	t.Helper()
	installed := false
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		profile := c.SecurityContext.SeccompProfile
		if len(c.SecurityContext.Capabilities.Add) == 0 {
			installed = installed || slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--install=") })
			if profile == nil || profile.Type != v1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s runs under %+v", c.Name, profile)
			}
			continue
		}
		if profile == nil || profile.Type != v1.SeccompProfileTypeLocalhost || *profile.LocalhostProfile != seccomp.FileName || !installed {
			t.Errorf("%s runs under %+v, installed: %v", c.Name, profile, installed)
		}
	}
	if !slices.ContainsFunc(pod.Volumes, func(v v1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == "/var/lib/kubelet/seccomp" }) {
		t.Error("the kubelet's directory of profiles is not mounted")
	}
}

func TestManifestsFitTogether(t *testing.T) { check(t, manifests(t)) }

// The agents' Pods of the manifests and of the chart are alike, but for names: who changes
// the one shall not forget the other.
func TestManifestsAndChartAreAlike(t *testing.T) {
	pod := func(objects []runtime.Object) v1.PodSpec {
		for _, o := range objects {
			if ds, ok := o.(*appsv1.DaemonSet); ok {
				spec := ds.Spec.Template.Spec
				spec.Containers[0].Args = slices.DeleteFunc(spec.Containers[0].Args, func(a string) bool { return strings.HasPrefix(a, "--mode=") })
				return spec
			}
		}
		t.Fatal("no DaemonSet")
		return v1.PodSpec{}
	}
	plain := pod(manifests(t))
	if diff := cmp.Diff(plain, pod(decode(t, "chart", render(t, "nodeproxy", "kube-system")))); diff != "" {
		t.Errorf("agents (-manifests +chart):\n%s", diff)
	}
	data, err := os.ReadFile("cleanup/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Its Pod mounts what the agent does, but for what only a running one needs.
	cleanup := pod(decode(t, "cleanup", data))
	checkProfile(t, &cleanup)
	for _, m := range cleanup.InitContainers[1].VolumeMounts {
		if !slices.ContainsFunc(plain.Containers[0].VolumeMounts, func(a v1.VolumeMount) bool { return cmp.Equal(a, m) }) {
			t.Errorf("cleanup mounts %+v, the agent does not", m)
		}
	}
}

func TestUnitIsWellFormed(t *testing.T) {
	unit, err := os.ReadFile("nodeproxy.service")
	if err != nil {
		t.Fatal(err)
	}
	// systemd looks for the program, which is not installed here.
	path := filepath.Join(t.TempDir(), "nodeproxy.service")
	if err := os.WriteFile(path, bytes.ReplaceAll(unit, []byte("/usr/bin/nodeproxy"), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "nodeproxy.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// tool is a program that `make test` has built; a test that is run alone builds
// it.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("NODEPROXY_KUBE_BIN")
	if dir == "" {
		run(t, "..", "make", name)
		dir = filepath.Join("..", "bin", "kube")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDebianPackage makes the package, as make deb does, and looks at what is in
// it; the program there runs.
func TestDebianPackage(t *testing.T) {
	program := os.Getenv("NODEPROXY_BINARY")
	if program == "" {
		program = filepath.Join(t.TempDir(), "nodeproxy")
		run(t, "..", "go", "build", "-o", program, "./cmd/nodeproxy")
	}
	root := t.TempDir()
	here, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	run(t, root, program, "man", filepath.Join(root, "bin/man"))
	for _, shell := range []string{"bash", "zsh", "fish"} {
		writeFile(t, filepath.Join(root, "bin/completion/nodeproxy."+shell), run(t, root, program, "completion", shell))
	}
	for _, name := range []string{"nodeproxy.cdx.json", "THIRD_PARTY_LICENSES"} {
		writeFile(t, filepath.Join(root, "dist", "amd64", name), "{}")
	}
	if err := errors.Join(os.Symlink(filepath.Join(here, "deploy"), filepath.Join(root, "deploy")),
		os.Symlink(program, filepath.Join(root, "dist", "amd64", "nodeproxy"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "nfpm"), "package", "-f", "deploy/nfpm.yaml", "-p", "deb", "-t", "dist/")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "VERSION=1.2.3", "ARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nfpm: %v\n%s", err, out)
	}
	deb := filepath.Join(root, "dist", "nodeproxy_1.2.3_amd64.deb")
	if got := run(t, root, "dpkg-deb", "--field", deb, "Package", "Version", "Depends"); got != "Package: nodeproxy\nVersion: 1.2.3\nDepends: iptables\n" {
		t.Errorf("fields:\n%s", got)
	}
	run(t, root, "dpkg-deb", "--extract", deb, filepath.Join(root, "installed"))
	for _, path := range []string{"lib/systemd/system/nodeproxy.service", "etc/nodeproxy/manifests", "usr/share/man/man8/nodeproxy-run.8"} {
		if _, err := os.Stat(filepath.Join(root, "installed", path)); err != nil {
			t.Error(err)
		}
	}
	if got := run(t, root, filepath.Join(root, "installed/usr/bin/nodeproxy"), "version"); !strings.HasPrefix(got, "nodeproxy") {
		t.Errorf("the program says %q", got)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
