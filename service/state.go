package service

import (
	"reflect"
	"slices"
)

// Changes is a batch of changes to the objects that a source watches, in no
// particular order. An object that is named twice has the value named last.
type Changes struct {
	// Complete means that the batch names every object there is: what it does
	// not name is gone. A source's first batch is complete.
	Complete bool

	Services              []*Service
	EndpointSlices        []*EndpointSlice
	Nodes                 []*Node
	DeletedServices       []Name
	DeletedEndpointSlices []Name
	DeletedNodes          []string
}

// Empty reports whether a batch names no object.
func (c *Changes) Empty() bool {
	return len(c.Services)+len(c.EndpointSlices)+len(c.Nodes)+
		len(c.DeletedServices)+len(c.DeletedEndpointSlices)+len(c.DeletedNodes) == 0
}

// State holds the objects of a cluster that a node proxy reads, keyed for
// resolving one Service at a time. Objects handed to it must not be changed
// afterwards. It is not safe for concurrent use.
type State struct {
	services map[Name]*Service
	slices   map[Name][]*EndpointSlice // by Service, sorted by name
	owners   map[Name]Name             // Service of each slice
	nodes    map[string]*Node
}

// NewState returns a State without objects.
func NewState() *State {
	return &State{
		services: map[Name]*Service{},
		slices:   map[Name][]*EndpointSlice{},
		owners:   map[Name]Name{},
		nodes:    map[string]*Node{},
	}
}

// Service returns the Service of that name, or nil.
func (s *State) Service(name Name) *Service { return s.services[name] }

// Node returns the Node of that name, or nil.
func (s *State) Node(name string) *Node { return s.nodes[name] }

// Counts tells how many Services and EndpointSlices there are.
func (s *State) Counts() (services, endpointSlices int) {
	return len(s.services), len(s.owners)
}

// EndpointSlices returns the EndpointSlices of a Service, ordered by name, so
// that the order in which they came does not matter. The list is valid until the
// next Apply.
func (s *State) EndpointSlices(name Name) []*EndpointSlice { return s.slices[name] }

// Dirty names what a batch of changes touched.
type Dirty struct {
	Services map[Name]struct{}
	Nodes    map[string]struct{}
}

// Apply takes in a batch and tells what really differs from before. A Service
// counts as touched when it or one of its EndpointSlices differs.
func (s *State) Apply(c Changes) Dirty {
	d := Dirty{Services: map[Name]struct{}{}, Nodes: map[string]struct{}{}}
	if c.Complete {
		c = s.withDeletions(c)
	}
	for _, name := range c.DeletedServices {
		if _, ok := s.services[name]; ok {
			delete(s.services, name)
			d.Services[name] = struct{}{}
		}
	}
	for _, name := range c.DeletedEndpointSlices {
		s.removeSlice(name, &d)
	}
	for _, name := range c.DeletedNodes {
		if _, ok := s.nodes[name]; ok {
			delete(s.nodes, name)
			d.Nodes[name] = struct{}{}
		}
	}
	for _, svc := range c.Services {
		if old := s.services[svc.Name]; old == nil || !reflect.DeepEqual(old, svc) {
			s.services[svc.Name] = svc
			d.Services[svc.Name] = struct{}{}
		}
	}
	for _, slice := range c.EndpointSlices {
		s.setSlice(slice, &d)
	}
	for _, node := range c.Nodes {
		if old := s.nodes[node.Name]; old == nil || !reflect.DeepEqual(old, node) {
			s.nodes[node.Name] = node
			d.Nodes[node.Name] = struct{}{}
		}
	}
	return d
}

func (s *State) setSlice(slice *EndpointSlice, d *Dirty) {
	owner := Name{slice.Name.Namespace, slice.Service}
	if before, ok := s.owners[slice.Name]; ok {
		of := s.slices[owner]
		if at, ok := findSlice(of, slice.Name); ok && before == owner {
			if !reflect.DeepEqual(of[at], slice) {
				of[at] = slice
				d.Services[owner] = struct{}{}
			}
			return
		}
		s.removeSlice(slice.Name, d)
	}
	at, _ := findSlice(s.slices[owner], slice.Name)
	s.slices[owner] = slices.Insert(s.slices[owner], at, slice)
	s.owners[slice.Name] = owner
	d.Services[owner] = struct{}{}
}

// findSlice returns where a slice is among those of a Service, or belongs.
func findSlice(of []*EndpointSlice, name Name) (int, bool) {
	return slices.BinarySearchFunc(of, name, func(s *EndpointSlice, n Name) int { return s.Name.Compare(n) })
}

func (s *State) removeSlice(name Name, d *Dirty) {
	owner, ok := s.owners[name]
	if !ok {
		return
	}
	delete(s.owners, name)
	if at, ok := findSlice(s.slices[owner], name); ok {
		s.slices[owner] = slices.Delete(s.slices[owner], at, at+1)
	}
	if len(s.slices[owner]) == 0 {
		delete(s.slices, owner)
	}
	d.Services[owner] = struct{}{}
}

// withDeletions spells out as deletions what a complete batch leaves unsaid.
func (s *State) withDeletions(c Changes) Changes {
	named := make(map[Name]struct{}, len(c.Services))
	for _, svc := range c.Services {
		named[svc.Name] = struct{}{}
	}
	for name := range s.services {
		if _, ok := named[name]; !ok {
			c.DeletedServices = append(c.DeletedServices, name)
		}
	}
	named = make(map[Name]struct{}, len(c.EndpointSlices))
	for _, slice := range c.EndpointSlices {
		named[slice.Name] = struct{}{}
	}
	for name := range s.owners {
		if _, ok := named[name]; !ok {
			c.DeletedEndpointSlices = append(c.DeletedEndpointSlices, name)
		}
	}
	nodes := make(map[string]struct{}, len(c.Nodes))
	for _, node := range c.Nodes {
		nodes[node.Name] = struct{}{}
	}
	for name := range s.nodes {
		if _, ok := nodes[name]; !ok {
			c.DeletedNodes = append(c.DeletedNodes, name)
		}
	}
	return c
}
