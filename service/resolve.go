package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Config is what this node was told and found out about itself.
type Config struct {
	NodeName string
	Zone     string // label topology.kubernetes.io/zone; empty: no zone hints
	// NodeIPs are the node's primary addresses by family; zero where unknown.
	NodeIPs       [2]netip.Addr
	MasqueradeAll bool
	// ExternalIPs are the ranges outside of which no externalIP is honoured;
	// none means that every one may be.
	ExternalIPs []netip.Prefix
	Facts       NodeFacts
}

// Resolve works out what a Service with these EndpointSlices means on a node.
// It is pure, and its result does not depend on the order of slices. It
// returns nil for a Service that no proxy translates: headless, ExternalName,
// or another proxy's.
//
// Frontends that another Service owns are still in the result; a [Resolver]
// takes them out.
func Resolve(cfg *Config, svc *Service, slices []*EndpointSlice) *Resolved {
	if svc == nil || svc.Type == TypeExternalName || svc.ProxyName != "" || len(svc.ClusterIPs) == 0 {
		return nil
	}
	ext := readExtensions(svc, slices)
	out := &Resolved{Name: svc.Name, Problems: append(append(refusedAddresses(cfg, svc), ext.problems...), lacking(svc, slices)...)}
	for _, family := range Families {
		clusterIP, ok := firstOf(svc.ClusterIPs, family)
		if !ok {
			continue
		}
		for _, port := range svc.Ports {
			all := candidates(cfg.NodeName, family, port.Name, port.Protocol, slices, &ext)
			out.Ports = append(out.Ports, resolvePort(cfg, svc, port, family, clusterIP, all, slices, &ext))
		}
		out.Ports = append(out.Ports, resolveRange(cfg, svc, family, clusterIP, slices, &ext)...)
	}
	if len(svc.Ports) == 0 {
		out.Problems = append(out.Problems, Problem{"NoPorts", "it has no port that can be served: the Service is not served at all"})
	}
	sortPorts(out.Ports)
	out.HealthCheck = healthCheck(cfg, svc, slices)
	if p, ok := ownNodePort(out); ok {
		out.HealthCheck, out.Problems = nil, append(out.Problems, p)
	}
	return out
}

// ownNodePort tells of a health check at a node port of the Service itself: what
// comes there is forwarded to an endpoint.
func ownNodePort(res *Resolved) (p Problem, ok bool) {
	keys := healthKeys(res)
	eachFrontend(res, func(k frontendKey, _ *Frontend) {
		if slices.Contains(keys, k) {
			p, ok = Problem{"AddressConflict", fmt.Sprintf("health-check node port %s is a node port of the Service itself", k)}, true
		}
	})
	return p, ok
}

func sortPorts(ports []ServicePort) {
	slices.SortStableFunc(ports, func(a, b ServicePort) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.Name.Port, b.Name.Port))
	})
}

func resolvePort(cfg *Config, svc *Service, port Port, family Family, clusterIP netip.Addr, all []candidate, slices []*EndpointSlice, ext *extensions) ServicePort {
	lists := categorize(cfg, all)
	sp := ServicePort{
		Name:            PortName{svc.Name, port.Name, port.Protocol},
		Family:          family,
		Protocol:        port.Protocol,
		AffinityTimeout: svc.AffinityTimeout,
		Algorithm:       ext.algorithm,
	}
	p := policies{cfg: cfg, svc: svc, lists: lists, detector: cfg.Facts.Pods[family].Enabled()}
	sp.Frontends = frontends(cfg, svc, port, family, clusterIP, p)
	sp.Backends = usedLists(sp.Frontends, lists)
	for _, c := range all {
		if c.serving {
			sp.Serving = append(sp.Serving, c.addr)
			if c.local {
				sp.ServingLocal = append(sp.ServingLocal, c.addr)
			}
		}
	}
	if len(sp.Serving) == 0 {
		sp.NoEndpoint = whyNone(port, family, all, slices)
	}
	return sp
}

