package iptables

import (
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// portRules are the chains and tree entries of one ServicePort.
type portRules struct {
	nat, filter         map[string][]string // chains by name
	addresses, ports    []entry             // nat: by address, and node ports
	closed, closedPorts []entry             // filter: the same, for what rejects or drops
}

// portCompiler renders one ServicePort. It is pure.
type portCompiler struct {
	sp      *service.ServicePort
	pods    service.PodDetector
	mark    uint32
	comment string
	// chainComments and watched are those of settings.
	chainComments, watched bool
	out                    portRules
	shared                 [2]bool // lists that more than one chain refers to
}

func compilePort(sp *service.ServicePort, pods service.PodDetector, s settings) portRules {
	c := &portCompiler{
		sp: sp, pods: pods, mark: s.markBit, comment: sp.Name.String(), chainComments: s.chainComments, watched: s.watched,
		out: portRules{nat: map[string][]string{}, filter: map[string][]string{}},
	}
	c.findShared()
	for i := range sp.Frontends {
		c.frontend(&sp.Frontends[i])
	}
	return c.out
}

// findShared tells which lists need a chain of their own: those that are
// entered from more than one place.
func (c *portCompiler) findShared() {
	var entered [2]map[string]bool
	for i := range c.sp.Frontends {
		f := &c.sp.Frontends[i]
		for list := range entered {
			if entered[list] == nil {
				entered[list] = map[string]bool{}
			}
			if f.LeadsTo(service.List(list), c.pods.Enabled()) {
				entered[list][c.policyChain(f)] = true
			}
		}
	}
	for list := range entered {
		c.shared[list] = len(entered[list]) > 1 || len(c.sp.Frontends) > 0 && c.split(service.List(list))
	}
}

func (c *portCompiler) policyChain(f *service.Frontend) string {
	if f.Kind.External() {
		return portChain(chainExt, c.sp)
	}
	return portChain(chainSvc, c.sp)
}

// frontend adds what leads to a frontend's backends and what closes it.
func (c *portCompiler) frontend(f *service.Frontend) {
	k := frontendKey(f.Addr, c.sp.Protocol, f.Port)
	name := c.comment + " " + f.Kind.String()
	match := ""
	if f.LastPort != 0 {
		k, match = k.prefix(k.addrBits+protocolBits), portsMatch(c.sp.Protocol, f.Port, f.LastPort)
	}
	if anyRoute(f, c.pods.Enabled(), func(r service.Route) bool { return r.Action == service.Translate }) {
		e := entry{key: k, match: match, comment: name, target: "-j " + c.exceptions(f, c.policy(f))}
		if f.Kind == service.NodePort {
			c.out.ports = append(c.out.ports, e)
		} else {
			c.out.addresses = append(c.out.addresses, e)
		}
	}
	target, why := c.closing(f)
	if target == "" {
		return
	}
	e := entry{key: k, match: match, comment: name, target: target, log: c.logged(why)}
	if f.Kind == service.NodePort {
		c.out.closedPorts = append(c.out.closedPorts, e)
	} else {
		c.out.closed = append(c.out.closed, e)
	}
}

// exceptions returns a chain that leads a range's packets to chain, but for
// those that have a frontend of their own and came by because it is closed.
func (c *portCompiler) exceptions(f *service.Frontend, chain string) string {
	if len(f.Except) == 0 {
		return chain
	}
	var rules []string
	for _, port := range f.Except {
		rules = append(rules, " -p "+protocolName(c.sp.Protocol)+portsMatch(c.sp.Protocol, port, port)+" -j RETURN")
	}
	name := portChain(chainRange, c.sp, f.Addr.String())
	c.out.nat[name] = c.withComment(append(rules, " -j "+chain))
	return name
}

// portsMatch renders the comparison with a range of ports.
func portsMatch(p service.Protocol, first, last uint16) string {
	ports := itoa(first)
	if last != first {
		ports += ":" + itoa(last)
	}
	return " -m " + protocolName(p) + " --dport " + ports
}

// policy returns the chain that a frontend's packets enter.
func (c *portCompiler) policy(f *service.Frontend) string {
	chain := c.policyChain(f)
	if _, done := c.out.nat[chain]; !done {
		c.out.nat[chain] = c.policyRules(f)
	}
	if !f.Filtered {
		return chain
	}
	lb := portChain(chainLB, c.sp)
	if _, done := c.out.nat[lb]; !done {
		c.out.nat[lb] = c.sources(c.out.nat, lb, entry{target: "-j " + chain}, f)
	}
	return lb
}

// sources renders rules that do to packets from a frontend's source ranges what
// an entry says; all others fall through.
func (c *portCompiler) sources(chains map[string][]string, owner string, e entry, f *service.Frontend) []string {
	t := newTree("-s", sourceLevels, sourceChain(owner))
	for _, r := range f.SourceRanges {
		e.key = prefixKey(r)
		t.set(e)
	}
	t.flush(func(chain string, rules []string) {
		if rules != nil {
			chains[chain] = rules
		}
	})
	return c.withComment(t.entrance())
}

// policyRules renders the routes of a frontend: a class of source that is
// treated unlike the rest leaves first, the others share the end.
func (c *portCompiler) policyRules(f *service.Frontend) []string {
	var rules []string
	last := f.Routes[service.FromOutside]
	stay := []service.Source{service.FromOutside}
	for _, class := range []service.Source{service.FromPod, service.FromNode} {
		if class == service.FromPod && !c.pods.Enabled() {
			continue
		}
		r := f.Routes[class]
		if r.Action == last.Action && r.List == last.List {
			stay = append(stay, class)
			continue
		}
		match := fromNode
		if class == service.FromPod {
			match = fromPod(c.pods, false)
		}
		if r.Action != service.Translate {
			rules = append(rules, match+" -j RETURN") // closed in the filter table
			continue
		}
		if r.Masquerade {
			rules = append(rules, match+mark(c.mark))
		}
		rules = append(rules, match+" -j "+c.listChain(r.List))
	}
	if last.Action == service.Translate {
		rules = append(rules, c.markRules(f, stay)...)
		rules = append(rules, c.enter(last.List)...)
	}
	return c.withComment(rules)
}

// markRules marks the classes among those that are still here whose route
// masquerades.
func (c *portCompiler) markRules(f *service.Frontend, classes []service.Source) []string {
	masked := func(s service.Source) bool { return f.Routes[s].Masquerade }
	notPod := ""
	if slices.Contains(classes, service.FromPod) {
		notPod = fromPod(c.pods, true)
	}
	plain := slices.ContainsFunc(classes, func(s service.Source) bool { return !masked(s) })
	switch {
	case !slices.ContainsFunc(classes, masked):
		return nil
	case !plain:
		return []string{mark(c.mark)}
	}
	node := slices.Contains(classes, service.FromNode)
	var rules []string
	if slices.Contains(classes, service.FromPod) && masked(service.FromPod) {
		rules = append(rules, fromPod(c.pods, false)+mark(c.mark))
	}
	switch {
	case masked(service.FromOutside) && (!node || masked(service.FromNode)):
		rules = append(rules, notPod+mark(c.mark))
	case masked(service.FromOutside):
		rules = append(rules, notPod+" -m addrtype ! --src-type LOCAL"+mark(c.mark))
	case node && masked(service.FromNode):
		rules = append(rules, notPod+fromNode+mark(c.mark))
	}
	return rules
}

// enter renders what leads into a list at the end of a chain: the backends
// themselves, or a jump to the chain that several share.
func (c *portCompiler) enter(list service.List) []string {
	if c.shared[list] {
		return []string{" -j " + c.listChain(list)}
	}
	return c.pick(c.listName(list), c.sp.Backends[list])
}

func (c *portCompiler) listName(list service.List) string {
	if list == service.ListLocal {
		return portChain(chainLoc, c.sp)
	}
	return portChain(chainAll, c.sp)
}

// listChain returns the chain of a list, rendering it when it is first needed.
func (c *portCompiler) listChain(list service.List) string {
	name := c.listName(list)
	if _, done := c.out.nat[name]; !done {
		c.out.nat[name] = c.withComment(c.pick(name, c.sp.Backends[list]))
	}
	return name
}

// closing returns the target that meets packets which no rule has translated,
// or "" where every packet is, and why they are refused there, if that is one
// reason.
func (c *portCompiler) closing(f *service.Frontend) (target string, why refusal) {
	rejects := anyRoute(f, c.pods.Enabled(), func(r service.Route) bool { return r.Action == service.Reject })
	drops := anyRoute(f, c.pods.Enabled(), func(r service.Route) bool { return r.Action == service.Drop })
	switch {
	case rejects && f.Filtered: // a source outside the ranges learns nothing
		return c.firewall(f, entry{target: c.reject(true), log: c.logged(noEndpoints)}), 0
	case drops && f.Filtered && c.watched: // the same drop for two reasons
		return c.firewall(f, entry{target: "-j DROP", log: c.logged(policy)}), 0
	case rejects:
		return c.reject(false), noEndpoints
	case f.Filtered && !drops:
		return "-j DROP", sourceRange
	case drops:
		return "-j DROP", policy
	}
	return "", 0
}

// firewall returns what leads to a chain that does to packets from inside the
// source ranges what an entry says, and drops all others.
func (c *portCompiler) firewall(f *service.Frontend, inside entry) string {
	fw := portChain(chainFw, c.sp)
	rules := c.sources(c.out.filter, fw, inside, f)
	if log := c.logged(sourceRange); log != 0 {
		rules = append(rules, log.rule())
	}
	c.out.filter[fw] = append(rules, " -j DROP")
	return "-j " + fw
}

// logged is a refusal if somebody watches.
func (c *portCompiler) logged(why refusal) refusal {
	if !c.watched {
		return 0
	}
	return why
}

// reject returns the target that refuses a packet at once. For TCP that is a
// reset: an ICMP error which comes back while connect still holds the socket,
// as over a veth it does, counts as a hint only and costs the caller a second,
// until the SYN is sent again. match asks for -p, where no rule before has it.
func (c *portCompiler) reject(match bool) string {
	switch {
	case c.sp.Protocol != service.TCP:
		return "-j REJECT"
	case match:
		return "-p tcp -j REJECT --reject-with tcp-reset"
	}
	return "-j REJECT --reject-with tcp-reset"
}

func anyRoute(f *service.Frontend, pods bool, is func(service.Route) bool) bool {
	return is(f.Routes[service.FromPod]) && pods || is(f.Routes[service.FromNode]) || is(f.Routes[service.FromOutside])
}

// withComment puts a comment on the first rule, which is enough to tell whose
// chain it is.
func (c *portCompiler) withComment(rules []string) []string {
	if c.chainComments && len(rules) > 0 {
		rules[0] = insertComment(rules[0], comment(c.comment))
	}
	return rules
}
