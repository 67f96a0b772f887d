package service

import (
	"net/netip"
	"slices"
	"strings"
)

// candidate is an endpoint of one ServicePort, before any choice.
type candidate struct {
	addr                        netip.AddrPort
	key                         string // "ip:port", the order in which kube-proxy sorts
	local                       bool
	ready, serving, terminating bool
	zoneHints, nodeHints        []string
	weight                      uint16
}

// draining means that it may be used when nothing is ready (KEP-1669).
func (c candidate) draining() bool { return !c.ready && c.serving && c.terminating }

// candidates collects the endpoints that slices hold for a port of that name
// and protocol, sorted, without duplicates. Of two entries for one ip:port the
// one on this node wins, then the later one.
func candidates(nodeName string, family Family, port string, protocol Protocol, all []*EndpointSlice, ext *extensions) []candidate {
	byAddr := map[netip.AddrPort]candidate{}
	for _, slice := range all {
		if slice.Family != family || slice.ProxyName != "" || slice.Headless {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port || p.Protocol != protocol {
				continue
			}
			for _, ep := range slice.Endpoints {
				c := candidate{
					addr:        netip.AddrPortFrom(ep.Addr, p.Number),
					local:       ep.NodeName != "" && ep.NodeName == nodeName,
					ready:       ep.Ready,
					serving:     ep.Serving,
					terminating: ep.Terminating,
					weight:      ext.weight(ep.Addr),
				}
				if h := ep.Hints; h != nil {
					c.zoneHints, c.nodeHints = h.Zones, h.Nodes
				}
				if old, ok := byAddr[c.addr]; ok && old.local && !c.local {
					continue
				}
				byAddr[c.addr] = c
			}
		}
	}
	out := make([]candidate, 0, len(byAddr))
	for _, c := range byAddr {
		c.key = c.addr.String()
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b candidate) int { return strings.Compare(a.key, b.key) })
	return out
}

// categorized are the lists that traffic policies choose from.
type categorized struct {
	cluster, local []Backend
	// exists means that something is usable on some node: a Local policy
	// without a local backend then drops instead of rejecting.
	exists bool
}

// categorize makes the lists of kube-proxy's CategorizeEndpoints. The two
// fall-backs on terminating endpoints are independent of each other.
func categorize(cfg *Config, all []candidate) categorized {
	hinted := hintFilter(cfg.NodeName, cfg.Zone, all)
	ready := func(c candidate) bool { return c.ready }
	var out categorized
	out.cluster = choose(all, func(c candidate) bool { return c.ready && hinted(c) })
	if len(out.cluster) == 0 {
		out.cluster = choose(all, candidate.draining)
	}
	onNode := func(f func(candidate) bool) func(candidate) bool {
		return func(c candidate) bool { return c.local && f(c) }
	}
	out.local = choose(all, onNode(ready))
	if len(out.local) == 0 {
		out.local = choose(all, onNode(candidate.draining))
	}
	out.exists = len(out.cluster) > 0
	return out
}

func choose(all []candidate, use func(candidate) bool) []Backend {
	var out []Backend
	for _, c := range all {
		if use(c) {
			out = append(out, Backend{AddrPort: c.addr, Local: c.local, Weight: c.weight})
		}
	}
	return weigh(out)
}

// hintFilter tells which ready endpoints topology hints leave for this node.
// Hints of a kind count only if every ready endpoint has them and at least one
// names this node (or its zone); node hints come before zone hints (KEP-4444).
func hintFilter(nodeName, zone string, all []candidate) func(candidate) bool {
	nodes, zones := hintUse{need: nodeName}, hintUse{need: zone}
	for _, c := range all {
		if c.ready {
			nodes.see(c.nodeHints)
			zones.see(c.zoneHints)
		}
	}
	switch {
	case nodes.usable():
		return func(c candidate) bool { return slices.Contains(c.nodeHints, nodeName) }
	case zones.usable():
		return func(c candidate) bool { return slices.Contains(c.zoneHints, zone) }
	}
	return func(candidate) bool { return true }
}

type hintUse struct {
	need             string
	missing, matched bool
}

func (h *hintUse) see(hints []string) {
	h.missing = h.missing || len(hints) == 0
	h.matched = h.matched || slices.Contains(hints, h.need)
}

func (h *hintUse) usable() bool { return h.need != "" && h.matched && !h.missing }
