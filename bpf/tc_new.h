/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The first packet of a flow: what becomes of it, from frontend to flow. */
#ifndef NODEPROXY_TC_NEW_H
#define NODEPROXY_TC_NEW_H

#include "base.h"
#include "addr.h"
#include "backend.h"
#include "events.h"
#include "fib.h"
#include "flow.h"
#include "flow_close.h"
#include "fragment.h"
#include "frontend.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "reply.h"
#include "scratch.h"
#include "send.h"
#include "sklookup.h"
#include "snat.h"
#include "source.h"
#include "types.h"

/* TCP gets a reset: an ICMP error that comes while the client is still in
 * connect() is only noted, and the client waits a second to try again. */
static __always_inline int reject(struct __sk_buff *skb, struct work *w)
{
	count(REASON_NO_ENDPOINTS, w->p.total);
	count_service(w->fe.service, false);
	emit_event(&w->p.t, NULL, w->fe.service, REASON_NO_ENDPOINTS);
	if (w->p.t.proto == IPPROTO_TCP && w->p.saw == FRAGMENT_NONE)
		return send_rst(skb, w);
	return send_icmp_error(skb, w, ANSWER_PORT_UNREACHABLE, 0);
}

/* TCP to a frontend without a flow. A hang is worse than a reset. */
static __always_inline int unknown_flow(struct __sk_buff *skb, struct work *w)
{
	struct node *n = node_facts();

	if (n && n->flags & NODE_PASS_UNKNOWN)
		return NEXT; /* of the mode that this one took over from */
	count(REASON_UNKNOWN_FLOW, w->p.total);
	emit_event(&w->p.t, NULL, w->fe.service, REASON_UNKNOWN_FLOW);
	return send_rst(skb, w);
}

/*
 * Decides on the source of the flow and inserts it. w->to comes with the
 * backend as its destination, w->fib with the way there.
 */
static __always_inline enum reason make_flow(struct __sk_buff *skb, struct work *w, enum way way,
					     __u8 route)
{
	const struct addr *own;
	enum insert done;

	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	w->flow.service = w->fe.service;
	w->flow.epoch = service_epoch(w->fe.service);
	/* A backend on this host answers from here, and hairpin cannot be. What
	 * this host sends has its address already. */
	if (way != WAY_LOCAL && (route & ROUTE_MASQUERADE || same_addr(&w->p.t.src, &w->to.dst)) &&
	    !(address_flags(&w->p.t.src) & ADDRESS_LOCAL)) {
		own = masquerade_address(w->fib.ifindex, w->p.v4);
		if (!own)
			return REASON_NO_SOURCE;
		w->to.src = *own;
		done = take_port(skb, w);
	} else {
		done = src_port_in_use(skb, w) ? INSERT_TAKEN : insert_reply(w, RECLAIM_ANY);
		if (done == INSERT_TAKEN) /* two frontends, one backend, one client port */
			done = take_port(skb, w);
	}
	if (done == INSERTED)
		done = insert_forward(w);
	if (done == INSERTED)
		return REASON_FORWARDED;
	return done == INSERT_TAKEN ? REASON_PORTS_EXHAUSTED : REASON_FLOWS_FULL;
}

static __always_inline bool pick_backend(struct work *w, __u8 route)
{
	const struct tuple *t = &w->p.t;
	__u32 hash = 0;

	if (w->fe.flags & FRONTEND_MAGLEV)
		hash = hash_flow(&t->src, &t->dst, w->fe.flags & FRONTEND_AFFINITY ? 0 : t->sport,
				 t->dport, t->proto);
	if (pick(&w->fe, route, &t->src, &w->be, hash))
		return true;
	return read_frontend(w) && pick(&w->fe, route, &t->src, &w->be, hash);
}

/* The packet as the backend in w->be would get it. writes w->to */
static __always_inline void set_backend(struct work *w)
{
	w->to.src = w->p.t.src;
	w->to.dst = w->be.addr;
	w->to.sport = w->p.t.sport;
	w->to.dport = w->be.port ? w->be.port : w->p.t.dport;
	w->to.proto = w->p.t.proto;
	w->to.pad[0] = 0;
	w->to.pad[1] = 0;
	w->to.pad[2] = 0;
}

static __always_inline int translate(struct __sk_buff *skb, struct work *w, __u8 route)
{
	enum reason reason;
	enum way way;

	if (!pick_backend(w, route))
		return drop_new(REASON_NO_BACKEND, w);
	set_backend(w);
	if (w->to.proto == IPPROTO_SCTP && w->to.dport != w->p.t.dport)
		return drop_new(REASON_SCTP_PORT, w);
	way = lookup_route(skb, w);
	if (!route_usable(w, way)) {
		count_service(w->fe.service, false);
		count_backend(w->fe.service, &w->to.dst, w->to.dport, false);
		return reject_unroutable(skb, w, way);
	}
	reason = make_flow(skb, w, way, route);
	if (reason != REASON_FORWARDED) {
		count_backend(w->fe.service, &w->to.dst, w->to.dport, false);
		return drop_new(reason, w);
	}
	count_service(w->fe.service, true);
	count_backend(w->fe.service, &w->to.dst, w->to.dport, true);
	emit_event(&w->p.t, &w->to, w->fe.service, REASON_FLOW_NEW);
	if (w->p.saw == FRAGMENT_FIRST)
		remember_fragment(w);
	return forward(skb, w, way);
}

/* The first packet to the frontend in w->fe. */
static __always_inline int handle_new_flow(struct __sk_buff *skb, struct work *w)
{
	enum source source;
	__u8 route;

	if (w->fe.flags & FRONTEND_PROBE)
		return TC_ACT_SHOT;
	if (w->p.t.proto == IPPROTO_TCP && !is_syn(&w->p)) {
		if (has_connection(skb, w))
			return NEXT;
		return unknown_flow(skb, w);
	}
	if (w->p.t.proto == IPPROTO_UDP && has_connection(skb, w))
		return NEXT;
	if (w->fe.flags & FRONTEND_FILTERED && !in_ranges(&w->fe, &w->p.t.src))
		return drop_new(REASON_SOURCE_RANGE, w);
	source = source_of(&w->p.t.src, w->egress ? 0 : skb->ifindex);
	if (source == FROM_NODE && !w->egress)
		return NEXT; /* a forged source: the stack knows what to do */
	route = route_of(&w->fe, source);
	switch (route & ROUTE_ACTION) {
	case ROUTE_TRANSLATE:
		return translate(skb, w, route);
	case ROUTE_REJECT:
		return reject(skb, w);
	}
	return drop_new(REASON_POLICY, w);
}

#endif
