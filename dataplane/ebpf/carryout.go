package ebpf

import (
	"context"
	"fmt"
)

// writer takes writes; the kernel's maps are one, and fakes in tests.
type writer interface {
	write(w write) error
}

// carryOut makes the writes in order and stops at the first that fails.
func (p *planner) carryOut(ctx context.Context, to writer, writes []write) error {
	for done := 0; done < len(writes); {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := writeNext(to, writes[done:])
		for _, w := range writes[done : done+n] {
			p.kernel.took(w)
		}
		if done += n; err != nil {
			return fmt.Errorf("map %s: write %d of %d: %w", writes[done].m, done+1, len(writes), err)
		}
	}
	return nil
}

// minBatch is from how many writes on one call for all of them is worth its
// preparation, and maxBatch bounds how long one takes.
const minBatch, maxBatch = 16, 4096

// batcher is a writer that takes many values for one map at once, and says how
// many of them it has written, in order.
type batcher interface {
	putAll(m mapID, puts []write) (int, error)
}

// writeNext carries out the first of some writes, or several that put values in
// one map, and returns how many.
func writeNext(to writer, writes []write) (int, error) {
	n := 0
	for n < min(len(writes), maxBatch) && writes[n].m == writes[0].m && writes[n].value != nil {
		n++
	}
	if b, ok := to.(batcher); ok && n >= minBatch {
		return b.putAll(writes[0].m, writes[:n])
	}
	if err := to.write(writes[0]); err != nil {
		return 0, err
	}
	return 1, nil
}
