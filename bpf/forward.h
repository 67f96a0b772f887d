/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a translated packet goes, and sending it there past the stack. */
#ifndef NODEPROXY_FORWARD_H
#define NODEPROXY_FORWARD_H

#define NEXT TC_ACT_UNSPEC /* to the next program on the hook, then the stack */

/* What there is to be done with a packet, as the routes say. */
enum way {
	WAY_OUT,     /* through w->fib.ifindex */
	WAY_LOCAL,   /* to this host's own sockets */
	WAY_STACK,   /* only the stack can send it */
	WAY_TOO_BIG, /* w->fib.mtu_result is the most it may have */
	WAY_NONE,
};

static __always_inline int drop(enum reason reason, const struct packet *p)
{
	count(reason, p->total);
	tell(&p->t, NULL, EVENT_NO_SERVICE, reason);
	return TC_ACT_SHOT;
}

/* A packet to the frontend in w->fe. */
static __always_inline int drop_new(enum reason reason, struct work *w)
{
	count(reason, w->p.total);
	count_service(w->fe.service, false);
	tell(&w->p.t, NULL, w->fe.service, reason);
	return TC_ACT_SHOT;
}

/* The length that has to fit: of a GSO packet, that of its segments. */
static __always_inline __u32 sent_length(struct __sk_buff *skb, const struct packet *p)
{
	if (skb->gso_size)
		return p->l4 - p->l3 + p->l4_len + skb->gso_size;
	return p->total;
}

/* What the routes are asked: for a packet with the addresses of w->to that came
 * by an interface. */
static __always_inline void fill_question(struct work *w, __u32 ifindex, __u32 length)
{
	struct bpf_fib_lookup *fib = &w->fib;
	struct packet *p = &w->p;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = ifindex;
	fib->tot_len = length;
	fib->l4_protocol = p->t.proto;
	if (p->v4) {
		fib->family = AF_INET;
		fib->tos = p->tos;
		fib->ipv4_src = w->to.src.w[3];
		fib->ipv4_dst = w->to.dst.w[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &w->to.src, 16);
		__builtin_memcpy(fib->ipv6_dst, &w->to.dst, 16);
	}
	fib->sport = w->to.sport;
	fib->dport = w->to.dport;
}

__noinline enum way find_way(struct __sk_buff *skb, struct work *w)
{
	struct bpf_fib_lookup *fib;
	struct packet *p;
	long rc;

	if (!w)
		return WAY_NONE;
	fib = &w->fib;
	p = &w->p;
	fill_question(w, skb->ifindex, sent_length(skb, p));
	rc = bpf_fib_lookup(skb, fib, sizeof(*fib), redirect_peer ? 0 : fib_flags);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return WAY_OUT;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return WAY_LOCAL;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return p->may_fragment ? WAY_STACK : WAY_TOO_BIG;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return WAY_STACK;
	}
	return WAY_NONE;
}

/* Into the Pod's namespace, without the queue between the ends of the veth. */
static __always_inline bool can_enter(struct __sk_buff *skb, struct work *w)
{
	__u32 ifindex = w->fib.ifindex;
	struct interface *out;
	__u8 mac[12];

	if (!redirect_peer || w->egress || !w->p.l3)
		return false;
	out = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!out || !(out->flags & INTERFACE_PEER))
		return false;
	if (!(w->fib.dmac[0] | w->fib.dmac[1] | w->fib.dmac[2] | w->fib.dmac[3] | w->fib.dmac[4] |
	      w->fib.dmac[5]))
		return false; /* neighbour unknown: let it be asked for */
	__builtin_memcpy(mac, w->fib.dmac, 6);
	__builtin_memcpy(mac + 6, w->fib.smac, 6);
	return bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0) == 0;
}

