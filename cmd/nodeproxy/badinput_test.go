package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/admin"
)

// badInputs are things that people type, with what the answer has to contain: the
// input, or what is missing, and what to do. FILE is a file that is no
// manifest, and DIR a directory.
var badInputs = []struct{ args, want string }{
	// Commands and resources.
	{"foo", `unknown command "foo": use `}, {"foo --bar", `unknown command "foo": use `}, {"statuss", `unknown command "statuss"`},
	{"get nodes", `unknown resource "nodes": use affinity, backends, flows or services`},
	{"get pods --instance X", `unknown resource "pods"`}, {"get nodes -o json", `unknown resource "nodes"`},
	{"lab foo", `unknown command "foo": use `}, {"lab foo --name x", `unknown command "foo"`},
	{"completion tcsh", `unknown command "tcsh": use bash, fish, powershell or zsh`},
	{"bench foo", `unknown command "foo": use `},
	// Arguments that are missing or too many.
	{"explain", "say where the packet goes: nodeproxy explain 10.96.0.10:80"}, {"port-forward", "forward to what? nodeproxy port-forward svc/web 8080:80"},
	{"port-forward svc/web", "which port? nodeproxy port-forward svc/web 8080:80"}, {"man", "say where to write them: nodeproxy man"},
	{"lab exec", "name a place and a command: nodeproxy lab exec"}, {"lab exec client", "name a place and a command"},
	{"lab exec client --name x", "name a command: nodeproxy lab exec client --"}, {"lab exec client --name", "--name needs a value"},
	{"lab exec moon -- true", `unknown place "moon": valid are client`}, {"bench report", "name a result file: nodeproxy bench report"},
	{"explain 10.96.0.1:80 10.96.0.2:80 x", `"x" is one argument too many`}, {"bench report a b", `"b" is one argument too many`},
	{"get services a b", `"b" is one argument too many`}, {"status now", `"now" is not expected: nodeproxy status takes no arguments`},
	{"run file:/tmp", `"file:/tmp" is not expected`}, {"version 1", `"1" is not expected`}, {"verify x", `"x" is not expected`},
	{"cleanup x", `"x" is not expected`}, {"check x", `"x" is not expected`}, {"watch x", `"x" is not expected`}, {"top x", `"x" is not expected`},
	{"support-bundle x", `"x" is not expected`}, {"support-bundle --file FILE", "is there already: name another"},
	{"support-bundle --file DIR/none/b.tgz", "no such file or directory): name a file in a directory that is there"}, {"support-bundle --instance a/b", `--instance "a/b"`},
	{"proxy x", `"x" is not expected`}, {"lab up x", `"x" is not expected`}, {"lab down x", `"x" is not expected`}, {"lab status x", `"x" is not expected`},
	{"lab demo x", `"x" is not expected`},
	// Flags.
	{"status --foo", "unknown flag --foo: see nodeproxy status --help"}, {"status -x", "unknown flag -x: see nodeproxy status --help"},
	{"run --instance", "--instance needs a value: use a string"}, {"status -o", "--output needs a value"},
	{"status -o xml", `--output "xml": use wide, json or yaml`}, {"get flows -o xml", `--output "xml"`}, {"version -o xml", `--output "xml"`},
	{"explain -o xml 10.0.0.1:80", `--output "xml"`}, {"top -o xml", `--output "xml"`}, {"check -o xml", `"xml": use `}, {"watch -o yaml", `--output "yaml": use json`},
	{"status --instance a/b", `--instance "a/b": use up to 40`}, {"get services --instance a/b", `--instance "a/b"`}, {"cleanup --instance ../x", `--instance "../x"`},
	{"watch --instance a/b", `--instance "a/b"`}, {"explain --instance a/b 10.0.0.1:80", `--instance "a/b"`}, {"top --instance a/b", `--instance "a/b"`},
	{"status --wait 5", `--wait "5": use a duration such as 30s`}, {"status --wait -5s", "--wait -5s: use 0 or more"},
	{"top --interval 0", "--interval 0s: use more than 0"}, {"top --interval -1s", "--interval -1s: use more than 0"}, {"top --interval 2", `--interval "2": use a duration`},
	{"top --sort size", `--sort "size": use connections, bytes, drops or name`},
	{"proxy --port 99999", `--port "99999": use a number from 0 to 65535`}, {"proxy --port x", `--port "x": use a number from 0 to 65535`},
	{"bench --services x", `--services "x": use whole numbers, such as 1,1000`}, {"bench --rounds x", `--rounds "x": use a whole number`},
	{"bench --slot 3", `--slot "3": use a duration`}, {"bench --rate x", `--rate "x": use a number`},
	{"lab up --mode wish", `unknown mode "wish": valid are iptables, ebpf`}, {"lab up --name NOT_VALID", `"NOT_VALID"`}, {"lab demo --mode wish", `unknown mode "wish"`},
	{"lab demo --source x", `--source "x": use file or kubernetes`}, {"lab status --name no-such", `there is no lab "no-such"`},
	{"lab down --name no-such", `there is no lab "no-such"`}, {"lab exec client --name no-such -- true", `there is no lab "no-such"`},
	// Services, addresses and ports.
	{"get services --service nope", `--service "nope": use NAMESPACE/NAME, such as default/web`}, {"get services a/b/c", `"a/b/c": use NAME or NAMESPACE/NAME`},
	{"get services -n x -A", "--namespace x and --all-namespaces: use one of them"}, {"get services web --service default/api", `"web" and --service default/api: name one Service`},
	{"get backends --service /x", `--service "/x"`}, {"get flows --service x/", `--service "x/"`},
	{"watch --service web", `--service "web": use NAMESPACE/NAME`}, {"watch --from x", `--from "x": use an IP address or a CIDR`},
	{"watch --to x", `--to "x": use an IP address, a CIDR, or ADDRESS:PORT`}, {"watch --from 10.0.0.0/33", `--from "10.0.0.0/33"`},
	{"explain web:80", `"web:80": use ADDRESS:PORT such as 10.96.0.10:80, or svc/`}, {"explain default/web:80", `"default/web:80": use ADDRESS:PORT`},
	{"explain svc/web", `"svc/web": use ADDRESS:PORT such as 10.96.0.10:80, or svc/[NAMESPACE/]NAME:PORT`}, {"explain svc/a/b/c:80", `"svc/a/b/c:80"`},
	{"explain 10.96.0.1", `"10.96.0.1": use ADDRESS:PORT`}, {"explain 10.96.0.1:99999", `"10.96.0.1:99999"`}, {"explain 10.96.0.1:80/ICMP", `protocol "ICMP": use TCP, UDP or SCTP`},
	{"explain --from x 10.96.0.1:80", `--from "x": use an IP address, pod NAMESPACE/NAME, or node`}, {"explain --from fd00::1 10.96.0.1:80", "fd00::1"},
	{"explain --from pod 10.96.0.1:80", "use explain [--from ADDRESS|pod NAMESPACE/NAME|node]"}, {"explain --from pod web 10.96.0.1:80", `"web": use NAMESPACE/NAME`},
	{"explain --interface nosuch 10.96.0.1:80", `--interface "nosuch": there is no such interface`},
	{"port-forward web 80", `"web": use svc/NAME or pod/NAME`}, {"port-forward web", `"web": use svc/NAME or pod/NAME`}, {"port-forward deploy/web 80", `"deploy/web": use svc/NAME`},
	{"port-forward svc/ 80", `"svc/": use svc/NAME`}, {"port-forward svc/web 80:x:y", `port "80:x:y": use [LOCAL:]PORT`}, {"port-forward svc/web 80/ICMP", `port "80/ICMP": use`},
	{"port-forward svc/web 99999:80", `port "99999:80": use`},
	// nodeproxy run.
	{"run", "--source is missing: use --source file:PATH"}, {"run --source http://x", `--source "http://x": use kubernetes or file:PATH`},
	{"run --source file:", `--source "file:": use kubernetes or file:PATH`}, {"run --source kubernetes", "--source kubernetes needs --kubeconfig or --master"},
	{"run --source file:DIR --mode magic", `--mode "magic": use iptables, ebpf or auto`}, {"run --source file:DIR --sync-period 30", `--sync-period "30": use a duration such as 30s`},
	{"run --source file:DIR --sync-period 0s", "--sync-period 0s: use more than 0"}, {"run --source file:DIR --min-sync-period 1h", "--min-sync-period 1h0m0s: use 0 up to"},
	{"run --source file:DIR --iptables-backend x", `--iptables-backend "x": use auto, nft or legacy`}, {"run --source file:DIR --terminate-sockets x", `--terminate-sockets "x": use`},
	{"run --source file:DIR --xdp x", `--xdp "x": use off, native or generic`}, {"run --source file:DIR --iptables-masquerade-bit 32", "--iptables-masquerade-bit 32: use 0 to 31"},
	{"run --source file:DIR --iptables-masquerade-bit x", `--iptables-masquerade-bit "x": use a whole number`}, {"run --source file:DIR --masquerade-all=x", `--masquerade-all "x": use true or false`},
	{"run --source file:DIR --node-ip x", `--node-ip "x": use an IP address`}, {"run --source file:DIR --cluster-cidr 10.0.0.1", `--cluster-cidr "10.0.0.1": use a CIDR`},
	{"run --source file:DIR --cluster-cidr 10.244.0.0/16,10.245.0.0/16", "10.244.0.0/16 and 10.245.0.0/16 are both IPv4; use one of each family"},
	{"run --source file:DIR --node-ip 10.0.0.1,10.0.0.2", "10.0.0.1 and 10.0.0.2 are both IPv4"}, {"run --source file:DIR --external-ip-cidrs x", `--external-ip-cidrs "x": use a CIDR`},
	{"run --source file:DIR --nodeport-addresses x", `--nodeport-addresses "x": use a CIDR`}, {"run --source file:DIR --detect-local-mode x", `--detect-local-mode "x": use ClusterCIDR`},
	{"run --source file:DIR --healthz-bind-address x", `--healthz-bind-address "x": use an IP address, or ADDRESS:PORT`}, {"run --source file:DIR --metrics-bind-address 1.2.3.4:x", `--metrics-bind-address "1.2.3.4:x"`},
	{"run --source file:DIR --bind-address x", `--bind-address "x": use an IP address`}, {"run --source file:DIR --log-format xml", `--log-format "xml": use text or json`},
	{"run --source file:DIR --oom-score-adj 5000", "--oom-score-adj 5000: use -1000 to 1000"}, {"run --source file:DIR --max-manifest-size 0", "--max-manifest-size 0: use more than 0"},
	{"run --config nosuch.yaml", "--config"}, {"run --config FILE", "use kubeproxy.config.k8s.io/v1alpha1"}, {"run --kubeconfig nosuch.conf", "nosuch.conf"},
	{"run --source file:DIR --instance a/b", `--instance "a/b"`}, {"verify --instance a/b", `--instance "a/b"`},
	{"status --instance nobody-has-this", "no agent answers"},
	// What operators met in the field (a review of every message), and its kind.
	{"lab demo --source kubernetes --kube-bin /nonexistent", `--kube-bin "/nonexistent": it holds no program etcd: make kube builds it`},
	{"watch --service nope/", `--service "nope/": use NAMESPACE/NAME`}, {"top --interval x", `--interval "x": use a duration`},
	{"validate", "name the manifests: nodeproxy validate"}, {"validate /nonexistent", "/nonexistent"}, {"validate DIR", "no *.yaml, *.yml or *.json file is in"},
	{"validate --max-manifest-size x FILE", `--max-manifest-size "x": use a whole number`}, {"port-forward svc/web x:80", `port "x:80": use [LOCAL:]PORT`},
	{"port-forward pod/ 80", `"pod/": use svc/NAME or pod/NAME`}, {"lab exec --name no-such client -- true", `there is no lab "no-such"`},
	{"lab exec client --name no-such true", `there is no lab "no-such"`}, {"bench --columns x", `unknown column "x": use some of bare`},
	{"bench --works x", `unknown work "x"`}, {"bench --paths x", `unknown path "x"`}, {"bench --source x", `source "x": use file or kubernetes`},
	{"bench --families 5", "family 5: use 4 or 6"}, {"bench --endpoints 7", "7 endpoints: use one of"}, {"bench report /nonexistent", "/nonexistent"},
	{"run --config WRONG", `iptables.syncPeriod "30": use a duration such as 30s`}, {"run --config BROKEN", "it is no YAML"}, {"run --config DIR", "--config"},
	{"run --source file:DIR --ebpf-max-flows 1", "--ebpf-max-flows 1: use 64 to 16777216"}, {"run --source file:DIR --ebpf-max-backends x", `--ebpf-max-backends "x": use a whole number`},
	{"lab agent foo", `unknown command "foo": use restart, start or stop`}, {"lab agent restart", "name a node: nodeproxy lab agent restart node-a"},
	{"lab agent stop pod-a1", `"pod-a1" is no node of a lab: use node-a or node-b`}, {"lab agent start node-a --mode x", `unknown mode "x"`},
	{"lab agent restart node-a --name no-such", `there is no lab "no-such"`}, {"lab up --source x", `--source "x": use file or kubernetes`},
	{"lab up --source kubernetes --kube-bin /nonexistent", `--kube-bin "/nonexistent": it holds no program etcd`},
	{"verify --source file:", `--source "file:": use kubernetes or file:PATH`}, {"run --source file:DIR --kube-api-qps x", `--kube-api-qps "x": use a number`},
	{"run --source file:DIR --conntrack-udp-timeout 5", `--conntrack-udp-timeout "5": use a duration`}, {"run --kubeconfig BROKEN", "read kubeconfig"},
}

