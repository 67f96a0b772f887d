package ebpf

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// largestMap bounds what a map can grow to.
const largestMap = 1 << 24

// fields are the sizes that can grow, by the name of the map that a reader knows them by.
func (s *Sizes) fields() map[string]*uint32 {
	return map[string]*uint32{bpfMapServices: &s.Services, bpfMapFrontends: &s.Frontends, bpfMapBackends: &s.Backends,
		bpfMapSourceRanges: &s.Ranges, bpfMapFlows: &s.Flows, bpfMapAffinities: &s.Affinities,
		bpfMapFragments: &s.Fragments, bpfMapInterfaces: &s.Interfaces}
}

// atLeast returns sizes that are nowhere smaller than s or other.
func (s Sizes) atLeast(other Sizes) Sizes {
	theirs := other.fields()
	for name, size := range s.fields() {
		*size = max(*size, *theirs[name])
	}
	return s
}

// smallerThan names the maps for which s has less than other, sorted.
func (s Sizes) smallerThan(other Sizes) (names []string) {
	theirs := other.fields()
	for name, size := range s.fields() {
		if *size < *theirs[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// sizesOf are the sizes that maps have.
func sizesOf(m *bpfMaps) Sizes {
	return Sizes{Services: m.Services.MaxEntries(), Frontends: m.Frontends.MaxEntries(), Backends: m.Backends.MaxEntries(),
		Ranges: m.SourceRanges.MaxEntries(), Flows: m.Flows.MaxEntries() / 2, Affinities: m.Affinities.MaxEntries(),
		Fragments: m.Fragments.MaxEntries(), Interfaces: m.Interfaces.MaxEntries()}
}

// limitsOf are what all Services together may have of maps of these sizes.
func limitsOf(s Sizes) amounts {
	return amounts{slots: int(s.Backends), members: int(s.Backends), frontends: int(s.Frontends), ranges: int(s.Ranges)}
}

// doubled doubles a size until what is wanted leaves a part of it free.
func doubled(size uint32, want int) uint32 {
	for want > int(size-size/oneService) && size < largestMap {
		size *= 2
	}
	return size
}

// wanted returns the sizes with which all Services fit together. A Service that wants more
// than its own part of a map is not counted: it makes no map larger.
func (p *planner) wanted(s Sizes) Sizes {
	all := p.spent
	ports := len(p.ids)
	for _, a := range p.unmet {
		all.slots += a.slots
		all.members += a.members
		all.frontends += a.frontends
		all.ranges += a.ranges
		ports += a.ports
	}
	s.Backends = doubled(s.Backends, max(all.slots, all.members))
	s.Frontends = doubled(s.Frontends, all.frontends)
	s.Ranges = doubled(s.Ranges, all.ranges)
	s.Services = doubled(s.Services, ports)
	return s
}

// affordable returns the sizes of want, but for maps that would take all maps beyond
// o.MapMemory. refused is a sentence that names these; empty if there are none.
func (o Options) affordable(want Sizes) (sizes Sizes, refused string, err error) {
	var large []string
	theirs := want.fields()
	for _, name := range []string{bpfMapServices, bpfMapFrontends, bpfMapBackends, bpfMapSourceRanges, bpfMapFlows} {
		at := o.Sizes.fields()[name] // of this copy of the options
		was := *at
		if *at = *theirs[name]; *at == was {
			continue
		}
		maps, err := o.Memory(runtime.NumCPU())
		if err != nil {
			return o.Sizes, "", err
		}
		if sum := TotalMemory(maps); sum > o.MapMemory {
			*at = was
			large = append(large, fmt.Sprintf("%s (with %d entries all maps take %d MiB)", name, *theirs[name], sum>>20))
		}
	}
	if len(large) == 0 {
		return o.Sizes, "", nil
	}
	return o.Sizes, fmt.Sprintf("maps may take %d MiB, which is too little to grow %s", o.MapMemory>>20, strings.Join(large, ", ")), nil
}

// TotalMemory is what all maps take at most, in bytes.
func TotalMemory(maps []MapMemory) (sum uint64) {
	for _, m := range maps {
		sum += m.Bytes
	}
	return sum
}

// larger returns the sizes that maps should have for the table that was just planned, and
// for the flows that there are; nil if they have them, or may not grow. d.mu is held.
func (d *Dataplane) larger() (*Sizes, error) {
	if d.o.MapMemory == 0 || d.stuck {
		return nil, nil
	}
	want := d.planner.wanted(d.o.Sizes)
	want.Flows = doubled(want.Flows, int(d.live.Load()/2))
	if want == d.o.Sizes {
		return nil, nil
	}
	sizes, refused, err := d.o.affordable(want)
	if err != nil {
		return nil, err
	}
	if refused != d.saidTooLittle && refused != "" {
		d.o.Logger.Warn("maps are full: some Services are left out, or some flows take the slow way", "error", refused,
			"to do", "raise --ebpf-max-map-memory")
	}
	d.saidTooLittle = refused
	if sizes == d.o.Sizes {
		return nil, nil
	}
	return &sizes, nil
}
