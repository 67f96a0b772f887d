/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * At XDP: packets of known flows, from uplink to uplink. They are most of what a
 * node port with its Pod on another node costs, and need no buffer of the stack.
 * Whatever asks for a decision goes on to tc, which has all the rest: first
 * packets, flows that are over, fragments, options, ICMP, answers, local Pods.
 */
#ifndef NODEPROXY_XDP_H
#define NODEPROXY_XDP_H

#include "base.h"
#include "addr.h"
#include "csum.h"
#include "ct_bypass.h"
#include "ct_fast.h"
#include "ct_segment.h"
#include "fib.h"
#include "flow.h"
#include "flow_bloom.h"
#include "flow_types.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "scratch.h"
#include "types.h"

static __always_inline bool parse_xdp(struct xdp_md *xdp, struct packet *p)
{
	struct bytes b = {.ctx = xdp, .xdp = true, .len = bpf_xdp_get_buff_len(xdp)};
	void *data = (void *)(long)xdp->data;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > (void *)(long)xdp->data_end)
		return false;
	b.protocol = eth->h_proto; /* that of a VLAN is neither */
	return parse(b, p, ETH_HLEN);
}

/* Whether a frame is for this host: flooded and mirrored ones are not, and the stack drops
 * them. At a bridge's port, what is for the port itself is tc's. */
static __always_inline bool is_for_host(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data;
	__u32 ifindex = xdp->ingress_ifindex;
	struct ethhdr *eth = data;
	struct interface *in;

	if ((void *)(eth + 1) > (void *)(long)xdp->data_end)
		return false;
	in = bpf_map_lookup_elem(&interfaces, &ifindex);
	return in && same_mac(eth->h_dest, in->mac);
}

/* Whether headers stand where this file expects them, in a whole packet. */
static __always_inline bool is_plain(const struct packet *p)
{
	__u32 expected = ETH_HLEN + (p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

	return !p->opaque && (p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP) &&
	       p->saw == FRAGMENT_NONE && p->l4 == expected && p->ttl > 1;
}

/* The route, with the neighbour's address; everything less is tc's. */
static __always_inline bool find_hop(struct xdp_md *xdp, struct work *w)
{
	struct interface *out;
	__u32 ifindex;

	init_fib_lookup(w, xdp->ingress_ifindex, w->p.total);
	if (bpf_fib_lookup(xdp, &w->fib, sizeof(w->fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	ifindex = w->fib.ifindex;
	if (ifindex == xdp->ingress_ifindex)
		return true;
	out = bpf_map_lookup_elem(&interfaces, &ifindex);
	return out && out->flags & INTERFACE_XDP;
}

/*
 * Whether a checksum is still to be finished by hardware, of which XDP is told
 * nothing: it then is the sum of the pseudo-header. One in 65,536 that is
 * finished looks so too, and takes the way through tc.
 */
static __always_inline bool is_unfinished(const struct packet *p, __u16 check)
{
	__u32 length = p->l3 + p->total - p->l4;
	__u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)&p->t, 32, 0);

	sum = csum_add(sum, bpf_htons(p->t.proto));
	sum = csum_add(sum, bpf_htons(length));
	return (__u16)~csum_fold(sum) == check;
}

/* The checksum in the transport's header at l4, or NULL if that does not end
 * before end. */
static __always_inline __u16 *checksum_at(void *l4, void *end, __u8 proto)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;
	__u16 *check;

	if (proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return NULL;
		check = &tcp->check;
	} else {
		if ((void *)(udp + 1) > end)
			return NULL;
		check = &udp->check;
	}
	/* The verifier wants the bounds and the offset from the same branch. */
	barrier_var(check);
	return check;
}

/* Renews the transport's checksum. False if that cannot be done here. */
static __always_inline bool update_l4_csum(const struct work *w, __u16 *check, __u32 diff)
{
	const struct packet *p = &w->p;
	__u32 sum;

	if (!check)
		return false;
	if (p->t.proto == IPPROTO_UDP && !*check) /* the sender does without */
		return true;
	if (is_unfinished(p, *check))
		return false;
	sum = csum_add((__u16) ~*check, diff);
	sum = csum_word(sum, p->t.sport, w->to.sport);
	*check = csum_fold(csum_word(sum, p->t.dport, w->to.dport));
	if (!*check && p->t.proto == IPPROTO_UDP)
		*check = 0xffff;
	return true;
}

static __always_inline void rewrite_ports(const struct work *w, struct udphdr *ports)
{
	ports->source = w->to.sport;
	ports->dest = w->to.dport;
}

/* Makes the packet what w->to says, with a TTL smaller by one; false leaves it
 * as it was. */
static __always_inline bool rewrite_v4(struct xdp_md *xdp, const struct work *w, __u32 diff)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	void *l4 = ip + 1;
	__u32 sum;

	if (!update_l4_csum(w, checksum_at(l4, end, w->p.t.proto), diff))
		return false;
	sum = csum_add((__u16)~ip->check, diff);
	ip->check =
	    csum_fold(csum_word(sum, bpf_htons(ip->ttl << 8), bpf_htons((ip->ttl - 1) << 8)));
	ip->ttl--;
	ip->saddr = w->to.src.w[3];
	ip->daddr = w->to.dst.w[3];
	rewrite_ports(w, l4);
	return true;
}

