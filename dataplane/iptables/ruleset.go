package iptables

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// settings are what the rules depend on besides the Table.
type settings struct {
	markBit     uint32 // the masquerade mark, one bit
	dropInvalid bool   // drop forwarded packets that conntrack calls INVALID
	randomFully bool   // MASQUERADE takes --random-fully
	owner       string // in the comment of the jumps from built-in chains
	// chainComments puts a comment into each Service's chains too, beside that
	// on the rule that leads there.
	chainComments bool
	ping          bool // answer pings of addresses that only Services have
	watched       bool // rules that refuse packets log them, for watch
}

// ruleset is the wanted rules of one family and how they follow from a Table,
// one Service at a time. It is pure: it knows no kernel. It is not safe for
// concurrent use.
type ruleset struct {
	settings
	family service.Family
	facts  *service.NodeFacts
	nat    *tableRules
	filter *tableRules
	// services are what the rules say now.
	services map[service.Name]*service.Resolved
	closed   int // frontends that reject or drop, at the last flush
	// flushed tells that there was a last flush. At the first another mode may
	// serve: what refuses packets without nat must not come before nat.
	flushed bool
	owned   map[netip.Addr]ownership
	// health accepts health-check node ports; checked are the Services that have
	// one, by port.
	health  *tree
	checked map[uint16][]service.Name
}

// tableRules are the wanted chains of one table.
type tableRules struct {
	addresses, ports *tree
	sums             map[string]sums     // of every wanted chain
	pending          map[string][]string // chains not yet handed over; nil: to be deleted
}

func newTableRules() *tableRules {
	return &tableRules{
		addresses: newTree("-d", dispatchLevels, prefixChain),
		ports:     newTree("-d", dispatchLevels, prefixChain),
		sums:      map[string]sums{},
		pending:   map[string][]string{},
	}
}

func newRuleset(family service.Family, facts *service.NodeFacts, s settings) *ruleset {
	r := &ruleset{
		settings: s, family: family, facts: facts,
		nat: newTableRules(), filter: newTableRules(),
		services: map[service.Name]*service.Resolved{},
		owned:    map[netip.Addr]ownership{},
		health:   newTree("-d", dispatchLevels, healthChain),
		checked:  map[uint16][]service.Name{},
	}
	r.filter.put(chainForward, r.forwardChain())
	r.filter.put(chainUnknown, r.unknownChain())
	r.filter.put(chainReturned, r.returnedChain())
	for chain, rules := range r.fixedChains() {
		r.nat.put(chain, rules)
	}
	return r
}

// unknownChain refuses. TCP gets a reset, see portCompiler.reject.
func (r *ruleset) unknownChain() []string {
	rules := []string{" -p tcp -j REJECT --reject-with tcp-reset", " -j REJECT"}
	if r.watched {
		rules = slices.Insert(rules, 0, unknownPort.rule())
	}
	return rules
}

// setWatched makes the rules that refuse packets log them, or not any more.
// Nothing else changes.
func (r *ruleset) setWatched(on bool) {
	if r.watched == on {
		return
	}
	before := map[service.Name]portRules{}
	for name, res := range r.services {
		if rules := r.compile(res); len(rules.closed)+len(rules.closedPorts) > 0 {
			before[name] = rules
		}
	}
	r.watched = on
	for name, rules := range before {
		after := r.compile(r.services[name])
		r.filter.addresses.replace(rules.closed, after.closed)
		r.filter.ports.replace(rules.closedPorts, after.closedPorts)
		r.filter.replace(rules.filter, after.filter)
	}
	r.filter.put(chainUnknown, r.unknownChain())
}

// update makes the rules of one Service say what next says; nil removes it.
func (r *ruleset) update(name service.Name, next *service.Resolved) {
	before, after := r.compile(r.services[name]), r.compile(next)
	r.nat.addresses.replace(before.addresses, after.addresses)
	r.nat.ports.replace(before.ports, after.ports)
	r.filter.addresses.replace(before.closed, after.closed)
	r.filter.ports.replace(before.closedPorts, after.closedPorts)
	r.nat.replace(before.nat, after.nat)
	r.filter.replace(before.filter, after.filter)
	r.own(r.services[name], -1)
	r.own(next, +1)
	r.acceptHealth(name, r.services[name], next)
	if next == nil {
		delete(r.services, name)
	} else {
		r.services[name] = next
	}
}

