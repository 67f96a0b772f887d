package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// frontendKey is what makes two frontends the same to a packet.
type frontendKey struct {
	addr     netip.Addr // zero for a node port
	family   Family
	protocol Protocol
	port     uint16 // 0 for a range of ports
}

func (k frontendKey) String() string {
	switch {
	case !k.addr.IsValid():
		return fmt.Sprintf("%d/%s on %s", k.port, k.protocol, k.family)
	case k.port == 0:
		return fmt.Sprintf("%s port range of %s", k.addr, k.protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.addr, k.port), k.protocol)
}

// span is the key of the range of ports that a port may be inside.
func (k frontendKey) span() frontendKey {
	k.port = 0
	return k
}

func keyOf(sp *ServicePort, f *Frontend) frontendKey {
	k := frontendKey{addr: f.Addr, family: sp.Family, protocol: sp.Protocol, port: f.Port}
	if f.LastPort != 0 {
		return k.span()
	}
	return k
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

// eachClaim calls do with what a Service claims: its frontends, and the port of
// its health check, which is a node port of TCP to any client.
func eachClaim(res *Resolved, do func(frontendKey, Kind)) {
	eachFrontend(res, func(k frontendKey, f *Frontend) { do(k, f.Kind) })
	for _, k := range healthKeys(res) {
		do(k, NodePort)
	}
}

// healthKeys are what a health-check node port is to packets, in each family of
// the Service.
func healthKeys(res *Resolved) []frontendKey {
	if res == nil || res.HealthCheck == nil {
		return nil
	}
	var out []frontendKey
	for i := range res.Ports {
		k := frontendKey{family: res.Ports[i].Family, protocol: TCP, port: res.HealthCheck.Port}
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// claims tells which Services want a frontend, the owner first.
type claims map[frontendKey][]claim

type claim struct {
	name    Name
	created time.Time
	kind    Kind
}

// compare orders claims: a ClusterIP is the API server's to give and cannot be
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
	if (len(before) == 0) != (c == nil) && k.port != 0 { // a range is told of its exceptions
		for _, o := range cs[k.span()] {
			again[o.name] = struct{}{}
		}
	}
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

// exceptions are the ports inside a range that have a frontend of their own.
// What others claim at a ClusterIP is never theirs, so it is none.
func (cs claims) exceptions(k frontendKey, f *Frontend) []uint16 {
	var out []uint16
	for port := int(f.Port); port <= int(f.LastPort); port++ {
		k.port = uint16(port)
		if c := cs[k]; len(c) > 0 && (f.Kind != ClusterIP || c[0].kind == ClusterIP) {
			out = append(out, k.port)
		}
	}
	return out
}

// holders tells who has an address as a ClusterIP, and who has it as an
// external one. The former excludes the latter, at every port: else a Service
// could take over packets that are for another (CVE-2020-8554).
type holders struct {
	clusterIP map[netip.Addr][]Name
	external  map[netip.Addr]map[Name]struct{}
}

func newHolders() holders {
	return holders{clusterIP: map[netip.Addr][]Name{}, external: map[netip.Addr]map[Name]struct{}{}}
}

// set replaces what a Service has. Every Service that loses or regains an
// external address by it is added to again.
func (h holders) set(name Name, before, next *Resolved, again map[Name]struct{}) {
	had, has := addressesOf(before), addressesOf(next)
	for a, kind := range had {
		if k, ok := has[a]; ok && k == kind {
			continue
		}
		if kind == ClusterIP {
			h.clusterIP[a] = slices.DeleteFunc(h.clusterIP[a], func(o Name) bool { return o == name })
			if len(h.clusterIP[a]) == 0 {
				delete(h.clusterIP, a)
			}
			h.mark(a, again)
		} else if delete(h.external[a], name); len(h.external[a]) == 0 {
			delete(h.external, a)
		}
	}
	for a, kind := range has {
		if k, ok := had[a]; ok && k == kind {
			continue
		}
		if kind == ClusterIP {
			h.clusterIP[a] = append(h.clusterIP[a], name)
			slices.SortFunc(h.clusterIP[a], Name.Compare)
			h.mark(a, again)
			continue
		}
		if h.external[a] == nil {
			h.external[a] = map[Name]struct{}{}
		}
		h.external[a][name] = struct{}{}
	}
}

func (h holders) mark(a netip.Addr, again map[Name]struct{}) {
	for name := range h.external[a] {
		again[name] = struct{}{}
	}
}

// other returns a Service other than name that has the address as its ClusterIP.
func (h holders) other(a netip.Addr, name Name) (Name, bool) {
	for _, o := range h.clusterIP[a] {
		if o != name {
			return o, true
		}
	}
	return Name{}, false
}

// addressesOf maps a Service's addresses to ClusterIP or, for any other kind,
// ExternalIP. A Service has no address as both.
func addressesOf(res *Resolved) map[netip.Addr]Kind {
	out := map[netip.Addr]Kind{}
	eachFrontend(res, func(_ frontendKey, f *Frontend) {
		if f.Kind != NodePort {
			out[f.Addr] = min(f.Kind, ExternalIP)
		}
	})
	return out
}
