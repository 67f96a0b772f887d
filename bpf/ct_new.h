/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * New flows on the stack way: conntrack owns them, and the packet goes on to the
 * stack, which translates and forwards it. What flows has of such a flow counts
 * its packets and says when conntrack is asked again; without it nothing is lost.
 */
#ifndef NODEPROXY_CT_NEW_H
#define NODEPROXY_CT_NEW_H

#include "base.h"
#include "addr.h"
#include "config.h"
#include "ct.h"
#include "ct_note.h"
#include "ct_room.h"
#include "events.h"
#include "fib.h"
#include "flow_repair.h"
#include "frontend.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "send.h"
#include "sklookup.h"
#include "snat.h"
#include "source.h"
#include "tc_new.h"
#include "types.h"

#define LO_IFINDEX 1

/*
 * The address that hides the client towards the backend: the one that the route
 * there gives, or NULL. Where there is no route the stack will say so, and any
 * address of the node does.
 */
static __always_inline const struct addr *route_source(struct __sk_buff *skb, struct work *w)
{
	long rc;

	init_fib_lookup(w, skb->ifindex, 0);
	rc = bpf_fib_lookup(skb, &w->fib, sizeof(w->fib), fib_flags | fib_source);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return masquerade_address(0, w->p.v4);
	if (!fib_source)
		return masquerade_address(w->fib.ifindex, w->p.v4);
	if (w->p.v4)
		map_v4(&w->source, w->fib.ipv4_src);
	else
		__builtin_memcpy(&w->source, w->fib.ipv6_src, 16);
	/* One that has a meaning on its link only is no source beyond it. */
	return is_link_local(&w->source) ? masquerade_address(w->fib.ifindex, w->p.v4) : &w->source;
}

/*
 * A packet that this host sends has passed conntrack already, and would leave as
 * it is. It goes back to where packets come in, on the loopback device; those
 * that follow find the entry while they are sent.
 */
static __always_inline int send_again(struct __sk_buff *skb, struct work *w)
{
	__u8 none[ETH_ALEN] = {}; /* the loopback device's address */
	__u16 protocol = skb->protocol;

	if (!w->p.l3 &&
	    (bpf_skb_change_head(skb, ETH_HLEN, 0) < 0 ||
	     bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol, 2, 0) < 0))
		return drop(REASON_REWRITE, &w->p);
	if (bpf_skb_store_bytes(skb, 0, none, sizeof(none), 0) < 0)
		return drop(REASON_REWRITE, &w->p);
	return bpf_redirect(LO_IFINDEX, BPF_F_INGRESS);
}

/*
 * A segment of a flow that conntrack translates. What it finds invalid it would leave as it
 * is, and the segment would reach a client that does not know the Pod, or be reset by this
 * host. A rule of ours drops that, and takes the sign away again (addHooks of
 * dataplane/ebpf/netfilter.go). The stack sets the priority of what it forwards by its TOS.
 */
static __always_inline int to_stack(struct __sk_buff *skb, const struct work *w)
{
	if (!w->egress && w->p.t.proto == IPPROTO_TCP && !skb->priority)
		skb->priority = PRIORITY_SERVICE;
	return NEXT;
}

/* Whether a Pod's packet goes to a backend that is no Pod, on a node where somebody
 * else has rules of NAT for what leaves it: they are not asked about a flow that has its
 * translation, and a plugin's masquerade would be missed. */
static __always_inline bool leaves_cluster(const struct work *w)
{
	struct node *n = node_facts();

	return n && n->flags & NODE_OTHERS_NAT && in_pod_network(n, &w->p.t.src) &&
	       !in_pod_network(n, &w->to.dst);
}

/* reads w->p, w->fe; writes w->be, w->to, w->fib, w->flow and what these need */
static __always_inline int translate_tracked(struct __sk_buff *skb, struct work *w, __u8 route)
{
	const struct addr *own;
	enum make made;

	if (!pick_backend(w, route))
		return drop_new(REASON_NO_BACKEND, w);
	set_backend(w);
	/* A backend on this host answers from here, and hairpin cannot be. */
	if ((route & ROUTE_MASQUERADE || same_addr(&w->p.t.src, &w->to.dst) || leaves_cluster(w)) &&
	    !(address_flags(&w->to.dst) & ADDRESS_LOCAL)) {
		own = route_source(skb, w);
		if (!own)
			return drop_new(REASON_NO_SOURCE, w);
		w->to.src = *own;
	}
	made = track(skb, w);
	if (made == MAKE_FULL || made == MAKE_TAKEN) {
		count_backend(w->fe.service, &w->be.addr, w->be.port, false);
		drop_new(made == MAKE_FULL ? REASON_FLOWS_FULL : REASON_PORTS_EXHAUSTED, w);
		return made == MAKE_FULL ? ask_for_room(skb, w) : TC_ACT_SHOT;
	}
	note_tracked(w);
	if (made == MAKE_DONE) {
		note_half_open(w);
		count(REASON_FLOW_NEW, w->p.total);
		count_service(w->fe.service, true);
		count_backend(w->fe.service, &w->to.dst, w->to.dport, true);
		emit_event(&w->p.t, &w->to, w->fe.service, REASON_FLOW_NEW);
	}
	count(REASON_STACK, w->p.total);
	return w->egress ? send_again(skb, w) : to_stack(skb, w);
}

