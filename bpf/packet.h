/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to struct packet. Nothing here changes a packet or reads a map. */
#ifndef NODEPROXY_PACKET_H
#define NODEPROXY_PACKET_H

#include "base.h"
#include "addr.h"
#include "types.h"

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* The kernel's own headers of these pull in libc. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PORT_UNREACH 4
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* Where the IPv4 addresses stand in struct iphdr, and so on. */
#define IP4_TTL 8
#define IP4_CHECK 10
#define IP4_SRC 12
#define IP6_HOPS 7
#define IP6_SRC 8

/* Extension headers that are looked behind. */
#define IP6_HEADERS 6

enum fragment_kind { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

struct packet {
	struct tuple t;    /* ports are 0 in a later fragment and in ICMP */
	__u32 l3;          /* offset of the IP header */
	__u32 l4_len;      /* of the transport header */
	__u32 l4;          /* offset of what follows all IP headers */
	__u32 total;       /* bytes from l3 on, without link-layer padding */
	__u32 fragment_id; /* network */
	__u32 saw;         /* enum fragment_kind */
	bool v4;
	bool opaque;       /* what follows the IP header is not understood */
	bool may_fragment; /* IPv4 without DF */
	__u8 ttl;
	__u8 tos;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u32 seq; /* host; TCP */
	__u32 ack; /* host; TCP */
};

static __always_inline bool same_tuple(const struct tuple *a, const struct tuple *b)
{
	return same_addr(&a->src, &b->src) && same_addr(&a->dst, &b->dst) && a->sport == b->sport &&
	       a->dport == b->dport && a->proto == b->proto;
}

static __always_inline void reverse(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
	to->pad[0] = 0;
	to->pad[1] = 0;
	to->pad[2] = 0;
}

static __always_inline bool is_syn(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* The bytes of a packet at tc or at XDP. A constant to the compiler says which,
 * so that nothing is asked while a packet waits. */
struct bytes {
	void *ctx;
	bool xdp;
	bool gso;       /* may be longer than an IP header can say */
	__u16 protocol; /* network */
	__u32 len;      /* from the link-layer header on */
};

static __always_inline long load_bytes(struct bytes b, __u32 offset, void *to, __u32 len)
{
	return b.xdp ? bpf_xdp_load_bytes(b.ctx, offset, to, len)
		     : bpf_skb_load_bytes(b.ctx, offset, to, len);
}

/* Whether the packet begins with its Ethernet header. */
static __always_inline bool has_ethernet(struct __sk_buff *skb)
{
	struct ethhdr eth;

	return bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) == 0 && eth.h_proto == skb->protocol;
}

/* Reads an IPv4 header at p->l3. False: not one, and the stack will say so. */
static __always_inline bool parse_v4(struct bytes b, struct packet *p)
{
	struct iphdr ip;
	__u16 frag;

	if (load_bytes(b, p->l3, &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5)
		return false;
	p->v4 = true;
	p->total = bpf_ntohs(ip.tot_len);
	if (p->total == 0 && b.gso) /* more than 64 KiB */
		p->total = b.len - p->l3;
	if (p->total < ip.ihl * 4 || p->l3 + p->total > b.len)
		return false;
	frag = bpf_ntohs(ip.frag_off);
	p->may_fragment = !(frag & IP_DF);
	p->fragment_id = ip.id;
	if (frag & IP_OFFSET)
		p->saw = FRAGMENT_LATER;
	else
		p->saw = frag & IP_MF ? FRAGMENT_FIRST : FRAGMENT_NONE;
	p->ttl = ip.ttl;
	p->tos = ip.tos;
	p->l4 = p->l3 + ip.ihl * 4;
	p->t.proto = ip.protocol;
	map_v4(&p->t.src, ip.saddr);
	map_v4(&p->t.dst, ip.daddr);
	return true;
}

/* Walks the extension headers; p->l4 ends behind them. */
static __always_inline bool skip_extensions(struct bytes b, struct packet *p)
{
	struct {
		__u8 next, len;
		__u16 frag;
		__u32 id;
	} ext;

	for (int i = 0; i < IP6_HEADERS; i++) {
		switch (p->t.proto) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return true;
		}
		if (p->saw == FRAGMENT_LATER)
			return true;
		if (load_bytes(b, p->l4, &ext, sizeof(ext)) < 0)
			return false;
		if (p->t.proto == IPPROTO_FRAGMENT) {
			p->fragment_id = ext.id;
			if (bpf_ntohs(ext.frag) & 0xfff8)
				p->saw = FRAGMENT_LATER;
			else if (bpf_ntohs(ext.frag) & 1)
				p->saw = FRAGMENT_FIRST;
			p->l4 += 8;
		} else {
			p->l4 += (ext.len + 1) * 8;
		}
		p->t.proto = ext.next;
	}
	return false; /* more than anybody sends */
}

static __always_inline bool parse_v6(struct bytes b, struct packet *p)
{
	struct ipv6hdr ip;

	if (load_bytes(b, p->l3, &ip, sizeof(ip)) < 0 || ip.version != 6)
		return false;
	p->v4 = false;
	p->total = sizeof(ip) + bpf_ntohs(ip.payload_len);
	if (ip.payload_len == 0 && b.gso)
		p->total = b.len - p->l3;
	if (p->l3 + p->total > b.len)
		return false;
	p->may_fragment = false;
	p->saw = FRAGMENT_NONE;
	p->fragment_id = 0;
	p->ttl = ip.hop_limit;
	p->tos = 0;
	p->l4 = p->l3 + sizeof(ip);
	p->t.proto = ip.nexthdr;
	__builtin_memcpy(&p->t.src, &ip.saddr, 16);
	__builtin_memcpy(&p->t.dst, &ip.daddr, 16);
	/* These stand for IPv4 here, and on no wire (RFC 4942, 2.2): the stack drops them. */
	if (is_v4(&p->t.src) || is_v4(&p->t.dst))
		return false;
	p->opaque = !skip_extensions(b, p);
	return true;
}

/* Ports, TCP flags, ICMP type. False if the header is not all there. */
static __always_inline bool parse_l4(struct bytes b, struct packet *p)
{
	struct tcphdr tcp; /* the largest */
	__u32 left = p->l3 + p->total - p->l4;

	if (p->l4 > p->l3 + p->total)
		return false;
	switch (p->t.proto) {
	case IPPROTO_TCP:
		if (left < sizeof(tcp) || load_bytes(b, p->l4, &tcp, sizeof(tcp)) < 0)
			return false;
		p->tcp_flags = ((__u8 *)&tcp)[13];
		p->seq = bpf_ntohl(tcp.seq);
		p->ack = bpf_ntohl(tcp.ack_seq);
		p->l4_len = tcp.doff * 4;
		break;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (left < 8 || load_bytes(b, p->l4, &tcp, 8) < 0)
			return false;
		p->l4_len = 8;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (p->v4 != (p->t.proto == IPPROTO_ICMP) || left < 8 ||
		    load_bytes(b, p->l4, &p->icmp_type, 1) < 0)
			return false;
		return true;
	default:
		return false;
	}
	p->t.sport = tcp.source;
	p->t.dport = tcp.dest;
	return true;
}

/*
 * Fills in p from the packet whose IP header starts at l3. False means that it
 * is no IP, or so malformed that the stack drops it. Of an opaque one, addresses
 * alone are known.
 */
static __always_inline bool parse(struct bytes b, struct packet *p, __u32 l3)
{
	p->l3 = l3;
	p->t.sport = 0;
	p->t.dport = 0;
	p->t.pad[0] = 0;
	p->t.pad[1] = 0;
	p->t.pad[2] = 0;
	p->tcp_flags = 0;
	p->l4_len = 0;
	p->icmp_type = 0;
	p->opaque = false;
	if (b.protocol == bpf_htons(ETH_P_IP)) {
		if (!parse_v4(b, p))
			return false;
	} else if (b.protocol == bpf_htons(ETH_P_IPV6)) {
		if (!parse_v6(b, p))
			return false;
	} else {
		return false;
	}
	if (p->opaque)
		return true;
	if (p->saw == FRAGMENT_LATER)
		p->opaque = p->t.proto != IPPROTO_UDP && p->t.proto != IPPROTO_TCP &&
			    p->t.proto != IPPROTO_SCTP;
	else
		p->opaque = !parse_l4(b, p);
	return true;
}

#endif
