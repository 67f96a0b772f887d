package ebpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

const (
	// collectEvery is the time between two passes over the flows.
	collectEvery = 20 * time.Second
	// watchEvery is the time between two looks at how full the table is.
	watchEvery = time.Second
	// full is the share of flows, in percent, above which unanswered and
	// closing flows lose most of their time.
	full = 80
)

// collected is what one pass over the flows found.
type collected struct {
	Left    uint64 // halves there are still, two for each flow
	Deleted uint64 // halves that are gone now
}

// runCollect makes one pass over the flows table in the kernel. now is 0 for
// the present; tests look into the future.
func runCollect(prog *ebpf.Program, t Timeouts, now time.Duration) (collected, error) {
	return collectAndFill(prog, t, now, 0, false)
}

// collectAndFill sets the bits of all halves too, in a filter that is numbered
// from 1; of 0, in none. With keep it does nothing else.
func collectAndFill(prog *ebpf.Program, t Timeouts, now time.Duration, filter uint32, keep bool) (collected, error) {
	in := bpfCollection{
		Filter: filter,
		Now:    uint64(now), Established: uint64(t.Established), Closing: uint64(t.Closing), TimeWait: uint64(t.TimeWait),
		Opening: uint64(t.Opening), Udp: uint64(t.UDP), UdpOpening: uint64(t.UDPOpening),
	}
	if keep {
		in.Keep = 1
	}
	var out bpfCollection
	if _, err := prog.Run(&ebpf.RunOptions{Context: in, ContextOut: &out}); err != nil {
		return collected{}, fmt.Errorf("collect flows: %w", err)
	}
	return collected{out.Flows, out.Deleted}, nil
}

// hurried are the timeouts while the table is nearly full: those who have said
// nothing worth keeping go first.
func (t Timeouts) hurried() Timeouts {
	t.Opening = min(t.Opening, 5*time.Second)
	t.Closing = min(t.Closing, time.Second)
	t.TimeWait = min(t.TimeWait, time.Second)
	t.UDPOpening = min(t.UDPOpening, 5*time.Second)
	t.UDP = min(t.UDP, 30*time.Second)
	return t
}

// collector decides when to pass over the flows.
type collector struct {
	objs    *objects
	filter  *flowFilter
	t       Timeouts
	entries uint64 // of the flows map
	drain   bool   // the mode ends: closed flows go at once, for their ports are another's
	live    uint64 // halves left by the last pass
	begun   uint64 // flows begun when it ended
	last    time.Time
}

// tick passes over the flows if it is time, or if they have become many.
func (c *collector) tick(now time.Time) error {
	begun, err := c.newFlows()
	if err != nil {
		return err
	}
	crowded := c.drain || (c.live+2*(begun-c.begun))*100 > c.entries*full
	if !crowded && now.Sub(c.last) < collectEvery {
		return nil
	}
	t := c.t
	if crowded {
		t = t.hurried()
	}
	got, err := c.pass(t)
	if err != nil {
		return err
	}
	c.live, c.begun, c.last = got.Left, begun, now
	return nil
}

// pass is one that rebuilds the filter, if the kernel has what that takes: with
// CPUs kept free of ticks (nohz_full) it has not; and if no other one does it.
func (c *collector) pass(t Timeouts) (collected, error) {
	got, err := c.filter.rebuild(func(which uint32, keep bool) (collected, error) {
		return collectAndFill(c.objs.Collect, t, 0, which+1, keep)
	})
	if errors.Is(err, errNoBarrier) || errors.Is(err, errBusy) {
		return runCollect(c.objs.Collect, t, 0)
	}
	return got, err
}

func (c *collector) newFlows() (uint64, error) {
	var perCPU []bpfMetric
	if err := c.objs.Metrics.Lookup(uint32(bpfReasonREASON_FLOW_NEW), &perCPU); err != nil {
		return 0, fmt.Errorf("map %s: %w", bpfMapMetrics, err)
	}
	var n uint64
	for _, m := range perCPU {
		n += m.Packets
	}
	return n, nil
}