// compile renders all ports of a Service in this family.
func (r *ruleset) compile(res *service.Resolved) portRules {
	all := portRules{nat: map[string][]string{}, filter: map[string][]string{}}
	if res == nil {
		return all
	}
	for i := range res.Ports {
		if res.Ports[i].Family != r.family {
			continue
		}
		p := compilePort(&res.Ports[i], r.facts.Pods[r.family], r.settings)
		maps.Copy(all.nat, p.nat)
		maps.Copy(all.filter, p.filter)
		all.addresses = append(all.addresses, p.addresses...)
		all.ports = append(all.ports, p.ports...)
		all.closed = append(all.closed, p.closed...)
		all.closedPorts = append(all.closedPorts, p.closedPorts...)
	}
	return all
}

// delta is what a family's rules have to become: chains by name, nil for those
// to be deleted.
type delta struct {
	nat, filter map[string][]string
	// natFirst asks for nat to be written before filter: frontends stop being
	// refused.
	natFirst bool
}

// flush returns the chains that changed since the last flush.
func (r *ruleset) flush() delta {
	for _, t := range []*tableRules{r.nat, r.filter} {
		t.addresses.flush(t.put)
		t.ports.flush(t.put)
	}
	r.health.flush(r.filter.put)
	r.filter.put(chainHealth, r.healthRules())
	r.nat.put(chainServices, append(append(r.nat.addresses.entrance(), r.nodePorts(r.nat.ports, chainNodePorts)...), r.probeNAT()))
	r.nat.put(chainNodePorts, nonNil(r.nat.ports.entrance()))
	newFlows := []string{" -m conntrack --ctstate DNAT -j RETURN"} // sent to a backend that is on this node
	newFlows = append(newFlows, r.filter.addresses.entrance()...)
	newFlows = append(newFlows, r.nodePorts(r.filter.ports, chainClosedPorts)...)
	newFlows = append(newFlows, r.probeFilter())
	r.filter.put(chainNewFlows, newFlows)
	r.filter.put(chainClosedPorts, nonNil(r.filter.ports.entrance()))
	closed := r.filter.addresses.len() - len(r.owned) + r.filter.ports.len()
	natFirst := closed < r.closed || !r.flushed
	r.closed, r.flushed = closed, true
	return delta{nat: r.nat.take(), filter: r.filter.take(), natFirst: natFirst}
}

// nodePorts renders what leads to the tree of node ports.
func (r *ruleset) nodePorts(t *tree, chain string) []string {
	if t.len() == 0 {
		return nil
	}
	on := r.facts.NodePorts[r.family]
	if on.All { // loopback is not for netfilter: its answers would be martians
		notLoopback := " ! -d 127.0.0.0/8"
		if r.family == service.IPv6 {
			notLoopback = " ! -d ::1/128"
		}
		return []string{notLoopback + " -m addrtype --dst-type LOCAL -j " + chain}
	}
	var rules []string
	for _, a := range on.Addrs {
		rules = append(rules, " -d "+hostPrefix(a)+" -j "+chain)
	}
	for _, n := range on.Networks {
		rules = append(rules, " -d "+n.String()+" -j "+chain)
	}
	return rules
}

// masqueradePorts leave out those that ebpf mode takes by default: while the
// modes change, connections of both are open towards the same endpoints.
const masqueradePorts = "1024-60999"

// fixedChains are the nat chains that do not depend on Services.
func (r *ruleset) fixedChains() map[string][]string {
	random := ""
	if r.randomFully { // spreads concurrent flows over ports, so that they do not race for one
		random = " --random-fully"
	}
	ports := " -j MASQUERADE --to-ports " + masqueradePorts + random
	m := hex(r.markBit)
	return map[string][]string{chainPing: r.pingChain(), chainPostrouting: {
		// The bit may be in a mark that others gave to packets of no Service, as
		// WireGuard's 0xca6c holds kube-proxy's (kubernetes #113659).
		" -m conntrack ! --ctstate DNAT -j RETURN",
		hairpin(r.family) + mark(r.markBit),
		" -m mark ! --mark " + m + "/" + m + " -j RETURN",
		// The packet may come by again, for example after a tunnel: it must
		// not be masqueraded twice.
		" -j MARK --set-xmark " + m + "/0x0",
		" -p tcp" + ports,
		" -p udp" + ports,
		" -j MASQUERADE" + random,
	}}
}

