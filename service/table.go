package service

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Table is what one node must translate: the seam between the meaning of
// Services, which is all above it, and the kernel, which is all below it.
//
// A Table belongs to the goroutine that drives a dataplane. It is changed in
// place between two calls of Sync and is constant during one.
type Table struct {
	Node     NodeFacts
	Services map[Name]*Resolved
}

// Served counts the Services that have an address and port which this node serves.
func (t *Table) Served() (n int) {
	for _, res := range t.Services {
		if res.Served() {
			n++
		}
	}
	return n
}

// NodeFacts are the facts of this node that every Service shares. A change of
// any of them asks for a full sync.
type NodeFacts struct {
	// Pods tells, by family, which packets come from a Pod.
	Pods [2]PodDetector
	// Local are this node's own addresses by family, sorted, without loopback.
	// A packet from one of them, or from loopback, is [FromNode].
	Local [2][]netip.Addr
	// LocalNetworks are, by family, networks of which every address is this
	// node's own too: see [Host.Networks].
	LocalNetworks [2][]netip.Prefix
	// Uplinks are those of [Host.Uplinks].
	Uplinks []string
	// NodePorts tells, by family, which destination addresses carry node ports.
	NodePorts [2]NodePortAddresses
}

// PodDetector tells a packet of a Pod from any other packet. The zero value
// knows no Pods: kube-proxy calls that "no local detector".
// Exactly one of its fields is set.
type PodDetector struct {
	CIDR            netip.Prefix // source address inside
	Interface       string       // arrives on this interface
	InterfacePrefix string       // arrives on an interface whose name starts so
}

// Enabled reports whether any packet can be told to come from a Pod.
func (d PodDetector) Enabled() bool {
	return d.CIDR.IsValid() || d.Interface != "" || d.InterfacePrefix != ""
}

// NodePortAddresses are the local addresses of one family that carry node ports.
type NodePortAddresses struct {
	// All means every address of [NodeFacts.Local] and
	// [NodeFacts.LocalNetworks], also one that was added since; Addrs and
	// Networks are then unused.
	All bool
	// Addrs are the addresses that carry node ports, sorted, without loopback.
	Addrs []netip.Addr
	// Networks are those parts of [NodeFacts.LocalNetworks] that carry node ports.
	Networks []netip.Prefix
	// Loopback means that node ports answer on 127.0.0.0/8 or ::1 too, for
	// processes of this node.
	Loopback bool
}

// Resolved is what one Service means on this node.
type Resolved struct {
	Name  Name
	Ports []ServicePort // sorted by family, then protocol, then port name
	// HealthCheck is nil where the Service has no health-check node port.
	HealthCheck *HealthCheck
	// Problems are the reasons why parts of the Service are not served, each
	// one line for an operator. They are stable under a repeated Resolve.
	Problems []Problem
}

// Served reports whether the Service has any address and port that this node serves: one
// that has none, since its ports cannot be read or another Service has its addresses, is
// not counted.
func (r *Resolved) Served() bool {
	return slices.ContainsFunc(r.Ports, func(p ServicePort) bool { return len(p.Frontends) > 0 })
}

// ProblemReasons are the reasons that a [Problem] may have.
var ProblemReasons = []string{"AddressConflict", "ClusterIPRefused", "ExternalIPRefused", "InvalidAlgorithm",
	"InvalidPortRange", "InvalidWeights", "LoadBalancerIPRefused", "NoPorts", "NoSuchEndpointPort"}

// Problem is one reason why a part of a Service is not served as written.
type Problem struct {
	Reason  string // CamelCase, fit for an Event and a metric label
	Message string
}

// HealthCheck is a Service's health-check node port.
type HealthCheck struct {
	Port uint16
	// LocalEndpoints counts distinct addresses of ready endpoints on this node,
	// by family.
	LocalEndpoints [2]int
}

// ServicePort is one port of a Service in one family: its frontends, and the
// lists of backends that their routes name.
type ServicePort struct {
	Name     PortName
	Family   Family
	Protocol Protocol
	// Frontends are sorted by kind, then address; those whose address another
	// Service owns are left out.
	Frontends []Frontend
	// Backends are the lists that a [Route] can choose, indexed by [List].
	// Each is sorted by the "ip:port" string, without duplicates.
	Backends [2][]Backend
	// Serving are the endpoints whose established flows are left alone, sorted:
	// every serving one on any node, whatever the policies and hints say.
	Serving []netip.AddrPort
	// ServingLocal are those of Serving that run on this node, sorted.
	ServingLocal []netip.AddrPort
	// NoEndpoint is why no endpoint is in Serving, in words; empty if one is.
	NoEndpoint string
	// AffinityTimeout is that of ClientIP session affinity; 0 means none. The
	// key is the client's address; all frontends of a ServicePort share it.
	AffinityTimeout time.Duration
	// Algorithm is how a backend is chosen where affinity knows none.
	Algorithm Algorithm
}

// PortName names a port of a Service, as log lines and rule comments show it.
type PortName struct {
	Name
	Port     string // may be empty
	Protocol Protocol
}

// String returns "namespace/name:port", or "namespace/name" where the port has
// no name.
func (n PortName) String() string {
	if n.Port == "" {
		return n.Name.String()
	}
	return n.Name.String() + ":" + n.Port
}

