package loopback

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/service"
)

// Dataplane adds node ports on loopback to a mode that leaves them out. It
// implements dataplane.Dataplane.
type Dataplane struct {
	dataplane.Dataplane
	relays    relays
	protocols []service.Protocol
	of        map[service.Name][]key // by Service
	failed    map[key]string         // what the log was told of those not served
}

// New wraps a mode, and serves these protocols.
func New(mode dataplane.Dataplane, log *slog.Logger, protocols ...service.Protocol) *Dataplane {
	return &Dataplane{Dataplane: mode, relays: newRelays(log), protocols: protocols, of: map[service.Name][]key{}, failed: map[key]string{}}
}

// Sync implements dataplane.Dataplane. A port that another process has is
// logged once and tried again at the next full Sync, and so is SCTP where the
// kernel has not loaded it; it is no reason to do everything again.
func (l *Dataplane) Sync(ctx context.Context, table *service.Table, changed []service.Name) error {
	err := l.Dataplane.Sync(ctx, table, changed)
	l.sync(table, changed)
	return err
}

// Mode returns the mode that this wraps.
func (l *Dataplane) Mode() dataplane.Dataplane { return l.Dataplane }

// Close implements dataplane.Dataplane. Node ports on loopback end with it.
func (l *Dataplane) Close() error {
	return errors.Join(l.relays.Close(), l.Dataplane.Close())
}

// Relays tells whether packets of a protocol to node ports on loopback are
// relayed, not translated by the mode, and why the relay of this node port does
// not listen, if it should. It belongs to the goroutine that calls Sync.
func (l *Dataplane) Relays(f service.Family, p service.Protocol, port uint16) (relays bool, failed string) {
	return slices.Contains(l.protocols, p), l.failed[key{Family: f, Protocol: p, Port: port}]
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
func (l *Dataplane) sync(table *service.Table, changed []service.Name) {
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
		for k, t := range l.targetsOf(&table.Node, table.Services[name]) {
			wanted[k] = t
			next[name] = append(next[name], k)
		}
	}
	for _, name := range changed {
		for _, k := range l.of[name] {
			if wanted[k] == nil {
				l.set(k, nil)
			}
		}
		delete(l.of, name)
		if keys := next[name]; len(keys) > 0 {
			l.of[name] = keys
		}
	}
	for k, t := range wanted {
		l.set(k, t)
	}
}

// set is as that of the relays, and tells the log what is new about a failure.
func (l *Dataplane) set(k key, t *target) {
	err := l.relays.set(k, t)
	if err == nil {
		delete(l.failed, k)
		return
	}
	if l.failed[k] != err.Error() {
		l.failed[k] = err.Error()
		l.relays.log.Warn("a node port on loopback is not served", "error", err)
	}
}

// targetsOf are the node ports of a Service that loopback carries. One
// without endpoints has none: the kernel refuses what is for it.
func (l *Dataplane) targetsOf(node *service.NodeFacts, res *service.Resolved) map[key]*target {
	if res == nil {
		return nil
	}
	out := map[key]*target{}
	for i := range res.Ports {
		sp := &res.Ports[i]
		if !node.NodePorts[sp.Family].Loopback || !slices.Contains(l.protocols, sp.Protocol) {
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
