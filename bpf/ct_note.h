/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What flows has of a flow that conntrack owns. */
#ifndef NODEPROXY_CT_NOTE_H
#define NODEPROXY_CT_NOTE_H

#include "base.h"
#include "addr.h"
#include "backend.h"
#include "ct_bypass.h"
#include "ct_fast.h"
#include "ct_segment.h"
#include "flow.h"
#include "flow_bloom.h"
#include "flow_types.h"
#include "flow_valid.h"
#include "frontend.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "scratch.h"
#include "source.h"
#include "types.h"

/* Whether the frontend in w->fe would lead the packet's source to w->to's
 * destination still. ifindex is where it came in, 0 if it was sent here. */
static __always_inline bool leads_to(struct work *w, __u32 ifindex)
{
	enum source source;

	if (w->fe.flags & FRONTEND_FILTERED && !in_ranges(&w->fe, &w->p.t.src))
		return false;
	source = source_of(&w->p.t.src, ifindex);
	return route_allows_member(route_of(&w->fe, source),
				   member_flags(w->fe.service, &w->to.dst, w->to.dport));
}

/* Writes one half, and replaces one at its key: conntrack gives a tuple to one flow
 * only. */
static __always_inline void put_half(const struct tuple *key, struct flow *f)
{
	struct flow *was = bpf_map_lookup_elem(&flows, key);

	if (was)
		flush_counters(key, was);
	announce_flow(key);
	bpf_map_update_elem(&flows, key, f, BPF_ANY);
}

/*
 * Notes the flow p.t -> w->to, which conntrack has. A full table leaves it out.
 * reads w->p, w->to, w->fe; writes w->peer, w->flow
 */
__noinline int note_tracked(struct work *w)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	w = own_work(w);
	if (!w)
		return 0;
	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	w->flow.service = w->fe.service;
	w->flow.epoch = service_epoch(w->fe.service);
	w->flow.checked = now / SECOND;
	w->flow.id = bpf_get_prandom_u32() | 1;
	reverse(&w->peer, &w->to);
	reverse(&w->flow.to, &w->p.t);
	w->flow.flags = FLOW_REPLY | FLOW_STACK;
	put_half(&w->peer, &w->flow);
	w->flow.to = w->to;
	w->flow.flags = FLOW_STACK;
	if (!same_addr(&w->to.src, &w->p.t.src) || w->to.sport != w->p.t.sport)
		w->flow.flags |= FLOW_SOURCE;
	w->flow.seen = now;
	w->flow.packets = 1;
	w->flow.bytes = w->p.total;
	put_half(&w->p.t, &w->flow);
	return 0;
}

/* Conntrack still has the flow: it is noted again, or for another second. */
__noinline int renew_tracked(struct work *w, __u32 ifindex)
{
	struct flow *f;

	w = own_work(w);
	if (!w)
		return 0;
	f = bpf_map_lookup_elem(&flows, &w->p.t);
	if (!f || !(f->flags & FLOW_STACK) || !same_tuple(&f->to, &w->to))
		return note_tracked(w);
	f->epoch = service_epoch(w->fe.service);
	note_packet(w, f);
	if (w->p.tcp_flags & TCP_SYN) /* conntrack may take it for a new connection's: see reopen */
		demote(f, tracked_peer(w, f));
	else if (is_counted(f))
		note_segment(&w->p, f);
	promote(w, f, ifindex);
	f->checked = this_second();
	return 0;
}

#endif
