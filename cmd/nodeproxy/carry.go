package main

import (
	"context"
	"log/slog"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/service"
)

// carrier takes session affinity over from the mode before, once the new one is
// in place and before the old one goes.
type carrier struct {
	dataplane.Dataplane
	log      *slog.Logger
	remember func(*service.Table) (clients int, err error) // nil when done
}

// Sync implements dataplane.Dataplane.
func (c *carrier) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	err := c.Dataplane.Sync(ctx, table, changed)
	if err != nil || c.remember == nil {
		return err
	}
	n, err := c.remember(table)
	c.remember = nil
	if err != nil { // clients may get another endpoint, which is no reason to stop
		c.log.Warn("session affinity of the mode before is lost", "error", err)
	} else if n > 0 {
		c.log.Info("session affinity taken over", "clients", n)
	}
	return nil
}

// Mode returns the mode, see inner.
func (c *carrier) Mode() dataplane.Dataplane { return c.Dataplane }

// Unsupported counts the Services of which the mode does not do a part.
func (c *carrier) Unsupported() int { return unsupported(c.Dataplane) }

// fromIPTables takes over what xt_recent remembers.
func fromIPTables(dp *ebpf.Dataplane) func(*service.Table) (int, error) {
	return func(table *service.Table) (int, error) {
		all, err := iptables.Affinities(table)
		if err != nil {
			return 0, err
		}
		return len(all), dp.Remember(all)
	}
}

// fromEBPF takes over what the maps of ebpf mode remember.
func fromEBPF(o ebpf.Options) func(*service.Table) (int, error) {
	return func(table *service.Table) (int, error) {
		all, err := ebpf.Affinities(o, table)
		if err != nil {
			return 0, err
		}
		return len(all), iptables.Remember(table, all)
	}
}
