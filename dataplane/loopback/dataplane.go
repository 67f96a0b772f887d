package loopback

import (
	"context"
	"errors"
	"log/slog"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/service"
)

// Dataplane adds node ports on loopback to a mode that leaves them out. It
// implements dataplane.Dataplane.
type Dataplane struct {
	dataplane.Dataplane
	relays relays
	of     map[service.Name][]key // by Service
}

// New wraps a mode.
func New(mode dataplane.Dataplane, log *slog.Logger) *Dataplane {
	return &Dataplane{Dataplane: mode, relays: relays{log: log}, of: map[service.Name][]key{}}
}

// Sync implements dataplane.Dataplane. A port that another process has is
// logged and tried again at the next full Sync; it is no reason to do
// everything again.
func (l *Dataplane) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	err := l.Dataplane.Sync(ctx, table, changed)
	if err := l.sync(table, changed); err != nil {
		l.relays.log.Warn("part of the node ports on loopback is not served", "error", err)
	}
	return err
}

// Mode returns the mode that this wraps.
func (l *Dataplane) Mode() dataplane.Dataplane { return l.Dataplane }

// Close implements dataplane.Dataplane. Node ports on loopback end with it.
func (l *Dataplane) Close() error {
	return errors.Join(l.relays.Close(), l.Dataplane.Close())
}

// Unsupported counts the Services of which the mode does not do a part.
func (l *Dataplane) Unsupported() int {
	if d, ok := l.Dataplane.(interface{ Unsupported() int }); ok {
		return d.Unsupported()
	}
	return 0
}

// sync opens, changes and closes the relays of some Services; nil means all.
// Ports are closed before others are opened: they may have changed hands.
func (l *Dataplane) sync(table *service.Table, changed []service.Name) error {
	if changed == nil {
		for name := range l.of {
			changed = append(changed, name)
		}
		for name := range table.Services {
			if l.of[name] == nil {
				changed = append(changed, name)
			}
		}
	}
	wanted := map[key]*target{}
	next := map[service.Name][]key{}
	for _, name := range changed {
		for k, t := range targetsOf(&table.Node, table.Services[name]) {
			wanted[k] = t
			next[name] = append(next[name], k)
		}
	}
	var errs []error
	for _, name := range changed {
		for _, k := range l.of[name] {
			if wanted[k] == nil {
				errs = append(errs, l.relays.set(k, nil))
			}
		}
		delete(l.of, name)
		if keys := next[name]; len(keys) > 0 {
			l.of[name] = keys
		}
	}
	for k, t := range wanted {
		errs = append(errs, l.relays.set(k, t))
	}
	return errors.Join(errs...)
}

// targetsOf are the node ports of a Service that loopback carries. One
// without endpoints has none: the kernel refuses what is for it.
func targetsOf(node *service.NodeFacts, res *service.Resolved) map[key]*target {
	if res == nil {
		return nil
	}
	out := map[key]*target{}
	for i := range res.Ports {
		sp := &res.Ports[i]
		if !node.NodePorts[sp.Family].Loopback || sp.Protocol == service.SCTP {
			continue
		}
		for j := range sp.Frontends {
			f := &sp.Frontends[j]
			route := f.Routes[service.FromNode]
			if f.Kind != service.NodePort || route.Action != service.Translate {
				continue
			}
			out[key{Family: sp.Family, Protocol: sp.Protocol, Port: f.Port}] = &target{
				Name: sp.Name, Backends: sp.Backends[route.List], Serving: sp.Serving, Affinity: sp.AffinityTimeout,
			}
		}
	}
	return out
}
