package netnstests

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// bundle runs nodeproxy support-bundle on a node and returns the files in it by name.
func (c *cluster) bundle(t *testing.T, node string, env ...string) map[string]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	cmd := c.Command(t.Context(), node, c.Options().Binary, "support-bundle", "--instance", c.Netns(node), "--file", file)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "wrote "+file) {
		t.Fatalf("support-bundle: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	must(t, err)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the bundle: %v, %v", info.Mode(), err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	must(t, err)
	out := map[string]string{}
	for archive := tar.NewReader(unzipped); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		text, err := io.ReadAll(archive)
		must(t, err)
		_, name, _ := strings.Cut(h.Name, "/") // below one directory
		out[name] = string(text)
	}
}

// A bundle holds the state of agent and kernel in each mode, and of the kernel where no
// agent answers; nothing in it is a secret of the agent, and README.txt lists all of it.
func TestSupportBundle(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	apply(t, c.Lab, find("web"))
	kubeconfig, err := os.ReadFile(c.api.Kubeconfig())
	must(t, err)
	var secrets []string // of what the agent can read, and of what others leave on a node
	for _, line := range strings.Split(string(kubeconfig), "\n") {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key == "token" || strings.HasSuffix(key, "-data") {
			secrets = append(secrets, value)
		}
	}
	if len(secrets) < 2 {
		t.Fatalf("no secrets in the kubeconfig")
	}
	secrets = append(secrets, "env-hunter2", "rule-hunter2", "url-hunter2")
	want := map[string]map[string]string{
		lab.ModeEBPF: {
			"agent/status.json": `"mode": "ebpf"`, "agent/services.json": "default/web", "agent/backends.json": "10.244.1.11:7000",
			"agent/process.txt": "--ipvs-scheduler=https://REDACTED@", "agent/metrics.txt": `nodeproxy_build_info{`, "agent/verify.json": "[",
			"agent/configz.json": `"hostname-override":"node-a"`, "agent/healthz.json": `"healthy":true`, "agent/counts.json": "default/web",
			"kernel/features.json": "kernel", "kernel/system.txt": "Linux version", "kernel/sysctls.txt": "net/ipv4/ip_forward = 1",
			"kernel/pinned.txt": c.Netns("node-a"), "kernel/iptables-nft-save.txt": "password=REDACTED", "kernel/ip-address.txt": "192.168.77.11",
			"kernel/ip-route.txt": "10.244.", "kernel/mounts.txt": " bpf", "version.json": `"goVersion"`,
		},
		lab.ModeIPTables: {
			"agent/status.json": `"mode": "iptables"`, "agent/services.json": "default/web", "kernel/iptables-nft-save.txt": "NODEPROXY-SERVICES",
			"kernel/ip6tables-nft-save.txt": "NODEPROXY-SERVICES", "agent/verify.json": "[",
		},
	}
	check := func(t *testing.T, files, want map[string]string) {
		t.Helper()
		for name, text := range want {
			if content, ok := files[name]; !ok || !strings.Contains(content, text) {
				t.Errorf("%s has no %q: it is there %t; %s\n%.2000s", name, text, ok, files[name+".error"], content)
			}
			if !strings.Contains(files["README.txt"], name) {
				t.Errorf("README.txt does not name %s", name)
			}
		}
		for name, content := range files {
			for _, secret := range secrets {
				if strings.Contains(content, secret) {
					t.Errorf("%s holds a secret, %.12s...", name, secret)
				}
			}
		}
	}
	for node, mode := range map[string]string{"node-a": lab.ModeEBPF, "node-b": lab.ModeIPTables} {
		t.Run(mode, func(t *testing.T) {
			inPlace(t, c.Lab, node, "iptables", "-A", "INPUT", "-m", "comment", "--comment", "password=rule-hunter2", "-j", "ACCEPT")
			must(t, c.StartAgent(t.Context(), node, "--mode", mode))
			agent, _, err := c.Agent(node)
			must(t, errors.Join(err, c.StopAgent(node)))
			cmd := c.Command(t.Context(), node, append(agent.Argv, "--ipvs-scheduler=https://me:url-hunter2@example.com")...)
			cmd.Env = append(os.Environ(), "REGISTRY_PASSWORD=env-hunter2")
			must(t, cmd.Start())
			end := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
			defer end()
			if out, code := c.statusOn(t, node, "--wait", "20s"); code != 0 {
				t.Fatalf("not ready:\n%s", out)
			}
			check(t, c.bundle(t, node, "REGISTRY_PASSWORD=env-hunter2"), want[mode])
			end()
			files := c.bundle(t, node)
			check(t, files, map[string]string{"agent/status.json": `"dead": true`, "agent/services.json": "default/web", "kernel/iptables-nft-save.txt": "INPUT"})
			if why := files["agent/process.txt.error"]; !strings.Contains(why, "no agent answers") {
				t.Errorf("of the process it says %q", why)
			}
		})
	}
}

// statusOn runs nodeproxy status beside the agent of a node.
func (c *cluster) statusOn(t *testing.T, node string, args ...string) (out string, code int) {
	t.Helper()
	argv := append([]string{c.Options().Binary, "status", "--instance", c.Netns(node)}, args...)
	text, err := c.Command(t.Context(), node, argv...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(text), code
}
