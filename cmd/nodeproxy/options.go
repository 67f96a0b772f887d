package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// runOptions are the flags of nodeproxy run, as they were typed.
type runOptions struct {
	mode, source                 string
	maxManifest                  int64 // bytes
	client                       source.ClientOptions
	kubeProxy                    kubeProxyOptions
	flags                        *pflag.FlagSet // all of these, as they are in force
	hostname                     string
	nodeIPs, clusterCIDRs        []string
	nodePortAddresses            []string
	externalIPCIDRs              []string
	minSyncPeriod, syncPeriod    time.Duration
	masqueradeAll                bool
	pingServiceIPs               bool
	masqueradeBit                int
	localhostNodePorts           bool
	detectLocalMode              string
	bridgeInterface, podIfPrefix string
	instance                     string
	backend                      string
	cgroup                       string
	interfaces                   []string
	sockets                      bool
	forwarding                   string
	drainPoll                    time.Duration
	terminate                    string
	xdp                          string
	xdpInterfaces                []string
	removeKubeProxy              bool
	perBackend                   bool
	sizes                        ebpf.Sizes
	mapMemory                    uint64 // MiB
	logFormat                    string
	verbosity                    int
}

// The modes.
const (
	modeIPTables = "iptables"
	modeEBPF     = "ebpf"
	modeAuto     = "auto"
)

// instanceVariable is the environment's default for --instance.
const instanceVariable = "NODEPROXY_INSTANCE"

// defaultInstance names the only agent in a network namespace.
const defaultInstance = "nodeproxy"

func (o *runOptions) register(f *pflag.FlagSet) {
	o.flags = f
	f.StringVar(&o.mode, "mode", modeAuto, "how to program the kernel: iptables, ebpf, or auto")
	f.StringVar(&o.source, "source", "", "where Services come from: kubernetes, or file:PATH, a manifest file or a directory of them (default kubernetes in a cluster or with --kubeconfig)")
	f.Int64Var(&o.maxManifest, "max-manifest-size", source.DefaultMaxFile, "bytes above which a manifest file is not read, with --source file:PATH")
	registerClient(f, &o.client)
	o.kubeProxy.register(f)
	f.StringVar(&o.hostname, "hostname-override", "", "name of this Node, where it is not the host name")
	f.StringSliceVar(&o.nodeIPs, "node-ip", nil, "primary address of this node, one of each family at most (default: the Node's, or the machine's)")
	f.StringSliceVar(&o.clusterCIDRs, "cluster-cidr", nil, "range of all Pod addresses, one of each family at most (default: the Node's Pod CIDRs)")
	f.StringSliceVar(&o.nodePortAddresses, "nodeport-addresses", nil, "local addresses that carry node ports: CIDRs, primary, localhost, all (default all)")
	f.StringSliceVar(&o.externalIPCIDRs, "external-ip-cidrs", nil, "only externalIPs in these ranges are served (default: all)")
	f.DurationVar(&o.minSyncPeriod, "min-sync-period", time.Second, "least time between two changes of the kernel")
	f.DurationVar(&o.syncPeriod, "sync-period", 30*time.Second, "how often the kernel is compared with what it should hold")
	f.BoolVar(&o.perBackend, "metrics-per-backend", false, "count connections, packets and bytes in /metrics for each backend too, not only for each Service: six series each")
	f.BoolVar(&o.pingServiceIPs, "ping-service-ips", false, "answer pings of ClusterIPs, external and load-balancer addresses instead of refusing them")
	f.BoolVar(&o.masqueradeAll, "masquerade-all", false, "masquerade all traffic to ClusterIPs")
	f.IntVar(&o.masqueradeBit, "iptables-masquerade-bit", iptables.DefaultMasqueradeBit, "bit of the packet mark that asks for masquerade, 0 to 31")
	f.BoolVar(&o.localhostNodePorts, "iptables-localhost-nodeports", true, "node ports answer on loopback addresses, where the mode can do that")
	f.StringVar(&o.detectLocalMode, "detect-local-mode", string(service.DetectClusterCIDR), "how Pods are told from others: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix")
	f.StringVar(&o.bridgeInterface, "pod-bridge-interface", "", "bridge of the Pods, for --detect-local-mode BridgeInterface")
	f.StringVar(&o.podIfPrefix, "pod-interface-name-prefix", "", "prefix of Pod interfaces, for --detect-local-mode InterfaceNamePrefix")
	f.StringVar(&o.backend, "iptables-backend", string(iptables.BackendAuto), "nft, legacy, or auto: the one that the node already uses")
	f.StringVar(&o.cgroup, "cgroup", "", "cgroup v2 directory below which ebpf mode translates sockets (default: the root)")
	f.StringSliceVar(&o.interfaces, "interfaces", nil, "patterns of interfaces whose packets ebpf mode looks at; ! excludes (default "+strings.Join(ebpf.DefaultInterfaces, ",")+")")
	f.BoolVar(&o.sockets, "sockets", true, "ebpf mode translates sockets when they connect; false leaves all to the packet path")
	f.StringVar(&o.forwarding, "forwarding", string(ebpf.ForwardingAuto), "way of new flows in ebpf mode's packet path: fast (past the stack: no netfilter rule is asked), stack (conntrack and netfilter see them as with kube-proxy), or auto (fast while no other program has rules that it would pass by)")
	f.StringVar(&o.xdp, "xdp", string(ebpf.XDPOff), "ebpf mode forwards packets of known flows between uplinks before the stack has them: native (by the driver), generic (slow, for testing) or off; tc and netfilter do not see such packets")
	f.StringSliceVar(&o.xdpInterfaces, "xdp-interfaces", nil, "patterns of uplinks, for --xdp (default: the interfaces of default routes)")
	f.StringVar(&o.terminate, "terminate-sockets", string(ebpf.TerminateUDP), "connected sockets that ebpf mode ends with an error when their backend is gone: udp, all or none")
	registerMapSizes(f, &o.sizes, &o.mapMemory)
	f.BoolVar(&o.removeKubeProxy, "remove-kube-proxy-rules", false, "remove the iptables rules that kube-proxy left, once ours are in place")
	f.DurationVar(&o.drainPoll, "drain-poll", defaultDrainPoll, "how often the flows of the mode before are counted")
	_ = f.MarkHidden("drain-poll") // for tests; it was defined just now
	registerInstance(f, &o.instance)
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.IntVarP(&o.verbosity, "v", "v", 0, "log verbosity: 0 for what an operator needs, 1 and more for debugging")
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if alias, ok := aliases[name]; ok {
			name = alias
		}
		return pflag.NormalizedName(name)
	})
}

