// Package walk leads a virtual packet through iptables rules, as text, and
// tells everything that can become of it. It knows the matches and targets
// that nodeproxy and kube-proxy write; others are an error, never a guess.
package walk

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"
)

// Rules are chains by table and name. A built-in chain that has no rules may
// be missing.
type Rules map[string]map[string][]Rule

// Rule is one rule: all of its matches must hold for its target to be taken.
type Rule struct {
	Text    string // without "-A CHAIN"
	matches []match
	target  target
}

// match tells whether a packet fits.
type match func(*walker) bool

// target is what a rule does; name is a chain to jump to, or a word.
type target struct {
	name       string
	to         netip.AddrPort // DNAT; with port 0, the port stays
	value, bit uint32         // MARK: cleared bits, then flipped ones
	prefix     string         // NFLOG
}

// Parse reads what iptables-save prints, or an iptables-restore input.
// Commands other than -A, -I and -X are an error.
func Parse(r io.Reader) (Rules, error) {
	rules := Rules{}
	table := ""
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		var err error
		switch {
		case line == "" || line == "COMMIT" || line[0] == '#':
		case line[0] == '*':
			table = line[1:]
			if rules[table] == nil {
				rules[table] = map[string][]Rule{}
			}
		case line[0] == ':':
			name, _, _ := strings.Cut(line[1:], " ")
			rules[table][name] = []Rule{}
		case strings.HasPrefix(line, "-A "), strings.HasPrefix(line, "-I "):
			err = rules.add(table, line)
		case strings.HasPrefix(line, "-X "):
			delete(rules[table], line[3:])
		default:
			err = fmt.Errorf("unknown command")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d %q: %w", n, line, err)
		}
	}
	return rules, sc.Err()
}

func (r Rules) add(table, line string) error {
	words := split(line)
	if len(words) < 2 || r[table] == nil {
		return fmt.Errorf("rule outside a table")
	}
	chain, args := words[1], words[2:]
	if words[0] == "-I" && len(args) > 0 && args[0] == "1" {
		args = args[1:]
	}
	rule, err := parseRule(args)
	if err != nil {
		return err
	}
	rule.Text = strings.Join(args, " ")
	if words[0] == "-I" {
		r[table][chain] = append([]Rule{rule}, r[table][chain]...)
	} else {
		r[table][chain] = append(r[table][chain], rule)
	}
	return nil
}

// split cuts a line into words; quotes hold a word with spaces together.
func split(line string) []string {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		if line[0] == '"' {
			if end := strings.IndexByte(line[1:], '"'); end >= 0 {
				words, line = append(words, line[1:end+1]), line[end+2:]
				continue
			}
		}
		word, rest, _ := strings.Cut(line, " ")
		words, line = append(words, word), rest
	}
	return words
}

// arguments hands out the words of a rule.
type arguments struct {
	words []string
	err   error
}

func (a *arguments) next() string {
	if len(a.words) == 0 {
		a.err = fmt.Errorf("rule ends early")
		return ""
	}
	w := a.words[0]
	a.words = a.words[1:]
	return w
}

func parseRule(words []string) (Rule, error) {
	a := &arguments{words: words}
	var rule Rule
	for not := false; len(a.words) > 0 && a.err == nil; {
		option := a.next()
		if option == "!" {
			not = true
			continue
		}
		m, err := a.option(option, &rule.target)
		if err != nil {
			return rule, err
		}
		if m != nil && not {
			positive := m
			m = func(w *walker) bool { return !positive(w) }
		}
		if m != nil {
			rule.matches = append(rule.matches, m)
		}
		not = false
	}
	return rule, a.err
}

// option parses one option with its values. It returns a match, or nil where
// there is nothing to compare.
func (a *arguments) option(option string, t *target) (match, error) {
	switch option {
	case "-m":
		return nil, knownMatch(a.next())
	case "--comment":
		a.next()
	case "--mask", "--seconds", "--to-ports", "--icmp-type", "--icmpv6-type", // types: no packet here is of ICMP
		"--limit", "--limit-burst", "--nflog-group", "--nflog-size": // a limit is on logs alone
		a.next()
	case "--nflog-prefix":
		t.prefix = a.next()
	case "--rsource", "--reap", "--random-fully":
	case "-j", "-g":
		t.name = a.next()
	case "--reject-with":
		a.next()
	case "-s", "-d":
		return addressMatch(option, a.next())
	case "-p":
		return protocolMatch(a.next())
	case "-i":
		return interfaceMatch(a.next()), nil
	case "-o":
		return leavesMatch(a.next()), nil
	case "--dport":
		return portMatch(a.next())
	case "--mark":
		return markMatch(a.next())
	case "--src-type", "--dst-type":
		return localMatch(option, a.next())
	case "--ctstate":
		return stateMatch(a.next()), nil
	case "--mode":
		return nil, oneOf(a.next(), "random")
	case "--probability":
		return a.probability()
	case "--bytecode":
		return bytecodeMatch(a.next())
	case "--rcheck", "--set":
		return a.recent(option)
	case "--set-xmark":
		return nil, parseMark(a.next(), &t.value, &t.bit)
	case "--to-destination":
		var err error
		to := a.next()
		if addr, noPort := netip.ParseAddr(to); noPort == nil {
			t.to = netip.AddrPortFrom(addr, 0)
			return nil, nil
		}
		t.to, err = netip.ParseAddrPort(to)
		return nil, err
	default:
		return nil, fmt.Errorf("unknown option %s", option)
	}
	return nil, nil
}

