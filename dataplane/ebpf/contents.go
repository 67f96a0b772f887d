package ebpf

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// contents is what the maps hold that Go writes. As a mirror it says what the
// kernel has accepted, never what it was merely asked for.
type contents struct {
	frontends map[bpfFrontendKey]bpfFrontend
	backends  map[bpfBackendKey]bpfBackend
	members   map[bpfMemberKey]uint32
	ranges    map[bpfRangeKey]uint32
	addresses map[bpfAddr]uint32
	ports     map[uint32]uint32 // by port number, zeros left out
	services  map[uint32]bpfService
	names     map[uint32]string // in the kernel a bpfServiceName
	node      bpfNode
}

func newContents() *contents {
	return &contents{
		frontends: map[bpfFrontendKey]bpfFrontend{},
		backends:  map[bpfBackendKey]bpfBackend{},
		members:   map[bpfMemberKey]uint32{},
		ranges:    map[bpfRangeKey]uint32{},
		addresses: map[bpfAddr]uint32{},
		ports:     map[uint32]uint32{},
		services:  map[uint32]bpfService{},
		names:     map[uint32]string{},
	}
}

// entries are what a map would hold, for so few that a map's own memory would be
// most of it: there is one for each port of each Service.
type entries[K comparable, V any] []pair[K, V]

type pair[K comparable, V any] struct {
	key   K
	value V
}

// set puts a value in, in place of one under the same key.
func (e *entries[K, V]) set(key K, value V) {
	for i := range *e {
		if (*e)[i].key == key {
			(*e)[i].value = value
			return
		}
	}
	*e = append(*e, pair[K, V]{key, value})
}

// copyTo puts all in a map.
func (e entries[K, V]) copyTo(m map[K]V) {
	for _, x := range e {
		m[x.key] = x.value
	}
}

// entriesOf are those of a map, in any order.
func entriesOf[K comparable, V any](m map[K]V) entries[K, V] {
	out := make(entries[K, V], 0, len(m))
	for k, v := range m {
		out = append(out, pair[K, V]{k, v})
	}
	return out
}

// portPlan is what one ServicePort is in the maps.
type portPlan struct {
	name      service.PortName
	family    service.Family
	protocol  service.Protocol
	id        uint32
	frontends entries[bpfFrontendKey, bpfFrontend]
	backends  []bpfBackend // slots of the cluster's list, then of the local one
	count     [2]uint32
	// generation names the slots; it changes whenever backends does.
	generation uint32
	members    entries[bpfMemberKey, uint32]
	ranges     entries[bpfRangeKey, uint32]
}

func (p *portPlan) slot(i int) bpfBackendKey {
	return bpfBackendKey{Service: p.id, Generation: p.generation, Slot: uint32(i)}
}

// planPort lays out a ServicePort under an id. kernel is asked for the
// generation that is in use: it stays if its slots are those wanted, and
// becomes next otherwise.
func planPort(sp *service.ServicePort, id uint32, kernel *contents, next uint32) *portPlan {
	p := &portPlan{name: sp.Name, family: sp.Family, protocol: sp.Protocol, id: id}
	members := map[bpfMemberKey]uint32{}
	for list, backends := range sp.Backends {
		slots := slotsOf(sp.Algorithm, backends)
		p.count[list] = uint32(len(slots))
		p.backends = append(p.backends, slots...)
		for _, b := range backends {
			members[memberKey(id, b.AddrPort)] |= 1 << list // MEMBER_CLUSTER, MEMBER_LOCAL
			if b.Local {
				members[memberKey(id, b.AddrPort)] |= uint32(bpfMemberMEMBER_HERE)
			}
		}
	}
	for _, e := range sp.Serving {
		members[memberKey(id, e)] |= uint32(bpfMemberMEMBER_SERVING)
	}
	for _, e := range sp.ServingLocal {
		members[memberKey(id, e)] |= uint32(bpfMemberMEMBER_HERE)
	}
	// A chosen endpoint serves, whatever the list of serving ones says.
	for k, flags := range members {
		if flags&uint32(bpfMemberMEMBER_CLUSTER|bpfMemberMEMBER_LOCAL) != 0 {
			members[k] |= uint32(bpfMemberMEMBER_SERVING)
		}
	}
	p.members = entriesOf(members)
	p.backends = slices.Clip(p.backends)
	p.planFrontends(sp)
	if sp.Algorithm != service.Maglev { // whose slots are changed in place, as generation 0
		p.chooseGeneration(kernel, next)
	}
	return p
}

func (p *portPlan) planFrontends(sp *service.ServicePort) {
	var ranges []netip.Prefix // of the first filtered frontend
	filtered := false
	for _, f := range sp.Frontends {
		key := frontendKey(sp, f)
		value := bpfFrontend{Service: p.id, Count: p.count, Affinity: seconds(sp.AffinityTimeout)}
		for s, r := range f.Routes {
			value.Route[s] = routeOf(r, p.count)
		}
		if f.LastPort != 0 {
			value.First, value.Last = f.Port, f.LastPort
		}
		if sp.Algorithm == service.Maglev {
			value.Flags |= uint8(bpfFrontendFlagFRONTEND_MAGLEV)
		}
		value.Flags |= kindFlags[f.Kind]
		if value.Affinity != 0 {
			value.Flags |= uint8(bpfFrontendFlagFRONTEND_AFFINITY)
		}
		if f.Filtered {
			value.Flags |= uint8(bpfFrontendFlagFRONTEND_FILTERED)
			if !filtered {
				filtered, ranges = true, f.SourceRanges
			} else if !slices.Equal(ranges, f.SourceRanges) {
				// The maps hold one set of ranges by ServicePort, as the API has it.
				// Anything else is refused rather than let in.
				for s := range value.Route {
					value.Route[s] = uint8(bpfRouteROUTE_DROP)
				}
			}
		}
		p.frontends.set(key, value)
	}
	p.frontends = slices.Clip(p.frontends)
	for _, r := range ranges {
		p.ranges.set(rangeKey(p.id, r), 1)
	}
}

