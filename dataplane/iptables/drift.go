package iptables

import (
	"context"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// Verify compares the rules in the kernel with those that it was last made to
// hold. It belongs to the goroutine that calls Sync.
func (d *Dataplane) Verify(ctx context.Context) ([]view.Difference, error) {
	var out []view.Difference
	for _, fam := range d.families {
		if fam == nil || fam.rules == nil {
			continue
		}
		for _, table := range []struct {
			name  string
			rules *tableRules
		}{{"nat", fam.rules.nat}, {"filter", fam.rules.filter}} {
			drift, err := fam.drift(ctx, table.name, table.rules.sums, fam.rules.hooks())
			if err != nil {
				return nil, err
			}
			out = append(out, drift.differences(fam.kernel.String()+" -t "+table.name)...)
		}
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
