package netnstests

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/deploy"
	"github.com/nodeproxy/nodeproxy/lab"
)

// agentPod is a Pod of deploy/ on a node of the lab: a container with the
// capabilities, mounts and PID namespace that the DaemonSet says, and no others.
type agentPod struct {
	spec      corev1.PodSpec
	container *corev1.Container
	// dirs are directories of the machine by where the container sees them, such as
	// what of a ConfigMap a kubelet writes.
	dirs map[string]string
	end  func() // ends what runs
}

func newAgentPod(t *testing.T) *agentPod {
	t.Helper()
	return podOfFile(t, "manifests/daemonset.yaml")
}

// podOfFile is the Pod of a DaemonSet in deploy/.
func podOfFile(t *testing.T, path string) *agentPod {
	t.Helper()
	data, err := deploy.Files.ReadFile(path)
	must(t, err)
	var ds appsv1.DaemonSet
	must(t, yaml.UnmarshalStrict(data, &ds))
	return podOf(t, &ds)
}

// podOf is the Pod of a DaemonSet: the container that programs the kernel, which is the
// agent's or the one that cleans up. The kubelet's directory is one of the test's own.
func podOf(t *testing.T, ds *appsv1.DaemonSet) *agentPod {
	t.Helper()
	p := &agentPod{spec: ds.Spec.Template.Spec, dirs: map[string]string{}}
	p.container = &p.spec.Containers[0]
	for i := range p.spec.InitContainers {
		if c := &p.spec.InitContainers[i]; len(c.SecurityContext.Capabilities.Add) > 0 {
			p.container = c
		}
	}
	for i := range p.spec.Volumes {
		if v := &p.spec.Volumes[i]; v.Name == "seccomp" {
			v.HostPath.Path = t.TempDir()
		}
	}
	return p
}

// seccompDir is where the kubelet looks for profiles; "" if the Pod brings none.
func (p *agentPod) seccompDir() string {
	for _, v := range p.spec.Volumes {
		if v.Name == "seccomp" {
			return v.HostPath.Path
		}
	}
	return ""
}

// runInit runs one of the containers that come before all others, with a program in
// place of the image's.
func (p *agentPod) runInit(t *testing.T, c *corev1.Container, program string) {
	t.Helper()
	init := &agentPod{spec: p.spec, container: c}
	argv := init.argv(t, init.command(program, ""))
	if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("container %s: %v\n%s", c.Name, err, out)
	}
}

// profile is the seccomp profile to run under, as a container runtime reads it: what the
// containers before have written; "" for none.
func (p *agentPod) profile(t *testing.T, program string) string {
	t.Helper()
	want := p.container.SecurityContext.SeccompProfile
	if want == nil || want.Type != corev1.SeccompProfileTypeLocalhost {
		return ""
	}
	for i := range p.spec.InitContainers {
		if c := &p.spec.InitContainers[i]; c.Name == p.container.Name {
			break
		}
		p.runInit(t, &p.spec.InitContainers[i], program)
	}
	return filepath.Join(p.seccompDir(), *want.LocalhostProfile)
}

// command is what the manifest runs, with a program in place of the image's.
func (p *agentPod) command(program, node string) []string {
	out := []string{program}
	for _, arg := range p.container.Args {
		out = append(out, strings.ReplaceAll(arg, "$(NODE_NAME)", node))
	}
	return out
}

// without leaves out a volume, or a capability.
func (p *agentPod) without(name string) *agentPod {
	p.container.VolumeMounts = slices.DeleteFunc(p.container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })
	add := &p.container.SecurityContext.Capabilities.Add
	*add = slices.DeleteFunc(*add, func(c corev1.Capability) bool { return string(c) == name })
	return p
}

// mounts is a script that gives the container at $root its volumes, as a container
// runtime does: each with what is mounted below it.
func (p *agentPod) mounts() string {
	var b strings.Builder
	ms := slices.SortedFunc(slices.Values(p.container.VolumeMounts), func(a, b corev1.VolumeMount) int { return cmp.Compare(a.MountPath, b.MountPath) })
	for _, m := range ms {
		i := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		host := p.spec.Volumes[i].HostPath
		if host == nil {
			continue // a ConfigMap's: in dirs, where it matters
		}
		make := "mkdir -p"
		if host.Type != nil && *host.Type == corev1.HostPathFileOrCreate {
			make = "touch"
			fmt.Fprintf(&b, "touch %s\n", host.Path)
		} else if host.Type != nil && *host.Type == corev1.HostPathDirectoryOrCreate {
			fmt.Fprintf(&b, "mkdir -p %s\n", host.Path)
		}
		how := map[bool]string{true: "rslave", false: "rprivate"}[m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer]
		fmt.Fprintf(&b, "if [ -e %[1]s ]; then [ -e $root%[2]s ] || %[3]s $root%[2]s; mount --rbind %[1]s $root%[2]s; mount --make-%[4]s $root%[2]s\n",
			host.Path, m.MountPath, make, how)
		if m.ReadOnly {
			fmt.Fprintf(&b, "mount -o remount,bind,ro $root%s\n", m.MountPath)
		}
		b.WriteString("fi\n")
	}
	for at, dir := range p.dirs {
		fmt.Fprintf(&b, "mkdir -p $root%[1]s; mount --bind %[2]s $root%[1]s; mount -o remount,bind,ro $root%[1]s\n", at, dir)
	}
	return b.String()
}

