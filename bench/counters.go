package bench

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counters count the instructions of all CPUs, where the machine has counters
// of them: most virtual machines have not.
type counters []int

func openCounters() counters {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_INSTRUCTIONS,
		Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	var out counters
	for cpu := range runtime.NumCPU() {
		fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			out.close()
			return nil
		}
		out = append(out, fd)
	}
	return out
}

// read returns what was counted, 0 without counters, and closes them.
func (c counters) read() (n uint64) {
	defer c.close()
	for _, fd := range c {
		var value [8]byte
		if _, err := unix.Read(fd, value[:]); err != nil {
			return 0
		}
		n += binary.NativeEndian.Uint64(value[:])
	}
	return n
}

func (c counters) close() {
	for _, fd := range c {
		unix.Close(fd)
	}
}
