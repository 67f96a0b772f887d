package source

import (
	"sync"

	"github.com/nodeproxy/nodeproxy/service"
)

// gather joins what reflectors report, each on a goroutine of its own, into
// batches for one reader. Of an object that changed several times since the
// last batch, the last state counts. It holds names of objects, never objects
// that were handed on.
type gather struct {
	mu       sync.Mutex
	services gathered[service.Name, service.Service]
	slices   gathered[service.Name, service.EndpointSlice]
	nodes    gathered[string, service.Node]
	begun    bool          // the first, complete batch was taken
	wake     chan struct{} // has an element when there may be something to take
}

func newGather() *gather {
	return &gather{
		services: newGathered[service.Name, service.Service](),
		slices:   newGathered[service.Name, service.EndpointSlice](),
		nodes:    newGathered[string, service.Node](),
		wake:     make(chan struct{}, 1),
	}
}

// change runs fn, which may touch the three kinds, and wakes the reader.
func (g *gather) change(fn func()) {
	g.mu.Lock()
	fn()
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// take returns what has changed since the last call. Nothing is returned
// before all three kinds were listed, nor before the Node is there, unless
// withoutNode says that it is not to be waited for.
func (g *gather) take(withoutNode bool) (c service.Changes, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.begun && (!g.listed() || len(g.nodes.pending) == 0 && !withoutNode) {
		return c, false
	}
	c.Complete = !g.begun
	c.Services, c.DeletedServices = g.services.take()
	c.EndpointSlices, c.DeletedEndpointSlices = g.slices.take()
	c.Nodes, c.DeletedNodes = g.nodes.take()
	ok = c.Complete || !c.Empty()
	g.begun = true
	return c, ok
}

// listed reports whether every kind was listed once.
func (g *gather) listed() bool { return g.services.listed && g.slices.listed && g.nodes.listed }

// withoutNode reports whether only the Node is missing for a first batch.
func (g *gather) withoutNode() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.begun && g.listed() && len(g.nodes.pending) == 0
}

// gathered is what was reported of one kind.
type gathered[K comparable, V any] struct {
	known   map[K]struct{} // objects that exist
	pending map[K]*V       // changed since the last batch; nil is gone
	listed  bool
}

func newGathered[K comparable, V any]() gathered[K, V] {
	return gathered[K, V]{known: map[K]struct{}{}, pending: map[K]*V{}}
}

func (g *gathered[K, V]) set(key K, value *V) {
	g.known[key] = struct{}{}
	g.pending[key] = value
}

func (g *gathered[K, V]) remove(key K) {
	if _, ok := g.known[key]; !ok {
		return // never handed on, or gone already
	}
	delete(g.known, key)
	g.pending[key] = nil
}

// replace takes a complete list: what it does not name is gone.
func (g *gathered[K, V]) replace(all map[K]*V) {
	g.listed = true
	for key := range g.known {
		if all[key] == nil {
			g.remove(key)
		}
	}
	for key, value := range all {
		g.set(key, value)
	}
}

func (g *gathered[K, V]) take() (set []*V, gone []K) {
	for key, value := range g.pending {
		if value == nil {
			gone = append(gone, key)
		} else {
			set = append(set, value)
		}
	}
	g.pending = map[K]*V{} // a map never gets smaller
	return set, gone
}
