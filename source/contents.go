package source

import (
	"maps"
	"reflect"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// contents is what all files hold together, by name. Objects that did not change
// between two are the same in memory.
type contents struct {
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
	nodes    map[string]*service.Node
}

// joined joins files. Of an object that is in two of them, the one in the file
// that sorts first counts.
func joined(files map[string]*file, twice func(object any, second string)) contents {
	m := contents{map[service.Name]*service.Service{}, map[service.Name]*service.EndpointSlice{}, map[string]*service.Node{}}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		good := files[name].good
		twice := func(object any) { twice(object, name) }
		addFirst(m.services, good.services, func(s *service.Service) service.Name { return s.Name }, twice)
		addFirst(m.slices, good.slices, func(s *service.EndpointSlice) service.Name { return s.Name }, twice)
		addFirst(m.nodes, good.nodes, func(n *service.Node) string { return n.Name }, twice)
	}
	return m
}

func addFirst[K comparable, V any](to map[K]*V, objects []*V, nameOf func(*V) K, twice func(any)) {
	for _, o := range objects {
		key := nameOf(o)
		if _, dup := to[key]; dup {
			twice(key)
			continue
		}
		to[key] = o
	}
}

// since returns what is to be said to somebody who knows before.
func (m contents) since(before contents) service.Changes {
	var c service.Changes
	c.Services, c.DeletedServices = differing(m.services, before.services)
	c.EndpointSlices, c.DeletedEndpointSlices = differing(m.slices, before.slices)
	c.Nodes, c.DeletedNodes = differing(m.nodes, before.nodes)
	return c
}

func differing[K comparable, V any](now, before map[K]*V) (set []*V, gone []K) {
	for key, o := range now {
		if before[key] != o {
			set = append(set, o)
		}
	}
	for key := range before {
		if _, ok := now[key]; !ok {
			gone = append(gone, key)
		}
	}
	return set, gone
}

// keepEqual puts the object of before in the place of each one that is equal, so
// that nobody has to compare them again, or to hold both.
func (o *objects) keepEqual(before *objects) {
	keepEqual(o.services, before.services, func(s *service.Service) service.Name { return s.Name })
	keepEqual(o.slices, before.slices, func(s *service.EndpointSlice) service.Name { return s.Name })
	keepEqual(o.nodes, before.nodes, func(n *service.Node) string { return n.Name })
}

func keepEqual[K comparable, V any](now, before []*V, nameOf func(*V) K) {
	old := make(map[K]*V, len(before))
	for _, o := range before {
		old[nameOf(o)] = o
	}
	for i, o := range now {
		if was := old[nameOf(o)]; was != nil && reflect.DeepEqual(was, o) {
			now[i] = was
		}
	}
}