// ParsePortName is the inverse of [PortName.String].
func ParsePortName(text string, p Protocol) PortName {
	name, port, _ := strings.Cut(text, ":")
	namespace, name, _ := strings.Cut(name, "/")
	return PortName{Name: Name{Namespace: namespace, Name: name}, Port: port, Protocol: p}
}

// Backend is an endpoint that new flows are sent to.
type Backend struct {
	// AddrPort has port 0 where the port that was dialled is kept, as ranges
	// of ports do.
	netip.AddrPort
	Local bool // it runs on this node
	// Weight is its share of new flows beside the others of its list; 0 counts
	// as 1. Equal weights are all 0.
	Weight uint16
}

// Shares is the backend's weight.
func (b Backend) Shares() int { return max(1, int(b.Weight)) }

// To is where a packet that was sent to a port is led.
func (b Backend) To(port uint16) netip.AddrPort {
	if b.Port() == 0 {
		return netip.AddrPortFrom(b.Addr(), port)
	}
	return b.AddrPort
}

// List names one of the two lists of backends of a ServicePort.
type List uint8

// The lists of backends (kube-proxy's CategorizeEndpoints).
const (
	ListCluster List = iota // usable on any node
	ListLocal               // usable on this node
)

// Kind is the kind of a frontend.
type Kind uint8

// The kinds of frontends, in the order in which a packet is compared with
// them. See docs/kube-proxy.md, "The decision for a first packet".
const (
	ClusterIP Kind = iota
	ExternalIP
	LoadBalancer
	NodePort
)

// String returns "ClusterIP", "ExternalIP", "LoadBalancer" or "NodePort".
func (k Kind) String() string {
	return [...]string{"ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"}[k]
}

// MayBeAMachines reports whether an address of this kind may be some machine's
// as well, of which a Service has only its own ports. A ClusterIP is a
// Service's alone: the API server gives it from a network that nobody else
// uses. Any other is taken from the world: a balancer that has no address of
// its own writes those of nodes into the status, and an externalIP is often
// that of a machine.
func (k Kind) MayBeAMachines() bool { return k != ClusterIP }

// External reports whether externalTrafficPolicy, not internalTrafficPolicy,
// governs frontends of this kind.
func (k Kind) External() bool { return k != ClusterIP }

// Frontend is a destination that packets are sent to, and what becomes of a
// new flow there.
type Frontend struct {
	Kind Kind
	// Addr is the invalid zero Addr for a NodePort: the addresses are then
	// [NodeFacts.NodePorts].
	Addr netip.Addr
	Port uint16
	// LastPort makes it a range of ports that begins with Port; 0 otherwise.
	// There is one range at most for an address and protocol.
	LastPort uint16
	// Except are ports inside the range that have a frontend of their own, of
	// this Service or another; sorted.
	Except []uint16
	// Filtered means that only a source in SourceRanges may enter; any other
	// is dropped, before routes are looked at.
	Filtered     bool
	SourceRanges []netip.Prefix // of the frontend's family, sorted; empty with Filtered drops all
	// Routes by class of source, indexed by [Source].
	Routes [3]Route
}

// Has reports whether packets to a port are the frontend's.
func (f *Frontend) Has(port uint16) bool {
	if f.LastPort == 0 {
		return f.Port == port
	}
	_, other := slices.BinarySearch(f.Except, port)
	return f.Port <= port && port <= f.LastPort && !other
}

// Source is the class of a packet's source. The classes are tried in this
// order: a packet is of the first class that fits.
type Source uint8

// The classes of sources.
const (
	FromPod     Source = iota // [NodeFacts.Pods] says so
	FromNode                  // the source is an address of this node
	FromOutside               // any other
)

// String returns "pod", "node" or "outside".
func (s Source) String() string { return [...]string{"pod", "node", "outside"}[s] }

// Route is what becomes of a new flow. A hairpin flow, whose source is the
// chosen backend's own address, is masqueraded whatever Masquerade says.
type Route struct {
	Action     Action
	List       List // for Translate: the list to choose from, which is not empty
	Masquerade bool // for Translate: the backend sees this node as the source
}

// Action is what is done with a new flow.
type Action uint8

// The actions.
const (
	Translate Action = iota // destination becomes a backend
	Reject                  // refused at once: ICMP port unreachable, or TCP reset
	Drop                    // dropped in silence
)

// String returns "translate", "reject" or "drop".
func (a Action) String() string { return [...]string{"translate", "reject", "drop"}[a] }

// LeadsTo reports whether packets of some class of source are translated with
// a list. Without a way to tell Pods, there is no class of Pods.
func (f *Frontend) LeadsTo(list List, pods bool) bool {
	for class, r := range f.Routes {
		if Source(class) == FromPod && !pods {
			continue
		}
		if r.Action == Translate && r.List == list {
			return true
		}
	}
	return false
}

// Affinity is the backend that a client was given by session affinity, as a mode
// remembers it. Changing modes takes it along.
type Affinity struct {
	Port    PortName
	Family  Family
	Client  netip.Addr
	Backend netip.AddrPort // as in the lists of backends
}
