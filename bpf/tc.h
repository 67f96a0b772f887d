/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet at tc: which of the other headers decides what becomes of it. */
#ifndef NODEPROXY_TC_H
#define NODEPROXY_TC_H

#include "base.h"
#include "config.h"
#include "ct.h"
#include "ct_bypass.h"
#include "ct_new.h"
#include "ct_segment.h"
#include "ct_stale.h"
#include "flow.h"
#include "flow_bloom.h"
#include "flow_repair.h"
#include "flow_types.h"
#include "fragment.h"
#include "frontend.h"
#include "maps.h"
#include "packet.h"
#include "reason.h"
#include "scratch.h"
#include "send.h"
#include "source.h"
#include "tc_new.h"
#include "tc_none.h"
#include "tc_receiver.h"
#include "types.h"

static __noinline int handle(struct __sk_buff *skb, __u32 l3, bool egress)
{
	struct bytes b = {
	    .ctx = skb, .gso = skb->gso_segs, .protocol = skb->protocol, .len = skb->len};
	struct work *w = get_work();
	struct flow *f;
	enum receiver receiver;

	/* A tagged packet belongs to the VLAN's own interface. */
	if (!w || skb->vlan_present || !parse(b, &w->p, l3))
		return NEXT;
	w->egress = egress;
	receiver = egress ? FOR_HOST : receiver_of(skb, l3);
	if (receiver == FOR_OTHERS)
		return NEXT;
	if (w->p.opaque || !port_bit(w->p.t.proto))
		return receiver == FOR_HOST ? handle_no_ports(skb, w) : NEXT;
	if (w->p.saw == FRAGMENT_LATER && !recall_fragment(w))
		return orphan_fragment(w);
	w->known = may_have_flow(&w->p.t);
	f = w->known ? bpf_map_lookup_elem(&flows, &w->p.t) : NULL;
	if (f && f->flags & FLOW_FOREIGN)
		return NEXT;
	if (receiver == FOR_NEIGHBOR && !(f && f->flags & FLOW_REPLY))
		return NEXT;
	if (f && f->flags & FLOW_STACK) {
		switch (keep_tracked(skb, w, f)) {
		case KEEP_FAST:
			return forward_fast(skb, w, f);
		case KEEP_STACK:
			if (receiver == FOR_NEIGHBOR)
				take_in(skb, w);
			return to_stack(skb, w);
		case KEEP_NOT:
			return drop(REASON_DOUBTFUL, &w->p);
		case KEEP_ASK:
			break;
		}
	} else if (f && !(f->flags & FLOW_TIME_WAIT) &&
		   keep_flow(w, f, egress ? 0 : skb->ifindex)) {
		f->packets++;
		f->bytes += w->p.total;
		w->to = f->to;
		return deliver(skb, w);
	}
	if (read_frontend(w)) {
		if (!egress && is_martian(&w->p.t.src))
			return drop(REASON_MARTIAN, &w->p);
		if (is_tracked(&w->p.t) && !(w->fe.flags & FRONTEND_PROBE))
			return begin_tracked(skb, w);
		if ((w->known || w->p.t.proto == IPPROTO_TCP) && !is_syn(&w->p) &&
		    lookup_or_restore(w))
			return deliver_restored(skb, w);
		return handle_new_flow(skb, w);
	}
	if (f && f->flags & FLOW_STACK && !(f->flags & FLOW_REPLY))
		forget_tracked(skb, w, f);
	if (egress && has_conntrack && w->p.t.proto == IPPROTO_UDP && is_sent_astray(skb, w))
		return send_anew(skb, w);
	return handle_no_frontend(skb, w);
}

#endif
