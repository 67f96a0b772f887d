package iptables

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// inlineBackends is the number of backends up to which a choice is a plain
	// list of rules.
	inlineBackends = 8
	// pickLeaf is the number of backends in a leaf of the tree of a longer
	// list, and pickWays the number of branches of its other chains.
	pickLeaf, pickWays = 4, 4
)

// split reports whether a list is too long to stand in another chain.
func (c *portCompiler) split(list service.List) bool {
	return len(c.sp.Backends[list]) > inlineBackends || c.sp.AffinityTimeout > 0
}

// target is where a backend's packets go, and its weight.
type target struct {
	rule   string
	shares int
}

func sharesOf(targets []target) int {
	sum := 0
	for _, t := range targets {
		sum += t.shares
	}
	return sum
}

// pick renders the choice of a backend: by session affinity where there is
// any, else at random, each backend as often as its weight says.
func (c *portCompiler) pick(owner string, backends []service.Backend) []string {
	var rules []string
	targets := make([]target, len(backends))
	for i, b := range backends {
		targets[i].shares = b.Shares()
		if c.sp.AffinityTimeout == 0 {
			targets[i].rule = c.dnat(b.AddrPort)
			continue
		}
		sep := c.endpointChain(b.AddrPort)
		targets[i].rule = " -j " + sep
		rules = append(rules, fmt.Sprintf(" -m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -j %s",
			int(c.sp.AffinityTimeout.Seconds()), sep, hostMask(c.sp.Family), sep))
	}
	if len(targets) <= inlineBackends {
		return append(rules, oneOf(targets)...)
	}
	p := picker{owner: owner, chains: c.out.nat}
	return append(rules, p.choose(targets, costFor(len(targets)))...)
}

// endpointChain remembers the client when it leads to an endpoint.
func (c *portCompiler) endpointChain(a netip.AddrPort) string {
	name := portChain(chainSep, c.sp, a.String())
	c.out.nat[name] = []string{
		" -m recent --set --name " + name + " --mask " + hostMask(c.sp.Family) + " --rsource",
		c.dnat(a),
	}
	return name
}

func hostMask(f service.Family) string {
	if f == service.IPv6 {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

func (c *portCompiler) dnat(a netip.AddrPort) string {
	to := a.String()
	if a.Port() == 0 { // the port stays
		to = a.Addr().String()
	}
	return " -p " + protocolName(c.sp.Protocol) + " -j DNAT --to-destination " + to
}

// oneOf renders a plain list: each rule takes its share of what is left, which
// is one in n-i for rule i of n equal ones.
func oneOf(targets []target) []string {
	rules := make([]string, len(targets))
	left := sharesOf(targets)
	for i, t := range targets {
		rules[i] = t.rule
		if i < len(targets)-1 {
			rules[i] = insertMatch(t.rule, probability(t.shares, left))
		}
		left -= t.shares
	}
	return rules
}

// picker renders the choice from a long list as a tree of chains. A packet
// that takes the i-th rule of a chain was compared with i rules, so the first
// branches are given more backends than the last: with a budget of n
// comparisons a node serves as many backends as its branches do with n-1, n-2
// and so on. That makes nine comparisons at most for 134 backends.
type picker struct {
	owner  string
	chains map[string][]string
	made   int
}

// capacities holds, by number of comparisons, how many backends can be told
// apart with them; far more than a Service can have at the end.
var capacities = func() (c [40]int) {
	for cost := range c {
		if cost <= pickLeaf {
			c[cost] = cost
			continue
		}
		for i := 1; i <= pickWays; i++ {
			c[cost] += c[cost-i]
		}
	}
	return c
}()

func costFor(n int) int {
	cost := 1
	for capacities[cost] < n {
		cost++
	}
	return cost
}

func (p *picker) choose(targets []target, cost int) []string {
	if len(targets) <= pickLeaf {
		return oneOf(targets)
	}
	var rules []string
	for i := 1; len(targets) > 0; i++ {
		n := min(capacities[max(cost-i, 0)], len(targets))
		if i == pickWays {
			n = len(targets)
		}
		p.made++
		name := hashedName(chainPick, p.owner, fmt.Sprint(p.made))
		p.chains[name] = p.choose(targets[:n], cost-i)
		jump := " -j " + name
		if n < len(targets) {
			jump = probability(sharesOf(targets[:n]), sharesOf(targets)) + jump
		}
		rules = append(rules, jump)
		targets = targets[n:]
	}
	return rules
}

// insertMatch puts a match before the target of a rule, and insertComment a
// comment in the place where iptables-save prints the first match.
func insertMatch(rule, match string) string {
	at := strings.Index(rule, " -j ")
	return rule[:at] + match + rule[at:]
}

func insertComment(rule, comment string) string {
	at := strings.Index(rule, " -m ")
	if j := strings.Index(rule, " -j "); at < 0 || j >= 0 && j < at {
		at = j
	}
	if at < 0 {
		return rule + comment
	}
	return rule[:at] + comment + rule[at:]
}
