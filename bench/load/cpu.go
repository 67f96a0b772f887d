package load

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// CPU is time that all CPUs of the machine have spent, from /proc/stat. Its
// unit is 10 ms, so it says something over some seconds only.
type CPU struct {
	User    time.Duration `json:"user"` // nice included
	System  time.Duration `json:"system"`
	SoftIRQ time.Duration `json:"softirq"` // hard interrupts included
	// Steal is what the machine wanted and another virtual machine had.
	Steal time.Duration `json:"steal"`
}

// Busy is all time in which the CPUs did something.
func (c CPU) Busy() time.Duration { return c.User + c.System + c.SoftIRQ }

// Sub returns what was spent since an earlier reading.
func (c CPU) Sub(before CPU) CPU {
	return CPU{c.User - before.User, c.System - before.System, c.SoftIRQ - before.SoftIRQ, c.Steal - before.Steal}
}

// ReadCPU reads what was spent since the machine started.
func ReadCPU() (CPU, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}, fmt.Errorf("read CPU time: %w", err)
	}
	return parseCPU(string(data))
}

// tick is the unit of /proc/stat: USER_HZ is 100 on every architecture that we
// know of.
const tick = 10 * time.Millisecond

// parseCPU reads the line "cpu user nice system idle iowait irq softirq steal
// guest guest_nice" of proc(5).
func parseCPU(stat string) (CPU, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return CPU{}, fmt.Errorf("read CPU time: unexpected line %q", line)
	}
	var n [9]time.Duration
	for i := 1; i < 9; i++ {
		ticks, err := strconv.ParseUint(fields[i], 10, 63)
		if err != nil {
			return CPU{}, fmt.Errorf("read CPU time: %w", err)
		}
		n[i] = time.Duration(ticks) * tick
	}
	return CPU{User: n[1] + n[2], System: n[3], SoftIRQ: n[6] + n[7], Steal: n[8]}, nil
}
