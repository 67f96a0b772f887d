package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/service"
)

// frame describes a packet; bytes makes it with fresh checksums, so that a test
// compares whole packets.
type frame struct {
	src, dst     string
	sport, dport uint16
	proto        service.Protocol
	flags        byte // of TCP
	seq, ack     uint32
	ttl          byte   // default 64
	payload      []byte // default 12 bytes
	options      []byte // of IPv4, or an IPv6 extension header (destination options)
	tcpOptions   []byte
	fragment     int    // offset in bytes; -1 none
	more         bool   // fragments follow
	id           uint32 // of the datagram
	zeroCheck    bool   // UDP without checksum
	wrongCheck   uint16 // is added to a right transport checksum
	noDF         bool
	tos          byte
	icmp         *icmpError // instead of ports and payload
	whole        []byte     // the transport header and payload that fragments are cut from
}

type icmpError struct {
	typ, code byte
	info      uint32
	quoted    []byte
}

const (
	syn = 0x02
	rst = 0x04
	fin = 0x01
	ack = 0x10
	psh = 0x08
)

func (f frame) is4() bool { return netip.MustParseAddr(f.src).Is4() }

func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func (f frame) pseudo(proto byte, n int) uint32 {
	sum := uint32(proto) + uint32(n)
	for _, a := range []string{f.src, f.dst} {
		b := netip.MustParseAddr(a).AsSlice()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	return sum
}

// transport is everything behind the IP headers of the whole datagram.
func (f frame) transport() (proto byte, b []byte) {
	payload := f.payload
	if payload == nil {
		payload = []byte("twelve bytes")
	}
	be := binary.BigEndian
	switch {
	case f.icmp != nil:
		b = make([]byte, 8, 8+len(f.icmp.quoted))
		b[0], b[1] = f.icmp.typ, f.icmp.code
		be.PutUint32(b[4:], f.icmp.info)
		b = append(b, f.icmp.quoted...)
		if f.is4() {
			be.PutUint16(b[2:], checksum(0, b))
			return 1, b
		}
		be.PutUint16(b[2:], checksum(f.pseudo(58, len(b)), b))
		return 58, b
	case f.proto == service.UDP:
		b = append(make([]byte, 8), payload...)
		be.PutUint16(b[4:], uint16(len(b)))
	case f.proto == service.SCTP:
		b = append(make([]byte, 12), payload...)
	default:
		b = append(append(make([]byte, 20), f.tcpOptions...), payload...)
		be.PutUint32(b[4:], f.seq)
		be.PutUint32(b[8:], f.ack)
		b[12], b[13] = byte(20+len(f.tcpOptions))/4<<4, f.flags
		if f.flags&rst == 0 {
			be.PutUint16(b[14:], 1024)
		}
	}
	be.PutUint16(b[0:], f.sport)
	be.PutUint16(b[2:], f.dport)
	f.putCheck(b)
	return byte(f.protocol()), b
}

func (f frame) protocol() service.Protocol {
	if f.proto == 0 {
		return service.TCP
	}
	return f.proto
}

func (f frame) putCheck(b []byte) {
	p := f.protocol()
	at := map[service.Protocol]int{service.TCP: 16, service.UDP: 6}[p]
	if p == service.SCTP || p == service.UDP && f.zeroCheck {
		return
	}
	c := checksum(f.pseudo(byte(p), len(b)), b)
	if p == service.UDP && c == 0 {
		c = 0xffff
	}
	sum := uint32(c) + uint32(f.wrongCheck)
	binary.BigEndian.PutUint16(b[at:], uint16(sum&0xffff+sum>>16))
}

// bytes is the packet with an Ethernet header in front.
func (f frame) bytes() []byte {
	proto, b := f.transport()
	if f.whole != nil {
		b = f.whole
	}
	eth := make([]byte, 14)
	eth[5], eth[11] = 2, 1
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	if f.is4() {
		eth[12], eth[13] = 8, 0
		return append(eth, f.ipv4(proto, ttl, b)...)
	}
	eth[12], eth[13] = 0x86, 0xdd
	return append(eth, f.ipv6(proto, ttl, b)...)
}

func (f frame) ipv4(proto, ttl byte, b []byte) []byte {
	be := binary.BigEndian
	h := append(make([]byte, 20), f.options...)
	h[0] = 0x40 | byte(len(h)/4)
	h[1] = f.tos
	be.PutUint16(h[2:], uint16(len(h)+len(b)))
	be.PutUint16(h[4:], uint16(f.id))
	frag := uint16(f.fragment/8) & 0x1fff
	if f.more {
		frag |= 0x2000
	}
	if frag == 0 && !f.noDF {
		frag = 0x4000
	}
	be.PutUint16(h[6:], frag)
	h[8], h[9] = ttl, proto
	copy(h[12:], netip.MustParseAddr(f.src).AsSlice())
	copy(h[16:], netip.MustParseAddr(f.dst).AsSlice())
	be.PutUint16(h[10:], checksum(0, h))
	return append(h, b...)
}

func (f frame) ipv6(proto, ttl byte, b []byte) []byte {
	be := binary.BigEndian
	h := make([]byte, 40)
	h[0] = 0x60
	h[6], h[7] = proto, ttl
	copy(h[8:], netip.MustParseAddr(f.src).AsSlice())
	copy(h[24:], netip.MustParseAddr(f.dst).AsSlice())
	if f.options != nil {
		ext := append([]byte{}, f.options...)
		ext[0], ext[1] = h[6], byte(len(ext)/8-1)
		h[6] = 60
		h = append(h, ext...)
	}
	if f.fragment > 0 || f.more {
		frag := make([]byte, 8)
		frag[0] = proto
		off := uint16(f.fragment)
		if f.more {
			off |= 1
		}
		be.PutUint16(frag[2:], off)
		be.PutUint32(frag[4:], f.id)
		if f.options != nil {
			h[40] = 44
		} else {
			h[6] = 44
		}
		h = append(h, frag...)
	}
	be.PutUint16(h[4:], uint16(len(h)-40+len(b)))
	return append(h, b...)
}

// quote is what an ICMP error quotes of the packet: IP header and n bytes.
func (f frame) quote(n int) []byte {
	b := f.bytes()[14:]
	l4 := len(b) - len(must(f.transport()))
	return b[:min(len(b), l4+n)]
}

func must(_ byte, b []byte) []byte { return b }

// what a program does with a packet.
const (
	verdictNext     = -1
	verdictDrop     = 2
	verdictRedirect = 7
)

// bench runs programs of a Dataplane on packets.
type bench struct {
	n       *testNet
	d       *Dataplane
	ifindex map[string]int
}

func newBench(t testing.TB, o Options) *bench {
	n := newTestNet(t)
	o.PacketsOnly = true
	b := &bench{n: n, ifindex: map[string]int{}}
	b.d = n.start(t, o)
	in(t, n.node, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			b.ifindex[l.Attrs().Name] = l.Attrs().Index
		}
		return err
	})
	return b
}

