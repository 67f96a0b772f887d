package ebpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// explainRuns is how many first packets are tried: which backend each gets is
// chance.
const explainRuns = 256

// Explain leads the first packet of a flow through the programs, again and again
// from other ports, and tells what became of it. The programs are a copy, with
// the maps of the instance where Go writes them, and with empty ones of its own
// where programs do; affinity of the client is copied. So nothing is changed,
// and nothing is sent. It runs in the node's network namespace.
func (r *Reader) Explain(_ context.Context, p service.Packet) (view.Answer, error) {
	answer := view.Answer{How: "a copy of the programs, on the maps in the kernel (BPF_PROG_TEST_RUN)"}
	ifindex, err := entry(p)
	if err != nil {
		return answer, err
	}
	name := bpfProgIngress
	if p.Interface == "" {
		name = bpfProgEgress
	}
	c, err := r.copyProgram(name)
	if err != nil {
		return answer, err
	}
	defer c.Close()
	if err := r.copyAffinity(c, p.Source.Addr()); err != nil {
		return answer, err
	}
	host, err := hardwareAddr(ifindex)
	if err != nil {
		return answer, err
	}
	seen := map[view.AnswerBackend]bool{}
	for i := range explainRuns {
		t := trial{packet: p, sport: uint16(20000 + i)}
		in := make([]byte, 192)
		binary.NativeEndian.PutUint32(in[40:], ifindex) // of struct __sk_buff
		frame := t.frame()
		copy(frame, host)
		o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, 512), Context: in}
		verdict, err := c.Programs[name].Run(o)
		if err != nil {
			return answer, fmt.Errorf("run program: %w", err)
		}
		what, backend := t.read(int32(verdict), o.DataOut)
		if i > 0 && what != answer.Verdict {
			return answer, fmt.Errorf("the program says %s, and then %s", answer.Verdict, what)
		}
		if answer.Verdict = what; what != "translate" {
			break
		}
		if !seen[backend] {
			seen[backend] = true
			answer.Backends = append(answer.Backends, backend)
		}
	}
	answer.Reason, err = reasonIn(c)
	return answer, err
}

// copyProgram loads a program for packets once more.
func (r *Reader) copyProgram(name string) (*ebpf.Collection, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
	real := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range real {
			m.Close()
		}
	}()
	written := []string{bpfMapInterfaces}
	for id := mapFrontends; id <= mapNames; id++ {
		written = append(written, id.String())
	}
	for _, name := range written {
		m, err := ebpf.LoadPinnedMap(pinsOf(&r.o).maps+"/"+name, nil)
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		real[name] = m
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	spec.Maps[bpfMapServiceCounts].MaxEntries = spec.Maps[bpfMapServices].MaxEntries
	for _, name := range []string{bpfMapFlows, bpfMapPairs, bpfMapSources, bpfMapHalfOpen} {
		spec.Maps[name].MaxEntries = 4 * explainRuns
	}
	if err := setConstants(spec, &r.o, probeFeatures(&r.o)); err != nil {
		return nil, err
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: real})
	if err != nil {
		return nil, fmt.Errorf("load a copy of the programs: %w", err)
	}
	return c, nil
}

// copyAffinity takes over what is remembered of a client.
func (r *Reader) copyAffinity(c *ebpf.Collection, client netip.Addr) error {
	known := map[bpfAffinityKey]bpfAffinity{}
	if err := readInto(r, bpfMapAffinities, known); err != nil {
		return err
	}
	for k, v := range known {
		if unmapAddr(k.Client) != client {
			continue
		}
		if err := c.Maps[bpfMapAffinities].Put(k, v); err != nil {
			return fmt.Errorf("copy affinity: %w", err)
		}
	}
	return nil
}

// entry is the interface where a program sees a packet first.
func entry(p service.Packet) (uint32, error) {
	var l netlink.Link
	var err error
	if p.Interface != "" && p.Interface != "?" {
		l, err = netlink.LinkByName(p.Interface)
	} else {
		l, err = wayTo(p)
	}
	if err != nil {
		return 0, fmt.Errorf("interface of the packet: %w", err)
	}
	return uint32(l.Attrs().Index), nil
}

