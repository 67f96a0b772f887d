package ebpf

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Conntrack has one table for a network namespace. While it is more than half full, the
// programs let one source hold no more than a share of it with half-open flows (bpf/ct_room.h).

const (
	// pressurePause is how often conntrack is asked how full it is.
	pressurePause = time.Second
	// shares is how many sources it takes to fill conntrack with half-open flows: each
	// has a share of those that begin within 32 s, and conntrack keeps them for 120 s.
	shares = 32
)

// sourceShare is how many half-open flows one source may begin within 32 s, when conntrack
// has count entries of max: 0, which is no limit, while it is not half full. Once there
// is a limit, it stays until conntrack is three eighths full.
func sourceShare(count, max int, limited bool) uint32 {
	if max <= 0 || 8*count < 3*max || !limited && 2*count < max {
		return 0
	}
	return uint32(1 + max/shares)
}

// followPressure tells the programs the share of a source. It runs in the node's network
// namespace until ctx ends.
func (d *Dataplane) followPressure(ctx context.Context) {
	tick := time.NewTicker(pressurePause)
	defer tick.Stop()
	var share uint32
	var said string
	for first := true; ; first = false {
		next, err := readShare(share > 0)
		if err == nil && (first || next != share) {
			err = d.objs.SourceShare.Put(uint32(0), next)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			d.o.Logger.Warn("sources are not limited while conntrack is full", "error", err)
		}
		if err == nil {
			if share == 0 && next > 0 {
				d.o.Logger.Warn("conntrack is more than half full: half-open flows of one source are limited",
					"most in 32 s", next, "to do", "raise net.netfilter.nf_conntrack_max, or list the entries by `conntrack -L`")
			}
			share = next
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readShare asks the kernel how full conntrack is in the calling thread's network
// namespace.
func readShare(limited bool) (uint32, error) {
	var values [2]int
	for i, name := range []string{"nf_conntrack_count", "nf_conntrack_max"} {
		text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
		if err != nil {
			return 0, fmt.Errorf("how full conntrack is: %w", err)
		}
		if values[i], err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return 0, fmt.Errorf("how full conntrack is: %s: %w", name, err)
		}
	}
	return sourceShare(values[0], values[1], limited), nil
}
