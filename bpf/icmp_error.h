/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: those of others are translated, and some are made here. */
#ifndef NODEPROXY_ICMP_ERROR_H
#define NODEPROXY_ICMP_ERROR_H

#include "base.h"
#include "addr.h"
#include "config.h"
#include "csum.h"
#include "ct.h"
#include "flow_types.h"
#include "frontend.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"
#include "scratch.h"
#include "types.h"

#define ICMP_LEN 8

/* Bytes of TCP or UDP that every error quotes. */
#define QUOTED_L4 8

static __always_inline bool is_icmp_error(const struct packet *p)
{
	if (p->v4)
		return p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		       p->icmp_type == ICMP_PARAMETERPROB;
	return p->icmp_type >= ICMPV6_DEST_UNREACH && p->icmp_type <= ICMPV6_PARAMPROB;
}

/* Reads the headers that the error at p quotes. */
static __noinline bool parse_quote(struct __sk_buff *skb, struct packet *p, struct quote *q)
{
	struct {
		__u16 sport, dport, len, check;
	} l4;

	if (!p || !q)
		return false;
	q->l3 = p->l4 + ICMP_LEN;
	q->t.pad[0] = 0;
	q->t.pad[1] = 0;
	q->t.pad[2] = 0;
	if (p->v4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) < 0 || ip.version != 4 ||
		    ip.ihl < 5 || bpf_ntohs(ip.frag_off) & IP_OFFSET)
			return false;
		q->l4 = q->l3 + ip.ihl * 4;
		q->t.proto = ip.protocol;
		map_v4(&q->t.src, ip.saddr);
		map_v4(&q->t.dst, ip.daddr);
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) < 0 || ip.version != 6)
			return false;
		q->l4 = q->l3 + sizeof(ip);
		q->t.proto = ip.nexthdr;
		__builtin_memcpy(&q->t.src, &ip.saddr, 16);
		__builtin_memcpy(&q->t.dst, &ip.daddr, 16);
		if (q->t.proto == IPPROTO_FRAGMENT) {
			__u8 next;

			if (bpf_skb_load_bytes(skb, q->l4, &next, 1) < 0)
				return false;
			q->t.proto = next;
			q->l4 += 8;
		}
	}
	if (!port_bit(q->t.proto) || bpf_skb_load_bytes(skb, q->l4, &l4, sizeof(l4)) < 0)
		return false;
	q->t.sport = l4.sport;
	q->t.dport = l4.dport;
	q->check = q->t.proto == IPPROTO_UDP ? l4.check : 0;
	return true;
}

/*
 * Writes the quoted addresses and ports of "to" over those of q->t. Returns in
 * *sum how that changes a checksum over the quotation.
 */
static __noinline long rewrite_quote(struct __sk_buff *skb, const struct quote *q,
				     const struct tuple *to, __u32 *sum)
{
	__u32 old_ports, new_ports, diff;
	__u16 check;
	long err;

	if (!q || !to || !sum)
		return -EINVAL;
	old_ports = *(__u32 *)&q->t.sport;
	new_ports = *(__u32 *)&to->sport;
	diff = bpf_csum_diff((__be32 *)&q->t, 32, (__be32 *)to, 32, 0);
	if (is_v4(&q->t.src)) {
		__u32 pair[2] = {to->src.w[3], to->dst.w[3]};

		/* The quoted header's own checksum cancels its addresses. */
		err = bpf_l3_csum_replace(skb, q->l3 + IP4_CHECK, 0, diff, 0);
		err |= bpf_skb_store_bytes(skb, q->l3 + IP4_SRC, pair, sizeof(pair), 0);
		*sum = bpf_csum_diff(&old_ports, 4, &new_ports, 4, 0);
	} else {
		err = bpf_skb_store_bytes(skb, q->l3 + IP6_SRC, to, 32, 0);
		*sum = csum_add(diff, bpf_csum_diff(&old_ports, 4, &new_ports, 4, 0));
	}
	err |= bpf_skb_store_bytes(skb, q->l4, &new_ports, 4, 0);
	if (!q->check)
		return err;
	/* UDP's is within the eight bytes: it is made right, and counted. */
	diff = csum_add(diff, bpf_csum_diff(&old_ports, 4, &new_ports, 4, 0));
	check = csum_fold(csum_add(diff, (__u16)~q->check));
	if (!check)
		check = 0xffff;
	*sum = csum_word(*sum, q->check, check);
	return err | bpf_skb_store_bytes(skb, q->l4 + 6, &check, 2, 0);
}

/* What an ICMP error is about. */
enum quoted {
	QUOTED_NONE,
	QUOTED_FLOW,    /* a flow that flows translates */
	QUOTED_TRACKED, /* one of conntrack's, and so is the error */
};

/*
 * Translates an ICMP error about a flow: the quotation becomes what the
 * receiver once sent, and the addresses outside fit it. The caller sends the packet, which is then
 * described by w->p and needs only its outer addresses changed to those of w->to.
 */
static __always_inline enum quoted find_quoted(struct __sk_buff *skb, struct work *w,
					       struct quote *q, struct tuple *inner)
{
	struct flow *f;

	if (!parse_quote(skb, &w->p, q))
		return QUOTED_NONE;
	/* What was quoted went the other way than the error does. */
	reverse(&w->peer, &q->t);
	f = bpf_map_lookup_elem(&flows, &w->peer);
	if (f && f->flags & (FLOW_FOREIGN | FLOW_STACK))
		return QUOTED_TRACKED;
	if (!f)
		return is_tracked(&q->t) && find_tracked(skb, w, &w->peer) != TRACKED_NONE
			   ? QUOTED_TRACKED
			   : QUOTED_NONE;
	reverse(inner, &f->to);
	w->to.src = w->p.t.src;
	if (same_addr(&w->p.t.src, &w->peer.src))
		w->to.src = f->to.src;
	w->to.dst = f->to.dst;
	w->to.sport = f->to.sport; /* for the choice of a route only */
	w->to.dport = f->to.dport;
	w->to.proto = w->p.t.proto;
	return QUOTED_FLOW;
}

/* Rewrites what find_quoted found: quotation, checksum, outer addresses. */
static __always_inline long rewrite_error(struct __sk_buff *skb, struct work *w,
					  const struct quote *q, const struct tuple *inner,
					  __u8 hops)
{
	struct packet *p = &w->p;
	__u32 check = p->l4 + 2;
	__u32 sum = 0, diff;
	long err;

	err = rewrite_quote(skb, q, inner, &sum);
	diff = bpf_csum_diff((__be32 *)&p->t, 32, (__be32 *)&w->to, 32, 0);
	err |= bpf_l4_csum_replace(skb, check, 0, sum, 0);
	if (!p->v4) /* ICMPv6 has a pseudo-header, ICMP has none */
		err |= bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | csum_ipv6);
	return err | rewrite_l3(skb, w, diff, hops);
}

#endif