func knownMatch(name string) error {
	return oneOf(name, "comment", "tcp", "udp", "sctp", "mark", "addrtype", "conntrack", "statistic", "bpf", "recent", "icmp", "icmp6", "limit")
}

func oneOf(word string, known ...string) error {
	for _, k := range known {
		if word == k {
			return nil
		}
	}
	return fmt.Errorf("unknown word %s", word)
}

func addressMatch(option, value string) (match, error) {
	if !strings.Contains(value, "/") {
		a, err := netip.ParseAddr(value)
		if err != nil {
			return nil, err
		}
		value = netip.PrefixFrom(a, a.BitLen()).String()
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return nil, err
	}
	if option == "-s" {
		return func(w *walker) bool { return p.Contains(w.packet.Source.Addr()) }, nil
	}
	return func(w *walker) bool { return p.Contains(w.packet.Destination.Addr()) }, nil
}

var protocolNumbers = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "ipv6-icmp": 58}

func protocolMatch(name string) (match, error) {
	n, ok := protocolNumbers[name]
	if !ok {
		return nil, fmt.Errorf("unknown protocol %s", name)
	}
	return func(w *walker) bool { return w.packet.Protocol == n }, nil
}

func interfaceMatch(name string) match {
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		return func(w *walker) bool { return w.packet.Interface != "" && strings.HasPrefix(w.packet.Interface, prefix) }
	}
	return func(w *walker) bool { return w.packet.Interface == name }
}

// leavesMatch knows only packets that nothing translated: behind DNAT, by which
// interface one leaves is not told.
func leavesMatch(name string) match {
	return func(w *walker) bool { return !w.translated && w.packet.Leaves == name }
}

func portMatch(value string) (match, error) {
	low, high, isRange := strings.Cut(value, ":")
	if !isRange {
		high = low
	}
	first, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return nil, err
	}
	last, err := strconv.ParseUint(high, 10, 16)
	if err != nil {
		return nil, err
	}
	return func(w *walker) bool {
		p := uint64(w.packet.Destination.Port())
		return first <= p && p <= last
	}, nil
}

func parseMark(value string, mark, mask *uint32) error {
	v, m, ok := strings.Cut(value, "/")
	if !ok {
		m = "0xffffffff"
	}
	for text, to := range map[string]*uint32{v: mark, m: mask} {
		n, err := strconv.ParseUint(text, 0, 32)
		if err != nil {
			return err
		}
		*to = uint32(n)
	}
	if v == m { // one text for both: the map above had one entry
		*mark = *mask
	}
	return nil
}

func markMatch(value string) (match, error) {
	var mark, mask uint32
	if err := parseMark(value, &mark, &mask); err != nil {
		return nil, err
	}
	if !strings.Contains(value, "/") {
		mask = ^uint32(0)
	}
	return func(w *walker) bool { return w.mark&mask == mark }, nil
}

func localMatch(option, kind string) (match, error) {
	if kind != "LOCAL" {
		return nil, fmt.Errorf("unknown address type %s", kind)
	}
	if option == "--src-type" {
		return func(w *walker) bool { return w.node.Local(w.packet.Source.Addr()) }, nil
	}
	return func(w *walker) bool { return w.node.Local(w.packet.Destination.Addr()) }, nil
}

// stateMatch knows the states of the first packet of a flow.
func stateMatch(states string) match {
	return func(w *walker) bool {
		for s := range strings.SplitSeq(states, ",") {
			if s == "NEW" || s == "DNAT" && w.translated {
				return true
			}
		}
		return false
	}
}

func (a *arguments) probability() (match, error) {
	p, err := strconv.ParseFloat(a.next(), 64)
	if err != nil {
		return nil, err
	}
	return func(w *walker) bool { return w.toss(p) }, nil
}

func (a *arguments) recent(option string) (match, error) {
	name := ""
	for i, w := range a.words {
		if w == "--name" && i+1 < len(a.words) {
			name = a.words[i+1]
			a.words = append(append([]string{}, a.words[:i]...), a.words[i+2:]...)
			break
		}
	}
	if name == "" {
		return nil, fmt.Errorf("recent without a name")
	}
	if option == "--set" {
		return func(*walker) bool { return true }, nil
	}
	return func(w *walker) bool { return w.node.Remembered != nil && w.node.Remembered(name) }, nil
}

func bytecodeMatch(text string) (match, error) {
	lines := strings.Split(text, ",")
	var raw []bpf.RawInstruction
	for _, line := range lines[1:] {
		var op, jt, jf, k uint32
		if _, err := fmt.Sscanf(line, "%d %d %d %d", &op, &jt, &jf, &k); err != nil {
			return nil, fmt.Errorf("bytecode %q: %w", line, err)
		}
		raw = append(raw, bpf.RawInstruction{Op: uint16(op), Jt: uint8(jt), Jf: uint8(jf), K: k})
	}
	program, _ := bpf.Disassemble(raw)
	vm, err := bpf.NewVM(program)
	if err != nil {
		return nil, fmt.Errorf("bytecode %q: %w", text, err)
	}
	return func(w *walker) bool {
		n, err := vm.Run(w.packet.header())
		return err == nil && n > 0
	}, nil
}
