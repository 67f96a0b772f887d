package walk

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Packet is the first packet of a flow.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            uint8  // IANA number
	Interface           string // on which it arrives; empty for a packet of this node
	// Leaves is the interface by which it would be forwarded untranslated.
	Leaves string
}

// header returns the network header, as far as addresses go.
func (p Packet) header() []byte {
	src, dst := p.Source.Addr().AsSlice(), p.Destination.Addr().AsSlice()
	if len(src) == 4 {
		return append(append(make([]byte, 12), src...), dst...)
	}
	return append(append(make([]byte, 8), src...), dst...)
}

// Node is what rules ask about the node besides the packet.
type Node struct {
	Local      func(netip.Addr) bool    // an address of this node
	Remembered func(recent string) bool // the client is in a list of xt_recent; nil: in none
}

// Outcome is one thing that can become of a packet.
type Outcome struct {
	// Verdict is ACCEPT, REJECT or DROP.
	Verdict string
	// Destination is where it goes then; a backend if Translated.
	Destination netip.AddrPort
	Translated  bool
	Masquerade  bool
	// Logged is what the rules logged of the packet on the way: prefixes.
	Logged string
	// Probability of this outcome.
	Probability float64
	// Compared is the number of rules that the packet was compared with, the
	// one that it left by included.
	Compared int
}

// Walk returns every outcome, ordered by destination. Outcomes that differ in
// nothing but the way are one.
func (r Rules) Walk(p Packet, node Node) ([]Outcome, error) {
	var out []Outcome
	for forced := []bool{}; ; {
		w := &walker{rules: r, node: node, packet: p, tosses: forced, probability: 1}
		if err := w.run(); err != nil {
			return nil, err
		}
		out = merge(out, w.outcome())
		forced = w.tosses // the way taken, with every toss so far
		for len(forced) > 0 && !forced[len(forced)-1] {
			forced = forced[:len(forced)-1]
		}
		if len(forced) == 0 {
			break
		}
		forced[len(forced)-1] = false // the last "yes" was seen: now its "no"
	}
	slices.SortFunc(out, func(a, b Outcome) int { return cmp.Compare(a.Destination.String(), b.Destination.String()) })
	return out, nil
}

func merge(all []Outcome, o Outcome) []Outcome {
	for i := range all {
		if a := &all[i]; a.Verdict == o.Verdict && a.Destination == o.Destination &&
			a.Translated == o.Translated && a.Masquerade == o.Masquerade && a.Logged == o.Logged {
			a.Probability += o.Probability
			a.Compared = max(a.Compared, o.Compared)
			return all
		}
	}
	return append(all, o)
}

// walker is one packet on one way.
type walker struct {
	rules       Rules
	node        Node
	packet      Packet
	mark        uint32
	translated  bool
	masquerade  bool
	verdict     string
	logged      string
	tosses      []bool // forced ones, then those made
	used        int
	probability float64
	compared    int
}

// toss decides a random match: as forced, else yes.
func (w *walker) toss(p float64) bool {
	if w.used == len(w.tosses) {
		w.tosses = append(w.tosses, true)
	}
	yes := w.tosses[w.used]
	w.used++
	if yes {
		w.probability *= p
	} else {
		w.probability *= 1 - p
	}
	return yes
}

func (w *walker) outcome() Outcome {
	return Outcome{
		Verdict: w.verdict, Destination: w.packet.Destination, Translated: w.translated,
		Masquerade: w.masquerade, Logged: w.logged, Probability: w.probability, Compared: w.compared,
	}
}

// run passes the hooks in the kernel's order.
func (w *walker) run() error {
	own := w.packet.Interface == ""
	hooks := [][2]string{{"nat", "PREROUTING"}, {"filter", "FORWARD"}, {"nat", "POSTROUTING"}}
	if own {
		hooks = [][2]string{{"nat", "OUTPUT"}, {"filter", "OUTPUT"}, {"nat", "POSTROUTING"}}
	}
	for i, hook := range hooks {
		chain := hook[1]
		if chain == "FORWARD" && w.node.Local(w.packet.Destination.Addr()) {
			chain = "INPUT"
		}
		if _, err := w.chain(hook[0], chain, 0); err != nil {
			return err
		}
		if w.verdict == "" {
			w.verdict = "ACCEPT"
		}
		if w.verdict != "ACCEPT" || chain == "INPUT" || i == len(hooks)-1 {
			return nil
		}
		w.verdict = ""
	}
	return nil
}

// maxDepth bounds jumps: more is a loop.
const maxDepth = 64

// chain reports whether the packet was decided on.
func (w *walker) chain(table, name string, depth int) (bool, error) {
	if depth > maxDepth {
		return false, fmt.Errorf("chain %s/%s: jumps are nested too deep", table, name)
	}
	rules, ok := w.rules[table][name]
	if !ok && depth > 0 {
		return false, fmt.Errorf("jump to chain %s/%s, which does not exist", table, name)
	}
	for i := range rules {
		w.compared++
		if !w.fits(&rules[i]) {
			continue
		}
		switch t := rules[i].target; t.name {
		case "":
		case "NFLOG":
			w.logged += t.prefix
		case "RETURN":
			return false, nil
		case "ACCEPT", "DROP", "REJECT":
			w.verdict = t.name
			return true, nil
		case "MARK":
			w.mark = w.mark&^t.bit ^ t.value
		case "MASQUERADE":
			w.masquerade, w.verdict = true, "ACCEPT"
			return true, nil
		case "DNAT":
			to := t.to
			if to.Port() == 0 {
				to = netip.AddrPortFrom(to.Addr(), w.packet.Destination.Port())
			}
			w.packet.Destination, w.translated, w.verdict = to, true, "ACCEPT"
			return true, nil
		default:
			done, err := w.chain(table, t.name, depth+1)
			if done || err != nil {
				return done, err
			}
		}
	}
	return false, nil
}

func (w *walker) fits(r *Rule) bool {
	for _, m := range r.matches {
		if !m(w) {
			return false
		}
	}
	return true
}
