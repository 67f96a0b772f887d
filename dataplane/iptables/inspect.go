package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Reader shows what the kernel holds of iptables mode, with or without an agent.
// It reads afresh at each call, changes nothing, and may be used concurrently.
type Reader struct {
	kernels []*kernel
	// Node says which addresses are local and who is a Pod, where an agent
	// knows; without one, both are guessed from interfaces and rules.
	Node func() (service.NodeFacts, bool)
}

// NewReader returns a Reader of the back end that our chains are in.
func NewReader(ctx context.Context) (*Reader, error) {
	b, err := Detect(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out which iptables back end the node uses: %w", err)
	}
	r := &Reader{}
	for _, f := range service.Families {
		k, err := newKernel(ctx, b, f)
		if err == nil {
			r.kernels = append(r.kernels, k)
		} else if f == service.IPv4 {
			return nil, err
		}
	}
	return r, nil
}

// Reader returns a Reader of the rules that d writes.
func (d *Dataplane) Reader() *Reader {
	r := &Reader{}
	for _, fam := range d.families {
		if fam != nil {
			r.kernels = append(r.kernels, fam.kernel)
		}
	}
	return r
}

// read returns our rules of each family.
func (r *Reader) read(ctx context.Context) ([]*ourRules, error) {
	var all []*ourRules
	for _, k := range r.kernels {
		s, err := k.readSaved(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// judge leads packets through the rules that the kernel has.
type judge struct {
	*ourRules
	rules   walk.Rules
	node    service.NodeFacts
	sources [3]service.Packet // one of each class, without a destination
	pods    bool              // that of Pods is one
}

func (r *Reader) judge(s *ourRules) (*judge, error) {
	rules, err := s.rules()
	if err != nil {
		return nil, err
	}
	j := &judge{ourRules: s, rules: rules}
	known := false
	if r.Node != nil {
		j.node, known = r.Node()
	}
	if !known {
		if j.node, err = s.guessNode(); err != nil {
			return nil, err
		}
	}
	f := s.family
	pods := j.node.Pods[f]
	j.pods = pods.Enabled()
	// Documentation addresses (RFC 5737, RFC 3849): nobody's, so outside.
	outside := netip.MustParseAddr([]string{"192.0.2.77", "2001:db8::77"}[f])
	local := netip.MustParseAddr([]string{"127.0.0.1", "::1"}[f])
	if len(j.node.Local[f]) > 0 {
		local = j.node.Local[f][0]
	}
	pod := service.Packet{Source: netip.AddrPortFrom(outside, 1), Interface: pods.Interface + pods.InterfacePrefix}
	if pods.CIDR.IsValid() {
		pod = service.Packet{Source: netip.AddrPortFrom(pods.CIDR.Masked().Addr(), 1), Interface: "?"}
	}
	j.sources = [3]service.Packet{pod, {Source: netip.AddrPortFrom(local, 1)}, {Source: netip.AddrPortFrom(outside, 1), Interface: "?"}}
	return j, nil
}

// guessNode tells the node's facts from its interfaces and from our rules.
func (s *ourRules) guessNode() (service.NodeFacts, error) {
	var node service.NodeFacts
	family := map[service.Family]int{service.IPv4: netlink.FAMILY_V4, service.IPv6: netlink.FAMILY_V6}[s.family]
	addrs, err := netlink.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return node, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLoopback() {
			node.Local[s.family] = append(node.Local[s.family], ip.Unmap())
		}
	}
	for chain, rules := range s.tables["nat"] {
		if !strings.HasPrefix(chain, chainSvc) && !strings.HasPrefix(chain, chainExt) {
			continue
		}
		for _, r := range rules {
			for rest := r.text; rest != ""; {
				var word string
				word, rest = nextWord(rest)
				value, _ := nextWord(rest)
				switch word {
				case "-s":
					if p, err := netip.ParsePrefix(value); err == nil {
						node.Pods[s.family] = service.PodDetector{CIDR: p}
						return node, nil
					}
				case "-i":
					prefix, isPrefix := strings.CutSuffix(value, "+")
					if node.Pods[s.family] = (service.PodDetector{Interface: value}); isPrefix {
						node.Pods[s.family] = service.PodDetector{InterfacePrefix: prefix}
					}
					return node, nil
				}
			}
		}
	}
	return node, nil
}

// walk leads the first packet of a flow through the rules.
func (j *judge) walk(p service.Packet) ([]walk.Outcome, error) {
	return j.rules.Walk(walk.Packet{Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves},
		walk.Node{Local: j.node.IsLocal})
}

// at leads one packet of each class of source to a frontend.
func (j *judge) at(e *entrance) (out [3][]walk.Outcome, err error) {
	to := e.addr
	if !to.IsValid() {
		if len(j.node.Local[j.family]) == 0 {
			return out, nil
		}
		to = j.node.Local[j.family][0]
		if on := j.node.NodePorts[j.family]; !on.All && len(on.Addrs) > 0 {
			to = on.Addrs[0]
		}
	}
	for class, p := range j.sources {
		if service.Source(class) == service.FromPod && !j.pods {
			continue
		}
		p = j.inside(p, service.Source(class), e.ranges)
		p.Destination, p.Protocol = netip.AddrPortFrom(to, e.first), e.owner.protocol
		if out[class], err = j.walk(p); err != nil {
			return out, fmt.Errorf("walk the rules of %s: %w", e.owner.name, err)
		}
	}
	return out, nil
}

// words are those of view.Words for what a walk came to.
func words(outcomes []walk.Outcome) string {
	if len(outcomes) == 0 {
		return "-"
	}
	masquerade := false
	for _, o := range outcomes {
		switch {
		case o.Verdict == "REJECT":
			return service.Reject.String()
		case o.Verdict == "DROP":
			return service.Drop.String()
		case !o.Translated:
			return "untouched"
		}
		masquerade = masquerade || o.Masquerade
	}
	return view.Words(service.Translate, len(outcomes), masquerade)
}

// Services implements what nodeproxy get services shows.
func (r *Reader) Services(ctx context.Context) ([]view.Frontend, error) {
	rows := []view.Frontend{}
	err := r.eachEntrance(ctx, func(j *judge, e *entrance, out [3][]walk.Outcome) {
		row := view.Frontend{Service: e.owner.name, Protocol: e.owner.protocol.String(), Kind: e.kind, Family: j.family.String(),
			Port: e.first, Pod: words(out[service.FromPod]), Node: words(out[service.FromNode]), Outside: words(out[service.FromOutside]), Where: e.target}
		if e.addr.IsValid() {
			row.Address = e.addr.String()
		}
		if e.last != e.first {
			row.LastPort = e.last
		}
		row.SourceRanges = view.Ranges(e.ranges)
		rows = append(rows, row)
	})
	view.SortFrontends(rows)
	return rows, err
}

// eachEntrance visits every frontend once, with what becomes of packets there.
func (r *Reader) eachEntrance(ctx context.Context, do func(*judge, *entrance, [3][]walk.Outcome)) error {
	all, err := r.read(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		j, err := r.judge(s)
		if err != nil {
			return err
		}
		type key struct {
			addr  netip.Addr
			port  uint16
			proto service.Protocol
		}
		seen := map[key]bool{}
		for _, e := range slices.Concat(s.entrances("nat"), s.entrances("filter")) {
			k := key{e.addr, e.first, e.owner.protocol}
			if seen[k] {
				continue
			}
			seen[k] = true
			out, err := j.at(&e)
			if err != nil {
				return err
			}
			do(j, &e, out)
		}
	}
	return nil
}

// Backends implements what nodeproxy get backends shows. Of the two sets of
// endpoints that the frontends of a Service may use, the smaller one is that of
// the Local policy.
func (r *Reader) Backends(ctx context.Context) ([]view.Backend, error) {
	type port struct {
		owner  owner
		family service.Family
	}
	sets := map[port][][]walk.Outcome{}
	chains := map[port]string{}
	err := r.eachEntrance(ctx, func(j *judge, e *entrance, out [3][]walk.Outcome) {
		p := port{e.owner, j.family}
		chains[p] = e.target
		for _, set := range out {
			if len(set) > 0 && set[0].Translated && !slices.ContainsFunc(sets[p], func(o []walk.Outcome) bool { return sameBackends(o, set) }) {
				sets[p] = append(sets[p], set)
			}
		}
	})
	rows := []view.Backend{}
	for p, lists := range sets {
		slices.SortStableFunc(lists, func(a, b []walk.Outcome) int { return cmp.Compare(len(b), len(a)) })
		for i, set := range lists[:min(2, len(lists))] {
			for _, o := range set {
				rows = append(rows, view.Backend{Service: p.owner.name, Protocol: p.owner.protocol.String(), Address: o.Destination.String(),
					Share: o.Probability, List: []string{"cluster", "local"}[i], Where: chains[p]})
			}
		}
	}
	view.SortBackends(rows)
	return rows, err
}

// sameBackends tells whether two walks lead to the same addresses; of a range of
// ports each port is another.
func sameBackends(a, b []walk.Outcome) bool {
	return slices.EqualFunc(a, b, func(x, y walk.Outcome) bool { return x.Destination == y.Destination })
}

// directory finds the port of a Service that a destination belongs to.
type directory struct {
	addresses map[netip.AddrPort]map[service.Protocol]string
	ports     map[uint16]map[service.Protocol]string
	spans     []entrance
}

func newDirectory(all []*ourRules) *directory {
	d := &directory{addresses: map[netip.AddrPort]map[service.Protocol]string{}, ports: map[uint16]map[service.Protocol]string{}}
	for _, s := range all {
		for _, e := range slices.Concat(s.entrances("nat"), s.entrances("filter")) {
			switch {
			case e.first != e.last:
				d.spans = append(d.spans, e)
			case e.addr.IsValid():
				note(d.addresses, netip.AddrPortFrom(e.addr, e.first), e.owner)
			default:
				note(d.ports, e.first, e.owner)
			}
		}
	}
	return d
}

func note[K comparable](m map[K]map[service.Protocol]string, k K, o owner) {
	if m[k] == nil {
		m[k] = map[service.Protocol]string{}
	}
	m[k][o.protocol] = o.name
}

// find returns the name of a Service's port.
func (d *directory) find(to netip.AddrPort, p service.Protocol) (string, bool) {
	e, ok := d.entrance(to, p)
	return e.owner.name, ok
}

// entrance returns the frontend of a destination, as far as its key goes.
func (d *directory) entrance(to netip.AddrPort, p service.Protocol) (entrance, bool) {
	if name, ok := d.addresses[to][p]; ok {
		return entrance{owner: owner{name, p}, addr: to.Addr(), first: to.Port()}, true
	}
	for _, e := range d.spans {
		if e.addr == to.Addr() && e.first <= to.Port() && to.Port() <= e.last && e.owner.protocol == p {
			return e, true
		}
	}
	name, ok := d.ports[to.Port()][p]
	return entrance{owner: owner{name, p}, first: to.Port()}, ok
}

// Flows implements what nodeproxy get flows shows: the entries of conntrack
// that lead from a frontend to a backend.
func (r *Reader) Flows(ctx context.Context) ([]view.Flow, error) {
	all, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	d := newDirectory(all)
	rows := []view.Flow{}
	for _, s := range all {
		entries, err := conntrackOf(s.family)
		if err != nil {
			return nil, err
		}
		for _, f := range entries {
			if row, ok := d.flow(f); ok {
				rows = append(rows, row)
			}
		}
	}
	view.SortFlows(rows)
	return rows, nil
}

// conntrackOf lists the entries of a family. Half a list is better than none:
// it changes all the time.
func conntrackOf(f service.Family) ([]*netlink.ConntrackFlow, error) {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if f == service.IPv6 {
		family = netlink.FAMILY_V6
	}
	entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list conntrack entries of %s: %w", f, err)
	}
	return entries, nil
}

// flow is a conntrack entry as a row, if some Service's frontend led it on.
func (d *directory) flow(f *netlink.ConntrackFlow) (view.Flow, bool) {
	frontend, backend := addrPort(f.Forward.DstIP, f.Forward.DstPort), addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
	protocol := service.Protocol(f.Forward.Protocol)
	name, ok := d.find(frontend, protocol)
	if !ok || frontend == backend {
		return view.Flow{}, false
	}
	row := view.Flow{Service: name, Protocol: protocol.String(), Client: addrPort(f.Forward.SrcIP, f.Forward.SrcPort), Frontend: frontend,
		Backend: backend, Source: addrPort(f.Reverse.DstIP, f.Reverse.DstPort), State: stateOf(f), Idle: -1}
	if f.Forward.Packets > 0 {
		row.Packets = &[2]uint64{f.Forward.Packets, f.Reverse.Packets}
		row.Bytes = &[2]uint64{f.Forward.Bytes, f.Reverse.Bytes}
	}
	return row, true
}

func stateOf(f *netlink.ConntrackFlow) string {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	switch {
	case f.Forward.Protocol != unix.IPPROTO_TCP:
		return "open"
	case !ok:
		return "unknown"
	case tcp.State == nl.TCP_CONNTRACK_SYN_SENT || tcp.State == nl.TCP_CONNTRACK_SYN_RECV:
		return "opening"
	case tcp.State == nl.TCP_CONNTRACK_ESTABLISHED:
		return "established"
	}
	return "closing"
}

// Affinities implements what nodeproxy get affinity shows: the lists of
// xt_recent.
func (r *Reader) Affinities(ctx context.Context) ([]view.Affinity, error) {
	all, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	rows := []view.Affinity{}
	for _, s := range all {
		for chain, o := range s.owners() {
			if !strings.HasPrefix(chain, chainSep) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(recentDir, chain))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("affinity of %s: %w", o.name, err)
			}
			var backend netip.AddrPort
			for _, rule := range s.tables["nat"][chain] {
				if to := rule.destination(); to.IsValid() {
					backend = to
				}
			}
			for line := range strings.Lines(string(text)) {
				word, _, _ := strings.Cut(strings.TrimPrefix(line, "src="), " ")
				if client, err := netip.ParseAddr(word); err == nil {
					rows = append(rows, view.Affinity{Service: o.name, Protocol: o.protocol.String(), Client: client, Backend: backend.String(), Idle: -1})
				}
			}
		}
	}
	view.SortAffinities(rows)
	return rows, nil
}
