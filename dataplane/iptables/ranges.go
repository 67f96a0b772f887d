package iptables

import (
	"net/netip"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// sourceRanges are the sources that a frontend's chain lets in: those that its rules, and
// the trees below them, compare. It is nil for a chain that compares none.
func (s *ourRules) sourceRanges(table, chain string) (out []netip.Prefix) {
	if !strings.HasPrefix(chain, chainLB) && !strings.HasPrefix(chain, chainFw) {
		return nil
	}
	var descend func(chain string, known netip.Prefix, depth int)
	descend = func(chain string, known netip.Prefix, depth int) {
		for _, r := range s.tables[table][chain] {
			at, target := known, jumpTarget(r.text)
			for rest := r.text; rest != ""; {
				var word string
				if word, rest = nextWord(rest); word != "-s" {
					continue
				}
				word, rest = nextWord(rest)
				if p, err := netip.ParsePrefix(word); err == nil {
					at = p
				} else if a, err := netip.ParseAddr(word); err == nil {
					at = netip.PrefixFrom(a, a.BitLen())
				}
			}
			switch {
			case strings.HasPrefix(target, chainSources) && depth < maxDepth:
				descend(target, at, depth+1)
			case at.IsValid():
				out = append(out, at)
			}
		}
	}
	descend(chain, netip.Prefix{}, 0)
	return out
}

// inside moves a packet's source into one of some ranges, if one of them has addresses of
// that class; else it stays, and is refused.
func (j *judge) inside(p service.Packet, class service.Source, ranges []netip.Prefix) service.Packet {
	for _, r := range ranges {
		if r.Contains(p.Source.Addr()) {
			return p
		}
	}
	for _, r := range ranges {
		addr := r.Masked().Addr()
		if next := addr.Next(); !r.IsSingleIP() && r.Contains(next) {
			addr = next
		}
		moved := p
		moved.Source = netip.AddrPortFrom(addr, p.Source.Port())
		if j.node.SourceOf(moved) == class {
			return moved
		}
	}
	return p
}
