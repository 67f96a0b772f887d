package service_test

import (
	"slices"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

func TestFlowsOfTheReference(t *testing.T) {
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
			t.Fatalf("%s: %v", c.ID, err)
		}
		cfg, err := c.Config()
		if err != nil {
			t.Fatalf("%s: %v", c.ID, err)
		}
		r := service.NewResolver(cfg)
		r.Apply(changes)
		for _, f := range c.Flows {
			if f.Holds() {
				checked++
				checkFlow(t, r.Table(), &f)
			}
		}
	}
	if checked < 150 {
		t.Errorf("only %d flows were checked", checked)
	}
	t.Logf("%d flows", checked)
}

func checkFlow(t *testing.T, table *service.Table, f *flows.Flow) {
	t.Helper()
	p := f.Packet()
	o := table.Judge(p)
	got := map[service.Action]string{service.Translate: "translated", service.Reject: "REJECT", service.Drop: "DROP"}[o.Route.Action]
	if !o.Matched {
		got = "NONE"
	}
	if len(f.Expected.Backends) == 0 {
		want := f.Expected.Word
		if want == "ACCEPT" { // it is for a socket of the node, and no Service's
			want = "NONE"
		}
		if got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
		return
	}
	var backends []string
	for _, b := range o.Backends {
		backends = append(backends, b.String())
		if o.Masquerade(p, b) != f.Masquerade {
			t.Errorf("%v: backend %v: masquerade %v, want %v", f, b, !f.Masquerade, f.Masquerade)
		}
	}
	want := slices.Sorted(slices.Values(f.Expected.Backends))
	if got != "translated" || !slices.Equal(slices.Sorted(slices.Values(backends)), want) {
		t.Errorf("%v: %s %v, want %v", f, got, backends, want)
	}
}
