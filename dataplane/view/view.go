// Package view is what a mode shows of its state in the kernel: rows that are
// alike in every mode. The agent reads them, or a command that finds no agent.
package view

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// Frontend is one way into a Service.
type Frontend struct {
	Service  string `json:"service"` // namespace/name:port
	Protocol string `json:"protocol"`
	Kind     string `json:"kind"`
	Address  string `json:"address"` // empty for node ports: any address that carries them
	Family   string `json:"family"`
	Port     uint16 `json:"port"`
	LastPort uint16 `json:"lastPort,omitempty"` // of a range of ports
	// SourceRanges are the only sources that are let in, as CIDRs; all if there are none.
	SourceRanges []string `json:"sourceRanges,omitempty"`
	// What happens to packets of a Pod, of this node, of others, as far as they are let
	// in; see Words.
	Pod     string `json:"fromPod"`
	Node    string `json:"fromNode"`
	Outside string `json:"fromOutside"`
	// Where the kernel has it: a chain, or the id and generation in the maps.
	Where string `json:"where"`
}

// Ranges writes networks as CIDRs, sorted by address.
func Ranges(list []netip.Prefix) (out []string) {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range slices.Compact(list) {
		out = append(out, p.String())
	}
	return out
}

// Words say what happens to new flows, for a Frontend.
func Words(action service.Action, backends int, masquerade bool) string {
	if action != service.Translate {
		return action.String()
	}
	text := fmt.Sprintf("translate to %d", backends)
	if masquerade {
		text += ", masqueraded"
	}
	return text
}

