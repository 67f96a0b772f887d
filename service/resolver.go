package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
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
}

// NewResolver returns a Resolver without objects.
func NewResolver(cfg Config) *Resolver {
	return &Resolver{
		state:  NewState(),
		cfg:    cfg,
		table:  Table{Node: cfg.Facts, Services: map[Name]*Resolved{}},
		full:   map[Name]*Resolved{},
		claims: claims{},
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
	wanted := map[frontendKey]claim{}
	eachFrontend(next, func(k frontendKey, f *Frontend) {
		wanted[k] = claim{name, created, f.Kind}
	})
	eachFrontend(before, func(k frontendKey, _ *Frontend) {
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
// res itself where there are none.
func (r *Resolver) withoutLost(res *Resolved) *Resolved {
	lost := map[frontendKey]Name{}
	eachFrontend(res, func(k frontendKey, _ *Frontend) {
		if owner := r.claims[k][0].name; owner != res.Name {
			lost[k] = owner
		}
	})
	if len(lost) == 0 {
		return res
	}
	out := *res
	out.Ports = slices.Clone(res.Ports)
	out.Problems = slices.Clone(res.Problems)
	for i := range out.Ports {
		sp := &out.Ports[i]
		kept := make([]Frontend, 0, len(sp.Frontends))
		for _, f := range sp.Frontends {
			if owner, ok := lost[keyOf(sp, &f)]; ok {
				out.Problems = append(out.Problems, Problem{"AddressConflict", fmt.Sprintf(
					"%s %s belongs to Service %s", f.Kind, keyOf(sp, &f), owner)})
				continue
			}
			kept = append(kept, f)
		}
		sp.Frontends = kept
		sp.Backends = usedLists(kept, categorized{cluster: sp.Backends[ListCluster], local: sp.Backends[ListLocal]})
	}
	return &out
}

// frontendKey is what makes two frontends the same to a packet.
type frontendKey struct {
	addr     netip.Addr // zero for a node port
	family   Family
	protocol Protocol
	port     uint16
}

func (k frontendKey) String() string {
	if !k.addr.IsValid() {
		return fmt.Sprintf("%d/%s on %s", k.port, k.protocol, k.family)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.addr, k.port), k.protocol)
}

func keyOf(sp *ServicePort, f *Frontend) frontendKey {
	return frontendKey{addr: f.Addr, family: sp.Family, protocol: sp.Protocol, port: f.Port}
}

func eachFrontend(res *Resolved, do func(frontendKey, *Frontend)) {
	if res == nil {
		return
	}
	for i := range res.Ports {
		sp := &res.Ports[i]
		for j := range sp.Frontends {
			do(keyOf(sp, &sp.Frontends[j]), &sp.Frontends[j])
		}
	}
}

// claims tells which Services want a frontend, the owner first.
type claims map[frontendKey][]claim

type claim struct {
	name    Name
	created time.Time
	kind    Kind
}

// compare orders claims: a ClusterIP is the API server's to give and can not be
// taken over by anything else; then the older Service wins, then the name.
func (c claim) compare(o claim) int {
	return cmp.Or(
		cmp.Compare(min(c.kind, ExternalIP), min(o.kind, ExternalIP)),
		c.created.Compare(o.created),
		c.name.Compare(o.name),
	)
}

// set replaces the claim of a Service to a frontend; nil takes it away. Every
// Service that wins or loses the frontend by it is added to again.
func (cs claims) set(k frontendKey, name Name, c *claim, again map[Name]struct{}) {
	before := cs[k]
	if len(before) == 0 && c != nil { // by far the most common case
		cs[k] = []claim{*c}
		return
	}
	next := slices.DeleteFunc(slices.Clone(before), func(o claim) bool { return o.name == name })
	if c != nil {
		next = append(next, *c)
	}
	slices.SortFunc(next, claim.compare)
	if len(next) == 0 {
		delete(cs, k)
		return
	}
	cs[k] = next
	if len(before) > 0 && before[0].name != next[0].name {
		again[before[0].name] = struct{}{}
		again[next[0].name] = struct{}{}
	}
	if len(before) > 1 || len(next) > 1 { // the losers name the owner
		for _, o := range next {
			again[o.name] = struct{}{}
		}
	}
}
