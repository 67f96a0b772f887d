package ebpf

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// mapID names a map that Go writes.
type mapID uint8

const (
	mapFrontends mapID = iota
	mapBackends
	mapMembers
	mapRanges
	mapAddresses
	mapPorts
	mapServices
	mapNode
	mapNames
)

// String returns the map's name in the object.
func (m mapID) String() string {
	return [...]string{bpfMapFrontends, bpfMapBackends, bpfMapMembers, bpfMapSourceRanges,
		bpfMapAddresses, bpfMapPorts, bpfMapServices, bpfMapNode, bpfMapNames}[m]
}

// write is one change of one map. value is nil to delete the key.
type write struct {
	m          mapID
	key, value any
}

// planner turns Tables into writes. It knows no kernel: the mirror is given to
// it, and what it returns is carried out elsewhere.
type planner struct {
	kernel  *contents
	plans   map[service.Name][]*portPlan
	node    map[bpfAddr]uint32  // flags of the node's own addresses
	vips    map[bpfAddr]int     // how many frontends have this address
	alone   map[bpfAddr]int     // how many of these have it as a ClusterIP
	portUse map[portUse]int     // how many frontends have this port
	ids     map[uint32]struct{} // in use
	// newest is, by id, the highest generation that was ever written; ids of the
	// kernel that no plan has claimed yet are in it too.
	newest map[uint32]uint32
	// rerouted tells that a frontend of the last plan is gone, or leads some
	// source elsewhere than it did.
	rerouted bool
	nextID   uint32
	maxID    uint32 // exclusive
	// refused are Services that are left out, and why; limits what all others may
	// have, and spent what they do.
	refused       map[service.Name]string
	limits, spent amounts
	// unmet is what those of refused want that would fit into larger maps.
	unmet map[service.Name]amounts
}

// portUse is a port number with one bit of the ports map.
type portUse struct {
	port, bit uint32
}

func newPlanner(maxID uint32) *planner {
	p := &planner{kernel: newContents(), maxID: maxID}
	p.reset()
	return p
}

// reset forgets every plan, for a full sync.
func (p *planner) reset() {
	p.plans = map[service.Name][]*portPlan{}
	p.node = map[bpfAddr]uint32{}
	p.vips = map[bpfAddr]int{}
	p.alone = map[bpfAddr]int{}
	p.portUse = map[portUse]int{}
	p.ids = map[uint32]struct{}{}
	p.newest = map[uint32]uint32{}
	p.refused, p.unmet, p.spent = map[service.Name]string{}, map[service.Name]amounts{}, amounts{}
	for _, v := range p.kernel.frontends {
		p.newest[v.Service] = max(p.newest[v.Service], v.Generation)
	}
	for k := range p.kernel.backends {
		p.newest[k.Service] = max(p.newest[k.Service], k.Generation)
	}
}

// takeID returns the id that a frontend of sp has in the kernel, so that flows
// and affinity survive a restart, or one that nobody has. Ids are handed out
// in a circle, so that what is still said about an old one does not meet its
// next owner soon.
func (p *planner) takeID(sp *service.ServicePort) (uint32, error) {
	for _, f := range sp.Frontends {
		if v, ok := p.kernel.frontends[frontendKey(sp, f)]; ok && v.Service < p.maxID {
			if _, used := p.ids[v.Service]; !used {
				p.ids[v.Service] = struct{}{}
				return v.Service, nil
			}
		}
	}
	for range p.maxID {
		id := p.nextID
		p.nextID = (p.nextID + 1) % p.maxID
		_, used := p.ids[id]
		if _, inKernel := p.newest[id]; !used && !inKernel {
			p.ids[id] = struct{}{}
			return id, nil
		}
	}
	return 0, fmt.Errorf("ports of Services: %w: more than %d", ErrMapFull, p.maxID)
}

// planService lays a Service out, under the ids it had.
func (p *planner) planService(r *service.Resolved, old []*portPlan) ([]*portPlan, error) {
	if r == nil {
		return nil, nil
	}
	plans := make([]*portPlan, 0, len(r.Ports))
	for i := range r.Ports {
		sp := &r.Ports[i]
		at := slices.IndexFunc(old, func(o *portPlan) bool { return o.name == sp.Name && o.family == sp.Family })
		var id uint32
		var err error
		if at >= 0 {
			id = old[at].id
		} else if id, err = p.takeID(sp); err != nil {
			return plans, fmt.Errorf("service %s: %w", sp.Name, err)
		}
		plan := planPort(sp, id, p.kernel, p.newest[id]+1)
		p.newest[id] = max(p.newest[id], plan.generation)
		plans = append(plans, plan)
	}
	return plans, nil
}