// Backend is an endpoint that new flows of a Service are sent to.
type Backend struct {
	Service  string `json:"service"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
	// Share is how many of the flows of its list it gets, 1 for all.
	Share float64 `json:"share"`
	// Local tells that it runs on this node, where that is known.
	Local *bool  `json:"local,omitempty"`
	List  string `json:"list"` // cluster, or local: endpoints of this node alone
	Where string `json:"where"`
}

// Flow is one that is translated packet by packet.
type Flow struct {
	Service  string         `json:"service"` // empty if no Service has the frontend any more
	Protocol string         `json:"protocol"`
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Backend  netip.AddrPort `json:"backend"`
	// Source is what the backend sees, the client's if it is not masqueraded.
	Source netip.AddrPort `json:"source"`
	State  string         `json:"state"` // of TCP opening, established or closing, unknown if the kernel does not say; else open
	// Idle is the time since the last packet, to the second; -1 if the kernel
	// does not say.
	Idle time.Duration `json:"idleNanoseconds"`
	// Packets and bytes, first towards the backend; nil if the kernel does not
	// count them.
	Packets *[2]uint64 `json:"packets,omitempty"`
	Bytes   *[2]uint64 `json:"bytes,omitempty"`
}

// Affinity is a client that is sent to the backend it had.
type Affinity struct {
	Service  string     `json:"service"`
	Protocol string     `json:"protocol"`
	Client   netip.Addr `json:"client"`
	Backend  string     `json:"backend"`
	// Idle is the time since its last flow; -1 if the kernel does not say.
	Idle time.Duration `json:"idleNanoseconds"`
}

// Difference is one thing that the kernel does not hold as it should.
type Difference struct {
	Where string `json:"where"` // a map, a chain, a hook
	What  string `json:"what"`
	// Problem is missing, different or unwanted.
	Problem string `json:"problem"`
	// Has and Wants are the two values of what is different, where short.
	Has   string `json:"has,omitempty"`
	Wants string `json:"wants,omitempty"`
}

// String is the difference in one line.
func (d Difference) String() string {
	text := d.Where + ": " + d.What + ": " + d.Problem
	if d.Has != "" || d.Wants != "" {
		text += fmt.Sprintf(": has %s, wants %s", d.Has, d.Wants)
	}
	return text
}

// The problems that a Difference names.
const (
	Missing   = "missing"
	Different = "different"
	Unwanted  = "unwanted"
)

// Traffic is what the flows of a Service or a backend were and carried; index 0
// of packets and bytes is towards backends, 1 towards clients.
type Traffic struct {
	Connections uint64    `json:"connections"` // that got a backend
	Drops       uint64    `json:"drops"`       // rejected, or dropped for whatever reason
	Packets     [2]uint64 `json:"packets"`
	Bytes       [2]uint64 `json:"bytes"` // from the IP header on
}

// Count is the traffic of one port of a Service in one family.
type Count struct {
	Service  service.PortName `json:"-"`
	Family   service.Family   `json:"-"`
	Name     string           `json:"service"`
	Protocol string           `json:"protocol"`
	FamilyIs string           `json:"family"`
	// At is when the counters were read, where that may have been before they were
	// asked for.
	At time.Time `json:"countedAt,omitzero"`
	// NoBytes means that packets and bytes are not counted here.
	NoBytes bool `json:"noBytes,omitempty"`
	Traffic
	Backends []BackendCount `json:"backends,omitempty"`
}

// BackendCount is the traffic of one backend of it.
type BackendCount struct {
	Address string `json:"address"`
	Traffic
}

// Event is one thing that happened to a flow.
type Event struct {
	Time     time.Time      `json:"time"`
	Verdict  string         `json:"verdict"` // translate, reject or drop; lost for events that could not be told
	Reason   string         `json:"reason"`  // as in nodeproxy_packets_total
	Service  string         `json:"service,omitempty"`
	Protocol string         `json:"protocol"`
	Source   netip.AddrPort `json:"source"` // zero where it is not known
	// Destination is what was dialled, and Backend where it was led.
	Destination netip.AddrPort  `json:"destination"`
	Backend     *netip.AddrPort `json:"backend,omitempty"`
	// SeenAs is the source that the backend sees, if it is another one.
	SeenAs *netip.AddrPort `json:"seenAs,omitempty"`
	// Packets is how many there were, if these are more than one.
	Packets uint64 `json:"packets,omitempty"`
	// Process made the call that the event reports; nil if it is not known.
	Process *Process `json:"process,omitempty"`
}

// Process is one of this machine.
type Process struct {
	// Name is what it calls itself, cut by the kernel to 15 bytes; what cannot be
	// printed is escaped as in Go.
	Name string `json:"name"`
	ID   uint32 `json:"id"` // in the machine's own PID namespace
}

// Answer is what the kernel's own rules or programs make of the first packet of
// a flow.
type Answer struct {
	How      string          `json:"how"`     // it was asked
	Verdict  string          `json:"verdict"` // untouched, translate, reject or drop
	Backends []AnswerBackend `json:"backends,omitempty"`
	// Complete tells that there are no other backends; else these are those that
	// came up.
	Complete bool   `json:"complete"`
	Reason   string `json:"reason,omitempty"` // as the mode counts it
	// Note says what was not looked at.
	Note string `json:"note,omitempty"`
}

// AnswerBackend is one that the kernel may lead a packet to.
type AnswerBackend struct {
	Address    string `json:"address"`
	Masquerade bool   `json:"masquerade"`
}

// SortFrontends puts rows into an order for reading.
func SortFrontends(rows []Frontend) {
	slices.SortFunc(rows, func(a, b Frontend) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Family, b.Family),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
}

// SortBackends does the same for backends.
func SortBackends(rows []Backend) {
	slices.SortFunc(rows, func(a, b Backend) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.List, b.List), cmp.Compare(a.Address, b.Address))
	})
}

// SortFlows does the same for flows.
func SortFlows(rows []Flow) {
	slices.SortFunc(rows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Client.Compare(b.Client), a.Frontend.Compare(b.Frontend))
	})
}

// SortAffinities does the same for clients.
func SortAffinities(rows []Affinity) {
	slices.SortFunc(rows, func(a, b Affinity) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Client.Compare(b.Client))
	})
}

// SortCounts does the same for counts.
func SortCounts(rows []Count) {
	slices.SortFunc(rows, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.FamilyIs, b.FamilyIs))
	})
	for i := range rows {
		slices.SortFunc(rows[i].Backends, func(a, b BackendCount) int { return cmp.Compare(a.Address, b.Address) })
	}
}