// run gives a packet to a program as if it came by an interface.
func (b *bench) run(t testing.TB, prog *ebpf.Program, dev string, packet []byte) (int, []byte) {
	t.Helper()
	ctx := make([]byte, 192)
	binary.NativeEndian.PutUint32(ctx[40:], uint32(b.ifindex[dev])) // __sk_buff.ifindex
	verdict, sent, out := b.runWith(t, prog, dev, packet, ctx, 0)
	if bytes.HasPrefix(out, sent[:6]) { // tests say nothing of it
		copy(out, packet[:6])
	}
	return verdict, out
}

// runWith gives a program a context, and a packet for this host; with mac, the last byte
// of the address is another. sent is the packet as it was given.
func (b *bench) runWith(t testing.TB, prog *ebpf.Program, dev string, packet, ctx []byte, mac byte) (verdict int, sent, out []byte) {
	t.Helper()
	o := &ebpf.RunOptions{Data: slices.Clone(packet), DataOut: make([]byte, 4096), Context: ctx}
	var ret uint32
	in(t, b.n.node, func() (err error) {
		host, err := hardwareAddr(uint32(b.ifindex[dev]))
		if err != nil {
			return err
		}
		copy(o.Data, host)
		o.Data[5] ^= mac
		ret, err = prog.Run(o)
		return err
	})
	return int(int32(ret)), o.Data, o.DataOut
}

// forget empties the flows table.
func (b *bench) forget(t testing.TB) {
	t.Helper()
	var key bpfTuple
	var keys []bpfTuple
	var value bpfFlow
	it := b.d.objs.Flows.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := b.d.objs.Flows.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // the collector was there first
			t.Fatal(err)
		}
	}
}
