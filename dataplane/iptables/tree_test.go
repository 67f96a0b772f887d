package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/service"
)

func randomEntry(rng *rand.Rand) entry {
	addr := netip.AddrFrom4([4]byte{10, 96, byte(rng.IntN(3)), byte(rng.IntN(256))})
	if rng.IntN(10) == 0 {
		addr = netip.AddrFrom4([4]byte{203, 0, 113, byte(rng.IntN(4))})
	}
	k := frontendKey(addr, service.Protocols[rng.IntN(3)], uint16(rng.IntN(400)))
	if rng.IntN(20) == 0 { // a key that ends early, as a source range does
		k = k.prefix(uint8(rng.IntN(33)))
	}
	return entry{key: k, comment: fmt.Sprint(k), target: "-j X"}
}

func contents(t *tree) map[string][]string {
	out := map[string][]string{}
	for name, n := range t.nodes {
		out[name] = t.render(n)
	}
	return out
}

// A restarted agent must find the chains that it would write, so the shape may
// not depend on the order of what happened.
func TestTreeShapeDependsOnlyOnKeys(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		levels := 2 + int(seed)%7
		grown := newTree("-d", levels, prefixChain)
		written := map[string][]string{} // as the kernel would hold it
		wanted := map[key]entry{}
		for step := range 3000 {
			e := randomEntry(rng)
			if had, ok := wanted[e.key]; ok && rng.IntN(2) == 0 || step > 2000 && ok {
				grown.remove(had)
				delete(wanted, e.key)
			} else {
				grown.set(e)
				wanted[e.key] = e
			}
			if step%100 != 0 {
				continue
			}
			grown.flush(func(chain string, rules []string) {
				if rules == nil {
					delete(written, chain)
				} else {
					written[chain] = rules
				}
			})
			fresh := newTree("-d", levels, prefixChain)
			for _, e := range wanted {
				fresh.set(e)
			}
			if diff := cmp.Diff(contents(fresh), written); diff != "" {
				t.Fatalf("seed %d, step %d: grown tree differs from a fresh one (-fresh +grown):\n%s", seed, step, diff)
			}
			if grown.root != nil && !grown.fits(grown.root, 1) {
				t.Fatalf("seed %d, step %d: more than %d levels, or a long list above the last one", seed, step, levels)
			}
			if got := grown.len(); got != len(wanted) {
				t.Fatalf("seed %d, step %d: len() = %d, want %d", seed, step, got, len(wanted))
			}
		}
	}
}

func TestTreeEmptiesToNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	tr := newTree("-d", dispatchLevels, prefixChain)
	var all []entry
	for range 500 {
		e := randomEntry(rng)
		all = append(all, e)
		tr.set(e)
	}
	for _, e := range all {
		tr.remove(e)
	}
	if tr.root != nil || len(tr.nodes) != 0 || tr.entrance() != nil {
		t.Errorf("%d nodes left in a tree without entries", len(tr.nodes))
	}
}

func TestTreeKeepsWhatAnotherTookOver(t *testing.T) {
	tr := newTree("-d", dispatchLevels, prefixChain)
	k := frontendKey(netip.MustParseAddr("10.96.0.1"), service.TCP, 80)
	old, next := entry{key: k, comment: "old", target: "-j OLD"}, entry{key: k, comment: "new", target: "-j NEW"}
	tr.set(old)
	tr.set(next)
	tr.remove(old)
	if tr.len() != 1 {
		t.Error("removing the old owner's entry took the new owner's")
	}
}

func TestTreeChangesFewChains(t *testing.T) {
	tr := newTree("-d", dispatchLevels, prefixChain)
	// A first address far away moves all others one level down, once.
	tr.set(entry{key: frontendKey(netip.MustParseAddr("203.0.113.1"), service.TCP, 80)})
	for i := range 10000 { // all over the range, as API servers give them
		at := i * 6
		tr.set(entry{key: frontendKey(netip.AddrFrom4([4]byte{10, 96, byte(at >> 8), byte(at)}), service.TCP, 80)})
	}
	tr.flush(func(string, []string) {})
	tr.set(entry{key: frontendKey(netip.AddrFrom4([4]byte{10, 96, 200, 77}), service.TCP, 80)})
	changed := 0
	tr.flush(func(string, []string) { changed++ })
	if changed > 8 {
		t.Errorf("one more address changed %d chains, want at most 8", changed)
	}
}

func TestKeyMatch(t *testing.T) {
	full := frontendKey(netip.MustParseAddr("10.96.0.10"), service.TCP, 30080)
	six := frontendKey(netip.MustParseAddr("fd00:10:96::a"), service.UDP, 53)
	node := frontendKey(netip.Addr{}, service.SCTP, 30080)
	for _, c := range []struct {
		key   key
		known uint8
		want  string
		name  string
	}{
		{full, 0, " -d 10.96.0.10/32 -p tcp -m tcp --dport 30080", ""},
		{full, 32, " -p tcp -m tcp --dport 30080", ""},
		{full.prefix(18), 0, " -d 10.96.0.0/18", "NODEPROXY-10.96.0.0/18"},
		{full.prefix(0), 0, "", "NODEPROXY-0.0.0.0/0"},
		{full.prefix(34), 32, " -p tcp", ""},
		{full.prefix(40), 34, " -p tcp -m tcp --dport 29696:30719", ""},
		{six, 0, " -d fd00:10:96::a/128 -p udp -m udp --dport 53", ""},
		{node, 0, " -p sctp -m sctp --dport 30080", "NODEPROXY-NP-sctp30080-30080"},
		{node.prefix(8), 0, " -p sctp -m sctp --dport 29696:30719", "NODEPROXY-NP-sctp29696-30719"},
	} {
		if got := c.key.match("-d", c.known); got != c.want {
			t.Errorf("match(%d bits, known %d) = %q, want %q", c.key.length, c.known, got, c.want)
		}
		if name := prefixChain(c.key); c.name != "" && name != c.name {
			t.Errorf("prefixChain = %q, want %q", name, c.name)
		} else if len(name) > maxChainName {
			t.Errorf("chain name %q has %d characters, more than %d", name, len(name), maxChainName)
		}
	}
}
