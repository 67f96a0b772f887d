/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Gives a packet the addresses and ports that it goes on with. */
#ifndef NODEPROXY_REWRITE_H
#define NODEPROXY_REWRITE_H

#include "base.h"
#include "config.h"
#include "csum.h"
#include "packet.h"
#include "scratch.h"

static __always_inline long rewrite_l3(struct __sk_buff *skb, struct work *w, __u32 diff, __u8 hops)
{
	struct packet *p = &w->p;
	__u8 ttl = p->ttl - hops;
	long err;

	if (p->v4) {
		__u32 pair[2] = {w->to.src.w[3], w->to.dst.w[3]};

		diff = csum_word(diff, bpf_htons(p->ttl << 8), bpf_htons(ttl << 8));
		err = bpf_l3_csum_replace(skb, p->l3 + IP4_CHECK, 0, diff, 0);
		err |= bpf_skb_store_bytes(skb, p->l3 + IP4_SRC, pair, sizeof(pair), 0);
		if (hops)
			err |= bpf_skb_store_bytes(skb, p->l3 + IP4_TTL, &ttl, 1, 0);
		return err;
	}
	err = bpf_skb_store_bytes(skb, p->l3 + IP6_SRC, &w->to, 32, 0);
	if (hops)
		err |= bpf_skb_store_bytes(skb, p->l3 + IP6_HOPS, &ttl, 1, 0);
	return err;
}

/*
 * Makes the packet's addresses and ports those of w->to, and its TTL smaller by
 * hops. Addresses go into transport checksums with the pseudo-header flag and
 * ports without: under CHECKSUM_PARTIAL the field holds the sum of the
 * pseudo-header alone. IPv6 has no header checksum to cancel the change of its
 * addresses in a complete sum (BPF_F_IPV6).
 */
__noinline long rewrite(struct __sk_buff *skb, struct work *w, __u8 hops)
{
	__u64 flags = BPF_F_PSEUDO_HDR;
	struct packet *p;
	__u32 diff, check, from, to;
	long err;

	if (!w)
		return -EINVAL;
	p = &w->p;
	diff = bpf_csum_diff((__be32 *)&p->t, 32, (__be32 *)&w->to, 32, 0);
	err = rewrite_l3(skb, w, diff, hops);
	if (p->saw == FRAGMENT_LATER || p->t.proto == IPPROTO_SCTP)
		return err;
	if (!p->v4)
		flags |= csum_ipv6;
	check = p->l4 + offsetof(struct tcphdr, check);
	if (p->t.proto == IPPROTO_UDP) {
		check = p->l4 + offsetof(struct udphdr, check);
		flags |= BPF_F_MARK_MANGLED_0;
	}
	err |= bpf_l4_csum_replace(skb, check, 0, diff, flags);
	from = *(__u32 *)&p->t.sport; /* both ports, as they stand in the packet */
	to = *(__u32 *)&w->to.sport;
	if (from == to)
		return err;
	err |= bpf_l4_csum_replace(skb, check, from, to, (flags & BPF_F_MARK_MANGLED_0) | 4);
	return err | bpf_skb_store_bytes(skb, p->l4, &to, 4, 0);
}

#endif
