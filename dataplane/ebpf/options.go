package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cilium/ebpf"
)

// Options say how the mode is set up. The zero value of a field means its
// default, except where said otherwise.
type Options struct {
	// Instance names the directory of pins, so that several agents can share a
	// machine. Default "default".
	Instance string
	// PinRoot is a directory in a BPF file system, by default
	// /sys/fs/bpf/nodeproxy. /sys/fs/bpf is mounted if it is not.
	PinRoot string
	// CgroupPath is the cgroup v2 directory below which sockets are translated.
	// Default: the root of the first cgroup2 mount.
	CgroupPath string
	// PacketsOnly leaves every socket to the packet path.
	PacketsOnly bool
	// Interfaces are patterns of path.Match for names; one with ! in front
	// excludes, and the last that matches decides. Default [DefaultInterfaces].
	Interfaces []string
	// XDP forwards packets of known flows between uplinks at XDP; default [XDPOff].
	XDP XDP
	// XDPInterfaces are patterns for the names of uplinks, as Interfaces are, of
	// which they must be a part. Default: the interfaces of default routes.
	XDPInterfaces []string
	// NoTCX uses clsact although the kernel has TCX.
	NoTCX bool
	// RedirectPeer takes packets into Pods past the egress hooks of their
	// interface on the node.
	RedirectPeer bool
	// Forwarding is the way that new flows of the packet path take. Default
	// [ForwardingAuto].
	Forwarding Forwarding
	// untracked does as on a kernel without conntrack's functions for programs.
	untracked bool
	// PingServiceIPs answers pings of addresses that only Services have; without
	// it they are refused.
	PingServiceIPs bool
	// NATPortMin and NATPortMax are the source ports of masqueraded flows, both
	// included. Keep them outside net.ipv4.ip_local_port_range, whose default
	// ends at 60999. Default 61000 to 65535; then, while all of these are taken
	// towards a backend, flows get ports from 1024 up to below that range, at most
	// 29999, where node ports begin.
	NATPortMin, NATPortMax uint16
	// spareMin and spareMax are the latter; 0 without.
	spareMin, spareMax uint16
	// PassUnknown leaves TCP packets to a frontend that belong to no flow to
	// the stack instead of resetting them: for as long as another mode's
	// translated connections live on.
	PassUnknown bool
	// Drain takes over the maps that an agent of the instance left, to end the
	// mode: nothing is attached, followed or terminated, while flows are still
	// collected.
	Drain bool
	// Terminate says which connected sockets get an error when the backend that
	// they were translated to is gone. Default [TerminateUDP].
	Terminate Terminate
	// Sizes are those that maps begin with. A map that is there already keeps its
	// size if that is larger.
	Sizes Sizes
	// MapMemory is how many bytes all maps may take when they are full, so that those
	// without room for the Services or flows that there are can grow; 0 lets none grow.
	MapMemory uint64
	Timeouts  Timeouts
	Logger    *slog.Logger // default [slog.Default]
}

// Terminate names kinds of sockets.
type Terminate string

// Which sockets are ended when their backend is gone. An endpoint can leave its
// slice while its Pod lives on and serves its connections, so TCP is not ended
// by default.
const (
	TerminateUDP  Terminate = "udp"
	TerminateAll  Terminate = "all"
	TerminateNone Terminate = "none"
)

// DefaultInterfaces are all but loopback and devices that carry no traffic of
// their own. Ports of a bond are never used: the bond itself is.
var DefaultInterfaces = []string{"*", "!lo", "!dummy*", "!kube-ipvs*", "!nodelocaldns", "!ifb*"}

// Sizes are the most entries that maps can have. All but Flows, Services and
// Affinities take memory only for what they hold.
type Sizes struct {
	Services   uint32 // ports of Services by family; default 65,536
	Frontends  uint32 // default 131,072
	Backends   uint32 // slots; twice what a Service has while it changes; default 524,288
	Ranges     uint32 // loadBalancerSourceRanges; default 65,536
	Flows      uint32 // each of two entries; default 131,072
	Affinities uint32 // clients by Service; default 65,536
	Fragments  uint32 // datagrams in pieces at a time; default 8,192
	Interfaces uint32 // that are looked at; default 65,536
}

// DefaultSizes are those of a Sizes that says nothing.
func DefaultSizes() Sizes {
	var s Sizes
	s.setDefaults()
	return s
}

func (s *Sizes) setDefaults() {
	setDefault(&s.Services, 65536)
	setDefault(&s.Frontends, 131072)
	setDefault(&s.Backends, 524288)
	setDefault(&s.Ranges, 65536)
	setDefault(&s.Flows, 131072)
	setDefault(&s.Affinities, 65536)
	setDefault(&s.Fragments, 8192)
	setDefault(&s.Interfaces, 65536)
}

