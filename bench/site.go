package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeproxy/nodeproxy/bench/load"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/controlplane"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// Environment is what a run needs of the machine.
type Environment struct {
	// Binary is the nodeproxy program, by default the calling one.
	Binary string
	// Before is another nodeproxy program, for the columns that compare with it.
	Before string
	// KubeProxy is the kube-proxy program, and KubeBin the directory of etcd and
	// kube-apiserver, for the columns of kube-proxy.
	KubeProxy, KubeBin string
	// LabName begins the names of all labs of the run.
	LabName string
}

const (
	// minSync is the least time between two writes, of every agent: their
	// defaults differ.
	minSync = "100ms"
	// trafficPatience bounds how long what an agent has written may take to work.
	trafficPatience = 20 * time.Second
	// startPatience bounds how long an agent may take to the first traffic.
	startPatience = 10 * time.Minute
)

// site is a lab of one column.
type site struct {
	column string
	env    Environment
	opts   Options
	group  Group
	*lab.Lab
	api *controlplane.Server // where objects are; nil: in files
	// ranks are the places of used Services in the kernel's list, 0 to 1, of
	// kube-proxy's iptables mode, which has one.
	ranks map[used]float64
}

// labOptions returns the lab of a column.
func labOptions(column string, env Environment, n int) lab.Options {
	o := lab.Options{
		Name: fmt.Sprintf("%s-%d", env.LabName, n), Binary: env.Binary, Mode: lab.ModeIPTables, AgentTimeout: startPatience,
		// What an agent does by itself from time to time is no part of a figure.
		AgentArgs: []string{"--cluster-cidr", clusterCIDRs(), "--min-sync-period", minSync, "--sync-period", "1h"},
	}
	switch column {
	case IPTablesNFT:
		o.AgentArgs = append(o.AgentArgs, "--iptables-backend", "nft")
	case IPTablesLegacy:
		o.AgentArgs = append(o.AgentArgs, "--iptables-backend", "legacy")
	case EBPFPackets, EBPFPacketsBefore:
		o.AgentArgs = append(o.AgentArgs, "--sockets=false")
	case EBPFStack:
		o.AgentArgs = append(o.AgentArgs, "--sockets=false", "--forwarding", "stack")
	}
	if strings.HasPrefix(column, EBPF) {
		o.Mode = lab.ModeEBPF
	}
	if isBefore(column) {
		o.AgentBinary = env.Before
	}
	return o
}

// isBefore tells whether a column's agent is the other nodeproxy program.
func isBefore(column string) bool { return column == EBPFBefore || column == EBPFPacketsBefore }

func clusterCIDRs() string {
	return lab.ClusterCIDRs[0].String() + "," + lab.ClusterCIDRs[1].String()
}

// needsAPI tells whether a column has its objects from an API server.
func needsAPI(column string, o Options) bool {
	return isKubeProxy(column) || column != Bare && o.Source == SourceKubernetes
}

func isKubeProxy(column string) bool {
	return column == KubeProxyIPTables || column == KubeProxyNFTables
}

// newSite builds a column's lab with the objects of a group, but starts no
// agent. data are the objects as JSON.
func newSite(ctx context.Context, column string, env Environment, o Options, g Group, n int, all []any, data []byte) (_ *site, err error) {
	l, err := lab.Up(ctx, labOptions(column, env, n))
	if err != nil {
		return nil, err
	}
	s := &site{column: column, env: env, opts: o, group: g, Lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("set up %s: %w", column, err), l.Down())
		}
	}()
	if err := addRoutes(l); err != nil {
		return nil, err
	}
	if o.NetworkPlugin {
		if err := addPluginRules(ctx, l); err != nil {
			return nil, err
		}
	}
	if err := l.Clear(); err != nil {
		return nil, err
	}
	if needsAPI(column, o) {
		if err := s.startAPI(ctx, all); err != nil {
			return nil, err
		}
	} else if err := manifest.WriteAtomic(filepath.Join(l.ManifestDir(), "all.json"), data); err != nil {
		return nil, err
	}
	if len(g.Control) > 0 && column != Bare {
		if err := s.reset(); err != nil {
			return nil, err
		}
	}
	return s, s.startServers()
}

// startServers starts what answers in pod-b1.
func (s *site) startServers() error {
	servers := map[string][]string{"bench-serve": {s.Options().Binary, "bench", "serve"}}
	for _, step := range s.group.Data {
		if step.Work == WorkIPerf2 {
			servers["iperf2"] = []string{"iperf", "-s", "-p", fmt.Sprint(portIPerf2)}
			if s.group.Family == 6 {
				servers["iperf2"] = append(servers["iperf2"], "-V")
			}
		} else if isIPerf(step.Work) {
			// One for each address: iperf3 answers datagrams from the address that
			// it is bound to, or from the machine's first.
			six := v6(s.group.Family)
			for name, addr := range map[string]netip.Addr{"iperf3-bench": pods[six], "iperf3-detour": detourPods[six]} {
				servers[name] = []string{"iperf3", "-s", "-B", addr.String(), "-p", fmt.Sprint(portIPerf)}
			}
		}
	}
	for name, argv := range servers {
		if _, err := s.Start("pod-b1", name, argv...); err != nil {
			return err
		}
	}
	return nil
}

// put writes objects under a name, where the column's agent reads them.
func (s *site) put(name string, objects ...any) error {
	if s.api != nil {
		return s.api.Apply(name, objects...)
	}
	data, err := manifest.EncodeJSON(objects...)
	if err != nil {
		return err
	}
	return manifest.WriteAtomic(filepath.Join(s.ManifestDir(), name+".json"), data)
}

