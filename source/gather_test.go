package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/service"
)

func named(name string) *service.Service {
	return &service.Service{Name: service.Name{Namespace: "default", Name: name}}
}

func all(names ...string) map[service.Name]*service.Service {
	out := map[service.Name]*service.Service{}
	for _, n := range names {
		out[named(n).Name] = named(n)
	}
	return out
}

// Nothing may be written before everything was listed.
func TestGatherWaitsForAllKinds(t *testing.T) {
	lists := []func(*gather){
		func(g *gather) { g.services.replace(all("a")) },
		func(g *gather) { g.slices.replace(nil) },
		func(g *gather) { g.nodes.replace(map[string]*service.Node{"n": {Name: "n"}}) },
	}
	for skipped := range lists {
		g := newGather()
		for i, list := range lists {
			if i != skipped {
				g.change(func() { list(g) })
			}
		}
		if c, ok := g.take(true); ok {
			t.Errorf("without list %d: %+v", skipped, c)
		}
		g.change(func() { lists[skipped](g) })
		c, ok := g.take(false)
		if !ok || !c.Complete || len(c.Services) != 1 || len(c.Nodes) != 1 {
			t.Errorf("with all lists: %v %+v", ok, c)
		}
	}
}

func TestGatherWaitsForTheNode(t *testing.T) {
	g := newGather()
	g.change(func() { g.services.replace(all("a")); g.slices.replace(nil); g.nodes.replace(nil) })
	if _, ok := g.take(false); ok || !g.withoutNode() {
		t.Error("a batch without the Node")
	}
	if c, ok := g.take(true); !ok || !c.Complete {
		t.Errorf("waited enough, but %+v", c)
	}
	g.change(func() { g.nodes.set("n", &service.Node{Name: "n"}) })
	if c, ok := g.take(false); !ok || c.Complete || len(c.Nodes) != 1 {
		t.Errorf("the Node came, but %+v", c)
	}
}

// A batch says the last state of each object, and what a list does not name
// is gone.
func TestGatherJoinsChanges(t *testing.T) {
	begun := func() *gather {
		g := newGather()
		g.change(func() { g.services.replace(all("a", "b")); g.slices.replace(nil); g.nodes.replace(nil) })
		if _, ok := g.take(true); !ok {
			t.Fatal("no first batch")
		}
		return g
	}
	for name, test := range map[string]struct {
		change    func(g *gathered[service.Name, service.Service])
		set, gone []string
		nothing   bool
	}{
		"added":           {func(g *gathered[service.Name, service.Service]) { g.set(named("c").Name, named("c")) }, []string{"c"}, nil, false},
		"removed":         {func(g *gathered[service.Name, service.Service]) { g.remove(named("a").Name) }, nil, []string{"a"}, false},
		"unknown removed": {func(g *gathered[service.Name, service.Service]) { g.remove(named("z").Name) }, nil, nil, true},
		"removed and back": {func(g *gathered[service.Name, service.Service]) {
			g.remove(named("a").Name)
			g.set(named("a").Name, named("a"))
		}, []string{"a"}, nil, false},
		"added and removed": {func(g *gathered[service.Name, service.Service]) {
			g.set(named("c").Name, named("c"))
			g.remove(named("c").Name)
		}, nil, []string{"c"}, false},
		"listed again": {func(g *gathered[service.Name, service.Service]) { g.replace(all("b", "c")) }, []string{"b", "c"}, []string{"a"}, false},
		"nothing left": {func(g *gathered[service.Name, service.Service]) { g.replace(nil) }, nil, []string{"a", "b"}, false},
	} {
		g := begun()
		g.change(func() { test.change(&g.services) })
		c, ok := g.take(false)
		if ok == test.nothing || c.Complete {
			t.Errorf("%s: a batch: %v, complete: %v", name, ok, c.Complete)
		}
		var set, gone []string
		for _, s := range c.Services {
			set = append(set, s.Name.Name)
		}
		for _, n := range c.DeletedServices {
			gone = append(gone, n.Name)
		}
		sorted := cmpopts.SortSlices(func(a, b string) bool { return a < b })
		if diff := cmp.Diff([][]string{test.set, test.gone}, [][]string{set, gone}, sorted, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if c, ok := g.take(false); ok {
			t.Errorf("%s: the same again: %+v", name, c)
		}
	}
}
