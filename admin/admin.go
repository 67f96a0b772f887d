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
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Mode    string    `json:"mode"`
	// ModeReason is why --mode auto did not take ebpf, if it did not.
	ModeReason string `json:"modeReason,omitempty"`
	// Forwarding is which way ebpf mode's packets take, and why; empty in iptables mode.
	Forwarding string `json:"forwarding,omitempty"`
	// CannotEnd is why sockets in Pods are not ended when their backend is gone, and what
	// fixes that; empty if they are.
	CannotEnd string `json:"cannotEndSockets,omitempty"`
	Node      string `json:"node"`
	Instance  string `json:"instance"`
	// Dead means that no agent answers: what can be told is what the kernel
	// holds.
	Dead   bool   `json:"dead,omitempty"`
	Source string `json:"source"`
	// SourceProblem is why the source cannot be read now; empty if it can.
	SourceProblem string `json:"sourceProblem,omitempty"`
	// Ignored are files and objects of the source that are not used, with the reason.
	Ignored []string `json:"ignored,omitempty"`
	// Conditions sum up all of this.
	Conditions []Condition `json:"conditions,omitempty"`
	Healthy    bool        `json:"healthy"`
	// Eligible tells whether load balancers may use the node: /healthz.
	Eligible bool `json:"eligible"`
	// DataPath is what a probe of the data path found, if it has failed for long.
	DataPath string `json:"dataPath,omitempty"`
	LastSync *Sync  `json:"lastSync,omitempty"`
	// Syncing is when the sync began that runs now.
	Syncing *time.Time `json:"syncing,omitempty"`
	// Uncounted means that Services, Backends and Problems are not known: nothing
	// was listed yet, or a sync takes long.
	Uncounted bool `json:"uncounted,omitempty"`
	// Services and Backends are what this node translates.
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

// AddRefused adds the Services that a mode left out, with the reason in words.
func (s *Status) AddRefused(reason string, refused map[service.Name]string) {
	for name, why := range refused {
		s.Problems = append(s.Problems, Problem{name.String(), reason, why})
	}
}

// Fill adds what a Table says to a Status.
func (s *Status) Fill(table *service.Table) {
	s.Services = table.Served()
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
