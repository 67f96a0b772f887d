/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a flow ends, what its backend has left of it then, and who may have its port. */
#ifndef NODEPROXY_FLOW_CLOSE_H
#define NODEPROXY_FLOW_CLOSE_H

#include "base.h"
#include "flow_types.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "types.h"

/*
 * Whether the backend of a flow may be in TIME_WAIT: not if the client closed
 * first. If so, it answers the SYN of a new connection from the same port with an
 * ACK of the old one, unless sequence numbers or timestamps happen to be larger.
 */
static __always_inline bool in_time_wait(const struct flow *f, const struct flow *reply)
{
	if ((f->tcp | reply->tcp) & TCP_SEEN_RST || !(f->tcp & reply->tcp & TCP_SEEN_FIN))
		return false;
	return !(f->tcp & TCP_FIRST_FIN) || reply->tcp & TCP_FIRST_FIN;
}

/* Notes a FIN or a RST. */
static __always_inline void close_flow(struct work *w, struct flow *f, __u8 flags)
{
	struct flow *peer;

	if (flags & TCP_RST)
		f->tcp |= TCP_SEEN_RST;
	if (!(flags & TCP_FIN) || f->tcp & TCP_SEEN_FIN)
		return;
	reverse(&w->peer, &f->to);
	peer = bpf_map_lookup_elem(&flows, &w->peer);
	f->tcp |= peer && peer->tcp & TCP_SEEN_FIN ? TCP_SEEN_FIN : TCP_SEEN_FIN | TCP_FIRST_FIN;
}

/*
 * Whether the client reset what it had not begun: a backend in TIME_WAIT answered
 * its SYN with an ACK of an old connection. The reset ended TIME_WAIT, and the
 * client sends its SYN again: from the same port, or it could meet the next
 * TIME_WAIT.
 */
static __always_inline bool rst_by_client(const struct flow *f, const struct flow *reply)
{
	return f->tcp == TCP_SEEN_RST && reply && reply->tcp == TCP_SEEN_ACK;
}

/* UDP without a packet for so long is over, unless it lasted; one question and
 * one answer are so much sooner, if somebody has to be. */
#define ONE_SHOT_IDLE 5000000000ULL
#define ANSWERED_IDLE 250000000ULL

/*
 * Which flow may lose its reply half to a new one: one of which the backend has
 * nothing left, and that has rested; one that is over and has rested; any that is
 * over. The last packets of a flow and the first one of the next may be on
 * different CPUs: without a rest, a backend can see the new SYN before the old RST,
 * and the client has to send again. So it has if the backend still has the old flow
 * in TIME_WAIT.
 */
enum reclaim { RECLAIM_GONE, RECLAIM_QUIET, RECLAIM_ANY };

#define REUSE_QUIET_NS 50000000ULL

static __always_inline bool flow_expired(const struct tuple *key, const struct flow *f,
					 const struct flow *reply, enum reclaim which)
{
	__u64 seen = f->seen > reply->seen ? f->seen : reply->seen;
	__u64 idle = bpf_ktime_get_coarse_ns() - seen;

	if (key->proto == IPPROTO_UDP) {
		if (f->flags & FLOW_LASTING)
			return false;
		if (which == RECLAIM_ANY && f->packets == 1 && reply->packets == 1)
			return idle > ANSWERED_IDLE;
		return idle > ONE_SHOT_IDLE;
	}
	if (which != RECLAIM_ANY && idle < REUSE_QUIET_NS)
		return false;
	if ((f->tcp | reply->tcp) & TCP_SEEN_RST)
		return which == RECLAIM_ANY || !rst_by_client(f, reply);
	if (!(f->tcp & reply->tcp & TCP_SEEN_FIN))
		return false;
	return which != RECLAIM_GONE || !in_time_wait(f, reply);
}

#endif
