package ebpf

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// hog is a Service of a tenant who wants many slots.
func hog(ports int) service.Changes {
	name := service.Name{Namespace: "tenant", Name: "a-hog"}
	svc := &service.Service{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.97.0.1")},
		Annotations: map[string]string{"nodeproxy.io/algorithm": "maglev"}}
	slice := &service.EndpointSlice{Name: name, Service: name.Name,
		Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("10.244.1.9"), Ready: true, Serving: true}}}
	for i := range ports {
		port := fmt.Sprint("p", i)
		svc.Ports = append(svc.Ports, service.Port{Name: port, Protocol: service.TCP, Port: uint16(1000 + i)})
		slice.Ports = append(slice.Ports, service.EndpointPort{Name: port, Protocol: service.TCP, Number: uint16(1000 + i)})
	}
	return service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}}
}

// A Service that wants more than its part of a map is left out, and stops none of
// the others, at the start and later. It is let in once it wants less, and its ids
// are given back when it is not.
func TestServiceThatDoesNotFitStopsNoOther(t *testing.T) {
	name := service.Name{Namespace: "tenant", Name: "a-hog"}
	for _, first := range []bool{true, false} {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(20, 2))
		others := len(synth.Cluster(20, 2).Services)
		p := newPlanner(65536)
		p.limits = amounts{slots: 524288, members: 524288, frontends: 131072, ranges: 65536}
		f := &fakeMaps{contents: newContents()}
		step := func(c service.Changes, refused bool) {
			t.Helper()
			changed, _ := r.Apply(c)
			writes, err := p.planChanged(r.Table(), changed)
			if err == nil {
				err = p.carryOut(context.Background(), f, writes)
			}
			if err != nil {
				t.Fatal(err)
			}
			if why := p.refused[name]; refused != strings.Contains(why, "one Service may have 131072") {
				t.Errorf("refused because of %q, want %t", why, refused)
			}
			if gone := r.Table().Services[name] == nil; !gone && (len(p.plans[name]) == 0) != refused || len(p.plans) < others {
				t.Errorf("%d ports of it and %d Services are planned", len(p.plans[name]), len(p.plans))
			}
		}
		if first {
			r.Apply(hog(140))
		}
		if err := fullSync(t, p, f, r.Table()); err != nil {
			t.Fatal(err)
		}
		ids := len(p.ids)
		step(hog(141), true)
		if len(p.ids) != ids {
			t.Errorf("%d ids are in use, want %d", len(p.ids), ids)
		}
		step(service.Changes{DeletedEndpointSlices: []service.Name{synth.Cluster(20, 2).EndpointSlices[0].Name}}, true) // others go on
		step(hog(2), false)
		step(hog(140), true)
		step(service.Changes{DeletedServices: []service.Name{name}}, false)
	}
}

// A map that all Services together would fill is left with the room that a change
// needs, and says what it lacks.
func TestServicesBeyondAMapAreLeftOut(t *testing.T) {
	r := service.NewResolver(synth.Config())
	r.Apply(synth.Cluster(100, 2))
	p := newPlanner(65536)
	p.limits = amounts{slots: 100, members: 100, frontends: 1000, ranges: 10}
	f := &fakeMaps{contents: newContents()}
	if err := fullSync(t, p, f, r.Table()); err != nil {
		t.Fatal(err)
	}
	if p.spent.slots > 75 || p.spent.slots < 60 || len(p.refused)+len(p.plans) != len(r.Table().Services) {
		t.Errorf("%d slots of 100 are in use, %d Services planned and %d refused", p.spent.slots, len(p.plans), len(p.refused))
	}
	for _, why := range p.refused {
		if !strings.Contains(why, "there is room for 75") {
			t.Errorf("refused because of %q", why)
		}
	}
}