// scope is what one sync is about: the keys that may go, and those wanted.
type scope struct {
	old, want *contents
	addresses map[bpfAddr]struct{} // whose flags may change
	ports     map[uint32]struct{}
	ids       map[uint32]struct{} // whose members may change
}

func newScope() *scope {
	return &scope{old: newContents(), want: newContents(), addresses: map[bpfAddr]struct{}{},
		ports: map[uint32]struct{}{}, ids: map[uint32]struct{}{}}
}

// add puts a plan into one side of the scope and counts its addresses and ports.
func (p *planner) add(s *scope, side *contents, plan *portPlan, n int) {
	plan.frontends.copyTo(side.frontends)
	plan.members.copyTo(side.members)
	plan.ranges.copyTo(side.ranges)
	side.names[plan.id] = nameText(plan.name)
	for i, b := range plan.backends {
		side.backends[plan.slot(i)] = b
	}
	s.ids[plan.id] = struct{}{}
	for _, m := range plan.members {
		use := portUse{uint32(networkPort(m.key.Port)), backendBit(plan.protocol)}
		p.portUse[use] += n
		s.ports[use.port] = struct{}{}
	}
	for _, f := range plan.frontends {
		k := f.key
		nodePort := f.value.Flags&uint8(bpfFrontendFlagFRONTEND_NODEPORT) != 0
		use := portUse{uint32(networkPort(k.Port)), portBit(service.Protocol(k.Proto), nodePort)}
		p.portUse[use] += n
		s.ports[use.port] = struct{}{}
		if !nodePort {
			p.vips[k.Addr] += n
			if f.value.Flags&uint8(bpfFrontendFlagFRONTEND_EXTERNAL|bpfFrontendFlagFRONTEND_BALANCER) == 0 {
				p.alone[k.Addr] += n
			}
			s.addresses[k.Addr] = struct{}{}
		}
	}
}

// planChanged works out the writes for some Services.
func (p *planner) planChanged(table *service.Table, changed []service.Name) ([]write, error) {
	s := newScope()
	var gone []uint32
	names := slices.Compact(slices.SortedFunc(slices.Values(changed), service.Name.Compare))
	for _, name := range names {
		old := p.plans[name]
		plans := p.admit(name, table.Services[name], old)
		for _, o := range old {
			p.add(s, s.old, o, -1)
			if !slices.ContainsFunc(plans, func(n *portPlan) bool { return n.id == o.id }) {
				gone = append(gone, o.id)
			}
		}
		for _, n := range plans {
			p.add(s, s.want, n, +1)
		}
		p.plans[name] = plans
		if len(plans) == 0 {
			delete(p.plans, name)
		}
	}
	writes := p.order(s)
	for _, id := range gone { // not before: no id is given twice in one sync
		delete(p.ids, id)
		delete(p.newest, id)
	}
	return writes, nil
}

// planAll works out the writes that turn the mirror, which was just read, into
// the whole table.
func (p *planner) planAll(ctx context.Context, table *service.Table, primary [2]netip.Addr, modes bpfNodeFlag) ([]write, error) {
	p.reset()
	s := newScope()
	s.old = p.kernel
	node, addresses := planNode(&table.Node, primary, modes)
	p.node = addresses
	for a := range addresses {
		s.addresses[a] = struct{}{}
	}
	for a := range p.kernel.addresses {
		s.addresses[a] = struct{}{}
	}
	for port := range p.kernel.ports {
		s.ports[port] = struct{}{}
	}
	for k := range p.kernel.members {
		s.ids[k.Service] = struct{}{}
	}
	for _, name := range p.servedFirst(table) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		plans := p.admit(name, table.Services[name], nil)
		for _, plan := range plans {
			p.add(s, s.want, plan, +1)
		}
		if len(plans) > 0 {
			p.plans[name] = plans
		}
	}
	writes := p.order(s)
	if node != p.kernel.node {
		writes = append([]write{{mapNode, uint32(0), node}}, writes...)
	}
	return writes, nil
}

