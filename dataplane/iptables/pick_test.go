package iptables

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

// The tree holds each backend once, is no deeper than the kernel bears, and
// asks no more than its cost says.
func TestPickTree(t *testing.T) {
	for _, n := range []int{9, 10, 50, 100, 200, 257, 1000, 5000, 20000, 100000} {
		var targets []target
		for i := range n {
			targets = append(targets, target{fmt.Sprintf(" -j END-%d", i), 1})
		}
		p := picker{owner: "x", chains: map[string][]string{}}
		cost := costFor(n, pickDepth)
		entrance := p.choose(targets, cost, pickDepth)
		ends, deepest, most := map[string]int{}, 0, 0
		var walk func(rules []string, depth, compared int)
		walk = func(rules []string, depth, compared int) {
			deepest = max(deepest, depth)
			for i, rule := range rules {
				name := rule[strings.LastIndex(rule, " ")+1:]
				if next, ok := p.chains[name]; ok {
					walk(next, depth+1, compared+i+1)
					continue
				}
				ends[name]++
				most = max(most, compared+i+1)
			}
		}
		walk(entrance, 0, 0)
		if len(ends) != n || deepest > pickDepth {
			t.Errorf("%d backends: %d ends, %d deep", n, len(ends), deepest)
		}
		if most > cost {
			t.Errorf("%d backends: %d comparisons, want %d", n, most, cost)
		}
		for name := range maps.Keys(ends) {
			if ends[name] != 1 {
				t.Errorf("%s is there %d times", name, ends[name])
			}
		}
		t.Logf("%d backends: at most %d comparisons, %d deep, %d chains", n, most, deepest, len(p.chains))
	}
}
