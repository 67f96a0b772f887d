package iptables

import (
	"slices"
)

// leafSize is the number of rules that a chain of a [tree] may hold before it
// is split. Larger leaves cost comparisons, smaller ones chains.
const leafSize = 8

// The levels of trees. With those of a pick tree and the chains between, they
// stay below the 16 that nf_tables has room for (NFT_JUMP_STACK_SIZE).
const (
	dispatchLevels = 7
	sourceLevels   = 2
)

// tree spreads rules over chains so that a packet meets a number of them that
// grows with the logarithm of how many there are, and no list stands in any
// packet's way. It is a path-compressed trie with four children a node: a node
// is a chain named after its prefix, holding a jump for each child.
//
// It has no more levels than are asked for: where keys are so unevenly spread
// that there would be more, the last level's lists are as long as they have to be.
// nf_tables refuses all rules if a packet could be 16 jumps deep.
//
// Its shape depends only on the set of keys, not on the order in which they
// came, so a restarted agent finds the chains that it would write. Adding or
// removing one key changes a handful of chains. It is not safe for concurrent
// use.
type tree struct {
	flag   string           // -d or -s: what the address in a key is compared with
	name   func(key) string // the chain of a prefix
	levels int              // at most, of chains
	root   *node
	nodes  map[string]*node    // by chain name
	dirty  map[string]struct{} // chains to be looked at again
}

// node is one chain of a tree.
type node struct {
	prefix key
	// entries are all of a leaf's; in an inner node only those too short to
	// be any child's.
	entries  []entry
	children [4]*node
	leaf     bool
	count    int // entries here and below
}

// entry leads packets that match key to target.
type entry struct {
	key     key
	match   string  // what is compared besides the key
	comment string  // names the Service
	target  string  // what follows the match: "-j CHAIN", perhaps with options
	log     refusal // report packets that are refused here to watch; 0: do not
}

func newTree(flag string, levels int, name func(key) string) *tree {
	return &tree{flag: flag, levels: levels, name: name, nodes: map[string]*node{}, dirty: map[string]struct{}{}}
}

func (t *tree) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.count
}

// set adds an entry, or replaces the one with its key.
func (t *tree) set(e entry) {
	if t.root == nil {
		t.root = t.attach(&node{leaf: true, prefix: e.key.prefix(0)})
	}
	t.root = t.insert(t.root, e, 1)
}

// remove takes out an entry. Nothing happens if it is not there, or if another
// took the place of its key since.
func (t *tree) remove(e entry) {
	if t.root != nil {
		t.root = t.cut(t.root, e, e.key.prefix(0), 1)
	}
}

func (t *tree) attach(n *node) *node {
	name := t.name(n.prefix)
	t.nodes[name] = n
	t.dirty[name] = struct{}{}
	return n
}

func (t *tree) detach(n *node) {
	name := t.name(n.prefix)
	delete(t.nodes, name)
	t.dirty[name] = struct{}{}
}

func (t *tree) touch(n *node) { t.dirty[t.name(n.prefix)] = struct{}{} }

// insert puts e below n, which is on a level counted from 1, and returns the node
// that takes the place of n.
func (t *tree) insert(n *node, e entry, level int) *node {
	if n.leaf {
		at, found := slices.BinarySearchFunc(n.entries, e.key, func(o entry, k key) int { return o.key.compare(k) })
		if found {
			n.entries[at] = e
		} else {
			n.entries = slices.Insert(n.entries, at, e)
			n.count++
		}
		if n.count <= leafSize || level >= t.levels {
			t.touch(n)
			return n
		}
		t.detach(n)
		return t.build(n.prefix, n.entries, level)
	}
	at := n.prefix.common(e.key)
	if at < n.prefix.length { // outside n, or too short for it: a node above both
		above := t.attach(&node{prefix: e.key.prefix(at), count: n.count})
		above.children[n.prefix.pair(at)] = t.moved(n, n.prefix.prefix(at+2), level+1)
		return t.insert(above, e, level)
	}
	if e.key.length < n.prefix.length+2 {
		at, found := slices.BinarySearchFunc(n.entries, e.key, func(o entry, k key) int { return o.key.compare(k) })
		if found {
			n.entries[at] = e
		} else {
			n.entries = slices.Insert(n.entries, at, e)
			n.count++
		}
		t.touch(n)
		return n
	}
	slot := e.key.pair(n.prefix.length)
	child := n.children[slot]
	if child == nil {
		child = t.attach(&node{leaf: true, prefix: e.key.prefix(n.prefix.length + 2)})
		t.touch(n)
	}
	before := child.count
	next := t.insert(child, e, level+1)
	if next != child || before == 0 {
		t.touch(n)
	}
	n.children[slot] = next
	n.count += next.count - before
	return n
}

