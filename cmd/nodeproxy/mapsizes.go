package main

import (
	"fmt"
	"log/slog"
	"runtime"

	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// mapFlag is the flag for the size of one of ebpf mode's maps.
type mapFlag struct {
	name string
	size func(*ebpf.Sizes) *uint32
	what string // of what there may be so many
}

// mapFlags are the sizes that an operator can set.
var mapFlags = []mapFlag{
	{"ebpf-max-services", func(s *ebpf.Sizes) *uint32 { return &s.Services }, "ports of Services, each family by itself"},
	{"ebpf-max-frontends", func(s *ebpf.Sizes) *uint32 { return &s.Frontends }, "addresses and ports of Services"},
	{"ebpf-max-backends", func(s *ebpf.Sizes) *uint32 { return &s.Backends }, "slots of backends: endpoints x weight for each port and family, 4,093 with maglev; one Service may have a quarter"},
	{"ebpf-max-source-ranges", func(s *ebpf.Sizes) *uint32 { return &s.Ranges }, "loadBalancerSourceRanges"},
	{"ebpf-max-flows", func(s *ebpf.Sizes) *uint32 { return &s.Flows }, "flows that are translated packet by packet"},
	{"ebpf-max-affinities", func(s *ebpf.Sizes) *uint32 { return &s.Affinities }, "clients of Services with session affinity"},
	{"ebpf-max-fragments", func(s *ebpf.Sizes) *uint32 { return &s.Fragments }, "datagrams in fragments at a time"},
}

// smallestMap and largestMap bound each size: less leaves no room for a change, and more
// is beyond what a kernel gives a map.
const (
	smallestMap = 64
	largestMap  = 1 << 24
)

// registerMapSizes adds the flags of mapFlags.
func registerMapSizes(f *pflag.FlagSet, sizes *ebpf.Sizes, memory *uint64) {
	*sizes = ebpf.DefaultSizes()
	for _, m := range mapFlags {
		at := m.size(sizes)
		f.Uint32Var(at, m.name, *at, "most "+m.what+", in ebpf mode")
	}
	f.Uint64Var(memory, "ebpf-max-map-memory", 1024, "MiB that the maps of ebpf mode may take when they are full: up to there, a map that is nearly full grows; 0: none grows")
}

// checkMapSizes returns what is wrong with the sizes.
func checkMapSizes(sizes *ebpf.Sizes) error {
	for _, m := range mapFlags {
		if n := *m.size(sizes); n < smallestMap || n > largestMap {
			return fmt.Errorf("--%s %d: use %d to %d", m.name, n, smallestMap, largestMap)
		}
	}
	return nil
}

// sayMapMemory logs what the maps take at most, when all are full.
func sayMapMemory(o ebpf.Options, log *slog.Logger) {
	maps, err := o.Memory(runtime.NumCPU())
	if err != nil {
		log.Debug("the memory of maps is not known", "error", err)
		return
	}
	log.Info("memory of maps, at most", "MiB", ebpf.TotalMemory(maps)>>20, "may grow to", fmt.Sprint(o.MapMemory>>20, " MiB"), "flows", o.Sizes.Flows, "backends", o.Sizes.Backends, "services", o.Sizes.Services)
}
