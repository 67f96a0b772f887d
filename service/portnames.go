package service

import (
	"fmt"
	"slices"
	"strings"
)

// lacking finds the ports of a Service that none of its EndpointSlices has: they have
// no endpoints, because of a name that was written in two ways.
func lacking(svc *Service, endpointSlices []*EndpointSlice) (out []Problem) {
	for _, port := range svc.Ports {
		var names []string
		found := false
		for _, slice := range endpointSlices {
			if len(slice.Endpoints) == 0 || slice.ProxyName != "" || slice.Headless {
				continue
			}
			for _, p := range slice.Ports {
				found = found || p.Name == port.Name && p.Protocol == port.Protocol
				if text := fmt.Sprintf("%q over %s", p.Name, p.Protocol); !slices.Contains(names, text) {
					names = append(names, text)
				}
			}
		}
		if !found && len(names) > 0 {
			slices.Sort(names)
			out = append(out, Problem{"NoSuchEndpointPort", fmt.Sprintf("port %d has no endpoints: none of its EndpointSlices has a port named %q over %s (they have %s)",
				port.Port, port.Name, port.Protocol, strings.Join(names, ", "))})
		}
	}
	return out
}
