package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Reader shows what the pinned maps of an instance hold, with or without its
// agent. It reads afresh at each call, changes nothing, and may be used
// concurrently.
type Reader struct{ o Options }

// ErrNothingPinned says that no agent of the instance has run here, or only one
// of a release whose maps have another layout.
var ErrNothingPinned = errors.New("no maps of this instance and release are pinned")

// NewReader returns a Reader of the instance that o names.
func NewReader(o Options) (*Reader, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	return &Reader{o}, nil
}

// Reader returns a Reader of d's maps.
func (d *Dataplane) Reader() *Reader { return d.reader }

// Sockets tells whether the programs that translate sockets are attached.
func (r *Reader) Sockets() bool {
	p := pinsOf(&r.o)
	return !slices.ContainsFunc(cgroupHooks, func(hook string) bool { return !p.hasCgroup(hook, 0) })
}

// open opens a pinned map.
func (r *Reader) open(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinsOf(&r.o).maps, name), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNothingPinned, pinsOf(&r.o).maps)
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	return m, nil
}

// contents reads what Go writes.
func (r *Reader) contents() (*contents, error) {
	k := &kernelMaps{maps: map[mapID]*ebpf.Map{}}
	for id := mapFrontends; id <= mapNames; id++ {
		m, err := r.open(id.String())
		if err != nil {
			return nil, err
		}
		defer m.Close()
		k.maps[id] = m
	}
	return k.read()
}

func readInto[K comparable, V any](r *Reader, name string, into map[K]V) error {
	m, err := r.open(name)
	if err != nil {
		return err
	}
	defer m.Close()
	return readBatch(m, into)
}

// readBatch reads a hash map in large pieces; what is written meanwhile may be
// seen or not.
func readBatch[K comparable, V any](m *ebpf.Map, into map[K]V) error {
	size := min(4096, m.MaxEntries())
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			into[keys[i]] = values[i]
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC): // a bucket with more entries than a piece has
			return readMap(m, into)
		case err != nil:
			return fmt.Errorf("map %s: read: %w", m, err)
		}
	}
}

// nameOf is what an id stands for.
func (c *contents) nameOf(id uint32) string {
	if name := c.names[id]; name != "" {
		return name
	}
	return fmt.Sprintf("(service %d)", id)
}

func familyOf(a bpfAddr) service.Family {
	if unmapAddr(a).Is4() {
		return service.IPv4
	}
	return service.IPv6
}

func kindOf(flags uint8) service.Kind {
	for kind, flag := range kindFlags {
		if flags&flag != 0 {
			return kind
		}
	}
	return service.ClusterIP
}

// choice is an endpoint in a list.
type choice struct {
	slots int
	local bool // it runs on this node
}

// chosen are the endpoints that a route of a frontend chooses from.
func (c *contents) chosen(fe *bpfFrontend, local bool) map[netip.AddrPort]choice {
	out := map[netip.AddrPort]choice{}
	first, n := uint32(0), fe.Count[0]
	if local {
		first, n = fe.Count[0], fe.Count[1]
	}
	for i := range n {
		if b, ok := c.backends[bpfBackendKey{Service: fe.Service, Generation: fe.Generation, Slot: first + i}]; ok {
			to := endpoint(b.Addr, b.Port)
			out[to] = choice{out[to].slots + 1, b.Flags&uint8(bpfBackendFlagBACKEND_LOCAL) != 0}
		}
	}
	return out
}

// Services implements what nodeproxy get services shows.
func (r *Reader) Services(context.Context) ([]view.Frontend, error) {
	c, err := r.contents()
	if err != nil {
		return nil, err
	}
	ranges := c.sourceRanges()
	rows := []view.Frontend{}
	for k, fe := range c.frontends {
		row := view.Frontend{Service: c.nameOf(fe.Service), Protocol: service.Protocol(k.Proto).String(), Kind: kindOf(fe.Flags).String(),
			Family: familyOf(k.Addr).String(), Port: networkPort(k.Port), Where: fmt.Sprintf("service %d generation %d", fe.Service, fe.Generation)}
		if fe.Flags&uint8(bpfFrontendFlagFRONTEND_NODEPORT) == 0 {
			row.Address = unmapAddr(k.Addr).String()
		}
		if fe.Flags&uint8(bpfFrontendFlagFRONTEND_FILTERED) != 0 {
			row.SourceRanges = ranges[fe.Service]
		}
		if k.Port == 0 {
			row.Port, row.LastPort = fe.First, fe.Last
		}
		for class, text := range map[service.Source]*string{service.FromPod: &row.Pod, service.FromNode: &row.Node, service.FromOutside: &row.Outside} {
			route := fe.Route[class]
			action := service.Action(route & uint8(bpfRouteROUTE_ACTION))
			n := len(c.chosen(&fe, route&uint8(bpfRouteROUTE_LOCAL) != 0))
			*text = view.Words(action, n, route&uint8(bpfRouteROUTE_MASQUERADE) != 0)
		}
		rows = append(rows, row)
	}
	view.SortFrontends(rows)
	return rows, nil
}

// sourceRanges are the ranges of each Service that has some, as CIDRs, sorted.
func (c *contents) sourceRanges() map[uint32][]string {
	found := map[uint32][]netip.Prefix{}
	for k := range c.ranges {
		addr, bits := unmapAddr(k.Addr), int(k.Prefixlen)-32
		if addr.Is4() {
			bits -= 96
		}
		found[k.Service] = append(found[k.Service], netip.PrefixFrom(addr, bits))
	}
	out := map[uint32][]string{}
	for id, list := range found {
		out[id] = view.Ranges(list)
	}
	return out
}

