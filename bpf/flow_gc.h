/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One pass over flows, deleting pairs whose time is over. */
#ifndef NODEPROXY_FLOW_GC_H
#define NODEPROXY_FLOW_GC_H

#include "base.h"
#include "flow.h"
#include "flow_bloom.h"
#include "flow_close.h"
#include "flow_types.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "source.h"
#include "types.h"

static __always_inline __u64 timeout_of(const struct collection *c, const struct tuple *key,
					const struct flow *f, const struct flow *peer)
{
	bool replied = peer && peer->seen;
	__u8 either = f->tcp | (peer ? peer->tcp : 0);
	__u8 both = f->tcp & (peer ? peer->tcp : 0);

	if (key->proto == IPPROTO_UDP)
		return replied && f->flags & FLOW_LASTING ? c->udp : c->udp_opening;
	if (key->proto == IPPROTO_SCTP)
		return replied ? c->established : c->opening;
	if (either & TCP_SEEN_RST)
		return c->closing;
	if (both & TCP_SEEN_FIN)
		return in_time_wait(f, peer) ? c->time_wait : c->closing;
	return replied && f->tcp & TCP_SEEN_ACK ? c->established : c->opening;
}

static long collect_one(void *map __attribute__((unused)), struct tuple *key, struct flow *f,
			struct collection *c)
{
	struct tuple other;
	struct flow *peer;
	__u64 seen = f->seen;

	reverse(&other, &f->to);
	if (c->filter) { /* a half that is lost is found by its bit too */
		set_bit(c->filter - 1, filter_bit(key));
		if (!(f->flags & FLOW_FOREIGN))
			set_bit(c->filter - 1, filter_bit(&other));
	}
	if (c->keep)
		return 0;
	if (f->flags & FLOW_FOREIGN) {
		struct node *n = node_facts();

		if (n && n->flags & NODE_PASS_UNKNOWN)
			c->flows++;
		else if (bpf_map_delete_elem(&flows, key) == 0)
			c->deleted++;
		return 0;
	}
	flush_counters(key, f);
	peer = bpf_map_lookup_elem(&flows, &other);
	if (peer && !leads_back(peer, key))
		peer = NULL;
	if (f->flags & FLOW_REPLY) {
		/* Forward halves decide for both. One that lost its forward half gets
		 * the time in which traffic would have made it again, or for which it was
		 * left by forget; one that had no packet yet may be about to get its forward half,
		 * and has until the next pass. */
		__u64 limit = f->flags & FLOW_TIME_WAIT ? c->time_wait : c->opening;
		bool young = seen ? c->now - seen < limit : !(f->flags & FLOW_ORPHAN);

		if (peer)
			return 0;
		if (young) {
			if (!seen)
				f->flags |= FLOW_ORPHAN;
			c->flows++;
			return 0;
		}
	} else {
		if (peer && peer->seen > seen)
			seen = peer->seen;
		if (seen > c->now || c->now - seen < timeout_of(c, key, f, peer)) {
			c->flows += peer ? 2 : 1;
			return 0;
		}
		if (peer)
			flush_counters(&other, peer);
		if (peer && bpf_map_delete_elem(&flows, key) == 0 &&
		    bpf_map_delete_elem(&flows, &other) == 0)
			c->deleted += 2;
		else if (!peer && bpf_map_delete_elem(&flows, key) == 0)
			c->deleted++;
		return 0;
	}
	if (bpf_map_delete_elem(&flows, key) == 0)
		c->deleted++;
	return 0;
}

#endif
