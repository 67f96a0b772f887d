package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, args ...string) (*runOptions, error) {
	t.Helper()
	var o runOptions
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.register(f)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	_, err := o.node()
	return &o, err
}

// What a user typed wrong gets one line that names the flag and says what to do.
func TestWrongFlagsSayWhatToDo(t *testing.T) {
	source := "--source=file:/tmp"
	for want, args := range map[string][]string{
		"--source is missing":                              {},
		`--source "http://x": use kubernetes or file:PATH`: {"--source=http://x"},
		`--source "file:": use kubernetes or file:PATH`:    {"--source=file:"},
		"--source kubernetes needs --kubeconfig":           {"--source=kubernetes"},
		`--mode "magic": use iptables, ebpf or auto`:       {source, "--mode=magic"},
		`--iptables-backend "x": use auto, nft or legacy`:  {source, "--iptables-backend=x"},
		"--iptables-masquerade-bit 32: use 0 to 31":        {source, "--iptables-masquerade-bit=32"},
		`--terminate-sockets "x": use udp, all or none`:    {source, "--terminate-sockets=x"},
		"--sync-period 0s: use more than 0":                {source, "--sync-period=0s"},
		"--min-sync-period 1m0s: use 0 up to":              {source, "--min-sync-period=1m"},
		`--instance "a/b": use up to 40`:                   {source, "--instance=a/b"},
		`--node-ip "x": use an IP address`:                 {source, "--node-ip=x"},
		`--cluster-cidr "10.0.0.1": use a CIDR`:            {source, "--cluster-cidr=10.0.0.1"},
		`--nodeport-addresses "x": use a CIDR`:             {source, "--nodeport-addresses=x"},
		`--detect-local-mode "x": use ClusterCIDR`:         {source, "--detect-local-mode=x"},
	} {
		_, err := parse(t, args...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want one line with %q", args, err, want)
		}
	}
}

func TestKubeProxysNamesAreTaken(t *testing.T) {
	o, err := parse(t, "--source=file:/tmp", "--proxy-mode=iptables", "--node-name=Node-A", "--iptables-sync-period=7s",
		"--iptables-min-sync-period=2s", "--cluster-cidr=10.0.0.0/8,fd00::/48")
	if err != nil {
		t.Fatal(err)
	}
	node, err := o.node()
	if err != nil {
		t.Fatal(err)
	}
	if o.mode != "iptables" || node.NodeName != "node-a" || o.syncPeriod.Seconds() != 7 || o.minSyncPeriod.Seconds() != 2 || len(node.ClusterCIDRs) != 2 {
		t.Errorf("%+v, %+v", o, node)
	}
}

func TestVersionAndHelp(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--help"}, {"run", "--help"}, {"lab", "--help"}} {
		var out bytes.Buffer
		cmd := newRootCommand()
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		if err := cmd.Execute(); err != nil || !strings.Contains(out.String(), "nodeproxy") {
			t.Errorf("%v: %v: %q", args, err, out.String())
		}
	}
}

func TestFeatureTableSaysWhatStandsIn(t *testing.T) {
	features := []feature{
		{Name: "a", Present: true, Required: true}, {Name: "b", Fallback: "the slow way"}, {Name: "c", Required: true, Error: "no such thing"},
	}
	for output, want := range map[string]string{
		"": "a  yes\nb  no; instead: the slow way\nc  MISSING, and needed: no such thing\n", "yaml": "fallback: the slow way", "json": `"fallback": "the slow way"`,
	} {
		var out bytes.Buffer
		if err := printFeatures(&out, output, features); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("-o %q: %v:\n%s", output, err, out.String())
		}
	}
	if err := printFeatures(&bytes.Buffer{}, "xml", features); err == nil {
		t.Error("-o xml is taken")
	}
}
