package iptables

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

var testSettings = settings{markBit: 1 << DefaultMasqueradeBit, dropInvalid: true, randomFully: true, owner: "nodeproxy"}

// rulesOf compiles a Table and parses the text that iptables-restore would get.
func rulesOf(tb testing.TB, table *service.Table, family service.Family) walk.Rules {
	tb.Helper()
	return rulesWith(tb, table, family, testSettings)
}

func rulesWith(tb testing.TB, table *service.Table, family service.Family, s settings) walk.Rules {
	tb.Helper()
	rs := newRuleset(family, &table.Node, s)
	for name, res := range table.Services {
		rs.update(name, res)
	}
	rules, err := walk.Parse(bytes.NewReader(restoreInput(rs.flush(), rs.hooks()[:3], rs.hooks()[3:])))
	if err != nil {
		tb.Fatal(err)
	}
	return rules
}

// checkPacket compares what rules do with what the Table means.
func checkPacket(table *service.Table, rules walk.Rules, p service.Packet) error {
	got, err := rules.Walk(walk.Packet{
		Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves,
	}, walk.Node{Local: table.Node.IsLocal})
	if err != nil {
		return err
	}
	want := table.Judge(p)
	if want.Matched && want.Route.Action == service.Translate {
		return checkTranslated(got, want, p)
	}
	verdict := "ACCEPT"
	if want.Matched {
		verdict = map[service.Action]string{service.Reject: "REJECT", service.Drop: "DROP"}[want.Route.Action]
	}
	if len(got) != 1 || got[0].Verdict != verdict || got[0].Translated || got[0].Masquerade {
		return fmt.Errorf("got %+v, want %s and nothing else", got, verdict)
	}
	return nil
}

func checkTranslated(got []walk.Outcome, want service.Outcome, p service.Packet) error {
	if len(got) != len(want.Backends) {
		return fmt.Errorf("got %d outcomes %+v, want %d backends %v", len(got), got, len(want.Backends), want.Backends)
	}
	sum := service.Shares(want.Backends)
	backends := slices.SortedFunc(slices.Values(want.Backends), func(a, b service.Backend) int { // as the outcomes
		return cmp.Compare(a.To(p.Destination.Port()).String(), b.To(p.Destination.Port()).String())
	})
	for i, b := range backends {
		g := got[i]
		switch {
		case !g.Translated || g.Verdict != "ACCEPT" || g.Destination != b.To(p.Destination.Port()):
			return fmt.Errorf("got %+v, want backend %v", g, b)
		case math.Abs(g.Probability-float64(b.Shares())/float64(sum)) > 1e-6:
			return fmt.Errorf("backend %v has probability %v, want %d/%d", b, g.Probability, b.Shares(), sum)
		case g.Masquerade != want.Masquerade(p, b):
			return fmt.Errorf("backend %v: masquerade %v, want %v", b, g.Masquerade, want.Masquerade(p, b))
		}
	}
	return nil
}

func tableOfState(cfg service.Config, c service.Changes) *service.Table {
	r := service.NewResolver(cfg)
	r.Apply(c)
	return r.Table()
}

// checkLogged wants what is refused to be logged once, with the reason, and
// nothing else.
func checkLogged(table *service.Table, rules walk.Rules, p service.Packet) error {
	got, err := rules.Walk(walk.Packet{
		Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves,
	}, walk.Node{Local: table.Node.IsLocal})
	if err != nil {
		return err
	}
	want, why := "", table.Judge(p)
	switch {
	case !why.Matched || why.Route.Action == service.Translate:
	case why.Frontend == nil:
		want = "nodeproxy unknown_port"
	case why.Blocked:
		want = "nodeproxy source_range"
	case why.Route.Action == service.Reject:
		want = "nodeproxy no_endpoints"
	default:
		want = "nodeproxy policy"
	}
	for _, g := range got {
		if g.Logged != want {
			return fmt.Errorf("logged %q, want %q", g.Logged, want)
		}
	}
	return nil
}

// While somebody watches, rules mean the same, and log what they refuse.
func TestWatchedRulesMeanTheSame(t *testing.T) {
	watched := testSettings
	watched.watched = true
	seen := map[string]int{}
	for seed := range uint64(400) {
		gen := synth.NewRandom(seed)
		table := tableOfState(gen.Config(), gen.Cluster(1+int(seed%12)))
		rules := [2]walk.Rules{rulesWith(t, table, service.IPv4, watched), rulesWith(t, table, service.IPv6, watched)}
		plain := [2]walk.Rules{rulesOf(t, table, service.IPv4), rulesOf(t, table, service.IPv6)}
		for _, p := range synth.Sample(seed, synth.Packets(rand.New(rand.NewPCG(seed, 2)), table), 150) {
			family := service.FamilyOf(p.Destination.Addr())
			if p.Destination.Addr().IsLoopback() {
				continue // not served by netfilter
			}
			out, err := plain[family].Walk(walk.Packet{Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves}, walk.Node{Local: table.Node.IsLocal})
			if err != nil || out[0].Logged != "" {
				t.Fatalf("seed %d: nobody watches: %v, %+v", seed, err, out)
			}
			if err := cmp.Or(checkPacket(table, rules[family], p), checkLogged(table, rules[family], p)); err != nil {
				t.Fatalf("seed %d: %v from %v (in %q) to %v: %v\n%+v", seed, p.Protocol, p.Source, p.Interface, p.Destination, err, table.Node)
			}
			o := table.Judge(p)
			seen[fmt.Sprint(o.Route.Action, o.Blocked, o.Frontend == nil)]++
		}
	}
	t.Log(seen)
}

func TestRulesMeanWhatTheTableSays(t *testing.T) {
	states := uint64(2000)
	if testing.Short() {
		states = 50
	}
	packets := 0
	for seed := range states {
		gen := synth.NewRandom(seed)
		cfg, state := gen.Config(), gen.Cluster(1+int(seed%12))
		table := tableOfState(cfg, state)
		rules := [2]walk.Rules{rulesOf(t, table, service.IPv4), rulesOf(t, table, service.IPv6)}
		for _, p := range synth.Sample(seed, synth.Packets(rand.New(rand.NewPCG(seed, 2)), table), 150) {
			if p.Destination.Addr().IsLoopback() {
				continue // not served by netfilter
			}
			if err := checkPacket(table, rules[service.FamilyOf(p.Destination.Addr())], p); err != nil {
				small := synth.Shrink(state, func(c service.Changes) bool {
					table := tableOfState(cfg, c)
					return checkPacket(table, rulesOf(t, table, service.FamilyOf(p.Destination.Addr())), p) != nil
				})
				t.Fatalf("seed %d: %v from %v (in %q) to %v: %v\n%+v\n%s", seed, p.Protocol, p.Source, p.Interface, p.Destination, err, cfg, synth.YAML(small))
			}
			packets++
		}
	}
	if least := 5 * int(states); packets < least {
		t.Errorf("only %d packets were walked, want %d", packets, least)
	}
	t.Logf("%d packets in %d states", packets, states)
}
