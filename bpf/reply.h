/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers made from the packet itself, sent back the way it came. */
#ifndef NODEPROXY_REPLY_H
#define NODEPROXY_REPLY_H

#include "base.h"
#include "csum.h"
#include "flow.h"
#include "icmp_error.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "scratch.h"
#include "snat.h"
#include "types.h"

enum answer { ANSWER_PORT_UNREACHABLE, ANSWER_TIME_EXCEEDED, ANSWER_TOO_BIG };

#define QUOTE_MAX 128
#define OUR_TTL 64

/* The pseudo-header's part of a checksum. */
static __always_inline __u32 pseudo_sum(const struct tuple *t, __u32 len, __u8 proto)
{
	__u32 tail[2] = {bpf_htonl(len), bpf_htonl(proto)};
	__u32 sum;

	/* A mapped address has ffff in front: twice that is zero to the sum. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)t, 32, 0);
	return bpf_csum_diff(NULL, 0, tail, sizeof(tail), sum);
}

/* Answers that are made here, as many as the kernel makes errors (icmp_msgs_per_sec):
 * to one address, and in all; a second, and so many at once. */
#define ANSWERS_TO_ONE 100
#define ANSWERS_TO_ALL 10000
#define BURST_TO_ONE 200
#define BURST_TO_ALL 10000

/* Takes one from the answers that are left to an address. Two CPUs may take the same. */
static __always_inline bool take_reply_token(const struct addr *a, __u64 interval, __u64 burst)
{
	__u64 now = bpf_ktime_get_ns(), next = now;
	__u64 *due = bpf_map_lookup_elem(&answer_times, a);

	if (due && *due > now)
		next = *due;
	if (next - now > interval * burst)
		return false;
	next += interval;
	if (due)
		*due = next;
	else
		bpf_map_update_elem(&answer_times, a, &next, BPF_ANY);
	return true;
}

/* Whether the packet may be answered, or has been answered enough.
 * reads w->p */
static __always_inline bool may_reply(struct work *w)
{
	struct addr all = {};

	if (take_reply_token(&w->p.t.src, SECOND / ANSWERS_TO_ONE, BURST_TO_ONE) &&
	    take_reply_token(&all, SECOND / ANSWERS_TO_ALL, BURST_TO_ALL))
		return true;
	count(REASON_ANSWER_LIMITED, w->p.total);
	return false;
}

static __always_inline int send_back(struct __sk_buff *skb, struct work *w)
{
	__u8 mac[12], swapped[12];

	if (w->p.l3) {
		if (bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)) < 0)
			return TC_ACT_SHOT;
		__builtin_memcpy(swapped, mac + 6, 6);
		__builtin_memcpy(swapped + 6, mac, 6);
		if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0) < 0)
			return TC_ACT_SHOT;
	}
	/* At egress the sender is this host. */
	return bpf_redirect(skb->ifindex, w->egress ? BPF_F_INGRESS : 0);
}

/* Writes an IP header at l3 from t.src to t.dst, for len bytes of proto. */
static __always_inline long write_ip(struct __sk_buff *skb, struct packet *p, const struct tuple *t,
				     __u32 len, __u8 proto)
{
	if (p->v4) {
		struct iphdr ip = {.version = 4, .ihl = 5, .ttl = OUR_TTL, .protocol = proto};

		ip.tot_len = bpf_htons(sizeof(ip) + len);
		ip.frag_off = bpf_htons(IP_DF);
		ip.saddr = t->src.w[3];
		ip.daddr = t->dst.w[3];
		ip.check = csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
		return bpf_skb_store_bytes(skb, p->l3, &ip, sizeof(ip), 0);
	} else {
		struct ipv6hdr ip = {.version = 6, .hop_limit = OUR_TTL, .nexthdr = proto};

		ip.payload_len = bpf_htons(len);
		__builtin_memcpy(&ip.saddr, &t->src, 16);
		__builtin_memcpy(&ip.daddr, &t->dst, 16);
		return bpf_skb_store_bytes(skb, p->l3, &ip, sizeof(ip), 0);
	}
}

static __always_inline void icmp_header(__u8 *h, enum answer what, bool v4, __u32 mtu)
{
	__u32 info = bpf_htonl(mtu);

	switch (what) {
	case ANSWER_PORT_UNREACHABLE:
		h[0] = v4 ? ICMP_DEST_UNREACH : ICMPV6_DEST_UNREACH;
		h[1] = v4 ? ICMP_PORT_UNREACH : ICMPV6_PORT_UNREACH;
		break;
	case ANSWER_TIME_EXCEEDED:
		h[0] = v4 ? ICMP_TIME_EXCEEDED : ICMPV6_TIME_EXCEED;
		break;
	case ANSWER_TOO_BIG:
		h[0] = v4 ? ICMP_DEST_UNREACH : ICMPV6_PKT_TOOBIG;
		h[1] = v4 ? ICMP_FRAG_NEEDED : 0;
		__builtin_memcpy(h + 4, &info, 4);
		break;
	}
}

/*
 * Answers with an ICMP error that quotes the IP and transport headers. The
 * source is the address that was dialled for port unreachable, as a host there
 * would have, and this node's otherwise.
 */
