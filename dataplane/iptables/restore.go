package iptables

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
)

// restoreTable writes one table's part of an iptables-restore input: chains
// with their new rules, and chains that are nil to be deleted, in one
// transaction. jumps are rules for the head of built-in chains, by chain.
func restoreTable(b *bytes.Buffer, table string, chains map[string][]string, jumps []hook) {
	if len(chains) == 0 && len(jumps) == 0 {
		return
	}
	b.WriteString("*" + table + "\n")
	// iptables-nft keeps chains in a sorted list and looks for a new one's place
	// from its head: from last to first, each is found at once.
	names := slices.Sorted(maps.Keys(chains))
	slices.Reverse(names)
	for _, name := range names { // declares a chain, and empties one that exists
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range names {
		for _, rule := range chains[name] {
			b.WriteString("-A " + name + rule + "\n")
		}
	}
	for _, j := range jumps {
		b.WriteString("-I " + j.chain + " " + strconv.Itoa(max(1, j.place)) + j.rule + "\n")
	}
	for _, name := range names {
		if chains[name] == nil {
			b.WriteString("-X " + name + "\n")
		}
	}
	b.WriteString("COMMIT\n")
}

// removeTable writes a transaction that deletes jumps, rules by built-in chain as
// iptables-save prints them, and the chains that they lead to.
func removeTable(b *bytes.Buffer, table string, jumps map[string][]string, chains []string) {
	b.WriteString("*" + table + "\n")
	for _, name := range chains {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, chain := range slices.Sorted(maps.Keys(jumps)) {
		for _, rule := range jumps[chain] {
			b.WriteString("-D " + chain + " " + rule + "\n")
		}
	}
	for _, name := range chains {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
}

// restoreInput writes the transaction for what changed. New refusals come
// before the translations that they replace are gone, and refusals that are
// not wanted any more go after translations have taken their place: a packet
// that is in neither would leave the node untranslated.
func restoreInput(d delta, natJumps, filterJumps []hook) []byte {
	var b bytes.Buffer
	if d.natFirst {
		restoreTable(&b, "nat", d.nat, natJumps)
		restoreTable(&b, "filter", d.filter, filterJumps)
	} else {
		restoreTable(&b, "filter", d.filter, filterJumps)
		restoreTable(&b, "nat", d.nat, natJumps)
	}
	return b.Bytes()
}

// maxBatch is the number of chains up to which iptables-nft takes a
// transaction in its stride. It looks up each rule's chain in a list, so that
// the time grows with the square of their number: 10,000 Services at once take
// three times as long as in pieces.
const maxBatch = 1000

// batches splits the writing of many new chains into transactions of bearable
// size, without a moment in which a packet meets a half-written chain: new
// chains are declared, then filled, while nothing leads to them; the last
// transaction holds everything else, the rewritten chains that lead to them
// included.
func batches(nat map[string][]string, exists func(chain string) bool) (first []map[string][]string, last map[string][]string) {
	last = map[string][]string{}
	declare := map[string][]string{}
	for name, rules := range nat {
		if rules == nil || exists(name) {
			last[name] = rules
		} else {
			declare[name] = []string{}
		}
	}
	if len(declare) <= maxBatch {
		return nil, nat
	}
	first = append(first, declare)
	for names := range slices.Chunk(slices.Sorted(maps.Keys(declare)), maxBatch) {
		batch := map[string][]string{}
		for _, name := range names {
			batch[name] = nat[name]
		}
		first = append(first, batch)
	}
	return first, last
}