func registerInstance(f *pflag.FlagSet, instance *string) {
	f.StringVar(instance, "instance", cmp.Or(os.Getenv(instanceVariable), defaultInstance), "instance name; marks what this agent owns in the kernel (default $"+instanceVariable+", or nodeproxy)")
}

// validate completes what may be left out, and returns what the user has to fix
// first.
func (o *runOptions) validate() error {
	o.kubeProxy.complete()
	switch o.mode {
	case modeIPTables, modeEBPF, modeAuto:
	default:
		return fmt.Errorf("--mode %q: use iptables, ebpf or auto", o.mode)
	}
	if err := o.kubeProxy.validate(); err != nil {
		return err
	}
	if err := o.chooseSource(); err != nil {
		return err
	}
	switch iptables.Backend(o.backend) {
	case iptables.BackendAuto, iptables.BackendNFT, iptables.BackendLegacy:
	default:
		return fmt.Errorf("--iptables-backend %q: use auto, nft or legacy", o.backend)
	}
	switch ebpf.Terminate(o.terminate) {
	case ebpf.TerminateUDP, ebpf.TerminateAll, ebpf.TerminateNone:
	default:
		return fmt.Errorf("--terminate-sockets %q: use udp, all or none", o.terminate)
	}
	switch ebpf.Forwarding(o.forwarding) {
	case ebpf.ForwardingAuto, ebpf.ForwardingFast, ebpf.ForwardingStack:
	default:
		return fmt.Errorf("--forwarding %q: use auto, fast or stack", o.forwarding)
	}
	switch ebpf.XDP(o.xdp) {
	case ebpf.XDPOff, ebpf.XDPNative, ebpf.XDPGeneric:
	default:
		return fmt.Errorf("--xdp %q: use off, native or generic", o.xdp)
	}
	if err := checkMapSizes(&o.sizes); err != nil {
		return err
	}
	if o.masqueradeBit < 0 || o.masqueradeBit > 31 {
		return fmt.Errorf("--iptables-masquerade-bit %d: use 0 to 31", o.masqueradeBit)
	}
	if o.maxManifest <= 0 {
		return fmt.Errorf("--max-manifest-size %d: use more than 0 bytes, such as %d", o.maxManifest, source.DefaultMaxFile)
	}
	if o.drainPoll <= 0 {
		return fmt.Errorf("--drain-poll %v: use more than 0", o.drainPoll)
	}
	if o.syncPeriod <= 0 {
		return fmt.Errorf("--sync-period %v: use more than 0", o.syncPeriod)
	}
	if o.minSyncPeriod < 0 || o.minSyncPeriod > o.syncPeriod {
		return fmt.Errorf("--min-sync-period %v: use 0 up to --sync-period, which is %v", o.minSyncPeriod, o.syncPeriod)
	}
	return validateInstance(o.instance)
}