__noinline int send_icmp_error(struct __sk_buff *skb, struct work *w, __u32 what, __u32 mtu)
{
	__u32 quoted, outer, sum, len;
	const struct addr *own;
	__u8 head[ICMP_LEN] = {};
	struct packet *p;
	__u16 check;
	__u8 proto;

	w = own_work(w);
	if (!w)
		return TC_ACT_SHOT;
	p = &w->p;
	if (p->saw == FRAGMENT_LATER || !may_reply(w))
		return TC_ACT_SHOT;
	reverse(&w->to, &p->t);
	own = what == ANSWER_PORT_UNREACHABLE ? NULL : masquerade_address(skb->ifindex, p->v4);
	if (own)
		w->to.src = *own;
	proto = p->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	outer = p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	/* TCP's whole header: the kernel cuts nothing off before the checksum
	 * field while that is still to be filled in. */
	quoted = p->l4 - p->l3 + (p->t.proto == IPPROTO_TCP ? 20 : 8);
	if (quoted > QUOTE_MAX || quoted < 28)
		return TC_ACT_SHOT;
	__builtin_memset(w->quoted, 0, sizeof(w->quoted));
	if (bpf_skb_load_bytes(skb, p->l3, w->quoted, quoted) < 0)
		return TC_ACT_SHOT;
	len = quoted + ICMP_LEN;

	icmp_header(head, what, p->v4, mtu);
	sum = bpf_csum_diff(NULL, 0, w->quoted, sizeof(w->quoted), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)head, sizeof(head), sum);
	if (!p->v4)
		sum = csum_add(sum, pseudo_sum(&w->to, len, proto));
	check = csum_fold(sum);
	__builtin_memcpy(head + 2, &check, 2);

	if (bpf_skb_change_tail(skb, p->l3 + quoted, 0) < 0 ||
	    bpf_skb_adjust_room(skb, outer + ICMP_LEN, BPF_ADJ_ROOM_MAC, 0) < 0 ||
	    write_ip(skb, p, &w->to, len, proto) < 0 ||
	    bpf_skb_store_bytes(skb, p->l3 + outer, head, sizeof(head), 0) < 0)
		return TC_ACT_SHOT;
	return send_back(skb, w);
}

/* Turns an echo request into its reply, in place. Swapping the addresses leaves
 * every checksum as it is. */
__noinline int send_echo_reply(struct __sk_buff *skb, struct work *w)
{
	__u8 ttl = OUR_TTL, type;
	__u16 old, new;
	struct packet *p;
	long err;

	w = own_work(w);
	if (!w)
		return TC_ACT_SHOT;
	if (!may_reply(w))
		return TC_ACT_SHOT;
	p = &w->p;
	type = p->v4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;
	old = bpf_htons(p->icmp_type << 8); /* type and code, which is 0 */
	new = bpf_htons(type << 8);
	err = bpf_l4_csum_replace(skb, p->l4 + 2, old, new, sizeof(new));
	err |= bpf_skb_store_bytes(skb, p->l4, &type, sizeof(type), 0);
	reverse(&w->to, &p->t);
	if (p->v4) {
		__be32 addrs[2] = {w->to.src.w[3], w->to.dst.w[3]};

		err |= bpf_l3_csum_replace(skb, p->l3 + IP4_CHECK, bpf_htons(p->ttl << 8),
					   bpf_htons(ttl << 8), sizeof(__u16));
		err |= bpf_skb_store_bytes(skb, p->l3 + IP4_TTL, &ttl, sizeof(ttl), 0);
		err |= bpf_skb_store_bytes(skb, p->l3 + IP4_SRC, addrs, sizeof(addrs), 0);
	} else {
		err |= bpf_skb_store_bytes(skb, p->l3 + IP6_HOPS, &ttl, sizeof(ttl), 0);
		err |=
		    bpf_skb_store_bytes(skb, p->l3 + IP6_SRC, &w->to, 2 * sizeof(struct addr), 0);
	}
	if (err) {
		count(REASON_REWRITE, p->total);
		return TC_ACT_SHOT;
	}
	return send_back(skb, w);
}

/*
 * Resets a TCP connection that no flow is known of. The segment that has no
 * ACK is acknowledged as RFC 9293 3.10.7.1 says.
 */
__noinline int send_rst(struct __sk_buff *skb, struct work *w)
{
	struct tcphdr in, out = {.doff = 5, .rst = 1};
	struct packet *p;
	__u32 data, outer, sum;

	w = own_work(w);
	if (!w)
		return TC_ACT_SHOT;
	p = &w->p;
	if (p->tcp_flags & TCP_RST || bpf_skb_load_bytes(skb, p->l4, &in, sizeof(in)) < 0 ||
	    !may_reply(w))
		return TC_ACT_SHOT;
	reverse(&w->to, &p->t);
	outer = p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	data = p->total - (p->l4 - p->l3) - in.doff * 4;
	out.source = in.dest;
	out.dest = in.source;
	if (in.ack) {
		out.seq = in.ack_seq;
	} else {
		out.ack = 1;
		out.ack_seq = bpf_htonl(bpf_ntohl(in.seq) + data + in.syn + in.fin);
	}

	/* Under CHECKSUM_PARTIAL the field holds the pseudo-header's sum, and the
	 * device will add the rest. No helper tells that state, the sum does. */
	sum = pseudo_sum(&p->t, p->total - (p->l4 - p->l3), IPPROTO_TCP);
	if (p->l4 - p->l3 == outer && in.check == (__u16)~csum_fold(sum)) {
		out.check = ~csum_fold(pseudo_sum(&w->to, sizeof(out), IPPROTO_TCP));
	} else {
		sum = pseudo_sum(&w->to, sizeof(out), IPPROTO_TCP);
		sum = csum_add(sum, bpf_csum_diff(NULL, 0, (__be32 *)&out, sizeof(out), 0));
		out.check = csum_fold(sum);
	}
	if (bpf_skb_change_tail(skb, p->l3 + outer + sizeof(out), 0) < 0 ||
	    write_ip(skb, p, &w->to, sizeof(out), IPPROTO_TCP) < 0 ||
	    bpf_skb_store_bytes(skb, p->l3 + outer, &out, sizeof(out), 0) < 0)
		return TC_ACT_SHOT;
	return send_back(skb, w);
}

#endif