// build makes the nodes for a set of entries, sorted, all inside prefix.
func (t *tree) build(prefix key, entries []entry, level int) *node {
	if len(entries) <= leafSize || level >= t.levels {
		return t.attach(&node{leaf: true, prefix: prefix, entries: entries, count: len(entries)})
	}
	at := entries[0].key.length &^ 1
	for _, e := range entries[1:] {
		at = min(at, entries[0].key.common(e.key))
	}
	n := &node{prefix: entries[0].key.prefix(at), count: len(entries)}
	var groups [4][]entry
	for _, e := range entries {
		if e.key.length < at+2 {
			n.entries = append(n.entries, e)
			continue
		}
		slot := e.key.pair(at)
		groups[slot] = append(groups[slot], e)
	}
	for slot, group := range groups {
		if len(group) > 0 {
			n.children[slot] = t.build(group[0].key.prefix(at+2), group, level+1)
		}
	}
	return t.attach(n)
}

// cut takes e from below n, a child whose keys all begin with place, and
// returns what takes the place of n, nil if nothing is left.
func (t *tree) cut(n *node, e entry, place key, level int) *node {
	before := n.count
	at := slices.Index(n.entries, e)
	switch {
	case at >= 0:
		n.entries = slices.Delete(n.entries, at, at+1)
		n.count--
		t.touch(n)
	case n.leaf || !n.prefix.covers(e.key) || e.key.length < n.prefix.length+2:
		return n
	default:
		slot := e.key.pair(n.prefix.length)
		child := n.children[slot]
		if child == nil {
			return n
		}
		had := child.count
		n.children[slot] = t.cut(child, e, e.key.prefix(n.prefix.length+2), level+1)
		if n.children[slot] != child {
			t.touch(n)
		}
		n.count -= had
		if n.children[slot] != nil {
			n.count += n.children[slot].count
		}
	}
	if n.count == before {
		return n
	}
	return t.shrink(n, place, level)
}

// shrink gives a node that lost an entry the shape that build would give it.
func (t *tree) shrink(n *node, place key, level int) *node {
	switch {
	case n.count == 0:
		t.detach(n)
		return nil
	case n.leaf:
		return n
	case n.count <= leafSize:
		return t.build(place, t.collapse(n), level)
	case len(n.entries) == 0:
		only, several := (*node)(nil), false
		for _, c := range n.children {
			if c != nil {
				several = only != nil
				only = c
			}
			if several {
				return n
			}
		}
		t.detach(n)
		return t.moved(only, place, level)
	}
	return n
}

// moved gives a node that came to a place one level up or down the shape that
// build would give it there: near the last level, that is another one.
func (t *tree) moved(n *node, place key, level int) *node {
	if t.fits(n, level) {
		return n
	}
	return t.build(place, t.collapse(n), level)
}

// fits tells whether a node and all below it have the shape for a level.
func (t *tree) fits(n *node, level int) bool {
	if n.leaf {
		return n.count <= leafSize || level >= t.levels
	}
	if level >= t.levels {
		return false
	}
	for _, c := range n.children {
		if c != nil && !t.fits(c, level+1) {
			return false
		}
	}
	return true
}

// collapse detaches a node with all below it and returns their entries, sorted.
func (t *tree) collapse(n *node) []entry {
	var out []entry
	var take func(*node)
	take = func(n *node) {
		t.detach(n)
		out = append(out, n.entries...)
		for _, c := range n.children {
			if c != nil {
				take(c)
			}
		}
	}
	take(n)
	slices.SortFunc(out, func(a, b entry) int { return a.key.compare(b.key) })
	return out
}

// flush hands over every chain that may have changed since the last call: its
// rules, or nil if it is gone.
func (t *tree) flush(emit func(chain string, rules []string)) {
	for name := range t.dirty {
		if n := t.nodes[name]; n != nil {
			emit(name, t.render(n))
		} else {
			emit(name, nil)
		}
	}
	clear(t.dirty)
}

// each hands over every chain, whether it changed or not.
func (t *tree) each(emit func(chain string, rules []string)) {
	for name, n := range t.nodes {
		emit(name, t.render(n))
	}
}

// entrance returns the rule that leads into the tree, or none for an empty one.
func (t *tree) entrance() []string {
	if t.root == nil {
		return nil
	}
	return []string{t.root.prefix.match(t.flag, 0) + " -j " + t.name(t.root.prefix)}
}

func (t *tree) render(n *node) []string {
	rules := make([]string, 0, 4+len(n.entries))
	known := n.prefix.length
	for _, c := range n.children {
		if c != nil {
			rules = append(rules, c.prefix.match(t.flag, known)+" -j "+t.name(c.prefix))
		}
	}
	for _, e := range n.entries {
		match := e.key.match(t.flag, known) + e.match
		if e.log != 0 {
			rules = append(rules, match+e.log.rule())
		}
		rules = append(rules, match+comment(e.comment)+" "+e.target)
	}
	return rules
}
