package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// amounts are entries of maps whose number Services decide on.
type amounts struct {
	slots, members, frontends, ranges int
	ports                             int // of Services that have no ids
}

func (a *amounts) add(plans []*portPlan, sign int) {
	for _, p := range plans {
		a.slots += sign * len(p.backends)
		a.members += sign * len(p.members)
		a.frontends += sign * len(p.frontends)
		a.ranges += sign * len(p.ranges)
	}
}

// oneService is the part of a map that one Service may take: a Service that wants
// more is left out, so that it does not keep the others from theirs.
const oneService = 4

// within returns what is too much. Beyond what is wanted, slots need room for those
// of a Service that changes: the new ones are written before the old ones go.
func (a *amounts) within(limits amounts, each bool) error {
	for _, m := range []struct {
		what        string
		want, limit int
	}{
		{"slots of backends (endpoints x weight, 4093 with maglev, for each port and family)", a.slots, limits.slots},
		{"endpoints", a.members, limits.members},
		{"addresses and ports", a.frontends, limits.frontends},
		{"source ranges", a.ranges, limits.ranges},
	} {
		limit := m.limit - m.limit/oneService
		if each {
			limit = m.limit / oneService
		}
		switch {
		case m.limit == 0 || m.want <= limit: // 0: not limited
		case each:
			return fmt.Errorf("it wants %d %s, and one Service may have %d", m.want, m.what, limit)
		default:
			return fmt.Errorf("%w for it: all Services together would have %d %s, and there is room for %d", ErrMapFull, m.want, m.what, limit)
		}
	}
	return nil
}

// admit plans a Service, if it fits beside the others, and returns nothing if it
// does not: then [planner.refused] says why.
func (p *planner) admit(name service.Name, r *service.Resolved, old []*portPlan) []*portPlan {
	p.spent.add(old, -1)
	delete(p.refused, name)
	delete(p.unmet, name)
	plans, err := p.planService(r, old)
	if err == nil {
		var own amounts
		own.add(plans, +1)
		if err = own.within(p.limits, true); err == nil {
			all := p.spent
			all.add(plans, +1)
			err = all.within(p.limits, false)
		}
		own.ports = len(plans)
		p.note(name, own, err)
	} else {
		p.note(name, estimate(r), err)
	}
	if err != nil {
		for _, plan := range plans {
			if !slices.ContainsFunc(old, func(o *portPlan) bool { return o.id == plan.id }) {
				delete(p.ids, plan.id)
			}
		}
		p.refused[name] = err.Error()
		return nil
	}
	p.spent.add(plans, +1)
	return plans
}

// estimate is what a Service wants that could not be planned, without weights and Maglev.
func estimate(r *service.Resolved) amounts {
	a := amounts{ports: len(r.Ports)}
	for i := range r.Ports {
		sp := &r.Ports[i]
		backends := len(sp.Backends[0]) + len(sp.Backends[1])
		a.slots += backends
		a.members += backends
		a.frontends += len(sp.Frontends)
	}
	return a
}

// note keeps what a Service wants that all of them together leave no room for.
func (p *planner) note(name service.Name, own amounts, err error) {
	if errors.Is(err, ErrMapFull) {
		p.unmet[name] = own
	}
}

// Refused implements dataplane.Refuser.
func (d *Dataplane) Refused() map[service.Name]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.planner.refused)
}

// limits are those of the maps that are there.
func (r *Reader) limits() (amounts, error) {
	var a amounts
	for m, into := range map[mapID]*int{mapBackends: &a.slots, mapMembers: &a.members, mapFrontends: &a.frontends, mapRanges: &a.ranges} {
		opened, err := r.open(m.String())
		if err != nil {
			return a, err
		}
		*into = int(opened.MaxEntries())
		if err := opened.Close(); err != nil {
			return a, err
		}
	}
	return a, nil
}