// argv runs a command in the container. Beside the manifest's volumes it sees those
// paths of the machine.
func (p *agentPod) argv(t *testing.T, command []string, paths ...string) []string {
	t.Helper()
	root := t.TempDir()
	var b strings.Builder
	fmt.Fprintf(&b, "set -eu; root=%s\nmount --make-rslave /; mount -t tmpfs tmpfs $root\n", root)
	// The image: Debian's tools, read-only.
	b.WriteString(`cp -a /etc $root/etc # volumes may be below it
for d in /bin /sbin /lib /lib64 /usr; do
	if [ -L $d ]; then cp -P $d $root$d; elif [ -d $d ]; then mkdir $root$d; mount --bind $d $root$d; mount -o remount,bind,ro $root$d; fi
done
mkdir -p $root/proc $root/dev $root/sys $root/tmp $root/run
mount -t proc proc $root/proc; mount --bind $root/proc/sys $root/proc/sys; mount -o remount,bind,ro $root/proc/sys
mount --rbind /dev $root/dev; mount --bind /sys $root/sys; mount -o remount,bind,ro $root/sys
`)
	b.WriteString(p.mounts())
	if profile := p.profile(t, command[0]); profile != "" {
		self, err := os.Executable()
		must(t, err)
		command = append([]string{self, "under-seccomp", profile}, command...)
		paths = append(paths, profile, command[3])
	}
	for _, path := range append(paths, command[0]) {
		make := "mkdir -p"
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			make = "mkdir -p $root" + filepath.Dir(path) + "; touch"
		}
		fmt.Fprintf(&b, "[ -e $root%[1]s ] || { %[2]s $root%[1]s; mount --rbind %[1]s $root%[1]s; }\n", path, make)
	}
	if ro := p.container.SecurityContext.ReadOnlyRootFilesystem; ro != nil && *ro {
		b.WriteString("mount -o remount,ro $root\n")
	}
	bounding := "-all"
	for _, c := range p.container.SecurityContext.Capabilities.Add {
		bounding += ",+" + strings.ToLower(string(c))
	}
	fmt.Fprintf(&b, "exec chroot $root setpriv --bounding-set=%s --inh-caps=-all \"$@\"\n", bounding)
	out := []string{"unshare", "--mount", "--propagation", "unchanged"}
	if !p.spec.HostPID {
		out = append(out, "--pid", "--fork", "--kill-child")
	}
	return slices.Concat(out, []string{"sh", "-c", b.String(), "sh"}, command)
}

// start starts the agent of a node in such a Pod, and returns what it writes, and
// whether it serves rather than has ended.
func (p *agentPod) start(t *testing.T, l *lab.Lab, node string, args ...string) (said *safeBuffer, serves bool) {
	t.Helper()
	cgroup, err := l.NodeCgroup(node)
	must(t, err)
	return p.run(t, l, node, slices.Concat([]string{l.Options().Binary, "run", "--source", "file:" + l.ManifestDir(), "--hostname-override", node,
		"--instance", l.Netns(node), "--mode", lab.ModeEBPF, "--cgroup", cgroup}, l.Options().AgentArgs, args))
}

// run runs a command in the Pod until the test ends, or [agentPod.end] is called.
// It returns what that writes, and whether an agent serves rather than has ended.
func (p *agentPod) run(t *testing.T, l *lab.Lab, node string, command []string) (said *safeBuffer, serves bool) {
	t.Helper()
	cmd := l.Command(t.Context(), node, p.argv(t, command, l.ManifestDir())...)
	said = new(safeBuffer)
	cmd.Stdout, cmd.Stderr = said, said
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	p.end = func() {
		_ = cmd.Process.Kill() // unshare, which kills its child
		<-ended
	}
	t.Cleanup(func() {
		if p.end(); t.Failed() {
			t.Logf("log of the Pod:\n%s", said.String())
		}
	})
	for deadline := time.Now().Add(4 * patience); !strings.Contains(said.String(), "msg=synced"); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return said, false
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("no first sync")
		}
	}
	return said, true
}
