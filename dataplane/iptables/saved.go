package iptables

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/service"
)

// ourRules is what of a family's rules in the kernel is ours: our chains, and the
// rules of built-in chains that lead to them.
type ourRules struct {
	family service.Family
	tables map[string]map[string][]savedRule // by table and chain
	// foreign tells that rules of others stand in the chains that ours hang on:
	// what they do to a packet is not known here.
	foreign bool
}

// savedRule is a rule with its counters.
type savedRule struct {
	text           string // without "-A CHAIN", as iptables-save prints it
	packets, bytes uint64
}

// readSaved reads both tables from the kernel, with counters.
func (k *kernel) readSaved(ctx context.Context) (*ourRules, error) {
	s := &ourRules{family: k.family, tables: map[string]map[string][]savedRule{}}
	for _, table := range []string{"nat", "filter"} {
		if k.backend == BackendLegacy && !k.legacyTableExists(table) {
			continue
		}
		out, err := k.saveTable(ctx, table, "-c")
		if err != nil {
			return nil, err
		}
		s.add(table, out)
	}
	return s, nil
}

// add parses the output of iptables-save -c for one table.
func (s *ourRules) add(table string, out []byte) {
	chains := map[string][]savedRule{}
	for line := range bytes.Lines(out) {
		text := strings.TrimSpace(string(line))
		if chain, ok := strings.CutPrefix(text, ":"); ok {
			if chain, _ = nextWord(chain); ours(chain) {
				chains[chain] = []savedRule{}
			}
			continue
		}
		var r savedRule
		if counters, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(counters, "[") {
			if _, err := fmt.Sscanf(counters, "[%d:%d", &r.packets, &r.bytes); err != nil {
				continue
			}
			text = rest
		}
		rest, ok := strings.CutPrefix(text, "-A ")
		if !ok {
			continue
		}
		var chain string
		chain, r.text = nextWord(rest)
		if ours(chain) || ours(jumpTarget(r.text)) {
			chains[chain] = append(chains[chain], r)
		} else {
			s.foreign = true
		}
	}
	s.tables[table] = chains
}

// rules are ours for a virtual packet to walk through.
func (s *ourRules) rules() (walk.Rules, error) {
	var b bytes.Buffer
	for table, chains := range s.tables {
		fmt.Fprintf(&b, "*%s\n", table)
		for chain := range chains {
			fmt.Fprintf(&b, ":%s -\n", chain)
		}
		for chain, rules := range chains {
			for _, r := range rules {
				fmt.Fprintf(&b, "-A %s%s\n", chain, r.text)
			}
		}
		b.WriteString("COMMIT\n")
	}
	rules, err := walk.Parse(&b)
	if err != nil {
		return nil, fmt.Errorf("read rules of %s: %w", s.family, err)
	}
	return rules, nil
}

// entrance is a frontend as the rules have it.
type entrance struct {
	owner       owner
	kind        string
	addr        netip.Addr // invalid for node ports
	first, last uint16
	target      string         // what follows -j
	ranges      []netip.Prefix // the only sources that are let in; none means all
	savedRule
}

// owner is a ServicePort by what rules tell of it.
type owner struct {
	name     string // namespace/name:port
	protocol service.Protocol
}

var kinds = map[string]service.Kind{"ClusterIP": service.ClusterIP, "ExternalIP": service.ExternalIP,
	"LoadBalancer": service.LoadBalancer, "NodePort": service.NodePort}

// entrances are the frontends that a table knows: those that are translated in
// nat, and those that are refused in filter. The trees above them are followed,
// since a rule compares only what is left to compare.
func (s *ourRules) entrances(table string) []entrance {
	root := map[string]string{"nat": chainServices, "filter": chainNewFlows}[table]
	var out []entrance
	s.descend(table, root, entrance{}, 0, &out)
	seen := map[string]bool{} // node ports are reached by each address that carries them
	return filter(out, func(e entrance) bool {
		key := fmt.Sprint(e.addr, e.first, e.last, e.owner.protocol)
		defer func() { seen[key] = true }()
		return !seen[key]
	})
}

func filter[T any](all []T, keep func(T) bool) []T {
	out := all[:0]
	for _, v := range all {
		if keep(v) {
			out = append(out, v)
		}
	}
	return out
}

// maxDepth bounds the trees: addresses and ports have at most that many pairs
// of bits.
const maxDepth = 100

func (s *ourRules) descend(table, chain string, known entrance, depth int, out *[]entrance) {
	if depth > maxDepth {
		return
	}
	for _, r := range s.tables[table][chain] {
		e := known
		comment := e.narrow(r.text)
		e.savedRule, e.target = r, jumpTarget(r.text)
		name, kind, named := strings.Cut(comment, " ")
		if _, ok := kinds[kind]; named && ok {
			e.owner.name, e.kind = name, kind
			if kind == service.NodePort.String() {
				e.addr = netip.Addr{}
			}
			e.ranges = s.sourceRanges(table, e.target)
			*out = append(*out, e)
			continue
		}
		if ours(e.target) && e.target != chainUnknown && e.target != chainReturned {
			s.descend(table, e.target, e, depth+1, out)
		}
	}
}

// narrow takes in what a rule compares, and returns its comment.
func (e *entrance) narrow(rule string) (comment string) {
	for rest := rule; ; {
		var word string
		if word, rest = nextWord(rest); word == "" {
			return comment
		}
		switch word {
		case "!": // of the loopback network: not about a frontend
			_, rest = nextWord(rest)
			_, rest = nextWord(rest)
		case "-d":
			word, rest = nextWord(rest)
			if p, err := netip.ParsePrefix(word); err == nil && p.IsSingleIP() {
				e.addr = p.Addr()
			}
		case "-p":
			word, rest = nextWord(rest)
			for _, p := range service.Protocols {
				if protocolName(p) == word {
					e.owner.protocol = p
				}
			}
		case "--dport":
			word, rest = nextWord(rest)
			low, high, isRange := strings.Cut(word, ":")
			if !isRange {
				high = low
			}
			first, _ := strconv.ParseUint(low, 10, 16) // a port: iptables says so
			last, _ := strconv.ParseUint(high, 10, 16)
			e.first, e.last = uint16(first), uint16(last)
		case "--comment":
			word, rest = nextWord(rest)
			comment = strings.Trim(word, `"`)
		}
	}
}

// destination is the address of a rule's DNAT, invalid if it has none; a port
// of 0 stays.
func (r *savedRule) destination() netip.AddrPort {
	_, to, ok := strings.Cut(r.text, " --to-destination ")
	if !ok {
		return netip.AddrPort{}
	}
	to, _ = nextWord(to)
	if a, err := netip.ParseAddr(to); err == nil {
		return netip.AddrPortFrom(a, 0)
	}
	ap, _ := netip.ParseAddrPort(to) // as it was written
	return ap
}

// owners tells whose each chain of a frontend is: each belongs to one port of a
// Service.
func (s *ourRules) owners() map[string]owner {
	out := map[string]owner{}
	var claim func(chain string, o owner)
	claim = func(chain string, o owner) {
		if _, done := out[chain]; done || !ours(chain) {
			return
		}
		out[chain] = o
		for _, r := range s.tables["nat"][chain] {
			claim(jumpTarget(r.text), o)
		}
	}
	for _, e := range s.entrances("nat") {
		claim(e.target, e.owner)
	}
	return out
}