// wayTo is the interface by which this node would answer a packet, or for one of
// its own any that leads out.
func wayTo(p service.Packet) (netlink.Link, error) {
	to := p.Source.Addr()
	if p.Interface == "" {
		to = netip.MustParseAddr(map[bool]string{true: "192.0.2.1", false: "2001:db8::1"}[to.Is4()])
	}
	routes, err := netlink.RouteGet(to.AsSlice())
	if err == nil && len(routes) > 0 {
		if l, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil && l.Attrs().Flags&net.FlagLoopback == 0 {
			return l, nil
		}
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		if a := l.Attrs(); a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 {
			return l, nil
		}
	}
	return nil, errors.New("none is up but loopback")
}

// hardwareAddr is an interface's address, to which frames are sent that the programs
// are to look at; nil if it has none.
func hardwareAddr(ifindex uint32) (net.HardwareAddr, error) {
	l, err := netlink.LinkByIndex(int(ifindex))
	if err != nil {
		return nil, fmt.Errorf("interface %d: %w", ifindex, err)
	}
	return l.Attrs().HardwareAddr, nil
}

// trial is one first packet.
type trial struct {
	packet service.Packet
	sport  uint16
}

// frame is a SYN, an empty datagram, or an SCTP header, in an Ethernet frame. Of
// checksums only IPv4's is right: the programs change them, and look at no other.
func (t *trial) frame() []byte {
	src, dst := t.packet.Source.Addr(), t.packet.Destination.Addr()
	var l4 []byte
	switch t.packet.Protocol {
	case service.TCP:
		l4 = make([]byte, 20)
		l4[12], l4[13] = 5<<4, 2 // length and SYN
	case service.UDP:
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], 8)
	default:
		l4 = make([]byte, 16)
	}
	binary.BigEndian.PutUint16(l4, t.sport)
	binary.BigEndian.PutUint16(l4[2:], t.packet.Destination.Port())
	ether, kind := make([]byte, 14), uint16(unix.ETH_P_IP)
	var ip []byte
	if src.Is4() {
		ip = make([]byte, 20)
		ip[0], ip[8], ip[9] = 4<<4|5, 64, uint8(t.packet.Protocol)
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ipChecksum(ip))
	} else {
		kind = unix.ETH_P_IPV6
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 6<<4, uint8(t.packet.Protocol), 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
	}
	binary.BigEndian.PutUint16(ether[12:], kind)
	return bytes.Join([][]byte{ether, ip, l4}, nil)
}

// ipChecksum is RFC 1071's.
func ipChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// actRedirect is TC_ACT_REDIRECT of linux/pkt_cls.h.
const actRedirect = 7

// read tells what a verdict and the packet that came out mean.
func (t *trial) read(verdict int32, out []byte) (what string, b view.AnswerBackend) {
	if verdict == actShot {
		return service.Drop.String(), b
	}
	at, size, l4, proto := 14+12, 4, 14+20, out[14+9]
	if !t.packet.Source.Addr().Is4() {
		at, size, l4, proto = 14+8, 16, 14+40, out[14+6]
	}
	src, _ := netip.AddrFromSlice(out[at : at+size])
	dst, _ := netip.AddrFromSlice(out[at+size : at+2*size])
	to := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(out[l4+2:]))
	answered := proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6 || proto == unix.IPPROTO_TCP && out[l4+13]&4 != 0 // RST
	switch {
	case verdict == actRedirect && answered:
		return service.Reject.String(), b
	case verdict != actRedirect && to == t.packet.Destination && src == t.packet.Source.Addr():
		return "untouched", b
	}
	return service.Translate.String(), view.AnswerBackend{Address: to.String(), Masquerade: src != t.packet.Source.Addr()}
}

// reasonIn is why a packet was refused, as the programs have counted it.
func reasonIn(c *ebpf.Collection) (string, error) {
	var out []string
	for i, name := range reasonNames {
		var perCPU []bpfMetric
		if err := c.Maps[bpfMapMetrics].Lookup(uint32(i), &perCPU); err != nil {
			return "", fmt.Errorf("map %s: %w", bpfMapMetrics, err)
		}
		for _, m := range perCPU {
			if m.Packets > 0 {
				out = append(out, name)
				break
			}
		}
	}
	return strings.Join(out, ", "), nil
}
