package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
)

// copyPasses bounds how often a copy begins again because programs delete from the map.
const copyPasses = 5

// copyMap adds to a map the entries of another one that it does not have. It calls visit
// with each entry first, which may change the value; visit may be nil. Of arrays, entries
// that are zero are left out. Fields are only ever added at the end of a value: a shorter
// value gets zeros there. A map with other keys, or with longer values, is left.
func copyMap(to, from *ebpf.Map, visit func(key, value []byte)) error {
	if to.KeySize() != from.KeySize() || to.ValueSize() < from.ValueSize() {
		return nil
	}
	how := ebpf.UpdateNoExist
	if to.Type() == ebpf.Array { // all its entries exist
		how = ebpf.UpdateAny
	}
	more := make([]byte, to.ValueSize()-from.ValueSize())
	return eachEntry(from, func(key, value []byte) error {
		value = slices.Concat(value, more)
		if visit != nil {
			visit(key, value)
		}
		if err := to.Update(key, value, how); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("map %s: copy: %w", to, err)
		}
		return nil
	})
}

// stepBack takes the fast way from the copy of a half that conntrack owns; value is a
// flow. The old programs may do so as well after the half was copied: the copy has to
// ask conntrack again (docs/design/flows.md).
func stepBack(_, value []byte) {
	f := (*bpfFlow)(unsafe.Pointer(unsafe.SliceData(value))) //nolint:gosec // copyMap has made it as long
	if f.Flags&uint8(bpfFlowFlagFLOW_STACK) != 0 {
		f.Fast, f.Ready, f.Asked = 0, 0, 0
	}
}

// visitOf is what [copyMap] does with the entries of a map.
func visitOf(name string) func(key, value []byte) {
	if name == bpfMapFlows {
		return stepBack
	}
	return nil
}

// eachEntry calls f with each entry of a map that is not zero. It begins again if programs
// delete from the map meanwhile: f gets an entry more than once then.
func eachEntry(m *ebpf.Map, f func(key, value []byte) error) error {
	for pass := 1; ; pass++ {
		var key, value []byte
		entries := m.Iterate()
		for entries.Next(&key, &value) {
			if m.Type() == ebpf.Array && isZero(value) {
				continue
			}
			if err := f(key, value); err != nil {
				return err
			}
		}
		err := entries.Err()
		if err == nil || errors.Is(err, ebpf.ErrIterationAborted) && pass == copyPasses {
			return nil
		}
		if !errors.Is(err, ebpf.ErrIterationAborted) {
			return fmt.Errorf("map %s: read: %w", m, err)
		}
	}
}

func isZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(v byte) bool { return v != 0 })
}