func validateInstance(name string) error {
	ok := name != "" && len(name) <= 40
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	if !ok {
		return fmt.Errorf("--instance %q: use up to 40 letters, digits, '-' and '_'", name)
	}
	return nil
}

// node turns the flags into what the resolver is told.
func (o *runOptions) node() (service.Options, error) {
	out := service.Options{
		NodeName:            strings.ToLower(strings.TrimSpace(o.hostname)),
		DetectLocalMode:     service.DetectLocalMode(o.detectLocalMode),
		BridgeInterface:     o.bridgeInterface,
		InterfaceNamePrefix: o.podIfPrefix,
		NodePortAddresses:   o.nodePortAddresses,
		LocalhostNodePorts:  o.localhostNodePorts,
		MasqueradeAll:       o.masqueradeAll,
	}
	if out.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return out, fmt.Errorf("find the host name: %w (give --hostname-override)", err)
		}
		out.NodeName = strings.ToLower(name)
	}
	nodeIPs := o.nodeIPs
	if a, err := netip.ParseAddr(o.kubeProxy.bindAddress); err != nil {
		return out, fmt.Errorf("--bind-address %q: use an IP address", o.kubeProxy.bindAddress)
	} else if !a.IsUnspecified() {
		nodeIPs = append(nodeIPs, a.String()) // --node-ip says it more clearly, and so comes first
	}
	for _, s := range nodeIPs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return out, fmt.Errorf("--node-ip %q: use an IP address", s)
		}
		out.NodeIPs = append(out.NodeIPs, a.Unmap())
	}
	if err := oneOfAFamily("--node-ip", o.nodeIPs, out.NodeIPs[:min(len(o.nodeIPs), len(out.NodeIPs))]); err != nil {
		return out, err
	}
	for _, s := range o.clusterCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("--cluster-cidr %q: use a CIDR such as 10.244.0.0/16", s)
		}
		out.ClusterCIDRs = append(out.ClusterCIDRs, p)
	}
	var first []netip.Addr
	for _, p := range out.ClusterCIDRs {
		first = append(first, p.Addr())
	}
	if err := oneOfAFamily("--cluster-cidr", o.clusterCIDRs, first); err != nil {
		return out, err
	}
	for _, s := range o.externalIPCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("--external-ip-cidrs %q: use a CIDR such as 198.51.100.0/24", s)
		}
		out.ExternalIPCIDRs = append(out.ExternalIPCIDRs, p.Masked())
	}
	return out, out.Validate()
}

// oneOfAFamily refuses a second value of a family, which would mean nothing.
func oneOfAFamily(flag string, texts []string, addrs []netip.Addr) error {
	var seen [2]string
	for i, a := range addrs {
		f := service.FamilyOf(a.Unmap())
		if seen[f] != "" {
			return fmt.Errorf("%s %s: %s and %s are both %s; use one of each family at most", flag, strings.Join(texts, ","), seen[f], texts[i], f)
		}
		seen[f] = texts[i]
	}
	return nil
}

// logger writes to standard error, so that output stays apart from it.
func newLogger(format string, verbosity int) (*slog.Logger, error) {
	level := slog.LevelInfo
	if verbosity > 0 {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: use text or json", format)
}