/* Sends a rewritten packet through w->fib.ifindex to the next hop found there. */
static __always_inline int send_out(struct __sk_buff *skb, struct work *w)
{
	struct bpf_redir_neigh hop = {.nh_family = w->fib.family};
	__u16 protocol = skb->protocol;

	count(REASON_FORWARDED, w->p.total);
	if (can_enter(skb, w))
		return bpf_redirect_peer(w->fib.ifindex, 0);
	__builtin_memcpy(hop.ipv6_nh, w->fib.ipv6_dst, 16);
	if (!w->p.l3) {
		/* From a device without link-layer headers: make room for one. */
		if (bpf_skb_change_head(skb, ETH_HLEN, 0) < 0 ||
		    bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol, 2, 0) < 0)
			return drop(REASON_REWRITE, &w->p);
	}
	/* What this host sends has a route already, and would be queued for that
	 * one's neighbour while its own is asked for; without a hop, it gets a new
	 * route. */
	if (w->egress)
		return bpf_redirect_neigh(w->fib.ifindex, NULL, 0, 0);
	return bpf_redirect_neigh(w->fib.ifindex, &hop, sizeof(hop), 0);
}

/*
 * Whether the stack would take the packet once it is translated: it refuses one
 * that comes from outside with an address of this host as its source.
 */
static __always_inline bool stack_takes(const struct work *w)
{
	return w->egress || !(address_flags(&w->to.src) & ADDRESS_LOCAL);
}

/* At egress, with the destination unchanged: the packet is on its way already. */
static __always_inline bool stays(const struct work *w)
{
	return w->egress && same_addr(&w->to.dst, &w->p.t.dst);
}

/* Answers a packet that cannot go on as it is, before it is rewritten. */
static __always_inline int refuse_way(struct __sk_buff *skb, struct work *w, enum way way)
{
	__u32 mtu = w->fib.mtu_result;

	if (way == WAY_NONE)
		return drop(REASON_NO_ROUTE, &w->p);
	if (way == WAY_TOO_BIG) {
		count(REASON_TOO_BIG, w->p.total);
		return answer_icmp(skb, w, ANSWER_TOO_BIG, mtu);
	}
	count(REASON_TTL, w->p.total);
	return answer_icmp(skb, w, ANSWER_TIME_EXCEEDED, 0);
}

/* Whether a packet may take its way, TTL and size being considered. */
static __always_inline bool may_go(const struct work *w, enum way way)
{
	if (way == WAY_OUT)
		return w->p.ttl > 1 || w->egress;
	return way == WAY_LOCAL || way == WAY_STACK;
}

/* Rewrites the packet to w->to and sends it the way that was found. */
static __always_inline int go(struct __sk_buff *skb, struct work *w, enum way way)
{
	if (way == WAY_OUT) {
		if (rewrite(skb, w, w->egress ? 0 : 1) < 0)
			return drop(REASON_REWRITE, &w->p);
		return send_out(skb, w);
	}
	if (!stack_takes(w))
		return drop(REASON_UNSENDABLE, &w->p);
	if (rewrite(skb, w, 0) < 0)
		return drop(REASON_REWRITE, &w->p);
	count(REASON_STACK, w->p.total);
	return NEXT;
}

/* A packet of a known flow, w->to being what it becomes. */
static __always_inline int deliver(struct __sk_buff *skb, struct work *w)
{
	enum way way = WAY_LOCAL;

	if (w->p.saw == FRAGMENT_FIRST)
		remember_fragment(w);
	if (!stays(w))
		way = find_way(skb, w);
	if (!may_go(w, way))
		return refuse_way(skb, w, way);
	return go(skb, w, way);
}

/* An ICMP error about a flow, as find_quoted left it. */
__noinline int deliver_error(struct __sk_buff *skb, struct work *w)
{
	enum way way = WAY_LOCAL;

	w = own_work(w);
	if (!w)
		return TC_ACT_SHOT;
	if (!stays(w))
		way = find_way(skb, w);
	if (!may_go(w, way))
		return drop(REASON_NO_ROUTE, &w->p); /* errors are not answered */
	if (way != WAY_OUT && !stack_takes(w))
		return drop(REASON_UNSENDABLE, &w->p);
	if (rewrite_error(skb, w, &w->quote, &w->inner, way == WAY_OUT && !w->egress) < 0)
		return drop(REASON_REWRITE, &w->p);
	count(REASON_ICMP_TRANSLATED, w->p.total);
	return way == WAY_OUT ? send_out(skb, w) : NEXT;
}

#endif
