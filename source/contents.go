package source

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// contents is what a file holds, by name. Objects that did not change between
// two readings are the same in memory.
type contents struct {
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
	nodes    map[string]*service.Node
}

// contentsOf returns what was decoded by name, with the objects of before, which
// may be nil, in place of those that are equal: nobody has to compare them again,
// or to hold both. Of an object that is there twice, the first counts.
func contentsOf(o *objects, before *contents, twice func(object any)) *contents {
	if before == nil {
		before = &contents{}
	}
	return &contents{
		byName(o.services, before.services, func(s *service.Service) service.Name { return s.Name }, twice),
		byName(o.slices, before.slices, func(s *service.EndpointSlice) service.Name { return s.Name }, twice),
		byName(o.nodes, before.nodes, func(n *service.Node) string { return n.Name }, twice),
	}
}

func byName[K comparable, V any](objects []*V, before map[K]*V, nameOf func(*V) K, twice func(any)) map[K]*V {
	out := make(map[K]*V, len(objects))
	for _, o := range objects {
		key := nameOf(o)
		if _, dup := out[key]; dup {
			twice(key)
			continue
		}
		if was := before[key]; was != nil && reflect.DeepEqual(was, o) {
			o = was
		}
		out[key] = o
	}
	return out
}

// merge returns the objects of both, of which either may be nil; of one that is in
// both, a's.
func merge(a, b *contents) *contents {
	out := &contents{map[service.Name]*service.Service{}, map[service.Name]*service.EndpointSlice{}, map[string]*service.Node{}}
	for _, c := range []*contents{b, a} {
		if c != nil {
			maps.Copy(out.services, c.services)
			maps.Copy(out.slices, c.slices)
			maps.Copy(out.nodes, c.nodes)
		}
	}
	return out
}

// without removes what others has from c and returns c, or nil if nothing is left.
func (c *contents) without(others *contents) *contents {
	maps.DeleteFunc(c.services, func(n service.Name, _ *service.Service) bool { return others.services[n] != nil })
	maps.DeleteFunc(c.slices, func(n service.Name, _ *service.EndpointSlice) bool { return others.slices[n] != nil })
	maps.DeleteFunc(c.nodes, func(n string, _ *service.Node) bool { return others.nodes[n] != nil })
	if len(c.services)+len(c.slices)+len(c.nodes) == 0 {
		return nil
	}
	return c
}

// heldMark begins the name in a fileSet under which stand the objects that are
// gone from a file and not yet believed to be. No path begins with it, and it
// sorts after all of them: where another file has the object, that one counts.
const heldMark = "\xff"

func heldBy(file string) string { return heldMark + file }

func isHeld(name string) bool { return strings.HasPrefix(name, heldMark) }

// fileSet is what each file holds, by its path. Of an object that is in two
// files, the one in the file that sorts first counts.
type fileSet map[string]*contents

// since returns what is to be said to somebody who knows before. It looks only
// at files that are not the same in both, so that its time does not grow with
// what did not change.
func (now fileSet) since(before fileSet, twice func(object any, first, second string)) service.Changes {
	var changed []string
	for name := range now {
		if before[name] != now[name] {
			changed = append(changed, name)
		}
	}
	for name := range before {
		if now[name] == nil {
			changed = append(changed, name)
		}
	}
	d := difference{changed, now.sorted(), before.sorted(), twice}
	var c service.Changes
	c.Services, c.DeletedServices = differing(d, now, before, func(c *contents) map[service.Name]*service.Service { return c.services })
	c.EndpointSlices, c.DeletedEndpointSlices = differing(d, now, before, func(c *contents) map[service.Name]*service.EndpointSlice { return c.slices })
	c.Nodes, c.DeletedNodes = differing(d, now, before, func(c *contents) map[string]*service.Node { return c.nodes })
	return c
}

func (f fileSet) sorted() []string { return slices.Sorted(maps.Keys(f)) }

// difference names the files of which something may differ, and all, sorted.
type difference struct {
	changed, now, before []string
	twice                func(object any, first, second string)
}

func differing[K comparable, V any](d difference, now, before fileSet, of func(*contents) map[K]*V) (set []*V, gone []K) {
	touched := map[K]struct{}{}
	for _, name := range d.changed {
		var is, was map[K]*V
		if c := now[name]; c != nil {
			is = of(c)
		}
		if c := before[name]; c != nil {
			was = of(c)
		}
		for key, o := range is {
			if was[key] != o {
				touched[key] = struct{}{}
			}
		}
		for key := range was {
			if is[key] == nil {
				touched[key] = struct{}{}
			}
		}
	}
	for key := range touched {
		is := first(now, d.now, key, of, d.twice)
		switch was := first(before, d.before, key, of, nil); {
		case is == nil && was != nil:
			gone = append(gone, key)
		case is != was:
			set = append(set, is)
		}
	}
	return set, gone
}

// first returns the object that counts, or nil.
func first[K comparable, V any](files fileSet, names []string, key K, of func(*contents) map[K]*V, twice func(object any, first, second string)) (found *V) {
	at := ""
	for _, name := range names {
		o := of(files[name])[key]
		switch {
		case o == nil:
		case found == nil:
			found, at = o, name
		case twice != nil:
			twice(key, at, name)
		}
	}
	return found
}
