package service

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What goes beyond the Service API is asked for by annotation. On a Service:
//
//	nodeproxy.io/port-range: "10000-20000"
//	nodeproxy.io/algorithm: maglev
//
// and on an EndpointSlice, by endpoint address:
//
//	nodeproxy.io/weights: '{"10.244.1.5": 3, "10.244.2.7": 1}'
const (
	annotationPortRange = "nodeproxy.io/port-range"
	annotationAlgorithm = "nodeproxy.io/algorithm"
	annotationWeights   = "nodeproxy.io/weights"
)

// MaxWeight is the largest weight that an endpoint can be given.
const MaxWeight = 100

// Algorithm is how a backend is chosen for a new flow.
type Algorithm uint8

// The algorithms. The zero value is kube-proxy's.
const (
	// Random chooses each backend as often as its weight says.
	Random Algorithm = iota
	// Maglev hashes the flow, so that nodes which share a load balancer's
	// traffic agree about every flow, and few flows move when a backend comes
	// or goes (Eisenbud et al., NSDI 2016).
	Maglev
)

// String returns "random" or "maglev", as the annotation has it.
func (a Algorithm) String() string {
	if a == Maglev {
		return "maglev"
	}
	return "random"
}

// extensions are a Service's annotations, as far as they can be read.
type extensions struct {
	first, last uint16 // the port range; 0 for none
	algorithm   Algorithm
	weights     map[netip.Addr]uint16
	problems    []Problem
}

func readExtensions(svc *Service, endpointSlices []*EndpointSlice) extensions {
	var out extensions
	if text, ok := svc.Annotations[annotationPortRange]; ok {
		first, last, err := parsePortRange(text)
		if err != nil {
			out.problems = append(out.problems, Problem{"InvalidPortRange", err.Error()})
		}
		out.first, out.last = first, last
	}
	switch text := svc.Annotations[annotationAlgorithm]; text {
	case "", "random":
	case "maglev":
		out.algorithm = Maglev
	default:
		out.problems = append(out.problems, Problem{"InvalidAlgorithm",
			fmt.Sprintf("annotation %s: %q is none of random, maglev; random is used", annotationAlgorithm, text)})
	}
	for _, slice := range endpointSlices {
		if slice.Weights == "" || slice.ProxyName != "" || slice.Headless {
			continue
		}
		weights, err := parseWeights(slice.Weights)
		if err != nil {
			out.problems = append(out.problems, Problem{"InvalidWeights", fmt.Sprintf("EndpointSlice %s: %v; its endpoints weigh 1", slice.Name, err)})
			continue
		}
		for a, w := range weights {
			if out.weights == nil {
				out.weights = map[netip.Addr]uint16{}
			}
			out.weights[a] = w
		}
	}
	return out
}

// weight is 1 for an endpoint that no annotation names.
func (e *extensions) weight(a netip.Addr) uint16 {
	if w, ok := e.weights[a]; ok {
		return w
	}
	return 1
}

func parsePortRange(text string) (first, last uint16, err error) {
	low, high, ok := strings.Cut(strings.TrimSpace(text), "-")
	a, errA := strconv.ParseUint(strings.TrimSpace(low), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(high), 10, 16)
	if !ok || errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, fmt.Errorf("annotation %s: %q is no range of ports such as 10000-20000", annotationPortRange, text)
	}
	return uint16(a), uint16(b), nil
}

func parseWeights(text string) (map[netip.Addr]uint16, error) {
	var in map[string]int
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return nil, fmt.Errorf("annotation %s: it is no JSON object of addresses and weights: %w", annotationWeights, err)
	}
	out := make(map[netip.Addr]uint16, len(in))
	for key, w := range in {
		a, err := netip.ParseAddr(key)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q is no IP address", annotationWeights, key)
		}
		if w < 0 || w > MaxWeight {
			return nil, fmt.Errorf("annotation %s: weight %d of %s is not within 0 and %d", annotationWeights, w, a, MaxWeight)
		}
		out[a.Unmap()] = uint16(w)
	}
	return out, nil
}

// weigh brings the weights of a list into their smallest form, so that lists
// which mean the same are equal. Backends of weight 0 get no new flows, unless
// all of them have it.
func weigh(backends []Backend) []Backend {
	if slices.ContainsFunc(backends, func(b Backend) bool { return b.Weight > 0 }) {
		backends = slices.DeleteFunc(backends, func(b Backend) bool { return b.Weight == 0 })
	}
	divisor, equal := uint16(0), true
	for _, b := range backends {
		divisor = gcd(divisor, b.Weight)
		equal = equal && b.Weight == backends[0].Weight
	}
	for i := range backends {
		if equal {
			backends[i].Weight = 0
		} else {
			backends[i].Weight /= divisor
		}
	}
	return backends
}

func gcd(a, b uint16) uint16 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Shares returns the sum of the weights of a list.
func Shares(backends []Backend) int {
	sum := 0
	for _, b := range backends {
		sum += b.Shares()
	}
	return sum
}

// resolveRange works out the ports of a Service's range: one ServicePort for
// each protocol of its ports. The endpoints are those of the first port of that
// protocol, at whatever port was dialled.
func resolveRange(cfg *Config, svc *Service, family Family, clusterIP netip.Addr, slices []*EndpointSlice, ext *extensions) []ServicePort {
	if ext.first == 0 {
		return nil
	}
	var out []ServicePort
	for _, protocol := range Protocols {
		at := -1
		for i, p := range svc.Ports {
			if p.Protocol == protocol && at < 0 {
				at = i
			}
		}
		if at < 0 {
			continue
		}
		all := candidates(cfg.NodeName, family, svc.Ports[at].Name, protocol, slices, ext)
		all = atAnyPort(all)
		// A colon cannot be in the name of a real port.
		port := Port{Name: fmt.Sprintf("%d:%d", ext.first, ext.last), Protocol: protocol, Port: ext.first}
		sp := resolvePort(cfg, svc, port, family, clusterIP, all, slices, ext)
		for i := range sp.Frontends {
			sp.Frontends[i].LastPort = ext.last
		}
		out = append(out, sp)
	}
	return out
}

// atAnyPort takes the ports off endpoints, of which one for each address stays.
func atAnyPort(all []candidate) []candidate {
	var out []candidate
	for _, c := range all {
		c.addr = netip.AddrPortFrom(c.addr.Addr(), 0)
		if !slices.ContainsFunc(out, func(o candidate) bool { return o.addr == c.addr }) {
			out = append(out, c)
		}
	}
	return out
}