// servedFirst lists the Services of a table by name, after those that the kernel has: where
// there is no room for all, none of these goes for a new one.
func (p *planner) servedFirst(table *service.Table) []service.Name {
	served, others := []service.Name{}, []service.Name{}
	for name, r := range table.Services {
		if p.serves(r) {
			served = append(served, name)
		} else {
			others = append(others, name)
		}
	}
	slices.SortFunc(served, service.Name.Compare)
	slices.SortFunc(others, service.Name.Compare)
	return append(served, others...)
}

// serves reports whether the kernel has some frontend of a Service.
func (p *planner) serves(r *service.Resolved) bool {
	for i := range r.Ports {
		for _, f := range r.Ports[i].Frontends {
			if _, ok := p.kernel.frontends[frontendKey(&r.Ports[i], f)]; ok {
				return true
			}
		}
	}
	return false
}

// order lists the writes of a scope so that after each of them a packet sees
// the old set of endpoints or the new one:
//
//  1. what frontends refer to comes before they do: slots, members, source
//     ranges, and the marks of ports by which packets find their way to them;
//  2. frontends change, each in one write;
//  3. an address is marked as some frontend's after its frontends are there,
//     and until they go: what is for a marked address and finds no frontend is
//     refused, and while modes change, the other mode still serves it;
//  4. frontends go before what they refer to;
//  5. what no frontend refers to any more goes;
//  6. epochs come last, since they make flows look at members again.
func (p *planner) order(s *scope) []write {
	var w []write
	touched := p.touchedIDs(s)
	w = appendPuts(w, mapBackends, s.want.backends, p.kernel.backends, compareBackends)
	w = appendPuts(w, mapMembers, s.want.members, p.kernel.members, compareMembers)
	w = appendPuts(w, mapRanges, s.want.ranges, p.kernel.ranges, compareRanges)
	w = appendPuts(w, mapNames, s.want.names, p.kernel.names, cmp.Compare)
	w = p.appendPorts(w, s, true)
	w = appendPuts(w, mapFrontends, s.want.frontends, p.kernel.frontends, compareFrontends)
	w = p.appendAddresses(w, s, true)

	w = p.appendAddresses(w, s, false)
	w = appendDeletes(w, mapFrontends, s.old.frontends, s.want.frontends, p.kernel.frontends, compareFrontends)
	w = p.appendPorts(w, s, false)
	w = appendDeletes(w, mapBackends, s.old.backends, s.want.backends, p.kernel.backends, compareBackends)
	w = appendDeletes(w, mapMembers, s.old.members, s.want.members, p.kernel.members, compareMembers)
	w = appendDeletes(w, mapRanges, s.old.ranges, s.want.ranges, p.kernel.ranges, compareRanges)
	w = appendDeletes(w, mapNames, s.old.names, s.want.names, p.kernel.names, cmp.Compare)
	for _, id := range slices.Sorted(maps.Keys(touched)) {
		w = append(w, write{mapServices, id, bpfService{Epoch: p.kernel.services[id].Epoch + 1}})
	}
	return w
}

// touchedIDs returns the ids whose members, or the routes to them, differ from
// the kernel's: their flows have to be looked at again.
func (p *planner) touchedIDs(s *scope) map[uint32]struct{} {
	ids := map[uint32]struct{}{}
	for k, v := range s.want.members {
		if got, ok := p.kernel.members[k]; !ok || got != v {
			ids[k.Service] = struct{}{}
		}
	}
	for k := range s.old.members {
		if _, ok := s.want.members[k]; !ok {
			ids[k.Service] = struct{}{}
		}
	}
	p.rerouted = false
	reroute := func(id uint32) {
		ids[id] = struct{}{}
		p.rerouted = true
	}
	for k, v := range s.old.frontends {
		if got, ok := s.want.frontends[k]; !ok || got.Service != v.Service || got.Route != v.Route || got.Flags != v.Flags {
			reroute(v.Service)
		}
	}
	for k := range s.want.ranges {
		if _, ok := p.kernel.ranges[k]; !ok {
			ids[k.Service] = struct{}{}
		}
	}
	for k := range s.old.ranges {
		if _, ok := s.want.ranges[k]; !ok {
			reroute(k.Service)
		}
	}
	return ids
}