// usedLists keeps only the lists that a route names, so that a change in a
// list that nobody uses is no change.
func usedLists(frontends []Frontend, lists categorized) (out [2][]Backend) {
	for _, f := range frontends {
		for _, r := range f.Routes {
			if r.Action != Translate {
				continue
			}
			if r.List == ListLocal {
				out[ListLocal] = lists.local
			} else {
				out[ListCluster] = lists.cluster
			}
		}
	}
	return out
}

func frontends(cfg *Config, svc *Service, port Port, family Family, clusterIP netip.Addr, p policies) []Frontend {
	var out []Frontend
	if addressRefusal(clusterIP) == "" {
		out = append(out, Frontend{Kind: ClusterIP, Addr: clusterIP, Port: port.Port, Routes: p.internal()})
	}
	external := p.external()
	add := func(f Frontend) {
		f.Routes = external
		out = append(out, f)
	}
	lbs := captured(svc.Ingress, family)
	for _, addr := range unique(svc.ExternalIPs, family) {
		// An address that is also the load balancer's keeps its source ranges.
		if !slices.Contains(lbs, addr) && addr != clusterIP && externalIPRefusal(cfg, addr) == "" {
			add(Frontend{Kind: ExternalIP, Addr: addr, Port: port.Port})
		}
	}
	filtered, ranges := sourceRanges(cfg, svc, family, lbs)
	for _, addr := range lbs {
		if addr != clusterIP {
			add(Frontend{Kind: LoadBalancer, Addr: addr, Port: port.Port, Filtered: filtered, SourceRanges: ranges})
		}
	}
	if port.NodePort != 0 {
		add(Frontend{Kind: NodePort, Port: port.NodePort})
	}
	return out
}

// policies turns a Service's traffic policies into routes.
type policies struct {
	cfg      *Config
	svc      *Service
	lists    categorized
	detector bool
}

// route translates with a list, or says what happens without a backend in it.
func (p policies) route(list List, masquerade bool) Route {
	backends := p.lists.cluster
	if list == ListLocal {
		backends = p.lists.local
	}
	switch {
	case len(backends) > 0:
		return Route{Action: Translate, List: list, Masquerade: masquerade}
	case p.lists.exists:
		return Route{Action: Drop}
	}
	return Route{Action: Reject}
}

func (p policies) internal() [3]Route {
	list := ListCluster
	if p.svc.InternalPolicy == PolicyLocal {
		list = ListLocal
	}
	all := p.cfg.MasqueradeAll
	return [3]Route{
		FromPod:     p.route(list, all),
		FromNode:    p.route(list, all || p.detector),
		FromOutside: p.route(list, all || p.detector),
	}
}

// external includes the short-circuit of Local policies: Pods and this node
// are already where the load balancer would bring them, and may use every
// endpoint (docs/kube-proxy.md, "Policies by source").
func (p policies) external() [3]Route {
	if !p.externalLocal() {
		r := p.route(ListCluster, true)
		return [3]Route{r, r, r}
	}
	outside := p.route(ListLocal, false)
	pod := outside
	if p.detector {
		pod = p.route(ListCluster, false)
	}
	return [3]Route{FromPod: pod, FromNode: p.route(ListCluster, true), FromOutside: outside}
}

// externalLocal is the API helper ExternalPolicyLocal: the policy counts only
// where the Service can be reached from outside.
func (p policies) externalLocal() bool {
	if p.svc.ExternalPolicy != PolicyLocal {
		return false
	}
	switch p.svc.Type {
	case TypeNodePort, TypeLoadBalancer:
		return true
	}
	return len(p.svc.ExternalIPs) > 0
}

// captured returns the load balancer's addresses that this node answers for.
// One that is nobody's to give is left out, see refusedAddresses.
func captured(ingress []Ingress, family Family) []netip.Addr {
	var addrs []netip.Addr
	for _, in := range ingress {
		if !in.Proxy && addressRefusal(in.Addr) == "" {
			addrs = append(addrs, in.Addr)
		}
	}
	return unique(addrs, family)
}

