package service

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// Resolver keeps a [Table] true to a [State] and a [Config], one Service at a
// time. It is not safe for concurrent use; the Table it returns is its own and
// changes with the next call.
type Resolver struct {
	state  *State
	cfg    Config
	table  Table
	full   map[Name]*Resolved // as Resolve returned it, before conflicts
	claims claims
	holders
}

// NewResolver returns a Resolver without objects.
func NewResolver(cfg Config) *Resolver {
	return &Resolver{
		state:   NewState(),
		cfg:     cfg,
		table:   Table{Node: cfg.Facts, Services: map[Name]*Resolved{}},
		full:    map[Name]*Resolved{},
		claims:  claims{},
		holders: newHolders(),
	}
}

// Table returns what this node must translate.
func (r *Resolver) Table() *Table { return &r.table }

// State returns the objects seen so far, for reading.
func (r *Resolver) State() *State { return r.state }

// Config returns the configuration in force.
func (r *Resolver) Config() Config { return r.cfg }

// Apply takes in changes of objects. It returns, sorted, the Services whose
// entry in the Table differs now, those that are gone included, and whether
// one of the given nodes changed (the caller then decides on a new [Config]).
func (r *Resolver) Apply(c Changes) (changed []Name, nodes map[string]struct{}) {
	dirty := r.state.Apply(c)
	return r.resolve(maps.Keys(dirty.Services)), dirty.Nodes
}

// SetConfig takes in a new configuration. It reports whether anything differs:
// then the next Sync must be a full one, since the facts of the node may have
// changed.
func (r *Resolver) SetConfig(cfg Config) bool {
	if reflect.DeepEqual(cfg, r.cfg) {
		return false
	}
	r.cfg = cfg
	r.table.Node = cfg.Facts
	r.resolve(maps.Keys(r.state.services))
	return true
}

func (r *Resolver) resolve(names func(yield func(Name) bool)) []Name {
	again := map[Name]struct{}{} // Services whose claims were won or lost
	for name := range names {
		svc := r.state.Service(name)
		next := Resolve(&r.cfg, svc, r.state.EndpointSlices(name))
		before := r.full[name]
		if next == nil && before == nil {
			continue
		}
		again[name] = struct{}{}
		r.reclaim(name, svc, before, next, again)
		if next == nil {
			delete(r.full, name)
		} else {
			r.full[name] = next
		}
	}
	var changed []Name
	for name := range again {
		if r.settle(name) {
			changed = append(changed, name)
		}
	}
	slices.SortFunc(changed, Name.Compare)
	return changed
}

// reclaim moves a Service's claims from its old frontends to its new ones.
func (r *Resolver) reclaim(name Name, svc *Service, before, next *Resolved, again map[Name]struct{}) {
	var created time.Time
	if svc != nil {
		created = svc.Created
	}
	r.holders.set(name, before, next, again)
	wanted := map[frontendKey]claim{}
	eachClaim(next, func(k frontendKey, kind Kind) {
		wanted[k] = claim{name, created, kind}
	})
	eachClaim(before, func(k frontendKey, _ Kind) {
		if _, ok := wanted[k]; !ok {
			r.claims.set(k, name, nil, again)
		}
	})
	for k, c := range wanted {
		r.claims.set(k, name, &c, again)
	}
}

// settle writes into the Table what remains of a Service after conflicts, and
// reports whether that differs from before.
func (r *Resolver) settle(name Name) bool {
	before, had := r.table.Services[name]
	next := r.full[name]
	if next == nil {
		delete(r.table.Services, name)
		return had
	}
	next = r.withoutLost(next)
	if had && reflect.DeepEqual(before, next) {
		return false
	}
	r.table.Services[name] = next
	return true
}

// withoutLost returns res without the frontends that other Services own, and
// with the exceptions of ranges; it is res itself where there are neither.
func (r *Resolver) withoutLost(res *Resolved) *Resolved {
	lost := map[frontendKey]Problem{}
	ranges := false
	eachFrontend(res, func(k frontendKey, f *Frontend) {
		ranges = ranges || f.LastPort != 0
		if p, ok := r.lost(res.Name, k, f); ok {
			lost[k] = p
		}
	})
	check, problem := r.healthCheck(res)
	if len(lost) == 0 && !ranges && check == res.HealthCheck {
		return res
	}
	out := *res
	out.Ports = slices.Clone(res.Ports)
	out.Problems = slices.Clone(res.Problems)
	if out.HealthCheck = check; check != res.HealthCheck {
		out.Problems = append(out.Problems, problem)
	}
	for i := range out.Ports {
		sp := &out.Ports[i]
		kept := make([]Frontend, 0, len(sp.Frontends))
		for _, f := range sp.Frontends {
			k := keyOf(sp, &f)
			if p, ok := lost[k]; ok {
				if !slices.Contains(out.Problems, p) {
					out.Problems = append(out.Problems, p)
				}
				continue
			}
			if f.LastPort != 0 {
				f.Except = r.claims.exceptions(k, &f)
			}
			kept = append(kept, f)
		}
		sp.Frontends = kept
		sp.Backends = usedLists(kept, categorized{cluster: sp.Backends[ListCluster], local: sp.Backends[ListLocal]})
	}
	return &out
}

// lost tells why a frontend is not its Service's.
func (r *Resolver) lost(name Name, k frontendKey, f *Frontend) (Problem, bool) {
	if f.Kind == ExternalIP || f.Kind == LoadBalancer {
		if owner, ok := r.holders.other(f.Addr, name); ok {
			return Problem{"ExternalIPRefused", fmt.Sprintf("%s %s is the ClusterIP of Service %s", f.Kind, f.Addr, owner)}, true
		}
	}
	if owner := r.claims[k][0].name; owner != name {
		return Problem{"AddressConflict", fmt.Sprintf("%s %s belongs to Service %s", f.Kind, k, owner)}, true
	}
	return Problem{}, false
}

// healthCheck returns the health check of a Service, or nil and why where its port
// is another's node port or health check in some family: packets to it would not
// come to it.
func (r *Resolver) healthCheck(res *Resolved) (*HealthCheck, Problem) {
	for _, k := range healthKeys(res) {
		if owner := r.claims[k][0].name; owner != res.Name {
			return nil, Problem{"AddressConflict", fmt.Sprintf("health-check node port %s belongs to Service %s", k, owner)}
		}
	}
	return res.HealthCheck, Problem{}
}
