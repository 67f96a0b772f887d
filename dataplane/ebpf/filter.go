package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// flowFilter fills the Bloom filters before the flows table in turns, as
// bpf/flow_bloom.h says. While it is not valid every tuple is looked up, which is
// slower and always right. Safe for concurrent use.
//
// Two that fill one filter would each take away what the other has put in, and
// flows would not be found. So the one that does it holds a lock on the directory of
// the maps, which ends with its process.
type flowFilter struct {
	maps *bpfMaps
	dir  string     // of the pinned maps
	mu   sync.Mutex // of the state
}

// errBusy says that another process, or another dataplane of this one, fills the
// filters at the moment.
var errBusy = errors.New("another one fills the filters before flows")

// lock takes the lock, at once or with how&unix.LOCK_NB == 0 when it is free.
func (f *flowFilter) lock(how int) (unlock func(), err error) {
	dir, err := os.Open(f.dir)
	if err != nil {
		return nil, fmt.Errorf("lock the filters before flows: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|how); err != nil {
		_ = dir.Close() // only read
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock the filters before flows: %w", err)
	}
	return func() { _ = dir.Close() }, nil
}

// rebuild fills the filter that is not in use by two passes over all flows, and
// then has it used. Halves that the programs insert meanwhile are in both.
//
// Two, since one may leave out a half: the kernel walks a bucket's list while
// others take entries out of it and put them into other buckets, where the walk
// then goes on. That it misses the same one twice is as good as impossible. Only
// the first one deletes: a reply half without a forward half has until the next
// rebuild.
func (f *flowFilter) rebuild(pass func(which uint32, keep bool) (collected, error)) (collected, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	unlock, err := f.lock(unix.LOCK_NB)
	if err != nil {
		return collected{}, err
	}
	defer unlock()
	state, err := f.state()
	if err != nil {
		return collected{}, err
	}
	state &^= uint32(bpfFilterStateFILTER_BUILDING) // of an agent that was killed
	other := ^state & uint32(bpfFilterStateFILTER_SECOND)
	fill := func() (collected, error) {
		// The programs that still fill it are waited for, then the ones that
		// do not do so yet.
		if err := errors.Join(f.set(state), awaitPrograms()); err != nil {
			return collected{}, err
		}
		if err := f.maps.FlowFilters.Put(other, make([]byte, f.maps.FlowFilters.ValueSize())); err != nil {
			return collected{}, fmt.Errorf("map %s: %w", bpfMapFlowFilters, err)
		}
		if err := errors.Join(f.set(state|uint32(bpfFilterStateFILTER_BUILDING)), awaitPrograms()); err != nil {
			return collected{}, err
		}
		got, err := pass(other, false)
		if err != nil {
			return got, err
		}
		_, err = pass(other, true)
		return got, err
	}
	got, err := fill()
	if err != nil {
		return got, errors.Join(err, f.set(state))
	}
	return got, f.set(other | uint32(bpfFilterStateFILTER_VALID))
}

// without runs what inserts flows by itself. The filter is valid again after
// the next rebuild.
func (f *flowFilter) without(insert func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	unlock, err := f.lock(0)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := f.state()
	if err != nil {
		return err
	}
	return errors.Join(f.set(state&^uint32(bpfFilterStateFILTER_VALID)), insert())
}

func (f *flowFilter) state() (state uint32, err error) {
	if err := f.maps.FlowFilterState.Lookup(uint32(0), &state); err != nil {
		return 0, fmt.Errorf("map %s: %w", bpfMapFlowFilterState, err)
	}
	return state, nil
}

func (f *flowFilter) set(state uint32) error {
	if err := f.maps.FlowFilterState.Update(uint32(0), state, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("map %s: %w", bpfMapFlowFilterState, err)
	}
	return nil
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h

var errNoBarrier = errors.New("wait for programs that run")

// awaitPrograms returns when every program that runs now has ended: they run in
// read-side critical sections of RCU, and this membarrier(2) waits for those.
func awaitPrograms() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return fmt.Errorf("%w: %w", errNoBarrier, errno)
	}
	return nil
}
