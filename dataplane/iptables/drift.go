package iptables

import (
	"context"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Verify compares the rules in the kernel with those that it was last made to
// hold. It belongs to the goroutine that calls Sync.
func (d *Dataplane) Verify(ctx context.Context) ([]view.Difference, error) {
	var out []view.Difference
	for _, fam := range d.families {
		if fam == nil || fam.rules == nil {
			continue
		}
		found, err := fam.compare(ctx, fam.rules)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// Compare compares the rules in the kernel with those that an agent with d's
// options would make of a Table. It is for where no agent runs, and changes
// nothing.
func (d *Dataplane) Compare(ctx context.Context, table *service.Table) ([]view.Difference, error) {
	var out []view.Difference
	for f, fam := range d.families {
		if fam == nil {
			continue
		}
		rules := d.rulesOf(service.Family(f), table)
		rules.flush()
		found, err := fam.compare(ctx, rules)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// compare tells in what a family's tables are not what rules say.
func (fam *familyRules) compare(ctx context.Context, rules *ruleset) ([]view.Difference, error) {
	var out []view.Difference
	for _, table := range []struct {
		name  string
		rules *tableRules
	}{{"nat", rules.nat}, {"filter", rules.filter}} {
		drift, err := fam.drift(ctx, table.name, table.rules.sums, rules.hooks())
		if err != nil {
			return nil, err
		}
		out = append(out, drift.differences(fam.kernel.String()+" -t "+table.name)...)
	}
	return out, nil
}

// differences puts a drift into rows.
func (d *tableDrift) differences(where string) []view.Difference {
	var out []view.Difference
	for _, j := range d.jumps {
		out = append(out, view.Difference{Where: where, What: "rule -A " + j.chain + j.rule, Problem: view.Missing})
	}
	for _, chain := range d.differ {
		problem := view.Missing
		if d.exists(chain) {
			problem = view.Different
		}
		out = append(out, view.Difference{Where: where, What: "chain " + chain, Problem: problem})
	}
	for _, chain := range d.stale {
		out = append(out, view.Difference{Where: where, What: "chain " + chain, Problem: view.Unwanted})
	}
	slices.SortFunc(out, func(a, b view.Difference) int { return strings.Compare(a.What, b.What) })
	return out
}

// size is the number of differences.
func (d *tableDrift) size() int { return len(d.differ) + len(d.stale) + len(d.jumps) }

// Drift is how many differences that somebody else made were repaired since
// New. Safe for concurrent use.
func (d *Dataplane) Drift() uint64 { return d.repaired.Load() }
