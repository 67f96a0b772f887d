package main

import (
	"context"
	"time"
)

const (
	// probeEvery is how often the data path is probed, and probeLimit for how
	// long it may fail before /healthz and /livez do.
	probeEvery = 5 * time.Second
	probeLimit = 15 * time.Second
)

// prober is a mode that can prove its data path.
type prober interface {
	Probe(context.Context) error
}

// probe looks at the data path now and then, until ctx ends. It begins when the
// first sync has been.
func (o *observer) probe(ctx context.Context) {
	p, ok := inner(o.dataplane).(prober)
	if !ok {
		return
	}
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := p.Probe(ctx)
		if ctx.Err() != nil {
			return
		}
		switch changed := o.path.Found(time.Now(), err); {
		case changed && err != nil:
			o.log.Error("the data path is broken; health checks fail if that lasts", "error", err, "limit", probeLimit)
		case changed:
			o.log.Info("the data path works again")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
