//go:build !agent

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// labService is a Service as lab status lists it.
type labService struct {
	name, kind, addresses, ports string
	endpoints                    int
}

// labServices lists the Services of a lab: those that the first agent that answers
// serves, or where none does, those of the manifests. from says which.
func labServices(ctx context.Context, l *lab.Lab) (out []labService, from string) {
	for _, a := range l.Agents() {
		var frontends []view.Frontend
		var backends []view.Backend
		socket := admin.Socket(l.Instance(a.Node))
		if a.Running && admin.Get(ctx, socket, admin.PathServices, nil, &frontends) == nil && admin.Get(ctx, socket, admin.PathBackends, nil, &backends) == nil {
			return servedInLab(frontends, backends), a.Node + " serves them"
		}
	}
	return writtenInLab(l.ManifestDir()), "the manifests have them, since no agent answers"
}

// servedInLab joins rows of a node into one for each Service.
func servedInLab(frontends []view.Frontend, backends []view.Backend) []labService {
	type parts struct{ kinds, addresses, ports, endpoints []string }
	all := map[string]*parts{}
	of := func(port string) *parts {
		name, _, _ := strings.Cut(port, ":")
		if all[name] == nil {
			all[name] = &parts{}
		}
		return all[name]
	}
	for _, f := range frontends {
		p, text := of(f.Service), fmt.Sprintf("%d/%s", f.Port, f.Protocol)
		if f.LastPort != 0 {
			text = fmt.Sprintf("%d-%d/%s", f.Port, f.LastPort, f.Protocol)
		}
		if f.Address == "" {
			text = "node port " + text
		}
		p.kinds, p.addresses, p.ports = append(p.kinds, f.Kind), append(p.addresses, f.Address), append(p.ports, text)
	}
	for _, b := range backends {
		address, _, _ := strings.Cut(strings.TrimPrefix(b.Address, "["), "]")
		if !strings.HasPrefix(b.Address, "[") {
			address, _, _ = strings.Cut(b.Address, ":")
		}
		p := of(b.Service)
		p.endpoints = append(p.endpoints, address)
	}
	var out []labService
	for name, p := range all {
		out = append(out, labService{name, kindOfAll(p.kinds), joinOnce(p.addresses), joinOnce(p.ports), perFamily(p.endpoints)})
	}
	slices.SortFunc(out, func(a, b labService) int { return cmp.Compare(a.name, b.name) })
	return out
}

// kindOfAll is the type that a Service with frontends of these kinds has, as far as they
// tell.
func kindOfAll(kinds []string) string {
	for _, k := range []service.Kind{service.LoadBalancer, service.NodePort} {
		if slices.Contains(kinds, k.String()) {
			return k.String()
		}
	}
	return service.ClusterIP.String()
}

// joinOnce joins texts, each once, in the order of their first.
func joinOnce(list []string) string {
	var out []string
	for _, text := range list {
		if text != "" && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

// perFamily counts endpoints by address, of the family that has more.
func perFamily(addresses []string) int {
	var n [2]int
	seen := map[string]bool{}
	for _, a := range addresses {
		if !seen[a] {
			seen[a] = true
			n[map[bool]int{true: 1}[strings.Contains(a, ":")]]++
		}
	}
	return max(n[0], n[1])
}

// writtenInLab lists the Services of manifests, without what cannot be read.
func writtenInLab(dir string) (out []labService) {
	names, _ := source.Manifests(dir) // none where there are none
	endpoints := map[string][]string{}
	var services []*service.Service
	for _, name := range names {
		text, err := source.ReadFile(name, source.DefaultMaxFile)
		if err != nil {
			continue
		}
		c, _, _ := source.DecodeAll(text)
		services = append(services, c.Services...)
		for _, s := range c.EndpointSlices {
			owner := service.Name{Namespace: s.Name.Namespace, Name: s.Service}.String()
			for _, ep := range s.Endpoints {
				endpoints[owner] = append(endpoints[owner], ep.Addr.String())
			}
		}
	}
	for _, s := range services {
		var addresses, ports []string
		for _, a := range s.ClusterIPs {
			addresses = append(addresses, a.String())
		}
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
			if p.NodePort != 0 {
				ports = append(ports, fmt.Sprintf("node port %d/%s", p.NodePort, p.Protocol))
			}
		}
		out = append(out, labService{s.Name.String(), string(s.Type), joinOnce(addresses), joinOnce(ports), perFamily(endpoints[s.Name.String()])})
	}
	slices.SortFunc(out, func(a, b labService) int { return cmp.Compare(a.name, b.name) })
	return out
}