// Timeouts are after how much silence a flow is forgotten.
type Timeouts struct {
	Established time.Duration // TCP and SCTP; default 24 h
	Opening     time.Duration // TCP without an answer or its acknowledgement; default 60 s
	Closing     time.Duration // TCP after a RST, or both FINs, the client's first; default 30 s
	TimeWait    time.Duration // TCP after both FINs, when the backend may be in TIME_WAIT; default 65 s
	UDP         time.Duration // answered, and not one question and answer; default 180 s
	UDPOpening  time.Duration // any other; default 30 s
}

func (o *Options) setDefaults() error {
	setDefault(&o.Instance, "default")
	setDefault(&o.PinRoot, "/sys/fs/bpf/nodeproxy")
	if o.NATPortMin == 0 && o.NATPortMax == 0 {
		o.spareMin, o.spareMax = sparePorts()
	}
	setDefault(&o.NATPortMin, 61000)
	setDefault(&o.NATPortMax, 65535)
	if o.NATPortMin > o.NATPortMax {
		return fmt.Errorf("masquerade ports: %d is above %d", o.NATPortMin, o.NATPortMax)
	}
	if o.Interfaces == nil {
		o.Interfaces = DefaultInterfaces
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	setDefault(&o.XDP, XDPOff)
	setDefault(&o.Forwarding, ForwardingAuto)
	setDefault(&o.Terminate, TerminateUDP)
	if o.Terminate != TerminateUDP && o.Terminate != TerminateAll && o.Terminate != TerminateNone {
		return fmt.Errorf("sockets to terminate: %q is none of udp, all, none", o.Terminate)
	}
	o.Sizes.setDefaults()
	t := &o.Timeouts
	setDefault(&t.Established, 24*time.Hour)
	setDefault(&t.Opening, time.Minute)
	setDefault(&t.Closing, 30*time.Second)
	setDefault(&t.TimeWait, 65*time.Second) // Linux keeps it for 60
	setDefault(&t.UDP, 3*time.Minute)
	setDefault(&t.UDPOpening, 30*time.Second)
	return checkName(o.Instance)
}

// checkName refuses an instance that would leave its directory.
func checkName(instance string) error {
	for _, r := range instance {
		if !(r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return fmt.Errorf("instance %q: only letters, digits, - and _", instance)
		}
	}
	if instance == "" {
		return errors.New("instance: empty")
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// entries are the sizes by map.
func (s *Sizes) entries() map[string]uint32 {
	return map[string]uint32{
		bpfMapServices:      s.Services,
		bpfMapServiceCounts: s.Services,
		bpfMapFrontends:     s.Frontends,
		bpfMapAddresses:     s.Frontends,
		bpfMapBackends:      s.Backends,
		bpfMapMembers:       s.Backends,
		bpfMapBackendCounts: s.Backends,
		bpfMapNames:         s.Services,
		bpfMapSourceRanges:  s.Ranges,
		bpfMapFlows:         2 * s.Flows,
		bpfMapPairs:         max(s.Flows/2, min(2*s.Flows, 8192)), // hints, and the newest count
		bpfMapAffinities:    s.Affinities,
		bpfMapFragments:     s.Fragments,
		bpfMapInterfaces:    s.Interfaces,
	}
}

// apply sets the sizes of a collection's maps.
func (s *Sizes) apply(spec *ebpf.CollectionSpec) {
	for name, n := range s.entries() {
		spec.Maps[name].MaxEntries = n
	}
}

// MapMemory is how much memory a map takes at most.
type MapMemory struct {
	Name    string
	Entries uint32
	Bytes   uint64 // an estimate: keys, values and what the kernel adds to each
}

// Memory estimates what the maps take when they are full, for showing before a
// start. ncpu is the number of possible CPUs.
func (o Options) Memory(ncpu int) ([]MapMemory, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	o.Sizes.apply(spec)
	var out []MapMemory
	for name, m := range spec.Maps {
		each := uint64(m.KeySize+7)&^7 + uint64(m.ValueSize+7)&^7
		switch m.Type {
		case ebpf.Hash, ebpf.LRUHash:
			each += 48 + 16 // element and bucket heads
		case ebpf.LPMTrie:
			each += 64
		case ebpf.PerCPUArray:
			each = (uint64(m.ValueSize+7) &^ 7) * uint64(ncpu)
		case ebpf.Array:
			each = uint64(m.ValueSize+7) &^ 7
		}
		out = append(out, MapMemory{name, m.MaxEntries, each * uint64(m.MaxEntries)})
	}
	return out, nil
}