// sourceRanges returns the ranges of one family. Ranges of the other family
// alone filter nothing. If the node itself is inside, its own packets to the
// load balancer may carry that address as source, so it is allowed too.
func sourceRanges(cfg *Config, svc *Service, family Family, lbs []netip.Addr) (filtered bool, ranges []netip.Prefix) {
	nodeIP := cfg.NodeIPs[family]
	nodeInside := false
	for _, r := range svc.SourceRanges {
		if FamilyOf(r.Addr()) != family {
			continue
		}
		if r.Bits() == 0 {
			return false, nil
		}
		ranges = append(ranges, r.Masked())
		nodeInside = nodeInside || nodeIP.IsValid() && r.Contains(nodeIP)
	}
	if len(ranges) == 0 {
		return false, nil
	}
	if nodeInside {
		for _, lb := range lbs {
			ranges = append(ranges, netip.PrefixFrom(lb, lb.BitLen()))
		}
	}
	slices.SortFunc(ranges, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return true, slices.Compact(ranges)
}

// refusedAddresses tells which of a Service's addresses are not served, and why.
func refusedAddresses(cfg *Config, svc *Service) []Problem {
	var out []Problem
	refuse := func(reason, kind string, addr netip.Addr, why string) {
		if p := (Problem{reason, fmt.Sprintf("%s %s %s", kind, addr, why)}); why != "" && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for _, addr := range svc.ClusterIPs {
		refuse("ClusterIPRefused", "clusterIP", addr, addressRefusal(addr))
	}
	for _, addr := range svc.ExternalIPs {
		refuse("ExternalIPRefused", "externalIP", addr, externalIPRefusal(cfg, addr))
	}
	for _, in := range svc.Ingress {
		if !in.Proxy {
			refuse("LoadBalancerIPRefused", "load-balancer address", in.Addr, addressRefusal(in.Addr))
		}
	}
	return out
}

// addressRefusal tells why no Service may have an address, whatever its kind,
// or "": these have a meaning for every machine or link (RFC 6890, RFC 4291),
// and who took them over would take them from all.
func addressRefusal(addr netip.Addr) string {
	switch {
	case addr.Is4In6(): // as sockets write IPv4: on the wire it is no address
		return "is an IPv4 address mapped into IPv6"
	case addr.IsLoopback():
		return "is a loopback address"
	case addr.IsLinkLocalUnicast():
		return "is a link-local address"
	case addr.IsMulticast():
		return "is a multicast address"
	case addr.IsUnspecified():
		return "is the unspecified address"
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	}
	return ""
}

// externalIPRefusal guards against a Service that takes over addresses which
// are nobody's to give (CVE-2020-8554). It returns why, or "".
func externalIPRefusal(cfg *Config, addr netip.Addr) string {
	if why := addressRefusal(addr); why != "" {
		return why
	}
	if len(cfg.ExternalIPs) > 0 && !inside(cfg.ExternalIPs, addr) {
		return "is outside --external-ip-cidrs"
	}
	if cidr := cfg.Facts.Pods[FamilyOf(addr)].CIDR; cidr.IsValid() && cidr.Contains(addr) {
		return fmt.Sprintf("is inside the Pod CIDR %s", cidr)
	}
	return ""
}

func healthCheck(cfg *Config, svc *Service, slices []*EndpointSlice) *HealthCheck {
	if svc.Type != TypeLoadBalancer || svc.ExternalPolicy != PolicyLocal || svc.HealthCheckNodePort == 0 {
		return nil
	}
	hc := &HealthCheck{Port: svc.HealthCheckNodePort}
	for _, family := range Families {
		if _, ok := firstOf(svc.ClusterIPs, family); !ok {
			continue
		}
		local := map[netip.Addr]struct{}{}
		for _, port := range svc.Ports {
			for _, c := range candidates(cfg.NodeName, family, port.Name, port.Protocol, slices, &extensions{}) {
				if c.ready && c.local {
					local[c.addr.Addr()] = struct{}{}
				}
			}
		}
		hc.LocalEndpoints[family] = len(local)
	}
	return hc
}

func firstOf(addrs []netip.Addr, family Family) (netip.Addr, bool) {
	for _, a := range addrs {
		if FamilyOf(a) == family {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// unique returns the addresses of a family, sorted, without duplicates.
func unique(addrs []netip.Addr, family Family) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if FamilyOf(a) == family {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