// appendPorts writes the marks of ports: with more, only additions, and else the
// exact values.
func (p *planner) appendPorts(w []write, s *scope, more bool) []write {
	for _, port := range slices.Sorted(maps.Keys(s.ports)) {
		want, old := p.wantPort(port), p.kernel.ports[port]
		if more && want|old != old {
			w = append(w, write{mapPorts, port, want | old})
		} else if !more && want != want|old {
			w = append(w, write{mapPorts, port, want})
		}
	}
	return w
}

// appendAddresses does the same for addresses.
func (p *planner) appendAddresses(w []write, s *scope, more bool) []write {
	for _, a := range sortedKeys(s.addresses, compareAddrs) {
		want, old := p.wantAddress(a), p.kernel.addresses[a]
		switch {
		case more && want|old != old:
			w = append(w, write{mapAddresses, a, want | old})
		case !more && want == 0 && old != 0:
			w = append(w, write{mapAddresses, a, nil})
		case !more && want != want|old:
			w = append(w, write{mapAddresses, a, want})
		}
	}
	return w
}

func (p *planner) wantPort(port uint32) uint32 {
	var want uint32
	for _, proto := range service.Protocols {
		for _, bit := range [...]uint32{portBit(proto, false), portBit(proto, true), backendBit(proto)} {
			if p.portUse[portUse{port, bit}] > 0 {
				want |= bit
			}
		}
	}
	return want
}

func (p *planner) wantAddress(a bpfAddr) uint32 {
	want := p.node[a]
	if p.vips[a] > 0 {
		want |= uint32(bpfAddressFlagADDRESS_VIP)
	}
	if p.alone[a] > 0 {
		want |= uint32(bpfAddressFlagADDRESS_CLUSTER_IP)
	}
	return want
}

func appendPuts[K, V comparable](w []write, m mapID, want, kernel map[K]V, cmp func(a, b K) int) []write {
	for _, k := range keysMissing(want, kernel, cmp) {
		w = append(w, write{m, k, want[k]})
	}
	return w
}

func appendDeletes[K, V comparable](w []write, m mapID, old, want, kernel map[K]V, cmp func(a, b K) int) []write {
	for _, k := range keysMissing(old, want, cmp) {
		if _, ok := want[k]; ok {
			continue
		}
		if _, ok := kernel[k]; ok {
			w = append(w, write{m, k, nil})
		}
	}
	return w
}

// took notes in the mirror that the kernel accepted a write.
func (c *contents) took(w write) {
	switch k := w.key.(type) {
	case bpfFrontendKey:
		put(c.frontends, k, w.value)
	case bpfBackendKey:
		put(c.backends, k, w.value)
	case bpfMemberKey:
		put(c.members, k, w.value)
	case bpfRangeKey:
		put(c.ranges, k, w.value)
	case bpfAddr:
		put(c.addresses, k, w.value)
	case uint32:
		if w.m == mapNames {
			put(c.names, k, w.value)
			return
		}
		switch v := w.value.(type) {
		case bpfNode:
			c.node = v
		case bpfService:
			c.services[k] = v
		case uint32:
			c.ports[k] = v
			if v == 0 {
				delete(c.ports, k)
			}
		}
	}
}

func put[K comparable, V any](m map[K]V, k K, v any) {
	if v == nil {
		delete(m, k)
		return
	}
	m[k] = v.(V)
}

func compareAddrs(a, b bpfAddr) int {
	var x, y [16]byte
	for i := range a.W {
		binary.NativeEndian.PutUint32(x[4*i:], a.W[i])
		binary.NativeEndian.PutUint32(y[4*i:], b.W[i])
	}
	return bytes.Compare(x[:], y[:])
}

func compareFrontends(a, b bpfFrontendKey) int {
	return cmp.Or(compareAddrs(a.Addr, b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
}

func compareBackends(a, b bpfBackendKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Slot, b.Slot))
}

func compareMembers(a, b bpfMemberKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), compareAddrs(a.Addr, b.Addr), cmp.Compare(a.Port, b.Port))
}

func compareRanges(a, b bpfRangeKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Prefixlen, b.Prefixlen), compareAddrs(a.Addr, b.Addr))
}
