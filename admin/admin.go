// Package admin is how an operator asks a running agent: HTTP and JSON over a
// unix socket that only root may open.
package admin

import (
	"cmp"
	"slices"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// Dir is where agents have their sockets.
const Dir = "/run/nodeproxy"

// Socket is the path of an instance's socket.
func Socket(instance string) string { return Dir + "/" + instance + ".sock" }

// Status is how an agent is.
type Status struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Mode     string    `json:"mode"`
	Node     string    `json:"node"`
	Instance string    `json:"instance"`
	Source   string    `json:"source"`
	Healthy  bool      `json:"healthy"`
	// Eligible tells whether load balancers may use the node: /healthz.
	Eligible bool  `json:"eligible"`
	LastSync *Sync `json:"lastSync,omitempty"`
	// Services and Backends are what this node translates; nil before the
	// first complete list.
	Services int       `json:"services"`
	Backends int       `json:"backends"`
	Problems []Problem `json:"problems,omitempty"`
	Maps     []Map     `json:"maps,omitempty"`
}

// Sync is how the last sync went.
type Sync struct {
	At       time.Time     `json:"at"`
	Kind     string        `json:"kind"` // full or partial
	Duration time.Duration `json:"durationNanoseconds"`
	Error    string        `json:"error,omitempty"`
}

// Problem is a part of a Service that is not served as written.
type Problem struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Map is how full a BPF map is.
type Map struct {
	Name    string `json:"name"`
	Entries uint64 `json:"entries"`
	Limit   uint64 `json:"limit"`
	Memory  uint64 `json:"memoryBytes,omitempty"`
}

// Frontend is one way into a Service, as a row.
type Frontend struct {
	Service  string `json:"service"` // namespace/name:port
	Protocol string `json:"protocol"`
	Kind     string `json:"kind"`
	Address  string `json:"address"` // empty for node ports: any address that carries them
	Family   string `json:"family"`
	Port     uint16 `json:"port"`
	// Routes are what becomes of packets of a Pod, of this node, of others.
	Pod     string `json:"fromPod"`
	Node    string `json:"fromNode"`
	Outside string `json:"fromOutside"`
}

// Backend is an endpoint that flows are led to, as a row.
type Backend struct {
	Service  string `json:"service"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
	Local    bool   `json:"local"`
	Weight   int    `json:"weight"`
	List     string `json:"list"` // cluster or local: which policy uses it
}

// Frontends are the rows of a Table, in the order of their Services.
func Frontends(table *service.Table) []Frontend {
	out := []Frontend{}
	each(table, func(sp *service.ServicePort) {
		for i := range sp.Frontends {
			f := &sp.Frontends[i]
			row := Frontend{Service: sp.Name.String(), Protocol: sp.Protocol.String(), Kind: f.Kind.String(),
				Family: sp.Family.String(), Port: f.Port}
			if f.Addr.IsValid() {
				row.Address = f.Addr.String()
			}
			for source, text := range map[service.Source]*string{
				service.FromPod: &row.Pod, service.FromNode: &row.Node, service.FromOutside: &row.Outside,
			} {
				*text = routeWords(sp, f.Routes[source])
			}
			out = append(out, row)
		}
	})
	return out
}

func routeWords(sp *service.ServicePort, r service.Route) string {
	if r.Action != service.Translate {
		return r.Action.String()
	}
	text := r.Action.String()
	if r.List == service.ListLocal {
		text += " to this node's"
	}
	if r.Masquerade {
		text += ", masqueraded"
	}
	return text
}

// Backends are the rows of a Table, in the order of their Services.
func Backends(table *service.Table) []Backend {
	out := []Backend{}
	each(table, func(sp *service.ServicePort) {
		for list, name := range map[service.List]string{service.ListCluster: "cluster", service.ListLocal: "local"} {
			for _, b := range sp.Backends[list] {
				out = append(out, Backend{sp.Name.String(), sp.Protocol.String(), b.AddrPort.String(), b.Local, b.Shares(), name})
			}
		}
	})
	slices.SortStableFunc(out, func(a, b Backend) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.List, b.List), cmp.Compare(a.Address, b.Address))
	})
	return out
}

// each visits the ports of a Table's Services by name.
func each(table *service.Table, do func(*service.ServicePort)) {
	var names []service.Name
	for name := range table.Services {
		names = append(names, name)
	}
	slices.SortFunc(names, service.Name.Compare)
	for _, name := range names {
		res := table.Services[name]
		for i := range res.Ports {
			do(&res.Ports[i])
		}
	}
}

// Fill adds what a Table says to a Status.
func (s *Status) Fill(table *service.Table) {
	s.Services = len(table.Services)
	each(table, func(sp *service.ServicePort) {
		s.Backends += max(len(sp.Backends[service.ListCluster]), len(sp.Backends[service.ListLocal]))
	})
	for name, res := range table.Services {
		for _, p := range res.Problems {
			s.Problems = append(s.Problems, Problem{name.String(), p.Reason, p.Message})
		}
	}
	slices.SortFunc(s.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Message, b.Message))
	})
}
