/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets whose half of a flow is missing, though the flow may live. */
#ifndef NODEPROXY_FLOW_REPAIR_H
#define NODEPROXY_FLOW_REPAIR_H

#include "base.h"
#include "flow.h"
#include "flow_bloom.h"
#include "flow_types.h"
#include "frontend.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "scratch.h"
#include "send.h"
#include "types.h"

/*
 * Makes the half of the packet's direction again from the other half, and fills
 * in w->to. pairs only says where that one would be: while it is there, the
 * flow lives. If both are gone, it is over, and an entry in pairs means nothing.
 */
__noinline bool restore_half(struct work *w)
{
	struct tuple *other, key;
	struct flow *f;

	w = own_work(w);
	if (!w)
		return false;
	other = bpf_map_lookup_elem(&pairs, &w->p.t);
	if (!other)
		return false;
	key = *other;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || f->flags & (FLOW_TIME_WAIT | FLOW_STACK))
		return false;
	other_half(w, &key, f);
	if (!same_tuple(&w->peer, &w->p.t))
		return false;
	w->flow.seen = bpf_ktime_get_coarse_ns();
	w->flow.tcp = TCP_SEEN_ACK;
	w->to = w->flow.to;
	announce_flow(&w->p.t);
	if (bpf_map_update_elem(&flows, &w->p.t, &w->flow, BPF_NOEXIST) == 0)
		count(REASON_FLOW_REBUILT, w->p.total);
	return true;
}

/*
 * restore_half for a packet whose flow was perhaps not looked up at all: should the
 * filter lack a half, a connection must not be reset for it. For packets that
 * would be, so that all others are spared the lookup.
 */
__noinline bool lookup_or_restore(struct work *w)
{
	struct flow *f;

	w = own_work(w);
	if (!w)
		return false;
	if (w->known)
		return restore_half(w);
	f = bpf_map_lookup_elem(&flows, &w->p.t);
	if (!f)
		return restore_half(w);
	if (f->flags & (FLOW_FOREIGN | FLOW_TIME_WAIT | FLOW_STACK) || !keep_flow(w, f, 0))
		return false;
	f->packets++;
	f->bytes += w->p.total;
	w->to = f->to;
	announce_flow(&w->p.t);
	reverse(&w->peer, &f->to);
	announce_flow(&w->peer);
	return true;
}

/* A packet that restore_half found a flow for: rare, so it is not worth its place in
 * the program three times. */
__noinline int deliver_restored(struct __sk_buff *skb, struct work *w)
{
	w = own_work(w);
	return w ? deliver(skb, w) : TC_ACT_SHOT;
}

/* Whether the packet comes from a port at which some service has a backend. */
static __always_inline bool from_backend_port(const struct work *w)
{
	__u32 port = bpf_ntohs(w->p.t.sport);
	__u32 bit = port_bit(w->p.t.proto) << PORT_BACKEND_SHIFT;
	__u32 *use = bpf_map_lookup_elem(&ports, &port);

	return (use && *use & bit) || has_ranges(bit);
}

#endif
