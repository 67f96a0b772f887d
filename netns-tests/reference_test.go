package netnstests

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/service"
	files "github.com/nodeproxy/nodeproxy/source"
)

// notAsPackets are the flows that cannot be sent as real packets here, with
// the reason. What the Table and the rules mean for them is tested without.
func (n *refNet) notAsPackets(f *flows.Flow) string {
	switch {
	case n.mode == ebpfPackets && (f.Source.Kind == "lb-vip" || f.Source.Kind == "node" && n.isNodes(netip.MustParseAddr(f.Destination.IP))):
		return "a node's own packets to itself go over lo, where only the socket path looks"
	case f.Protocol == "SCTP":
		return "this kernel has no SCTP sockets"
	case f.Source.Kind == "localhost" && n.mode != ebpfSockets:
		return "the agent's process serves loopback: TestLoopbackFlowsOfTheReference"
	}
	return ""
}

// Names of modes of a refNet.
const (
	ebpfSockets = "ebpf"
	ebpfPackets = "ebpf, packets only"
)

// refModes are the columns of tests in a refNet.
var refModes = []string{"iptables-nft", "iptables-legacy", ebpfSockets, ebpfPackets}

// open opens the dataplane of the mode on the node.
func (n *refNet) open(t *testing.T) (dp dataplane.Dataplane) {
	t.Helper()
	n.do(t, "node", func() (err error) {
		if backend, ok := strings.CutPrefix(n.mode, "iptables-"); ok {
			dp, err = iptables.New(context.Background(), iptables.Options{Backend: iptables.Backend(backend), MasqueradeBit: iptables.DefaultMasqueradeBit})
		} else {
			dp, err = ebpf.New(n.ebpfOptions())
		}
		return err
	})
	t.Cleanup(func() { dp.Close() })
	return dp
}

func (n *refNet) ebpfOptions() ebpf.Options {
	// What other dataplanes of the same name changed would be told at each sync.
	quiet := slog.New(slog.DiscardHandler)
	return ebpf.Options{Instance: n.instance, PacketsOnly: n.mode == ebpfPackets, CgroupPath: n.cgroup, Logger: quiet}
}

// TestFlowsOfTheReference sends every flow that kube-proxy's own tests state as
// the first packet of a real flow, in every mode.
func TestFlowsOfTheReference(t *testing.T) { // its columns keep all CPUs busy: nothing else beside
	cases, err := flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range refModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			net := newRefNet(t, mode, flows.LocalAddresses)
			dp := net.open(t)
			sent, left := 0, map[string]int{}
			for _, c := range cases {
				var todo []flows.Flow
				for _, f := range c.Flows {
					if why := net.notAsPackets(&f); !f.Holds() {
						left["meant to differ"]++
					} else if why != "" {
						left[why]++
					} else {
						todo = append(todo, f)
					}
				}
				if len(todo) > 0 {
					net.runCase(t, dp, &c, todo)
					sent += len(todo)
				}
			}
			t.Logf("%d flows sent; left out: %v", sent, left)
			if want := map[string]int{ebpfSockets: 180, ebpfPackets: 150}[mode]; sent < max(want, 172) && mode != ebpfPackets || sent < want {
				t.Errorf("only %d flows were sent", sent)
			}
		})
	}
}

// manifestsOf are the objects of a case, as text and as a source reads them.
func manifestsOf(t *testing.T, c *flows.Case) ([]byte, service.Changes) {
	t.Helper()
	manifests, err := c.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	changes, _, err := files.Decode(manifests)
	if err != nil {
		t.Fatal(err)
	}
	return manifests, changes
}

// runCase brings the node into the state of a case and sends its flows.
func (n *refNet) runCase(t *testing.T, dp dataplane.Dataplane, c *flows.Case, todo []flows.Flow) {
	t.Helper()
	_, changes := manifestsOf(t, c)
	sync := func(more ...netip.Addr) {
		cfg, err := c.Config(more...)
		if err != nil {
			t.Fatal(err)
		}
		r := service.NewResolver(cfg)
		r.Apply(changes)
		n.do(t, "node", func() error { return dp.Sync(context.Background(), r.Table(), nil) })
	}
	n.place(t, changes, todo)
	sync()
	n.serve(t, changes)
	for _, f := range todo {
		if f.Source.Kind == "lb-vip" { // a load balancer that runs on the node has its address there
			vip := netip.MustParseAddr(f.Source.IP)
			n.do(t, "node", func() error { return onLink("lo", vip, netlink.AddrReplace) })
			n.vip = vip
			sync(vip)
		}
		if err := n.send(&f); err != nil {
			t.Errorf("%v: %v", &f, err)
		}
		if n.vip.IsValid() {
			n.do(t, "node", func() error { return onLink("lo", n.vip, netlink.AddrDel) })
			n.vip = netip.Addr{}
			sync()
		}
	}
}

