package service_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/service"
)

var machine = []netip.Addr{addr("127.0.0.1"), addr("::1"), addr("192.168.0.2"), addr("192.168.1.2"), addr("2001:db8::1"), addr("fe80::1")}

// docs/kube-proxy.md, "Addresses of node ports".
func TestNodePortAddresses(t *testing.T) {
	list := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, addr(a))
		}
		return out
	}
	for _, c := range []struct {
		flag string
		want [2]service.NodePortAddresses
	}{
		{"", [2]service.NodePortAddresses{{All: true, Loopback: true}, {All: true, Loopback: true}}},
		{"all", [2]service.NodePortAddresses{{All: true, Loopback: true}, {All: true, Loopback: true}}},
		{"primary", [2]service.NodePortAddresses{{Addrs: list("192.168.0.2")}, {Addrs: list("2001:db8::1")}}},
		{"localhost", [2]service.NodePortAddresses{{Loopback: true}, {Loopback: true}}},
		{"primary,localhost", [2]service.NodePortAddresses{{Addrs: list("192.168.0.2"), Loopback: true}, {Addrs: list("2001:db8::1"), Loopback: true}}},
		{"192.168.0.0/16", [2]service.NodePortAddresses{{Addrs: list("192.168.0.2", "192.168.1.2")}, {All: true, Loopback: true}}},
		{"192.168.1.0/24,2001:db8::/32", [2]service.NodePortAddresses{{Addrs: list("192.168.1.2")}, {Addrs: list("2001:db8::1")}}},
		{"10.0.0.0/8", [2]service.NodePortAddresses{{}, {All: true, Loopback: true}}},
		{"0.0.0.0/0", [2]service.NodePortAddresses{{All: true, Loopback: true}, {All: true, Loopback: true}}},
	} {
		opts := service.Options{LocalhostNodePorts: true}
		if c.flag != "" {
			opts.NodePortAddresses = strings.Split(c.flag, ",")
		}
		cfg, err := opts.Config(nil, service.Host{Addresses: machine})
		if err != nil {
			t.Errorf("%q: %v", c.flag, err)
			continue
		}
		if diff := cmp.Diff(c.want, cfg.Facts.NodePorts, byValue); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.flag, diff)
		}
	}
}

// A family of which no primary address is known carries no node ports then,
// instead of carrying them everywhere.
func TestPrimaryOfAFamilyThatTheNodeLacks(t *testing.T) {
	cfg, err := service.Options{NodePortAddresses: []string{"primary"}}.Config(nil, service.Host{Addresses: []netip.Addr{addr("192.168.0.2"), addr("fe80::1")}})
	if err != nil {
		t.Fatal(err)
	}
	if six := cfg.Facts.NodePorts[service.IPv6]; six.All || len(six.Addrs) > 0 {
		t.Errorf("IPv6 node ports on %+v", six)
	}
}

func TestPrimaryAddressComesFromTheBestSource(t *testing.T) {
	node := &service.Node{Addresses: []netip.Addr{addr("192.168.1.2")}}
	for _, c := range []struct {
		name string
		opts service.Options
		node *service.Node
		want string
	}{
		{"the flag", service.Options{NodeIPs: []netip.Addr{addr("192.168.7.7")}}, node, "192.168.7.7"},
		{"the Node", service.Options{}, node, "192.168.1.2"},
		{"the machine", service.Options{}, nil, "192.168.0.2"},
	} {
		cfg, err := c.opts.Config(c.node, service.Host{Addresses: machine})
		if err != nil || cfg.NodeIPs[service.IPv4] != addr(c.want) {
			t.Errorf("%s: %v, %v; want %s", c.name, cfg.NodeIPs[service.IPv4], err, c.want)
		}
		if cfg.NodeIPs[service.IPv6] != addr("2001:db8::1") { // never the link-local one
			t.Errorf("%s: IPv6 %v", c.name, cfg.NodeIPs[service.IPv6])
		}
	}
}

func TestLocalDetection(t *testing.T) {
	cluster, pod := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.244.1.0/24")
	node := &service.Node{PodCIDRs: []netip.Prefix{pod}}
	for _, c := range []struct {
		name string
		opts service.Options
		node *service.Node
		want service.PodDetector
	}{
		{"cluster CIDR", service.Options{ClusterCIDRs: []netip.Prefix{cluster}}, node, service.PodDetector{CIDR: cluster}},
		{"cluster CIDR unknown", service.Options{}, node, service.PodDetector{CIDR: pod}},
		{"nothing known", service.Options{}, nil, service.PodDetector{}},
		{"node CIDR", service.Options{DetectLocalMode: service.DetectNodeCIDR, ClusterCIDRs: []netip.Prefix{cluster}}, node, service.PodDetector{CIDR: pod}},
		{"bridge", service.Options{DetectLocalMode: service.DetectBridgeInterface, BridgeInterface: "cni0"}, node, service.PodDetector{Interface: "cni0"}},
		{"prefix", service.Options{DetectLocalMode: service.DetectInterfaceNamePrefix, InterfaceNamePrefix: "veth"}, node, service.PodDetector{InterfacePrefix: "veth"}},
	} {
		cfg, err := c.opts.Config(c.node, service.Host{Addresses: machine})
		if err != nil || cfg.Facts.Pods[service.IPv4] != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, cfg.Facts.Pods[service.IPv4], err, c.want)
		}
	}
}

func TestWrongOptionsSayWhatToDo(t *testing.T) {
	for flag, opts := range map[string]service.Options{
		"--nodeport-addresses":        {NodePortAddresses: []string{"192.168.0.1"}},
		"--detect-local-mode":         {DetectLocalMode: "Magic"},
		"--pod-bridge-interface":      {DetectLocalMode: service.DetectBridgeInterface},
		"--pod-interface-name-prefix": {DetectLocalMode: service.DetectInterfaceNamePrefix},
	} {
		if err := opts.Validate(); err == nil || !strings.Contains(err.Error(), flag) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line that names %s", opts, err, flag)
		}
	}
}
