package ebpf

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// TestP37OneEntryForARange: 10,001 ports are one entry, and a change of
// endpoints costs what it costs for one port.
func TestP37OneEntryForARange(t *testing.T) {
	svc, slice := synth.Service(1, 3)
	svc.Annotations = map[string]string{"nodeproxy.io/port-range": "10000-20000"}
	r := service.NewResolver(synth.Config())
	r.Apply(service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}})
	p := newPlanner(16)
	if _, err := p.planAll(context.Background(), r.Table(), [2]netip.Addr{}, 0); err != nil {
		t.Fatal(err)
	}
	writes, err := p.planChanged(r.Table(), []service.Name{svc.Name})
	if err != nil {
		t.Fatal(err)
	}
	count := map[mapID]int{}
	for _, w := range writes {
		count[w.m]++
		p.kernel.took(w)
	}
	if count[mapFrontends] != 2 || count[mapPorts] > 3 {
		t.Errorf("writes %v, want a frontend for the port and one for the range", count)
	}
	start := time.Now()
	less := synth.Slice(svc, 1, 2)
	changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{less}})
	writes, err = p.planChanged(r.Table(), changed)
	if took := time.Since(start); err != nil || took > 100*time.Millisecond || len(writes) > 24 {
		t.Errorf("a change: %d writes in %s, error %v", len(writes), took, err)
	}
	for _, w := range writes {
		p.kernel.took(w)
	}
	for _, port := range []uint16{10000, 12345, 20000} {
		var fe bpfFrontend
		for k, v := range p.kernel.frontends {
			if k.Port == 0 {
				fe = v
			}
		}
		if port < fe.First || port > fe.Last {
			t.Errorf("port %d is outside the entry %+v", port, fe)
		}
	}
	if text := fmt.Sprint(len(p.kernel.frontends)); text != "2" {
		t.Errorf("%s frontends in all", text)
	}
}
