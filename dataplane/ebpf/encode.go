package ebpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// networkPort turns a port number into the uint16 whose bytes in memory stand
// as in a packet, and back.
func networkPort(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// mapAddr returns the 16 bytes that the programs know an address by.
func mapAddr(a netip.Addr) bpfAddr {
	b := a.As16()
	var out bpfAddr
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// unmapAddr is the inverse of mapAddr; an IPv4 address comes back as such.
func unmapAddr(a bpfAddr) netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// anyAddr is the address of node port frontends of a family.
func anyAddr(f service.Family) bpfAddr {
	if f == service.IPv4 {
		return mapAddr(netip.IPv4Unspecified())
	}
	return bpfAddr{}
}

// mappedBits is a prefix length within the 16 bytes of mapAddr.
func mappedBits(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return 96 + uint32(p.Bits())
	}
	return uint32(p.Bits())
}

// maskOf returns the mask of a prefix within the 16 bytes of mapAddr.
func maskOf(p netip.Prefix) bpfAddr {
	var b [16]byte
	for i := range mappedBits(p) {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return mapAddr(netip.AddrFrom16(b))
}

func rangeKey(id uint32, p netip.Prefix) bpfRangeKey {
	return bpfRangeKey{Prefixlen: 32 + mappedBits(p), Service: id, Addr: mapAddr(p.Masked().Addr())}
}

func memberKey(id uint32, e netip.AddrPort) bpfMemberKey {
	return bpfMemberKey{Addr: mapAddr(e.Addr()), Service: id, Port: networkPort(e.Port())}
}

func backendOf(b service.Backend) bpfBackend {
	out := bpfBackend{Addr: mapAddr(b.Addr()), Port: networkPort(b.Port())}
	if b.Local {
		out.Flags = uint8(bpfBackendFlagBACKEND_LOCAL)
	}
	return out
}

// routeOf encodes a route. One that names an empty list, which no Table should
// hold, is refused: a packet must not meet a division by zero.
func routeOf(r service.Route, count [2]uint32) uint8 {
	switch r.Action {
	case service.Reject:
		return uint8(bpfRouteROUTE_REJECT)
	case service.Drop:
		return uint8(bpfRouteROUTE_DROP)
	}
	if count[r.List] == 0 {
		return uint8(bpfRouteROUTE_REJECT)
	}
	out := uint8(bpfRouteROUTE_TRANSLATE)
	if r.List == service.ListLocal {
		out |= uint8(bpfRouteROUTE_LOCAL)
	}
	if r.Masquerade {
		out |= uint8(bpfRouteROUTE_MASQUERADE)
	}
	return out
}

// maxName is the longest name that the names map takes, less its NUL. The API
// allows none that is longer.
const maxName = len(bpfServiceName{}.Text) - 1

// nameText is what the names map is to say of a ServicePort.
func nameText(n service.PortName) string {
	text := n.String()
	return text[:min(len(text), maxName)]
}

// nameValue is a name as the names map has it.
func nameValue(name string) bpfServiceName {
	var v bpfServiceName
	copy(v.Text[:maxName], name)
	return v
}

// text is the inverse of nameValue.
func (v bpfServiceName) text() string {
	return string(v.Text[:max(bytes.IndexByte(v.Text[:], 0), 0)])
}

// portBit is the bit of a protocol, and whether for a node port, in ports.
func portBit(p service.Protocol, nodePort bool) uint32 {
	var bit uint32
	switch p {
	case service.TCP:
		bit = uint32(bpfPortFlagPORT_TCP)
	case service.UDP:
		bit = uint32(bpfPortFlagPORT_UDP)
	case service.SCTP:
		bit = uint32(bpfPortFlagPORT_SCTP)
	}
	if nodePort {
		bit <<= uint32(bpfPortFlagPORT_NODEPORT_SHIFT)
	}
	return bit
}

// backendBit is the bit of a protocol in ports for what backends listen on.
func backendBit(p service.Protocol) uint32 {
	return portBit(p, false) << uint32(bpfPortFlagPORT_BACKEND_SHIFT)
}

// seconds rounds up, since 0 would switch affinity off.
func seconds(d time.Duration) uint32 {
	return uint32((d + time.Second - 1) / time.Second)
}
