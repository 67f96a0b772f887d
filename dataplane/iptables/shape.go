package iptables

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"strings"
)

// shapeOptions are the options of a rule that every version of iptables prints
// back as they were written, but for the digits of a probability. The rest of a
// rule's text, and its order, differ between versions and back ends.
var shapeOptions = map[string]bool{
	"-s": true, "-d": true, "-i": true, "-p": true, "--dport": true,
	"--ctstate": true, "--src-type": true, "--dst-type": true,
	"--probability": true, "--seconds": true, "--name": true,
	"-j": true, "--to-destination": true, "--set-xmark": true,
}

// addShape adds what can be recognised of one rule, given without "-A CHAIN".
// Two chains of equal shape have as many rules, which compare the same
// things and lead to the same targets.
func addShape(h *maphash.Hash, rule string) {
	h.WriteByte('\n')
	negated := false
	for rest := rule; ; {
		var word string
		word, rest = nextWord(rest)
		if word == "" {
			return
		}
		switch {
		case word == "!":
			negated = true
			continue
		case shapeOptions[word]:
			var value string
			value, rest = nextWord(rest)
			if word == "--probability" {
				value = rounded(value)
			}
			if negated {
				h.WriteByte('!')
			}
			h.WriteString(word)
			h.WriteByte(' ')
			h.WriteString(value)
			h.WriteByte(' ')
		}
		negated = false
	}
}

// rounded drops the digits of a probability that the kernel, which keeps 31
// bits of it, may print back differently.
func rounded(probability string) string {
	p, err := strconv.ParseFloat(probability, 64)
	if err != nil {
		return probability
	}
	return strconv.Itoa(int(p*1e6 + 0.5))
}

// shapeOf returns the shape of a single rule.
func shapeOf(rule string) uint64 {
	var h maphash.Hash
	h.SetSeed(sumSeed)
	addShape(&h, rule)
	return h.Sum64()
}

// nextWord splits off the first word; a quoted word may hold spaces.
func nextWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " ")
	if strings.HasPrefix(s, `"`) {
		if end := strings.IndexByte(s[1:], '"'); end >= 0 {
			return s[:end+2], s[end+2:]
		}
	}
	if end := strings.IndexByte(s, ' '); end >= 0 {
		return s[:end], s[end:]
	}
	return s, ""
}

func hostPrefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

func hex(n uint32) string { return "0x" + strconv.FormatUint(uint64(n), 16) }
