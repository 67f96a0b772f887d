package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// DetectLocalMode tells how a Pod's packets are told from others
// (kube-proxy's --detect-local-mode).
type DetectLocalMode string

// The modes of detection.
const (
	DetectClusterCIDR         DetectLocalMode = "ClusterCIDR"
	DetectNodeCIDR            DetectLocalMode = "NodeCIDR"
	DetectBridgeInterface     DetectLocalMode = "BridgeInterface"
	DetectInterfaceNamePrefix DetectLocalMode = "InterfaceNamePrefix"
)

// Options are what an operator says about the node, under kube-proxy's names.
type Options struct {
	NodeName            string
	NodeIPs             []netip.Addr   // override the Node object's; the first of each family counts
	ClusterCIDRs        []netip.Prefix // the first of each family counts
	DetectLocalMode     DetectLocalMode
	BridgeInterface     string
	InterfaceNamePrefix string
	// NodePortAddresses are CIDRs and the words primary, localhost and all;
	// empty means all.
	NodePortAddresses  []string
	LocalhostNodePorts bool // node ports on loopback, where NodePortAddresses covers it
	MasqueradeAll      bool
	// ExternalIPCIDRs limit which externalIPs are honoured; none means no limit.
	ExternalIPCIDRs []netip.Prefix
}

// Validate returns the first thing an operator has to mend, as one line.
func (o Options) Validate() error {
	switch o.DetectLocalMode {
	case DetectClusterCIDR, DetectNodeCIDR, "":
	case DetectBridgeInterface:
		if o.BridgeInterface == "" {
			return fmt.Errorf("--detect-local-mode %s needs --pod-bridge-interface", o.DetectLocalMode)
		}
	case DetectInterfaceNamePrefix:
		if o.InterfaceNamePrefix == "" {
			return fmt.Errorf("--detect-local-mode %s needs --pod-interface-name-prefix", o.DetectLocalMode)
		}
	default:
		return fmt.Errorf("--detect-local-mode %q: use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
			o.DetectLocalMode)
	}
	_, err := o.nodePortRanges([2]netip.Addr{})
	return err
}

// Config joins the options with the node's own object, which may be nil, and
// what the kernel says of the machine. It is pure; options that do not pass
// [Options.Validate] are an error.
//
// Where ClusterCIDR detection was asked for, or nothing was, and no cluster
// CIDR of a family is known, the Node's Pod CIDR of that family serves.
func (o Options) Config(node *Node, host Host) (Config, error) {
	if err := o.Validate(); err != nil {
		return Config{}, err
	}
	cfg := Config{NodeName: o.NodeName, MasqueradeAll: o.MasqueradeAll, ExternalIPs: o.ExternalIPCIDRs}
	var nodeAddrs []netip.Addr
	var podCIDRs []netip.Prefix
	if node != nil {
		cfg.Zone, nodeAddrs, podCIDRs = node.Zone, node.Addresses, node.PodCIDRs
	}
	cfg.Facts.Uplinks = host.Uplinks
	for _, family := range Families {
		cfg.Facts.Local[family] = withoutLoopback(unique(host.Addresses, family))
		cfg.Facts.LocalNetworks[family] = networksOf(host.Networks, family)
		cfg.NodeIPs[family] = primary(family, o.NodeIPs, nodeAddrs, cfg.Facts.Local[family])
		cfg.Facts.Pods[family] = o.podDetector(family, podCIDRs)
	}
	ranges, err := o.nodePortRanges(cfg.NodeIPs)
	if err != nil {
		return Config{}, err
	}
	for _, family := range Families {
		cfg.Facts.NodePorts[family] = o.nodePortAddresses(family, ranges[family], &cfg.Facts)
	}
	return cfg, nil
}

// primary is the first address of a family from the best source that has one.
// Of the machine's own addresses a link-local one is nobody's primary.
func primary(family Family, sources ...[]netip.Addr) netip.Addr {
	for _, addrs := range sources {
		for _, a := range addrs {
			if FamilyOf(a) == family && !a.IsLinkLocalUnicast() {
				return a
			}
		}
	}
	return netip.Addr{}
}

func (o Options) podDetector(family Family, podCIDRs []netip.Prefix) PodDetector {
	switch o.DetectLocalMode {
	case DetectBridgeInterface:
		return PodDetector{Interface: o.BridgeInterface}
	case DetectInterfaceNamePrefix:
		return PodDetector{InterfacePrefix: o.InterfaceNamePrefix}
	case DetectNodeCIDR:
		return PodDetector{CIDR: firstPrefix(podCIDRs, family)}
	}
	if cidr := firstPrefix(o.ClusterCIDRs, family); cidr.IsValid() {
		return PodDetector{CIDR: cidr}
	}
	return PodDetector{CIDR: firstPrefix(podCIDRs, family)}
}

func firstPrefix(prefixes []netip.Prefix, family Family) netip.Prefix {
	for _, p := range prefixes {
		if FamilyOf(p.Addr()) == family {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}

// nodePortRange is what NodePortAddresses says of one family.
type nodePortRange struct {
	mentioned bool // if not, every address of the family is accepted
	prefixes  []netip.Prefix
}

// nodePortRanges spells out the words in NodePortAddresses. A primary address
// that is not known (yet) stands for nothing.
func (o Options) nodePortRanges(nodeIPs [2]netip.Addr) (out [2]nodePortRange, err error) {
	add := func(p netip.Prefix) {
		r := &out[FamilyOf(p.Addr())]
		r.mentioned = true
		r.prefixes = append(r.prefixes, p.Masked())
	}
	for _, s := range o.NodePortAddresses {
		switch s = strings.TrimSpace(s); s {
		case "primary":
			for f, ip := range nodeIPs {
				out[f].mentioned = true
				if ip.IsValid() {
					add(netip.PrefixFrom(ip, ip.BitLen()))
				}
			}
		case "localhost":
			add(netip.MustParsePrefix("127.0.0.0/8"))
			add(netip.MustParsePrefix("::1/128"))
		case "all":
			add(netip.MustParsePrefix("0.0.0.0/0"))
			add(netip.MustParsePrefix("::/0"))
		default:
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return out, fmt.Errorf("--nodeport-addresses %q: use a CIDR such as 192.168.0.0/16, or primary, localhost or all", s)
			}
			add(p)
		}
	}
	return out, nil
}

func (o Options) nodePortAddresses(family Family, on nodePortRange, facts *NodeFacts) NodePortAddresses {
	loopback := netip.MustParseAddr("127.0.0.1")
	if family == IPv6 {
		loopback = netip.IPv6Loopback()
	}
	out := NodePortAddresses{}
	if !on.mentioned {
		return NodePortAddresses{All: true, Loopback: o.LocalhostNodePorts}
	}
	out.Loopback = o.LocalhostNodePorts && inside(on.prefixes, loopback)
	out.All = slices.ContainsFunc(on.prefixes, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if out.All {
		return out
	}
	for _, a := range facts.Local[family] {
		if inside(on.prefixes, a) {
			out.Addrs = append(out.Addrs, a)
		}
	}
	for _, n := range facts.LocalNetworks[family] {
		out.Networks = append(out.Networks, overlap(n, on.prefixes)...)
	}
	return out
}

// overlap is what prefixes have in common with a network: of two that overlap
// one is inside the other.
func overlap(network netip.Prefix, prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		switch {
		case !p.Overlaps(network):
		case p.Bits() <= network.Bits():
			return []netip.Prefix{network}
		default:
			out = append(out, p)
		}
	}
	return out
}

func withoutLoopback(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, netip.Addr.IsLoopback)
}
