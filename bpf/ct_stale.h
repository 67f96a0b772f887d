/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* UDP flows that conntrack translates to where their Service does not lead any more. */
#ifndef NODEPROXY_CT_STALE_H
#define NODEPROXY_CT_STALE_H

#include "base.h"
#include "backend.h"
#include "ct.h"
#include "flow_bloom.h"
#include "flow_types.h"
#include "flow_valid.h"
#include "frontend.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "scratch.h"
#include "types.h"

/* A datagram of a flow whose frontend is gone: conntrack forgets the flow, or would go
 * on to translate it. */
static __always_inline void forget_tracked(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	if (w->p.t.proto != IPPROTO_UDP)
		return;
	expire_tracked(skb, w, &w->p.t);
	flush_counters(&w->p.t, f);
	bpf_map_delete_elem(&flows, &w->p.t);
}

/*
 * Whether a datagram that this host sends, and that conntrack has translated already,
 * goes where its Service does not lead any more. Conntrack then forgets the flow. Asked
 * after a change of the Service only.
 * reads w->p; writes w->peer, w->to (the datagram as it was sent), w->key, w->sock, w->ct
 */
__noinline bool is_sent_astray(struct __sk_buff *skb, struct work *w)
{
	struct frontend *fe;
	struct flow *reply;
	__u32 epoch;

	w = own_work(w);
	if (!w)
		return false;
	reverse(&w->peer, &w->p.t);
	if (!may_have_flow(&w->peer))
		return false;
	reply = bpf_map_lookup_elem(&flows, &w->peer);
	if (!reply || (reply->flags & (FLOW_STACK | FLOW_REPLY)) != (FLOW_STACK | FLOW_REPLY))
		return false;
	epoch = service_epoch(reply->service);
	if (reply->epoch == epoch)
		return false;
	reverse(&w->to, &reply->to);
	w->key.addr = w->to.dst;
	w->key.port = w->to.dport;
	w->key.proto = w->to.proto;
	w->key.pad = 0;
	fe = find_frontend(&w->key, false);
	if (fe && fe->service == reply->service &&
	    route_allows_member(route_of(fe, FROM_NODE),
				member_flags(reply->service, &w->p.t.dst, w->p.t.dport))) {
		reply->epoch = epoch;
		return false;
	}
	expire_tracked(skb, w, &w->to);
	flush_counters(&w->peer, reply);
	bpf_map_delete_elem(&flows, &w->peer);
	return true;
}

#endif