/* Whether some socket of this host waits for the packet, connected or not. */
static __always_inline bool listens(struct __sk_buff *skb, struct work *w)
{
	reverse(&w->to, &w->p.t);
	return reply_has_socket(skb, w);
}

/* A Service's own address that is on this node all the same: a cache of names
 * that serves there has it (NodeLocal DNSCache). */
static __always_inline bool is_cached(struct __sk_buff *skb, struct work *w)
{
	return w->dst_flags & ADDRESS_LOCAL &&
	       !(w->fe.flags & (FRONTEND_NODEPORT | FRONTEND_EXTERNAL | FRONTEND_BALANCER)) &&
	       listens(skb, w);
}

/* What becomes of a packet that begins something. half: conntrack has an entry at its
 * tuple without a translation, of which an answer of ours is a part. */
static __always_inline int begin_new(struct __sk_buff *skb, struct work *w, __u32 ifindex,
				     bool half)
{
	__u8 route;

	if (w->fe.flags & FRONTEND_FILTERED && !in_ranges(&w->fe, &w->p.t.src))
		return drop_new(REASON_SOURCE_RANGE, w);
	route = route_of(&w->fe, source_of(&w->p.t.src, ifindex));
	switch (route & ROUTE_ACTION) {
	case ROUTE_TRANSLATE:
		if (ifindex && !take_share(w))
			return drop_new(REASON_SOURCE_SHARE, w);
		if (half)
			expire_tracked(skb, w, &w->p.t);
		return translate_tracked(skb, w, route);
	case ROUTE_REJECT:
		return reject(skb, w);
	}
	return drop_new(REASON_POLICY, w);
}

/*
 * A packet to the frontend in w->fe, which conntrack is asked about first: what
 * it has a claim to is left to it.
 */
static __always_inline int begin_tracked(struct __sk_buff *skb, struct work *w)
{
	__u32 ifindex = w->egress ? 0 : skb->ifindex;
	bool first = w->p.t.proto == IPPROTO_UDP || is_syn(&w->p), half = false;

	if (!w->egress && address_flags(&w->p.t.src) & ADDRESS_LOCAL)
		return NEXT; /* a forged source, or one of send_again's */
	if (is_cached(skb, w))
		return NEXT;
	switch (find_tracked(skb, w, &w->p.t)) {
	case TRACKED_OTHERS:
	case TRACKED_REPLY:
		return NEXT;
	case TRACKED_OPEN:
		/* What is established, no SYN can end. */
		if (!first || (w->p.t.proto == IPPROTO_TCP && w->ct_state == CT_TCP_ESTABLISHED) ||
		    leads_to(w, ifindex)) {
			renew_tracked(w, ifindex);
			return to_stack(skb, w);
		}
		expire_tracked(skb, w, &w->p.t);
		break;
	case TRACKED_CLOSED:
		if (!first) {
			renew_tracked(w, ifindex);
			return to_stack(skb, w);
		}
		expire_tracked(skb, w, &w->p.t);
		break;
	case TRACKED_HALF:
		/* Of this very packet, if it is sent from here. */
		half = first;
		break;
	}
	if (!first) {
		if (lookup_or_restore(w)) /* of the fast way */
			return deliver_restored(skb, w);
		return has_connection(skb, w) ? NEXT : unknown_flow(skb, w);
	}
	return begin_new(skb, w, ifindex, half);
}

/*
 * A datagram that is_sent_astray: it begins anew, as it was sent.
 * reads w->to, w->fe
 */
static __always_inline int send_anew(struct __sk_buff *skb, struct work *w)
{
	if (rewrite(skb, w, 0) < 0)
		return drop(REASON_REWRITE, &w->p);
	w->p.t = w->to;
	return read_frontend(w) ? begin_new(skb, w, 0, false) : drop_new(REASON_NO_BACKEND, w);
}

#endif
