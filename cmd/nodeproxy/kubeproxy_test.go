package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// configured returns the options after flags and a configuration file.
func configured(t *testing.T, config string, args ...string) (*runOptions, *kubeProxyConfig) {
	t.Helper()
	var o runOptions
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.register(f)
	path := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.Parse(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	c, err := o.takeConfig()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	return &o, c
}

// The file of a kubeadm cluster is taken as it is, and says nothing that does
// not apply.
func TestKubeadmsConfigurationIsTakenUnchanged(t *testing.T) {
	data, err := os.ReadFile("testdata/kubeadm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o, c := configured(t, string(data), "--hostname-override=node-a")
	if len(c.notes) > 0 {
		t.Errorf("notes: %v", c.notes)
	}
	if o.source != sourceKubernetes || o.client.Kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" || o.client.QPS != 5 || o.client.Burst != 10 {
		t.Errorf("source %s, client %+v", o.source, o.client)
	}
	if o.mode != modeAuto || o.hostname != "node-a" || o.minSyncPeriod != time.Second || o.syncPeriod != 30*time.Second ||
		!slices.Equal(o.clusterCIDRs, []string{"10.244.0.0/16", "fd00:10:244::/48"}) {
		t.Errorf("%+v", o)
	}
	k := o.kubeProxy
	if k.healthzBindAddress != "0.0.0.0:10256" || k.metricsBindAddress != "127.0.0.1:10249" || k.oomScoreAdj != -999 || k.conntrack.min != 131072 {
		t.Errorf("%+v", k)
	}
}

const header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

func TestConfigurationTakesThePlaceOfFlags(t *testing.T) {
	o, c := configured(t, header+`
clientConnection: {kubeconfig: /k, qps: 50, burst: 100, acceptContentTypes: application/json, contentType: application/json}
mode: iptables
hostnameOverride: other
bindAddress: 192.0.2.1
healthzBindAddress: 127.0.0.1:1
metricsBindAddress: "[::1]:2"
iptables: {masqueradeAll: true, masqueradeBit: 7, localhostNodePorts: false, syncPeriod: 1m, minSyncPeriod: 2s}
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0}
nodePortAddresses: [192.0.2.0/24, primary]
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 2h, tcpBeLiberal: true, udpTimeout: 5s}
oomScoreAdj: -10
enableProfiling: true
featureGates: {Some: true}
ipvs: {scheduler: rr}
nonsense: 1
`, "--mode=ebpf", "--hostname-override=node-a", "--cluster-cidr=10.0.0.0/8", "--sync-period=5s")
	for name, pair := range map[string][2]any{
		"mode":              {modeEBPF, o.mode}, // ours, and typed
		"hostname":          {"node-a", o.hostname},
		"sync period":       {time.Minute, o.syncPeriod},
		"min sync period":   {2 * time.Second, o.minSyncPeriod},
		"qps":               {float32(50), o.client.QPS},
		"burst":             {100, o.client.Burst},
		"accept":            {"application/json", o.client.AcceptContentTypes},
		"masquerade bit":    {7, o.masqueradeBit},
		"masquerade all":    {true, o.masqueradeAll},
		"localhost":         {false, o.localhostNodePorts},
		"detect":            {"BridgeInterface cni0", o.detectLocalMode + " " + o.bridgeInterface},
		"node ports":        {[]string{"192.0.2.0/24", "primary"}, o.nodePortAddresses},
		"health":            {"127.0.0.1:1", o.kubeProxy.healthzBindAddress},
		"metrics":           {"[::1]:2", o.kubeProxy.metricsBindAddress},
		"profiling":         {true, o.kubeProxy.profiling},
		"oom":               {-10, o.kubeProxy.oomScoreAdj},
		"established":       {2 * time.Hour, o.kubeProxy.conntrack.tcpEstablished},
		"max per core":      {0, o.kubeProxy.conntrack.maxPerCore},
		"liberal":           {true, o.kubeProxy.conntrack.tcpBeLiberal},
		"udp":               {5 * time.Second, o.kubeProxy.conntrack.udp},
		"cluster CIDR kept": {[]string{"10.0.0.0/8"}, o.clusterCIDRs}, // the file says nothing of it
	} {
		if diff := cmp.Diff(pair[0], pair[1]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	node, err := o.node()
	if err != nil || len(node.NodeIPs) != 1 || node.NodeIPs[0].String() != "192.0.2.1" {
		t.Errorf("node IPs %v: %v", node.NodeIPs, err)
	}
	for _, want := range []string{"nonsense", "ipvs (", "featureGates (", "--sync-period (--config says otherwise)"} {
		if !strings.Contains(joined(c.notes), want) {
			t.Errorf("no note of %s in %q", want, joined(c.notes))
		}
	}
}

func TestConfigurationOfAnotherModeLeavesTheChoice(t *testing.T) {
	o, c := configured(t, header+"clientConnection: {kubeconfig: /k}\nmode: nftables\nnftables: {syncPeriod: 7s, masqueradeAll: true}\niptables: {syncPeriod: 9s}\n")
	if o.mode != modeAuto || o.syncPeriod != 7*time.Second || !o.masqueradeAll || !slices.Equal(o.nodePortAddresses, []string{"primary"}) || len(c.notes) != 1 {
		t.Errorf("%+v, notes %v", o, c.notes)
	}
}

func TestWrongConfigurationIsRefused(t *testing.T) {
	for _, bad := range []string{"", "{", "apiVersion: v1\nkind: ConfigMap\n", header + "mode: [1]\n"} {
		if c, err := parseKubeProxyConfig([]byte(bad)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %+v, %v", bad, c, err)
		}
	}
}

// A file that changes ends the agent, to be started again; one that cannot be
// read does not.
func TestConfigurationIsWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.conf")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(header)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- watchConfig(ctx, path, []byte(header), slog.New(slog.DiscardHandler)) }()
	for _, harmless := range []string{header, "{broken"} {
		write(harmless)
		select {
		case err := <-result:
			t.Fatalf("%q ended the watch: %v", harmless, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
	write(header + "mode: iptables\n")
	if err := <-result; !errors.Is(err, errConfigChanged) {
		t.Errorf("the watch ended with %v", err)
	}
}

// Every flag of kube-proxy 1.37 is known under its name.
func TestKubeProxysFlagsAreAccepted(t *testing.T) {
	var args []string
	for _, name := range strings.Fields(`write-config-to=/x feature-gates=A=true kubeconfig=/x master=http://x
		kube-api-content-type=application/json kube-api-burst=1 kube-api-qps=1 hostname-override=x bind-address=::
		healthz-bind-address=[::]:1 metrics-bind-address=[::]:2 bind-address-hard-fail profiling
		show-hidden-metrics-for-version=1.36 proxy-mode=iptables iptables-masquerade-bit=1 masquerade-all
		iptables-localhost-nodeports=false iptables-sync-period=1m iptables-min-sync-period=1s ipvs-sync-period=1s
		ipvs-min-sync-period=1s ipvs-scheduler=rr ipvs-exclude-cidrs=10.0.0.0/8 ipvs-strict-arp ipvs-tcp-timeout=1s
		ipvs-tcpfin-timeout=1s ipvs-udp-timeout=1s detect-local-mode=NodeCIDR pod-bridge-interface=x
		pod-interface-name-prefix=x cluster-cidr=10.0.0.0/8 nodeport-addresses=primary oom-score-adj=0
		conntrack-max-per-core=1 conntrack-min=1 conntrack-tcp-timeout-established=1s conntrack-tcp-timeout-close-wait=1s
		conntrack-tcp-be-liberal conntrack-udp-timeout=1s conntrack-udp-timeout-stream=1s config-sync-period=1s
		healthz-port=1 metrics-port=1 logging-format=json v=2 vmodule=a=1 log-flush-frequency=1s`) {
		args = append(args, "--"+name)
	}
	o, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(ignored(o.flags)); n != len(ignoredFlags) {
		t.Errorf("%d of the flags without a meaning were noted, want %d: %v", n, len(ignoredFlags), ignored(o.flags))
	}
}

// An address without a port is served on at kube-proxy's port (kubernetes #53754).
func TestBindAddressesWithoutAPort(t *testing.T) {
	for in, want := range map[string]string{
		"0.0.0.0": "0.0.0.0:10256", "::": "[::]:10256", "[::1]": "[::1]:10256", "127.0.0.1": "127.0.0.1:10256",
		"127.0.0.1:1": "127.0.0.1:1", "[::]:2": "[::]:2", ":3": ":3", "": "",
	} {
		o := kubeProxyOptions{healthzBindAddress: in, metricsBindAddress: "::"}
		o.complete()
		if err := o.validate(); err != nil || o.healthzBindAddress != want || o.metricsBindAddress != "[::]:10249" {
			t.Errorf("%q: %q and %q, %v; want %q", in, o.healthzBindAddress, o.metricsBindAddress, err, want)
		}
	}
	for _, bad := range []string{"localhost", "1.2.3", "127.0.0.1:http"} {
		o := kubeProxyOptions{healthzBindAddress: bad}
		o.complete()
		if o.validate() == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestConntrackSysctls(t *testing.T) {
	o, err := parse(t, "--source=file:/tmp", "--conntrack-tcp-timeout-close-wait=0", "--conntrack-udp-timeout=30s")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]string{"nf_conntrack_max": "65536", "nf_conntrack_tcp_timeout_established": "432000",
		"nf_conntrack_tcp_timeout_close_wait": "60", "nf_conntrack_udp_timeout": "30", "nf_conntrack_tcp_be_liberal": "0"}
	for name, value := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := o.kubeProxy.conntrack.sysctls(8)[0].value; got != 8*32768 {
		t.Errorf("room for %d on 8 CPUs", got)
	}
	o.kubeProxy.conntrack.maxPerCore = 1 // --conntrack-min decides
	if !o.kubeProxy.conntrack.set(t.TempDir(), slog.New(slog.DiscardHandler)) {
		t.Error("nobody misses conntrack where it is not")
	}
	o.kubeProxy.conntrack.set(dir, slog.New(slog.DiscardHandler))
	files["nf_conntrack_max"], files["nf_conntrack_tcp_timeout_established"] = "131072", "86400"
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, want %s: %v", name, got, want, err)
		}
	}
}

// Unknown and repeated fields of a --config file are passed over, as kube-proxy's lenient
// decoding does, and all of them are named, each with its path.
func TestUnknownFieldsOfAConfigurationAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ text, note string }{
		"one":      {"clusterCIDRs: [10.0.0.0/8]\n", "clusterCIDRs (kubeproxy.config.k8s.io/v1alpha1 has no such fields)"},
		"several":  {"clusterCIDRs: []\niptables: {syncperiod: 7s, masqueradeAll: true}\nipvs: {x: 1}\n", "clusterCIDRs, iptables.syncperiod, ipvs.x (kubeproxy.config.k8s.io/v1alpha1 has no such fields)"},
		"repeated": {"mode: ebpf\nmode: iptables\n", `repeated fields, of which the last counts: line 5: key "mode" already set in map`},
	} {
		o, got := configured(t, header+"clientConnection: {kubeconfig: /k}\n"+c.text)
		if joined(got.notes) != c.note {
			t.Errorf("%s: notes %q, want %q", name, joined(got.notes), c.note)
		}
		if name == "several" && (!o.masqueradeAll || o.syncPeriod != 30*time.Second) {
			t.Errorf("what is known is not taken: %+v", o)
		}
		if name == "repeated" && o.mode != modeIPTables {
			t.Errorf("mode %s, want that of the last line", o.mode)
		}
	}
}

// A value that cannot be read is named with its field, in one line that says what to use.
func TestWrongValuesOfAConfigurationAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"iptables: {syncPeriod: '30'}\n":           `iptables.syncPeriod "30": use a duration such as 30s`,
		"iptables: {syncPeriod: 30}\n":             `iptables.syncPeriod 30: use a duration such as 30s`,
		"iptables: {masqueradeBit: x}\n":           `iptables.masqueradeBit "x": use a whole number`,
		"iptables: {masqueradeAll: 'yes'}\n":       `iptables.masqueradeAll "yes": use true or false`,
		"oomScoreAdj: [1]\n":                       `oomScoreAdj [1]: use a whole number`,
		"nodePortAddresses: primary\n":             `nodePortAddresses "primary": use a list`,
		"conntrack: 5\n":                           `conntrack 5: use fields and their values`,
		"clientConnection: {qps: fast}\n":          `clientConnection.qps "fast": use a number`,
		"conntrack: {tcpEstablishedTimeout: 1w}\n": `conntrack.tcpEstablishedTimeout "1w": use a duration`,
		"mode: [iptables]\n":                       `mode ["iptables"]: use a text`,
		"- a\n":                                    "it is no",
		"a: [\n":                                   "it is no YAML: ",
	} {
		_, err := parseKubeProxyConfig([]byte(header + text))
		if strings.HasPrefix(text, "- ") {
			_, err = parseKubeProxyConfig([]byte(text))
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "unmarshal") {
			t.Errorf("%q: %v, want one line with %s", text, err, want)
		}
	}
}