// kindFlags tell what a frontend is; that of a ClusterIP needs none.
var kindFlags = map[service.Kind]uint8{
	service.NodePort:     uint8(bpfFrontendFlagFRONTEND_NODEPORT),
	service.ExternalIP:   uint8(bpfFrontendFlagFRONTEND_EXTERNAL),
	service.LoadBalancer: uint8(bpfFrontendFlagFRONTEND_BALANCER),
}

func frontendKey(sp *service.ServicePort, f service.Frontend) bpfFrontendKey {
	key := bpfFrontendKey{Port: networkPort(f.Port), Proto: uint8(sp.Protocol)}
	if f.LastPort != 0 {
		key.Port = 0
	}
	if f.Kind == service.NodePort {
		key.Addr = anyAddr(sp.Family)
	} else {
		key.Addr = mapAddr(f.Addr)
	}
	return key
}

// chooseGeneration keeps the generation that its frontends in the kernel use if
// the slots are as wanted, and else takes next, which no frontend names: slots
// that nobody reads can be written at leisure.
func (p *portPlan) chooseGeneration(kernel *contents, next uint32) {
	p.generation = next
	for _, f := range p.frontends {
		v, ok := kernel.frontends[f.key]
		if !ok || v.Service != p.id || v.Count != p.count {
			continue
		}
		p.generation = v.Generation
		if p.slotsMatch(kernel) {
			break
		}
		p.generation = next
	}
	for i := range p.frontends {
		p.frontends[i].value.Generation = p.generation
	}
}

func (p *portPlan) slotsMatch(kernel *contents) bool {
	for i, b := range p.backends {
		if got, ok := kernel.backends[p.slot(i)]; !ok || got != b {
			return false
		}
	}
	return true
}

// planNode encodes the facts of the node. primary is, by family, the address
// that stands for the node where no interface says a better one; it may be the
// zero Addr. modes are flags that follow from how the mode is run.
func planNode(facts *service.NodeFacts, primary [2]netip.Addr, modes bpfNodeFlag) (bpfNode, map[bpfAddr]uint32) {
	var n bpfNode
	detects := [2]bpfNodeFlag{bpfNodeFlagNODE_DETECTS4, bpfNodeFlagNODE_DETECTS6}
	byCIDR := [2]bpfNodeFlag{bpfNodeFlagNODE_CIDR4, bpfNodeFlagNODE_CIDR6}
	loopback := [2]bpfNodeFlag{bpfNodeFlagNODE_LOOPBACK4, bpfNodeFlagNODE_LOOPBACK6}
	addresses := map[bpfAddr]uint32{}
	for _, f := range service.Families {
		if pods := facts.Pods[f]; pods.Enabled() {
			n.Flags |= uint32(detects[f])
			if pods.CIDR.IsValid() {
				n.Flags |= uint32(byCIDR[f])
				n.Pods[f] = mapAddr(pods.CIDR.Masked().Addr())
				n.PodsMask[f] = maskOf(pods.CIDR)
			}
		}
		if facts.NodePorts[f].Loopback {
			n.Flags |= uint32(loopback[f])
		}
		for _, a := range facts.Local[f] {
			addresses[mapAddr(a)] |= uint32(bpfAddressFlagADDRESS_LOCAL)
		}
		for _, a := range each(facts.LocalNetworks[f]) {
			addresses[mapAddr(a)] |= uint32(bpfAddressFlagADDRESS_LOCAL)
		}
		carriers := append(each(facts.NodePorts[f].Networks), facts.NodePorts[f].Addrs...)
		if facts.NodePorts[f].All {
			carriers = append(each(facts.LocalNetworks[f]), facts.Local[f]...)
		}
		for _, a := range carriers {
			if !a.IsLoopback() { // the socket path's: from outside nobody may reach it
				addresses[mapAddr(a)] |= uint32(bpfAddressFlagADDRESS_NODEPORT)
			}
		}
		if a := nodeAddress(facts.Local[f], primary[f]); a.IsValid() {
			n.Address[f] = mapAddr(a)
		}
	}
	n.Flags |= uint32(modes)
	return n, addresses
}

// maxNetwork is how many addresses of one local network the map of addresses
// takes: a /22, or a /118 in IPv6. What is beyond them is not known as local.
const maxNetwork = 1024

// each lists the addresses of networks, the first [maxNetwork] of each.
func each(networks []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, n := range networks {
		for a, left := n.Addr(), maxNetwork; left > 0 && n.Contains(a); a, left = a.Next(), left-1 {
			out = append(out, a)
		}
	}
	return out
}

// nodeAddress is the address that stands for the node: primary if it is one of
// its own, else the first that is of use beyond one link.
func nodeAddress(local []netip.Addr, primary netip.Addr) netip.Addr {
	if slices.Contains(local, primary) {
		return primary
	}
	for _, a := range local {
		if a.IsGlobalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}

// sortedKeys makes an order of writes that does not change from run to run.
func sortedKeys[K comparable, V any](m map[K]V, cmp func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), cmp)
}

// keysMissing are the keys under which m has another value than in, or one that
// in has not, sorted. Most that is compared is the same: only the rest is sorted.
func keysMissing[K, V comparable](m, in map[K]V, cmp func(a, b K) int) []K {
	var out []K
	for k, v := range m {
		if got, ok := in[k]; !ok || got != v {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, cmp)
	return out
}
