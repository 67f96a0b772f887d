package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// affine is a Service with session affinity of some length. The kernel refuses one
// that is negative.
func affine(n int, timeout time.Duration) service.Changes {
	name := service.Name{Namespace: "tenant", Name: fmt.Sprint("s", n)}
	return service.Changes{
		Services: []*service.Service{{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.97.0.%d", n))},
			AffinityTimeout: timeout, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}},
		EndpointSlices: []*service.EndpointSlice{{Name: name, Service: name.Name, Ports: []service.EndpointPort{{Protocol: service.TCP, Number: 80}},
			Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("10.244.1.9"), Ready: true, Serving: true}}}},
	}
}

// A Service that the kernel refuses is left out, and every other one is served, at
// the start and later. It is let in once it is right.
func TestRefusedServiceStopsNoOther(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(20, 2))
		r.Apply(affine(1, -5*time.Second))
		d := mustNew(t, b)
		bad := service.Name{Namespace: "tenant", Name: "s1"}
		check := func(when string, served string, refused ...service.Name) {
			t.Helper()
			rules := runTool(t, "iptables-"+string(b)+"-save", "-t", "nat")
			if !strings.Contains(rules, served) {
				t.Errorf("%s: %s is not served", when, served)
			}
			for _, name := range refused {
				if why := d.Refused()[name]; !strings.Contains(why, "refused by the kernel") || !strings.Contains(why, "seconds") {
					t.Errorf("%s: %s is refused because of %q", when, name, why)
				}
			}
			if len(d.Refused()) != len(refused) {
				t.Errorf("%s: refused %v, want %v", when, d.Refused(), refused)
			}
		}
		d.mustSync(t, r.Table(), nil)
		all := synth.Cluster(20, 2).Services
		check("at the start", all[len(all)-1].ClusterIPs[0].String(), bad)
		changed, _ := r.Apply(affine(2, time.Hour))
		d.mustSync(t, r.Table(), changed)
		check("another one is new", "10.97.0.2", bad)
		changed, _ = r.Apply(affine(3, -7*time.Second))
		more, _ := r.Apply(affine(4, time.Hour))
		d.mustSync(t, r.Table(), append(changed, more...))
		check("two at once", "10.97.0.4", bad, service.Name{Namespace: "tenant", Name: "s3"})
		changed, _ = r.Apply(affine(1, time.Hour))
		d.mustSync(t, r.Table(), changed)
		check("it is right", "10.97.0.1", service.Name{Namespace: "tenant", Name: "s3"})
		d.mustSync(t, r.Table(), nil)
		check("a full sync", "10.97.0.1", service.Name{Namespace: "tenant", Name: "s3"})
	})
}

func TestCulpritsAreFoundByHalving(t *testing.T) {
	var names []service.Name
	for i := range 1000 {
		names = append(names, service.Name{Name: fmt.Sprint(i)})
	}
	bad := []service.Name{names[0], names[499], names[500], names[999]}
	var found []service.Name
	tries := 0
	culprits(names, func(some []service.Name) error {
		tries++
		if slices.ContainsFunc(some, func(n service.Name) bool { return slices.Contains(bad, n) }) {
			return errors.New("refused")
		}
		return nil
	}, func(n service.Name, _ error) { found = append(found, n) })
	if !slices.Equal(found, bad) || tries > 100 {
		t.Errorf("found %v in %d tries, want %v", found, tries, bad)
	}
}