// TestLoopbackFlowsOfTheReference sends the flows from loopback where the agent's
// process serves them, with that process.
func TestLoopbackFlowsOfTheReference(t *testing.T) {
	cases, err := flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range refModes {
		if mode == ebpfSockets {
			continue // TestFlowsOfTheReference sends them
		}
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			net, sent := newRefNet(t, mode, flows.LocalAddresses), 0
			for _, c := range cases {
				var todo []flows.Flow
				for _, f := range c.Flows {
					if f.Source.Kind == "localhost" && f.Holds() {
						todo = append(todo, f)
					}
				}
				if len(todo) > 0 {
					net.runByAgent(t, &c, todo)
					sent += len(todo)
				}
			}
			if sent != 6 {
				t.Errorf("%d flows were sent, want 6", sent)
			}
		})
	}
}

// runByAgent brings the node into the state of a case with an agent, and sends
// flows.
func (n *refNet) runByAgent(t *testing.T, c *flows.Case, todo []flows.Flow) {
	t.Helper()
	manifests, changes := manifestsOf(t, c)
	n.place(t, changes, todo)
	agent := newAgentProcess(t, n, c.Options())
	if err := os.WriteFile(agent.path, manifests, 0o644); err != nil {
		t.Fatal(err)
	}
	agent.start(t)
	defer agent.stop()
	n.serve(t, changes)
	for _, f := range todo {
		if err := n.send(&f); err != nil {
			t.Errorf("%v: %v", &f, err)
		}
	}
}

const (
	// refTries bounds how often a flow is begun until every backend was seen.
	refTries = 80
	// answerTimeout is below the second after which a SYN that was lost is sent
	// again, and long for two cores that others keep busy.
	answerTimeout = 950 * time.Millisecond
	// silence is how long to listen before a packet counts as dropped.
	silence = 250 * time.Millisecond
)

// send begins a flow until all was seen that may happen, and checks that
// nothing else did.
func (n *refNet) send(f *flows.Flow) error {
	from := map[string]string{"node": "node", "lb-vip": "node", "localhost": "node", "endpoint": "endpoints", "pod": "pods"}[f.Source.Kind]
	if from == "" {
		from = "outside"
	}
	p := f.Packet()
	seen := map[string]bool{}
	for range refTries {
		limit := answerTimeout
		if f.Expected.Word != "" && f.Expected.Word != "REJECT" {
			limit = silence
		}
		got, err := n.dial(from, p, limit)
		if len(f.Expected.Backends) == 0 {
			return mustFail(f.Expected.Word, got, err)
		}
		if err != nil {
			return fmt.Errorf("want one of %v: %w", f.Expected.Backends, err)
		}
		if !slices.Contains(f.Expected.Backends, got.backend.String()) {
			return fmt.Errorf("reached %v, want one of %v", got.backend, f.Expected.Backends)
		}
		masqueraded := got.source.Addr() != p.Source.Addr()
		if from == "node" && f.Masquerade { // with one of its addresses, which it may have already
			masqueraded = n.isNodes(got.source.Addr())
		}
		if masqueraded != f.Masquerade && !n.hairpinBySocket(f, got) {
			return fmt.Errorf("%v saw source %v, want masquerade %v", got.backend, got.source, f.Masquerade)
		}
		if seen[got.backend.String()] = true; len(seen) == len(f.Expected.Backends) {
			return nil
		}
	}
	return fmt.Errorf("reached only %v in %d tries, want all of %v", seen, refTries, f.Expected.Backends)
}

// hairpinBySocket tells whether an endpoint's socket was sent to itself: its
// packets never leave it, so nobody needs to masquerade them, see
// docs/semantics.md.
func (n *refNet) hairpinBySocket(f *flows.Flow, got refAnswer) bool {
	return n.mode == ebpfSockets && f.Source.Kind == "endpoint" && got.source.Addr() == got.backend.Addr()
}

// mustFail checks a flow that must reach no backend.
func mustFail(word string, got refAnswer, err error) error {
	var rejected = errors.Is(err, syscall.ECONNREFUSED)
	switch {
	case err == nil:
		return fmt.Errorf("reached %v, want %s", got.backend, word)
	case word == "REJECT" && !rejected:
		return fmt.Errorf("%v, want it refused", err)
	case word == "DROP" && rejected:
		return fmt.Errorf("refused, want it dropped")
	}
	return nil
}

// addrsOf are the addresses of every endpoint in changes.
func addrsOf(changes service.Changes) []netip.Addr {
	var out []netip.Addr
	for _, s := range changes.EndpointSlices {
		for _, ep := range s.Endpoints {
			out = append(out, ep.Addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
