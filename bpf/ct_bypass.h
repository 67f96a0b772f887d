/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of halves that conntrack has: which may pass the stack by, and which go up. */
#ifndef NODEPROXY_CT_BYPASS_H
#define NODEPROXY_CT_BYPASS_H

#include "base.h"
#include "backend.h"
#include "ct.h"
#include "ct_fast.h"
#include "ct_room.h"
#include "ct_segment.h"
#include "fib.h"
#include "flow.h"
#include "flow_close.h"
#include "flow_types.h"
#include "packet.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "send.h"

/* Whether conntrack still has the flow of a reply half as the half has it. */
static __always_inline bool still_tracked(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	return find_tracked(skb, w, &w->p.t) == TRACKED_REPLY && same_tuple(&w->to, &f->to);
}

/*
 * Gives the client's share back with the first packet that shows its flow to be answered: the
 * first answer over UDP; over TCP the ACK of the backend's SYN, which a forger cannot know.
 */
static __always_inline void note_answered(struct work *w, struct flow *f)
{
	struct flow *peer;

	if (!share_of_source())
		return;
	if (f->flags & FLOW_REPLY) {
		give_share_back(w, &f->to.dst);
		return;
	}
	peer = tracked_peer(w, f);
	if (peer && peer->next == w->p.ack)
		give_share_back(w, &w->p.t.src);
}

/* Counts a packet in its half. */
static __always_inline void note_packet(struct work *w, struct flow *f)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u8 flags = w->p.tcp_flags;

	if (flags & (TCP_FIN | TCP_RST)) {
		close_flow(w, f, flags);
	} else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_ACK && !(f->tcp & TCP_SEEN_ACK)) {
		f->tcp |= TCP_SEEN_ACK;
		if (!(f->flags & FLOW_REPLY))
			note_answered(w, f);
	} else if (w->p.t.proto == IPPROTO_UDP && f->flags & FLOW_REPLY && !f->packets) {
		note_answered(w, f);
	}
	if (f->seen && now - f->seen > TOUCH_INTERVAL)
		f->flags |= FLOW_LASTING;
	f->seen = now;
	f->packets++;
	f->bytes += w->p.total;
}

/* Whether conntrack has to be asked about a packet of a forward half: about a SYN,
 * after a change of the service, and once a second. */
static __always_inline bool has_to_ask(const struct work *w, const struct flow *f)
{
	if ((w->p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN || f->checked != this_second())
		return true;
	return w->p.t.proto == IPPROTO_UDP && f->epoch != service_epoch(f->service);
}

/* A packet of a half that was found: where it goes. It is counted, unless conntrack
 * has to be asked. */
static __always_inline enum keep keep_tracked(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	bool tcp = w->p.t.proto == IPPROTO_TCP;

	if (tcp && w->p.tcp_flags & (TCP_FIN | TCP_RST) && is_counted(f)) {
		note_packet(w, f);
		return end_segment(skb, w, f);
	}
	if (!(f->flags & FLOW_REPLY) && has_to_ask(w, f))
		return KEEP_ASK;
	note_packet(w, f);
	if (w->p.tcp_flags & TCP_SYN)
		reopen(w, f);
	if (is_counted(f))
		note_segment(&w->p, f);
	if (!is_open(f)) {
		if (tcp && !(f->flags & FLOW_REPLY))
			ask_promotion(w, f);
		return KEEP_STACK;
	}
	if (f->flags & FLOW_REPLY && f->checked != this_second()) {
		if (!still_tracked(skb, w, f)) {
			f->fast = 0;
			return KEEP_STACK;
		}
		if (!f->ifindex)
			f->ifindex = skb->ifindex;
		f->checked = this_second();
		return KEEP_STACK;
	}
	return passes(w, f, skb->ifindex) && is_usual(&w->p) ? KEEP_FAST : KEEP_STACK;
}

/* Sends a packet on past the stack. Where it may not go as it is, the stack says so. */
static __always_inline int forward_fast(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	w->to = f->to;
	if (lookup_route(skb, w) != WAY_OUT)
		return NEXT;
	if (rewrite(skb, w, 1) < 0)
		return drop(REASON_REWRITE, &w->p);
	return send_out(skb, w);
}

#endif
