package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// HealthPorts keeps health-check node ports open in the host's firewall where
// another mode translates, as this mode does by itself: INPUT accepts them. Without
// such a port it leaves nothing in the kernel. It is not safe for concurrent use.
type HealthPorts struct {
	opts     Options
	families [2]*familyRules
	unsure   bool // the kernel may hold something else
}

// NewHealthPorts returns one that has not looked at the kernel yet.
func NewHealthPorts(opts Options) *HealthPorts { return &HealthPorts{opts: opts, unsure: true} }

// isHealth tells the chains that HealthPorts may have.
func isHealth(chain string) bool {
	return chain == chainHealth || strings.HasPrefix(chain, chainPrefix+"HC-")
}

// Sync makes the firewall accept the ports of a Table. changed are the Services
// that differ from the last call; nil means to compare everything with the kernel.
func (h *HealthPorts) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	full := h.unsure || changed == nil
	var errs []error
	for _, f := range service.Families {
		if err := h.sync(ctx, f, table, changed, full); err != nil {
			errs = append(errs, fmt.Errorf("accept health-check node ports over %s: %w", f, err))
		}
	}
	h.unsure = len(errs) > 0
	return errors.Join(errs...)
}

func (h *HealthPorts) sync(ctx context.Context, f service.Family, table *service.Table, changed []service.Name, full bool) error {
	fam := h.families[f]
	first := fam == nil
	if first {
		fam = &familyRules{owned: isHealth}
		h.families[f] = fam
	}
	if full {
		facts := table.Node
		had := fam.rules != nil && fam.rules.health.len() > 0
		fam.rules = newRuleset(f, &facts, settings{owner: h.opts.Instance})
		for name, res := range table.Services {
			fam.rules.takeHealth(name, res)
		}
		if !first && !h.unsure && !had && fam.rules.health.len() == 0 {
			return nil
		}
	} else {
		differs := false
		for _, name := range changed {
			differs = fam.rules.takeHealth(name, table.Services[name]) || differs
		}
		if !differs {
			return nil
		}
	}
	return h.write(ctx, f, fam)
}

// takeHealth takes in a Service as far as its health check goes, and reports
// whether that differs.
func (r *ruleset) takeHealth(name service.Name, next *service.Resolved) bool {
	before := r.services[name]
	r.acceptHealth(name, before, next)
	if next == nil {
		delete(r.services, name)
	} else {
		r.services[name] = next
	}
	return r.healthPort(before) != r.healthPort(next)
}

// write makes the kernel hold the rules of a family.
func (h *HealthPorts) write(ctx context.Context, f service.Family, fam *familyRules) error {
	if fam.kernel == nil {
		k, err := h.kernel(ctx, f)
		switch {
		case err != nil && fam.rules.health.len() == 0:
			return nil // where nothing can be written, nothing is
		case err != nil:
			return err
		}
		fam.kernel = k
	}
	if k := fam.kernel; fam.rules.health.len() == 0 {
		if k.backend == BackendLegacy && !k.legacyTableExists("filter") {
			return nil
		}
		return k.cleanTable(ctx, "filter", isHealth)
	}
	wanted, chains := map[string]sums{}, map[string][]string{}
	put := func(chain string, rules []string) {
		if rules != nil {
			wanted[chain], chains[chain] = sumsOf(rules), rules
		}
	}
	fam.rules.health.each(put)
	put(chainHealth, fam.rules.healthRules())
	drift, err := fam.drift(ctx, "filter", wanted, []hook{fam.rules.healthHook()})
	if err != nil || drift.none() {
		return err
	}
	return fam.kernel.restoreInput(ctx, restoreInput(delta{filter: drift.chains(chains)}, nil, drift.jumps))
}

func (h *HealthPorts) kernel(ctx context.Context, f service.Family) (*kernel, error) {
	b := h.opts.Backend
	if b == "" || b == BackendAuto {
		var err error
		if b, err = Detect(ctx); err != nil {
			return nil, fmt.Errorf("find out which iptables back end the node uses: %w", err)
		}
	}
	return newKernel(ctx, b, f)
}
