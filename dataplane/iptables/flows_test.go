package iptables

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// The flows that kube-proxy's own tests state, through the rules themselves.
func TestFlowsOfTheReferenceThroughRules(t *testing.T) {
	cases, err := flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, c := range cases {
		manifests, err := c.Manifests()
		if err != nil {
			t.Fatal(err)
		}
		changes, _, err := source.Decode(manifests)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := c.Config()
		if err != nil {
			t.Fatal(err)
		}
		r := service.NewResolver(cfg)
		r.Apply(changes)
		for _, f := range c.Flows {
			p := f.Packet()
			if !f.Holds() || p.Destination.Addr().IsLoopback() { // loopback is not netfilter's
				continue
			}
			checked++
			rules := rulesOf(t, r.Table(), service.FamilyOf(p.Destination.Addr()))
			out, err := rules.Walk(walk.Packet{Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves},
				walk.Node{Local: r.Table().Node.IsLocal})
			if err == nil {
				err = asStated(&f, out)
			}
			if err != nil {
				t.Errorf("%v: %v", &f, err)
			}
		}
	}
	if checked < 150 {
		t.Errorf("only %d flows were checked", checked)
	}
}

func asStated(f *flows.Flow, out []walk.Outcome) error {
	if len(f.Expected.Backends) == 0 {
		want := f.Expected.Word
		if want == "NONE" {
			want = "ACCEPT"
		}
		if len(out) != 1 || out[0].Translated || out[0].Verdict != want {
			return fmt.Errorf("got %+v, want %s", out, want)
		}
		return nil
	}
	var got []string
	for _, o := range out {
		if !o.Translated || o.Masquerade != f.Masquerade {
			return fmt.Errorf("got %+v, want masquerade %v", o, f.Masquerade)
		}
		got = append(got, o.Destination.String())
	}
	if want := slices.Sorted(slices.Values(f.Expected.Backends)); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}