// reset writes the Services that change as they are at first.
func (s *site) reset() error {
	if err := s.change(-1, "pod-b1"); err != nil {
		return err
	}
	for i := range churned {
		if err := s.churn(i, 0); err != nil {
			return err
		}
	}
	return nil
}

// change gives a changing Service other Pods as endpoints.
func (s *site) change(i int, pods ...string) error {
	var endpoints []manifest.Endpoint
	for _, pod := range pods {
		endpoints = append(endpoints, lab.Endpoint(pod))
	}
	return s.put(fmt.Sprintf("changing%d", i), changing(i, endpoints...)...)
}

// churn gives one of the Services beside the used one other endpoints.
func (s *site) churn(i, n int) error {
	return s.put(fmt.Sprintf("changing%d", i), changing(i, fillerEndpoints(maxServices+i+n%7, 4, s.opts.FillerEndpoints)...)...)
}

// changingAddr is where the changing Service is probed.
var changingAddr = netip.AddrPortFrom(changed[0], echo.PortEcho)

// start starts the agent of a node and returns when it has said that it is
// done, or at once if it does not say so.
func (s *site) start(ctx context.Context, node string) error {
	if isKubeProxy(s.column) {
		return s.startKubeProxy(node)
	}
	return s.StartAgent(ctx, node)
}

// agentProcess is the name of a node's agent as a process of the lab.
func (s *site) agentProcess(node string) string {
	if isKubeProxy(s.column) {
		return "kube-proxy-" + node
	}
	return "agent-" + node
}

// cleanUp stops the agent of a node and removes what it wrote.
func (s *site) cleanUp(ctx context.Context, node string) error {
	if err := s.Stop(s.agentProcess(node)); err != nil {
		return err
	}
	argv := []string{s.Options().Binary, "cleanup", "--instance", s.Netns(node)}
	if isKubeProxy(s.column) {
		argv = append(s.kubeProxyArgv(node), "--cleanup")
	}
	if out, err := s.Command(ctx, node, argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("clean up on %s: %w: %s", node, err, tail(out))
	}
	return nil
}

func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// agentUsage is what the agent of node-a has used.
func (s *site) agentUsage() (Usage, error) {
	p, err := s.Process(s.agentProcess("node-a"))
	if err != nil {
		return Usage{}, err
	}
	return usage(p.PID)
}

// awaitTraffic dials every path of the group until all answer.
func (s *site) awaitTraffic(ctx context.Context) error {
	patience := trafficPatience
	if isKubeProxy(s.column) { // which does not say when it is done
		patience = startPatience
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("nothing came through within %s", patience))
	defer cancel()
	dialled := map[netip.AddrPort]bool{}
	for _, step := range s.group.Data {
		if step.Column != s.column || isIPerf(step.Work) {
			continue
		}
		c := load.Config{Kind: load.Connect, Duration: time.Millisecond, Workers: 1, Timeout: operationTimeout}
		if step.Work == WorkDatagram {
			c.Kind = load.Datagram
		}
		var from string
		if from, c.To = target(step.Key); dialled[c.To] {
			continue
		}
		dialled[c.To] = true
		for {
			_, _, err := s.load(ctx, from, c)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("wait for traffic: %w (%w)", context.Cause(ctx), err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// Tools returns the versions of the programs that a run uses.
func (e Environment) Tools() map[string]string {
	out := map[string]string{}
	for name, argv := range map[string][]string{
		"iperf3": {"iperf3", "--version"}, "iptables": {"iptables", "--version"}, "nft": {"nft", "--version"},
		"iperf": {"iperf", "--version"}, "kube-proxy": {e.KubeProxy, "--version"},
	} {
		if argv[0] == "" {
			continue
		}
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		text, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput() // iperf ends with 1
		line, _, _ := strings.Cut(string(text), "\n")
		out[name] = strings.TrimSpace(line)
	}
	return out
}

// Check returns what is missing for a run's columns.
func (e Environment) Check(o Options) error {
	for _, c := range o.Columns {
		if isBefore(c) {
			if _, err := os.Stat(e.Before); err != nil {
				return fmt.Errorf("column %s: %w; --before names the other nodeproxy program", c, err)
			}
		}
		if !needsAPI(c, o) {
			continue
		}
		if isKubeProxy(c) && e.KubeProxy == "" {
			return fmt.Errorf("column %s needs --kube-proxy and --kube-bin; `make kube` builds both", c)
		}
		for _, path := range []string{cmp.Or(e.KubeProxy, e.KubeBin), filepath.Join(e.KubeBin, "etcd"), filepath.Join(e.KubeBin, "kube-apiserver")} {
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("column %s: %w; `make kube` builds it", c, err)
			}
		}
		if _, err := exec.LookPath("nft"); err != nil && c == KubeProxyNFTables {
			return fmt.Errorf("column %s needs nft (apt-get install nftables)", c)
		}
	}
	needs := map[string]bool{}
	for _, b := range o.Blocks {
		for _, w := range b.Works {
			needs["iperf"] = needs["iperf"] || w == WorkIPerf2
			needs["iperf3"] = needs["iperf3"] || isIPerf(w) && w != WorkIPerf2
		}
	}
	for _, program := range []string{"iperf3", "iperf"} {
		if _, err := exec.LookPath(program); err != nil && needs[program] {
			return fmt.Errorf("%s is not installed (apt-get install %[1]s)", program)
		}
	}
	return nil
}