// Backends implements what nodeproxy get backends shows.
func (r *Reader) Backends(context.Context) ([]view.Backend, error) {
	c, err := r.contents()
	if err != nil {
		return nil, err
	}
	rows := []view.Backend{}
	done := map[uint32]bool{}
	for k, fe := range c.frontends {
		if done[fe.Service] {
			continue
		}
		done[fe.Service] = true
		for list, name := range []string{"cluster", "local"} {
			for to, b := range c.chosen(&fe, list == 1) {
				local := b.local
				rows = append(rows, view.Backend{Service: c.nameOf(fe.Service), Protocol: service.Protocol(k.Proto).String(), Address: to.String(),
					Share: float64(b.slots) / float64(fe.Count[list]), Local: &local, List: name,
					Where: fmt.Sprintf("service %d generation %d", fe.Service, fe.Generation)})
			}
		}
	}
	view.SortBackends(rows)
	return rows, nil
}

// MapUses returns the maps that can become full.
func (r *Reader) MapUses() ([]MapUse, error) {
	c, err := r.contents()
	if err != nil {
		return nil, err
	}
	flows := map[bpfTuple]bpfFlow{}
	if err := readInto(r, bpfMapFlows, flows); err != nil {
		return nil, err
	}
	var out []MapUse
	for name, n := range map[string]int{bpfMapFlows: len(flows), bpfMapFrontends: len(c.frontends), bpfMapBackends: len(c.backends),
		bpfMapServices: len(c.names), bpfMapSourceRanges: len(c.ranges)} {
		m, err := r.open(name)
		if err != nil {
			return nil, err
		}
		use, err := useOf(name, m)
		if err := errors.Join(err, m.Close()); err != nil {
			return nil, err
		}
		use.Entries = uint64(n)
		out = append(out, use)
	}
	return out, nil
}

// Flows implements what nodeproxy get flows shows. Sockets that were translated
// when they connected have none.
func (r *Reader) Flows(context.Context) ([]view.Flow, error) {
	flows, names := map[bpfTuple]bpfFlow{}, map[uint32]bpfServiceName{}
	if err := errors.Join(readInto(r, bpfMapFlows, flows), readInto(r, bpfMapNames, names)); err != nil {
		return nil, err
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	rows := []view.Flow{}
	for key, f := range flows {
		if f.Flags&uint8(bpfFlowFlagFLOW_REPLY|bpfFlowFlagFLOW_FOREIGN) != 0 {
			continue
		}
		reply := flows[bpfTuple{Src: f.To.Dst, Dst: f.To.Src, Sport: f.To.Dport, Dport: f.To.Sport, Proto: key.Proto}]
		rows = append(rows, view.Flow{
			Service: names[f.Service].text(), Protocol: service.Protocol(key.Proto).String(),
			Client: endpoint(key.Src, key.Sport), Frontend: endpoint(key.Dst, key.Dport),
			Backend: endpoint(f.To.Dst, f.To.Dport), Source: endpoint(f.To.Src, f.To.Sport),
			State: flowState(key.Proto, &f, &reply), Idle: time.Duration(now - min(now, max(f.Seen, reply.Seen))).Truncate(time.Second),
			Packets: &[2]uint64{uint64(f.Packets), uint64(reply.Packets)}, Bytes: &[2]uint64{f.Bytes, reply.Bytes},
		})
	}
	view.SortFlows(rows)
	return rows, nil
}

func endpoint(a bpfAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(unmapAddr(a), networkPort(port))
}

// flowState is what timeout_of in bpf/flow_gc.h makes of a flow.
func flowState(proto uint8, f, reply *bpfFlow) string {
	rst, fin := uint8(bpfFlowTcpTCP_SEEN_RST), uint8(bpfFlowTcpTCP_SEEN_FIN)
	switch {
	case proto != unix.IPPROTO_TCP:
		return "open"
	case (f.Tcp|reply.Tcp)&rst != 0 || f.Tcp&reply.Tcp&fin != 0:
		return "closing"
	case reply.Seen != 0 && f.Tcp&uint8(bpfFlowTcpTCP_SEEN_ACK) != 0:
		return "established"
	}
	return "opening"
}

// Affinities implements what nodeproxy get affinity shows. What has timed out is
// left out.
func (r *Reader) Affinities(context.Context) ([]view.Affinity, error) {
	c, err := r.contents()
	if err != nil {
		return nil, err
	}
	known := map[bpfAffinityKey]bpfAffinity{}
	if err := readInto(r, bpfMapAffinities, known); err != nil {
		return nil, err
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	type port struct {
		protocol service.Protocol
		timeout  time.Duration
	}
	ports := map[uint32]port{}
	for k, fe := range c.frontends {
		ports[fe.Service] = port{service.Protocol(k.Proto), time.Duration(fe.Affinity) * time.Second}
	}
	rows := []view.Affinity{}
	for k, v := range known {
		idle := time.Duration(now - min(now, v.Seen))
		if p := ports[k.Service]; idle < p.timeout {
			rows = append(rows, view.Affinity{Service: c.nameOf(k.Service), Protocol: p.protocol.String(), Client: unmapAddr(k.Client),
				Backend: endpoint(v.Addr, v.Port).String(), Idle: idle.Truncate(time.Second)})
		}
	}
	view.SortAffinities(rows)
	return rows, nil
}
