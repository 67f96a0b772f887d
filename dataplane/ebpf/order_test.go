package ebpf

import (
	"context"
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// TestNothingIsRefusedWhileModesChange fills empty maps and empties full ones, as
// a change of modes does while the other mode serves: after every single write
// a packet finds its frontend, or an address that is nobody's and is passed on.
func TestNothingIsRefusedWhileModesChange(t *testing.T) {
	for seed := range uint64(20) {
		gen := synth.NewRandom(seed)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(20))
		p := newPlanner(65536)
		for _, table := range []*service.Table{r.Table(), {Node: r.Table().Node, Services: map[service.Name]*service.Resolved{}}} {
			writes, err := p.planAll(context.Background(), table, [2]netip.Addr{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range writes {
				p.kernel.took(w)
				if w.m != mapFrontends && w.m != mapAddresses {
					continue
				}
				for _, res := range r.Table().Services {
					for j := range res.Ports {
						for _, f := range res.Ports[j].Frontends {
							key := frontendKey(&res.Ports[j], f)
							_, found := p.kernel.frontends[key]
							owned := uint32(bpfAddressFlagADDRESS_VIP | bpfAddressFlagADDRESS_LOCAL)
							if !found && f.Kind != service.NodePort && p.kernel.addresses[key.Addr]&owned == uint32(bpfAddressFlagADDRESS_VIP) {
								t.Fatalf("seed %d: after write %d of %d, %s %s is refused", seed, i+1, len(writes), f.Kind, f.Addr)
							}
						}
					}
				}
			}
		}
	}
}
