/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a translated packet goes, and sending it there past the stack. */
#ifndef NODEPROXY_SEND_H
#define NODEPROXY_SEND_H

#include "base.h"
#include "addr.h"
#include "config.h"
#include "events.h"
#include "fib.h"
#include "fragment.h"
#include "icmp_error.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "reply.h"
#include "rewrite.h"
#include "scratch.h"
#include "source.h"
#include "stats.h"
#include "types.h"

#define NEXT TC_ACT_UNSPEC /* to the next program on the hook, then the stack */

static __always_inline int drop(enum reason reason, const struct packet *p)
{
	count(reason, p->total);
	emit_event(&p->t, NULL, EVENT_NO_SERVICE, reason);
	return TC_ACT_SHOT;
}

/* A packet to the frontend in w->fe. */
static __always_inline int drop_new(enum reason reason, struct work *w)
{
	count(reason, w->p.total);
	count_service(w->fe.service, false);
	emit_event(&w->p.t, NULL, w->fe.service, reason);
	return TC_ACT_SHOT;
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
static __always_inline bool dst_unchanged(const struct work *w)
{
	return w->egress && same_addr(&w->to.dst, &w->p.t.dst);
}

/* Answers a packet that cannot go on as it is, before it is rewritten. */
static __always_inline int reject_unroutable(struct __sk_buff *skb, struct work *w, enum way way)
{
	__u32 mtu = w->fib.mtu_result;

	if (way == WAY_NONE)
		return drop(REASON_NO_ROUTE, &w->p);
	if (way == WAY_TOO_BIG) {
		count(REASON_TOO_BIG, w->p.total);
		return send_icmp_error(skb, w, ANSWER_TOO_BIG, mtu);
	}
	count(REASON_TTL, w->p.total);
	return send_icmp_error(skb, w, ANSWER_TIME_EXCEEDED, 0);
}

/* Whether a packet may take its way, TTL and size being considered. */
static __always_inline bool route_usable(const struct work *w, enum way way)
{
	if (way == WAY_OUT)
		return w->p.ttl > 1 || w->egress;
	return way == WAY_LOCAL || way == WAY_STACK;
}

/* Rewrites the packet to w->to and sends it the way that was found. */
static __always_inline int forward(struct __sk_buff *skb, struct work *w, enum way way)
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
	if (!dst_unchanged(w))
		way = lookup_route(skb, w);
	if (!route_usable(w, way))
		return reject_unroutable(skb, w, way);
	return forward(skb, w, way);
}

/* An ICMP error about a flow, as find_quoted left it. */
__noinline int deliver_error(struct __sk_buff *skb, struct work *w)
{
	enum way way = WAY_LOCAL;

	w = own_work(w);
	if (!w)
		return TC_ACT_SHOT;
	if (!dst_unchanged(w))
		way = lookup_route(skb, w);
	if (!route_usable(w, way))
		return drop(REASON_NO_ROUTE, &w->p); /* errors are not answered */
	if (way != WAY_OUT && !stack_takes(w))
		return drop(REASON_UNSENDABLE, &w->p);
	if (rewrite_error(skb, w, &w->quote, &w->inner, way == WAY_OUT && !w->egress) < 0)
		return drop(REASON_REWRITE, &w->p);
	count(REASON_ICMP_TRANSLATED, w->p.total);
	return way == WAY_OUT ? send_out(skb, w) : NEXT;
}

#endif
