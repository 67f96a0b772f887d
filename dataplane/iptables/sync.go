package iptables

import (
	"context"
	"reflect"

	"github.com/nodeproxy/nodeproxy/service"
)

// familyRules joins the wanted rules of a family with its kernel.
type familyRules struct {
	kernel *kernel
	rules  *ruleset // nil until the first Sync
	// owned tells the chains that are its to delete where nobody wants them.
	owned func(chain string) bool
	// unsure means that the kernel may not hold what rules says it does.
	unsure bool
	// verified is the kernel's generation of rules at which it was last seen to
	// hold what it should.
	verified uint32
}

func (fam *familyRules) sync(ctx context.Context, d *Dataplane, f service.Family, table *service.Table, changed []service.Name) error {
	if changed == nil || fam.unsure || fam.rules == nil {
		return fam.syncAll(ctx, d, f, table)
	}
	var before, after []*service.Resolved
	for _, name := range changed {
		before = append(before, fam.rules.services[name])
		after = append(after, table.Services[name])
		fam.rules.update(name, table.Services[name])
	}
	if input := restoreInput(fam.rules.flush(), nil, nil); len(input) > 0 {
		if err := fam.kernel.restoreInput(ctx, input); err != nil {
			return err
		}
	}
	return d.forgetStale(ctx, f, &table.Node, before, after)
}

// syncAll compares the wanted rules with the kernel's and writes the chains
// that differ; it deletes chains of ours that nobody wants and puts missing
// jumps back.
func (fam *familyRules) syncAll(ctx context.Context, d *Dataplane, f service.Family, table *service.Table) error {
	before, after := fam.differences(table)
	same := fam.rules != nil && !fam.unsure && len(before)+len(after) == 0 && reflect.DeepEqual(*fam.rules.facts, table.Node)
	if same {
		if intact, err := fam.verify(ctx); intact || err != nil {
			return err
		}
	}
	rules := d.rulesOf(f, table)
	all := rules.flush()
	nat, err := fam.drift(ctx, "nat", rules.nat.sums, rules.hooks())
	if err != nil {
		return err
	}
	filter, err := fam.drift(ctx, "filter", rules.filter.sums, rules.hooks())
	if err != nil {
		return err
	}
	if err := fam.write(ctx, nat, filter, all); err != nil {
		return err
	}
	if same {
		d.repaired.Add(uint64(nat.size() + filter.size()))
		d.opts.Log.Warn("repaired rules that another program changed", "backend", fam.kernel.String(),
			"chains", nat.size()-len(nat.jumps)+filter.size()-len(filter.jumps), "jumps", len(nat.jumps)+len(filter.jumps))
	}
	fam.rules, fam.unsure = rules, false
	return d.forgetStale(ctx, f, rules.facts, before, after)
}

// rulesOf renders a whole Table for a family.
func (d *Dataplane) rulesOf(f service.Family, table *service.Table) *ruleset {
	facts := table.Node
	s := d.settings
	s.chainComments = len(table.Services) <= manyServices
	rules := newRuleset(f, &facts, s)
	for name, res := range table.Services {
		rules.update(name, res)
	}
	return rules
}

// differences returns the Services in which a Table differs from the rules, as
// they were and as they are to be. Resolved Services are immutable, so their
// pointers tell.
func (fam *familyRules) differences(table *service.Table) (before, after []*service.Resolved) {
	var had map[service.Name]*service.Resolved
	if fam.rules != nil {
		had = fam.rules.services
	}
	for name, res := range had {
		if table.Services[name] != res {
			before = append(before, res)
		}
	}
	for name, res := range table.Services {
		if had[name] != res {
			after = append(after, res)
		}
	}
	return before, after
}

// verify reports whether the kernel holds what it should. Where the kernel can
// tell that no rule of anybody changed since the last time, that is enough.
func (fam *familyRules) verify(ctx context.Context) (bool, error) {
	generation, known := fam.kernel.generation()
	if known && fam.verified == generation {
		return true, nil
	}
	for table, sums := range map[string]map[string]sums{"nat": fam.rules.nat.sums, "filter": fam.rules.filter.sums} {
		d, err := fam.drift(ctx, table, sums, fam.rules.hooks())
		if err != nil || !d.none() {
			return false, err
		}
	}
	fam.verified = generation
	return true, nil
}

// tableDrift is where a table in the kernel is not as wanted.
type tableDrift struct {
	differ []string // chains that are missing or hold other rules
	stale  []string // chains of ours that are not wanted
	jumps  []hook   // that are missing
	exists func(chain string) bool
}

func (d *tableDrift) none() bool { return d.size() == 0 }

// chains returns what has to be written, as in delta.
func (d *tableDrift) chains(wanted map[string][]string) map[string][]string {
	out := make(map[string][]string, len(d.differ)+len(d.stale))
	for _, name := range d.differ {
		out[name] = wanted[name]
	}
	for _, name := range d.stale {
		out[name] = nil
	}
	return out
}

// drift compares a table in the kernel with what it should hold.
func (fam *familyRules) drift(ctx context.Context, table string, wanted map[string]sums, hooks []hook) (tableDrift, error) {
	out, err := fam.kernel.saveTable(ctx, table)
	if err != nil {
		return tableDrift{}, err
	}
	saved := parseSave(out, fam.owned)
	d := tableDrift{exists: func(chain string) bool { _, ok := saved.shapes[chain]; return ok }}
	for name, sum := range wanted {
		if shape, ok := saved.shapes[name]; !ok || shape != sum.shape {
			d.differ = append(d.differ, name)
		}
	}
	for name := range saved.shapes {
		if _, ok := wanted[name]; !ok {
			d.stale = append(d.stale, name)
		}
	}
	for _, h := range hooks {
		if h.table == table && !saved.hasJump(h) {
			if h.behind {
				h.place = 1 + leadingJumps(out, h.chain)
			}
			d.jumps = append(d.jumps, h)
		}
	}
	return d, nil
}

// write mends what drifted.
func (fam *familyRules) write(ctx context.Context, nat, filter tableDrift, wanted delta) error {
	if nat.none() && filter.none() {
		return nil
	}
	natChains := nat.chains(wanted.nat)
	if fam.kernel.backend == BackendNFT {
		var first []map[string][]string
		first, natChains = batches(natChains, nat.exists)
		for _, chains := range first {
			if err := fam.kernel.restoreInput(ctx, restoreInput(delta{nat: chains}, nil, nil)); err != nil {
				return err
			}
		}
	}
	last := restoreInput(delta{nat: natChains, filter: filter.chains(wanted.filter)}, nat.jumps, filter.jumps)
	return fam.kernel.restoreInput(ctx, last)
}

// hasJump reports whether a built-in chain leads to ours as wanted.
func (s *savedTable) hasJump(h hook) bool {
	for _, rule := range s.jumps[h.chain] {
		if shapeOf(rule) == shapeOf(h.rule) {
			return true
		}
	}
	return false
}
