package admin

import (
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/service"
)

// A Service counts where something of it is served: not one without a port, nor one whose
// address another Service has, or may not be had by anybody.
func TestServicesOfWhichNothingIsServedDoNotCount(t *testing.T) {
	r := service.NewResolver(service.Config{NodeName: "n"})
	add := func(name, ip string, ports ...service.Port) *service.Service {
		return &service.Service{Name: service.Name{Namespace: "default", Name: name}, Type: service.TypeClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)}, Ports: ports}
	}
	http := service.Port{Protocol: service.TCP, Port: 80}
	r.Apply(service.Changes{Complete: true, Services: []*service.Service{
		add("a", "10.96.0.1", http), add("b", "10.96.0.1", http), add("none", "10.96.0.2"), add("link", "169.254.0.1", http),
	}})
	var s Status
	s.Fill(r.Table())
	reasons := map[string]string{}
	for _, p := range s.Problems {
		reasons[p.Service] = p.Reason
	}
	if s.Services != 1 || reasons["default/b"] != "AddressConflict" || reasons["default/none"] != "NoPorts" || reasons["default/link"] != "ClusterIPRefused" {
		t.Errorf("%d Services, problems %v", s.Services, s.Problems)
	}
}
