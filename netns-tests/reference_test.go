package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/service"
	files "github.com/nodeproxy/nodeproxy/source"
)

// notAsPackets are the flows that can not be sent as real packets here, with
// the reason. What the Table and the rules mean for them is tested without.
func notAsPackets(mode string, f *flows.Flow) string {
	switch {
	case mode == ebpfPackets && f.Source.Kind == "node" && slices.Contains(flows.LocalAddresses, netip.MustParseAddr(f.Destination.IP)):
		return "a node's own packets to itself go over lo, where only the socket path looks"
	case f.Protocol == "SCTP":
		return "this kernel has no SCTP sockets"
	case f.Source.Kind == "lb-vip":
		return "no host can dial an address from that address"
	case f.Source.Kind == "localhost":
		return "loopback is translated at the socket, which TestScenarios covers"
	}
	return ""
}

const ebpfPackets = "ebpf, packets only"

// openModes open the dataplane of a mode in the calling thread's namespace.
var openModes = map[string]func(t *testing.T) (dataplane.Dataplane, error){
	"iptables-nft": func(*testing.T) (dataplane.Dataplane, error) {
		return iptables.New(context.Background(), iptables.Options{Backend: iptables.BackendNFT, MasqueradeBit: iptables.DefaultMasqueradeBit})
	},
	"iptables-legacy": func(*testing.T) (dataplane.Dataplane, error) {
		return iptables.New(context.Background(), iptables.Options{Backend: iptables.BackendLegacy, MasqueradeBit: iptables.DefaultMasqueradeBit})
	},
	ebpfPackets: func(t *testing.T) (dataplane.Dataplane, error) {
		o := ebpf.Options{Instance: fmt.Sprintf("reference-%d", syscall.Getpid()), PacketsOnly: true}
		t.Cleanup(func() {
			if err := ebpf.Cleanup(o); err != nil {
				t.Error(err)
			}
		})
		return ebpf.New(o)
	},
}

// TestFlowsOfTheReference sends every flow that kube-proxy's own tests state as
// the first packet of a real flow, in every mode.
func TestFlowsOfTheReference(t *testing.T) {
	cases, err := flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range openModes {
		t.Run(name, func(t *testing.T) {
			net := newRefNet(t)
			var dp dataplane.Dataplane
			net.do(t, "node", func() (err error) { dp, err = open(t); return err })
			t.Cleanup(func() { dp.Close() })
			sent, left := 0, map[string]int{}
			for _, c := range cases {
				if gate := c.Settings.PreferSameTrafficDistribution; gate != nil && !*gate {
					continue // kube-proxy before 1.35 with a feature gate off, which is no setting here
				}
				var todo []flows.Flow
				for _, f := range c.Flows {
					if why := notAsPackets(name, &f); why != "" && c.Holds(&f) {
						left[why]++
					} else if c.Holds(&f) {
						todo = append(todo, f)
					}
				}
				if len(todo) > 0 {
					net.runCase(t, dp, &c, todo)
					sent += len(todo)
				}
			}
			t.Logf("%d flows sent; left out: %v", sent, left)
			if sent < 140 {
				t.Errorf("only %d flows were sent", sent)
			}
		})
	}
}

// runCase brings the node into the state of a case and sends its flows.
func (n *refNet) runCase(t *testing.T, dp dataplane.Dataplane, c *flows.Case, todo []flows.Flow) {
	t.Helper()
	cfg, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := c.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	changes, _, err := files.Decode(manifests)
	if err != nil {
		t.Fatal(err)
	}
	r := service.NewResolver(cfg)
	r.Apply(changes)
	n.place(t, changes, todo)
	n.do(t, "node", func() error { return dp.Sync(context.Background(), r.Table(), nil) })
	n.serve(t, changes)
	for _, f := range todo {
		if err := n.send(&f); err != nil {
			t.Errorf("%v: %v", &f, err)
		}
	}
}

// refTries bounds how often a flow is begun until every backend was seen.
const refTries = 80

// send begins a flow until all was seen that may happen, and checks that
// nothing else did.
func (n *refNet) send(f *flows.Flow) error {
	from := map[string]string{"node": "node", "endpoint": "endpoints", "pod": "pods"}[f.Source.Kind]
	if from == "" {
		from = "outside"
	}
	p := f.Packet()
	seen := map[string]bool{}
	for range refTries {
		got, err := n.dial(from, p, 400*time.Millisecond)
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
		if f.Source.Kind == "node" && f.Masquerade { // with one of its addresses, which it may have already
			masqueraded = n.isNodes(got.source.Addr())
		}
		if masqueraded != f.Masquerade {
			return fmt.Errorf("%v saw source %v, want masquerade %v", got.backend, got.source, f.Masquerade)
		}
		if seen[got.backend.String()] = true; len(seen) == len(f.Expected.Backends) {
			return nil
		}
	}
	return fmt.Errorf("reached only %v in %d tries, want all of %v", seen, refTries, f.Expected.Backends)
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
