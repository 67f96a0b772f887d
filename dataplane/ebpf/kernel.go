package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrMapFull says that a map, or the space of ids, has no room for the table.
// The sizes are set with [Sizes].
var ErrMapFull = errors.New("no room")

// kernelMaps writes to the kernel's maps.
type kernelMaps struct {
	maps map[mapID]*ebpf.Map
}

func newKernelMaps(m *bpfMaps) *kernelMaps {
	return &kernelMaps{map[mapID]*ebpf.Map{
		mapFrontends: m.Frontends, mapBackends: m.Backends, mapMembers: m.Members,
		mapRanges: m.SourceRanges, mapAddresses: m.Addresses, mapPorts: m.Ports,
		mapServices: m.Services, mapNode: m.Node, mapNames: m.Names,
	}}
}

// write makes one change. A key to be deleted may be gone already.
func (k *kernelMaps) write(w write) error {
	m := k.maps[w.m]
	if w.value == nil {
		err := m.Delete(w.key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return err
	}
	if name, ok := w.value.(string); ok {
		w.value = nameValue(name)
	}
	err := m.Put(w.key, w.value)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: it has %d entries: %w", ErrMapFull, m.MaxEntries(), err)
	}
	return err
}

// putAll implements [batcher]. It is a fraction of what as many calls cost.
func (k *kernelMaps) putAll(m mapID, puts []write) (n int, err error) {
	to := k.maps[m]
	switch m {
	case mapFrontends:
		n, err = putMany[bpfFrontendKey, bpfFrontend](to, puts)
	case mapBackends:
		n, err = putMany[bpfBackendKey, bpfBackend](to, puts)
	case mapMembers:
		n, err = putMany[bpfMemberKey, uint32](to, puts)
	case mapAddresses:
		n, err = putMany[bpfAddr, uint32](to, puts)
	case mapPorts:
		n, err = putMany[uint32, uint32](to, puts)
	case mapServices:
		n, err = putMany[uint32, bpfService](to, puts)
	case mapNames:
		n, err = putManyAs[uint32](to, puts, func(w write) bpfServiceName { return nameValue(w.value.(string)) })
	default: // few
		return 1, k.write(puts[0])
	}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: it has %d entries: %w", ErrMapFull, to.MaxEntries(), err)
	}
	return n, err
}

func putMany[K, V any](m *ebpf.Map, puts []write) (int, error) {
	return putManyAs[K](m, puts, func(w write) V { return w.value.(V) })
}

func putManyAs[K, V any](m *ebpf.Map, puts []write, valueOf func(write) V) (int, error) {
	keys, values := make([]K, len(puts)), make([]V, len(puts))
	for i, w := range puts {
		keys[i], values[i] = w.key.(K), valueOf(w)
	}
	return m.BatchUpdate(keys, values, nil)
}

// read returns what the kernel's maps hold.
func (k *kernelMaps) read() (*contents, error) {
	c := newContents()
	err := errors.Join(
		readMap(k.maps[mapFrontends], c.frontends),
		readMap(k.maps[mapBackends], c.backends),
		readMap(k.maps[mapMembers], c.members),
		readMap(k.maps[mapRanges], c.ranges),
		readMap(k.maps[mapAddresses], c.addresses),
		readArray(k.maps[mapPorts], c.ports),
		readArray(k.maps[mapServices], c.services),
	)
	if err != nil {
		return nil, err
	}
	names := map[uint32]bpfServiceName{}
	if err := readMap(k.maps[mapNames], names); err != nil {
		return nil, err
	}
	for id, name := range names {
		c.names[id] = name.text()
	}
	if err := k.maps[mapNode].Lookup(uint32(0), &c.node); err != nil {
		return nil, fmt.Errorf("map %s: read: %w", mapNode, err)
	}
	return c, nil
}

// readMap reads a map in large pieces.
func readMap[K comparable, V any](m *ebpf.Map, into map[K]V) error {
	const batch = 4096
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			into[keys[i]] = values[i]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("map %s: read: %w", m, err)
		}
	}
}

// readArray reads an array in large pieces and leaves zeros out.
func readArray[V comparable](m *ebpf.Map, into map[uint32]V) error {
	var zero V
	const batch = 4096
	keys, values := make([]uint32, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if values[i] != zero {
				into[keys[i]] = values[i]
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("map %s: read: %w", m, err)
		}
	}
}
