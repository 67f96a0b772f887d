// Package bench measures what Services cost: the same work through labs that
// differ in nothing but who translates, beside one in which nobody does.
//
// A run is a plan of steps, each one figure of one column; steps that are to be
// compared follow each other and take turns in being first, so that a noisy
// machine disturbs them alike. Every step's [Sample] is appended to a file at
// once: a run can be cut short, resumed, and rendered again. What is computed
// from samples (medians, ratios, the report) is pure; what makes them is not.
package bench

import (
	"fmt"
	"time"

	"github.com/nodeproxy/nodeproxy/bench/load"
)

// Column names of who translates.
const (
	// Bare has no agent: clients dial a Pod's own address, on the way on which
	// the Service's traffic would go.
	Bare           = "bare"
	IPTablesNFT    = "iptables-nft"
	IPTablesLegacy = "iptables-legacy"
	EBPF           = "ebpf"
	EBPFPackets    = "ebpf-packets" // without socket programs
	EBPFStack      = "ebpf-stack"   // the same, and every packet takes the stack way
	// EBPFBefore and EBPFPacketsBefore are ebpf and ebpf-packets of another nodeproxy
	// program, [Environment.Before].
	EBPFBefore        = "ebpf-before"
	EBPFPacketsBefore = "ebpf-packets-before"
	KubeProxyIPTables = "kube-proxy-iptables"
	KubeProxyNFTables = "kube-proxy-nftables"
)

// Ways on which a Service is reached. The endpoints are Pods of node-b.
const (
	// PathCluster is a Pod of node-a that dials the ClusterIP.
	PathCluster = "cluster"
	// PathNodePortLocal is a client outside that dials the endpoints' own node.
	PathNodePortLocal = "nodeport-local"
	// PathNodePortRemote is a client outside that dials the other node.
	PathNodePortRemote = "nodeport-remote"
	// PathExternal is a client outside that dials an externalIP, which leads to
	// the other node.
	PathExternal = "external"
)

// Positions of the Service that is used among all of them.
const (
	First = "first"
	Last  = "last"
)

// Works. Those of [load] are measured by a load of our own, others by iperf.
const (
	WorkConnect  = "connect"       // connections/s, one after the other
	WorkConnect8 = "connect8"      // the same from 8 threads
	WorkOpen     = "connect-open"  // at a fixed rate, latency from the intended start
	WorkClose    = "connect-close" // the same, and the backend closes first
	WorkRequest  = "request"       // requests/s over one connection
	WorkDatagram = "datagram"      // UDP exchanges/s, each on a fresh socket
	WorkTCP1     = "tcp1"          // iperf3, 1 stream
	WorkTCP8     = "tcp8"          // iperf3, 8 streams
	WorkUDP      = "udp@"          // iperf3 -u at the rate that follows, such as udp@500M
	WorkIPerf2   = "iperf2"        // iperf 2, 1 stream

	WorkStart   = "start"   // start of the agent to first traffic, in an empty kernel
	WorkChange  = "change"  // a change is written to the first packet that follows it
	WorkChurn   = "churn"   // 100 changes/s under load
	WorkRestart = "restart" // the agent is killed and started under load
)

// Key says what a figure is of.
type Key struct {
	Column   string `json:"column"`
	Family   int    `json:"family"` // 4 or 6
	Services int    `json:"services"`
	Path     string `json:"path,omitempty"`
	// Endpoints and Position are of the Service that is used; they mean nothing
	// to [Bare].
	Endpoints int    `json:"endpoints,omitempty"`
	Position  string `json:"position,omitempty"`
	Work      string `json:"work"`
}

// Case is the key without its column: figures of one case are comparable. That
// of a bare figure is the one of all Services at that place.
func (k Key) Case() Key {
	k.Column = ""
	return k
}

// BareKey is the key of the bare figure that this one is compared with.
func (k Key) BareKey() Key {
	k.Column, k.Endpoints, k.Position = Bare, 0, ""
	return k
}

// String is for progress and errors.
func (k Key) String() string {
	s := fmt.Sprintf("%s v%d %d Services %s %s", k.Column, k.Family, k.Services, k.Work, k.Path)
	if k.Endpoints > 0 {
		s += fmt.Sprintf(" %d endpoints", k.Endpoints)
	}
	if k.Position != "" {
		s += " " + k.Position
	}
	return s
}

// Sample is one figure, measured once.
type Sample struct {
	Key
	Round int       `json:"round"`
	At    time.Time `json:"at"`
	// Value is in Unit: operations/s, bit/s, s, or %.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Error is why there is no figure.
	Error string `json:"error,omitempty"`

	Failures   int    `json:"failures,omitempty"`
	FirstError string `json:"first_error,omitempty"`
	// Gap is the longest time without a success, in seconds.
	Gap float64 `json:"gap,omitempty"`
	// Latency is a histogram of nanoseconds, as load.EncodeHistogram writes it.
	Latency string `json:"latency,omitempty"`
	// CPU is what the machine spent meanwhile, for Amount operations or bytes.
	CPU    load.CPU `json:"cpu,omitzero"`
	Amount float64  `json:"amount,omitempty"`
	// Instructions are those of all CPUs, 0 where there are no counters.
	Instructions uint64 `json:"instructions,omitempty"`
	// Rank is where the Service stands in the list of rules that a first packet
	// is compared with, 0 to 1, where there is such a list.
	Rank float64 `json:"rank,omitempty"`
	// Agent is what the agent of node-a used, for control plane works.
	Agent Usage `json:"agent,omitzero"`
}

// Usage is what a process has used since it began.
type Usage struct {
	// CPU is in seconds, that of its children which have ended included.
	CPU float64 `json:"cpu"`
	// RSS and PeakRSS are in bytes.
	RSS     int64 `json:"rss"`
	PeakRSS int64 `json:"peak_rss"`
	// Synced is when the first full sync had ended, in seconds from the start.
	Synced float64 `json:"synced,omitempty"`
}

// Run describes a run: the first line of its file.
type Run struct {
	Started time.Time `json:"started"`
	Version string    `json:"version"`
	Machine Machine   `json:"machine"`
	Options Options   `json:"options"`
}

// Machine is what a run was measured on.
type Machine struct {
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	MemoryMB int               `json:"memory_mb"`
	System   string            `json:"system"`
	Tools    map[string]string `json:"tools"` // versions, by program
}
