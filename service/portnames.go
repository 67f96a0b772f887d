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

// whyNone tells why a port has no endpoint that serves, of candidates and the
// EndpointSlices that name its Service.
func whyNone(port Port, family Family, all []candidate, endpointSlices []*EndpointSlice) string {
	if len(all) > 0 {
		return fmt.Sprintf("none of its %d endpoints is ready", len(all))
	}
	named, held := 0, 0
	var ports []string
	for _, s := range endpointSlices {
		if s.ProxyName != "" || s.Headless {
			continue
		}
		named++
		if s.Family != family {
			continue
		}
		held += len(s.Endpoints)
		for _, p := range s.Ports {
			if text := fmt.Sprintf("%q over %s", p.Name, p.Protocol); len(s.Endpoints) > 0 && !slices.Contains(ports, text) {
				ports = append(ports, text)
			}
		}
	}
	slices.Sort(ports)
	switch {
	case named == 0:
		return "no EndpointSlice has its name in the label kubernetes.io/service-name"
	case held == 0:
		return fmt.Sprintf("its EndpointSlices hold no %s endpoint: do Pods match its selector, and are they ready?", family)
	case len(ports) == 0:
		return "its EndpointSlices name no port"
	}
	return fmt.Sprintf("its EndpointSlices have no port named %q over %s, only %s", port.Name, port.Protocol, strings.Join(ports, ", "))
}