static __always_inline bool rewrite_v6(struct xdp_md *xdp, const struct work *w, __u32 diff)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	void *l4 = ip + 1;

	if (!update_l4_csum(w, checksum_at(l4, end, w->p.t.proto), diff))
		return false;
	ip->hop_limit--;
	__builtin_memcpy(&ip->saddr, &w->to.src, 16);
	__builtin_memcpy(&ip->daddr, &w->to.dst, 16);
	rewrite_ports(w, l4);
	return true;
}

/* The next hop's address and this interface's own. */
static __always_inline bool rewrite_link(struct xdp_md *xdp, const struct work *w)
{
	struct ethhdr *eth = (void *)(long)xdp->data;

	if ((void *)(eth + 1) > (void *)(long)xdp->data_end)
		return false;
	__builtin_memcpy(eth->h_dest, w->fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, w->fib.smac, ETH_ALEN);
	return true;
}

/* Whether a packet with a known half may pass the stack by here. What has to be
 * decided first, tc decides. */
static __always_inline bool may_pass_by(struct work *w, struct flow *f, __u32 ifindex)
{
	if (f->flags & (FLOW_FOREIGN | FLOW_TIME_WAIT))
		return false;
	/* What this notes of a packet that goes on to tc, tc notes once more. */
	if (!(f->flags & FLOW_STACK))
		return keep_flow(w, f, ifindex);
	return passes(w, f, ifindex) && f->checked == this_second() && !has_to_ask(w, f) &&
	       !(w->p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

/* Counts a packet that was forwarded here. */
static __always_inline void note_forwarded(struct work *w, struct flow *f)
{
	if (f->flags & FLOW_STACK) {
		note_packet(w, f);
		if (w->p.t.proto == IPPROTO_TCP)
			note_segment(&w->p, f);
	} else {
		f->packets++;
		f->bytes += w->p.total;
	}
	count(REASON_FORWARDED_XDP, w->p.total);
}

static __always_inline int forward_known(struct xdp_md *xdp)
{
	struct work *w = get_work();
	struct flow *f;
	__u32 diff;

	if (!w || !parse_xdp(xdp, &w->p) || !is_plain(&w->p) || !may_have_flow(&w->p.t) ||
	    !is_for_host(xdp))
		return XDP_PASS;
	f = bpf_map_lookup_elem(&flows, &w->p.t);
	if (!f || (f->flags & FLOW_STACK && !is_fast(f)))
		return XDP_PASS;
	w->egress = false;
	w->to = f->to;
	if (!find_hop(xdp, w) || !may_pass_by(w, f, xdp->ingress_ifindex))
		return XDP_PASS;
	diff = bpf_csum_diff((__be32 *)&w->p.t, 32, (__be32 *)&w->to, 32, 0);
	if (w->p.v4 ? !rewrite_v4(xdp, w, diff) : !rewrite_v6(xdp, w, diff))
		return XDP_PASS;
	if (!rewrite_link(xdp, w))
		return XDP_ABORTED; /* cannot be: more than that was just written */
	note_forwarded(w, f);
	if (w->fib.ifindex == xdp->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(w->fib.ifindex, 0);
}

#endif
