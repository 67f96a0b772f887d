package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// inlineBackends is the number of backends up to which a choice is a plain
	// list of rules.
	inlineBackends = 8
	// pickLeaf is the number of backends in the smallest leaf of the tree of a
	// longer list.
	pickLeaf = 4
	// pickDepth is how many chains deep that tree is at most. nf_tables refuses
	// rules that lead through more than 16 chains (NFT_JUMP_STACK_SIZE), those of
	// the dispatch included, and then everything that is written with them.
	pickDepth = 3
	// filteredDepth is the same below a tree of source ranges.
	filteredDepth = 1
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
	depth := pickDepth
	if slices.ContainsFunc(c.sp.Frontends, func(f service.Frontend) bool { return f.Filtered }) {
		depth = filteredDepth
	}
	p := picker{owner: owner, chains: c.out.nat}
	return append(rules, p.choose(targets, costFor(len(targets), depth), depth)...)
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
// and so on. That makes 9 comparisons at most for 100 backends, and 14 for 1,000.
type picker struct {
	owner  string
	chains map[string][]string
	made   int
}

// maxCost is more comparisons than any Service needs.
const maxCost = 80

// capacities holds, by depth of the tree below a chain and number of
// comparisons, how many backends can be told apart.
var capacities = func() (c [pickDepth + 1][maxCost]int) {
	for cost := range maxCost {
		c[0][cost] = cost
		for depth := 1; depth <= pickDepth; depth++ {
			for i := 1; i < cost; i++ {
				c[depth][cost] += c[depth-1][cost-i]
			}
			c[depth][cost] = max(c[depth][cost], c[depth-1][cost])
		}
	}
	return c
}()

func costFor(n, depth int) int {
	cost := pickLeaf
	for cost < maxCost-1 && capacities[depth][cost] < n {
		cost++
	}
	return cost
}

func (p *picker) choose(targets []target, cost, depth int) []string {
	for depth > 0 && len(targets) <= capacities[depth-1][max(cost, 0)] {
		depth-- // a flatter one does as well
	}
	if len(targets) <= pickLeaf || depth == 0 {
		return oneOf(targets)
	}
	var rules []string
	for i := 1; len(targets) > 0; i++ {
		n := min(capacities[depth-1][max(cost-i, 1)], len(targets))
		if i >= cost-1 { // the last that the budget has room for
			n = len(targets)
		}
		p.made++
		name := hashedName(chainPick, p.owner, fmt.Sprint(p.made))
		p.chains[name] = p.choose(targets[:n], cost-i, depth-1)
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
