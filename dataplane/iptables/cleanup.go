package iptables

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// Cleanup removes our chains and the jumps to them, from both back ends and
// both families, and nothing else. Conntrack entries stay, so that connections
// that are open go on. What cannot be removed is in the error; the rest is
// removed all the same. It needs no agent to have run before.
func Cleanup(ctx context.Context) error { return remove(ctx, ours, "nat", "filter") }

// Retire removes our nat chains, for when another mode has taken over: new
// flows meet no rule of ours any more, while conntrack goes on translating
// those that are open, and the filter chains go on letting them pass. Refusals
// end first: without the nat chains they would refuse everything.
func Retire(ctx context.Context) error {
	var errs []error
	eachTable(ctx, []string{"filter"}, func(k *kernel, table string) {
		errs = append(errs, k.emptyChain(ctx, table, chainNewFlows))
	})
	return errors.Join(append(errs, remove(ctx, ours, "nat"))...)
}

// emptyChain takes the rules out of a chain, if there is such a chain.
func (k *kernel) emptyChain(ctx context.Context, table, chain string) error {
	out, err := k.saveTable(ctx, table)
	if err != nil {
		return err
	}
	if _, ok := parseSave(out, ours).shapes[chain]; !ok {
		return nil
	}
	var b bytes.Buffer
	restoreTable(&b, table, map[string][]string{chain: {}}, nil)
	return k.restoreInput(ctx, b.Bytes())
}

// Found is chains that somebody left in one table.
type Found struct {
	Where  string // "iptables-nft -t nat"
	Chains []string
}

// End removes what is left of this mode when another has taken over. What
// [HealthPorts] has stays.
func End(ctx context.Context) error { return remove(ctx, ofMode, "nat", "filter") }

// Leftovers lists the chains of this mode that are in the kernel.
func Leftovers(ctx context.Context) ([]Found, error) { return find(ctx, ofMode) }

// ofMode tells the chains that are there in this mode only.
func ofMode(chain string) bool { return ours(chain) && !isHealth(chain) }

// remove deletes an owner's chains, and the jumps to them, from tables.
func remove(ctx context.Context, owned func(string) bool, tables ...string) error {
	var errs []error
	eachTable(ctx, tables, func(k *kernel, table string) {
		if err := k.cleanTable(ctx, table, owned); err != nil {
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}

func find(ctx context.Context, owned func(string) bool) ([]Found, error) {
	var found []Found
	var errs []error
	eachTable(ctx, []string{"nat", "filter", "mangle"}, func(k *kernel, table string) {
		out, err := k.saveTable(ctx, table)
		if err != nil {
			errs = append(errs, err)
			return
		}
		if chains := slices.Sorted(maps.Keys(parseSave(out, owned).shapes)); len(chains) > 0 {
			found = append(found, Found{k.String() + " -t " + table, chains})
		}
	})
	return found, errors.Join(errs...)
}

// eachTable visits tables of every back end and family that is installed. It
// leaves out those that were never used: merely reading a legacy table makes it.
func eachTable(ctx context.Context, tables []string, visit func(k *kernel, table string)) {
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		for _, f := range service.Families {
			k, err := newKernel(ctx, b, f)
			if err != nil {
				continue // without the program there are no rules of its kind
			}
			for _, table := range tables {
				if b == BackendNFT || k.legacyTableExists(table) {
					visit(k, table)
				}
			}
		}
	}
}

func (k *kernel) cleanTable(ctx context.Context, table string, owned func(string) bool) error {
	out, err := k.saveTable(ctx, table)
	if err != nil {
		return err
	}
	saved := parseSave(out, owned)
	if len(saved.shapes)+len(saved.jumps) == 0 {
		return nil
	}
	gone := slices.Sorted(maps.Keys(saved.shapes))
	var b bytes.Buffer
	removeTable(&b, table, saved.jumps, gone)
	return k.restoreInput(ctx, b.Bytes())
}