// forwardChain keeps Services working beside a host firewall that drops
// forwarded packets.
func (r *ruleset) forwardChain() []string {
	var rules []string
	if r.dropInvalid { // else the client meets the backend's own address and resets (k8s #74839)
		rules = append(rules, " -m conntrack --ctstate INVALID -j DROP")
	}
	m := hex(r.markBit)
	return append(rules,
		// Of translated flows alone: others' marks are not for us to accept.
		" -m mark --mark "+m+"/"+m+" -m conntrack --ctstate DNAT -j ACCEPT",
		" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
}

// hook is the one rule in a built-in chain that leads to ours.
type hook struct {
	table, chain, rule string
	// behind asks for a place behind the jumps to chains of others with which the
	// built-in chain begins.
	behind bool
	// place is where it is to be inserted, from 1; 0 is the head.
	place int
}

func (r *ruleset) hooks() []hook {
	by := comment(r.owner)
	isNew := " -m conntrack --ctstate NEW"
	return []hook{
		{table: "nat", chain: "PREROUTING", rule: by + " -j " + chainServices},
		{table: "nat", chain: "OUTPUT", rule: by + " -j " + chainServices},
		{table: "nat", chain: "POSTROUTING", rule: by + " -j " + chainPostrouting},
		// What it accepts is no policy's to forbid any more: who judges Pods'
		// traffic stands before it. Refusals stand before all.
		{table: "filter", chain: "FORWARD", rule: by + " -j " + chainForward, behind: true},
		{table: "filter", chain: "INPUT", rule: isNew + by + " -j " + chainNewFlows},
		{table: "filter", chain: "FORWARD", rule: isNew + by + " -j " + chainNewFlows},
		{table: "filter", chain: "OUTPUT", rule: isNew + by + " -j " + chainNewFlows},
		r.healthHook(),
	}
}

func (r *ruleset) healthHook() hook {
	return hook{table: "filter", chain: "INPUT", rule: " -p tcp" + comment(r.owner) + " -j " + chainHealth}
}

// put wants a chain to hold rules, or to be gone if they are nil.
func (t *tableRules) put(chain string, rules []string) {
	before, had := t.sums[chain]
	if rules == nil {
		if had {
			delete(t.sums, chain)
			t.pending[chain] = nil
		}
		return
	}
	now := sumsOf(rules)
	if had && before == now {
		return
	}
	t.sums[chain] = now
	t.pending[chain] = rules
}

func (t *tableRules) replace(before, after map[string][]string) {
	for chain := range before {
		if _, kept := after[chain]; !kept {
			t.put(chain, nil)
		}
	}
	for chain, rules := range after {
		t.put(chain, nonNil(rules))
	}
}

func (t *tableRules) take() map[string][]string {
	out := t.pending
	t.pending = map[string][]string{}
	return out
}

// replace moves a Service's entries in a tree from before to after.
func (t *tree) replace(before, after []entry) {
	for _, e := range before {
		if !slices.ContainsFunc(after, func(a entry) bool { return a.key == e.key }) {
			t.remove(e)
		}
	}
	for _, e := range after {
		if !slices.Contains(before, e) {
			t.set(e)
		}
	}
}

// sums tell two versions of a chain apart without keeping their rules: text is
// over what is written, shape over what can be recognised when the kernel's
// rules are read back (see [addShape]).
type sums struct {
	text, shape uint64
}

var sumSeed = maphash.MakeSeed()

func sumsOf(rules []string) sums {
	var text, shape maphash.Hash
	text.SetSeed(sumSeed)
	shape.SetSeed(sumSeed)
	for _, rule := range rules {
		text.WriteString(rule)
		text.WriteByte('\n')
		addShape(&shape, rule)
	}
	return sums{text.Sum64(), shape.Sum64()}
}

func nonNil(rules []string) []string {
	if rules == nil {
		return []string{}
	}
	return rules
}
