package iptables

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

// maxComment is the longest comment that xt_comment takes, less its NUL.
const maxComment = 255

// comment renders a comment match; what could end the quoting is left out.
func comment(text string) string {
	if text == "" {
		return ""
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return -1
		}
		return r
	}, text)
	return ` -m comment --comment "` + text[:min(len(text), maxComment)] + `"`
}

// probability renders the match that is true for one in n/part packets.
// The kernel keeps 31 bits of it.
func probability(part, whole int) string {
	return fmt.Sprintf(" -m statistic --mode random --probability %.11f", float64(part)/float64(whole))
}

// fromPod matches packets that come from a Pod, or with not, all others.
func fromPod(d service.PodDetector, not bool) string {
	bang := ""
	if not {
		bang = " !"
	}
	switch {
	case d.CIDR.IsValid():
		return bang + " -s " + d.CIDR.String()
	case d.Interface != "":
		return bang + " -i " + d.Interface
	}
	return bang + " -i " + d.InterfacePrefix + "+"
}

// fromNode matches packets whose source is an address of this node.
const fromNode = " -m addrtype --src-type LOCAL"

// hairpin matches packets whose source and destination address are the same,
// which after DNAT is a backend that was sent to itself. It is one rule for any
// number of backends, in classic BPF over the network header (see
// iptables-extensions(8), "bpf"): no other match compares two fields.
func hairpin(f service.Family) string {
	const (
		load    = "32 0 0 %d" // A = 4 bytes at an offset
		toX     = "7 0 0 0"   // X = A
		sameAsX = "29 0 %d 0" // go on if A == X, else skip that many
		yes, no = "6 0 0 1", "6 0 0 0"
	)
	source, words := 12, 1
	if f == service.IPv6 {
		source, words = 8, 4
	}
	var code []string
	for i := range words {
		src := source + 4*i
		dst := src + 4*words
		left := 4*(words-1-i) + 1 // instructions to skip to reach "no"
		code = append(code, fmt.Sprintf(load, src), toX, fmt.Sprintf(load, dst), fmt.Sprintf(sameAsX, left))
	}
	code = append(code, yes, no)
	return fmt.Sprintf(` -m bpf --bytecode "%d,%s"`, len(code), strings.Join(code, ","))
}

// mark renders the target that sets the masquerade mark.
func mark(bit uint32) string { return fmt.Sprintf(" -j MARK --set-xmark %#x/%#x", bit, bit) }
