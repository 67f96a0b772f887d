package iptables

import (
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// acceptHealth moves a Service's health-check node port from before to next. As
// kube-proxy's, such a port is open whatever the host's firewall says of others:
// the load balancer that asks there is the operator's, and without an answer the
// node gets no traffic (kubernetes #97225).
func (r *ruleset) acceptHealth(name service.Name, before, next *service.Resolved) {
	was, is := r.healthPort(before), r.healthPort(next)
	if was == is {
		return
	}
	if was != 0 {
		names := slices.DeleteFunc(slices.Clone(r.checked[was]), func(n service.Name) bool { return n == name })
		r.setHealth(was, names)
	}
	if is != 0 {
		names := append(slices.Clone(r.checked[is]), name)
		slices.SortFunc(names, service.Name.Compare)
		r.setHealth(is, names)
	}
}

// healthPort is the port that a Service has to be asked at in this family; 0 for
// none.
func (r *ruleset) healthPort(res *service.Resolved) uint16 {
	if res == nil || res.HealthCheck == nil {
		return 0
	}
	if !slices.ContainsFunc(res.Ports, func(sp service.ServicePort) bool { return sp.Family == r.family }) {
		return 0
	}
	return res.HealthCheck.Port
}

// setHealth writes the rule of a port, which names the first of its Services.
func (r *ruleset) setHealth(port uint16, names []service.Name) {
	entryOf := func(names []service.Name) entry {
		return entry{key: frontendKey(netip.Addr{}, service.TCP, port), comment: names[0].String() + " health check", target: "-j ACCEPT"}
	}
	if len(names) > 0 {
		r.health.set(entryOf(names))
		r.checked[port] = names
		return
	}
	r.health.remove(entryOf(r.checked[port]))
	delete(r.checked, port)
}

// healthRules lead to the tree, at the addresses on which the agent listens.
func (r *ruleset) healthRules() []string {
	if r.health.len() == 0 {
		return []string{}
	}
	if r.facts.NodePorts[r.family].All {
		return r.health.entrance()
	}
	return nonNil(r.nodePorts(r.health, r.health.name(r.health.root.prefix)))
}