// Whatever is typed wrong gets one line that names it and says what to do, and an
// exit code that is not 0.
func TestBadInputGetsOneLineThatHelps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	if len(badInputs) < 120 {
		t.Errorf("%d bad inputs, want 120", len(badInputs))
	}
	dir, binary := t.TempDir(), buildProgram(t)
	file := filepath.Join(dir, "file.yaml")
	if err := os.WriteFile(file, []byte("just: text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("FILE", file, "DIR", empty, "BROKEN", write("broken", "a: [\n"), "WRONG", write("wrong", header+"iptables: {syncPeriod: '30'}\n"))
	for _, input := range badInputs {
		out, errs, code := runProgram(t, binary, strings.Fields(replace.Replace(input.args))...)
		if code == 0 || strings.Count(errs, "\n") != 1 || out != "" || !strings.HasPrefix(errs, "nodeproxy: ") || !strings.Contains(errs, input.want) {
			t.Errorf("nodeproxy %s: exit code %d, want one line on standard error with %q:\n%s%s", input.args, code, input.want, errs, out)
		}
		for _, words := range []string{"strconv", "arg(s)", "unmarshal", "goroutine", "%!", "dial unix"} {
			if strings.Contains(errs, words) {
				t.Errorf("nodeproxy %s: %q are words of a library:\n%s", input.args, words, errs)
			}
		}
	}
}

// buildProgram builds nodeproxy, once for each test that asks.
func buildProgram(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "nodeproxy")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return binary
}

func runProgram(t *testing.T, binary string, args ...string) (out, errs string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait() // its code is what is asked for
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// Who is not root is told so in one line, whether an agent runs or not.
func TestOthersThanRootAreToldToBeRoot(t *testing.T) {
	binary := buildProgram(t)
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(binary); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&1 == 0 {
			if err := os.Chmod(dir, info.Mode().Perm()|0o055); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(admin.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(admin.Dir) // if it was not there before, and is empty
	name := fmt.Sprintf("np-root-%d", os.Getpid())
	agent, err := net.Listen("unix", admin.Socket(name))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := os.Chmod(admin.Socket(name), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"status --instance " + name, "status --instance np-nobody", "get flows --instance " + name, "watch --instance " + name,
		"explain --instance " + name + " 10.96.0.1:80", "verify --instance " + name, "top --instance " + name, "cleanup", "run --source file:" + t.TempDir(), "lab up", "lab down"} {
		cmd := exec.CommandContext(t.Context(), binary, strings.Fields(args)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "root") {
			t.Errorf("%s: %v, want one line with root:\n%s", args, err, out)
		}
	}
}

func TestListenErrorsAreSaidOnce(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := taken.Addr().String()
	_, err = net.Listen("tcp", at)
	if got, want := listenError(at, err).Error(), at+" is in use by another process: use --port"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	_, err = net.Listen("tcp", "192.0.2.1:1")
	if got := listenError("192.0.2.1:1", err).Error(); strings.Count(got, "192.0.2.1:1") != 1 {
		t.Errorf("the address is said twice: %s", got)
	}
}

// Every command that takes the agent's flags completes them.
func TestBindAddressesHaveDefaultPorts(t *testing.T) {
	o, err := parse(t, "--source=file:/tmp", "--healthz-bind-address=127.0.0.1", "--metrics-bind-address=::1")
	if err != nil || o.kubeProxy.healthzBindAddress != "127.0.0.1:10256" || o.kubeProxy.metricsBindAddress != "[::1]:10249" {
		t.Errorf("%+v, %v", o, err)
	}
}
