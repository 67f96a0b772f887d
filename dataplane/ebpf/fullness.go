package ebpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// MapUse tells how full a map is. Of flows, whose entries the programs make,
// it is what the last pass of the collector left.
type MapUse struct {
	Name    string
	Entries uint64
	Limit   uint64
	Memory  uint64 // bytes that the kernel accounts for; 0 where it does not say
}

// MapUses returns the maps that can become full. Safe for concurrent use.
func (d *Dataplane) MapUses() ([]MapUse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries := map[string]uint64{"flows": d.live.Load()}
	if k := d.planner.kernel; k != nil {
		entries["frontends"], entries["backends"] = uint64(len(k.frontends)), uint64(len(k.backends))
		entries["services"], entries["source_ranges"] = uint64(len(d.planner.ids)), uint64(len(k.ranges))
	}
	var out []MapUse
	for name, m := range map[string]*ebpf.Map{
		"flows": d.objs.Flows, "frontends": d.objs.Frontends, "backends": d.objs.Backends,
		"services": d.objs.Services, "source_ranges": d.objs.SourceRanges,
	} {
		use, err := useOf(name, m)
		if err != nil {
			return nil, err
		}
		use.Entries = entries[name]
		out = append(out, use)
	}
	return out, nil
}

// useOf fills in all but the entries.
func useOf(name string, m *ebpf.Map) (MapUse, error) {
	info, err := m.Info()
	if err != nil {
		return MapUse{}, fmt.Errorf("map %s: read info: %w", name, err)
	}
	use := MapUse{Name: name, Limit: uint64(m.MaxEntries())}
	use.Memory, _ = info.Memlock() // 0 where the kernel does not say
	return use, nil
}
