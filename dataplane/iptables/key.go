package iptables

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/nodeproxy/nodeproxy/service"
)

// key is a string of bits that a packet can be compared with, a piece at a
// time: first the address, then two bits for the protocol, then the port. A key
// that ends early stands for every packet that begins so.
type key struct {
	bits [19]byte // the most significant bit first; zero behind length
	// length is the number of bits; addrBits of them are the address: 0 for a
	// node port, which has none.
	length, addrBits uint8
}

// protocolBits is the width of the protocol in a key, and portBits of the port.
const (
	protocolBits = 2
	portBits     = 16
)

func protocolCode(p service.Protocol) byte {
	switch p {
	case service.UDP:
		return 1
	case service.SCTP:
		return 2
	}
	return 0
}

var protocolByCode = [4]service.Protocol{service.TCP, service.UDP, service.SCTP}

// prefixKey is the key of all packets with an address inside a prefix.
func prefixKey(p netip.Prefix) key {
	k := key{length: uint8(p.Bits()), addrBits: uint8(p.Addr().BitLen())}
	copy(k.bits[:], p.Masked().Addr().AsSlice())
	return k
}

// frontendKey is the key of a destination; an invalid address leaves it out,
// as node ports do.
func frontendKey(addr netip.Addr, protocol service.Protocol, port uint16) key {
	var k key
	if addr.IsValid() {
		k = prefixKey(netip.PrefixFrom(addr, addr.BitLen()))
	}
	at := int(k.addrBits) / 8
	tail := uint32(protocolCode(protocol))<<30 | uint32(port)<<14
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], tail)
	copy(k.bits[at:], b[:3])
	k.length = k.addrBits + protocolBits + portBits
	return k
}

// pair returns the two bits at an even position.
func (k key) pair(at uint8) byte { return k.bits[at/8] >> (6 - at%8) & 3 }

// prefix cuts a key down to a number of bits.
func (k key) prefix(length uint8) key {
	k.length = length
	for i := range k.bits {
		switch from := uint8(i) * 8; {
		case from >= length:
			k.bits[i] = 0
		case length-from < 8:
			k.bits[i] &= 0xff << (8 - (length - from))
		}
	}
	return k
}

// covers reports whether k is a prefix of o.
func (k key) covers(o key) bool {
	return k.length <= o.length && o.prefix(k.length).bits == k.bits
}

// common returns the length of the longest common prefix of two keys, rounded
// down to an even number. Even positions are the same in every tree, so that
// one more key never shifts the nodes of the others.
func (k key) common(o key) uint8 {
	n := min(k.length, o.length) &^ 1
	for at := uint8(0); at < n; at += 2 {
		if k.pair(at) != o.pair(at) {
			return at
		}
	}
	return n
}

// compare orders keys as the rules in a chain: of two that overlap the longer,
// more specific one is met first; otherwise by their bits.
func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(o.length, k.length), bytes.Compare(k.bits[:], o.bits[:]))
}

// hasPort reports whether the key goes on behind the address.
func (k key) hasPort() bool { return k.length > k.addrBits }

// addr returns the part of the key that is an address.
func (k key) addr() netip.Prefix {
	if k.addrBits == 0 {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(k.bits[:k.addrBits/8])
	return netip.PrefixFrom(a, int(min(k.length, k.addrBits)))
}

// ports returns the protocol and the range of ports that a key stands for. It
// may be called only if [key.hasPort].
func (k key) ports() (p service.Protocol, first, last uint16) {
	p = protocolByCode[k.pair(k.addrBits)]
	var b [4]byte
	copy(b[:3], k.bits[k.addrBits/8:])
	first = uint16(binary.BigEndian.Uint32(b[:]) >> 14)
	free := portBits - (k.length - k.addrBits - protocolBits)
	return p, first, first | uint16(1<<free-1)
}

// match renders what is left to compare once a packet is known to be inside
// known, in the words and order of iptables-save. flag is -d or -s.
func (k key) match(flag string, known uint8) string {
	out := ""
	if k.addrBits > 0 && known < k.addrBits {
		if a := k.addr(); a.Bits() > 0 {
			out += " " + flag + " " + a.String()
		}
	}
	if !k.hasPort() {
		return out
	}
	p, first, last := k.ports()
	name := protocolName(p)
	out += " -p " + name
	switch {
	case k.length == k.addrBits+protocolBits:
	case first == last:
		out += fmt.Sprintf(" -m %s --dport %d", name, first)
	default:
		out += fmt.Sprintf(" -m %s --dport %d:%d", name, first, last)
	}
	return out
}

// protocolName is a protocol as iptables writes it.
func protocolName(p service.Protocol) string {
	switch p {
	case service.UDP:
		return "udp"
	case service.SCTP:
		return "sctp"
	}
	return "tcp"
}
